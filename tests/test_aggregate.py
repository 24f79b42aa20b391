"""The aggregates against their definitions, and against scipy where it is."""

import numpy as np
import pytest

from sorl_fast.report import aggregate
from sorl_fast.report.aggregate import improvement, interval, iqm, mean, point, profile


def scores(*tasks):
    return {f"task{i}": list(x) for i, x in enumerate(tasks)}


def test_mean_and_interquartile_mean_by_hand():
    s = scores((0.0, 0.1, 0.9, 0.2), (0.3, 0.4, 0.5, 1.0))
    assert point(s, mean) == pytest.approx(3.4 / 8)
    # sorted: 0 .1 .2 .3 .4 .5 .9 1: two left out at either end
    assert point(s, iqm) == pytest.approx((0.2 + 0.3 + 0.4 + 0.5) / 4)
    assert point(scores((0.5,)), iqm) == point(scores((0.5,)), mean) == 0.5
    assert point(scores((0.0, 1.0, 5.0)), iqm) == 2.0  # floor(3/4) = 0 are left out
    # tasks weigh alike in the mean, however many seeds they have
    assert point(scores((0.0,), (1.0, 1.0, 1.0)), mean) == 0.5


@pytest.mark.slow
def test_as_scipy_has_it():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 5, 8):
        x, y = rng.normal(size=(2, 4, n)).round(1)
        assert point(scores(*x), iqm) == pytest.approx(stats.trim_mean(x, 0.25, axis=None))
        u = [stats.mannwhitneyu(a, b).statistic / n**2 for a, b in zip(x, y, strict=True)]
        assert improvement(scores(*x), scores(*y))[0] == pytest.approx(np.mean(u))


def test_the_bootstrap_draws_within_tasks():
    """Where the seeds of a task agree there is no interval, however far the tasks are apart."""
    assert interval(scores((0.1, 0.1, 0.1), (0.9, 0.9, 0.9)), mean) == pytest.approx((0.5, 0.5))
    low, high = interval(scores((0.0, 1.0), (0.5, 0.5)), mean)
    assert (low, high) == (0.25, 0.75)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for k in range(100):
        s = scores(*rng.normal(0, 1, (3, 20)))
        low, high = interval(s, mean, draws=200, seed=k)
        covered += low <= 0 <= high
    assert 0.88 < covered / 100 < 0.98  # percentile intervals of 20 seeds are a little narrow


def test_one_seed_has_no_interval():
    s = scores((0.1, 0.2), (0.5,))
    assert interval(s, mean) is None
    assert improvement(s, s)[1] is None
    assert profile(s, np.array([0.0]))[1] is None


def test_the_probability_of_improvement_by_hand():
    x, y = scores((1.0, 2.0), (5.0, 5.0)), scores((1.0, 0.0), (5.0, 6.0))
    # task 0: pairs (1,1) 1/2, (1,0) 1, (2,1) 1, (2,0) 1; task 1: 1/2, 0, 1/2, 0
    assert improvement(x, y)[0] == pytest.approx((3.5 / 4 + 1 / 4) / 2)
    assert improvement(y, x)[0] == pytest.approx(1 - (3.5 / 4 + 1 / 4) / 2)
    value, (low, high) = improvement(x, y)
    assert 0 <= low <= value <= high <= 1
    # of the tasks that both have
    assert improvement(x, {"task0": y["task0"], "else": [3.0]})[0] == pytest.approx(3.5 / 4)
    with pytest.raises(ValueError, match="no task in common"):
        improvement(x, {"else": [1.0]})


def test_a_profile_is_the_part_of_runs_above():
    s = scores((0.0, 0.5), (0.5, 1.0))
    value, (low, high) = profile(s, np.array([-0.1, 0.0, 0.5, 1.0]))
    assert value.tolist() == [1.0, 0.75, 0.25, 0.0]
    assert (low <= value).all()
    assert (value <= high).all()
    assert (low[0], high[0], low[-1], high[-1]) == (1, 1, 0, 0)


def test_equal_scores_have_equal_intervals():
    s = scores((0.0, 0.5, 0.2), (0.5, 1.0, 0.1))
    assert interval(s, iqm) == interval(s, iqm)


def test_no_scores_are_refused():
    for bad in ({}, {"a": []}):
        with pytest.raises(ValueError, match="need a task"):
            aggregate.point(bad, mean)
