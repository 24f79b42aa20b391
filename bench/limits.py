"""What the machine can do at most, measured in the run that quotes it, and how near a call came.

A limit is a time below which nothing can be, so a row beyond it says that the limit was measured or
computed wrongly: the benchmark then fails.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from sorl_fast.act.policy_file import Policy

from .shapes import PRECISIONS, Lane, flop, weights_again, weights_held

PASSES = 3  # a neighbour that takes half a core for a moment does not lower the machine's limit
# Of a limit; what is above 1 is noise: a clock that was higher in the race than in the measurement.
MOST = 1.05
_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # int8: first and last layers have more


class Rates(NamedTuple):
    """How the machine's limits are measured; `native_rates` is the one that counts."""

    flop: Callable[[str, int], float]  # (precision, threads) -> multiply-adds, FLOP a second
    read: Callable[
        [int, int], float
    ]  # (bytes of one thread's working set, threads) -> bytes a second


def native_rates(bench: Any, seconds: float = 0.02) -> Rates:
    """Measure with the loops of `sorl_fast._bench`, `seconds` a measurement.

    Multiply-adds at the fastest of all instruction sets, those of the more precise arithmetic among
    them: who multiplies bytes may do so on the tiles of bf16.
    """

    def flop_rate(precision: str, threads: int) -> float:
        precise = PRECISIONS[: PRECISIONS.index(precision) + 1]
        return max(
            float(bench.flop_rate(p, isa=isa, threads=threads, seconds=seconds))
            for p in precise
            for isa in bench.isas(p)
        )

    def read_rate(size: int, threads: int) -> float:
        return float(bench.read_rate(size, threads=threads, seconds=seconds))

    return Rates(flop_rate, read_rate)


class Limits:
    """The machine's limits for some lanes, each the best of a few measurements made when this is.

    Parameters
    ----------
    lanes
        The lanes to be judged: they say which precisions, threads and working-set sizes are needed.
    policies
        By `Cell.network`.
    rates
        The measurement.
    """

    def __init__(
        self, lanes: Iterable[Lane], policies: dict[tuple[int, int, str], Policy], rates: Rates
    ) -> None:
        self._policies = policies
        self._flop: dict[tuple[str, int], float] = {}
        self._read: dict[tuple[int, int], float] = {}
        lanes = tuple(lanes)
        for _ in range(PASSES):
            for key in dict.fromkeys((lane.precision, lane.threads) for lane in lanes):
                self._flop[key] = max(self._flop.get(key, 0.0), rates.flop(*key))
            for share in dict.fromkeys(share for lane in lanes for share, *_ in self._passes(lane)):
                self._read[share] = max(self._read.get(share, 0.0), rates.read(*share))

    def _policy(self, lane: Lane) -> Policy:
        return self._policies[lane.cell.network]

    def _passes(self, lane: Lane) -> list[tuple[tuple[int, int], int, int]]:
        """Return the passes of a call over its weights: ((bytes of a thread, threads), bytes, how often).

        All weights once, at the rate of all of them; then the actor M - 1
        times more, at the rate of the actor alone. No order of reading and no cache does better: all
        weights in a row find at most a cacheful of them there when they begin, and so does each further
        pass over the actor; that much is also what a pass of the measurement finds.
        """
        policy, width = self._policy(lane), _BYTES[lane.precision]
        held = weights_held(lane.cell, policy) * width
        passes = [((held // lane.threads, lane.threads), held, 1)]
        if lane.cell.steps > 1:
            again = weights_again(lane.cell, policy) * width
            passes.append(((again // lane.threads, lane.threads), again, lane.cell.steps - 1))
        return passes

    def seconds(self, lane: Lane) -> float:
        """Return the time below which no call can be: that of its FLOP, or that of its weights."""
        policy = self._policy(lane)
        arithmetic = flop(lane.cell, policy) / self._flop[lane.precision, lane.threads]
        reading = sum(size * times / self._read[share] for share, size, times in self._passes(lane))
        return max(arithmetic, reading)

    def fraction(self, lane: Lane, p50_us: float) -> float:
        """Return which part of the limit a median of `p50_us` microseconds reached; 1 is all of it."""
        return self.seconds(lane) * 1e6 / p50_us

    def to_dict(self) -> dict[str, Any]:
        """Return the rates as JSON values: GFLOP/s, and GB/s by working set."""
        return {
            "gflops": [
                {"precision": precision, "threads": threads, "gflops": rate / 1e9}
                for (precision, threads), rate in sorted(self._flop.items())
            ],
            "read": [
                {"bytes_per_thread": size, "threads": threads, "gb_per_s": rate / 1e9}
                for (size, threads), rate in sorted(self._read.items())
            ],
        }


def refuse_beyond(
    command: str, rows: Iterable[Mapping[str, Any]], describe: Callable[[Mapping[str, Any]], str]
) -> int:
    """Return a command's exit code: 1, and say so on stderr, if a row is beyond the limit.

    Parameters
    ----------
    command
        After `sorl-bench`.
    rows
        With `limit_fraction`.
    describe
        A row's lane, contender and time, as text.
    """
    beyond = [row for row in rows if not row["limit_fraction"] <= MOST]
    for row in beyond:
        print(
            f"sorl-bench {command}: {describe(row)}, is {row['limit_fraction']:.0%} of the machine's limit",
            file=sys.stderr,
        )
    if beyond:
        print(
            f"sorl-bench {command}: nothing can be above {MOST:.0%}: the limit is wrong, or was measured "
            "while the machine was busy. Run it again; if it stays, quote no part of this limit",
            file=sys.stderr,
        )
    return 1 if beyond else 0
