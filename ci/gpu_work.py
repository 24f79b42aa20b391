"""The work of the parts of ci/gpu.sh, each in a process of its own: `gpu_work.py NAME FOLDER [--dry-run]`.

What a part finds out it writes to FOLDER/NAME.json as it goes.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = 77  # exit code
AGREE = 1e-3  # how far losses of two kinds of update may be apart, relative to them, or to 1
CORES = min(16, len(os.sched_getaffinity(0)))  # that tests and checks take
COMPARED = 10  # updates; rounding errors grow from update to update
DRY_TESTS = ("tests/kernels/test_dense.py", "tests/kernels/test_products.py")


def write_json(file: Path, value: Any) -> None:
    """Write a file, whole or not at all."""
    new = file.with_name(file.name + ".new")
    new.write_text(json.dumps(value, indent=1) + "\n")
    new.replace(file)


def found(name: str, work: Path) -> Any:
    """Return what a part has written down so far; None: nothing."""
    if name == "kernels":
        return outcomes(work)
    with contextlib.suppress(FileNotFoundError):
        return json.loads((work / f"{name}.json").read_text())
    return None


# --- machine and build -------------------------------------------------------------------------------


def machine(work: Path, dry: bool) -> int:
    """Say what is here."""
    from sorl_fast import doctor

    there = doctor.machine(rendered=False)
    there["compiler"] = _said("g++", "--version")
    there["nvidia_smi"] = _said("nvidia-smi", "-L")
    write_json(work / "machine.json", there)
    print(json.dumps(there, indent=1))
    if there["gpus"] or dry:
        return 0
    print("torch finds no GPU on this machine")
    return 1


def _said(*command: str) -> str | None:
    """Return the first line that a command prints; None where it is not there."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
        return next(iter((done.stdout + done.stderr).splitlines()), "")
    return None


def build(work: Path, dry: bool) -> int:
    """Compile the native module into the parts' package."""
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    folders = ["--build-lib", str(work / "package"), "--build-temp", str(work / "objects")]
    # setup.py is the repository's own: its folder is where it looks for its sources
    if code := subprocess.run([*command, *folders], cwd=ROOT, check=False).returncode:
        return code
    if not any((work / "package" / "sorl_fast").glob("_native*")):
        print("setup.py ended well, but there is no native module")
        return 1
    native = importlib.import_module("sorl_fast._native")
    sets = {precision: list(native.isas(precision)) for precision in ("fp32", "bf16", "int8")}
    write_json(work / "build.json", {"instruction_sets": sets})
    print("the native module is built:", sets)
    return 0


# --- the kernels' tests ------------------------------------------------------------------------------


def kernels(work: Path, dry: bool) -> int:
    """Run the kernels' tests in as many processes as there are cores: most of their time is compiling."""
    if importlib.util.find_spec("pytest") is None:
        print("pytest is not installed, and so the kernels' tests were not run")
        return SKIPPED
    cores = 1 if dry else CORES
    children = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(ROOT)),
                *("-p", "no:cacheprovider", "-p", "no:terminal", "-p", "gpu_pytest"),
                *("--import-mode=importlib", "-o", "markers=slow"),
                "--continue-on-collection-errors",
                *(DRY_TESTS if dry else ("tests/kernels",)),
            ],
            cwd=ROOT,
            env=os.environ
            | {"GPU_SHARE": f"{i}/{cores}", "GPU_EVENTS": str(work / f"kernels-{i}.jsonl")},
        )
        for i in range(cores)
    ]
    codes = [child.wait() for child in children]
    known = outcomes(work)
    print(
        f"{known['passed']} passed, {len(known['skipped'])} skipped, {len(known['failed'])} failed"
    )
    return 1 if any(codes) or not known["passed"] else 0


def outcomes(work: Path) -> dict[str, Any]:
    """Return what has become of the tests: also of those that a process was at when it ended."""
    known: dict[str, Any] = {"selected": 0, "passed": 0, "skipped": {}, "failed": {}}
    known["unfinished"] = []
    for file in sorted(work.glob("kernels-*.jsonl")):
        doing = None
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):  # half a line: the process was killed
                event = json.loads(line)
                what, test = event["event"], event.get("test")
                if what == "selected":
                    known["selected"] += event["count"]
                elif what == "start":
                    doing = test
                elif what == "passed":
                    known["passed"] += 1
                else:
                    known[what][test] = event["reason"]
                if what != "start":
                    doing = None
        if doing is not None:
            known["unfinished"].append(doing)
    return known


# --- the self-check ----------------------------------------------------------------------------------


def doctor(work: Path, dry: bool) -> int:
    """Make the checks of `sorl-fast doctor --quick`, side by side, for most of their time is compiling.

    So no dispatch table is kept: its times would be of a machine that does other things beside.
    """
    from sorl_fast import doctor
    from sorl_fast.ops import selfcheck
    from sorl_fast.ops.implementations import DEFAULT, Task, tasks

    there = doctor.machine(rendered=False)

    def check(device: str, task: Task) -> list[doctor.Check]:
        found = selfcheck.examine([task], torch_device(device), form="short")
        return [
            doctor.Check(name, device, task.operation, task.precision, result.status, result.reason)
            for name, result in found[task.name].items()
        ]

    jobs: list[Callable[[], list[doctor.Check]]] = [
        functools.partial(check, gpu["device"], task)
        for gpu in there["gpus"]
        for task in tasks(DEFAULT, doctor.GPU_PRECISIONS)
    ]
    jobs.append(lambda: doctor.check_samplers(there, True, print))
    jobs.append(lambda: doctor.check_cpu_training(True, print))
    report = doctor.Report(there, [], [], doctor.notes(there))
    with ThreadPoolExecutor(CORES) as pool:
        for done in as_completed([pool.submit(job) for job in jobs]):
            report.checks.extend(done.result())
            write_json(work / "doctor.json", report.to_dict())
            for c in done.result():
                print(c.device, c.backend, c.task, c.precision, c.status, c.reason)
    print(doctor.text(report))
    return 0 if report.agrees else 1


