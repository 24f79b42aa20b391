"""Policies of every form on the triton backend: its kernel, interpreted, and PyTorch's products."""

import numpy as np
import pytest
import torch
from forms import FORMS, form_policy
from tolerances import FLOAT32

from sorl_fast import Sampler, ops
from sorl_fast.act.backends.triton import TritonSession, schedule_for
from sorl_fast.act.form import Direct
from sorl_fast.act.philox import normals
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.schedule import schedule_of
from sorl_fast.act.session import NoiseKey, Status

NAN, INF = float("nan"), float("inf")
SERVED = {name: form for name, form in FORMS.items() if name != "residual"}
every = pytest.mark.parametrize("form", SERVED.values(), ids=SERVED)
pytestmark = pytest.mark.filterwarnings(  # numpy's, which does the interpreter's sums
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)


def noise_of(policy, B, N, seed=1):
    drawn = [normals(seed, B, N, policy.act_dim, draw=i) for i in range(policy.draws)]
    return drawn[0] if policy.draws == 1 else np.stack(drawn, 2)


def observations(policy, B, seed=0):
    return 2 * normals(seed, B, 1, policy.obs_dim, call=99)[:, 0]


@every
@pytest.mark.parametrize("H", [64, 8], ids=["fused", "chain"])
@pytest.mark.parametrize(
    ("O", "A", "depth", "E", "B", "N"),
    [(3, 2, 2, 2, 5, 3), (5, 17, 1, 1, 3, 1), (1, 1, 1, 0, 2, 1)],
    ids=lambda n: str(n),
)
def test_agrees_with_the_float64_definition(form, H, O, A, depth, E, B, N):
    policy = form_policy(form, O, A, H, depth, E, normalise=True)
    obs, noise = observations(policy, B), noise_of(policy, B, N)
    M = policy.train_steps[0]
    for temperature in (None, 0.0, 0.7) if form.own_temperature is not None else (None,):
        action, info = Sampler(policy, "triton").act(
            obs, M, N, noise=noise, temperature=temperature, return_info=True
        )
        twin = best_of_n(policy, obs, noise, M, temperature=temperature, dtype=np.float64)
        same = info.candidate == twin.candidate
        assert same.any()  # near ties may go to another
        np.testing.assert_allclose(action[same], twin.action[same], rtol=0, atol=FLOAT32)
        scale = max(1, np.abs(twin.q).max()) if E else 1
        np.testing.assert_allclose(info.q, twin.q, rtol=0, atol=10 * FLOAT32 * scale)


@every
@pytest.mark.parametrize("H", [64, 8], ids=["fused", "chain"])
def test_a_seed_draws_the_noise_of_the_definition(form, H):
    policy = form_policy(form, A=5, H=H, depth=1)
    sampler, obs = Sampler(policy, "triton"), observations(policy, 3)
    key = {"seed": 2**64 - 3, "call": 5, "row_offset": 2**32 - 3}
    drawn = [normals(2**64 - 3, 3, 2, 5, 5, 2**32 - 3, draw=i) for i in range(policy.draws)]
    noise = drawn[0] if policy.draws == 1 else np.stack(drawn, 2)
    one, info = sampler.act(obs, candidates=2, **key, return_info=True)
    two, same = sampler.act(obs, candidates=2, noise=noise, return_info=True)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(info.candidate, same.candidate)


@pytest.mark.slow
@every
def test_statuses_are_numpys(form):
    policy = form_policy(form, H=64, depth=1, action_low=[-0.25, -0.5], action_high=[0.5, 0.25])
    obs, noise = observations(policy, 24), 2 * noise_of(policy, 24, 3)
    obs[3::11], obs[::7, 0] = 3e38, NAN
    noise[::5, 1], noise[1::9] = INF, NAN
    (a, one), (b, two) = (
        Sampler(policy, name).act(obs, candidates=3, noise=noise, return_info=True)
        for name in ("numpy", "triton")
    )
    unclipped = ~np.uint32(Status.CLIPPED)  # at a bound rounding may fall on either side
    np.testing.assert_array_equal(one.status & unclipped, two.status & unclipped)
    same = one.candidate == two.candidate
    assert (two.candidate[one.candidate == -1] == -1).all()
    np.testing.assert_allclose(a[same], b[same], rtol=0, atol=FLOAT32)
    assert (two.status[::7] == Status.NONFINITE_OBS | Status.HELD).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "tanh reading", "diffusion"])
def test_what_overflows_does_not_hide_behind_tanh_or_a_clip(name):
    policy = form_policy(FORMS[name], H=64, depth=1)
    w, b = policy.actor[-1]
    big = (*policy.actor[:-1], (np.full_like(w, 3e38), np.full_like(b, 3e38)))
    policy = form_policy(FORMS[name], H=64, depth=1, actor=big)
    obs, noise = observations(policy, 4), noise_of(policy, 4, 1)
    _, info = Sampler(policy, "triton").act(obs, noise=noise, return_info=True)
    assert (info.status == Status.NONFINITE_RESULT | Status.HELD).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["direct", "tanh", "diffusion"])
@pytest.mark.parametrize("H", [64, 8], ids=["fused", "chain"])
def test_at_temperature_0_added_noise_is_not_read(name, H):
    policy = form_policy(FORMS[name], H=H, depth=1)
    obs, noise = observations(policy, 3), noise_of(policy, 3, 1)
    spoiled = np.full_like(noise, NAN)
    if policy.draws > 1:
        spoiled[:, :, 0] = noise[:, :, 0]
    sampler = Sampler(policy, "triton")
    expected = sampler.act(obs, noise=noise, temperature=0)
    np.testing.assert_array_equal(sampler.act(obs, noise=spoiled, temperature=0.0), expected)
    _, info = sampler.act(obs, noise=spoiled, temperature=1, return_info=True)
    assert (info.status & Status.HELD).all()


class Recorder:
    """Runs a recording's function again at each replay."""

    recorded = 0

    def run(self, function):
        return function()

    def record(self, function):
        self.recorded += 1
        return function


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fused", "chain", "reference"])
def test_one_recording_serves_every_key_and_temperature(way, monkeypatch):
    monkeypatch.setattr(ops, "sampling_implementation", lambda *a: way)
    policy = form_policy(FORMS["diffusion"], H=64, depth=1)
    recorder = Recorder()
    session = TritonSession(policy, "fp32", lambda device: recorder)
    obs = torch.from_numpy(observations(policy, 2))
    for call, temperature in ((0, 1.0), (1, 0.0), (2, 0.5)):
        action, _ = session.act(obs, NoiseKey(3, call, 0), 2, 5, False, temperature)
        expected = Sampler(policy, "numpy").act(
            obs.numpy(), candidates=2, seed=3, call=call, temperature=temperature
        )
        np.testing.assert_allclose(action.numpy(), expected, rtol=0, atol=FLOAT32)
    assert recorder.recorded == 1


@every
def test_a_schedule_takes_as_many_draws_as_its_form(form):
    policy = form_policy(form)
    schedule = schedule_for(policy, schedule_of(policy.train_steps[0]))
    assert (form.kind == "euler") == (schedule is None)
    assert schedule is None or schedule.draws == form.draws


def test_a_form_whose_noise_has_no_scale_still_takes_a_draw():
    policy = form_policy(Direct(reads_noise=False, noise_scale=0.0))
    assert schedule_for(policy, schedule_of(1)).draws == 1
