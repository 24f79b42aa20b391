"""The clock of `recommend` and of the report."""

import numpy as np
import pytest
from policies import make_policy

from sorl_fast import Sampler
from sorl_fast.act.timing import LEAST_CALLS, WARM_UP, ActTime, act_time, time_acts
from sorl_fast.errors import BadInput


class FakeSampler:
    """Advances a clock by a known time a call."""

    def __init__(self):
        self.policy = make_policy()
        self.now = 0
        self.calls = 0

    def act(self, obs, steps, candidates, rule, seed, call):
        self.calls += 1
        # the warm-up is slow, and one call in 100 after it
        slow = self.calls <= WARM_UP or (self.calls - WARM_UP) % 100 == 0
        self.now += 1_000_000 if slow else 10_000


def test_time_acts_leaves_the_warm_up_out_and_counts_in_microseconds():
    sampler = FakeSampler()
    times = time_acts(sampler, 1, 1, 0.0, clock=lambda: sampler.now)
    assert len(times) == LEAST_CALLS
    assert sorted(set(times)) == [10.0, 1000.0]
    assert np.sum(times == 1000.0) == LEAST_CALLS // 100


def test_time_acts_goes_on_for_the_time_given():
    sampler = FakeSampler()
    times = time_acts(sampler, 1, 1, 1.0, clock=lambda: sampler.now)
    assert 0.8e9 < sampler.now < 1.2e9
    assert len(times) > LEAST_CALLS


def test_act_time_is_the_median_and_the_99th_percentile():
    sampler = FakeSampler()
    found = act_time(sampler, 1, 1, 0.0, clock=lambda: sampler.now)
    assert found == ActTime(10.0, 1000.0)
    assert found.per_second == 1e5


def test_a_cell_that_the_policy_has_not_is_refused():
    with pytest.raises(BadInput, match="steps is 9"):
        act_time(Sampler(make_policy(m_disc=4), "numpy"), 9, 1, 0.0)
