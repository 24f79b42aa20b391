"""Which way to act a policy keeps: chosen on the even episodes alone, cheap among equals."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorl_fast import BadInput
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.selection import Tried, cost, select


def tried(steps, candidates, rule, even, odd, n=50):
    """Return a way with so many successes in each half of 2 n episodes."""
    outcomes = [False] * (2 * n)
    outcomes[0 : 2 * even : 2] = [True] * even
    outcomes[1 : 2 * odd : 2] = [True] * odd
    way = PolicyChoice(steps=steps, candidates=candidates, rule=rule)
    return Tried(way, outcomes)


@pytest.mark.parametrize(
    ("ways", "chosen"),
    [
        ([(1, 1, "argmax", 8, 50), (4, 1, "argmax", 43, 0)], 1),  # the odd ones do not count
        ([(4, 1, "argmax", 43, 40), (4, 8, "medoid", 49, 48)], 1),
        ([(4, 1, "argmax", 43, 40), (4, 8, "medoid", 43, 48)], 0),  # no better than N = 1
        ([(4, 1, "argmax", 30, 40), (4, 8, "argmax", 20, 48), (4, 8, "medoid", 29, 48)], 0),
        ([(8, 1, "argmax", 44, 9), (4, 1, "argmax", 42, 9)], 1),  # within one error, and cheaper
        ([(8, 1, "argmax", 44, 9), (4, 1, "argmax", 36, 9)], 0),
        ([(4, 8, "medoid", 20, 9), (4, 8, "centre", 20, 9)], 1),  # which runs no critic
        ([(4, 8, "medoid", 20, 9), (4, 8, "nearest", 21, 9)], 1),
        ([(4, 8, "medoid", 21, 9), (4, 8, "nearest", 21, 9)], 0),
        ([("1/2,1/4,1/4", 1, "argmax", 46, 9), (4, 1, "argmax", 46, 9)], 0),
        ([(4, 8, "medoid", 49, 9), (4, 1, "argmax", 48, 9)], 1),
        ([(4, 8, "medoid", 50, 9), (4, 1, "argmax", 49, 9)], 0),
        ([(4, 8, "medoid", 0, 9), (1, 1, "argmax", 0, 0)], 1),
        ([(8, 8, "medoid", 40, 9), (4, 1, "argmax", 20, 0)], 0),  # no N = 1 at its steps
    ],
)
def test_what_is_chosen(ways, chosen):
    found = select(tried(*way) for way in ways)
    steps, N, rule, even, odd = ways[chosen]
    assert found.way == PolicyChoice(steps=steps, candidates=N, rule=rule)
    assert found.seen == (even, 50)
    assert found.told == (odd, 50)


SOME = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 4, "1/2,1/4,1/4"]),
        st.sampled_from([1, 4, 32]),
        st.sampled_from(["argmax", "medoid", "centre"]),
        st.integers(0, 20),
        st.integers(0, 20),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda way: way[:2] if way[1] == 1 else way[:3],
)


@given(SOME)
def test_the_choice_is_what_it_says(ways):
    ways = [(M, N, "argmax" if N == 1 else rule, a, b) for M, N, rule, a, b in ways]
    found = select(tried(*way, n=20) for way in ways)
    by = {PolicyChoice(steps=M, candidates=N, rule=r): (a, b) for M, N, r, a, b in ways}
    assert (found.seen[0], found.told[0]) == by[found.way]
    alone = {way.steps: a for way, (a, _) in by.items() if way.candidates == 1}
    if found.way.candidates > 1 and found.way.steps in alone:
        assert by[found.way][0] > alone[found.way.steps]
    for way, (a, _) in by.items():
        fair = way.candidates == 1 or a > alone.get(way.steps, -1)
        # nothing that is as good is cheaper, and nothing is better by more than an error
        assert not (fair and a >= found.seen[0] and cost(way) < cost(found.way))
        p = (a + 1) / 22
        assert not fair or a - found.seen[0] <= 20 * math.sqrt(p * (1 - p) / 20) + 1e-12


def test_costs_are_evaluations_of_networks():
    for steps, N, rule, expected in (
        *((4, 1, "medoid", 4), (4, 8, "argmax", 40), (4, 8, "centre", 32)),
        ("1/2,1/4,1/4", 2, "soft", 8),
    ):
        assert cost(PolicyChoice(steps=steps, candidates=N, rule=rule)) == expected


def test_one_episode_is_enough_and_none_is_not():
    way = PolicyChoice(steps=1)
    assert select([Tried(way, [True])])[1:] == ((1, 1), (0, 0))
    for wrong in ([], [Tried(way, [])], [Tried(way, [True]), Tried(way, [True, False])]):
        with pytest.raises(BadInput, match="cannot be chosen from"):
            select(wrong)
