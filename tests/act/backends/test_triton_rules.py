"""Rules and schedules on the triton backend: its kernels, interpreted, and PyTorch's products."""

import numpy as np
import pytest
import torch
from forms import FORMS, form_policy
from policies import make_policy
from tolerances import FLOAT32

from sorl_fast import Sampler, ops
from sorl_fast.act.backends.triton import TritonSession, schedule_for
from sorl_fast.act.philox import normals, uniforms
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.rules import ARGMAX, NAMES, rule_of
from sorl_fast.act.schedule import schedule_of
from sorl_fast.act.session import NoiseKey, Status

NAN = float("nan")
SCHEDULES = [3, 5, 16, "1/2,1/4,1/4"]
WIDE = {"action_low": [-9, -7, -8], "action_high": [8, 7, 9]}  # nothing is clipped
pytestmark = pytest.mark.filterwarnings(  # numpy's, which does the interpreter's sums
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
rules = pytest.mark.parametrize("rule", NAMES)
ways = pytest.mark.parametrize("H", [64, 8], ids=["fused", "chain"])


def policy_of(H=64, **more):
    return make_policy(A=3, H=H, depth=1, normalise=True, **WIDE, **more)


def observations(B, seed=0):
    return normals(seed, B, 1, 3, call=99)[:, 0]


def check(found, policy, obs, noise, steps, rule, seed, offset=0):
    """Compare an action and its info with the float64 definition, but for choices that rounding makes."""
    action, info = found
    rule, steps = rule_of(rule), schedule_of(steps)
    u = uniforms(seed, len(obs), 0, offset)
    twin = best_of_n(policy, obs, noise, steps, rule=rule, u=u, dtype=np.float64)
    single = best_of_n(policy, obs, noise, steps, rule=rule, u=u)
    sure = single.candidate == twin.candidate
    assert sure.any()
    np.testing.assert_array_equal(info.candidate[sure], twin.candidate[sure])
    left = twin.candidate >= 0
    np.testing.assert_array_equal(info.status[sure & left], twin.status[sure & left])
    np.testing.assert_allclose(
        action[sure & left], twin.action[sure & left], rtol=0, atol=2 * FLOAT32
    )
    scale = np.maximum(1, np.abs(np.nan_to_num(twin.q)))
    np.testing.assert_allclose(info.q[sure] / scale[sure], twin.q[sure] / scale[sure], atol=1e-4)


@ways
@rules
@pytest.mark.parametrize(
    "N", [2, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))], ids=lambda n: f"N{n}"
)
def test_every_rule_is_the_definitions(rule, N, H):
    policy = policy_of(H)
    obs, noise = observations(5), normals(2, 5, N, 3, row_offset=7)
    if N > 1:
        noise[3, 1] = NAN
        noise[4] = NAN
    key = {"seed": 2} if rule_of(rule).draws else {}
    options = {"rule": rule, "return_info": True, "row_offset": 7}
    found = Sampler(policy, "triton").act(obs, 2, N, noise=noise, **key, **options)
    check(found, policy, obs, noise, 2, rule, 2, 7)
    if N > 1:
        assert (found[1].status[3:] & ~Status.CLIPPED).tolist() == [
            *(Status.CANDIDATE_REJECTED, Status.NONFINITE_RESULT | Status.HELD)
        ]
    noise = normals(2, 5, N, 3, row_offset=7)
    found = Sampler(policy, "triton").act(obs, 2, N, seed=2, **options)
    check(found, policy, obs, noise, 2, rule, 2, 7)


@ways
@pytest.mark.parametrize("rule", ["argmax", "medoid", "soft"])
@pytest.mark.parametrize("steps", SCHEDULES, ids=str)
def test_every_schedule_is_the_definitions(steps, rule, H):
    policy = policy_of(H)
    obs, noise = observations(4), normals(1, 4, 3, 3)
    found = Sampler(policy, "triton").act(obs, steps, 3, rule=rule, seed=1, return_info=True)
    check(found, policy, obs, noise, steps, rule, 1)


@ways
@pytest.mark.parametrize("rule", [name for name in NAMES if not rule_of(name).draws])
def test_of_equal_candidates_the_first_is_chosen(rule, H):
    policy, obs = policy_of(H), observations(3)
    noise = np.repeat(normals(1, 3, 2, 3), 2, axis=1)  # a, a, b, b
    _, info = Sampler(policy, "triton").act(obs, 2, 4, rule=rule, noise=noise, return_info=True)
    assert (info.candidate % 2 == 0).all()


@ways
def test_the_centre_needs_no_critic(H):
    policy = form_policy(FORMS["diffusion"], H=H, depth=1, E=0)
    obs = observations(4)
    action, info = Sampler(policy, "triton").act(
        obs, candidates=3, rule="centre", seed=1, return_info=True
    )
    noise = np.stack([normals(1, 4, 3, policy.act_dim, draw=i) for i in range(policy.draws)], 2)
    twin = best_of_n(policy, obs, noise, policy.train_steps[0], rule=rule_of("centre"))
    np.testing.assert_array_equal(info.candidate, twin.candidate)
    np.testing.assert_allclose(action, twin.action, rtol=0, atol=2 * FLOAT32)
    assert np.isnan(info.q).all()


def test_equal_steps_that_were_trained_need_no_table():
    policy = policy_of(m_disc=8)
    for steps, tabled in ((1, 0), (3, 0), (8, 0), (9, 1), (16, 1), ([0.5, 0.25, 0.25], 1)):
        assert (schedule_for(policy, schedule_of(steps)) is not None) == tabled
    assert schedule_for(policy, schedule_of(16)).k == 8


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
def test_one_recording_serves_every_key(way, monkeypatch):
    monkeypatch.setattr(ops, "sampling_implementation", lambda *a: way)
    policy, recorder = policy_of(), Recorder()
    session = TritonSession(policy, "fp32", lambda device: recorder)
    obs = torch.from_numpy(observations(3))
    how = schedule_of("1/2,1/4,1/4"), rule_of("better")
    for call, seed in ((0, 3), (1, 2**64 - 1)):
        key = NoiseKey(seed, call, 0)
        action, _ = session.act(obs, key, 4, how[0], False, 0.0, how[1], key)
        expected = Sampler(policy, "torch").act(
            obs.numpy(), how[0], 4, rule=how[1], seed=seed, call=call
        )
        np.testing.assert_allclose(action.numpy(), expected, rtol=0, atol=2 * FLOAT32)
    assert recorder.recorded == 1
    for rule in (rule_of("soft"), rule_of("soft:2"), ARGMAX):
        session.act(obs, key, 4, how[0], False, 0.0, rule, key)
    assert recorder.recorded == 4
    session.act(obs, key, 1, how[0], False, 0.0, rule_of("soft"), key)
    session.act(obs, key, 1, how[0], False, 0.0, rule_of("medoid"), None)
    assert recorder.recorded == 5  # of one candidate no rule chooses
