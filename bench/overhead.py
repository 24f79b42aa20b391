"""What Python adds to a native call: `sorl-bench overhead`.

A network so small that the call itself takes about a microsecond, one observation, one Euler step, one
candidate, one thread: `Sampler.act_into` (the caller's arrays) and `Sampler.act` (a new array) against the
same call as a C++ program sees it, in turn.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sorl_fast.act.sampler import Sampler
from sorl_fast.atomic import write_bytes
from sorl_fast.errors import BadInput
from sorl_fast.flags import path_argument

from . import harness, peers, shapes
from .shapes import Cell

CELL = Cell(1, 1, 1, 28, 5)
HIDDEN = 16
CALLS = 2000  # of one block
PROMISES = {"act_into": 2.0, "act": 5.0}  # microseconds beyond the C++ call


def python_seconds(call: Callable[[], Any]) -> float:
    """Return the mean seconds of a call in one block, the loop around it included."""
    with harness.no_garbage_collection():
        before = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        return (time.perf_counter_ns() - before) * 1e-9 / CALLS


def measure(blocks: int) -> dict[str, float]:
    """Time the three calls in turn.

    Returns
    -------
    dict
        Microseconds of a call: the median over blocks of `c++`, `act_into` and `act`.
    """
    policy = shapes.make_policy(CELL.obs_dim, CELL.act_dim, HIDDEN)
    obs = shapes.make_inputs(CELL)[0][0]
    out = np.empty(CELL.act_dim, np.float32)
    sampler = Sampler(policy, "native")
    session, _ = peers.SorlFast("fp32", 1).session(policy, 1, 1)
    bench = peers.import_bench()
    if not np.array_equal(sampler.act(obs, seed=1), _into(sampler, obs, out)):
        raise harness.Disagreement("act and act_into differ at the same seed")
    calls: dict[str, Callable[[], float]] = {
        "c++": lambda: float(
            np.mean(bench.time(session, obs[None], CELL.steps, CELL.candidates, CALLS))
        ),
        "act_into": lambda: python_seconds(lambda: sampler.act_into(obs, out)),
        "act": lambda: python_seconds(lambda: sampler.act(obs)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(blocks):
        for name, call in calls.items():
            seconds[name].append(call())
    return {name: 1e6 * float(np.median(times)) for name, times in seconds.items()}


def _into(sampler: Sampler, obs: Any, out: Any) -> Any:
    sampler.act_into(obs, out, seed=1)
    return out


def run(argv: Sequence[str]) -> int:
    """Print what each call takes beyond the C++ call; 1 if one breaks its promise."""
    parser = argparse.ArgumentParser(prog="sorl-bench overhead", description=__doc__)
    parser.add_argument(
        "--json", metavar="FILE", type=path_argument, help="write machine and figures here"
    )
    parser.add_argument("--blocks", type=int, default=50, help=f"of {CALLS} calls each call (50)")
    args = parser.parse_args(argv)
    if not 1 <= args.blocks <= 10_000:
        raise BadInput(f"blocks is {args.blocks}, but must be in [1, 10000]. Set --blocks")
    native = peers.import_native()
    isas = {precision: native.isas(precision) for precision in shapes.PRECISIONS}
    machine = harness.machine(isas, [])
    print(harness.headline(machine))
    figures = measure(args.blocks)
    print(f"{CELL}, hidden {HIDDEN}, one thread: c++ {figures['c++']:.2f} us a call")
    broken = False
    for name, promise in PROMISES.items():
        beyond = figures[name] - figures["c++"]
        broken |= beyond > promise
        print(
            f"{name:9s} {figures[name]:6.2f} us, {beyond:5.2f} us beyond the C++ call "
            f"(at most {promise:g}): {'BROKEN' if beyond > promise else 'kept'}"
        )
    if args.json:
        result = {"machine": machine, "microseconds": figures}
        write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())
    return int(broken)
