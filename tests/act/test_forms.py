"""Every form acts as its formula says, on every backend that runs it, and the others say which do."""

import math
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from act.test_reference import scalar_actor, scalar_critic
from forms import FORMS, STEPS, form_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import make_policy
from tolerances import FLOAT32

from sorl_fast import BadInput, Sampler
from sorl_fast.act.backends import BACKENDS
from sorl_fast.act.form import NAMES, Diffusion, Direct, Euler, Tanh
from sorl_fast.act.philox import normals
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.sampler import Status

NAN, INF = float("nan"), float("inf")
every = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
ABLE = pytest.mark.parametrize("backend", ["numpy", "torch"])


def observations(policy, rows, seed=0):
    return 2 * normals(seed, rows, 1, policy.obs_dim, call=99)[:, 0]


def noise_of(policy, B, N, seed=1):
    drawn = [normals(seed, B, N, policy.act_dim, draw=i) for i in range(policy.draws)]
    return drawn[0] if policy.draws == 1 else np.stack(drawn, 2)


# --- the definition, against the formulas written out a number at a time


def silu(v):
    return v / (1 + math.exp(-v))


def dense(h, w, b, squash=lambda v: v):
    return [
        squash(sum(v * float(w[j, o]) for j, v in enumerate(h)) + float(b[o]))
        for o in range(len(b))
    ]


def scalar_score(policy, x, z, t):
    (w,), first, second, entry, *blocks, last = policy.actor
    f = [2 * math.pi * t * float(v) for v in w[0]]
    time = dense([*map(math.cos, f), *map(math.sin, f)], *first, silu)
    h = dense([*map(float, z), *map(float, x), *dense(time, *second)], *entry)
    for (w, b, g, c), narrow in zip(blocks[::2], blocks[1::2], strict=True):
        mean = sum(h) / len(h)
        root = math.sqrt(sum((v - mean) ** 2 for v in h) / len(h) + 1e-6)
        n = [(v - mean) / root * float(g[i]) + float(c[i]) for i, v in enumerate(h)]
        more = dense(dense(n, w, b, silu), *narrow)
        h = [v + m for v, m in zip(h, more, strict=True)]
    return dense([silu(v) for v in h], *last)


def scalar_relu_critic(policy, e, x, a):
    h = [*map(float, x), *map(float, a)]
    for i, (w, b) in enumerate(policy.critic):
        h = dense(h, w[e], b[e], (lambda v: max(v, 0)) if i < policy.depth else (lambda v: v))
    return h[0]


def clip(v, bound):
    return v if bound is None else min(max(v, -bound), bound)


def scalar_action(policy, x, noise, M, temperature):
    """`noise` is [S, A]."""
    form, z = policy.form, [float(v) for v in noise[0]]
    if isinstance(form, Euler):
        for i in range(M):
            v = scalar_actor(policy, x, z, i / M, math.log2(M))
            z = [p + q / M for p, q in zip(z, v, strict=True)]
        return z
    if isinstance(form, Direct):
        f = scalar_actor(policy, x, z if form.reads_noise else [0.0] * len(z), 0.0, 0.0)
        f = [math.tanh(v) for v in f] if isinstance(form, Tanh) else f
        if form.reads_noise:
            return f
        scale = form.noise_scale * temperature
        return [v + clip(scale * n, form.noise_clip) for v, n in zip(f, z, strict=True)]
    steps = zip(form.times, form.z_scales, form.v_scales, form.noise_scales, strict=True)
    for i, (t, a, b, s) in enumerate(steps):
        v = scalar_score(policy, x, z, t) if form.residual else scalar_actor(policy, x, z, t, 0.0)
        z = [a * p + b * q for p, q in zip(z, v, strict=True)]
        if s > 0:
            z = [p + s * temperature * float(n) for p, n in zip(z, noise[i + 1], strict=True)]
        z = [clip(p, form.clip) for p in z]
    return z


