"""`sorl-bench train`: milliseconds of one training update, ours and torch's, beside the machine's limit.

One update is what the training loop repeats: sample a minibatch, draw the noise, critic step, actor
step, targets. Everyone runs the same code (`learn.algorithms.sorl`) from the same weights on the same
batches and noise; only the backend behind `ops` changes, and what it computes is checked before it is
timed.
Contenders take turns in one process; torch's thread pool is put to sleep before each of ours.
`--against PYTHON` races another build of sorl-fast instead.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sorl_fast import ops
from sorl_fast.act.backends.native import import_native
from sorl_fast.atomic import write_file
from sorl_fast.batch import Batch
from sorl_fast.cli import path_argument
from sorl_fast.cores import available_cores
from sorl_fast.data.dataset import TransitionData
from sorl_fast.errors import BadInput
from sorl_fast.layout import Layout
from sorl_fast.learn.algorithms.sorl import Sorl, SorlConfig, Steps
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.noise import GeneratorNoise, Noise

from . import against
from .harness import PAUSE, Disagreement, headline, machine
from .limits import native_rates, refuse_beyond
from .peers import import_bench

O, A = 28, 5  # cube-single
STEPS = (1, 2, 4, 8)  # k, the same for the TD and the Q loss
PHASES = ("sampling", "critic", "actor", "optimiser")
# How far a metric of one update may be from that of torch's float32, relative to it (or to 1).
BOUND = {"fp32": 1e-4, "bf16": 5e-2}
# How far losses of the first updates of two whole trainings may be apart, relative to the larger: they may
# draw other minibatches, noise and weights, which alone can make the critic's differ by half.
ALIKE = {"fm_loss": 0.05, "critic_loss": 0.7}
BLOCK = 0.6  # seconds of a build's turn with --against: two updates of each k at batch 256
WARM_UP = 3


class Contender(NamedTuple):
    """What computes an update, and how."""

    name: str
    precision: str
    backend: str  # SORL_OPS
    autocast: bool = False
    compiled: bool = False


EAGER = Contender("torch-eager", "fp32", "torch")
CONTENDERS = (
    EAGER,
    Contender("torch-eager", "bf16", "torch", autocast=True),
    Contender("torch-compile", "fp32", "torch", compiled=True),
    Contender("sorl-fast", "fp32", "native"),
    Contender("sorl-fast", "bf16", "native"),
)


def update_flop(batch: int, k: float, config: SorlConfig) -> float:
    """Return the nominal FLOP of one update: products only, a backward counted as two forwards.

    k is the number of Euler steps, or its mean. 14.7 GFLOP at batch 256, 4 x 512, E = 2, mean k.
    """
    sizes = O, A, config.hidden, config.depth
    actor = 2 * Layout.actor(*sizes).products
    critic = 2 * Layout.critic(*sizes, config.ensemble).products
    td = k * actor + critic + 3 * critic  # rollout at x', target critic; critic and its backward
    regressions = 3 * actor + (2 + 3) * actor  # flow matching; two target passes, self-consistency
    q = 3 * k * actor + 2 * critic  # rollout and backward; critic, backward to the actions only
    return batch * (td + regressions + q)


class Setting(NamedTuple):
    """What every contender gets: data, and the initial state of all random numbers."""

    config: SorlConfig
    data: TransitionData

    def learner(self) -> Learner:
        """Return a learner, the same each time."""
        return Learner(Sorl(self.config), O, A, torch.Generator().manual_seed(0))


def make_setting(batch: int, hidden: int = 512, depth: int = 4) -> Setting:
    """Return synthetic transitions of cube-single's shape, and the network of the paper."""
    random = np.random.default_rng(0)
    T = 100_000
    arrays = {
        "observations": random.standard_normal((T, O)),
        "actions": np.tanh(random.standard_normal((T, A))),
        "rewards": -np.ones(T),
        "next_observations": random.standard_normal((T, O)),
        "masks": np.ones(T),
    }
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    config = SorlConfig(q_coef=10.0, batch_size=batch, hidden=hidden, depth=depth)
    return Setting(config, TransitionData(arrays, "synthetic"))


