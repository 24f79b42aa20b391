"""`sorl-bench kernels --aot`: what every GPU kernel's machine code takes, held against its budget.

No GPU is needed: the pinned triton compiles each kernel for each target, and registers, stack, spills,
shared memory and matrix instructions are read from the result. The budgets are checked in; a change
that breaks one fails. `--write-budgets` makes what is there now the budget, for a reader to judge in
the change.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, NamedTuple

from sorl_fast.atomic import write_file
from sorl_fast.errors import BadInput
from sorl_fast.flags import path_argument

from .aot import SHARED_LIMIT, TARGETS

TRITON = "3.7.1"  # what constraints.txt has; another compiler makes other code
BUDGETS = Path(__file__).with_name("budgets.json")
LIMITED = ("registers", "stack_bytes", "spill_bytes", "shared_bytes")
WORKERS = 2

# O, A, X, H, L, out, E, norm: the paper's networks at the largest observations and actions that it has
ACTOR = (69, 21, 2, 512, 4, 21, 1, False)
CRITIC = (69, 21, 1, 512, 4, 1, 2, True)
# kernels/NAME.py -> the networks that its `aot` takes
KERNELS: dict[str, tuple[tuple[int | bool, ...], ...]] = {
    "actor": (ACTOR,),
    "critic": (CRITIC,),
    "best_of_n": (ACTOR, CRITIC),
    "choose": (ACTOR,),
    "adam": (ACTOR,),
    "noise": (),
}
PLAIN = (
    "adam",
    "choose",
    "noise",
)  # no product in them: they are float32 and the same in any precision
# precision, rows (they choose the tile), targets. The main precision is built everywhere; a second tile,
# and what another kind of product changes, where the compiler takes another way. All of it on all
# targets would take a quarter of an hour.
CASES = (
    ("bf16", 65536, TARGETS),
    ("bf16", 256, ("sm_80", "sm_90", "gfx942")),
    ("fp32", 65536, ("sm_80", "sm_90", "gfx942")),
    ("tf32", 65536, ("sm_80", "sm_90")),
    ("fp16", 65536, ("sm_90",)),
)

Row = dict[str, Any]


class Job(NamedTuple):
    """What one call of a module's `aot` compiles, for one target."""

    module: str  # in full
    target: str
    precision: str
    rows: int
    sizes: tuple[tuple[int | bool, ...], ...]

    @property
    def prefix(self) -> str:
        """The beginning of the names of this job's kernels in rows and budgets."""
        return f"{self.module.rpartition('.')[2]}/{self.precision}/{self.rows}/"


def jobs(kernels: Iterable[str], targets: Iterable[str], main: bool = False) -> list[Job]:
    """Return all jobs, those that take longest first; with `main` those of the first of `CASES`."""
    return [
        Job(f"sorl_fast.kernels.{name}", target, precision, rows, KERNELS[name])
        for precision, rows, known in CASES[: 1 if main else None]
        for name in kernels
        for target in targets
        if target in known
        if name not in PLAIN or (precision, rows) == CASES[0][:2]
    ]


class Worker:
    """A child process that compiles (`bench.aot`), started anew when it dies."""

    def __init__(self, folder: Path, path: str = "") -> None:
        self._environ = {
            **{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
            "TRITON_ALWAYS_COMPILE": "1",  # from its cache the compiler's log would be missing
            "TRITON_CACHE_DIR": str(folder / "cache"),
            "TRITON_DUMP_PTXAS_LOG": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH", "")))),
        }
        self._errors = folder / f"errors-{id(self)}"
        self._child: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        with self._errors.open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.aot"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environ,
                text=True,
                bufsize=1,
            )

    def do(self, job: Job) -> list[Row]:
        """Return a row for each kernel of a job; with `error` where it could not be compiled."""
        if self._child is None:
            self._child = self._start()
        child, current = self._child, job.module
        rows: list[Row] = []
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(job._asdict()) + "\n")
            for line in child.stdout:
                answer = json.loads(line)
                if not answer:
                    return rows
                if "begin" in answer:
                    current = answer["begin"]
                else:
                    rows.append(_named(answer, job))
        except BrokenPipeError:
            pass
        self.close()
        said = self._errors.read_text(errors="replace").strip()[-500:]
        died = {"kernel": current, "error": f"the compiler died: {said or 'without a word'}"}
        return [*rows, _named(died, job)]

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _named(answer: Row, job: Job) -> Row:
    return {**answer, "kernel": job.prefix + answer["kernel"], "target": job.target}