@every
@pytest.mark.parametrize("temperature", [None, 0.0, 0.7])
def test_equals_the_formulas_written_out_in_scalars(form, temperature):
    policy = form_policy(form, O=3, A=2, H=5, depth=2, E=3)
    M, used = policy.train_steps[-1], policy.temperature if temperature is None else temperature
    obs, noise = observations(policy, 2), noise_of(policy, 2, 3)
    choice = best_of_n(policy, obs, noise, M, temperature=temperature, dtype=np.float64)
    for b in range(2):
        scored = []
        for n in range(3):
            z = scalar_action(policy, obs[b], np.atleast_2d(noise[b, n]), M, used)
            a = [clip(v, 1.0) for v in z]
            residual = isinstance(form, Diffusion) and form.residual
            q = [
                scalar_relu_critic(policy, e, obs[b], a)
                if residual
                else scalar_critic(policy, e, obs[b], a, M)
                for e in range(3)
            ]
            scored.append((min(q), a))
        # without noise all are equal, but for the order in which numpy sums
        best = max(scored)[0]
        assert abs(choice.q[b] - best) < 1e-12
        np.testing.assert_allclose(choice.action[b], scored[choice.candidate[b]][1], atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 0.25, 3.0])
def test_clips_of_the_noise_bind(temperature):
    policy = form_policy(FORMS["direct noisy"], action_low=[-9, -9], action_high=[9, 9])
    obs, noise = observations(policy, 50), noise_of(policy, 50, 1)
    quiet = best_of_n(policy, obs, noise, 1, temperature=0.0)
    loud = best_of_n(policy, obs, noise, 1, temperature=temperature)
    expected = np.clip(np.float32(0.75 * temperature) * noise[:, 0], -0.25, 0.25)
    np.testing.assert_allclose(loud.action - quiet.action, expected, rtol=0, atol=1e-6)
    assert (np.abs(expected) == 0.25).any() == (temperature > 0)


# --- backends


@every
@settings(deadline=None, max_examples=25)
@given(
    O=st.integers(1, 9),
    A=st.integers(1, 6),
    H=st.sampled_from([1, 11, 16, 33]),
    depth=st.integers(1, 3),
    B=st.integers(0, 5),
    N=st.integers(1, 5),
    salt=st.integers(0, 500),
    normalise=st.booleans(),
)
def test_torch_and_float32_agree_with_the_float64_definition(
    form, O, A, H, depth, B, N, salt, normalise
):
    policy = form_policy(form, O, A, H, depth, salt=salt, normalise=normalise)
    obs, noise = observations(policy, B, salt), noise_of(policy, B, N, salt)
    steps = policy.train_steps[-1]
    # every candidate alone: which of two near ties wins is not theirs to agree on
    obs, noise = np.repeat(obs, N, 0), noise.reshape(B * N, 1, *noise.shape[2:])
    double = best_of_n(policy, obs, noise, steps, dtype=np.float64)
    scale = max(1, np.abs(double.q).max(initial=0))
    for name in ("numpy", "torch"):
        action, info = Sampler(policy, name).act(obs, steps, noise=noise, return_info=True)
        assert action.dtype == np.float32
        np.testing.assert_allclose(action, double.action, rtol=0, atol=FLOAT32)
        np.testing.assert_allclose(info.q, double.q, rtol=0, atol=FLOAT32 * scale)


