"""The native backend on policies of every form but the residual diffusion, against the definition."""

import re

import numpy as np
import pytest
from forms import FORMS as ALL
from forms import STEPS, form_policy
from native.twin import errors

from sorl_fast import BadInput, Sampler
from sorl_fast.act.form import Diffusion, Direct, Euler, Tanh
from sorl_fast.act.philox import normals
from sorl_fast.act.sampler import Status
from sorl_fast.act.session import NoiseKey, noise_of

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")

NAN, INF = float("nan"), float("inf")
ACTION = {"fp32": 1e-5, "bf16": 5e-2, "int8": 5e-2}
Q = {"fp32": 2e-5, "bf16": 2e-1, "int8": 2e-1}
FORMS = {name: form for name, form in ALL.items() if name != "residual"} | {
    "diffusion free": Diffusion(**STEPS, clip=None, temperature=0.5),
    "one step": Euler(counts=(1,)),
}
every = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
PATHS = [(p, isa) for p in ("fp32", "bf16", "int8") for isa in _native.isas(p)]
by_path = pytest.mark.parametrize(("precision", "isa"), PATHS, ids=[f"{i}-{p}" for p, i in PATHS])


def make(form, E=2, H=40, **more):
    return form_policy(form, O=7, A=3, H=H, depth=3, E=E, normalise=True, **more)


def observations(policy, rows):
    return 2 * normals(0, rows, 1, policy.obs_dim, call=99)[:, 0]


def noise_for(policy, B, N, seed=1, call=0, offset=0):
    return noise_of(NoiseKey(seed, call, offset), B, N, policy.act_dim, policy.draws)


def native(monkeypatch, policy, precision="fp32", isa=None, threads=1):
    if isa is None:
        monkeypatch.delenv("SORL_CPU_ISA", raising=False)
    else:
        monkeypatch.setenv("SORL_CPU_ISA", isa)
    return Sampler(policy, "native", precision, threads)


def temperatures(form):
    return (None,) if form.own_temperature is None else (None, 0.0, 0.7, 1.5)


@by_path
@every
def test_agrees_with_float64(monkeypatch, form, precision, isa):
    policy = make(form)
    s = native(monkeypatch, policy, precision, isa)
    for B, N in ((1, 1), (2, 1), (1, 9), (5, 3), (70, 1)):
        obs, noise = observations(policy, B), noise_for(policy, B, N)
        for M in policy.train_steps:
            for T in temperatures(form):
                action, info = s.act(obs, M, N, noise=noise, temperature=T, return_info=True)
                error = errors(policy, obs, noise, M, action, info, T)
                assert error.action <= ACTION[precision], (B, N, M, T)
                assert error.q <= Q[precision], (B, N, M, T)
                assert error.regret <= 2 * Q[precision], (B, N, M, T)
                assert not (info.status & ~np.uint32(Status.CLIPPED)).any()


@by_path
@every
def test_a_key_draws_the_noise_of_the_definition(monkeypatch, form, precision, isa):
    policy = make(form)
    s = native(monkeypatch, policy, precision, isa)
    obs, noise = observations(policy, 20), noise_for(policy, 20, 1, 7, 5, 2)
    T = None if form.own_temperature is None else 1.0
    drawn, info = s.act(obs, seed=7, call=5, row_offset=2, temperature=T, return_info=True)
    error = errors(policy, obs, noise, policy.train_steps[0], drawn, info, T)
    assert error.action <= ACTION[precision]
    # another call's noise is another's, where any is read
    other = s.act(obs, seed=7, call=6, row_offset=2, temperature=T)
    assert np.abs(other - drawn).max() > 1e-3


@pytest.mark.parametrize("isa", _native.isas("fp32"))
@pytest.mark.parametrize("A", [1, 4, 9])
def test_later_draws_are_philox(isa, A):
    for draw in (1, 3, 255):
        ours = _native.normals(3, 5, 2, A, 9, 2**32 - 9, isa, draw)
        assert np.abs(ours - normals(3, 5, 2, A, 9, 2**32 - 9, draw)).max() <= 5e-7
    for draw in (-1, 256):
        with pytest.raises(ValueError, match=f"draw is {draw}"):
            _native.normals(0, 1, 1, 1, draw=draw)


