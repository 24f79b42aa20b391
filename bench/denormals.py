"""What denormal numbers cost: `sorl-bench denormals`.

A denormal operand makes a multiply-add of most processors a hundred times slower, and a robot meets them:
a sensor at rest, a velocity that decays. The native sampler flushes them to zero while it computes and
restores the caller's state afterwards, so a call must take the same time whatever it is fed.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sorl_fast.act.policy_file import Policy
from sorl_fast.act.sampler import Sampler
from sorl_fast.atomic import write_bytes
from sorl_fast.errors import BadInput
from sorl_fast.flags import path_argument

from . import harness, peers, shapes
from .harness import Running
from .shapes import Cell

TINY = np.float32(1e-40)  # below the smallest normal float32, 1.2e-38
PROMISE = 1.1  # a call may take this many times as long


def denormal_weights(policy: Policy) -> Policy:
    """Return the policy with its second actor layer shrunk, so that weights and sums are denormal."""
    actor = list(policy.actor)
    w, b = actor[1]
    actor[1] = (w * TINY, b * TINY)
    return replace(policy, actor=tuple(actor))


def measure(policy: Policy, precision: str, cell: Cell, seconds: float) -> dict[str, Any]:
    """Time ordinary numbers against denormal ones, in turn, on one thread.

    Raises
    ------
    harness.Disagreement
        A denormal observation's action is not that of a zero observation.
    """
    obs, noise = shapes.make_inputs(cell)
    out = np.empty((cell.batch, cell.act_dim), np.float32)

    def running(policy: Policy, obs: NDArray[np.float32]) -> Running:
        sampler = Sampler(policy, "native", precision)

        def call() -> None:
            sampler.act_into(obs, out, cell.steps, cell.candidates, noise=noise)

        return Running(call, lambda _: out.copy())

    runners = [
        running(policy, obs),
        running(policy, np.full_like(obs, TINY)),
        running(denormal_weights(policy), obs),
        running(policy, np.zeros_like(obs)),
    ]
    actions = []
    for runner in runners:
        runner.call()
        actions.append(out.copy())
    if not np.array_equal(actions[1], actions[3]):
        raise harness.Disagreement(f"{precision}: a denormal observation does not act as zero does")
    p50 = [harness.Figures.of(t).p50_us for t in harness.interleave(runners[:3], seconds)]
    return {
        "precision": precision,
        "p50_us": p50[0],
        "observation_ratio": p50[1] / p50[0],
        "weights_ratio": p50[2] / p50[0],
    }


def run(argv: Sequence[str]) -> int:
    """Measure every instruction set and precision; 1 if one breaks the promise of at most 1.1."""
    parser = argparse.ArgumentParser(prog="sorl-bench denormals", description=__doc__)
    parser.add_argument(
        "--json", metavar="FILE", type=path_argument, help="write machine and rows here"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of each kind of call (1)")
    args = parser.parse_args(argv)
    if not 0 < args.seconds <= 600:
        raise BadInput(f"seconds is {args.seconds}, but must be in (0, 600]. Set --seconds")
    native = peers.import_native()
    isas = {precision: native.isas(precision) for precision in shapes.PRECISIONS}
    cell = Cell(1, 8, 8, 28, 5)
    policy = shapes.make_policy(cell.obs_dim, cell.act_dim)
    rows = []
    machine = harness.machine(isas, [])
    print(harness.headline(machine))
    before = os.environ.get("SORL_CPU_ISA")
    print(f"{cell}, one thread: time with denormal numbers over time without, at most {PROMISE}")
    try:
        for precision, names in isas.items():
            for isa in names:
                os.environ["SORL_CPU_ISA"] = isa
                rows.append({"isa": isa} | measure(policy, precision, cell, args.seconds))
                row = rows[-1]
                print(
                    f"{isa:12s} {precision}  p50 {row['p50_us']:9.1f} us   observation "
                    f"{row['observation_ratio']:.3f}   weights {row['weights_ratio']:.3f}",
                    flush=True,
                )
    finally:
        os.environ.pop("SORL_CPU_ISA", None)
        if before is not None:
            os.environ["SORL_CPU_ISA"] = before
    if args.json:
        result = {"machine": machine, "rows": rows}
        write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())
    return int(any(max(r["observation_ratio"], r["weights_ratio"]) > PROMISE for r in rows))
