"""Make an OGBench data set: episodes in parallel processes, resumable, the same for any number.

While a collection runs, every finished episode is a file of the hidden folder `.{env}.collect`
beside the result. Once all are there, `{env}-val.npz` and then `{env}.npz` are written, each whole or
not at all, and the folder is removed. Whatever is killed when: the same command goes on from what is
there. What a finished file is, is written in the file itself, as the comment of the zip archive.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import multiprocessing
import shutil
import signal
import tempfile
import threading
import time
import traceback
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .. import atomic
from ..config import CollectConfig
from ..envs import find_recipe, open_source
from ..envs.recipe import RECIPE_VERSION, Episode, Recipe, collect_episode
from ..errors import BadInput, Stopped
from ..isolated import exit_with_parent, worker_environment
from ..progress import progress as show_progress
from ..progress import say

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_POLL_SECONDS = 0.5  # how long a request to stop may go unseen


@dataclass(frozen=True)
class CollectReport:
    """What `collect` did.

    Attributes
    ----------
    train_path, val_path
        The two files.
    episodes, val_episodes
        Episodes in each.
    steps
        Steps simulated by this call, in the episodes that it finished.
    seconds
        Wall-clock time of this call, start of the processes and writing of the files included.
    resumed_episodes
        Episodes that an earlier, interrupted call had left.
    already_done
        Both files were there, made with the same arguments; nothing was changed.
    """

    train_path: Path
    val_path: Path
    episodes: int
    val_episodes: int
    steps: int
    seconds: float
    resumed_episodes: int
    already_done: bool


def collect(config: CollectConfig, *, progress: bool = True) -> CollectReport:
    """Collect a data set with OGBench's environments and oracles.

    Writes `{env}.npz` and `{env}-val.npz` (a tenth as many episodes, at least one) into
    `config.out`, with OGBench's keys and dtypes, so that `ogbench.make_env_and_datasets` reads them.
    The arrays are a function of env, seed and episodes (and of the versions of ogbench, mujoco and
    numpy), not of the number of workers nor of interruptions.

    Parameters
    ----------
    config
        What to collect, and where to.
    progress
        Show the stages and a progress bar on stderr; where that is no terminal, a line now and then.

    Returns
    -------
    CollectReport

    Raises
    ------
    BadInput
        `config.env` cannot be collected; `config.out` is a file, read-only or full; a file there
        was made otherwise, or an interrupted collection was, and `config.force` is not set; another
        process is collecting the same data set there; ogbench is not installed.
    Stopped
        SIGTERM or Ctrl-C. Finished episodes are kept, and the same call goes on from them.
    RuntimeError
        A worker failed or died. Finished episodes are kept here too.

    Notes
    -----
    Worker processes are spawned, so a script must call this under `if __name__ == "__main__":`.
    Signals are caught only if this is called in the main thread.
    """
    return run_recipe(config, find_recipe(config.env), progress=progress)


@dataclass(frozen=True)
class _Split:
    name: str
    index: int  # part of the seed
    episodes: int
    path: Path

    def shard(self, folder: Path, episode: int) -> Path:
        return folder / f"{self.name}-{episode:06d}.npz"


@dataclass(frozen=True)
class _Job:
    """One episode to collect into one file."""

    split: int
    episode: int
    path: Path


@dataclass(frozen=True)
class _Failure:
    """What a worker sends of its exception: the user's fault, or a traceback."""

    message: str
    bad_input: bool


