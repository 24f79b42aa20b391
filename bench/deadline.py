"""A fixed way to act against a deadline, in the same control loop under the same load.

`sorl-bench loop --deadline 900 --load 2`: slices of the three loops follow each other, so that whatever
else runs disturbs all alike: M and N fixed; the ways that `prepare_deadline` has measured, with what is
left of the period's deadline when the loop has woken; and arithmetic in registers that takes as much
processor time as the second did on average in its last turn, whose misses are the machine's own.
"""

import argparse
import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sorl_fast.act.deadline import DeadlineInfo
from sorl_fast.act.policy_file import Policy
from sorl_fast.act.sampler import Sampler, Status

SLICE = 1.0  # seconds of a loop before the next one's turn
TABLE = 1000  # observations made beforehand and used in turn
AROUND = 20.0  # microseconds that Python takes before and after the runtime
FIXED, DEADLINE = "fixed", "deadline"


class Looper(NamedTuple):
    """One of the loops: what runs in each period."""

    name: str
    sense: Callable[[int], None]  # of the period's number
    woken: Callable[[int], None]  # of the nanoseconds at which the period began
    act: Callable[[], Any]


class Tally:
    """What the calls with a deadline did."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.ways: Counter[str] = Counter()
        self.cut = self.held = self.calls = 0

    def add(self, info: DeadlineInfo) -> None:
        """Count a call."""
        self.calls += 1
        self.ways[str(info.way)] += 1
        self.cut += bool(info.status & Status.CUT_SHORT)
        self.held += bool(info.status & Status.HELD)

    def __str__(self) -> str:
        parts = (f"{n / self.calls:.1%} {way}" for way, n in self.ways.most_common(4))
        return (
            f"  {self.calls} calls, {self.cut} cut short, of which {self.held} held the last action; "
            f"begun as {'; '.join(parts)}"
        )


def loopers(
    policy: Policy, args: argparse.Namespace, clock: Callable[[], int], tally: Tally
) -> list[Looper]:
    """Return the fixed way and the deadline, each with a sampler of its own."""
    observations = np.random.default_rng(0).standard_normal((TABLE, policy.obs_dim), np.float32)
    obs, out = observations[0].copy(), np.empty(policy.act_dim, np.float32)
    fixed, timed = (Sampler(policy, "native", args.precision, args.threads) for _ in range(2))
    timed.prepare_deadline()
    due = [0]
    done: list[DeadlineInfo] = []  # by the call before, counted when nobody waits for it

    def sense(period: int) -> None:
        obs[:] = observations[period % TABLE]
        if done:
            tally.add(done.pop())

    def woken(begin: int) -> None:
        due[0] = begin + round(args.deadline * 1e3)

    def act() -> None:
        left = max(0.0, (due[0] - clock()) * 1e-3 - AROUND)
        info = timed.act_into(obs, out, deadline_us=left)
        assert info is not None
        done[:] = [info]

    return [
        Looper(
            *(FIXED, sense, lambda begin: None),
            lambda: fixed.act_into(obs, out, args.steps, args.candidates),
        ),
        Looper(DEADLINE, sense, woken, act),
    ]


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep so many other processes busy while the block runs."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def beyond(missed: dict[str, int], machine: str) -> str:
    """Say how many misses are not the machine's own."""
    fixed, timed = (missed[name] - missed[machine] for name in (FIXED, DEADLINE))
    return f"missed beyond {machine!r}: {fixed} with {FIXED} steps and candidates, {timed} with a deadline"


def slices(seconds: float) -> Sequence[float]:
    """Return the lengths of the turns that a loop of so many seconds is cut into."""
    whole = int(seconds / SLICE)
    rest = seconds - whole * SLICE
    return [SLICE] * whole + [rest] * (rest > 1e-9)
