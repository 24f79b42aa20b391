"""Rules and schedules through the Sampler."""

import re

import numpy as np
import pytest
import torch
from acting import BACKENDS, POLICY, observations
from forms import FORMS, form_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import make_policy
from tolerances import FLOAT32

from sorl_fast import BadInput, Sampler
from sorl_fast.act import reference
from sorl_fast.act.philox import normals, philox4x32, uniforms
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.rules import NAMES, rule_of
from sorl_fast.act.schedule import schedule_of
from sorl_fast.act.session import Status

NAN = float("nan")
SCHEDULES = [1, 4, 5, 16, "1/2,1/4,1/4"]
ABLE = ["numpy", "torch", "native"]
able = pytest.mark.parametrize("backend", ABLE)
rules = pytest.mark.parametrize("rule", NAMES)


def margin(policy, obs, noise, steps, rule, u):
    """Return the candidates that float32 may choose: those chosen with Q and noise moved a little."""
    rng, found = np.random.default_rng(0), []
    for _ in range(6):
        near = noise + rng.normal(0, 3e-6, noise.shape)
        found.append(
            best_of_n(policy, obs, near, steps, rule=rule, u=u, dtype=np.float64).candidate
        )
    return np.stack(found)


@able
@rules
@settings(deadline=None, max_examples=25)
@given(
    steps=st.sampled_from(SCHEDULES),
    A=st.integers(2, 5),  # of an even number on a line, the middle two are both medoids
    B=st.integers(0, 5),
    N=st.sampled_from([1, 2, 3, 8, 17]),
    q_agg=st.sampled_from(["mean", "min"]),
    seed=st.integers(0, 2**64 - 1),
    call=st.integers(0, 2**33),
    row_offset=st.integers(0, 2**32 - 6),
)
def test_agrees_with_the_float64_definition(
    backend, rule, steps, A, B, N, q_agg, seed, call, row_offset
):
    # wide enough for all: two that are clipped to one would have one Q, but for rounding
    bounds = {"action_low": [-9, -7, -8, -30, -9][:A], "action_high": [8, 7, 9, 70, 11][:A]}
    policy = make_policy(A=A, H=11, q_agg=q_agg, salt=seed % 1000, **bounds)
    obs = observations(B, seed=seed)
    action, info = Sampler(policy, backend).act(
        *(obs, steps, N), rule=rule, seed=seed, call=call, row_offset=row_offset, return_info=True
    )
    noise, u = normals(seed, B, N, A, call, row_offset), uniforms(seed, B, call, row_offset)
    how = schedule_of(steps), rule_of(rule)
    twin = best_of_n(policy, obs, noise, how[0], rule=how[1], u=u, dtype=np.float64)
    sure = (margin(policy, obs, noise, *how, u) == twin.candidate).all(0)
    np.testing.assert_array_equal(info.candidate[sure], twin.candidate[sure])
    np.testing.assert_array_equal(info.status[sure], twin.status[sure])
    np.testing.assert_allclose(action[sure], twin.action[sure], rtol=0, atol=2 * FLOAT32)
    tolerance = 10 * FLOAT32 * np.maximum(1, np.abs(twin.q))
    assert (np.abs(info.q - twin.q) <= tolerance)[sure].all()


@able
@rules
def test_one_candidate_is_returned_whatever_the_rule(backend, rule):
    sampler, obs = Sampler(POLICY, backend), observations(4)
    action, info = sampler.act(obs, 4, 1, rule=rule, seed=1, return_info=True)
    expected, other = sampler.act(obs, 4, 1, seed=1, return_info=True)
    np.testing.assert_array_equal(action, expected)
    for a, b in zip(info, other, strict=True):
        np.testing.assert_array_equal(a, b)


@able
@rules
def test_a_candidate_that_is_not_finite_never_counts(backend, rule):
    obs, noise = observations(3), normals(4, 3, 7, 2)
    sampler = Sampler(POLICY, backend)
    options = {"rule": rule, "return_info": True}
    options |= {"seed": 3} if rule_of(rule).draws else {}
    alone, before = sampler.act(obs, 4, 6, noise=np.delete(noise, 2, 1), **options)
    noise[:, 2] = NAN
    action, info = sampler.act(obs, 4, 7, noise=noise, **options)
    np.testing.assert_allclose(action, alone, rtol=0, atol=FLOAT32)
    np.testing.assert_array_equal(info.candidate, before.candidate + (before.candidate >= 2))
    assert (info.status & Status.CANDIDATE_REJECTED).all()
    noise[:] = NAN
    action, info = sampler.act(obs, 4, 7, noise=noise, **options)
    np.testing.assert_allclose(action, alone[[2, 2, 2]], rtol=0, atol=FLOAT32)
    assert (info.candidate == -1).all()
    assert (info.status == Status.NONFINITE_RESULT | Status.HELD).all()


@able
def test_the_centre_needs_no_critic_and_runs_none(backend, monkeypatch):
    policy = form_policy(FORMS["tanh reading"], E=0)
    action, info = Sampler(policy, backend).act(
        observations(3), candidates=5, rule="centre", seed=1, return_info=True
    )
    twin = best_of_n(policy, observations(3), normals(1, 3, 5, 2), 1, rule=rule_of("centre"))
    np.testing.assert_array_equal(info.candidate, twin.candidate)
    assert np.isnan(info.q).all()
    for rule in set(NAMES) - {"centre"}:
        with pytest.raises(BadInput, match=r"candidates is 5, .* no critic .* rule='centre'"):
            Sampler(policy, backend).act(observations(3), candidates=5, rule=rule)

    sampler = Sampler(POLICY, backend)
    asked, info = sampler.act(observations(3), 4, 5, rule="centre", seed=1, return_info=True)
    assert np.isfinite(info.q).all()

    def never(*args, **options):
        raise AssertionError

    monkeypatch.setattr(reference, "critic_values", never)
    monkeypatch.setattr("sorl_fast.ops.reference.critic_ensemble", never)
    action = sampler.act(observations(3), 4, 5, rule="centre", seed=1)
    np.testing.assert_array_equal(action, asked)


