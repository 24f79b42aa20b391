"""Observations and results that are not finite: rejected candidates, held actions, status bits."""

import dataclasses

import numpy as np
import pytest
from acting import BACKENDS, POLICY, every, observations
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import make_policy
from tolerances import FLOAT32, SPLIT

from sorl_fast import BadInput, Sampler
from sorl_fast.act.philox import normals
from sorl_fast.act.sampler import Status

NAN, INF = float("nan"), float("inf")


@every
def test_before_any_good_action_zero_clipped_to_the_bounds_is_held(backend):
    policy = make_policy(A=3, action_low=[-1, 0.25, -2], action_high=[1, 1, -0.5])
    action, info = Sampler(policy, backend=backend).act([NAN, 0, 0], return_info=True)
    assert action.tolist() == [0.0, 0.25, -0.5]
    assert info.status == Status.NONFINITE_OBS | Status.HELD
    assert info.candidate == -1
    assert np.isnan(info.q)


@every
def test_rows_without_an_action_hold_the_last_good_one_from_before_the_call(backend):
    sampler = Sampler(POLICY, backend=backend)
    good = sampler.act(observations(3), 4, 2, seed=1)
    obs = observations(4, seed=5)
    obs[0, 1], obs[3, 2] = NAN, -INF
    action, info = sampler.act(obs, 4, 2, seed=2, return_info=True)
    held = Status.NONFINITE_OBS | Status.HELD
    assert [s & ~Status.CLIPPED for s in map(int, info.status)] == [held, 0, 0, held]
    np.testing.assert_array_equal(action[0], good[-1])  # not row 1 or 2 of this call
    np.testing.assert_array_equal(action[3], good[-1])
    clean = Sampler(POLICY, backend=backend).act(observations(4, seed=5), 4, 2, seed=2)
    np.testing.assert_allclose(action[1:3], clean[1:3], rtol=0, atol=SPLIT)
    later = sampler.act([INF] * 3, seed=3)
    np.testing.assert_array_equal(later, action[2])  # the highest good row of the call before
    np.testing.assert_array_equal(sampler.act(np.full((2, 3), NAN)), [later, later])


@every
def test_reset_forgets_the_last_good_action(backend):
    sampler = Sampler(POLICY, backend=backend)
    assert sampler.act(observations(1)[0], seed=1).any()
    sampler.reset()
    assert sampler.act([NAN] * 3).tolist() == Sampler(POLICY, backend).act([NAN] * 3).tolist()
    good = sampler.act(observations(1)[0], seed=1)
    np.testing.assert_array_equal(sampler.act([NAN] * 3), good)


def test_a_path_in_the_place_of_a_policy_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"policy is a PosixPath, .*Sampler.load\(path\)"):
        Sampler(tmp_path / "policy.safetensors")
    with pytest.raises(BadInput, match=r"path is a Policy, but must be the path"):
        Sampler.load(make_policy())


def test_more_than_the_native_backend_can_hold_is_bad_input():
    sampler = Sampler(POLICY, "native")
    for more in ({}, {"return_info": True}):
        with pytest.raises(BadInput, match=r"max_rows \* max_candidates is"):
            sampler.act(np.zeros((2**10, 3), np.float32), 1, 2**25, seed=0, **more)


@every
def test_a_held_action_is_the_callers_to_change(backend):
    sampler = Sampler(POLICY, backend=backend)
    good = sampler.act(observations(1)[0], seed=1)
    expected = good.copy()
    good[:] = 77
    held = sampler.act([NAN] * 3)
    np.testing.assert_array_equal(held, expected)
    held[:] = 88
    np.testing.assert_array_equal(sampler.act([NAN] * 3), expected)


@every
def test_a_candidate_with_a_non_finite_action_is_rejected_and_the_best_of_the_rest_wins(backend):
    sampler = Sampler(POLICY, backend=backend)
    obs, noise = observations(6), normals(4, 6, 5, 2)
    _, before = sampler.act(obs, 2, 5, noise=noise, return_info=True)
    spoiled = noise.copy()
    spoiled[np.arange(6), before.candidate, 0] = [NAN, INF, -INF, NAN, NAN, INF]
    action, info = sampler.act(obs, 2, 5, noise=spoiled, return_info=True)
    assert (info.status & ~np.uint32(Status.CLIPPED) == Status.CANDIDATE_REJECTED).all()
    assert (info.candidate != before.candidate).all()
    assert (info.q <= before.q).all()
    for b in range(6):
        rest = [n for n in range(5) if n != before.candidate[b]]
        alone, best = sampler.act(obs[b], 2, 4, noise=noise[b, rest], return_info=True)
        assert rest[best.candidate] == info.candidate[b]
        np.testing.assert_allclose(alone, action[b], rtol=0, atol=SPLIT)


