"""One job of a sweep, start to end: the commands that are left, each a process of its own.

The engines differ in where and when this runs, and in nothing else.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from .. import atomic
from ..cores import unpin
from ..errors import BadInput, Diverged, Stopped
from .plan import Job
from .state import steps_left

POLL_SECONDS = 0.2  # between two looks at a command and at whether to stop
SAVE_SECONDS = 120.0  # that a command which was asked to stop has for it
LOCK_SECONDS = 120.0  # that a run's folder may still be held by a machine that has fallen out


class Outcome(NamedTuple):
    """How a job ended."""

    name: str
    code: int  # the exit code of its last command; below 0: the signal that killed it
    stopped: bool = False  # it was asked to stop, and the same sweep goes on with it
    why: str = ""  # in a line, where it failed

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.stopped and self.code == 0


def run_job(
    job: Job,
    *,
    cores: int,
    stop: Callable[[], bool],
    kill: Callable[[], bool] = lambda: False,
    env: Mapping[str, str] | None = None,
    pinned: Collection[int] | None = None,
    patience: float = 0.0,
) -> Outcome:
    """Train and evaluate one run, as far as that is left to do.

    Parameters
    ----------
    job
        The run.
    cores
        Threads of the training and processes of the evaluations, at least 1.
    stop
        Looked at every `POLL_SECONDS`: True asks the command to save and end.
    kill
        Likewise: True ends it at once.
    env
        Variables beside this process's own.
    pinned
        The cores to run on; None: any.
    patience
        Seconds to wait for whoever still holds the run's folder.
    """
    if pinned is None:
        unpin()
    else:  # this thread's, which what it starts inherits
        with contextlib.suppress(OSError):  # cores that were taken away since
            os.sched_setaffinity(0, pinned)
    commands, code = job.commands(cores), 0
    try:
        left = steps_left(job)
        if left:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            _wait_for_folder(Path(job.folder), patience, stop)
        for number in left:
            if stop():
                return Outcome(job.name, Stopped.exit_code, stopped=True)
            with job.log.open("ab", buffering=0) as log:
                code, asked = _run(commands[number], cores, log, stop, kill, env or {})
            if asked or code == Stopped.exit_code:
                return Outcome(job.name, code, stopped=True)
            if code:
                return Outcome(job.name, code, why=_why(code))
    except OSError as err:
        return Outcome(job.name, 1, why=f"{err.filename}: {err.strerror or err}")
    if left and (missing := steps_left(job)):
        what = "training" if missing[0] == 0 else "evaluation"
        return Outcome(job.name, 1, why=f"its {what} ended well, but left nothing complete")
    return Outcome(job.name, code)


def _wait_for_folder(folder: Path, patience: float, stop: Callable[[], bool]) -> None:
    """Wait until no process trains in the folder; if it takes too long, the training will say so."""
    until = time.monotonic() + patience
    while time.monotonic() < until and not stop():
        try:
            with (folder / ".lock").open("a") as file:
                if atomic.lock(file):
                    return
        except OSError:
            return  # no folder yet
        time.sleep(POLL_SECONDS)


def _run(
    words: list[str],
    cores: int,
    log: IO[bytes],
    stop: Callable[[], bool],
    kill: Callable[[], bool],
    env: Mapping[str, str],
) -> tuple[int, bool]:
    """Run one command; return its exit code, and whether it was asked to stop."""
    log.write(f"$ sorl-fast {' '.join(words)}\n".encode())
    # Ray gives a plain task one thread of OpenMP, a cluster's profile any number
    threads = {"OMP_NUM_THREADS": str(cores)}
    child = subprocess.Popen(
        [sys.executable, "-m", "sorl_fast.sweep.child", str(os.getpid()), *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **threads, **env},
        start_new_session=True,  # a Ctrl-C at the terminal is the sweep's to pass on
    )
    asked = 0.0
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(POLL_SECONDS), asked > 0
            if stop() and not asked:
                asked = time.monotonic()
                child.send_signal(signal.SIGTERM)
            if kill() or (asked and time.monotonic() > asked + SAVE_SECONDS):
                child.kill()
    finally:
        if child.poll() is None:  # this thread is being ended by other means
            child.kill()
            child.wait()


def _why(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in [*signal.Signals] else f"signal {-code}"
        hint = ": memory may have run out, use fewer --jobs" if -code == signal.SIGKILL else ""
        return f"killed by {name}{hint}"
    known = {Diverged.exit_code: "diverged", BadInput.exit_code: "bad input"}
    return known.get(code, f"exit code {code}")


def last_words(job: Job) -> str:
    """Return the last line of a job's log, shortened; empty if there is none."""
    try:
        lines = job.log.read_text("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
