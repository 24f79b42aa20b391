"""`sorl-bench gpu`: everything worth knowing of a GPU, in one command of at most eight minutes, or less.

In this order: the device's limits; whether the kernels agree with the float64 definition there; then
the times of rollout, best-of-N and the training update, ours and PyTorch's, each as a part of the
limit. The file is written after every section. Who disagrees, fails or has no time left is named.

`--dry-run` walks the same way on a CPU, interpreted, at tiny sizes: it shows that it works, no more.

Shape letters: B observations, N candidates, M Euler steps, O observation, A action.
"""

import argparse
import faulthandler
import functools
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sorl_fast.act.policy_file import Policy
from sorl_fast.atomic import write_file
from sorl_fast.data.dataset import TransitionData
from sorl_fast.errors import BadInput
from sorl_fast.flags import path_argument
from sorl_fast.learn.algorithms.sorl import Sorl, SorlConfig, Steps
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.noise import KeyedNoise
from sorl_fast.ops import chain, reference, selfcheck, table
from sorl_fast.ops.graphs import Captured, CudaRecorder, Recorder
from sorl_fast.ops.implementations import DEFAULT, PLAIN_OPERATIONS, Network, Task

from .gpu_contenders import (
    CONTENDERS,
    UPDATE_OPERATIONS,
    Plainly,
    chain_call,
    fused_call,
    plain_best_of_n,
    products,
    routed,
)
from .harness import ACTION_BOUND, Q_BOUND, machine, max_abs_error, quantile, time_calls, truth
from .limits import refuse_beyond
from .methods import compile_losses, make_setting, update_flop
from .shapes import Cell, flop, make_inputs, make_policy, weights_held

# seconds of the whole command, unless --seconds asks for fewer: all below is then scaled
LIMIT = 480.0
# seconds after the start at which a section must end; what one leaves over the next may use
ENDS = {"limits": 40.0, "check": 160.0, "rollout": 280.0, "best_of_n": 370.0, "update": 465.0}
LEAST = 60.0  # --seconds; the limits alone need a few
COMPILING = 60.0  # seconds that must be left before torch.compile may begin
ONE = 5.0  # and before anything else may

BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}
# how far an action may be from the float64 definition's; bf16 and fp32 as on the CPU
BOUND = ACTION_BOUND | {"tf32": 0.02, "fp16": 0.02}
BEST_Q_BOUND = Q_BOUND | {"tf32": 0.02, "fp16": 0.02}
# how far an update's metrics may be from those of PyTorch's float32, relative to them (or to 1)
METRIC_BOUND = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}

Call = Callable[[], Any]
Row = dict[str, Any]


class Scale(NamedTuple):
    """How much is done: on a GPU, or dry."""

    hidden: int
    depth: int
    rollouts: tuple[tuple[str, Cell], ...]  # precision and cell
    best: tuple[tuple[str, Cell], ...]
    updates: tuple[tuple[str, int, int], ...]  # precision, batch, k
    compiled: frozenset[int]  # rows that torch.compile gets; it takes half a minute each
    copied: int  # bytes
    side: int  # of the matrices multiplied
    checks: tuple[Task, ...]
    form: str
    seconds: float  # of one timing


def _tasks(network: Network, names: str, precisions: str) -> tuple[Task, ...]:
    return tuple(
        Task(name, precision, network) for precision in precisions.split() for name in names.split()
    )