@every
@ABLE
def test_a_seed_draws_the_noise_of_the_definition(form, backend):
    policy = form_policy(form)
    sampler = Sampler(policy, backend)
    obs = observations(policy, 4)
    drawn = np.stack([normals(7, 4, 3, 2, call=5, row_offset=2, draw=i) for i in range(8)], 2)
    noise = drawn[:, :, : policy.draws]
    noise = noise[:, :, 0] if policy.draws == 1 else noise
    act = {"candidates": 3, "return_info": True}
    one, info = sampler.act(obs, seed=7, call=5, row_offset=2, **act)
    two, same = sampler.act(obs, noise=noise, **act)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(info.candidate, same.candidate)
    halves = [
        sampler.act(obs[i : i + 2], seed=7, call=5, row_offset=2 + i, **act)[0] for i in (0, 2)
    ]
    np.testing.assert_allclose(np.concatenate(halves), one, rtol=0, atol=FLOAT32)
    lone = sampler.act(obs[1], noise=noise[1], candidates=3)
    np.testing.assert_allclose(lone, one[1], rtol=0, atol=FLOAT32)


@every
def test_backends_agree_on_status_candidates_and_held_rows(form):
    policy = form_policy(form, action_low=[-0.25, -0.5], action_high=[0.5, 0.25])
    obs, noise = observations(policy, 60), 2 * noise_of(policy, 60, 3)
    if (
        form.name != "residual diffusion"
    ):  # whose LayerNorm overflows in other places in torch's own
        obs[3::11] = 3e38
    obs[::7, 0] = NAN
    noise[::5, 1] = INF
    noise[1::9] = NAN
    (a, one), (b, two) = (
        Sampler(policy, name).act(obs, candidates=3, noise=noise, return_info=True)
        for name in ("numpy", "torch")
    )
    np.testing.assert_array_equal(one.status, two.status)
    np.testing.assert_array_equal(one.candidate, two.candidate)
    np.testing.assert_allclose(a, b, rtol=0, atol=FLOAT32)
    assert np.isfinite(a).all()
    assert ((a >= policy.action_low) & (a <= policy.action_high)).all()
    held = one.candidate == -1
    assert held.any()
    assert (~held).any()
    assert (one.status[::7] == Status.NONFINITE_OBS | Status.HELD).all()
    reads = isinstance(form, Euler | Diffusion) or form.reads_noise or form.temperature > 0
    assert (one.status & Status.CANDIDATE_REJECTED != 0).any() == reads


HARD = st.sampled_from([0.0, -0.0, 1.0, -3.5, 1e38, -3.4e38, 1e-40, 1e300, INF, -INF, NAN])


@every
@ABLE
@settings(deadline=None, max_examples=25)
@given(
    data=st.data(),
    B=st.integers(1, 3),
    N=st.integers(1, 3),
    temperature=st.sampled_from([0, 1, 1e37]),
)
def test_any_observation_and_noise_gives_finite_actions_within_bounds(
    form, backend, data, B, N, temperature
):
    policy = form_policy(form, normalise=True, action_low=[-1, 0.25], action_high=[-0.5, 7])
    options = {} if form.own_temperature is None else {"temperature": temperature}
    obs = np.array(data.draw(st.lists(HARD, min_size=3 * B, max_size=3 * B))).reshape(B, 3)
    shape = noise_of(policy, B, N).shape
    size = int(np.prod(shape))
    noise = np.array(data.draw(st.lists(HARD, min_size=size, max_size=size))).reshape(shape)
    action, info = Sampler(policy, backend).act(
        obs, candidates=N, noise=noise, return_info=True, **options
    )
    assert np.isfinite(action).all()
    assert (action >= policy.action_low).all()
    assert (action <= policy.action_high).all()
    held = info.status & Status.HELD != 0
    np.testing.assert_array_equal(held, info.candidate == -1)
    with np.errstate(all="ignore"):
        seen = np.isfinite(obs.astype(np.float32)).all(1)
    np.testing.assert_array_equal(info.status & Status.NONFINITE_OBS == 0, seen)


