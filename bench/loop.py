"""How evenly a control loop runs, and how many of its deadlines it misses.

`sorl-bench loop --hz 1000 --seconds 60`: the same Python loop first with sorl-fast, then with ONNX
Runtime, then with arithmetic that takes as long but touches no memory, whose tail is the machine's
own; and the C++ example's loop if it was built. With `--deadline` it is another comparison: see
`deadline.py`.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sorl_fast.act import policy_file
from sorl_fast.act.policy_file import Policy
from sorl_fast.atomic import write_bytes
from sorl_fast.errors import BadInput
from sorl_fast.flags import path_argument

from . import deadline, harness, peers, shapes
from .harness import Contender, Figures
from .peers import SorlFast
from .shapes import Cell

BUILD_EXAMPLE = "cmake -S csrc -B build -DSORL_EXAMPLES=ON && cmake --build build"
MACHINE = "registers only"  # the contender that shows the machine's own tail
WARM_UP = 100  # calls before the first period
TABLE = 1000  # observations and noises made beforehand and used in turn


class LoopFigures(NamedTuple):
    """What a loop was like."""

    periods: int
    missed: int  # periods without an action before their end
    latency: Figures  # inside the call
    wake_up: Figures  # how late a period's work began
    jitter: Figures  # |time between two actions - the period|


class LoopTimes(NamedTuple):
    """What a loop did: nanoseconds of each action."""

    periods: int
    missed: int
    latency: list[int]
    wake_up: list[int]
    jitter: list[int]


def figures_of(parts: Sequence[LoopTimes]) -> LoopFigures:
    """Join what loops did that were one loop's parts."""
    names = "latency", "wake_up", "jitter"
    joined = ([ns for part in parts for ns in getattr(part, name)] or [0] for name in names)
    figures = (Figures.of(np.array(ns) * 1e-9) for ns in joined)
    return LoopFigures(sum(p.periods for p in parts), sum(p.missed for p in parts), *figures)


def run_loop(
    act: Callable[[], Any],
    sense: Callable[[int], None],
    hz: float,
    periods: int,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[int], None] = lambda ns: time.sleep(ns * 1e-9),
    woken: Callable[[int], None] = lambda begin: None,
) -> LoopTimes:
    """Sense and act once a period, woken by the clock.

    A period's action is due before the next period begins. One that is late is a miss, and so is every
    period that has begun before it came: those are lost, the loop does not try to catch up.

    Parameters
    ----------
    act
        Makes one action.
    sense
        Called with the number of the period before `act`; not part of the latency.
    hz
        Periods a second.
    periods
        How many, at least 1.
    clock, sleep
        Nanoseconds now, and to sleep.
    woken
        Called with the clock's time at which the period began, before `sense`.
    """
    period = round(1e9 / hz)
    latency, delay, delivered = [], [], []
    missed = done = 0
    wake = clock() + period
    while done < periods:
        while (left := wake - clock()) > 0:
            sleep(left)
        start = clock()
        woken(wake)
        sense(done)
        before = clock()
        act()
        end = clock()
        latency.append(end - before)
        delay.append(start - wake)
        delivered.append(end)
        done += 1
        wake += period
        if end > wake:
            lost = min(math.ceil((end - wake) / period), periods - done)
            missed += 1 + lost
            done += lost
            wake += lost * period
    between = [abs(b - a - period) for a, b in itertools.pairwise(delivered)]
    return LoopTimes(periods, missed, latency, delay, between)


