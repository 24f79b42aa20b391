"""How long an action takes on this machine: the one clock of `recommend` and of the report."""

import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .rules import ARGMAX
from .sampler import Sampler
from .schedule import schedule_of

WARM_UP = 50  # calls before those that count: pages, caches and the clock settle
LEAST_CALLS = 200  # a 99th percentile of fewer is the maximum in disguise

Clock = Callable[[], int]  # nanoseconds


class ActTime(NamedTuple):
    """Microseconds of one call for one observation, called from Python."""

    p50_us: float
    p99_us: float

    @property
    def per_second(self) -> float:
        """Calls a second, at the median."""
        return 1e6 / self.p50_us


def time_acts(
    sampler: Sampler,
    steps: int | str,
    candidates: int,
    seconds: float,
    clock: Clock = time.perf_counter_ns,
    rule: str = str(ARGMAX),
) -> NDArray[np.float64]:
    """Return the microseconds of each of at least 200 calls for one observation, after a warm-up."""
    obs = np.random.default_rng(0).standard_normal((64, sampler.policy.obs_dim), np.float32)
    M = steps if isinstance(steps, int) else schedule_of(steps)
    times = []
    end = clock() + int(seconds * 1e9)
    for i in itertools.count(-WARM_UP):
        if i >= LEAST_CALLS and clock() >= end:
            break
        x = obs[i % len(obs)]
        start = clock()
        sampler.act(x, M, candidates, rule=rule, seed=0, call=max(i, 0))
        if i >= 0:
            times.append((clock() - start) / 1e3)
    return np.array(times)


def act_time(
    sampler: Sampler,
    steps: int | str,
    candidates: int,
    seconds: float,
    clock: Clock = time.perf_counter_ns,
    rule: str = str(ARGMAX),
) -> ActTime:
    """Time a cell: the median and the 99th percentile of `time_acts`.

    Parameters
    ----------
    sampler
        What acts.
    steps, candidates, rule
        M or a schedule's name, N and how one is chosen, such as its policy allows.
    seconds
        Time for it; at least 200 calls are made.
    clock
        Returns nanoseconds.

    Raises
    ------
    BadInput
        The policy cannot act with these steps, candidates or rule.
    """
    times = time_acts(sampler, steps, candidates, seconds, clock, rule)
    return ActTime(*(float(np.quantile(times, q, method="higher")) for q in (0.5, 0.99)))