@by_path
@every
def test_same_bits_on_any_number_of_threads(monkeypatch, form, precision, isa):
    policy = make(form, H=100)
    obs = observations(policy, 130)
    samplers = [native(monkeypatch, policy, precision, isa, threads) for threads in (1, 2, 3)]
    for B, N in ((1, 1), (1, 12), (3, 7), (130, 1)):
        for noise in (None, noise_for(policy, B, N)):
            key = {"seed": 5} if noise is None else {"noise": noise}
            results = [s.act(obs[:B], None, N, **key, return_info=True) for s in samplers * 2]
            for action, info in results[1:]:
                np.testing.assert_array_equal(action, results[0][0])
                np.testing.assert_array_equal(info.q, results[0][1].q)
                np.testing.assert_array_equal(info.candidate, results[0][1].candidate)


@by_path
@every
@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("N", [1, 3])
def test_bad_numbers_end_as_numpy_says(monkeypatch, form, precision, isa, bad, N):
    policy = make(form)
    ours, twin = native(monkeypatch, policy, precision, isa), Sampler(policy, "numpy")
    obs = observations(policy, 6)
    obs[[0, 4], 3] = bad
    for draw in range(policy.draws):
        noise = noise_for(policy, 6, N)
        noise.reshape(6, N, policy.draws, 3)[2, 0, draw, 1] = bad
        for T in temperatures(form):
            call = {"candidates": N, "noise": noise, "temperature": T, "return_info": True}
            action, info = ours.act(obs, **call)
            expected, other = twin.act(obs, **call)
            assert np.isfinite(action).all()
            np.testing.assert_array_equal(
                info.status & ~np.uint32(Status.CLIPPED), other.status & ~np.uint32(Status.CLIPPED)
            )
            same = info.candidate == other.candidate
            assert same.all() or precision != "fp32"
            assert np.abs(action - expected)[same].max() <= ACTION[precision]
            assert ((info.status & Status.HELD) == 0)[[1, 3, 5]].all()


@by_path
@pytest.mark.parametrize("name", ["direct", "tanh", "tanh reading", "diffusion", "euler"])
def test_what_overflows_is_rejected(monkeypatch, name, precision, isa):
    policy = make(FORMS[name])
    *layers, (w, b) = policy.actor
    fields = {field: getattr(policy, field) for field in policy.__dataclass_fields__}
    with np.errstate(over="ignore"):
        huge = (*layers, (np.sign(w) * np.float32(3e38), b))
    s = native(monkeypatch, type(policy)(**fields | {"actor": huge}), precision, isa)
    action, info = s.act(observations(policy, 8), noise=noise_for(policy, 8, 1), return_info=True)
    assert (action == 0).all()
    assert (info.status == Status.NONFINITE_RESULT | Status.HELD).all()


@every
def test_without_critics_there_is_one_candidate_and_no_q(monkeypatch, form):
    policy = make(form, E=0)
    s, obs = native(monkeypatch, policy), observations(policy, 3)
    action, info = s.act(obs, seed=3, return_info=True)
    assert np.isnan(info.q).all()
    assert (info.candidate == 0).all()
    np.testing.assert_array_equal(action, native(monkeypatch, make(form)).act(obs, seed=3))
    np.testing.assert_array_equal(action, s.act(obs, seed=3))
    out = np.zeros_like(action)
    says = "candidates is 4, but this policy has no critic"
    for call in (s.act, lambda obs, **kwargs: s.act_into(obs, out, **kwargs)):
        with pytest.raises(BadInput, match=says):
            call(obs, candidates=4)


