"""The engine of one machine: as many jobs at a time as there is room for, each on cores of its own."""

import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..cores import available_cores, usable_cores
from ..errors import BadInput
from .job import Outcome, run_job
from .plan import Job
from .settings import SweepConfig

MAX_THREADS = 8  # that a training on the CPU makes use of


class Slot(NamedTuple):
    """Room for one job."""

    cores: int
    pinned: frozenset[int] | None  # which; None: the kernel may choose
    gpu: str | None  # CUDA's number of it


class Event(NamedTuple):
    """What the table is told of: a job has begun, or has ended."""

    name: str
    outcome: Outcome | None  # None: it has begun


def slots_of(
    sweep: SweepConfig, jobs: int, gpus: Sequence[str] = (), cores: Sequence[int] | None = None
) -> list[Slot]:
    """Return the room that this machine has for `jobs` jobs.

    Parameters
    ----------
    sweep
        Its jobs, threads and jobs_per_gpu, 0 for what is left to this.
    jobs
        How many there are to do, at least 1.
    gpus
        The GPUs that they train on.
    cores
        The cores; by default those that this process may use. Where a quota allows fewer, none is pinned.
    """
    usable = sorted(usable_cores()) if cores is None else [*cores]
    count = available_cores() if cores is None else len(usable)
    room = len(gpus) * sweep.jobs_per_gpu or count
    at_once = min(jobs, sweep.jobs or (max(1, count // sweep.threads) if sweep.threads else room))
    if gpus:
        at_once = min(at_once, room)
    each = sweep.threads or max(1, min(MAX_THREADS, count // at_once))
    pinned = count == len(usable) and each * at_once <= count
    return [
        Slot(
            each,
            frozenset(usable[i * each : (i + 1) * each]) if pinned else None,
            gpus[i % len(gpus)] if gpus else None,
        )
        for i in range(at_once)
    ]


def gpus_of(sweep: SweepConfig, device: str) -> list[str]:
    """Return the GPUs of this machine that a sweep trains on; BadInput if there are fewer."""
    if not sweep.gpus and device == "cpu":
        return []
    if device not in ("cpu", "cuda"):
        raise BadInput(
            f"device is {device!r}, but must be cpu or cuda: a sweep shares GPUs out by --gpus"
        )
    import torch

    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    there = torch.cuda.device_count()
    wanted = sweep.gpus or there
    if there < max(wanted, 1):
        raise BadInput(
            f"gpus is {sweep.gpus}, but this machine has {there} that torch can use. Set --gpus, or "
            "--device cpu"
        )
    return shown.split(",")[:wanted] if shown else [str(i) for i in range(wanted)]


class LocalEngine:
    """Runs jobs in threads of this process, a child process each.

    Use it as a context manager; `run` yields what happens, and returns when all is done or was stopped.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._stop, self._kill = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    @property
    def room(self) -> str:
        """What it has room for, in words."""
        n, slot = len(self._slots), self._slots[0]
        cores = f"{slot.cores} core{'s' if slot.cores > 1 else ''}"
        gpus = sorted({slot.gpu for slot in self._slots if slot.gpu is not None})
        return f"{n} at a time, {cores} each" + (f", on GPU {', '.join(gpus)}" if gpus else "")

    def stop(self) -> None:
        """Ask every job to save and end; none is begun any more."""
        self._stop.set()

    def kill(self) -> None:
        """End every job at once."""
        self._stop.set()
        self._kill.set()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def run(self, jobs: Sequence[Job], seconds: float) -> Iterator[Event | None]:
        """Do the jobs, in their order; yield what happens, and None after `seconds` without news."""
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        threads = self._threads = [
            threading.Thread(target=self._work, args=(slot, waiting, events), daemon=True)
            for slot in self._slots
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or not events.empty():
            try:
                yield events.get(timeout=seconds)
            except queue.Empty:
                yield None

    def _work(
        self,
        slot: Slot,
        waiting: "queue.SimpleQueue[Job]",
        events: "queue.SimpleQueue[Event]",
    ) -> None:
        env = {} if slot.gpu is None else {"CUDA_VISIBLE_DEVICES": slot.gpu}
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                job = waiting.get_nowait()
                events.put(Event(job.name, None))
                try:
                    outcome = run_job(
                        job,
                        cores=slot.cores,
                        stop=self._stop.is_set,
                        kill=self._kill.is_set,
                        env=env,
                        pinned=slot.pinned,
                    )
                except Exception as err:  # a fault of ours in one job is no end of the others
                    outcome = Outcome(job.name, 1, why=repr(err))
                events.put(Event(job.name, outcome))
                continue
            return