def compile_losses(learner: Learner, compile_: Callable[[Callable[..., Any]], Any]) -> None:
    """Compile a learner's losses with their backwards, a graph for each k.

    The optimiser's step, a few passes, stays as it is. A compiled function can be differentiated only
    once, so the actor's two losses are added up before.
    """
    for name in ("critic_loss", "actor_losses"):
        setattr(learner.method, name, compile_(getattr(learner.method, name)))
    adam = learner.optimisers["actor"]
    step = adam.step

    def step_once(loss: Tensor, more: Tensor) -> Tensor:
        return step(loss + more)

    vars(adam)["step"] = step_once


class Runner:
    """A contender with a learner of its own."""

    def __init__(self, contender: Contender, setting: Setting, threads: int):
        self.contender, self.threads = contender, threads
        self._data = setting.data
        self._batch_size = setting.config.batch_size
        self.learner = setting.learner()
        if contender.compiled:
            compile_losses(self.learner, torch.compile)
        self._random = torch.Generator().manual_seed(1)
        self._noise = GeneratorNoise(self.learner.method.plan(A), A, self._random)

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Set the process up for this contender."""
        before = os.environ.get("SORL_OPS")
        os.environ["SORL_OPS"] = self.contender.backend
        native = self.contender.backend == "native"
        torch.set_num_threads(1 if native else self.threads)
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

    def update(self, k: int) -> Tensor:
        """Do what is timed, both losses with k steps."""
        return self.learner.update(*self.draw(), Steps(k, k))

    def phases(self, k: int) -> dict[str, float]:
        """Return the seconds of each phase of one update, taken apart."""
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


def check(metrics: Tensor, expected: Tensor, contender: Contender) -> float:
    """Return the largest relative error of a first update's metrics.

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
            f"{contender.name} ({contender.precision}): {[*Sorl.metrics][worst]} is {value:.3g} from "
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
) -> list[dict[int, float]]:
    """Return the median seconds of an update by k for each runner, taking turns round by round."""
    times: list[dict[int, list[float]]] = [{k: [] for k in STEPS} for _ in runners]
    for r in range(rounds):
        for i in range(len(runners)):
            which = (i + r) % len(runners)
            with runners[which].settled():
                for k in STEPS:
                    runners[which].update(k)  # wakes threads and caches; not counted
                    for _ in range(WARM_UP):
                        start = clock()
                        runners[which].update(k)
                        times[which][k].append(clock() - start)
    return [{k: statistics.median(v) for k, v in t.items()} for t in times]


def run(argv: Sequence[str]) -> int:
    """Run the benchmark's command line; return 0, or 1 if a row is beyond the machine's limit."""
    parser = argparse.ArgumentParser(prog="sorl-bench train", description=__doc__)
    parser.add_argument("--json", metavar="FILE", type=path_argument, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="batch 256, no torch.compile")
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
    native = import_native()
    info = machine({p: native.train_isas(p) for p in ("fp32", "bf16")}, ["torch", "numpy"])
    print(headline(info))
    threads = args.threads
    batches = (256,) if args.quick else (256, 1024)
    if args.against:
        with tempfile.TemporaryDirectory(prefix="sorl-bench-") as folder:
            asked = questions(batches, threads, Path(folder))
            rounds = args.rounds or against.ROUNDS
            return against.race(args.against, asked, info, BLOCK, rounds, args.json)
    rounds = args.rounds or (3 if args.quick else 8)
    rates = native_rates(import_bench(), seconds=0.1)
    limits = {precision: rates.flop(precision, threads) for precision in ("fp32", "bf16")}
    contenders = [c for c in CONTENDERS if not (args.quick and c.compiled)]
    contenders = [c for c in contenders if c.backend != "native" or native.train_isas(c.precision)]
    rows: list[dict[str, Any]] = []
    for batch in batches:
        rows += _race(contenders, make_setting(batch), threads, rounds, limits)
    result = {
        "machine": info,
        "limits_gflops": {p: rate / 1e9 for p, rate in limits.items()},
        "nominal_gflop": {str(b): _mean_flop(b) / 1e9 for b in {r["batch"] for r in rows}},
        "rows": rows,
    }
    print(table(result))
    if args.json:
        write_file(args.json, lambda file: file.write(json.dumps(result, indent=1).encode()))
    return refuse_beyond("train", rows, _described)