@every
def test_act_into_is_act(monkeypatch, form):
    policy = make(form)
    s, obs = native(monkeypatch, policy), observations(policy, 4)
    out, noise = np.zeros((4, 3), "f4"), noise_for(policy, 4, 2)
    s.act_into(obs, out, seed=3)  # the policy's own step count
    np.testing.assert_array_equal(out, s.act(obs, seed=3))
    s.act_into(obs, out, policy.train_steps[-1], 2, noise=noise)
    np.testing.assert_array_equal(out, s.act(obs, policy.train_steps[-1], 2, noise=noise))
    wrong = policy.train_steps[-1] + 1
    allowed = ", ".join(map(str, policy.train_steps))
    with pytest.raises(BadInput, match=f"steps is {wrong}, but this policy acts with {allowed}:"):
        s.act_into(obs, out, wrong)
    shape = re.escape(f"must be {list(noise.shape)}")
    with pytest.raises(BadInput, match=f"noise has the shape .*{shape}"):
        s.act_into(obs, out, policy.train_steps[0], 2, noise=np.zeros((4, 2, 9, 3), "f4"))


@pytest.mark.parametrize("name", ["direct", "tanh noisy", "diffusion"])
def test_a_temperature_is_of_one_call(monkeypatch, name):
    policy = make(FORMS[name])
    s, obs = native(monkeypatch, policy), observations(policy, 4)
    own = s.act(obs, seed=3)
    hot = s.act(obs, seed=3, temperature=2.5)
    assert (hot != own).any()
    np.testing.assert_array_equal(s.act(obs, seed=3), own)
    np.testing.assert_array_equal(s.act(obs, seed=3, temperature=2.5), hot)
    s.act(obs[:1].repeat(90, 0), seed=3, temperature=2.5)  # a larger session's is not left behind
    np.testing.assert_array_equal(s.act(obs, seed=3), own)
    session = s._session._session
    for value in (-1.0, NAN, INF):
        with pytest.raises(ValueError, match=r"temperature is .*, but must be a finite number"):
            session.act_into(obs, np.zeros((4, 3), "f4"), 1, 1, 0, 0, 0, temperature=value)


@pytest.mark.parametrize("factor", [1e-46, 1e-30, 1e38])
def test_odd_products_of_scale_and_temperature(monkeypatch, factor):
    """A product that rounds to 0 is no 0, and one beyond float32 is infinite: as in the definition."""
    for form in (
        Direct(reads_noise=False, noise_scale=3.0),
        Tanh(reads_noise=False, noise_scale=30.0),
    ):
        policy = make(form)
        obs, noise = observations(policy, 3), noise_for(policy, 3, 1)
        noise[1, 0, 0] = NAN
        ours, twin = (
            s.act(obs, noise=noise, temperature=factor, return_info=True)
            for s in (native(monkeypatch, policy), Sampler(policy, "numpy"))
        )
        np.testing.assert_array_equal(ours[1].status, twin[1].status)
        np.testing.assert_allclose(ours[0], twin[0], rtol=0, atol=1e-5)


def test_a_flow_of_a_shortcuts_counts_acts_with_its_bits(monkeypatch):
    flow = make(Euler(counts=(1, 2, 4)))
    fields = {name: getattr(flow, name) for name in flow.__dataclass_fields__}
    shortcut = type(flow)(**fields | {"form": None, "m_disc": 4})
    obs = observations(flow, 5)
    for M in (1, 2, 4):
        a, b = (native(monkeypatch, p).act(obs, M, 3, seed=1) for p in (flow, shortcut))
        np.testing.assert_array_equal(a, b)


def test_the_module_refuses_a_damaged_form():
    policy = make(FORMS["euler"])
    names = ("obs_dim", "act_dim", "hidden", "depth", "ensemble", "m_disc", "m_btt", "actor")
    names += ("critic", "action_low", "action_high", "obs_mean", "obs_std")
    fields = {name: getattr(policy, name) for name in names}
    for form in ("", "null", '{"kind": "euler"}', '{"kind": "euler", "counts": [0]}'):
        with pytest.raises(ValueError, match="form"):
            _native.Model(**fields, q_min=False, precision="fp32", form=form)
    with pytest.raises(ValueError, match="a dimension is below 1"):
        _native.Model(**fields | {"ensemble": 0}, q_min=False, precision="fp32")