@every
@pytest.mark.parametrize("N", [1, 3], ids=lambda n: f"N{n}")
def test_no_candidate_left_holds(backend, N):
    sampler = Sampler(POLICY, backend=backend)
    good = sampler.act(observations(1)[0], seed=1)
    noise = normals(4, 2, N, 2)
    noise[0, :, 1] = NAN
    action, info = sampler.act(observations(2), 2, N, noise=noise, return_info=True)
    np.testing.assert_array_equal(action[0], good)
    assert info.status[0] == Status.NONFINITE_RESULT | Status.HELD
    assert info.candidate[0] == -1
    assert np.isnan(info.q[0])
    assert info.candidate[1] >= 0


def overflowing_critic(value):
    """Return a policy whose Q overflows for some candidates (3e38) or not at all."""
    policy = make_policy(E=1)
    w, b = (np.zeros_like(part) for part in policy.critic[-1])
    w[0, 2, 0] = value
    return dataclasses.replace(policy, critic=(*policy.critic[:-1], (w, b)))


@every
def test_a_non_finite_q_never_wins(backend):
    obs, noise = observations(40), normals(4, 40, 6, 2)
    _, info = Sampler(overflowing_critic(3e38), backend=backend).act(
        obs, 1, 6, noise=noise, return_info=True
    )
    rejected = info.status & Status.CANDIDATE_REJECTED != 0
    held = info.status & Status.HELD != 0
    assert rejected.any()
    assert not (rejected & held).any()
    assert (~rejected & ~held).any()
    assert np.isfinite(info.q[~held]).all()
    policy = overflowing_critic(1.0)  # the same Q, scaled: what overflows is above 1.134
    for b in np.flatnonzero(rejected):
        q = [
            Sampler(policy, backend=backend)
            .act(obs[b], 1, noise=noise[b, [n]], return_info=True)[1]
            .q
            for n in range(6)
        ]
        allowed = [v if abs(v) * 3e38 < 2.0**128 else -INF for v in q]
        assert np.argmax(allowed) == info.candidate[b]


@every
def test_with_one_candidate_q_rejects_nothing(backend):
    policy = overflowing_critic(3e38)
    obs, noise = observations(200), normals(4, 200, 1, 2)
    sampler = Sampler(policy, backend=backend)
    action, info = sampler.act(obs, 1, noise=noise, return_info=True)
    assert not np.isfinite(info.q).all()
    assert (info.status & ~np.uint32(Status.CLIPPED) == 0).all()
    np.testing.assert_array_equal(action, sampler.act(obs, 1, noise=noise))


HARD = st.sampled_from(
    [0.0, -0.0, 1.0, -3.5, 1e38, -1e38, 3.4e38, 1e-40, -1e-45, 1e300, INF, -INF, NAN, 2**60]
)


@every
@settings(deadline=None, max_examples=60)
@given(data=st.data(), B=st.integers(1, 4), N=st.integers(1, 4), m=st.integers(0, 3))
def test_any_observation_and_noise_gives_finite_actions_within_bounds(backend, data, B, N, m):
    policy = make_policy(
        normalise=data.draw(st.booleans()), action_low=[-1, 0.25], action_high=[-0.5, 7]
    )
    sampler = Sampler(policy, backend=backend)
    if data.draw(st.booleans()):
        sampler.act(observations(1), 1, seed=0)
    obs = np.array(data.draw(st.lists(HARD, min_size=3 * B, max_size=3 * B))).reshape(B, 3)
    kwargs = {"seed": 1}
    if data.draw(st.booleans()):
        size = B * N * 2
        numbers = data.draw(st.lists(HARD, min_size=size, max_size=size))
        kwargs = {"noise": np.array(numbers).reshape(B, N, 2)}
    action, info = sampler.act(obs, 2**m, N, return_info=True, **kwargs)
    assert np.isfinite(action).all()
    assert (action >= policy.action_low).all()
    assert (action <= policy.action_high).all()
    held = info.status & Status.HELD != 0
    np.testing.assert_array_equal(held, info.candidate == -1)
    reasons = info.status & (Status.NONFINITE_OBS | Status.NONFINITE_RESULT)
    np.testing.assert_array_equal(held, reasons != 0)
    with np.errstate(all="ignore"):
        finite = np.isfinite(obs.astype(np.float32)).all(1)
    np.testing.assert_array_equal(info.status & Status.NONFINITE_OBS == 0, finite)
    assert np.isnan(info.q[held]).all()


def test_backends_agree_on_every_bit_of_the_status():
    obs, noise = observations(60), 3 * normals(4, 60, 3, 2)
    obs[::7, 0] = NAN
    noise[::5, 1] = INF
    noise[::9] = NAN
    obs[::11] = 3e38
    infos = [
        Sampler(overflowing_critic(3e38), backend=name).act(
            obs, 4, 3, noise=noise, return_info=True
        )
        for name in BACKENDS
    ]
    (a, one), *others = infos
    for b, two in others:
        np.testing.assert_array_equal(one.status, two.status)
        np.testing.assert_array_equal(one.candidate, two.candidate)
        np.testing.assert_allclose(a, b, rtol=0, atol=FLOAT32)
    assert np.bitwise_or.reduce(one.status) == 31  # each bit was seen
