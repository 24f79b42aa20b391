"""`sorl-fast film`: episodes are chosen from an evaluation, run again with pictures, and put together."""

import contextlib
import itertools
import math
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..act.choice import PolicyChoice
from ..act.policy_file import Policy, load
from ..act.rules import check_critic, rule_of
from ..act.schedule import check_fit, schedule_of
from ..atomic import write_bytes
from ..errors import BadInput, Stopped
from ..isolated import run
from ..progress import progress as show_progress
from ..simulate.episodes import Episode, Record, Task, evaluation_path, record_path
from ..simulate.evaluate import Evaluator, grid, way_of
from .draw import COLOURS, Shot, frames, strip
from .encode import find_ffmpeg, gif, mp4
from .gl import way_to_render
from .settings import KINDS, FilmConfig
from .strip import STRIP, strip_bytes

_PICTURES = 50  # of the longest episode, unless --every says otherwise
_SILENCE = 600.0  # seconds that an episode may take: a CPU renders some pictures a second


def film(
    policy_path: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None,
    out: str | os.PathLike[str] | None,
    config: FilmConfig,
    progress: bool = False,
) -> str:
    """Write a film of a policy's episodes: those of `simulate.evaluate`, seed by seed.

    Parameters
    ----------
    policy_path
        The policy's file.
    folder
        The run's folder, whose finished episodes are used and added to, and which receives
        film-strip.png; or None.
    out
        A name that ends in .gif or .mp4; None: film.gif in the folder.
    config
        Which episodes, how the policy acts in them, and how large the film is.
    progress
        Whether to show on standard error how far it is.

    Returns
    -------
    str
        What was written, in lines.

    Raises
    ------
    BadInput
        Nothing here renders or encodes, the policy cannot act so, its environment cannot be simulated,
        or a file cannot be written. What was there is as it was.
    Stopped
        SIGTERM arrived; nothing was written but finished episodes to the run's record.
    """
    out = _out(folder, out)
    policy = load(policy_path)
    way = _way(policy, config)
    if out.suffix == ".mp4":
        find_ffmpeg()
    with (
        _sigterm_raises(),
        Evaluator(  # refuses what cannot be simulated before anything is tried
            policy.env, config.success_timing, config.workers, config.backend, config.precision
        ) as evaluator,
        tempfile.TemporaryDirectory(prefix="sorl-film-") as spare,
    ):
        gl = way_to_render()
        found, known = _evaluated(evaluator, policy_path, folder, way, config, spare, progress)
        outcomes = [known[task].success for task in known]
        tasks = [list(known)[e] for e in choose(outcomes, config.episodes)]
        every = config.every or math.ceil(max(known[t].length for t in tasks) / _PICTURES)
        item = {
            "policy": str(policy_path),
            "env": policy.env,
            "precision": config.precision,
            "success_timing": config.success_timing,
            "backend": found["backend"],
            "width": config.width,
            "every": every,
        }
        shots = _rendered(item, {t: known[t] for t in tasks}, gl, spare, progress)
        title = [policy.env, f"{way}: {sum(outcomes)} of {len(outcomes)} episodes succeed"]
        made = list(frames(shots, every, title))
        data = mp4(made, config.fps) if out.suffix == ".mp4" else gif(made, config.fps, COLOURS)
        how = f"every {every} steps" if every > 1 else "every step"
        words = f"a picture {how}, {config.fps} a second; seed {config.seed}"
        write_bytes(out, data)
        lines = [
            f"{out}: {way}, {words}; {len(data) / 1e6:.1f} MB",
            *(f"episode {shot.episode}: {shot.fate}" for shot in shots),
        ]
        if folder is not None:
            caption = (
                f"Some of {len(outcomes)} episodes with {way}, seed {config.seed}: {out.name}."
            )
            still = strip_bytes(strip(shots, every, title), found["policy"], caption)
            write_bytes(Path(folder, STRIP), still)
            lines.append(f"{Path(folder, STRIP)}: for `sorl-fast report`")
    return "\n".join(lines)


