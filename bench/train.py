"""`sorl-bench train`: milliseconds of one training update, ours and torch's, beside the machine's limit.

One update is what the training loop repeats: sample a minibatch, draw the noise, then the method's steps
and targets. Everyone runs the same code (`learn.algorithms`) from the same weights on the same batches and
noise; only the backend behind `ops` changes, and what it computes is checked before it is timed.
Contenders take turns in one process; torch's thread pool is put to sleep before each of ours.
`--against PYTHON` races another build of sorl-fast instead.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sorl_fast import ops
from sorl_fast.act.backends.native import import_native
from sorl_fast.atomic import write_file
from sorl_fast.batch import Batch
from sorl_fast.cores import available_cores
from sorl_fast.errors import BadInput
from sorl_fast.flags import path_argument
from sorl_fast.learn.algorithms.sorl import Sorl, Steps
from sorl_fast.learn.noise import GeneratorNoise, Noise

from . import against
from .harness import PAUSE, Disagreement, headline, machine
from .jax_fql import JaxLearner, raced
from .limits import native_rates, refuse_beyond
from .methods import (
    FLOORS,
    JOBS,
    STEPS,
    A,
    Setting,
    check_moved,
    compile_losses,
    make_setting,
    mean_flop,
    moved_apart,
)
from .peers import import_bench

PHASES = ("sampling", "critic", "actor", "optimiser")
# How far a metric of one update may be from that of torch's float32, relative to it (or to 1): of
# autocast's, IDQL's critic loss was 0.1 away on a machine with AMX, and ours 2e-3.
BOUND = {"fp32": 1e-4, "bf16": 0.15}
# How far losses of the first updates of two whole trainings may be apart, relative to the larger: they may
# draw other minibatches, noise and weights, which alone can make the critic's differ by half.
ALIKE = {"fm_loss": 0.05, "critic_loss": 0.7}
BLOCK = 0.6  # seconds of a build's turn with --against: two updates of each k at batch 256
WARM_UP = 3
MAX_BATCH = 65536


class Contender(NamedTuple):
    """What computes an update, and how."""

    name: str
    precision: str
    backend: str  # SORL_OPS; jax: an update of its own
    autocast: bool = False
    compiled: bool = False


EAGER = Contender("torch-eager", "fp32", "torch")
CONTENDERS = (
    EAGER,
    Contender("torch-eager", "bf16", "torch", autocast=True),
    Contender("torch-compile", "fp32", "torch", compiled=True),
    Contender("jax", "fp32", "jax"),
    Contender("sorl-fast", "fp32", "native"),
    Contender("sorl-fast", "bf16", "native"),
)


class Runner:
    """A contender with a learner of its own."""

    def __init__(self, contender: Contender, setting: Setting, threads: int):
        self.contender, self.threads = contender, threads
        self._data = setting.data
        self._batch_size = setting.config.batch_size
        self.learner = setting.learner()
        self._trains = JaxLearner(self.learner) if contender.backend == "jax" else self.learner
        if contender.compiled:
            compile_losses(self.learner, torch.compile)
        self._random = torch.Generator().manual_seed(1)
        self._noise = GeneratorNoise(self.learner.method.plan(A), A, self._random)
        self.turns = JOBS[setting.config.method].turns

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Set the process up for this contender."""
        before = os.environ.get("SORL_OPS")
        os.environ["SORL_OPS"] = (
            "torch" if self.contender.backend == "jax" else self.contender.backend
        )
        native = self.contender.backend == "native"
        torch.set_num_threads(self.threads if self.contender.backend == "torch" else 1)
        ops.configure(
            precision=self.contender.precision if native else "fp32", threads=self.threads
        )
        time.sleep(PAUSE)
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.contender.autocast):
                yield
        finally:
            os.environ.pop("SORL_OPS")
            if before is not None:
                os.environ["SORL_OPS"] = before

    def draw(self) -> tuple[Batch, Noise]:
        """Return a minibatch and its noise."""
        return self._data.sample(self._batch_size, self._random), self._noise.draw()

    def update(self, turn: str) -> Tensor:
        """Do what is timed, an update of one of the method's turns."""
        return self._trains.update(*self.draw(), self.turns[turn])

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that updates change, as `Learner.state` does."""
        return self._trains.state()

    def phases(self, k: int) -> dict[str, float]:
        """Return the seconds of each phase of one update of SORL, taken apart, both losses with k steps."""
        learner, method = self.learner, self.learner.method
        assert isinstance(method, Sorl)
        config = method.config
        critic, actor = learner.optimisers["critic"], learner.optimisers["actor"]
        clock = time.perf_counter
        marks = [clock()]
        batch, noise = self.draw()
        marks.append(clock())
        td = method.critic_loss(learner, batch, noise, k)
        critic_grads = torch.autograd.grad(td, critic.params)
        marks.append(clock())
        critic.apply(critic_grads)
        marks.append(clock())
        fm, sc, q_part, _ = method.actor_losses(learner, batch, noise, k)
        regression = config.fm_coef * fm + config.sc_coef * sc
        losses = [regression, config.q_coef * q_part]
        if self.contender.compiled:  # see compile_losses
            losses = [losses[0] + losses[1]]
        grads = [torch.autograd.grad(loss, actor.params) for loss in losses]
        marks.append(clock())
        actor.apply(*grads)
        marks.append(clock())
        sampling, first, step, second, other_step = np.diff(marks).tolist()
        return dict(zip(PHASES, (sampling, first, second, step + other_step), strict=True))


def consistency(
    runner: Runner, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds that SORL's self-consistency loss adds to an update, the mean over k.

    Of each k, the median update that has the loss less the median of those that have not, in turns.
    """
    added = []
    for k in STEPS:
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(rounds):
            for there, found in times.items():
                for counted in (False, *[True] * WARM_UP):  # the first wakes caches
                    start = clock()
                    runner.learner.update(*runner.draw(), Steps(k, k, sc=there))
                    found += [clock() - start] * counted
        added.append(statistics.median(times[True]) - statistics.median(times[False]))
    return statistics.mean(added)


