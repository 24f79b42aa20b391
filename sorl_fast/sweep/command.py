"""`sorl-fast sweep`: its flags and its file to jobs, an engine, a table, an exit code."""

import argparse
import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import atomic
from ..config import TrainConfig
from ..envs import dataset_name
from ..errors import BadInput, Stopped
from ..flags import given, make
from ..stopping import stop_flag
from .cluster import RayEngine
from .job import last_words
from .local import LocalEngine, gpus_of, slots_of
from .plan import Job, check_data, check_kept, make_jobs
from .settings import OWN_OF_TRAINING, SweepConfig
from .state import steps_left
from .table import TERMINAL_SECONDS, Table

LOCK = ".sweep.lock"
FAILED = 1  # exit code: a run has failed


def run_sweep(args: argparse.Namespace, rest: Sequence[str]) -> int:
    """Do what the command line asks for; return the exit code.

    Raises
    ------
    BadInput
        Anything that can be found out before the first run starts.
    Stopped
        SIGTERM or SIGINT arrived, and every run has saved.
    """
    sweep = make(SweepConfig, given(args, SweepConfig))
    run = given(args, TrainConfig)
    run = {name: value for name, value in run.items() if name not in OWN_OF_TRAINING}
    jobs = make_jobs(sweep, run, rest)
    for job in jobs:
        check_kept(job)
    left = [job for job in jobs if steps_left(job)]
    if args.list:
        for job in left:
            commands = job.commands(sweep.threads)
            print(" && ".join(shlex.join(["sorl-fast", *words]) for words in commands))
        return 0
    if left and run.get("download"):
        _download(left)
    check_data(left)
    with _alone(Path(sweep.out)):
        return _do(sweep, run, jobs, left, shown=args.progress)


def _do(
    sweep: SweepConfig, run: dict[str, Any], jobs: Sequence[Job], left: Sequence[Job], shown: bool
) -> int:
    done = [job.name for job in jobs if job not in left]
    table = Table(jobs, done, shown=shown)
    if left:
        device = run.get("device", "cuda" if sweep.gpus else "cpu")
        with _engine(sweep, len(left), device) as engine:
            message = f"stopped; all is saved in {sweep.out}. The same command goes on"
            # only now: a cluster's client takes the signals for itself when it connects
            with stop_flag(message, second_interrupts=True) as stop:
                if shown:
                    print(f"{len(left)} of {len(jobs)} runs to do, {engine.room}", flush=True)
                _watch(engine, left, table, stop)
                table.show(last=True)
                if stop or any(outcome.stopped for outcome in table.outcomes.values()):
                    _name_failures(jobs, table)
                    raise Stopped(message)
    if _name_failures(jobs, table):
        return FAILED
    runs = f"{len(jobs)} runs are" if len(jobs) > 1 else "1 run is"
    print(f"{runs} done. What came of them: sorl-fast report {shlex.quote(sweep.out)}")
    return 0


def _watch(engine: LocalEngine | RayEngine, jobs: Sequence[Job], table: Table, stop: Any) -> None:
    asked = False
    try:
        table.show()
        for event in engine.run(jobs, TERMINAL_SECONDS):
            if event is not None and event.outcome is not None:
                table.end(event.outcome)
            elif event is not None:
                table.begin(event.name)
            table.show()
            if stop and not asked:
                asked = True
                engine.stop()
    except KeyboardInterrupt:
        engine.kill()
        raise


def _name_failures(jobs: Sequence[Job], table: Table) -> bool:
    """Print each run that has failed, why, and its log; return whether there is one."""
    failed = [
        (job, outcome)
        for job in jobs
        if (outcome := table.outcomes.get(job.name)) and not outcome.done and not outcome.stopped
    ]
    for job, outcome in failed:
        print(f"{job.name} failed ({outcome.why}): {last_words(job)}\n  log: {job.log}")
    if failed:
        print(f"{len(failed)} of {len(jobs)} runs failed; the same command tries them again.")
    return bool(failed)


def _engine(sweep: SweepConfig, jobs: int, device: str) -> LocalEngine | RayEngine:
    if sweep.engine == "ray":
        return RayEngine(sweep, jobs, Path(sweep.out).absolute(), device != "cpu")
    return LocalEngine(slots_of(sweep, jobs, gpus_of(sweep, device)))


def _download(jobs: Sequence[Job]) -> None:
    """Fetch each data set that is not there, once."""
    from ..data.dataset import load_data

    found = {(dataset_name(job.env), job.train["data"]): job.env for job in jobs}
    for (_, data), env in found.items():
        load_data(env, data, download=True)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other sweeps out of the folder meanwhile."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / LOCK).open("w")
    except OSError as err:
        raise BadInput(
            f"--out {out} cannot be written: {err.strerror or err}. Choose another folder"
        ) from err
    with file:
        if not atomic.lock(file):
            raise BadInput(
                f"another sweep is running in {out}. Stop it or wait for it, or choose another --out"
            )
        yield