def choose(outcomes: Sequence[bool], count: int) -> list[int]:
    """Return `count` episodes' numbers: successes and failures in turn, the first of each.

    Parameters
    ----------
    outcomes
        Success of each episode, at least `count`. Where one kind is too few, the other fills up.
    """
    good = [e for e, success in enumerate(outcomes) if success]
    bad = [e for e, success in enumerate(outcomes) if not success]
    failures = min(len(bad), max(count // 2, count - len(good)))
    pairs = itertools.zip_longest(good[: count - failures], bad[:failures])
    return [e for pair in pairs for e in pair if e is not None]


def _out(folder: str | os.PathLike[str] | None, out: str | os.PathLike[str] | None) -> Path:
    """Return where the film is to be written."""
    if out is None:
        if folder is None:
            raise BadInput("--out is missing: where to write, as RUN is a file and no run's folder")
        return Path(folder, "film.gif")
    if Path(out).suffix not in KINDS:
        raise BadInput(f"--out is {out}, but must end in {' or '.join(KINDS)}: name it so")
    return Path(out)


def _way(policy: Policy, config: FilmConfig) -> PolicyChoice:
    """Return how the policy acts, checked: what is None is its own."""
    own = policy.own
    steps = own.steps if config.steps is None else schedule_of(config.steps)
    N = own.candidates if config.candidates is None else config.candidates
    rule = own.rule if config.rule is None else rule_of(config.rule)
    check_fit(steps, policy.finest, policy.train_steps)
    check_critic(rule, N, bool(policy.critic))
    (cell,) = grid([steps.key], [N], [str(rule)])
    return way_of(cell)


def _evaluated(
    evaluator: Evaluator,
    policy_path: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None,
    way: PolicyChoice,
    config: FilmConfig,
    spare: str,
    progress: bool,
) -> tuple[dict[str, Any], dict[Task, Episode]]:
    """Return an evaluation of one cell, and its episodes in order."""
    evaluation = evaluation_path(Path(spare if folder is None else folder), config.precision)
    record = record_path(evaluation)
    with show_progress(" episodes", shown=progress, name="simulated") as shown:
        found = evaluator.run(
            policy_path,
            [way.steps.key],
            [way.candidates],
            config.among,
            config.seed,
            progress=shown,
            record=record,
            rules=[str(way.rule)],
        )
    with Record(record, found) as kept:
        tasks = [
            Task(way.steps.key, way.candidates, config.seed, e, str(way.rule))
            for e in range(config.among)
        ]
        return found, {task: kept.done[task] for task in tasks}


def _rendered(
    item: dict[str, Any], episodes: dict[Task, Episode], gl: str, spare: str, progress: bool
) -> list[Shot]:
    """Run episodes again, with pictures; raise unless the same becomes of them."""
    items = [
        item | {"task": list(t), "out": str(Path(spare, f"{t.episode}.npy"))} for t in episodes
    ]
    environment = {"MUJOCO_GL": gl}
    outcomes = run(
        "sorl_fast.film.render:film_episode", items, silence=_SILENCE, environment=environment
    )
    shots: list[Shot] = []
    with (
        show_progress(" episodes", shown=progress, name="rendered") as shown,
        contextlib.closing(outcomes),  # type: ignore[type-var] # a generator, which has a close
    ):
        shown(0, len(items))
        for (task, episode), outcome in zip(episodes.items(), outcomes, strict=True):
            if outcome["status"] != "ok":
                raise BadInput(
                    f"episode {task.episode} could not be rendered with MUJOCO_GL={gl}: "
                    f"{outcome['reason']}. Try another MUJOCO_GL, or a smaller --width"
                )
            if (outcome["success"], outcome["length"]) != (episode.success, episode.length):
                raise BadInput(
                    f"episode {task.episode} went otherwise than in its evaluation, in which it was "
                    f"{episode}: was the policy's file replaced meanwhile? Evaluate it again, with "
                    "--fresh"
                )
            pictures = np.load(items[len(shots)]["out"], allow_pickle=False, mmap_mode="r")
            shots.append(Shot(task.episode, episode.success, episode.length, pictures))
            shown(len(shots), len(items))
    return shots


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end what runs in this block as Ctrl-C does, so that nothing is left half-done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Stopped("stopped; no film was written. Give the same command again")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