def run(argv: Sequence[str]) -> int:
    """Run the loops one after the other and print what they were like.

    Parameters
    ----------
    argv
        The command line after `sorl-bench loop`.

    Returns
    -------
    int
        0, or 1 if a contender's action was wrong.

    Raises
    ------
    BadInput
        The native module or onnxruntime is not installed, an argument is wrong, or a file cannot be
        read or written.
    """
    args = _parse(argv)
    native = peers.import_native()
    policy = policy_file.load(args.policy) if args.policy else shapes.make_policy(28, 5)
    policy = replace(
        policy, action_map=None
    )  # the contenders act in [-1, 1], and so does what judges them
    if args.steps is None:
        args.steps = policy.m_disc
    if args.steps not in policy.train_steps:
        allowed = ", ".join(map(str, policy.train_steps))
        raise BadInput(f"steps is {args.steps}, but must be one of {allowed}. Set --steps")
    if args.deadline is not None and not 0 < args.deadline <= 1e6 / args.hz:
        raise BadInput(
            f"deadline is {args.deadline:g} us, but must be above 0 and at most a period, "
            f"{1e6 / args.hz:g} us. Set --deadline"
        )
    contenders: list[Contender] = [SorlFast(args.precision, args.threads)]
    if not args.alone and args.deadline is None:  # beside a deadline are ways of our own
        rivals = peers.make_peers(["onnxruntime"], otherwise="leave it out with --alone")
        contenders += [p for p in rivals if p.threads == args.threads]
    isas = {precision: native.isas(precision) for precision in shapes.PRECISIONS}
    result: dict[str, Any] = {"machine": harness.machine(isas, peers.PACKAGES)}
    result |= {name: getattr(args, name) for name in ("hz", "seconds", "steps", "candidates")}
    result["rows"] = []
    print(harness.headline(result["machine"]))
    print(
        f"M = {args.steps}, N = {args.candidates}, {args.hz:g} Hz for {args.seconds:g} s each   "
        "(microseconds)"
    )
    with contextlib.ExitStack() as stack:
        if args.fifo:
            stack.enter_context(_fifo())
        stack.enter_context(deadline.load(args.load))
        if args.deadline is not None:
            result["rows"] = _beside_a_deadline(policy, args)
            contenders = []
        for contender in contenders:
            try:
                result["rows"].append(_loop(contender, policy, args))
            except harness.Disagreement as err:
                print(f"sorl-bench loop: {err}", file=sys.stderr)
                return 1
            print(row_text(result["rows"][-1]), flush=True)
        if contenders:
            result["rows"].append(
                _machine(peers.import_bench().burn, result["rows"][0]["latency"]["p50_us"], args)
            )
            print(row_text(result["rows"][-1]), flush=True)
    if args.example:
        result["rows"].append(_example(policy, args))
        print(row_text(result["rows"][-1]))
    if args.json:
        write_bytes(args.json, (json.dumps(result, indent=1) + "\n").encode())
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sorl-bench loop", description=__doc__)
    parser.add_argument("--hz", type=float, default=1000.0, help="periods a second (1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each loop (60)")
    parser.add_argument(
        "--policy",
        metavar="FILE",
        type=path_argument,
        help="default: random weights, O = 28, A = 5",
    )
    parser.add_argument("--steps", type=int, metavar="M", help="Euler steps (the policy's most)")
    parser.add_argument("--candidates", type=int, default=1, metavar="N", help="candidates (1)")
    parser.add_argument(
        "--precision", choices=shapes.PRECISIONS, default="fp32", help="ours (fp32)"
    )
    parser.add_argument("--threads", type=int, choices=shapes.THREADS, default=1, help="each (1)")
    parser.add_argument("--alone", action="store_true", help="without ONNX Runtime")
    parser.add_argument(
        "--example",
        metavar="PROGRAM",
        type=path_argument,
        help="the built control_loop of csrc/examples",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        metavar="US",
        help="microseconds after a period's begin: beside the fixed M and N, act within them",
    )
    parser.add_argument(
        "--load", type=int, default=0, metavar="K", help="keep K other processes busy (0)"
    )
    parser.add_argument(
        "--fifo", action="store_true", help="ask for the real-time class SCHED_FIFO"
    )
    parser.add_argument(
        "--json", metavar="FILE", type=path_argument, help="write machine and rows here"
    )
    args = parser.parse_args(argv)
    for name, value, low, high in (
        ("hz", args.hz, 1, 100_000),
        ("seconds", args.seconds, 1e-3, 86_400),
        ("candidates", args.candidates, 1, 1024),
        ("load", args.load, 0, 1024),
    ):
        if not low <= value <= high:
            raise BadInput(f"{name} is {value}, but must be in [{low}, {high}]. Set --{name}")
    if args.hz * args.seconds < 1:
        raise BadInput(f"{args.hz} Hz for {args.seconds} s is less than one period. Set --seconds")
    if args.example and not os.access(args.example, os.X_OK):
        raise BadInput(f"{args.example} is not a program. Build it: {BUILD_EXAMPLE}")
    return args