def check(
    metrics: Tensor,
    expected: Tensor,
    contender: Contender,
    names: Collection[str] = tuple(Sorl.metrics),
) -> float:
    """Return the largest relative error of a first update's metrics, of those names.

    Raises
    ------
    Disagreement
        It is above `BOUND`, or not a number.
    """
    error = (metrics - expected).abs() / expected.abs().clamp_min(1)
    worst = int(error.nan_to_num(torch.inf).argmax())
    value, bound = float(error[worst]), BOUND[contender.precision]
    if not value <= bound:
        raise Disagreement(
            f"{contender.name} ({contender.precision}): {[*names][worst]} is {value:.3g} from "
            f"torch's, above {bound:g}: not timed"
        )
    return value


def check_alike(logs: Sequence[Mapping[str, float]]) -> list[float]:
    """Return how far the flow-matching losses of two trainings are apart, once for each.

    Raises
    ------
    Disagreement
        A loss is missing, not a number, or further from the other's than in `ALIKE`.
    """
    apart = {}
    for name, bound in ALIKE.items():
        this, other = (log.get(name, np.nan) for log in logs)
        apart[name] = abs(this - other) / max(abs(this), abs(other))
        if not apart[name] <= bound:
            raise Disagreement(
                f"{name} of the first updates is {this:.3g} in {against.NAMES[0]} and {other:.3g} in "
                f"{against.NAMES[1]}, more than {bound:.0%} apart: not timed"
            )
    return [apart["fm_loss"]] * 2


def _save(path: Path, tensors: Mapping[str, Any]) -> str:
    arrays: dict[str, Any] = {name: x.numpy() for name, x in tensors.items() if x is not None}
    np.savez(path, **arrays)
    return str(path)


