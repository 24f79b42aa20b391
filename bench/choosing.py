"""What choosing among candidates takes, and what a schedule of steps saves: `sorl-bench choosing`.

One observation, the paper's network, the policy's own noise. First 32 candidates by each rule: the same
call but for what chooses among the scored candidates, so that what it takes longer than by argmax, which
finds a maximum, is what choosing takes. Then a few ways to act beside M = 8, N = 4 by argmax: the steps
1/2, 1/4, 1/4 of one candidate succeed no less often (docs/results.md, docs/varied.md) in fewer evaluations.
The calls take turns; the figures are medians over blocks, of several samplers: which parts of the caches a
session's memory falls into is chance.
"""

import argparse
import functools
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sorl_fast.act.rules import NAMES
from sorl_fast.act.sampler import Sampler
from sorl_fast.act.schedule import schedule_of
from sorl_fast.atomic import write_bytes
from sorl_fast.errors import BadInput
from sorl_fast.flags import path_argument

from . import harness, peers, shapes

CANDIDATES = 32
AT_MOST = 0.05  # of the call by argmax
FOURFOLD = 4.0
BLOCK = 0.02  # seconds
SAMPLERS = 5  # each with sessions of its own


class Way(NamedTuple):
    """A way to act."""

    steps: str
    candidates: int
    rule: str

    def __str__(self) -> str:
        n = f", {self.rule}" if self.candidates > 1 else ""
        return f"M = {self.steps}, N = {self.candidates}{n}"


BY_RULE = tuple(Way("8", CANDIDATES, rule) for rule in NAMES)
BY_STEPS = (Way("8", 4, "argmax"), Way("1/2,1/4,1/4", 1, "argmax"), Way("4", 1, "argmax"))


def agree(sampler: Sampler, plain: Sampler, obs: Any, ways: Sequence[Way], precision: str) -> None:
    """Raise Disagreement unless each way gives the plain twin's action.

    In a low precision another of nearly equal candidates may be chosen: there the action is only to be
    finite (`sorl-bench sampler` and the tests hold its Q against the twin's).
    """
    for way in ways:
        steps = schedule_of(way.steps)
        got, expected = (
            s.act(obs, steps, way.candidates, rule=way.rule, seed=3) for s in (sampler, plain)
        )
        off = float(np.abs(got - expected).max())
        if not np.isfinite(off) or (precision == "fp32" and off > 1e-4):
            raise harness.Disagreement(f"{way}, {precision}: the action is off by {off:g}")


def measure(sampler: Sampler, obs: Any, ways: Sequence[Way], blocks: int) -> list[list[float]]:
    """Return microseconds of a call, of each way and block; the ways take turns."""
    out = np.empty(sampler.policy.act_dim, np.float32)
    calls = [
        functools.partial(
            *(sampler.act_into, obs, out, schedule_of(way.steps), way.candidates),
            rule=way.rule,
            seed=1,
        )
        for way in ways
    ]
    counts = []
    for call in calls:
        call()
        before = time.perf_counter()
        call()
        counts.append(max(1, round(BLOCK / (time.perf_counter() - before))))
    found: list[list[float]] = [[] for _ in ways]
    with harness.no_garbage_collection():
        for block in range(blocks):
            for j in range(len(ways)):
                i = (block + j) % len(ways)
                before = time.perf_counter()
                for k in range(counts[i]):
                    calls[i](call=k)
                found[i].append((time.perf_counter() - before) * 1e6 / counts[i])
    return found


def run(argv: Sequence[str]) -> int:
    """Print the two tables for each precision; 1 if an action is wrong."""
    parser = argparse.ArgumentParser(
        prog="sorl-bench choosing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", metavar="FILE", type=path_argument, help="write machine and figures here"
    )
    parser.add_argument(
        "--blocks", type=int, default=40, help="of 20 ms each way, shared out to the samplers (40)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of a call (1)")
    args = parser.parse_args(argv)
    if not 2 <= args.blocks <= 10_000:
        raise BadInput(f"blocks is {args.blocks}, but must be in [2, 10000]. Set --blocks")
    native = peers.import_native()
    isas = {precision: native.isas(precision) for precision in shapes.PRECISIONS}
    machine = harness.machine(isas, [])
    print(harness.headline(machine))
    policy = shapes.make_policy(28, 5)
    obs = np.random.default_rng(0).standard_normal(28, np.float32)
    plain = Sampler(policy, "numpy")
    rows = []
    for precision in shapes.PRECISIONS:
        # all of them live at once: one's memory would be the next one's
        samplers = [
            Sampler(policy, "native", precision, threads=args.threads)
            for _ in range(min(SAMPLERS, args.blocks))
        ]
        agree(samplers[0], plain, obs, [*BY_RULE, *BY_STEPS], precision)
        for ways in (BY_RULE, BY_STEPS):
            parts = [measure(x, obs, ways, -(-args.blocks // len(samplers))) for x in samplers]
            times = [[us for part in parts for us in part[i]] for i in range(len(ways))]
            first = np.array(times[0])
            for way, own in zip(ways, times, strict=True):
                ratio = np.array(own) / first  # inside a block, for the machine drifts
                low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
                row = {"precision": precision, "way": str(way), "us": float(np.median(own))}
                row |= {"ratio": float(middle), "low": float(low), "high": float(high)}
                rows.append(row)
                print(
                    f"{precision}  {way!s:36} {row['us']:9.1f} us  "
                    f"{middle:6.3f} [{low:.3f}, {high:.3f}] of the first's"
                )
        mine = {row["way"]: row["ratio"] for row in rows if row["precision"] == precision}
        dearest = max(mine[str(way)] for way in BY_RULE) - 1
        saved = 1 / mine[str(BY_STEPS[1])]
        print(
            f"{precision}: choosing takes at most {dearest:.1%} of a call (at most {AT_MOST:.0%}: "
            f"{'kept' if dearest <= AT_MOST else 'NOT KEPT'}); {BY_STEPS[1]} makes {saved:.1f} times the "
            f"actions per second of {BY_STEPS[0]} (at least {FOURFOLD:g}: "
            f"{'kept' if saved >= FOURFOLD else 'NOT KEPT'})"
        )
    if args.json:
        result = {"machine": machine, "rows": rows}
        write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())
    return 0
