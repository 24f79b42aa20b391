"""`--against PYTHON`: this build and another one, in turns, and the ratio of their medians a lane.

Each build is a child process of its own interpreter (`one_build.py`), kept alive, so that starting costs
nothing; only one of the two computes at a time. Before a lane is timed, both must agree. Then they take
turns in rounds, the first of a round being the second of the one before, with equal numbers of calls.
In each round a build prepares anew (where calls are shorter than half a second): two processes of the same
build that kept what they had prepared differed by a tenth in some lanes, with a narrow spread.

A lane's ratio is the median over the rounds of this build's median by the other's in the same round, so
that a slow minute of the machine falls on both; its spread is the quartiles of the rounds' ratios.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sorl_fast.atomic import write_bytes
from sorl_fast.errors import BadInput

from .harness import LONG, PAUSE, WARM_UP, Disagreement, Floats, commit

ROUNDS = 10
BOUND = 1.03  # a ratio above it is a slower lane
MOST_CALLS = 100_000  # of one block
REPLY_SECONDS = 900.0  # for one answer; a child that takes longer hangs
NAMES = ("this build", "the other build")
SCRIPT = Path(__file__).resolve().parent / "one_build.py"

Row = dict[str, Any]


class BuildDied(RuntimeError):
    """A build ended, hung, or failed where it should have answered."""


class Build:
    """One build's process, which answers one request at a time.

    Parameters
    ----------
    name
        What messages call it.
    python
        The interpreter that has the build installed.
    environment
        The process's environment variables.
    """

    def __init__(self, name: str, python: str, environment: Mapping[str, str]) -> None:
        self.name = name
        with contextlib.ExitStack() as stack:
            self._errors: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                [python, "-P", str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is the parent's, whose end is the child's
            )
            stack.pop_all()  # from here on `close` ends both

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Return the answer to a request.

        Raises
        ------
        BuildDied
            There is none.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        hung = threading.Event()

        def end() -> None:
            hung.set()
            process.kill()

        watch = threading.Timer(REPLY_SECONDS, end)
        watch.daemon = True  # an interrupt is not to wait for it
        watch.start()
        line = ""
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({"do": do, **request}) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
        finally:
            watch.cancel()
        if not line.endswith("\n"):
            raise BuildDied(self._death(hung.is_set()))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self, hung: bool) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it only closed its output
            self._process.kill()
            code = self._process.wait()
        if hung:
            return f"{self.name} did not answer within {REPLY_SECONDS:g} s"
        self._errors.seek(0)
        said = [x.strip() for x in self._errors.read().decode(errors="replace").splitlines()]
        last = next((f": {line[:300]}" for line in reversed(said) if line), "")
        how = f"ended with code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        return f"{self.name} {how}{last}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a request that did not fit in before it died
                    pipe.close()


class Question(NamedTuple):
    """One lane that both builds are raced in."""

    lane: Row  # its fields in the JSON
    text: str
    requests: Mapping[str, Row]  # interface -> what a build is asked to prepare; best first
    # interface, both builds' answers -> how far off each is; raises Disagreement
    judge: Callable[[str, Sequence[Any]], Sequence[float]]


class Result(NamedTuple):
    """How long both builds take, this one first."""

    p50_us: tuple[float, float]
    ratio: float  # this build's time by the other's
    quartiles: tuple[float, float]  # of the rounds' ratios
    rounds: int
    calls: int  # of a round


def compare(this: Sequence[Floats], other: Sequence[Floats]) -> Result:
    """Summarise the times of both, in nanoseconds, an array a round."""
    ratios = [np.median(a) / np.median(b) for a, b in zip(this, other, strict=True)]
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    p50 = [1e-3 * float(np.median(np.concatenate(times))) for times in (this, other)]
    return Result((p50[0], p50[1]), middle, (low, high), len(ratios), len(this[0]))


def take_turns(builds: Sequence[Build], request: Row, block: float, rounds: int) -> Result:
    """Time what both have prepared, in turns.

    Parameters
    ----------
    builds
        This one and the other.
    request
        What they have prepared, and prepare again.
    block
        Seconds of one build in a round, about; at least one call.
    rounds
        Blocks of each.
    """

    def measure(i: int, warm_up: int, calls: int) -> Floats:
        time.sleep(PAUSE)  # the other one's threads go to sleep
        return np.array(builds[i].ask("time", warm_up=warm_up, calls=calls)["ns"])

    first = [measure(i, 0, 1).item() * 1e-9 for i in (0, 1)]
    long = max(first) > LONG
    if not long:  # that was a cold call
        first = [float(np.median(measure(i, WARM_UP, 3))) * 1e-9 for i in (0, 1)]
    calls = min(max(int(block / max(*first, 1e-9)), 1), MOST_CALLS)
    warm_up = 0 if long else min(WARM_UP, -(-calls // 3))
    times: tuple[list[Floats], list[Floats]] = ([], [])
    for r in range(rounds):
        for i in ((0, 1), (1, 0))[r % 2]:
            if not long and "unavailable" in (again := builds[i].ask("prepare", **request)):
                raise BuildDied(f"{NAMES[i]} prepared once, but not again: {again['unavailable']}")
            times[i].append(measure(i, warm_up, calls))
    return compare(*times)


def open_builds(python: str, stack: contextlib.ExitStack) -> tuple[list[Build], list[Row]]:
    """Start both builds and return them and what they say of themselves, this one first.

    Raises
    ------
    BadInput
        `python` is no interpreter, or has no build that starts.
    """
    # what is compared is the native build; what this interpreter is told is not the other one's
    environment = {**os.environ, "SORL_BACKEND": "native", "SORL_OPS": "native"}
    others = {k: v for k, v in environment.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    builds, about = [], []
    for name, path, variables in zip(
        NAMES, (sys.executable, python), (environment, others), strict=True
    ):
        try:
            build = Build(name, path, variables)
            stack.callback(build.close)
            said = build.ask("hello")
        except (OSError, BuildDied) as err:
            raise BadInput(
                f"against is {python!r}, but {name} does not start: {err}. Give the bin/python of a "
                "virtual environment with another build of sorl_fast installed"
            ) from None
        builds.append(build)
        about.append({"interpreter": path, **said, "commit": commit(Path(said["file"]).parent)})
    return builds, about


def race(
    python: str,
    questions: Iterable[Question],
    machine: Row,
    block: float,
    rounds: int,
    json_path: str | None,
) -> int:
    """Race both builds lane by lane; print a line each, the summary, and write all of it as JSON.

    Parameters
    ----------
    python
        The other build's interpreter.
    questions
        The lanes.
    machine
        `harness.machine()`.
    block, rounds
        As in `take_turns`.
    json_path
        The file, rewritten, whole, after each lane; None: none.

    Returns
    -------
    int
        0 however fast they are; 1 if they disagree or one died.

    Raises
    ------
    BadInput
        There is no such build, or no lane that both have.
    """
    with contextlib.ExitStack() as stack:
        builds, about = open_builds(python, stack)
        result: Row = {
            "machine": machine,
            "builds": dict(zip(("this", "other"), about, strict=True)),
        }
        result |= {"bound": BOUND, "rows": [], "left_out": [], "error": None}
        for name, said in zip(NAMES, about, strict=True):
            print(f"{name}: {_about_text(said)}")
        if about[0]["file"] == about[1]["file"]:
            print("both are the same: what differs is the machine's own noise")
        print(
            f"{'':34s} {'interface':14s} {'this':>11s} {'other':>11s} (us)   this / other, quartiles"
        )
        for question in questions:
            try:
                _lane(builds, question, block, rounds, result)
            except (Disagreement, BuildDied) as err:
                result["error"] = f"{question.text}: {err}"
            result["verdict"] = verdict(result["rows"])
            if json_path:
                write_bytes(json_path, (json.dumps(result, indent=1) + "\n").encode())
            if result["error"]:
                break
    if not result["rows"] and not result["error"]:
        why = result["left_out"][0]["why"] if result["left_out"] else "none was asked for"
        raise BadInput(f"against is {python!r}, but there is no lane that both builds have: {why}")
    print(summary(result))
    if result["error"]:
        print(f"sorl-bench: {result['error']}", file=sys.stderr)
        return 1
    return 0


def _lane(
    builds: Sequence[Build], question: Question, block: float, rounds: int, result: Row
) -> None:
    """Race in one lane: a row more, or one of `left_out` if the builds have no interface in common."""
    reasons = []
    for interface, asked in question.requests.items():
        request = {"interface": interface, **asked}
        answers = [build.ask("prepare", **request) for build in builds]
        missing = [
            f"{name} has no {interface}: {answer['unavailable']}"
            for name, answer in zip(NAMES, answers, strict=True)
            if "unavailable" in answer
        ]
        if missing:
            reasons += missing
            continue
        errors = question.judge(interface, [answer["answer"] for answer in answers])
        found = take_turns(builds, request, block, rounds)
        row = {
            **question.lane,
            "interface": interface,
            "this_p50_us": found.p50_us[0],
            "other_p50_us": found.p50_us[1],
            "ratio": found.ratio,
            "ratio_quartiles": list(found.quartiles),
            "rounds": found.rounds,
            "calls_a_round": found.calls,
            "this_error": errors[0],
            "other_error": errors[1],
            "same_answer": answers[0] == answers[1],
        }
        print(
            f"{question.text:34s} {interface:14s} {found.p50_us[0]:11.1f} {found.p50_us[1]:11.1f}"
            f"        {_ratio_text(row)}{'   SLOWER' * (found.ratio > BOUND)}",
            flush=True,
        )
        result["rows"].append(row)
        return
    result["left_out"].append({**question.lane, "why": "; ".join(reasons)})
    print(f"{question.text:34s} left out: {'; '.join(reasons)}", flush=True)


def verdict(rows: Sequence[Row]) -> Row:
    """Return whether no lane is slower than the bound, and the worst lane's row."""
    worst = max(rows, key=lambda row: float(row["ratio"]), default=None)
    return {"no_lane_slower": worst is None or worst["ratio"] <= BOUND, "worst": worst}


def summary(result: Row) -> str:
    """Return the verdict in words, with the worst lane and how many were left out."""
    rows, left_out = result["rows"], result["left_out"]
    found = verdict(rows)
    counts = f"{len(rows)} lanes, {len(left_out)} left out"
    if found["worst"] is None:
        return f"no lane was measured ({counts})"
    fields = {k: v for k, v in found["worst"].items() if k in _WHICH}
    which = ", ".join(f"{k} {v}" for k, v in fields.items())
    return (
        f"no lane slower by more than {BOUND - 1:.0%}: {str(found['no_lane_slower']).lower()}; worst "
        f"{_ratio_text(found['worst'])} at {which} ({counts})"
    )


_WHICH = ("batch", "steps", "candidates", "obs_dim", "form", "precision", "threads")


def _ratio_text(row: Row) -> str:
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.3f} [{low:.3f}, {high:.3f}]"


def _about_text(said: Row) -> str:
    versions = ", ".join(f"{name} {said[name]}" for name in ("python", "numpy", "torch"))
    folder = Path(said["file"]).parent
    return f"sorl_fast {said['sorl_fast']} at {folder}, commit {said['commit']}, {versions}"