def questions(
    batches: Sequence[int], threads: int, folder: Path, hidden: int = 512, depth: int = 4
) -> Iterator[against.Question]:
    """Yield what two builds are asked at each batch and precision; files are written to `folder` before.

    Both update from the same weights with the same minibatch and noise, and their metrics are held against
    those of torch's float32 here; where they cannot share that, both train from the same file.
    """
    for batch in batches:
        setting = make_setting(batch, hidden, depth)
        eager = Runner(EAGER, setting, threads)
        drawn, noise = eager.draw()
        state = {name: x.clone() for name, x in eager.learner.state().items()}
        request: dict[str, Any] = {"threads": threads, "steps": list(STEPS)}
        for name, arrays in (("state", state), ("batch", drawn._asdict()), ("noise", noise)):
            request[name] = _save(folder / f"{name}.npz", arrays)
        request["agent"] = {"q_coef": setting.config.q_coef, "batch_size": batch}
        request["agent"] |= {"hidden": hidden, "depth": depth}
        request["data"] = _save(folder / "transitions.npz", setting.data.transitions._asdict())
        request["updates"] = 8
        expected: dict[str, Tensor] = {}
        with eager.settled():
            for k in STEPS:
                eager.learner.load_state(state, 0)
                expected[str(k)] = eager.learner.update(drawn, noise, Steps(k, k)).clone()

        for precision in ("fp32", "bf16"):

            def judge(
                interface: str,
                answers: Sequence[Any],
                expected: Mapping[str, Tensor] = expected,
                precision: str = precision,
            ) -> list[float]:
                if interface == "train":
                    return check_alike(answers)
                errors = []
                for who, answer in zip(against.NAMES, answers, strict=True):
                    contender, worst = Contender(who, precision, "native"), 0.0
                    for k, metrics in expected.items():
                        right = dict(zip(Sorl.metrics, metrics.tolist(), strict=True))
                        # a metric that a build does not have is none to compare
                        said = torch.tensor([answer[k].get(name, x) for name, x in right.items()])
                        worst = max(worst, check(said, metrics, contender))
                    errors.append(worst)
                return errors

            lane = {"precision": precision, "threads": threads, "batch": batch}
            asked = {**request, "precision": precision}
            text = f"update, batch {batch:<10d} {precision} {threads}T"
            yield against.Question(lane, text, {"Learner.update": asked, "train": asked}, judge)