def run_recipe(config: CollectConfig, recipe: Recipe, *, progress: bool = True) -> CollectReport:
    """Collect `recipe`, which need not be OGBench's own; otherwise as `collect`."""
    started = time.monotonic()
    out = Path(config.out).expanduser()
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file, but must be a folder. Choose another --out")
    train = _Split("train", 0, config.episodes, out / f"{recipe.dataset}.npz")
    val = _Split("val", 1, max(1, config.episodes // 10), out / f"{recipe.dataset}-val.npz")
    about = _about(config, recipe)
    folder = out / f".{recipe.dataset}.collect"

    # The validation file first: a finished training file then means that both are there.
    todo = [s for s in (val, train) if config.force or not _is_finished(s, about)]
    steps = resumed = 0
    if todo:
        with _shard_folder(folder, about, force=config.force):
            jobs = [
                _Job(split.index, episode, split.shard(folder, episode))
                for split in reversed(todo)
                for episode in range(split.episodes)
            ]
            missing = [job for job in jobs if not _is_whole(job.path, recipe)]
            resumed = len(jobs) - len(missing)
            _say(progress, _plan(recipe, jobs, missing, config.workers))
            with _stop_requests(recipe, out) as stop:
                _run(missing, config, recipe, stop, progress=progress, done=resumed)
                for split in todo:
                    _say(progress, f"writing {split.path}")
                    shards = [split.shard(folder, episode) for episode in range(split.episodes)]
                    _write_data_set(split.path, shards, recipe, _about_file(split, about), stop)
            steps = len(missing) * recipe.steps
            shutil.rmtree(folder, ignore_errors=True)
    elif _read_about(folder) in (about, None):
        # Left by a run that was killed after the last file was in its place.
        shutil.rmtree(folder, ignore_errors=True)
    return CollectReport(
        train_path=train.path,
        val_path=val.path,
        episodes=train.episodes,
        val_episodes=val.episodes,
        steps=steps,
        seconds=time.monotonic() - started,
        resumed_episodes=resumed,
        already_done=not todo,
    )


def _say(progress: bool, text: str) -> None:
    if progress:
        say(text)


def _plan(recipe: Recipe, jobs: list[_Job], missing: list[_Job], workers: int) -> str:
    found = len(jobs) - len(missing)
    text = f"{recipe.dataset}: {len(jobs)} episodes of {recipe.steps} steps"
    if found:
        text += f"; {found} of them are there from an interrupted run, {len(missing)} to go"
    if missing:
        text += f"; starting {min(workers, len(missing))} simulator processes (a few seconds)"
    return text


# --- what a collection is -------------------------------------------------------------------------


def _about(config: CollectConfig, recipe: Recipe) -> dict[str, Any]:
    """Return all that an episode's arrays depend on, beside its split and index."""
    try:
        versions = {name: importlib.metadata.version(name) for name in ("ogbench", "mujoco")}
    except importlib.metadata.PackageNotFoundError as err:
        raise BadInput(
            f"collecting needs {err.name}, which is not installed: pip install 'sorl-fast[train]'"
        ) from err
    return {
        "dataset": recipe.dataset,
        "seed": config.seed,
        "steps": recipe.steps,
        "recipe": RECIPE_VERSION,
        "versions": versions | {"numpy": np.__version__},
    }


def _about_file(split: _Split, about: dict[str, Any]) -> dict[str, Any]:
    return {"split": split.name, "episodes": split.episodes, **about}


def _is_finished(split: _Split, about: dict[str, Any]) -> bool:
    """Return whether the split's file is there; refuse one that these arguments did not make."""
    if not split.path.exists():
        return False
    wanted = _about_file(split, about)
    found: Any = None
    with (
        contextlib.suppress(OSError, ValueError, zipfile.BadZipFile),
        zipfile.ZipFile(split.path) as archive,
    ):
        found = json.loads(archive.comment)
    ours = isinstance(found, dict) and wanted.keys() <= found.keys()
    # Newer libraries do not make a finished collection another one.
    different = [k for k in wanted if k != "versions" and ours and found[k] != wanted[k]]
    if ours and not different:
        return True
    what = ", ".join(f"{key} {found[key]!r} and not {wanted[key]!r}" for key in different)
    raise BadInput(
        f"{split.path} is there already"
        + (f", but made with {what}" if ours else " and was not made by this command")
        + ". Choose another --out, or add --force to replace it"
    )


# --- the folder of finished episodes --------------------------------------------------------------


def _read_about(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / "collection.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return found


@contextlib.contextmanager
def _shard_folder(folder: Path, about: dict[str, Any], *, force: bool) -> Iterator[None]:
    """Hold the folder of this collection's finished episodes, new or an interrupted run's."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as err:
        raise BadInput(
            f"cannot write into {folder.parent}: {err.strerror}. Choose an --out folder that you "
            "may write to"
        ) from err
    with lock:
        if not atomic.lock(lock):
            raise BadInput(
                f"another process is collecting {about['dataset']} into {folder.parent}. "
                "Wait for it, or choose another --out"
            )
        found = _read_about(folder)
        if found is not None and found != about:
            if not force:
                what = ", ".join(k for k in about if found.get(k) != about[k])
                raise BadInput(
                    f"{folder} holds the episodes of an interrupted collection of another {what}: "
                    f"{found}. Repeat its command to finish it, choose another --out, or add "
                    "--force to discard them"
                )
            found = None
        if found is None:
            for file in folder.glob("*.npz"):
                file.unlink()
            atomic.write_bytes(folder / "collection.json", json.dumps(about).encode())
        # What was being written when a process was killed.
        unfinished = folder.parent.glob(f".{about['dataset']}*.npz.*.part")
        for part in (*folder.glob(".*.part"), *unfinished):
            part.unlink()
        yield


def _is_whole(path: Path, recipe: Recipe) -> bool:
    """Return whether an episode is there; one that cannot be read is removed."""
    if not path.exists():
        return False
    try:
        # numpy leaves a file open that it opened and that is no archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            # Reading an array checks its CRC.
            whole = all(len(file[key]) == recipe.steps for key in recipe.keys)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        whole = False
    if not whole:
        path.unlink()
    return whole


def _write_shard(path: Path, episode: Episode) -> None:
    # Not compressed: it is short-lived, and the data set is compressed when it is assembled.
    arrays: dict[str, Any] = episode
    atomic.write_file(path, lambda file: np.savez(file, **arrays))


def _write_data_set(
    path: Path, shards: Sequence[Path], recipe: Recipe, about: dict[str, Any], stop: _StopRequest
) -> None:
    """Join episodes into one compressed npz file, holding one episode's array at a time."""

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.comment = json.dumps(about).encode()
            for key in recipe.keys:
                # A fixed date, so that equal collections are equal files.
                member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                member.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(member, "w", force_zip64=True) as stream:
                    _write_array(stream, _arrays_of(shards, key, stop), len(shards))

    atomic.write_file(path, write)


def _arrays_of(
    shards: Iterable[Path], key: str, stop: _StopRequest
) -> Iterator[np.ndarray[Any, Any]]:
    for path in shards:
        stop.check()
        with np.load(path, allow_pickle=False) as file:
            yield file[key]


def _write_array(stream: IO[bytes], parts: Iterator[np.ndarray[Any, Any]], count: int) -> None:
    """Write `count` arrays of one shape as one npy array, joined along the first axis."""
    for i, part in enumerate(parts):
        if i == 0:
            header = {
                "descr": np.lib.format.dtype_to_descr(part.dtype),
                "fortran_order": False,
                "shape": (count * len(part), *part.shape[1:]),
            }
            np.lib.format.write_array_header_1_0(stream, header)
        stream.write(part.tobytes())


# --- the processes --------------------------------------------------------------------------------


@dataclass
class _StopRequest:
    """Whether SIGTERM or Ctrl-C asked us to stop."""

    message: str
    asked: bool = False

    def check(self) -> None:
        if self.asked:
            raise Stopped(self.message)


@contextlib.contextmanager
def _stop_requests(recipe: Recipe, out: Path) -> Iterator[_StopRequest]:
    """Note SIGTERM and the first Ctrl-C; a second Ctrl-C interrupts at once."""
    stop = _StopRequest(
        f"stopped while collecting {recipe.dataset}: the finished episodes are kept in {out}. "
        "Give the same command again to go on"
    )
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(signum: int, frame: object) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Start processes that Ctrl-C in the terminal does not reach: it is the parent's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: connection.Connection[_Job | None, _Failure | None]
    job: _Job | None = field(default=None)

    def give(self, queue: deque[_Job]) -> bool:
        """Hand over the next job, or the word that there is none."""
        self.job = queue.popleft() if queue else None
        # A process that died meanwhile is met when its answer is read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(self.job)
        return self.job is not None


def _start_worker(config: CollectConfig, recipe: Recipe) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, recipe, config.seed), daemon=True)
    with worker_environment(), _ctrl_c_ignored():
        process.start()
    theirs.close()  # so that the worker's death ends the pipe
    return _Worker(process, ours)


def _run(
    jobs: Sequence[_Job],
    config: CollectConfig,
    recipe: Recipe,
    stop: _StopRequest,
    *,
    progress: bool,
    done: int,
) -> None:
    """Have worker processes collect `jobs`, one at a time each."""
    queue = deque(jobs)
    workers: dict[Any, _Worker] = {}  # by the pipe that answers
    total = done + len(jobs)
    bar = show_progress(" steps", shown=progress and bool(jobs), name=recipe.dataset, scaled=True)
    with bar as show, contextlib.ExitStack() as cleanup:
        show(done * recipe.steps, total * recipe.steps)
        for _ in range(min(config.workers, len(jobs))):
            worker = _start_worker(config, recipe)
            cleanup.callback(_end, worker)
            workers[worker.pipe] = worker
            worker.give(queue)
        while workers:
            stop.check()
            for pipe in connection.wait(list(workers), timeout=_POLL_SECONDS):
                worker = workers[pipe]
                try:
                    failure = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    # Whoever ends the whole process group asks the parent to stop, too.
                    stop.asked |= worker.process.exitcode == -signal.SIGTERM
                    stop.check()
                    raise RuntimeError(_epitaph(worker)) from None
                if failure is not None:
                    raise _exception(failure)
                done += 1
                show(done * recipe.steps, total * recipe.steps)
                if not worker.give(queue):
                    del workers[pipe]


def _exception(failure: _Failure) -> Exception:
    if failure.bad_input:
        return BadInput(failure.message)
    return RuntimeError(
        f"a collecting process failed; the finished episodes are kept.\n{failure.message}"
    )


def _epitaph(worker: _Worker) -> str:
    code = worker.process.exitcode
    how = f"exit code {code}"
    if code is not None and code < 0:
        how = f"killed by {signal.Signals(-code).name}"
    return (
        f"a collecting process died ({how}) in {worker.job}; the finished episodes are kept. Check "
        "the memory (about 0.5 GB a worker) and the messages above, then give the same command again"
    )


def _end(worker: _Worker) -> None:
    """End a process that is idle, or whose episode is given up; files are whole or not there."""
    if worker.job is None:
        worker.process.join(timeout=5)
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def _work(
    pipe: connection.Connection[_Failure | None, _Job | None], recipe: Recipe, seed: int
) -> None:
    """Be a worker: receive a job, write its episode, answer None; until there are no more."""
    exit_with_parent()  # nobody is to write behind the parent's successor
    try:
        source = open_source(recipe)
        while (job := pipe.recv()) is not None:
            _write_shard(job.path, collect_episode(source, seed, job.split, job.episode))
            pipe.send(None)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except BadInput as err:
        pipe.send(_Failure(str(err), bad_input=True))
    except BaseException as err:
        if isinstance(err, OSError) and err.errno == errno.ENOSPC:  # a maze is a temporary file
            text = f"no space left in {tempfile.gettempdir()}: free some, or set TMPDIR to a folder"
            pipe.send(_Failure(text, bad_input=True))
            return
        pipe.send(_Failure(traceback.format_exc(), bad_input=False))
        raise SystemExit(1) from None