FULL = Scale(
    hidden=512,
    depth=4,
    rollouts=(
        *(("bf16", Cell(B, 8, 1)) for B in (1, 8, 64, 512, 4096, 16384, 65536)),
        *(("bf16", Cell(B, 1, 1)) for B in (1, 1024, 65536)),
        *(("tf32", Cell(B, 8, 1)) for B in (256, 65536)),
        *(("fp32", Cell(B, 8, 1)) for B in (256, 65536)),
        ("bf16", Cell(65536, 8, 1, 69, 21)),
    ),
    best=(
        *(("bf16", Cell(B, 8, N)) for B, N in ((1, 8), (1, 32), (16, 32), (256, 32), (2048, 32))),
        ("tf32", Cell(256, 8, 32)),
        ("bf16", Cell(2048, 8, 32, 69, 21)),
    ),
    updates=tuple(
        (precision, batch, k)
        for precision, batch in (("bf16", 256), ("tf32", 256), ("fp32", 256), ("bf16", 4096))
        for k in (1, 8)
    ),
    compiled=frozenset({1, 256, 65536}),
    copied=1 << 29,
    side=8192,
    checks=(
        *_tasks(DEFAULT, "rollout best_of_n critic_ensemble velocity", "bf16"),
        *_tasks(DEFAULT, "adam_ema_step normals words", "fp32"),
        *_tasks(DEFAULT, "rollout best_of_n critic_ensemble velocity", "tf32 fp32"),
        *_tasks(DEFAULT, "best_of_n_scheduled", "bf16 tf32 fp32"),
    ),
    form="short",
    seconds=0.3,
)
DRY = Scale(
    hidden=64,
    depth=1,
    rollouts=(("fp32", Cell(1, 2, 1)), ("fp32", Cell(5, 1, 1))),
    best=(("fp32", Cell(2, 1, 3)),),
    updates=(("fp32", 4, 1),),
    compiled=frozenset({1, 6, 4}),
    copied=1 << 12,
    side=16,
    checks=_tasks(Network(4, 2, 64, 1, 2), "rollout", "fp32"),
    form="tiny",
    seconds=0.0,
)


