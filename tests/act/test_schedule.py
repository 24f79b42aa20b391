"""Schedules: what is taken, what it is called, and what the networks read."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies import make_policy

from sorl_fast import BadInput
from sorl_fast.act import reference
from sorl_fast.act.philox import normals
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.schedule import (
    MAX_STEPS,
    Schedule,
    check_fit,
    critic_steps,
    order,
    plan_of,
    schedule_of,
)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        *((4, 4), ("5", 5), ([1.0], 1), ([0.5, 0.5], 2), ([0.2] * 5, 5), ("1/3,1/3,1/3", 3)),
        *(("0.25,0.25,0.25,0.25", 4), (np.int64(16), 16), (np.full(8, 0.125), 8), ([1 / 7] * 7, 7)),
        *(("1/2,1/4,1/4", "1/2,1/4,1/4"), ("0.5, 0.25, 0.25", "1/2,1/4,1/4")),
        *(((0.5, 0.25, 0.25), "1/2,1/4,1/4"), ("1/4,1/4,1/2", "1/4,1/4,1/2")),
        *(([0.33333323] * 3, 3), ([0.2 + 1e-8] * 5, 5), ("0.3333333,0.3333333,0.3333333", 3)),
        *(("0.3,0.7", "3/10,7/10"), ("2/3,1/3", "2/3,1/3"), ("1/2,5e-1", 2)),
        ([0.1234567891234, 0.8765432108766], "0.1234567891234,0.8765432108766"),
    ],
    ids=str,
)
def test_one_key_for_one_schedule(given, key):
    schedule = schedule_of(given)
    assert schedule.key == key
    assert (
        schedule_of(schedule.key) == schedule_of(str(schedule)) == schedule_of(schedule) == schedule
    )
    assert schedule_of(json.loads(json.dumps(schedule.key))) == schedule
    assert schedule_of(list(schedule.sizes)) == schedule


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=40))
def test_any_sizes_read_back_from_their_name(values):
    schedule = schedule_of([h / math.fsum(values) for h in values])
    assert schedule_of(str(schedule)) == schedule
    assert abs(math.fsum(schedule.sizes) - 1) < 1e-15


def test_sizes_are_made_to_sum_to_1():
    schedule = schedule_of([0.5, 0.2500004, 0.25])
    assert abs(math.fsum(schedule.sizes) - 1) < 1e-15
    assert schedule.sizes[1] > schedule.sizes[2]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (0, "steps is 0, but must be an integer from 1 to 2048, or sizes that sum to 1"),
        (MAX_STEPS + 1, "steps is 2049"),
        (True, "steps is True"),
        (2.0, "steps is 2.0, but must be an integer"),
        (None, "steps is None"),
        ([], "steps has 0 sizes"),
        (
            [0.5, 0.4],
            "steps is 0.5,0.4, which sums to 0.9, but step sizes must sum to 1 (within 1e-06)",
        ),
        ([0.5, 0.500002], "must sum to 1"),
        ([1.5, -0.5], "steps[1] is -0.5 of 1.5,-0.5, but a step's size must be above 0"),
        ([1.0, 0.0], "steps[1] is 0.0"),
        ([math.nan, 1], "steps[0] is nan"),
        ([math.inf], "steps[0] is inf"),
        ([1e308, 1e308], "which sums to inf"),
        ([2e15, 1.0], "which sums to 2e+15"),
        ([0.5, True], "steps[1] is nan"),
        (["a", "b"], "steps[0] is nan"),
        ([[0.5], [0.5]], "steps has 0 sizes"),
        ([1 / 4096] * 4096, "steps has 4096 sizes"),
        ("four", "steps is 'four', but must be an integer M, or sizes that sum to 1"),
        ("1/2", "steps is '1/2'"),
        ("1/2,", "steps is '1/2,'"),
        ("1/2,1/0", "steps is '1/2,1/0'"),
        ("1/2,.", "steps is '1/2,.'"),
        ("1/2,1e999999999", "steps is '1/2,1e999999999'"),
        ("0", "steps is 0"),
        ("-4", "steps is '-4'"),
        ("1/2,1/4", "which sums to 0.75"),
        ("", "steps is ''"),
    ],
    ids=str,
)
def test_what_is_no_schedule_is_named(given, words):
    with pytest.raises(BadInput, match=re.escape(words)):
        schedule_of(given)


def test_a_size_beyond_float64_is_named():
    with pytest.raises(BadInput, match=r"steps\[0\] is inf"):
        schedule_of([1, 10**400])


@pytest.mark.parametrize("M", [1, 2, 4, 8])
def test_powers_of_two_read_what_they_always_did(M):
    plan = plan_of(schedule_of(M), 8)
    assert plan.steps == tuple((i / M, math.log2(M), 1 / M) for i in range(M))
    assert plan.k == M


def test_more_than_was_trained_reads_the_finest_that_was():
    five, sixteen = plan_of(schedule_of(5), 8), plan_of(schedule_of(16), 8)
    assert [step.log2_steps for step in five.steps] == [math.log2(5)] * 5
    assert [step.t for step in five.steps] == [0, 0.2, 0.4, 0.6, 0.8]
    assert five.k == 5
    assert [step.log2_steps for step in sixteen.steps] == [3.0] * 16
    assert [step.t for step in sixteen.steps] == [i / 16 for i in range(16)]
    assert sixteen.k == 8


def test_each_size_reads_its_own():
    plan = plan_of(schedule_of("1/2,1/4,1/8,1/16,1/16"), 8)
    assert plan.steps == (
        *((0.0, 1.0, 0.5), (0.5, 2.0, 0.25), (0.75, 3.0, 0.125)),
        *((0.875, 3.0, 0.0625), (0.9375, 3.0, 0.0625)),
    )
    assert plan.k == 5
    assert critic_steps(schedule_of(12), 8) == 8
    assert critic_steps(schedule_of(10), None) == 10


def test_a_form_is_fed_what_its_own_counts_say():
    assert plan_of(schedule_of(10), None).steps[1] == (0.1, math.log2(10), 0.1)


def test_order():
    keys = ["1/2,1/4,1/4", 8, "1/4,1/4,1/2", 3, 2, "2/3,1/3"]
    assert sorted(keys, key=order) == [2, "2/3,1/3", 3, "1/4,1/4,1/2", "1/2,1/4,1/4", 8]


def test_what_a_policy_takes():
    for fits in (1, 3, 8, 16, "1/2,1/4,1/4", [1 / 16] * 14 + [1 / 8]):
        check_fit(schedule_of(fits), 8, (1, 2, 4, 8))
    check_fit(schedule_of(10), None, (3, 10))
    with pytest.raises(
        BadInput, match="steps is 17, but this policy was trained for 1, 2, 4, 8 Euler"
    ):
        check_fit(schedule_of(17), 8, (1, 2, 4, 8))
    with pytest.raises(
        BadInput, match=r"\(3 steps\), but it was trained for 1 .* at most 2: give one"
    ):
        check_fit(schedule_of("1/2,1/4,1/4"), 1, (1,), "it")
    for other in (4, "1/2,1/4,1/4"):
        with pytest.raises(BadInput, match="but this policy acts with 3, 10: give that, or leave"):
            check_fit(schedule_of(other), None, (3, 10))


# --- acting by them


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("M", [1, 2, 4, 8])
def test_powers_of_two_give_the_bits_that_they_always_did(M, dtype):
    policy = make_policy(O=4, A=5, H=16, depth=3)
    actor = [[a.astype(dtype) for a in layer] for layer in policy.actor]
    x, z = (normals(0, 40, 1, n, call)[:, 0].astype(dtype) for call, n in enumerate((4, 5)))
    before = z
    for i in range(M):
        before = before + reference.actor_velocity(actor, x, before, i / M, math.log2(M)) / M
    np.testing.assert_array_equal(reference.denoise(actor, x, z, M), before)
    steps = plan_of(schedule_of([1 / M] * M), 8).steps
    np.testing.assert_array_equal(reference.euler(actor, x, z, steps), before)


def test_a_schedule_is_the_steps_written_out():
    policy = make_policy(m_disc=4)
    actor, critic = (
        [[a.astype(np.float64) for a in layer] for layer in layers]
        for layers in (policy.actor, policy.critic)
    )
    x, noise = normals(0, 6, 1, 3, 9)[:, 0], normals(1, 6, 1, 2)
    z = noise[:, 0].astype(np.float64)
    for t, fed, h in ((0, 1, 0.5), (0.5, 2, 0.25), (0.75, 2, 0.125), (0.875, 2, 0.125)):
        z = z + h * reference.actor_velocity(actor, x.astype(np.float64), z, t, fed)
    found = best_of_n(policy, x, noise, schedule_of("1/2,1/4,1/8,1/8"), dtype=np.float64)
    np.testing.assert_allclose(found.action, np.clip(z, -1, 1), rtol=0, atol=1e-14)
    q = reference.critic_values(critic, x.astype(np.float64), found.action, 4).mean(0)
    np.testing.assert_allclose(found.q, q, rtol=0, atol=1e-14)
    assert isinstance(schedule_of("1/2,1/2"), Schedule)
