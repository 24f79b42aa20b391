"""What the machine can do at most, measured in the run that quotes it, and how near a call came."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sorl_fast.act.policy_file import Policy

from .shapes import Lane, flop, weights_held, weights_read

PASSES = 3  # a neighbour that takes half a core for a moment does not lower the machine's limit
_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # int8: first and last layers have more


class Rates(NamedTuple):
    """How the machine's limits are measured; `native_rates` is the one that counts."""

    flop: Callable[[str, int], float]  # (precision, threads) -> multiply-adds, FLOP a second
    read: Callable[
        [int, int], float
    ]  # (bytes of one thread's working set, threads) -> bytes a second


def native_rates(native: Any, seconds: float = 0.02) -> Rates:
    """Measure with the loops of `sorl_fast._native`, at the fastest instruction set it has."""
    return Rates(
        flop=lambda precision, threads: native.flop_rate(
            precision, threads=threads, seconds=seconds
        ),
        read=lambda size, threads: native.read_rate(size, threads=threads, seconds=seconds),
    )


class Limits:
    """The machine's limits for some lanes, each the best of a few measurements made when this is.

    Parameters
    ----------
    lanes
        The lanes to be judged: they say which precisions, threads and working-set sizes are needed.
    policies
        By (obs_dim, act_dim).
    rates
        The measurement.
    """

    def __init__(
        self, lanes: Iterable[Lane], policies: dict[tuple[int, int], Policy], rates: Rates
    ) -> None:
        self._policies = policies
        self._flop: dict[tuple[str, int], float] = {}
        self._read: dict[tuple[int, int], float] = {}
        lanes = tuple(lanes)
        for _ in range(PASSES):
            for key in dict.fromkeys((lane.precision, lane.threads) for lane in lanes):
                self._flop[key] = max(self._flop.get(key, 0.0), rates.flop(*key))
            for size in dict.fromkeys(self._share(lane) for lane in lanes):
                self._read[size] = max(self._read.get(size, 0.0), rates.read(*size))

    def _policy(self, lane: Lane) -> Policy:
        return self._policies[lane.cell.obs_dim, lane.cell.act_dim]

    def _share(self, lane: Lane) -> tuple[int, int]:
        """Return the bytes of weights that one of the lane's threads holds in its own cache."""
        held = weights_held(lane.cell, self._policy(lane)) * _BYTES[lane.precision]
        return held // lane.threads, lane.threads

    def seconds(self, lane: Lane) -> float:
        """Return the time below which no call can be: that of its FLOP, or that of its weights."""
        policy = self._policy(lane)
        arithmetic = flop(lane.cell, policy) / self._flop[lane.precision, lane.threads]
        weights = weights_read(lane.cell, policy) * _BYTES[lane.precision]
        return max(arithmetic, weights / self._read[self._share(lane)])

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