def _described(row: Mapping[str, Any]) -> str:
    """Return a row's lane, contender and time."""
    lane = f"batch {row['batch']}, {row['precision']}, {row['threads']}T"
    return f"{lane}: {row['contender']}, {row['ms_per_update']:.2f} ms"


def _mean_flop(batch: int) -> float:
    config = SorlConfig(q_coef=1.0)
    return update_flop(batch, statistics.mean(STEPS), config)


def _race(
    contenders: Sequence[Contender],
    setting: Setting,
    threads: int,
    rounds: int,
    limits: dict[str, float],
) -> list[dict[str, Any]]:
    batch = setting.config.batch_size
    runners = [Runner(c, setting, threads) for c in contenders]
    errors = []
    expected: Tensor | None = None
    for runner in runners:
        with runner.settled():
            metrics = runner.update(STEPS[-1]).float()
            for k in STEPS:  # compiles, allocates
                runner.update(k)
        expected = metrics if expected is None else expected
        errors.append(check(metrics, expected, runner.contender))
    rows = []
    for runner, error, seconds in zip(runners, errors, measure(runners, rounds), strict=True):
        with runner.settled():
            split = [runner.phases(k) for k in STEPS for _ in range(rounds + 1)]
        mean = statistics.mean(seconds.values())
        c = runner.contender
        rows.append(
            {
                "contender": c.name,
                "precision": c.precision,
                "threads": threads,
                "batch": batch,
                "ms_per_update": 1e3 * mean,
                "ms_by_k": {str(k): 1e3 * s for k, s in seconds.items()},
                "limit_fraction": _mean_flop(batch) / limits[c.precision] / mean,
                "ms_by_phase": {p: 1e3 * statistics.mean(s[p] for s in split) for p in PHASES},
                "max_error": error,
            }
        )
    return rows


def table(result: dict[str, Any]) -> str:
    """Return the figures as text, each with its speed relative to torch eager of its precision."""
    head = f"{'contender':14s}{'precision':>10s}{'batch':>6s}{'ms':>8s}" + "".join(
        f"{f'k={k}':>8s}" for k in STEPS
    )
    lines = [head + f"{'of limit':>10s}{'x eager':>9s}   " + ", ".join(PHASES) + " (ms)"]
    for row in result["rows"]:
        eager = next(
            r["ms_per_update"]
            for r in result["rows"]
            if (r["contender"], r["precision"], r["batch"])
            == ("torch-eager", row["precision"], row["batch"])
        )
        by_k = "".join(f"{row['ms_by_k'][str(k)]:8.1f}" for k in STEPS)
        phases = ", ".join(f"{row['ms_by_phase'][p]:.2f}" for p in PHASES)
        lines.append(
            f"{row['contender']:14s}{row['precision']:>10s}{row['batch']:6d}"
            f"{row['ms_per_update']:8.1f}{by_k}{row['limit_fraction']:9.0%} "
            f"{eager / row['ms_per_update']:8.2f}   {phases}"
        )
    limits = result["limits_gflops"]
    lines.append("limits " + ", ".join(f"{p} {v:.0f} GFLOP/s" for p, v in limits.items()))
    if "amx" not in result["machine"]["isas"]["bf16"]:
        lines.append("no AMX here: the floors of bf16 were set for machines that have it")
    return "\n".join(lines)