@pytest.mark.parametrize("name", ["tanh", "tanh reading", "diffusion", "residual"])
@ABLE
def test_what_overflows_does_not_hide_behind_tanh_or_a_clip(name, backend):
    policy = form_policy(FORMS[name])
    w, b = policy.actor[-1]
    big = (*policy.actor[:-1], (np.full_like(w, 3e38), np.full_like(b, 3e38)))
    policy = form_policy(FORMS[name], actor=big)
    sampler = Sampler(policy, backend)
    _, info = sampler.act(observations(policy, 8), noise=noise_of(policy, 8, 1), return_info=True)
    held = info.status == Status.NONFINITE_RESULT | Status.HELD
    # in the residual network terms of both signs come to a finite sum in some rows
    assert held.any() if name == "residual" else held.all()


@ABLE
@pytest.mark.parametrize("name", ["direct", "tanh", "diffusion"])
def test_at_temperature_0_added_noise_is_not_read(name, backend):
    policy = form_policy(FORMS[name])
    obs, noise = observations(policy, 3), noise_of(policy, 3, 1)
    spoiled = np.full_like(noise, NAN)
    if policy.draws > 1:
        spoiled[:, :, 0] = noise[:, :, 0]
    sampler = Sampler(policy, backend)
    expected = sampler.act(obs, noise=noise, temperature=0)
    action, info = sampler.act(obs, noise=spoiled, temperature=0.0, return_info=True)
    np.testing.assert_array_equal(action, expected)
    assert not (info.status & Status.HELD).any()
    _, info = sampler.act(obs, noise=spoiled, temperature=1, return_info=True)
    assert (info.status & Status.HELD).all()
    assert (sampler.act(obs, noise=noise, temperature=1) != expected).any()


@every
def test_no_temperature_means_the_policys(form):
    policy = form_policy(form)
    if form.own_temperature is None:
        pytest.skip("adds no noise")
    sampler, obs = Sampler(policy), observations(policy, 5)
    expected = sampler.act(obs, seed=1, temperature=form.own_temperature)
    np.testing.assert_array_equal(sampler.act(obs, seed=1), expected)
    assert (sampler.act(obs, seed=1, temperature=form.own_temperature + 1) != expected).any() or (
        form.draws == 1 and isinstance(form, Diffusion)
    )


@every
@ABLE
def test_without_critics_there_is_one_candidate_and_no_q(form, backend):
    policy = form_policy(form, E=0)
    assert policy.critic == ()
    sampler, obs = Sampler(policy, backend), observations(policy, 3)
    action, info = sampler.act(obs, seed=3, return_info=True)
    assert np.isnan(info.q).all()
    assert (info.candidate == 0).all()
    np.testing.assert_array_equal(action, Sampler(form_policy(form), backend).act(obs, seed=3))
    with pytest.raises(BadInput, match="candidates is 4, but this policy has no critic"):
        sampler.act(obs, candidates=4)


@every
def test_a_tensor_gives_a_tensor(form):
    policy = form_policy(form)
    obs = observations(policy, 3)
    action, info = Sampler(policy, "torch").act(
        torch.from_numpy(obs), candidates=2, seed=1, return_info=True
    )
    assert isinstance(action, torch.Tensor)
    assert isinstance(info.q, torch.Tensor)
    np.testing.assert_array_equal(
        action.numpy(), Sampler(policy, "torch").act(obs, candidates=2, seed=1)
    )


# --- what is refused


@every
def test_the_default_is_the_first_step_count_and_others_are_refused(form):
    policy = form_policy(form)
    sampler, obs = Sampler(policy), observations(policy, 2)
    first = policy.train_steps[0]
    np.testing.assert_array_equal(sampler.act(obs, seed=1), sampler.act(obs, first, seed=1))
    wrong = policy.train_steps[-1] + 1
    allowed = ", ".join(map(str, policy.train_steps))
    with pytest.raises(BadInput, match=rf"steps is {wrong}, but this policy acts with {allowed}:"):
        sampler.act(obs, wrong)