def _loop(contender: Contender, policy: Policy, args: argparse.Namespace) -> dict[str, Any]:
    """Check a contender and run its loop."""
    cell = Cell(1, args.steps, args.candidates, policy.obs_dim, policy.act_dim)
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((TABLE, 1, cell.obs_dim), np.float32)
    noises = rng.standard_normal((TABLE, 1, cell.candidates, cell.act_dim), np.float32)
    obs, noise = observations[0].copy(), noises[0].copy()
    running = contender.prepare(cell, policy, obs, noise)
    harness.check(contender, running, harness.truth(policy, obs, noise, cell.steps))

    def sense(period: int) -> None:
        obs[:] = observations[period % TABLE]
        noise[:] = noises[period % TABLE]

    running.settle()
    timed = _timed(running.call, sense, args)
    return {
        "contender": contender.name,
        "precision": contender.precision,
        "isa": running.isa,
        "threads": contender.threads,
        **timed,
    }


def _rounds(burn: Callable[[int], object], call_us: float) -> int:
    """Return the rounds of multiply-adds in registers that take `call_us` microseconds when undisturbed.

    No cache is missed and no page touched: what makes one of these calls late makes any call late. Where
    their p99.9 is above twice their p50, the core is not a quiet one.
    """
    rounds, quickest = 1000, math.inf
    for _ in range(WARM_UP):
        before = time.perf_counter()
        burn(rounds)
        quickest = min(quickest, time.perf_counter() - before)
    return max(1, round(rounds * call_us * 1e-6 / quickest))


def _machine(
    burn: Callable[[int], object], call_us: float, args: argparse.Namespace
) -> dict[str, Any]:
    rounds = _rounds(burn, call_us)
    return _row(MACHINE, _timed(lambda: burn(rounds), lambda period: None, args))


def _row(name: str, timed: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"contender": name, "precision": "fp32", "isa": None, "threads": 1, **more, **timed}


