"""The engine of a cluster: every job a task of Ray, with so many CPUs and so much of a GPU.

A task does what a thread of the local engine does, on whichever node has room: `run_job`, which runs the
same commands as child processes. Runs stand in a folder that all nodes share. When a node falls out, Ray
gives its tasks to another one, and there each run goes on from its last checkpoint.

How Ray was seen to behave (2.60), and what comes of it here: it takes SIGTERM for itself when a program
connects (so the sweep's handler is set after that), gives a plain task one thread of OpenMP (a command's
own environment says otherwise), and runs its workers at a lower priority (`RAY_worker_niceness=0` where a
node is started makes them equal).
"""

import contextlib
import importlib
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..version import __version__
from .job import LOCK_SECONDS, POLL_SECONDS, Outcome, run_job
from .local import MAX_THREADS, Event
from .plan import Job
from .settings import SweepConfig

RETRIES = 20  # of a job whose node falls out
_MARK = ".sweep-"  # begins the names of an engine's files in the sweep's folder


def _task(values: dict[str, Any], cores: int, mark: str, version: str) -> tuple[Any, ...]:
    """Do one job on whatever node this is; a task of Ray."""
    job, begun, stop = Job.from_json(values), Path(f"{mark}-begun"), Path(f"{mark}-stop")
    node = os.uname().nodename
    if not begun.is_dir():
        why = f"node {node} has no {begun.parent}: give an --out that all nodes share"
        return tuple(Outcome(job.name, BadInput.exit_code, why=why))
    if version != __version__:
        why = f"node {node} has sorl-fast {__version__}, but the sweep is of {version}: install one"
        return tuple(Outcome(job.name, BadInput.exit_code, why=why))
    (begun / job.name.replace("/", "|")).touch()
    return tuple(run_job(job, cores=cores, stop=stop.exists, patience=LOCK_SECONDS))


class RayEngine:
    """Runs jobs as tasks of a Ray cluster; used as `LocalEngine` is.

    Parameters
    ----------
    sweep
        Its address, jobs, threads, gpus and jobs_per_gpu.
    jobs
        How many there are to do.
    out
        The sweep's folder, which all nodes share.
    gpu
        Whether the jobs train on GPUs.

    Raises
    ------
    BadInput
        Ray is not installed, there is no such cluster, or no node has room for a job.
    """

    def __init__(self, sweep: SweepConfig, jobs: int, out: Path, gpu: bool) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError as err:
            raise BadInput(
                "--engine ray needs a package that is not here: pip install 'sorl-fast[cluster]'"
            ) from err
        self._ray = ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody of a cluster it starts
        started = sweep.address == "local"
        try:
            ray.init(
                address=sweep.address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({"include_dashboard": False} if started else {}),
            )
        except (ConnectionError, ValueError, RuntimeError) as err:
            raise BadInput(
                f"address is {sweep.address!r}, but no Ray cluster answers there: {_first(err)}. Start one "
                "with `ray start --head`, or give --address local"
            ) from err
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        self._total = sum(cpus)
        share = sum(cpus) // max(1, min(jobs, sweep.jobs or jobs))
        self._cores = sweep.threads or max(1, min(MAX_THREADS, share, max(cpus, default=1)))
        self._part = 1 / sweep.jobs_per_gpu if gpu else 0.0
        self._at_once = sweep.jobs or jobs
        gpus = [node.get("GPU", 0.0) for node in nodes]
        if not any(n >= self._cores and g >= self._part for n, g in zip(cpus, gpus, strict=True)):
            ray.shutdown()
            has = [f"{n}{f' and {g:g} GPUs' * gpu}" for n, g in zip(cpus, gpus, strict=True)]
            raise BadInput(
                f"no node of the cluster has {self._cores} CPUs{f' and {self._part:.3g} GPU' * gpu} for "
                f"a run: they have {', '.join(has) or 'none'}. Set --threads"
                f"{', --jobs-per-gpu, or --device cpu' * gpu}"
            )
        self._mark = out / f"{_MARK}{uuid.uuid4().hex[:8]}"
        self._begun, self._stop = Path(f"{self._mark}-begun"), Path(f"{self._mark}-stop")
        self._begun.mkdir(parents=True)

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stop.touch()  # a task that nobody waits for any more ends by it
        self._ray.shutdown()
        with contextlib.suppress(OSError):
            for path in (*self._begun.iterdir(), self._stop):
                path.unlink(missing_ok=True)
            self._begun.rmdir()

    @property
    def room(self) -> str:
        """What it has room for, in words."""
        part = "a GPU" if self._part == 1 else f"{self._part:.3g} of a GPU"
        gpu = f" and {part}" if self._part else ""
        return f"on Ray, {self._total} CPUs in all, {self._cores}{gpu} each"

    def stop(self) -> None:
        """Ask every job to save and end; none is begun any more."""
        self._stop.touch()

    def kill(self) -> None:
        """End every job at once: with this program's connection."""
        self._stop.touch()

    def run(self, jobs: Sequence[Job], seconds: float) -> Iterator[Event | None]:
        """Do the jobs, in their order; yield what happens, and None after `seconds` without news."""
        ray = self._ray
        remote = ray.remote(_task).options(
            num_cpus=self._cores, num_gpus=self._part, max_retries=RETRIES, retry_exceptions=False
        )
        waiting, begun = list(jobs), set[str]()
        running: dict[Any, Job] = {}
        while running or (waiting and not self._stop.exists()):
            while waiting and len(running) < self._at_once and not self._stop.exists():
                job = waiting.pop(0)
                mark = str(self._mark)
                running[remote.remote(job.to_json(), self._cores, mark, __version__)] = job
            for job in running.values():
                if job.name not in begun and self._has_begun(job):
                    begun.add(job.name)
                    yield Event(job.name, None)
            ready, _ = ray.wait([*running], num_returns=1, timeout=max(seconds, POLL_SECONDS))
            for ref in ready:
                job = running.pop(ref)
                yield Event(job.name, self._outcome(ref, job))
            if not ready:
                yield None

    def _has_begun(self, job: Job) -> bool:
        return (self._begun / job.name.replace("/", "|")).exists()

    def _outcome(self, ref: Any, job: Job) -> Outcome:
        try:
            return Outcome(*self._ray.get(ref))
        except self._ray.exceptions.RayError as err:
            return Outcome(job.name, 1, why=f"Ray: {_first(err)}")


def _first(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return lines[0] if lines else type(err).__name__