@pytest.mark.parametrize(
    ("form", "backend"),
    [
        pytest.param(form, backend, id=f"{backend}-{name}")
        for backend in ("native", "triton")
        for name, form in FORMS.items()
        if form.name not in BACKENDS[backend].forms
    ],
)
def test_a_backend_that_does_not_run_a_form_names_those_that_do(form, backend, monkeypatch):
    policy = form_policy(form)
    says = (
        f"{backend!r}, which does not run a policy of the form {form.name!r}: choose backend numpy"
    )
    with pytest.raises(BadInput, match=re.escape(says)):
        Sampler(policy, backend)
    monkeypatch.setenv("SORL_BACKEND", backend)
    with pytest.raises(BadInput, match=re.escape(says)):
        Sampler(policy)
    monkeypatch.delenv("SORL_BACKEND")
    fastest = form.name in BACKENDS["native"].forms and find_spec("sorl_fast._native")
    assert Sampler(policy).backend == ("native" if fastest else "numpy")


def test_backends_run_forms_that_there_are():
    assert all(set(b.forms) <= set(NAMES) for b in BACKENDS.values())
    assert BACKENDS["numpy"].forms == BACKENDS["torch"].forms == NAMES
    assert set(BACKENDS["native"].forms) == {*NAMES} - {"residual diffusion"}
    assert set(NAMES) - set(BACKENDS["triton"].forms) == {"residual diffusion"}
    assert {form.name for form in FORMS.values()} | {"shortcut"} == set(NAMES)


def test_a_shortcut_policy_has_no_temperature():
    with pytest.raises(BadInput, match=r"adds no noise .*its form is shortcut"):
        Sampler(make_policy()).act(np.zeros(3), temperature=0.5)


@pytest.mark.parametrize("name", ["euler", "direct reading", "tanh reading"])
def test_a_form_without_added_noise_has_no_temperature(name):
    policy = form_policy(FORMS[name])
    for value in (0, 1.0):
        with pytest.raises(
            BadInput, match=f"temperature is {value}, but this policy adds no noise"
        ):
            Sampler(policy).act(np.zeros(3), temperature=value)


@pytest.mark.parametrize("value", [-1, NAN, INF, "hot", 1e39, None.__class__], ids=str)
def test_a_temperature_out_of_its_bounds_is_named(value):
    with pytest.raises(BadInput, match=r"temperature is .*, but must be a finite number"):
        Sampler(form_policy(FORMS["direct"])).act(np.zeros(3), temperature=value)


def test_a_temperature_beyond_float64_is_named():
    with pytest.raises(BadInput, match=r"temperature is 10*, but must be a finite number"):
        Sampler(form_policy(FORMS["direct"])).act(np.zeros(3), temperature=10**400)


@pytest.mark.parametrize(
    "shape", [(2, 2), (2, 4, 3), (2, 3, 2), (1, 2, 4, 2), (2, 4, 2, 1)], ids=str
)
def test_noise_of_another_shape_is_named(shape):
    policy = form_policy(FORMS["diffusion"])
    assert policy.draws == 4  # z_0, and up to the third step, the last one with noise
    text = f"noise has the shape {list(shape)}, but must be [2, 4, 2]: candidates, draws, action"
    with pytest.raises(BadInput, match=re.escape(text)):
        Sampler(policy).act(np.zeros(3), candidates=2, noise=np.zeros(shape))


def test_a_shortcut_policy_and_a_flow_agree_where_they_are_the_same():
    policy = form_policy(Euler(counts=(1, 4)))
    fields = {name: getattr(policy, name) for name in policy.__dataclass_fields__}
    shortcut = type(policy)(**fields | {"form": None, "m_disc": 4, "m_btt": 4})
    obs = observations(policy, 3)
    for M in (1, 4):
        np.testing.assert_array_equal(
            Sampler(policy, "numpy").act(obs, M, 3, seed=1),
            Sampler(shortcut, "numpy").act(obs, M, 3, seed=1),
        )


def test_steps_of_the_examples_differ():
    assert all(len(x) == 5 for x in STEPS.values())