def torch_device(name: str) -> Any:
    """Return the device of a name; torch may take long to import, or be missing."""
    import torch

    return torch.device(name)


# --- a short training --------------------------------------------------------------------------------


def train(work: Path, dry: bool) -> int:
    """Make the same updates as they are written and recorded as graphs, by PyTorch and by the kernels.

    The minibatches and noise of an update follow from its number: all four must have the same losses.
    """
    import torch
    from sorl_fast.bench.gpu_contenders import Plainly

    from sorl_fast.ops.graphs import CudaRecorder

    class Counting:
        """A recorder that counts what it has recorded."""

        def __init__(self, recorder: Any) -> None:
            self.run, self._recorder, self.count = recorder.run, recorder, 0

        def record(self, function: Callable[[], Any]) -> Any:
            replay = self._recorder.record(function)
            self.count += 1
            return replay

    device = torch.device("cpu" if dry else "cuda")
    file = synthetic(work, 28, 5, 300 if dry else 20_000)
    runs: list[dict[str, Any]] = []
    bad = 0
    for backend in ("torch", "triton"):
        for name in ("eager", "captured"):
            graphs = name == "captured" and not dry
            recorder = Counting(CudaRecorder(device) if graphs else Plainly())
            run: dict[str, Any] = {"backend": backend, "updates": name, "status": "ok"}
            try:
                losses, run["updates_per_second"] = updates(backend, device, file, recorder, dry)
                run["graphs"] = recorder.count if graphs else 0
                if not runs:
                    expected = losses
                apart = abs(losses - expected) / abs(expected).clip(1)
                run["apart"] = float(apart[:COMPARED].max())
                if not run["apart"] <= AGREE:  # a NaN is not
                    run["status"] = f"its losses are {run['apart']:.1e} from the first run's"
                elif graphs and not recorder.count:
                    run["status"] = "no update could be recorded"
            except Exception as err:  # whatever a library or a driver raises: the others go on
                run["status"] = f"{type(err).__name__}: {' '.join(str(err).split())[:300]}"
            bad += run["status"] != "ok"
            runs.append(run)
            write_json(work / "train.json", runs)
            print(json.dumps(run))
            if len(runs) == 1 and bad:
                return 1  # nothing to compare the others with
    return 1 if bad else 0


def synthetic(work: Path, O: int, A: int, T: int) -> Path:
    """Write transitions of random numbers as a user's own file; return it."""
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(
        work / "synthetic.npz",
        observations=rng.normal(size=(T, O)).astype(np.float32),
        actions=np.tanh(rng.normal(size=(T, A))).astype(np.float32),
        rewards=rng.uniform(-1, 0, T).astype(np.float32),
        masks=np.ones(T, np.float32),
        next_observations=rng.normal(size=(T, O)).astype(np.float32),
    )
    return work / "synthetic.npz"


def updates(
    backend: str, device: Any, file: Path, recorder: Any, dry: bool
) -> tuple[Any, float | None]:
    """Return the metrics of some updates and how many are made a second; None if dry."""
    import torch

    from sorl_fast import ops
    from sorl_fast.data.dataset import load_data
    from sorl_fast.learn.algorithms.sorl import Sorl, SorlConfig
    from sorl_fast.learn.capture import CapturedUpdates
    from sorl_fast.learn.learner import Learner

    os.environ["SORL_OPS"] = backend
    ops.forget()
    ops.configure(precision="fp32", device=device)
    small = {"hidden": 64, "depth": 1, "batch_size": 4} if dry else {}
    # few numbers of steps: each pair of them is a graph
    method = Sorl(SorlConfig(q_coef=1.0, m_disc=2, m_btt=2, **small))
    data = load_data("synthetic", file, device=device).train
    host = torch.Generator().manual_seed(0)
    learner = Learner(method, data.obs_dim, data.act_dim, host, device)
    count = 2 if dry else 100
    made = CapturedUpdates(learner, data, 0, host, 2 * count, recorder)
    for _ in range(count):
        made.make()
    losses = made.look()  # it waits for the device
    start = time.perf_counter()
    for _ in range(0 if dry else count):
        made.make()
    if dry:
        return losses, None
    made.look()
    return losses, count / (time.perf_counter() - start)


def main(argv: Sequence[str] | None = None) -> int:
    """Do one part's work."""
    works = {work.__name__: work for work in (machine, build, kernels, doctor, train)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=works)
    parser.add_argument("work", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args(argv)
    print(f"Python {platform.python_version()} at {sys.executable}")
    return works[args.name](args.work, args.dry_run)


if __name__ == "__main__":
    sys.exit(main())
