"""The front: what is on it, what ties, and what is unknown."""

import math

from hypothesis import given
from hypothesis import strategies as st

from sorl_fast.cells import cell_name, pareto_front

NAN, INF = math.nan, math.inf


def front(points):
    return pareto_front(points, lambda p: p[0], lambda p: p[1])


def test_a_beaten_point_is_not_on_it():
    assert front([(1, 0.9), (2, 0.5), (3, 0.6), (4, 0.1)]) == [(4, 0.1), (3, 0.6), (1, 0.9)]


def test_of_equal_speeds_the_better_and_of_equal_success_the_faster():
    assert front([(2, 0.5), (2, 0.6)]) == [(2, 0.6)]
    assert front([(3, 0.5), (2, 0.5)]) == [(3, 0.5)]


def test_equals_stay_in_the_order_given():
    points = [(2, 0.5, "b"), (1, 0.7, "x"), (2, 0.5, "a"), (1, 0.7, "y"), (1, 0.6, "beaten")]
    assert [p[2] for p in front(points)] == ["b", "a", "x", "y"]


def test_what_is_unknown_is_not_on_it_and_beats_nothing():
    assert front([(NAN, 1.0), (5, NAN), (1, 0.2), (NAN, NAN)]) == [(1, 0.2)]
    assert front([(NAN, 1.0)]) == []
    assert front([]) == []


def test_an_infinite_speed_is_a_speed():
    assert front([(INF, 0.1), (1, 0.1), (-INF, 0.9)]) == [(INF, 0.1), (-INF, 0.9)]


VALUES = st.sampled_from((0.0, 1.0, 2.0, 3.0, NAN))


@given(st.lists(st.tuples(VALUES, VALUES)))
def test_it_is_what_nothing_beats(points):
    points = [(*p, i) for i, p in enumerate(points)]  # NaN is unequal to itself

    def beats(a, b):
        return a[0] >= b[0] and a[1] >= b[1] and (a[0] > b[0] or a[1] > b[1])

    known = [p for p in points if not math.isnan(p[0] + p[1])]
    unbeaten = [p for p in known if not any(beats(q, p) for q in known)]
    found = front(points)
    assert sorted(found) == sorted(unbeaten)
    assert [p[0] for p in found] == sorted((p[0] for p in found), reverse=True)


def test_the_names_of_a_cell():
    assert cell_name(4, 8) == "M = 4, N = 8"
    assert cell_name(4, 8, short=True) == "4/8"