def measure(
    runners: Sequence[Runner], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[dict[str, float]]:
    """Return the median seconds of an update by turn for each runner, taking turns round by round."""
    turns = runners[0].turns
    times: list[dict[str, list[float]]] = [{turn: [] for turn in turns} for _ in runners]
    for r in range(rounds):
        for i in range(len(runners)):
            which = (i + r) % len(runners)
            with runners[which].settled():
                for turn in turns:
                    runners[which].update(turn)  # wakes threads and caches; not counted
                    for _ in range(WARM_UP):
                        start = clock()
                        runners[which].update(turn)
                        times[which][turn].append(clock() - start)
    return [{k: statistics.median(v) for k, v in t.items()} for t in times]


def run(argv: Sequence[str]) -> int:
    """Run the benchmark's command line; return 0, or 1 if a row is beyond the machine's limit."""
    parser = argparse.ArgumentParser(prog="sorl-bench train", description=__doc__)
    parser.add_argument("--json", metavar="FILE", type=path_argument, help="write the figures here")
    parser.add_argument(
        "--method", choices=(*JOBS, "all"), default="sorl", help="what is trained (sorl)"
    )
    parser.add_argument(
        "--precision", nargs="+", choices=[*BOUND], default=[*BOUND], help="of the products (both)"
    )
    parser.add_argument("--quick", action="store_true", help="batch 256, no torch.compile")
    parser.add_argument(
        "--batch", nargs="+", type=int, metavar="B", help="of these sizes (256 1024; --quick: 256)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=min(available_cores(), ops.MAX_THREADS),
        help=f"for everyone, at most {ops.MAX_THREADS}",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=0,
        help=f"0: 3 with --quick, else 8; {against.ROUNDS} with --against",
    )
    parser.add_argument(
        "--against",
        metavar="PYTHON",
        help="race another build of sorl-fast instead of torch: the interpreter of an environment that has "
        "one",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.rounds <= 1000:
        raise BadInput(f"rounds is {args.rounds}, but must be in [0, 1000]. Set --rounds")
    if not 1 <= args.threads <= ops.MAX_THREADS:
        raise BadInput(
            f"threads is {args.threads}, but must be in [1, {ops.MAX_THREADS}], which is all that "
            "training uses. Set --threads"
        )
    for batch in args.batch or ():
        if not 1 <= batch <= MAX_BATCH:
            raise BadInput(f"batch is {batch}, but must be in [1, {MAX_BATCH}]. Set --batch")
    if args.against and args.method != "sorl":
        raise BadInput(
            f"method is {args.method!r}, but must be sorl with --against: builds share no other's inputs. "
            "Leave --method out"
        )
    native = import_native()
    info = machine({p: native.train_isas(p) for p in ("fp32", "bf16")}, ["torch", "numpy"])
    print(headline(info))
    threads = args.threads
    batches = args.batch or ((256,) if args.quick else (256, 1024))
    if args.against:
        with tempfile.TemporaryDirectory(prefix="sorl-bench-") as folder:
            every = questions(batches, threads, Path(folder))
            asked = (q for q in every if q.lane["precision"] in args.precision)
            rounds = args.rounds or against.ROUNDS
            return against.race(args.against, asked, info, BLOCK, rounds, args.json)
    rounds = args.rounds or (3 if args.quick else 8)
    rates = native_rates(import_bench(), seconds=0.1)
    limits = {precision: rates.flop(precision, threads) for precision in args.precision}
    contenders = [c for c in CONTENDERS if not (args.quick and c.compiled)]
    contenders = [c for c in contenders if c.precision in args.precision]
    contenders = [c for c in contenders if c.backend != "native" or native.train_isas(c.precision)]
    result: dict[str, Any] = {
        "machine": info,
        "limits_gflops": {p: rate / 1e9 for p, rate in limits.items()},
        "rows": [],
    }
    for name in JOBS if args.method == "all" else [args.method]:
        rows: list[dict[str, Any]] = []
        for batch in batches:
            rows += _race(contenders, make_setting(batch, method=name), threads, rounds, limits)
        result["rows"] += rows
        print(table({**result, "rows": rows}), flush=True)
    print(closing(result))
    if args.json:
        write_file(args.json, lambda file: file.write(json.dumps(result, indent=1).encode()))
    return refuse_beyond("train", result["rows"], _described)


def _described(row: Mapping[str, Any]) -> str:
    """Return a row's lane, contender and time."""
    lane = f"{row['method']}, batch {row['batch']}, {row['precision']}, {row['threads']}T"
    return f"{lane}: {row['contender']}, {row['ms_per_update']:.2f} ms"


def _agreed(runners: Sequence[Runner], start: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """Make the first updates of all, one of each turn and one more; return how far each is from the first.

    Those are the errors of the first update's metrics, and of the weights after all of them.

    Raises
    ------
    Disagreement
        One computes something else.
    """
    found: list[dict[str, float]] = []
    expected: tuple[Tensor, dict[str, Tensor]] | None = None
    names = runners[0].learner.method.metrics
    for runner in runners:
        turns = [*runner.turns]
        with runner.settled():
            metrics = runner.update(turns[-1]).float()
            for turn in turns:  # compiles, allocates
                runner.update(turn)
            state = {name: x.clone() for name, x in runner.state().items()}
            for turn in turns * 2:  # records what is to be timed
                runner.update(turn)
        if expected is None:
            expected = metrics, state
        error = check(metrics, expected[0], runner.contender, names)
        apart = moved_apart(state, expected[1], start)
        check_moved(runner.contender.name, runner.contender.precision, apart)
        found.append({"max_error": error, "weights_error": apart})
    return found


def _race(
    contenders: Sequence[Contender],
    setting: Setting,
    threads: int,
    rounds: int,
    limits: dict[str, float],
) -> list[dict[str, Any]]:
    config = setting.config
    there = raced(config.method, threads)
    contenders = [c for c in contenders if c.backend != "jax" or there]
    runners = [Runner(c, setting, threads) for c in contenders]
    # against torch's float32, whether that is raced or not
    first = [] if EAGER in contenders else [Runner(EAGER, setting, threads)]
    errors = _agreed([*first, *runners], setting.learner().state())[len(first) :]
    gflop = mean_flop(config) / 1e9
    rows = []
    for runner, error, seconds in zip(runners, errors, measure(runners, rounds), strict=True):
        mean = statistics.mean(seconds.values())
        c = runner.contender
        row = {
            "method": config.method,
            "settings": dict(JOBS[config.method].settings),
            "contender": c.name,
            "precision": c.precision,
            "threads": threads,
            "batch": config.batch_size,
            "gflop": gflop,
            "ms_per_update": 1e3 * mean,
            "limit_fraction": 1e9 * gflop / limits[c.precision] / mean,
            **error,
        }
        if len(seconds) > 1:
            by = JOBS[config.method].by
            row[f"ms_by_{by}"] = {turn: 1e3 * s for turn, s in seconds.items()}
        if config.method == "sorl":
            with runner.settled():
                split = [runner.phases(k) for k in STEPS for _ in range(rounds + 1)]
                if not c.compiled:  # which would compile each update anew
                    row["ms_consistency"] = 1e3 * consistency(runner, rounds)
            row["ms_by_phase"] = {p: 1e3 * statistics.mean(s[p] for s in split) for p in PHASES}
        rows.append(row)
    return rows


def _of(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], name: str) -> float:
    """Return the milliseconds of another contender in a row's lane; NaN where it does not race."""
    lane = ("method", "precision", "batch", "threads")
    times = (
        x["ms_per_update"]
        for x in rows
        if x["contender"] == name and all(x[key] == row[key] for key in lane)
    )
    return next(times, math.nan)


def table(result: Mapping[str, Any]) -> str:
    """Return a method's figures as text, each with its speed relative to torch's of its precision."""
    rows = result["rows"]
    first = rows[0]
    by = JOBS[first["method"]].by
    turns = {turn: f"{by}={turn}" for turn in first.get(f"ms_by_{by}", ())}
    wide = max(8, *(len(label) + 2 for label in turns.values()), 0)
    title = " ".join((first["method"], *(f"--{k} {v}" for k, v in first["settings"].items())))
    gflop = {row["batch"]: row["gflop"] for row in rows}
    title += "".join(f", {g:.1f} GFLOP an update at batch {batch}" for batch, g in gflop.items())
    head = f"{'contender':14s}{'precision':>10s}{'batch':>6s}{'ms':>8s}"
    head += "".join(f"{label:>{wide}s}" for label in turns.values())
    head += f"{'of limit':>10s}{'x eager':>9s}{'x compile':>11s}"
    head += "   " + ", ".join(PHASES) + " (ms)" if "ms_by_phase" in first else ""
    lines = [title, head]
    for row in rows:
        ms = row["ms_per_update"]
        line = f"{row['contender']:14s}{row['precision']:>10s}{row['batch']:6d}{ms:8.1f}"
        line += "".join(f"{row[f'ms_by_{by}'][turn]:{wide}.1f}" for turn in turns)
        ratios = [_of(rows, row, name) / ms for name in ("torch-eager", "torch-compile")]
        eager, compiled = (f"{x:.2f}" if math.isfinite(x) else "-" for x in ratios)
        line += f"{row['limit_fraction']:9.0%} {eager:>8s}{compiled:>11s}"
        if "ms_by_phase" in row:
            line += "   " + ", ".join(f"{row['ms_by_phase'][p]:.2f}" for p in PHASES)
        lines.append(line)
    return "\n".join([*lines, *shares(rows), *floors(rows)])


def shares(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each row whose self-consistency loss was timed: its part of an update."""
    return [
        f"{row['contender']} {row['precision']}, batch {row['batch']}: self-consistency takes "
        f"{row['ms_consistency']:.1f} of {row['ms_per_update']:.1f} ms, "
        f"{row['ms_consistency'] / row['ms_per_update']:.0%}"
        for row in rows
        if "ms_consistency" in row
    ]


def floors(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each row that has a floor: what is to be reached, and whether it is."""
    lines = []
    for row in rows:
        floor = FLOORS.get((row["method"], row["precision"]))
        lane = row["contender"], row["batch"], row["threads"]
        if floor is None or lane != ("sorl-fast", 256, 2):
            continue
        ms = row["ms_per_update"]
        ratio = _of(rows, row, "torch-eager") / ms
        reached = ratio >= floor.times_eager
        text = f"{ratio:.2f} x eager, floor {floor.times_eager:g}"
        if floor.ms is not None:
            reached, text = reached and ms <= floor.ms, f"{text}; {ms:.1f} ms, floor {floor.ms:g}"
        jax = _of(rows, row, "jax") / ms
        if floor.times_jax is not None and math.isfinite(jax):
            reached = reached and jax >= floor.times_jax
            text += f"; {jax:.2f} x JAX, floor {floor.times_jax:g}"
        lines.append(
            f"{row['method']} {row['precision']}: {text}: {'reached' if reached else 'SHORT'}"
        )
    return lines


def closing(result: Mapping[str, Any]) -> str:
    """Return the limits, and for which machines the floors were set if this is another."""
    limits = result["limits_gflops"]
    lines = ["limits " + ", ".join(f"{p} {v:.0f} GFLOP/s" for p, v in limits.items())]
    isas = result["machine"]["isas"]
    if "avx512" not in isas["fp32"]:
        lines.append("no AVX-512 here: the floors of fp32 were set for machines that have it")
    if "amx" not in isas["bf16"]:
        lines.append("no AMX here: the floors of bf16 were set for machines that have it")
    return "\n".join(lines)