def _beside_a_deadline(policy: Policy, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the fixed way, the deadline and the machine's own loop in turns; print what they were like."""
    tally, clock = deadline.Tally(), time.monotonic_ns
    burn = peers.import_bench().burn
    ours = deadline.loopers(policy, args, clock, tally)
    timed = ours[1]
    for looper in ours:
        for _ in range(WARM_UP):
            looper.woken(clock())
            looper.act()
    spent: list[int] = []  # nanoseconds of processor time, by the calls of the last turn
    rounds = [1]

    def watched() -> None:
        before = time.thread_time_ns()
        timed.act()
        spent.append(time.thread_time_ns() - before)

    def as_long() -> None:
        rounds[0] = _rounds(burn, float(np.mean(spent)) * 1e-3)
        spent.clear()

    periods = max(1, int(args.hz * min(args.seconds, 1)))
    with harness.no_garbage_collection():
        run_loop(watched, timed.sense, args.hz, periods, clock, woken=timed.woken)
    as_long()
    tally.clear()
    idle = deadline.Looper(
        MACHINE, lambda period: None, lambda begin: None, lambda: burn(rounds[0])
    )
    loops = (ours[0], timed._replace(act=watched), idle)
    parts: dict[str, list[LoopTimes]] = {looper.name: [] for looper in loops}
    with harness.no_garbage_collection():
        for turn, seconds in enumerate(deadline.slices(args.seconds)):
            for i in range(len(loops)):
                name, sense, woken, act = loops[(turn + i) % len(loops)]
                periods = max(1, int(args.hz * seconds))
                parts[name].append(run_loop(act, sense, args.hz, periods, clock, woken=woken))
                if name == deadline.DEADLINE:
                    as_long()  # how heavy a loop is decides how often others delay it
    about = {"precision": args.precision, "threads": args.threads}
    rows = []
    for name, times in parts.items():
        figures = _figures(figures_of(times))
        rows.append(_row(name, figures) if name == MACHINE else _row(name, figures, **about))
        print(row_text(rows[-1]))
        if name == deadline.DEADLINE:
            print(tally)
    print(deadline.beyond({row["contender"]: row["missed"] for row in rows}, MACHINE))
    return rows


def _timed(
    act: Callable[[], Any], sense: Callable[[int], None], args: argparse.Namespace
) -> dict[str, Any]:
    """Warm up, run the loop, and return its figures as a row has them."""
    for _ in range(WARM_UP):
        act()
    with harness.no_garbage_collection():
        figures = figures_of([run_loop(act, sense, args.hz, int(args.hz * args.seconds))])
    return _figures(figures)


def _figures(figures: LoopFigures) -> dict[str, Any]:
    return {
        "periods": figures.periods,
        "missed": figures.missed,
        **{name: getattr(figures, name)._asdict() for name in ("latency", "wake_up", "jitter")},
    }


@contextlib.contextmanager
def _fifo() -> Iterator[None]:
    """Run the block, and the threads that it starts, in the real-time class if that is allowed."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    except PermissionError as err:
        print(f"SCHED_FIFO is not allowed ({err.strerror}): other programs may delay the loops")
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _example(policy: Policy, args: argparse.Namespace) -> dict[str, Any]:
    """Run the C++ example for as long and read what it prints."""
    with tempfile.TemporaryDirectory(prefix="sorl-bench-") as folder:
        path = args.policy
        if path is None:
            path = Path(folder) / "policy.safetensors"
            policy_file.save(path, policy)
        command = [args.example, path, "--hz", f"{args.hz:.0f}", "--steps", str(args.steps)]
        command += ["--seconds", str(max(1, math.ceil(args.seconds)))]
        command += ["--candidates", str(args.candidates), "--threads", str(args.threads)]
        command += ["--precision", args.precision]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BadInput(f"{args.example} ended with {done.returncode}: {done.stderr.strip()}")
    return read_example(done.stdout) | {"precision": args.precision, "threads": args.threads}


def read_example(output: str) -> dict[str, Any]:
    """Turn the report that csrc/examples/control_loop prints into a row.

    Raises
    ------
    BadInput
        It is not such a report.
    """
    number = r"\s+([\d.]+)"
    line = rf"p50{number}\s+p99{number}\s+p99\.9{number}\s+max{number}\s+us"
    latency = re.search(rf"^latency\s+{line}", output, re.MULTILINE)
    wake_up = re.search(rf"^wake-up\s+{line}", output, re.MULTILINE)
    missed = re.search(r"^missed (\d+) of (\d+) deadlines", output, re.MULTILINE)
    isa = re.search(r"^(\w+), (?:fp32|bf16|int8), M = ", output, re.MULTILINE)
    if not (latency and wake_up and missed and isa):
        raise BadInput(
            f"the example printed {output[:200]!r}, which is no report of control_loop. Build the "
            f"example of this version: {BUILD_EXAMPLE}"
        )
    return {
        "contender": "sorl-fast c++",
        "isa": isa[1],
        "periods": int(missed[2]),
        "missed": int(missed[1]),
        "latency": Figures(*map(float, latency.groups()))._asdict(),
        "wake_up": Figures(*map(float, wake_up.groups()))._asdict(),
        "jitter": None,  # not in its report
    }


def row_text(row: dict[str, Any]) -> str:
    """Return a loop's figures as text."""
    lines = [
        f"{row['contender']} {row['isa'] or ''} {row['precision']}, {row['threads']} "
        f"thread{'s' * (row['threads'] > 1)}: missed {row['missed']} of {row['periods']} deadlines"
    ]
    for name in ("latency", "wake_up", "jitter"):
        if row[name] is not None:
            figures = Figures(**row[name])
            text = (
                f"  {name:8s} p50 {figures.p50_us:9.1f}  p99 {figures.p99_us:9.1f}  "
                f"p99.9 {figures.p999_us:9.1f}  max {figures.max_us:9.1f}"
            )
            if name == "latency":
                text += f"  p99.9 / p50 {figures.p999_us / max(figures.p50_us, 1e-3):.1f}"
            lines.append(text)
    return "\n".join(lines)