class Bench:
    """One run: where it is, how much it does, what it has found.

    Parameters
    ----------
    device
        A CUDA device, or the CPU: then the run is dry, and no time is taken.
    scale
        How much is done.
    file
        Where `result` is written after every section; None: nowhere.
    clock
        Seconds.
    seconds
        Of the whole command.
    """

    def __init__(
        self,
        device: torch.device,
        scale: Scale,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = LIMIT,
    ) -> None:
        self.device, self.scale = device, scale
        self._part = seconds / LIMIT
        self.dry = device.type != "cuda"
        self._file, self._clock, self._start = file, clock, clock()
        self._section = "limits"
        self._refused: dict[tuple[str, str, str], str] = {}  # operation, its form, precision -> why
        self.result: dict[str, Any] = {
            "dry_run": self.dry,
            "device": None if self.dry else _describe(device),
            "machine": machine({}, ["torch", "triton", "numpy"]),
            "limits": None,
            "check": [],
            "rows": [],
            "sections": [],
            "seconds": 0.0,
        }

    # ---- sections

    def run(self) -> None:
        """Do all sections."""
        sections = (self.limits, self.check, self.rollout, self.best_of_n, self.update)
        for name, section in zip(ENDS, sections, strict=True):
            self._section = name
            section()
            self.result["sections"].append(name)
            self.result["seconds"] = self._clock() - self._start
            self.save()
            print(f"{name}: done after {self.result['seconds']:.0f} s", flush=True)

    def save(self) -> None:
        """Write what is known so far."""
        if self._file is not None:
            data = json.dumps(self.result, indent=1).encode()
            write_file(self._file, lambda file: file.write(data))

    def left(self) -> float:
        """Return the seconds that this section may still take."""
        return self._part * ENDS[self._section] - (self._clock() - self._start)

    def limits(self) -> None:
        """Measure what the device can do at most."""
        source = torch.zeros(self.scale.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        copy, _, _ = self.time(lambda: target.copy_(source))
        rates: dict[str, float | None] = {}
        for precision in ("bf16", "fp16", "tf32", "fp32"):
            n = self.scale.side // (1 if BYTES[precision] == 2 else 2)
            dtype = chain.DTYPES[precision]
            left, right = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
            with products(precision):
                p50, _, _ = self.time(functools.partial(torch.mm, left, right))
            rates[precision] = None if p50 is None else 2 * n**3 / p50 / 1e6
        self.result["limits"] = {
            "copy_gb_per_s": None if copy is None else 2 * self.scale.copied / copy / 1e3,
            "product_tflops": rates,
        }

    def check(self) -> None:
        """Hold every implementation of every operation against the definition, in child processes."""
        for task in self.scale.checks:
            if self.left() < 2 * ONE:
                self.result["check"].append({"task": task.name, "status": "skipped: no time left"})
                continue
            found = selfcheck.examine(
                [task], self.device, form=self.scale.form, silence=max(2 * ONE, self.left())
            )
            for implementation, outcome in found[task.name].items():
                entry = {"task": task.name, "implementation": implementation}
                entry |= {"status": outcome.status, "reason": outcome.reason}
                self.result["check"].append(entry)
                if outcome.status not in ("ok", "unchecked"):
                    why = f"{outcome.status}: {outcome.reason}"
                    self._refused[task.operation, implementation, task.precision] = why
                    print(
                        f"{task.name}: the {implementation} form is not used, it {why}", flush=True
                    )

    def rollout(self) -> None:
        """Time M Euler steps."""
        for names in _turns():
            for precision, cell in self.scale.rollouts:
                self._cell("rollout", precision, cell, names)

    def best_of_n(self) -> None:
        """Time the whole sampler."""
        for names in _turns():
            for precision, cell in self.scale.best:
                self._cell("best_of_n", precision, cell, names)

    def update(self) -> None:
        """Time training updates."""
        for names in _turns():
            for precision, batch, k in self.scale.updates:
                expected: Tensor | None = None
                for name in names:
                    row: Row = {"operation": "update", "contender": name, "precision": precision}
                    row |= {"rows": batch, "batch": batch, "steps": k, "candidates": 1}
                    do = functools.partial(self._update, row, expected)
                    expected = self._try(row, do, expected)

    # ---- one contender

    def _try(self, row: Row, do: Callable[[], Any], otherwise: Any = None) -> Any:
        """Fill a row in, or note in it why it is empty; return what `do` does."""
        row |= {"p50_us": None, "p99_us": None, "wall_p50_us": None, "limit_fraction": None}
        row |= {"max_error": None, "note": None}
        self.result["rows"].append(row)
        name, implementation = row["contender"], CONTENDERS[row["contender"]]
        needs = COMPILING if name == "torch-compile" and not self.dry else ONE
        why = self._why_not(row, implementation)
        if name == "torch-compile" and row["rows"] not in self.scale.compiled:
            row["note"] = "skipped: torch.compile gets only some sizes"
        elif why is not None:
            row["note"] = f"refused: {why}"
        elif self.left() < needs:
            row["note"] = "skipped: no time left"
        else:
            try:
                return do()
            except Exception as err:  # whatever a library or a driver raises: the others go on
                row["note"] = f"failed: {type(err).__name__}: {' '.join(str(err).split())[:300]}"
            finally:
                gc.collect()  # graphs hold memory
                torch._dynamo.reset()
                torch.cuda.empty_cache()
        return otherwise

    def _why_not(self, row: Row, implementation: str) -> str | None:
        parts = [row["operation"]]
        if row["operation"] == "update":
            parts = list(UPDATE_OPERATIONS)
        for part in parts:
            precision = "fp32" if part in PLAIN_OPERATIONS else row["precision"]
            if (part, implementation, precision) in self._refused and implementation != "reference":
                return f"{part} {self._refused[part, implementation, precision]}"
        return None

    def _cell(self, operation: str, precision: str, cell: Cell, names: Sequence[str]) -> None:
        policy = make_policy(cell.obs_dim, cell.act_dim, self.scale.hidden)
        obs, noise = make_inputs(cell)
        B = cell.batch
        sample = sorted({*range(min(B, 8)), *range(max(0, B - 8), B)})
        expected = truth(policy, obs[sample], noise[sample], cell.steps)
        for name in names:
            row: Row = {"operation": operation, "contender": name, "precision": precision}
            row |= {"rows": B * cell.candidates, **cell._asdict()}

            def race(row: Row = row, name: str = name) -> None:
                with products(precision), torch.no_grad():
                    call = self._sampler(name, precision, cell, policy, obs, noise)
                    actions = call()[sample].float().cpu().numpy()
                    error = max_abs_error(actions, expected, BEST_Q_BOUND[precision])
                    row["max_error"] = error
                    if not error <= BOUND[precision]:
                        row["note"] = f"refused: an action is {error:.3g} from the definition's"
                        return
                    work = flop(cell, policy)
                    held = weights_held(cell, policy) * BYTES[precision]
                    self._fill(row, call, work, held + obs.nbytes + noise.nbytes)

            self._try(row, race)

    def _sampler(
        self, name: str, precision: str, cell: Cell, policy: Policy, obs: Any, noise: Any
    ) -> Call:
        """Return what samples actions [B, A], all its tensors on the device, its weights prepared."""
        device, M, N = self.device, cell.steps, cell.candidates
        x, z, low, high = (
            torch.tensor(a, device=device)
            for a in (obs, noise, policy.action_low, policy.action_high)
        )
        actor, critic = (
            [tuple(torch.tensor(a, device=device) for a in layer) for layer in layers]
            for layers in (policy.actor, policy.critic)
        )
        if name in ("torch-eager", "torch-compile"):
            dtype = chain.DTYPES[precision]
            x, z, low, high = (a.to(dtype) for a in (x, z, low, high))
            actor, critic = (
                [tuple(a.to(dtype) for a in layer) for layer in layers]
                for layers in (actor, critic)
            )

            def plain() -> Tensor:
                if N == 1:
                    return reference.rollout(actor, x, z[:, 0], M)
                return plain_best_of_n(actor, critic, x, z, M, low, high)

            return self._compile(plain) if name == "torch-compile" else plain
        if name == "cublas-graph":
            call = chain_call(actor, critic, x, z, M, low, high, precision)
        else:
            call = fused_call(actor, critic, x, z, M, low, high, precision)
        return Captured(call, (), self._recorder())

    def _compile(self, call: Callable[..., Any]) -> Callable[..., Any]:
        if self.device.type != "cuda":
            # all that a compiler does but the machine code
            return torch.compile(call, backend="aot_eager", dynamic=False)
        return torch.compile(call, mode="reduce-overhead", dynamic=False)

    def _recorder(self) -> Recorder:
        return CudaRecorder(self.device) if self.device.type == "cuda" else Plainly()

    def _update(self, row: Row, expected: Tensor | None) -> Tensor | None:
        """Check and time one contender's update; return the metrics that others must come near."""
        name, precision, k = row["contender"], row["precision"], row["steps"]
        kind = self.device.type
        config = SorlConfig(
            q_coef=10.0, batch_size=row["batch"], hidden=self.scale.hidden, depth=self.scale.depth
        )
        if expected is None:
            with products("fp32"), routed("reference", "fp32"):
                expected = self._updates("torch-eager", config, k)[0]
        rounds = name.startswith("torch") and precision == "bf16"
        with (
            products(precision),
            torch.autocast(kind, torch.bfloat16, enabled=rounds),
            routed(CONTENDERS[name], precision),
        ):
            metrics, call = self._updates(name, config, k)
            error = (metrics - expected).abs() / expected.abs().clamp_min(1)
            worst = int(error.nan_to_num(torch.inf).argmax())
            row["max_error"] = float(error[worst])
            if not row["max_error"] <= METRIC_BOUND[precision]:
                row["note"] = (
                    f"refused: {[*Sorl.metrics][worst]} is {row['max_error']:.3g} from float32's"
                )
                return expected
            # the optimiser reads and writes nine numbers a parameter: nothing moves less
            state = Learner(Sorl(config), *self.dims, torch.Generator()).state()
            parameters = sum(
                x.numel() for key, x in state.items() if key.startswith(("actor/", "critic/"))
            )
            self._fill(row, call, update_flop(row["batch"], Steps(k, k), config), 36 * parameters)
        return expected

    def _updates(self, name: str, config: SorlConfig, k: int) -> tuple[Tensor, Call]:
        """Return the metrics of a contender's first update, and what makes its later ones."""
        random = torch.Generator().manual_seed(0)
        learner = Learner(Sorl(config), *self.dims, random, self.device)
        data = self.data
        key = torch.tensor([1, 0, 0], device=self.device)
        number = key[1]
        plan = learner.method.plan(data.act_dim)
        noise = KeyedNoise(plan, config.batch_size, data.act_dim, len(data), key)

        def update() -> Tensor:
            number.add_(1)
            index, drawn = noise.draw()
            return learner.update(data.take(index), drawn, Steps(k, k))

        if CONTENDERS[name] != "reference":
            learner.count_on_device()
            captured = Captured(update, (), self._recorder())
            return captured.first.float().cpu(), captured
        if name == "torch-eager":
            return update().float().cpu(), update
        compile_losses(learner, self._compile)

        def compiled() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return update()

        return compiled().float().cpu(), compiled

    @functools.cached_property
    def data(self) -> TransitionData:
        """Synthetic transitions on the device."""
        given = make_setting(1).data.transitions
        arrays = {name: x.numpy() for name, x in given._asdict().items() if x is not None}
        return TransitionData(arrays, "synthetic", self.device)

    @property
    def dims(self) -> tuple[int, int]:
        """O and A of the updates."""
        return self.data.obs_dim, self.data.act_dim

    # ---- times

    def _fill(self, row: Row, call: Call, work: float, moved: float) -> None:
        """Time a checked call of `work` FLOP that moves at least `moved` bytes."""
        row["p50_us"], row["p99_us"], row["wall_p50_us"] = self.time(call)
        limits = self.result["limits"]
        if row["p50_us"] is not None:
            arithmetic = work / (limits["product_tflops"][row["precision"]] * 1e6)
            memory = moved / (limits["copy_gb_per_s"] * 1e3)
            row["limit_fraction"] = max(arithmetic, memory) / row["p50_us"]

    def time(self, call: Call) -> tuple[float | None, float | None, float | None]:
        """Return p50 and p99 between CUDA events, and p50 of call and wait; all None if dry.

        Events see what the device does when calls come one after the other; the wait is what someone
        sees who needs the result.
        """
        for _ in range(1 if self.dry else 5):
            call()
        if self.dry:
            return None, None, None
        cuda: Any = torch.cuda
        cuda.synchronize(self.device)
        times: list[float] = []
        end = time.monotonic() + self.scale.seconds
        while len(times) < 20 or (time.monotonic() < end and len(times) < 5000):
            events = [[cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(10)]
            for begin, finish in events:
                begin.record()
                call()
                finish.record()
            cuda.synchronize(self.device)
            times += [1e3 * begin.elapsed_time(finish) for begin, finish in events]

        def waited() -> None:
            call()
            cuda.synchronize(self.device)

        walls = time_calls(waited, self.scale.seconds / 3, least=5)
        measured = np.array(times)
        return quantile(measured, 0.5), quantile(measured, 0.99), 1e6 * quantile(walls, 0.5)


def _turns() -> tuple[list[str], list[str]]:
    """Return who is timed at every size, and who at some of them in the time that is left then."""
    patient = [name for name in CONTENDERS if name == "torch-compile"]
    return [name for name in CONTENDERS if name not in patient], patient


def _describe(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "processors": properties.multi_processor_count,
        "driver": table.driver(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }


def text(result: dict[str, Any]) -> str:
    """Return the result as text."""
    if result["dry_run"]:
        lines = ["dry run on a CPU: nothing was measured"]
    else:
        device, limits = result["device"], result["limits"]
        rates = ", ".join(f"{p} {r:.0f}" for p, r in limits["product_tflops"].items())
        lines = [
            f"{device['name']}, driver {device['driver']}: copies {limits['copy_gb_per_s']:.0f} GB/s, "
            f"products {rates} TFLOP/s"
        ]
    lines.append(
        f"{'operation':10s}{'contender':>15s}{'precision':>10s}{'B':>7s}{'M':>3s}{'N':>4s}{'p50 us':>10s}"
        f"{'p99 us':>10s}{'waited us':>10s}{'of limit':>9s}  error"
    )
    for row in result["rows"]:
        head = (
            f"{row['operation']:10s}{row['contender']:>15s}{row['precision']:>10s}{row['batch']:7d}"
        )
        head += f"{row['steps']:3d}{row['candidates']:4d}"
        for name in ("p50_us", "p99_us", "wall_p50_us"):
            head += f"{'-':>10s}" if row[name] is None else f"{row[name]:10.1f}"
        part = row["limit_fraction"]
        head += f"{'-':>9s}" if part is None else f"{part:9.1%}"
        head += "" if row["max_error"] is None else f"  {row['max_error']:.1e}"
        lines.append(head + (f"  {row['note']}" if row["note"] else ""))
    return "\n".join(lines)


def _device(dry: bool) -> torch.device:
    """Return where to run.

    Raises
    ------
    BadInput
        There is no GPU, or triton has been told to interpret where it should not, or the other way
        round.
    """
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    if dry:
        if not interprets and "triton" in sys.modules:
            raise BadInput(
                "--dry-run needs triton's interpreter, but triton is loaded without it. Set "
                "TRITON_INTERPRET=1"
            )
        os.environ["TRITON_INTERPRET"] = "1"
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput(
            "there is no GPU that this PyTorch can use, and nothing here is estimated. Run it where "
            "there is one, or add --dry-run to see that the command works"
        )
    if interprets:
        raise BadInput("TRITON_INTERPRET is 1, but kernels must be compiled here. Unset it")
    return torch.device("cuda", torch.cuda.current_device())


def run(argv: Sequence[str]) -> int:
    """Run the command line; 1 if a contender failed or was refused."""
    parser = argparse.ArgumentParser(prog="sorl-bench gpu", description=__doc__)
    parser.add_argument("--json", metavar="FILE", type=path_argument, help="write the result here")
    parser.add_argument(
        "--dry-run", action="store_true", help="on a CPU, tiny, through the interpreter; no times"
    )
    parser.add_argument(
        "--seconds", type=float, default=LIMIT, help=f"of the whole command ({LIMIT:g})"
    )
    args = parser.parse_args(argv)
    if not LEAST <= args.seconds <= LIMIT:
        raise BadInput(
            f"seconds is {args.seconds:g}, but must be from {LEAST:g} to {LIMIT:g}. Set --seconds so"
        )
    device = _device(args.dry_run)
    scale = DRY if args.dry_run else FULL
    bench = Bench(device, scale, args.json, seconds=args.seconds)
    if not args.dry_run:
        # the last resort: a kernel that never ends; what was written stays
        faulthandler.dump_traceback_later(args.seconds, exit=True)
    try:
        bench.run()
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(text(bench.result))
    rows = bench.result["rows"]
    bad = [row for row in rows if (row["note"] or "").startswith(("fail", "refu"))]
    measured = [row for row in rows if row["limit_fraction"] is not None]
    return 1 if bad else refuse_beyond("gpu", measured, _described)


def _described(row: Row) -> str:
    return f"{row['contender']} {row['operation']}, {row['precision']}, {row['rows']} rows"
