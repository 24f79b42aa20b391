"""The rules of choosing: numpy and torch against a twin written out in plain Python, and their names."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sorl_fast import BadInput
from sorl_fast.act.rules import ARGMAX, DEFAULTS, Rule, part_size, pick, rule_of, scale_of
from sorl_fast.ops import rules as torch_rules

NAN, INF = math.nan, math.inf
RULES = [
    *("argmax", "medoid", "medoid:1", "medoid:1/4", "nearest", "nearest:1", "nearest:2/3"),
    *("better", "better:1", "better:1/5", "soft", "soft:1/4", "soft:3", "centre"),
]


def twin(rule, actions, q, good, w, u):
    """Return the chosen index, and whether rounding may choose another one."""
    left = [i for i, g in enumerate(good) if g]
    n = len(left)
    if not n:
        return 0, False

    def d(a, b):
        return math.sqrt(sum(((x - y) * s) ** 2 for x, y, s in zip(a, b, w, strict=True)))

    def medoid(of):
        sums = {i: sum(d(actions[i], actions[j]) for j in of) for i in of}
        best = min(of, key=lambda i: (sums[i], i))
        near = [i for i in of if sums[i] - sums[best] < 1e-9 and actions[i] != actions[best]]
        return best, len(of) > 2 and bool(near)

    p = float(rule.parameter or 1)
    size = max(1, math.ceil(Fraction(rule.parameter or 1) * n)) if rule.name != "soft" else n
    by_q = sorted(left, key=lambda i: (-q[i], i)) if rule.name != "centre" else left
    if rule.name == "argmax":
        return by_q[0], False
    if rule.name == "centre":
        return medoid(left)
    if rule.name == "medoid":
        return medoid(sorted(by_q[:size]))
    if rule.name == "better":
        return sorted(by_q[:size])[math.floor(u * size)], False
    if rule.name == "nearest":
        mean = [sum(actions[i][a] for i in left) / n for a in range(len(w))]
        far = {i: 0.0 if n == 2 else d(actions[i], mean) for i in left}
        order = sorted(left, key=lambda i: (far[i], i))
        part = order[:size]
        # equally far by the sums' rounding alone: only the same actions are so in every order of adding
        edge = [i for i in order[size:] if n > 2 and far[i] - far[part[-1]] < 1e-9]
        near = [j for j in part if far[part[-1]] - far[j] < 1e-9]
        close = any(actions[i] != actions[j] for i in edge for j in near)
        return min(part, key=lambda i: (-q[i], i)), close
    best, mean = q[by_q[0]], sum(q[i] for i in left) / n
    std = math.sqrt(sum((q[i] - mean) ** 2 for i in left) / n)
    if std < 1e-12:
        return left[math.floor(u * n)], False
    weights = [math.exp((q[i] - best) / (p * std)) for i in left]
    total, so_far, close = sum(weights), 0.0, False
    chosen = None
    for i, weight in zip(left, weights, strict=True):
        so_far += weight
        close |= abs(so_far - u * total) < 1e-9 * total
        if chosen is None and so_far > u * total:
            chosen = i
    return chosen, close


def problem(N, A, seed, kind):
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (N, A))
    q = rng.normal(0, 3, N)
    if kind == "ties":
        q = np.round(q / 3)
        actions = np.round(actions)
    if kind == "equal":
        q, actions = np.full(N, 0.1), np.full((N, A), 0.3)
    good = rng.random(N) < (0.6 if kind == "holes" else 1.1)
    q[~good] = rng.choice([NAN, INF, -INF], (~good).sum())
    actions[~good] = rng.choice([NAN, INF], ((~good).sum(), 1))
    w = rng.choice([1.0, 0.25, 3.0, 0.0], A) if kind == "holes" else np.ones(A)
    u = int(rng.integers(0, 2**24)) * 2.0**-24
    return actions, q, good, w, u


def in_torch(rule, actions, q, good, w, u, dtype=torch.float64):
    p = rule.parameter or Fraction(1)
    arrays = [torch.from_numpy(np.array(x)[None]) for x in (actions, q, good)]
    arrays[:2] = [x.to(dtype) for x in arrays[:2]]
    more = torch.from_numpy(w).to(dtype), torch.tensor([u], dtype=torch.float32)
    return int(torch_rules.pick(rule.name, (p.numerator, p.denominator), *arrays, *more)[0])


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None, max_examples=150)
@given(
    N=st.sampled_from([1, 2, 3, 4, 5, 8, 13, 32]),
    A=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["plain", "ties", "equal", "holes"]),
)
@example(N=13, A=5, seed=254, kind="ties")
def test_both_agree_with_the_rule_written_out(name, N, A, seed, kind):
    rule = rule_of(name)
    actions, q, good, w, u = problem(N, A, seed, kind)
    expected, close = twin(rule, actions.tolist(), q.tolist(), good.tolist(), w.tolist(), u)
    if close:
        return
    with np.errstate(all="ignore"):
        found = pick(rule, actions, q, good, w, u)
    assert found == expected
    if good.any():
        assert good[found]
        assert in_torch(rule, actions, q, good, w, u) == expected


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
def test_what_is_not_good_changes_nothing(name, dtype, bad):
    rule = rule_of(name)
    actions, q, good, w, u = problem(9, 3, 5, "plain")
    actions, q, w = actions.astype(dtype), q.astype(dtype), w.astype(dtype)
    alone = pick(rule, actions, q, good, w, u)
    wide = [np.insert(x, [0, 4, 9], bad, axis=0) for x in (actions, q)]
    mask = np.insert(good, [0, 4, 9], False)
    moved = alone + 1 + (alone >= 4)
    with np.errstate(all="ignore"):
        assert pick(rule, *wide, mask, w, u) == moved
    assert in_torch(rule, *wide, mask, w, u) == moved


@pytest.mark.parametrize("name", RULES)
def test_one_candidate_is_the_choice_and_none_is_no_error(name):
    rule, actions, w = rule_of(name), np.zeros((3, 2)), np.ones(2)
    good = np.array([False, True, False])
    assert pick(rule, actions, np.zeros(3), good, w, 0.999) == 1
    assert in_torch(rule, actions, np.zeros(3), good, w, 0.999) == 1
    assert pick(rule, actions, np.zeros(3), ~(good | True), w, 0.5) == 0


@pytest.mark.parametrize("order", [1, -1])
def test_two_candidates(order):
    """No distance tells two apart: those that go by Q alone do, the others take the first."""
    actions, q = np.array([[0.1, 0.7], [-0.3, 0.2]]), np.array([1.0, 2.0])[::order]
    best = int(np.argmax(q))
    for name, expected in {
        **{"argmax": best, "medoid": best, "medoid:1": 0, "centre": 0},
        **{"nearest": 0, "nearest:1/2": 0, "nearest:1": best, "better": best, "better:1": 1},
    }.items():
        for found in (pick, in_torch):
            assert found(rule_of(name), actions, q, q > 0, np.ones(2), 0.75) == expected, name


def test_a_choice_by_chance_has_its_probabilities():
    q = np.array([0.0, 1.0, 3.0, -1.0])
    actions, good, w = np.zeros((4, 1)), np.ones(4, bool), np.ones(1)
    us = (np.arange(4000) + 0.5) / 4000
    weights = np.exp((q - 3) / (0.5 * q.std()))
    for name, expected in {
        "soft:1/2": weights / weights.sum(),
        "better:1/2": [0, 0.5, 0.5, 0],
        "better:1": [0.25] * 4,
    }.items():
        chosen = [pick(rule_of(name), actions, q, good, w, u) for u in us]
        np.testing.assert_allclose(np.bincount(chosen, minlength=4) / 4000, expected, atol=5e-4)


def test_equal_q_are_drawn_alike_also_where_rounding_gives_them_a_deviation():
    q = np.full(3, 0.1, np.float32)
    chosen = [
        pick(rule_of("soft"), np.zeros((3, 1)), q, q > 0, np.ones(1), u) for u in (0, 0.34, 0.67)
    ]
    assert chosen == [0, 1, 2]


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-24])
@pytest.mark.parametrize("top", [1.0, 3e38])
def test_no_number_that_can_be_drawn_leaves_the_candidates(u, top):
    q = np.float32([top, -top, 0, top])
    good = np.array([True, True, False, True])
    for name in ("better", "better:1", "soft", "soft:1/32768", "soft:32768"):
        with np.errstate(all="ignore"):
            found = pick(rule_of(name), np.zeros((4, 1), "f4"), q, good, np.ones(1, "f4"), u)
        assert good[found]
        also = in_torch(rule_of(name), np.zeros((4, 1)), q, good, np.ones(1), u, torch.float32)
        assert good[also]


def test_parts_are_exact():
    assert [part_size(rule_of("medoid:1/3"), n) for n in range(1, 8)] == [1, 1, 1, 2, 2, 2, 3]
    assert [part_size(rule_of("better:0.1"), n) for n in (10, 11, 30, 31)] == [1, 2, 3, 4]
    assert part_size(rule_of("nearest:1/32768"), 2**31 - 1) == 65536
    assert part_size(rule_of("medoid:1"), 7) == 7


def test_distances_are_in_half_widths():
    low, high = np.float32([-1, 0, -3e38, 1e-45]), np.float32([1, 4, 3e38, 3e-45])
    assert scale_of(low, high).tolist() == [1.0, 0.5, 0.0, 0.0]


# --- names


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_rule_is_named_by_its_text(name):
    rule = rule_of(name)
    assert rule_of(rule) == rule == rule_of(str(rule))
    assert str(rule) == name if rule.parameter is None else str(rule).startswith(f"{name}:")
    assert rule.reads_q == (name != "centre")
    assert rule.draws == (name in ("better", "soft"))


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        *(("medoid", "medoid:1/2"), ("medoid:2/8", "medoid:1/4"), ("nearest:0.25", "nearest:1/4")),
        *(("better:1", "better:1"), ("soft", "soft:1"), ("soft:2.50", "soft:5/2")),
        *(("soft:010", "soft:10"), ("argmax", "argmax")),
    ],
)
def test_one_name_for_one_rule(given, canonical):
    assert str(rule_of(given)) == canonical
    assert hash(rule_of(given)) == hash(rule_of(canonical))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("best", "rule is 'best', but must be one of argmax, medoid[:PART]"),
        ("", "rule is '', but must be one of"),
        (3, "rule is 3, but must be text"),
        (None, "rule is None, but must be text"),
        ("argmax:1", "rule is 'argmax:1', but argmax takes no parameter: give 'argmax'"),
        ("centre:1/2", "centre takes no parameter"),
        ("medoid:0", "the part must be a number above 0 and at most 1: give such as medoid:1/2"),
        ("medoid:1.5", "above 0 and at most 1"),
        ("medoid:-1/2", "above 0 and at most 1"),
        ("medoid:1/0", "above 0 and at most 1"),
        ("medoid:nan", "above 0 and at most 1"),
        ("medoid:1e400", "above 0 and at most 1"),
        ("medoid: 1/2", "above 0 and at most 1"),
        ("medoid:", "above 0 and at most 1"),
        ("soft:0", "tau must be a number above 0: give such as soft:1"),
        ("soft:inf", "tau must be a number above 0"),
        ("soft:40000", "tau must be a number above 0"),
        ("nearest:1/32769", "a fraction of integers of at most 32768"),
        (Rule("medoid", Fraction(3, 2)), "rule is 'medoid:3/2'"),
        (Rule("maybe"), "rule is 'maybe'"),
    ],
    ids=str,
)
def test_a_wrong_rule_is_named(given, words):
    with pytest.raises(BadInput, match=re.escape(words)):
        rule_of(given)


def test_the_default_is_the_papers():
    assert rule_of("argmax") == ARGMAX
