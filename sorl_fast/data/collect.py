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
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from .. import atomic
from ..act.policy_file import Policy, loads
from ..act.sampler import Sampler
from ..config import CollectConfig
from ..envs import find_recipe, open_source
from ..envs.recipe import RECIPE_VERSION, Episode, EpisodeSource, Recipe, collect_episode
from ..errors import BadInput
from ..progress import progress as show_progress
from ..progress import say
from ..simulate.workers import Pool, WorkerDied, WorkerFailed
from ..stopping import StopFlag, stop_flag
from .experts import actor_of, find_experts

_WAYPOINTS = "waypoints"  # of a shard alone: how many its episode reached


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
    waypoints
        Way-points of a maze, or goals of a ball, that an episode of this collection reached on average;
        None where there are none, or nothing was collected.
    """

    train_path: Path
    val_path: Path
    episodes: int
    val_episodes: int
    steps: int
    seconds: float
    resumed_episodes: int
    already_done: bool
    waypoints: float | None


def collect(config: CollectConfig, *, progress: bool = True) -> CollectReport:
    """Collect a data set with OGBench's environments, and its oracles or experts.

    Writes `{env}.npz` and `{env}-val.npz` (a tenth as many episodes, at least one) into
    `config.out`, with OGBench's keys and dtypes, so that `ogbench.make_env_and_datasets` reads them.
    The arrays are a function of env, seed, episodes and experts (and of the versions of ogbench,
    mujoco and numpy, and of what computes an expert's actions), not of the number of workers nor of
    interruptions.

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
        process is collecting the same data set there; ogbench is not installed; an expert is missing,
        damaged, or another body's.
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


def run_recipe(config: CollectConfig, recipe: Recipe, *, progress: bool = True) -> CollectReport:
    """Collect `recipe`, which need not be OGBench's own; otherwise as `collect`."""
    started = time.monotonic()
    out = Path(config.out).expanduser()
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file, but must be a folder. Choose another --out")
    episodes = config.episodes or recipe.episodes
    train = _Split("train", 0, episodes, out / f"{recipe.dataset}.npz")
    val = _Split("val", 1, max(1, episodes // 10), out / f"{recipe.dataset}-val.npz")
    experts = find_experts(recipe, config.expert or ())
    about = _about(config, recipe, experts)
    folder = out / f".{recipe.dataset}.collect"
    how_to_go_on = (
        f"stopped while collecting {recipe.dataset}: the finished episodes are kept in {out}. "
        "Give the same command again to go on"
    )

    # The validation file first: a finished training file then means that both are there.
    todo = [s for s in (val, train) if config.force or not _is_finished(s, about)]
    steps = resumed = 0
    waypoints: float | None = None
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
            with stop_flag(how_to_go_on, second_interrupts=True) as stop:
                _run(missing, config, recipe, experts, stop, progress=progress, done=resumed)
                for split in todo:
                    _say(progress, f"writing {split.path}")
                    shards = [split.shard(folder, episode) for episode in range(split.episodes)]
                    _write_data_set(split.path, shards, recipe, _about_file(split, about), stop)
                waypoints = _mean_waypoints([job.path for job in jobs])
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
        waypoints=waypoints,
    )


def _say(progress: bool, text: str) -> None:
    if progress:
        say(text)


def _plan(recipe: Recipe, jobs: list[_Job], missing: list[_Job], workers: int) -> str:
    found = len(jobs) - len(missing)
    val = sum(job.split != 0 for job in jobs)
    text = (
        f"{recipe.dataset}: {len(jobs) - val} + {val} (validation) episodes of {recipe.steps} steps"
    )
    if found:
        text += f"; {found} of them are there from an interrupted run, {len(missing)} to go"
    if missing:
        text += f"; starting {min(workers, len(missing))} simulator processes (a few seconds)"
    return text


# --- what a collection is -------------------------------------------------------------------------


def _about(config: CollectConfig, recipe: Recipe, experts: Sequence[Policy]) -> dict[str, Any]:
    """Return all that an episode's arrays depend on, beside its split and index."""
    try:
        versions = {name: importlib.metadata.version(name) for name in ("ogbench", "mujoco")}
    except importlib.metadata.PackageNotFoundError as err:
        raise BadInput(
            f"collecting needs {err.name}, which is not installed: pip install 'sorl-fast[train]'"
        ) from err
    versions["numpy"] = np.__version__
    about: dict[str, Any] = {
        "dataset": recipe.dataset,
        "seed": config.seed,
        "steps": recipe.steps,
        "recipe": RECIPE_VERSION,
        "versions": versions,
    }
    if experts:
        about["experts"] = [expert.digest for expert in experts]
        versions["backend"] = Sampler(experts[0]).backend  # rounds as no other does
    return about


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


def _write_shard(path: Path, episode: Episode, waypoints: int | None = None) -> None:
    # Not compressed: it is short-lived, and the data set is compressed when it is assembled.
    arrays: dict[str, Any] = episode | ({} if waypoints is None else {_WAYPOINTS: waypoints})
    atomic.write_file(path, lambda file: np.savez(file, **arrays))


def _mean_waypoints(shards: Sequence[Path]) -> float | None:
    """Return how many way-points an episode reached on average, of those whose shard says it."""
    reached = []
    for path in shards:
        with np.load(path, allow_pickle=False) as file:
            if _WAYPOINTS in file.files:
                reached.append(int(file[_WAYPOINTS]))
    return float(np.mean(reached)) if reached else None


def _write_data_set(
    path: Path, shards: Sequence[Path], recipe: Recipe, about: dict[str, Any], stop: StopFlag
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


def _arrays_of(shards: Iterable[Path], key: str, stop: StopFlag) -> Iterator[np.ndarray[Any, Any]]:
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


def _run(
    jobs: Sequence[_Job],
    config: CollectConfig,
    recipe: Recipe,
    experts: Sequence[Policy],
    stop: StopFlag,
    *,
    progress: bool,
    done: int,
) -> None:
    """Have worker processes collect `jobs`, one at a time each."""
    total = done + len(jobs)
    bar = show_progress(" steps", shown=progress and bool(jobs), name=recipe.dataset, scaled=True)
    files = [expert.file_bytes for expert in experts]
    with bar as show, Pool(_Collector, recipe, config.seed, files, workers=config.workers) as pool:
        try:
            for finished in pool.run(jobs):
                stop.check()
                done += finished is not None
                show(done * recipe.steps, total * recipe.steps)
        except WorkerDied as err:
            where = "before its first episode" if err.task is None else f"in {err.task}"
            raise RuntimeError(
                f"a collecting process {err.how} {where}; the finished episodes are kept. Check "
                "the memory (about 0.5 GB a worker) and the messages above, then give the same command "
                "again"
            ) from err
        except WorkerFailed as err:
            raise RuntimeError(
                f"a collecting process failed; the finished episodes are kept.\n{err}"
            ) from err


class _Collector:
    """What collects in a worker process: a simulator with its oracles, each episode into a file."""

    def __init__(self, recipe: Recipe, seed: int, experts: Sequence[bytes]) -> None:
        self._recipe = recipe
        self._seed = seed
        self._experts = experts
        self._source: EpisodeSource | None = None

    def prepare(self, shared: None) -> None:
        with _full_disk_named():
            actors = [actor_of(loads(expert)) for expert in self._experts]
            self._source = open_source(self._recipe, actors)

    def do(self, task: _Job) -> None:
        assert self._source is not None
        with _full_disk_named():
            episode = collect_episode(self._source, self._seed, task.split, task.episode)
        _write_shard(task.path, episode, getattr(self._source, "waypoints", None))


@contextlib.contextmanager
def _full_disk_named() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno != errno.ENOSPC:
            raise
        raise BadInput(  # a maze is a temporary file
            f"no space left in {tempfile.gettempdir()}: free some, or set TMPDIR to a folder"
        ) from err