def compile_all(
    wanted: Sequence[Job], say: Callable[[str], None] = print, path: str = ""
) -> list[Row]:
    """Compile in `WORKERS` processes and return the rows, in the order of the jobs.

    Parameters
    ----------
    wanted
        The jobs.
    say
        Is told of the progress, now and then.
    path
        Folder of modules beside the installed ones, for tests.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(wanted)):
        todo.put(i)
    done: dict[int, list[Row]] = {}
    start = time.monotonic()

    with tempfile.TemporaryDirectory() as folder:

        def serve() -> None:
            worker = Worker(Path(folder), path)
            try:
                while True:
                    i = todo.get_nowait()
                    done[i] = worker.do(wanted[i])
                    if len(done) % 20 == 0:
                        passed = time.monotonic() - start
                        say(f"{len(done)} of {len(wanted)} groups after {passed:.0f} s")
            except queue.Empty:
                pass
            finally:
                worker.close()

        threads = [threading.Thread(target=serve) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [row for i in range(len(wanted)) for row in done.get(i, ())]


def faults(row: Row, budget: Row | None) -> list[str]:
    """Return what is wrong with a row; nothing if it keeps within its budget and the part's limits.

    Parameters
    ----------
    row
        As `compile_all` makes them.
    budget
        The largest values of `LIMITED` and the names `mma` of matrix instructions that must be there;
        None if there is no budget.
    """
    if "error" in row:
        return [row["error"]]
    wrong = []
    limit = SHARED_LIMIT[row["target"]]
    if row["shared_bytes"] > limit:
        wrong.append(f"shared_bytes {row['shared_bytes']}: {row['target']} has {limit}")
    if row["needs_mma"] and not row["mma"]:
        wrong.append("its products do without matrix instructions")
    if row["serialized"]:
        wrong.append("its matrix instructions wait for each other (ptxas: wgmma serialized)")
    if budget is None:
        return [*wrong, "it has no budget"]
    wrong += [
        f"{name} {row[name]}: the budget is {budget[name]}"
        for name in LIMITED
        if row[name] > budget[name]
    ]
    return wrong + [f"{name}: not one left" for name in budget["mma"] if name not in row["mma"]]


def judge(rows: Iterable[Row], budgets: dict[str, dict[str, Row]]) -> list[Row]:
    """Add `faults` and `within_budget` to rows; `budgets` are by kernel, then by target."""
    judged = []
    for row in rows:
        wrong = faults(row, budgets.get(row["kernel"], {}).get(row["target"]))
        judged.append({**row, "faults": wrong, "within_budget": not wrong})
    return judged


def forgotten(
    rows: Iterable[Row], wanted: Iterable[Job], budgets: dict[str, dict[str, Row]]
) -> list[str]:
    """Return the budgets of these jobs, or of no job at all, that no kernel has any more."""
    there = {(row["kernel"], row["target"]) for row in rows}
    asked = {(job.prefix, job.target) for job in wanted}
    left_out = {(job.prefix, job.target) for job in jobs(KERNELS, TARGETS)} - asked
    return [
        f"{kernel} on {target}"
        for kernel, by_target in budgets.items()
        for target in by_target
        if (kernel, target) not in there
        and (kernel[: kernel.rindex("/") + 1], target) not in left_out
    ]


def budgets_of(
    rows: Iterable[Row], others: dict[str, dict[str, Row]], wanted: Iterable[Job]
) -> dict[str, dict[str, Row]]:
    """Return what rows take as budgets, beside those of `others` that are not of the jobs `wanted`.

    Registers are rounded up to the next 8, as they are handed out.
    """
    asked = {(job.prefix, job.target) for job in wanted}
    budgets: dict[str, dict[str, Row]] = {}
    for kernel, by_target in others.items():
        for target, budget in by_target.items():
            if (kernel[: kernel.rindex("/") + 1], target) not in asked:
                budgets.setdefault(kernel, {})[target] = budget
    for row in rows:
        if "error" not in row:
            budget = {name: row[name] for name in LIMITED}
            budget["registers"] = -(-row["registers"] // 8) * 8
            budget["mma"] = sorted(row["mma"])
            budgets.setdefault(row["kernel"], {})[row["target"]] = budget
    return budgets


def read_budgets(path: Path) -> dict[str, dict[str, Row]]:
    """Read the budgets; none if there is no such file."""
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text())
        triton, budgets = held["triton"], held["budgets"]
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BadInput(
            f"{path} cannot be read as budgets: {err}. Restore it, or renew it with --write-budgets"
        ) from err
    if triton != TRITON:
        raise BadInput(
            f"{path} holds budgets of triton {triton}, but this is about {TRITON}. Renew them with "
            "--write-budgets"
        )
    return budgets


def write_budgets(path: Path, budgets: dict[str, dict[str, Row]]) -> None:
    """Write the budgets, a line a kernel and target, so that a change shows as lines."""

    def text(file: IO[bytes]) -> None:
        lines = [
            f" {json.dumps(kernel)}: {{\n"
            + ",\n".join(f"  {json.dumps(t)}: {json.dumps(b)}" for t, b in by_target.items())
            + "\n }"
            for kernel, by_target in sorted(budgets.items())
        ]
        head = f'{{"triton": {json.dumps(TRITON)}, "budgets": {{\n'
        file.write((head + ",\n".join(lines) + "\n}}\n").encode())

    write_file(path, text)


def table(rows: Iterable[Row]) -> str:
    """Return rows as text, each fault under its row."""
    lines = [
        f"{'kernel':44s}{'target':>8s}{'regs':>6s}{'stack':>7s}{'spill':>7s}{'shared':>9s}"
        f"{'s':>6s}  matrix instructions"
    ]
    for row in rows:
        head = f"{row['kernel']:44s}{row['target']:>8s}"
        if "error" not in row:
            mma = ", ".join(f"{name} {count}" for name, count in row["mma"].items()) or "-"
            head += (
                f"{row['registers']:6d}{row['stack_bytes']:7d}{row['spill_bytes']:7d}"
                f"{row['shared_bytes']:9d}{row['seconds']:6.1f}  {mma}"
            )
        lines += [head, *(f"    NOT WITHIN BUDGET: {fault}" for fault in row["faults"])]
    return "\n".join(lines)


def _some(text: str, known: Iterable[str], flag: str) -> list[str]:
    known = list(known)
    names = known if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise BadInput(
                f"{flag} is {name!r}, but must be all or some of {', '.join(known)}, with commas"
            )
    return names


def _check_triton() -> None:
    try:
        found = version("triton")
    except PackageNotFoundError:
        found = "not installed"
    if found != TRITON:
        raise BadInput(
            f"triton is {found}, but the budgets are of {TRITON}: run `pip install triton=={TRITON}`"
        )


def run(argv: Sequence[str]) -> int:
    """Run the command line; 1 if a budget is broken, missing, or of a kernel that is gone."""
    parser = argparse.ArgumentParser(prog="sorl-bench kernels", description=__doc__)
    parser.add_argument("--aot", action="store_true", help="compile ahead of time; the one way")
    parser.add_argument("--json", metavar="FILE", type=path_argument, help="write the rows here")
    parser.add_argument("--targets", default="all", help=f"some of {','.join(TARGETS)}")
    parser.add_argument("--kernels", default="all", help=f"some of {','.join(KERNELS)}")
    parser.add_argument(
        "--main",
        action="store_true",
        help="the main precision and tile alone: a third of the builds",
    )
    parser.add_argument("--budgets", type=path_argument, default=BUDGETS, metavar="FILE")
    parser.add_argument(
        "--write-budgets", action="store_true", help="renew the budgets by what is there now"
    )
    args = parser.parse_args(argv)
    args.budgets = Path(args.budgets)
    if not args.aot:
        raise BadInput(
            "sorl-bench kernels has only its ahead-of-time form: add --aot. Times come from "
            "sorl-bench gpu"
        )
    wanted = jobs(
        _some(args.kernels, KERNELS, "--kernels"),
        _some(args.targets, TARGETS, "--targets"),
        args.main,
    )
    _check_triton()
    every = len(wanted) == len(jobs(KERNELS, TARGETS))
    budgets = {} if args.write_budgets and every else read_budgets(args.budgets)
    rows = compile_all(wanted)
    if args.write_budgets:
        budgets = budgets_of(rows, budgets, wanted)
    rows = judge(rows, budgets)
    gone = forgotten(rows, wanted, budgets)
    print(table(rows))
    for name in gone:
        print(f"NOT WITHIN BUDGET: {name} has a budget but is not compiled any more")
    bad = sum(not row["within_budget"] for row in rows)
    print(f"{len(rows)} kernels and targets, {bad} not within budget; triton {TRITON}")
    if args.json:
        result = {"triton": TRITON, "rows": rows, "forgotten": gone}
        write_file(args.json, lambda file: file.write(json.dumps(result, indent=1).encode()))
    if args.write_budgets:
        write_budgets(args.budgets, budgets)
        print(f"wrote {args.budgets}")
    return 1 if bad or gone else 0
