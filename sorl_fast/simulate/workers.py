"""The worker processes that simulate: to evaluate a policy, and to collect data.

They are started by multiprocessing's spawn method, so that a script must keep what starts them behind
`if __name__ == "__main__":`. Each has one core's worth of threads and renders nothing. Signals are the
parent's to handle, and no worker outlives it. (Code that may crash or hang runs in children of another
kind, `sorl_fast.isolated`, which any script may start.)
"""

import atexit
import contextlib
import importlib.util
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from ..cores import unpin
from ..errors import BadInput
from ..isolated import how_it_ended

TICK = 0.5  # seconds that a pool's owner waits at most for a word

# A worker has one core, bound nowhere, and renders nothing, whatever the user's own processes have:
# MuJoCo and dm_control import what MUJOCO_GL names, and fail where it is not there.
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_PROC_BIND": "false",
    "MUJOCO_GL": "disable",
}


class Worker(Protocol):
    """What lives in a worker process. It may raise BadInput, which reaches the pool's owner as it is."""

    def prepare(self, shared: Any) -> None:
        """Make ready for tasks, all of which have `shared` in common."""

    def do(self, task: Any) -> Any:
        """Do one task."""


class WorkerDied(Exception):
    """A worker process has ended, and nobody asked it to.

    Attributes
    ----------
    how
        Such as "was killed by SIGKILL".
    task
        What it was at; None while it prepared.
    """

    def __init__(self, how: str, task: Any) -> None:
        super().__init__(f"a worker process {how}")
        self.how = how
        self.task = task


class WorkerFailed(Exception):
    """A worker raised something else than BadInput. The message is its traceback."""


class Pool:
    """Processes with a worker each, started when there is work and kept for more of it.

    Use it as a context manager. After an error close it: some workers may be in the midst of a task.

    Parameters
    ----------
    make
        Makes the worker, in its process; a class or function of a module.
    args
        Its arguments.
    workers
        Number of processes, at least 1; never more than there are tasks.
    """

    def __init__(self, make: Callable[..., Worker], *args: Any, workers: int) -> None:
        self._make = make
        self._args = args
        self._workers = workers
        self._processes: list[_Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes at once; more work starts new ones."""
        atexit.unregister(self.close)
        while self._processes:
            self._processes.pop().end()

    def prepare(self, shared: Any = None) -> None:
        """Have one process prepare, and raise what is wrong. Errors: as `run`."""
        self._start(1)
        self._processes[0].send("prepare", shared)
        self._processes[0].receive()

    def run(self, tasks: Sequence[Any], shared: Any = None) -> Iterator[tuple[Any, Any] | None]:
        """Do tasks, and yield each with its result as it comes.

        None is yielded first, and whenever nothing has come for half a second.

        Parameters
        ----------
        tasks
            What `Worker.do` gets, in this order, whichever process is free.
        shared
            What `Worker.prepare` gets, once a process.

        Raises
        ------
        BadInput
            A worker raised it.
        WorkerDied, WorkerFailed
            One ended, or raised something else.
        """
        self._start(min(self._workers, len(tasks)))
        waiting = iter(tasks)
        busy: dict[Any, _Process] = {}  # by the pipe that answers
        for process in self._processes[: len(tasks)]:
            process.send("prepare", shared)
            busy[process.pipe] = process
        yield None
        while busy:
            ready = connection.wait(list(busy), timeout=TICK)
            if not ready:
                yield None
            for pipe in ready:
                process = busy[pipe]
                done, result = process.receive()
                try:
                    process.send("do", next(waiting))
                except StopIteration:
                    del busy[pipe]
                if done.method == "do":
                    yield done.value, result

    def _start(self, workers: int) -> None:
        for process in [p for p in self._processes if not p.is_alive()]:
            self._processes.remove(process)
            process.end()
        # Before multiprocessing's own hook, which would wait for workers that heed no signal.
        atexit.unregister(self.close)
        atexit.register(self.close)
        with _signals_left_to_the_parent(), worker_environment():
            while len(self._processes) < workers:
                self._processes.append(_Process(self._make, self._args))


class _Message(NamedTuple):
    """A call of a worker's method."""

    method: str
    value: Any


class _Process:
    """One worker's process, seen by the parent."""

    def __init__(self, make: Callable[..., Worker], args: tuple[Any, ...]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe: connection.Connection[Any, Any]
        self.pipe, theirs = spawn.Pipe()
        self._process: BaseProcess = spawn.Process(
            target=_serve, args=(theirs, make, args), daemon=True
        )
        self._process.start()
        theirs.close()  # so that the child's end closes with the child
        self._sent = _Message("", None)

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def end(self) -> None:
        """Kill it: it holds nothing worth saving, and may be deep in a task."""
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def send(self, method: str, value: Any) -> None:
        self._sent = _Message(method, value)
        with contextlib.suppress(OSError):  # that it has died is met when its answer is read
            self.pipe.send(self._sent)

    def receive(self) -> tuple[_Message, Any]:
        """Wait for the answer; return what was sent and the answer, or raise the worker's error."""
        try:
            result, error = self.pipe.recv()
        except (EOFError, OSError) as err:
            self._process.join(TICK)
            task = self._sent.value if self._sent.method == "do" else None
            raise WorkerDied(how_it_ended(self._process.exitcode or 0), task) from err
        if error is not None:
            raise error
        return self._sent, result


@contextlib.contextmanager
def _signals_left_to_the_parent() -> Iterator[None]:
    """Start processes that Ctrl-C and a service manager's SIGTERM do not reach.

    Both go to the whole process group; only the parent knows what to do about them. A blocked signal
    is inherited, from the first instruction of the child on.
    """
    resource_tracker.ensure_running()  # its own start would lift the block
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _glfw_by_name() -> dict[str, str]:
    """Name glfw's library, which Gymnasium's MuJoCo imports even where nothing is rendered.

    Without a name the import starts a Python of its own to find it: a process that outlives a worker killed
    meanwhile, with a traceback to say so.
    """
    found = importlib.util.find_spec("glfw")
    if found is None or found.origin is None:
        return {}
    library = Path(found.origin).with_name("x11") / "libglfw.so"
    return {"PYGLFW_LIBRARY": str(library)} if library.exists() else {}


@contextlib.contextmanager
def worker_environment() -> Iterator[None]:
    """Let processes started in this block have WORKER_ENVIRONMENT, and all of this process's cores."""
    environment = WORKER_ENVIRONMENT | ({} if os.environ.get("PYGLFW_LIBRARY") else _glfw_by_name())
    before = {name: os.environ.get(name) for name in environment}
    unpin()
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- in the worker's process ----------------------------------------------------------------------


def _serve(
    pipe: "connection.Connection[Any, Any]", make: Callable[..., Worker], args: tuple[Any, ...]
) -> None:
    """Answer the parent's messages until it is gone."""
    _exit_with_parent()
    worker = make(*args)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            method, value = pipe.recv()
            pipe.send(_answer(worker, method, value))


def _answer(worker: Worker, method: str, value: Any) -> tuple[Any, Exception | None]:
    """Return a result, or the error to raise in the parent."""
    try:
        return getattr(worker, method)(value), None
    except BadInput as err:
        return None, err
    except Exception:
        return None, WorkerFailed(traceback.format_exc())


def _exit_with_parent() -> None:
    """Leave as soon as the parent is gone, however that went: nobody is to write behind its successor."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
