"""The kernel that chooses by a rule, against the definition, one observation at a time."""

import numpy as np
import pytest
import torch
from sorl_fast.kernels import choose as kernels

from sorl_fast.act.philox import uniforms
from sorl_fast.act.rules import DEFAULTS, pick, rule_of

pytestmark = pytest.mark.usefixtures("poisoned")
NAN, INF = float("nan"), float("inf")
KEY = 2**64 - 5, 2**32 - 1, 2**32 - 3
RULES = ["medoid", "medoid:1/3", "nearest", "nearest:1", "better", "soft", "soft:1/4", "centre"]
SIZES = [2, 3, 8, 33]
FEW_AND_MANY = pytest.mark.parametrize("N", [3, 33], ids=lambda n: f"N{n}")


def run(rule, actions, q, marks, w, obs=None):
    """Return what the kernel says, as arrays."""
    rule = rule_of(rule)
    p = rule.parameter or 1
    seed, call, offset = KEY
    key = torch.tensor([seed - 2**64, call, offset])
    given = kernels.Rule(rule.name, p.numerator, p.denominator, torch.tensor(w), key)
    obs = np.zeros((len(actions), 3), np.float32) if obs is None else obs
    q = None if q is None else torch.tensor(q)
    found = kernels.choose(
        *(given, torch.tensor(obs), torch.tensor(actions), q),
        torch.tensor(marks, dtype=torch.int32),
    )
    return [x.cpu().numpy() for x in found]


def expected(rule, actions, q, marks, w):
    """Return the definition's winners, in float64, and which candidates may win."""
    rule = rule_of(rule)
    good = (marks & 1) == 1
    if rule.reads_q:
        good &= np.isfinite(q)
    seed, call, offset = KEY
    u = uniforms(seed, len(actions), call, offset)
    rows = zip(actions.astype("f8"), q.astype("f8"), good, u, strict=True)
    return np.array([pick(rule, a, v, g, w.astype("f8"), x) for a, v, g, x in rows]), good


def problem(B, N, A, seed=0, whole=False):
    """Return actions, Q and w; whole: of small integers, where sums are exact and ties many."""
    rng = np.random.default_rng((seed, B, N, A))
    if whole:
        return rng.integers(0, 3, (B, N, A)), rng.integers(0, 3, (B, N)), np.ones(A)
    return rng.standard_normal((B, N, A)), rng.standard_normal((B, N)), rng.uniform(0.5, 2, A)


def floats(*arrays):
    return [np.asarray(x, np.float32) for x in arrays]


def test_every_rule_that_is_not_the_highest_q_is_here():
    assert {*kernels.RULES, "argmax"} == set(DEFAULTS)
    assert [name for name in kernels.RULES if rule_of(name).reads_q] == list(kernels.READ_Q)
    assert [name for name in kernels.RULES if rule_of(name).draws] == list(kernels.DRAW)


@pytest.mark.parametrize("N", SIZES, ids=lambda n: f"N{n}")
@pytest.mark.parametrize("rule", RULES)
def test_chooses_as_the_definition(rule, N):
    actions, q, w = floats(*problem(6, N, 3))
    marks = np.ones((6, N), np.int32)
    winners, _ = expected(rule, actions, q, marks, w)
    action, index, value, flags = run(rule, actions, q, marks, w)
    np.testing.assert_array_equal(index, winners)
    np.testing.assert_array_equal(action, actions[np.arange(6), winners])
    np.testing.assert_array_equal(value, q[np.arange(6), winners])
    assert (flags == 0).all()


@FEW_AND_MANY
@pytest.mark.parametrize("rule", ["medoid", "nearest:1", "better", "soft", "centre"])
def test_ties_go_to_the_smallest_index(rule, N):
    # on a line of integers all sums are exact; `nearest` of all is the highest Q
    actions, q, w = floats(*problem(8, N, 1, whole=True))
    marks = np.ones((8, N), np.int32)
    winners, _ = expected(rule, actions, q, marks, w)
    np.testing.assert_array_equal(run(rule, actions, q, marks, w)[1], winners)


@FEW_AND_MANY
@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_good_is_never_chosen_and_moves_nothing(rule, N):
    actions, q, w = floats(*problem(7, N, 2, seed=3))
    marks = np.ones((7, N), np.int32)
    for b, value in enumerate((NAN, INF, -INF, NAN, INF, NAN, NAN)):
        i = (2 * b) % N
        if b % 2:  # the action is not finite
            actions[b, i], marks[b, i] = value, 0
        else:
            q[b, i] = value
    marks[6] = 0
    winners, good = expected(rule, actions, q, marks, w)
    action, index, value, flags = run(rule, actions, q, marks, w)
    np.testing.assert_array_equal(index, winners)
    left = good.any(1)
    np.testing.assert_array_equal(flags, np.where(left, 16 * ~good.all(1), 2))
    assert not left[6]
    assert value[6] == -INF
    assert np.isfinite(action[left]).all()


def test_the_flags_are_the_winners():
    actions, q, w = floats(*problem(4, 5, 2))
    marks = np.ones((4, 5), np.int32)
    winners, _ = expected("medoid", actions, q, marks, w)
    marks[0, winners[0]] = 3
    marks[1] = 3
    marks[1, winners[1]] = 1
    obs = np.zeros((4, 70), np.float32)
    obs[2, 69], obs[3, 0] = INF, NAN
    np.testing.assert_array_equal(run("medoid", actions, q, marks, w, obs)[3], [8, 0, 1, 1])


def test_without_q_the_centre_is_chosen_and_q_is_nan():
    actions, q, w = floats(*problem(3, 9, 4))
    marks = np.ones((3, 9), np.int32)
    _, index, value, _ = run("centre", actions, None, marks, w)
    np.testing.assert_array_equal(index, expected("centre", actions, q, marks, w)[0])
    assert np.isnan(value).all()
    assert [len(x) for x in run("centre", actions[:0], None, marks[:0], w)] == [0, 0, 0, 0]


@pytest.mark.parametrize("scale", [0.0, 1e30])
def test_soft_draws_evenly_where_q_has_no_finite_spread(scale):
    actions, q, w = floats(*problem(6, 8, 2))
    q *= scale
    marks = np.ones((6, 8), np.int32)
    u = uniforms(KEY[0], 6, *KEY[1:])
    np.testing.assert_array_equal(run("soft", actions, q, marks, w)[1], (u * 8).astype(int))