@able
def test_a_critic_that_overflows_does_not_matter_to_the_centre(backend):
    policy = make_policy(critic_out=3e38)  # two of these have no mean
    _, info = Sampler(policy, backend).act(
        observations(2), 2, 5, rule="centre", seed=0, return_info=True
    )
    assert not np.isfinite(info.q).any()
    assert (info.candidate >= 0).all()
    assert not (info.status & Status.CANDIDATE_REJECTED).any()


@able
@pytest.mark.parametrize("rule", ["better", "soft"])
def test_what_is_drawn_follows_from_seed_call_and_row(backend, rule):
    sampler, obs = Sampler(POLICY, backend), observations(8)
    noise = normals(0, 8, 16, 2)

    def act(**more):
        options = {"rule": rule, "noise": noise, "return_info": True} | more
        return sampler.act(obs, 2, 16, **options)[1].candidate

    first = act(seed=5, call=2)
    np.testing.assert_array_equal(first, act(seed=5, call=2))
    for other in ({"seed": 6, "call": 2}, {"seed": 5}, {"seed": 5, "call": 2, "row_offset": 1}):
        assert (act(**other) != first).any()
    assert (act() != act()).any()  # this sampler's own seed, another call
    halves = [sampler.act(obs[b : b + 4], 2, 16, rule=rule, seed=7, row_offset=b) for b in (0, 4)]
    np.testing.assert_allclose(
        np.concatenate(halves), sampler.act(obs, 2, 16, rule=rule, seed=7), rtol=0, atol=FLOAT32
    )


def test_a_seed_beside_noise_is_for_rules_that_draw():
    noise = np.zeros((4, 2))
    for rule in ("argmax", "medoid", "centre"):
        with pytest.raises(BadInput, match="noise is given together with seed or call, which"):
            Sampler(POLICY, "numpy").act([0.0] * 3, 1, 4, rule=rule, noise=noise, seed=1)
    with pytest.raises(BadInput, match="call is 1 without a seed"):
        Sampler(POLICY, "numpy").act([0.0] * 3, 1, 4, rule="soft", noise=noise, call=1)


def test_native_takes_what_names_its_own_steps_and_rule():
    sampler, obs = Sampler(POLICY, "native"), observations(2)
    expected = sampler.act(obs, 4, 3, seed=1)
    for steps in ("4", [0.25] * 4, schedule_of(4)):
        np.testing.assert_array_equal(sampler.act(obs, steps, 3, rule="argmax", seed=1), expected)
    out = np.empty_like(expected)
    sampler.act_into(obs, out, 4, 3, rule="argmax", seed=1)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "best"}, "rule is 'best', but must be one of argmax, medoid[:PART]"),
        ({"rule": 4}, "rule is 4, but must be text"),
        ({"steps": [0.5, 0.25]}, "steps is 0.5,0.25, which sums to 0.75"),
        (
            {"steps": [1 / 34] * 33 + [1 / 34]},
            "steps is 34, but this policy was trained for 1, 2, 4, 8",
        ),
    ],
    ids=["rule", "type", "sum", "many"],
)
def test_wrong_rules_and_schedules_are_named(backend, arguments, words):
    for dtype in ("f4", "f8"):
        with pytest.raises(BadInput, match=re.escape(words)):
            Sampler(POLICY, backend).act(np.zeros(3, dtype), **arguments)


def test_another_form_takes_its_own_counts_only():
    policy = form_policy(FORMS["euler"])
    for steps in (4, "1/2,1/4,1/4"):
        with pytest.raises(BadInput, match="but this policy acts with 3, 10"):
            Sampler(policy, "numpy").act([0.0] * 3, steps)
    sampler = Sampler(policy, "numpy")
    for rule in NAMES:
        assert np.isfinite(sampler.act([0.0] * 3, 3, 6, rule=rule)).all()


def test_a_tensor_is_answered_with_tensors():
    sampler, obs = Sampler(POLICY, "torch"), observations(3)
    for rule in NAMES:
        expected = sampler.act(obs, 5, 9, rule=rule, seed=2)
        found = sampler.act(torch.from_numpy(obs), 5, 9, rule=rule, seed=2)
        np.testing.assert_array_equal(found.numpy(), expected)


# --- the numbers that rules draw


def test_uniforms_are_words_of_philox_apart_from_the_noise():
    seed, call, offset = 2**63 + 12345, 2**32 + 7, 2**32 - 3
    found = uniforms(seed, 3, call, offset)
    for b in range(3):
        counter = np.array([0, 0xFFFFFFFF, (offset + b) % 2**32, 7], np.uint32)
        word = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))[0]
        assert found[b] == (int(word) >> 8) / 2**24
    np.testing.assert_array_equal(found, found.astype(np.float32))
    assert uniforms(0, 0).shape == (0,)
    many = uniforms(1, 20000)
    assert abs(many.mean() - 0.5) < 0.01
    assert many.min() >= 0
    assert many.max() < 1
