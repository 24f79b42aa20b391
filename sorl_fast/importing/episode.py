"""An episode as every source gives it, and how episodes become the rows of a file of a user's own.

Shape letters: T rows, O observation, A action.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Rows in order, each a state, the action taken there and what that step gave.

    Parameters
    ----------
    name
        What messages call it.
    observations
        [T, O], or [T + 1, O] with the state behind the last step.
    actions
        [T, A]
    rewards
        [T] of the step from each row, or None where none are recorded.
    success
        [T] whether that step reached the task's goal, or None where nobody says.
    done
        [T] whether the task ended with that step, so that nothing after it counts.
    cut
        Whether the source says that time, not the task, ended the episode.
    next_observations
        [T, O] where the source has them apart.
    validation
        Whether the source keeps it for validation.
    """

    name: str
    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[Any] | None
    success: NDArray[np.bool_] | None
    done: NDArray[np.bool_]
    cut: bool = False
    next_observations: NDArray[Any] | None = None
    validation: bool = False


@dataclass(frozen=True)
class Source:
    """What was read: the episodes, and what of the source is worth keeping."""

    episodes: list[Episode]
    about: dict[str, Any] = field(default_factory=dict)


def rows_of(
    episodes: Iterable[Episode], reward: str
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Return the arrays of a file of a user's own, and what was found on the way.

    A step whose next state is not known is left out, unless the task ended with it: its next state is
    then never read, and is its own.

    Parameters
    ----------
    episodes
        At least one, of one O and one A.
    reward
        recorded: as the source has them. success: 0 in a step that reaches the goal, where the task ends,
        and -1 in all others. success-at-end: the same, where every episode's last step reaches it.

    Raises
    ------
    BadInput
        Shapes do not fit, a number is not finite, or no reward or success is recorded.
    """
    parts: list[dict[str, NDArray[Any]]] = []
    found: Counter[str] = Counter()
    for episode in episodes:
        arrays = _rows(episode, reward, found)
        if len(arrays["actions"]):
            parts.append(arrays)
        else:
            found["episodes without a whole step"] += 1
    if not parts:
        raise BadInput(
            "there is no whole step in it: every episode has one row at most. Record more"
        )
    for name in ("observations", "actions"):
        sizes = sorted({x[name].shape[1] for x in parts})
        if len(sizes) > 1:
            raise BadInput(
                f"{name} have {sizes} numbers in different episodes, but must have one size"
            )
    joined = {name: np.concatenate([x[name] for x in parts]) for name in parts[0]}
    low, high = joined["actions"].min(0).tolist(), joined["actions"].max(0).tolist()
    summary = {
        "episodes": len(parts),
        "rows": len(joined["actions"]),
        "observation size": joined["observations"].shape[1],
        "action size": len(low),
        "action low": low,
        "action high": high,
        "reward": reward,
        "reward low": float(joined["rewards"].min()),
        "reward high": float(joined["rewards"].max()),
        "rows where the task is done": int((joined["masks"] == 0).sum()),
    }
    return joined, summary | dict(sorted(found.items()))


def task_ends(
    dones: NDArray[np.bool_] | None,
    success: NDArray[np.bool_] | None,
    meaning: str,
    rows: int,
    source: str,
) -> NDArray[np.bool_]:
    """Return in which rows [T] the task ended, of a source whose `dones` may mean the recording's end too.

    Raises
    ------
    BadInput
        The meaning is auto, there are dones, and no success tells the two apart.
    """
    if dones is None or meaning == "end" or not dones.any():
        return np.zeros(rows, bool)
    if meaning == "task":
        return dones
    if success is None:
        raise BadInput(
            f"{source}: dones may mean that the task ended or that only the recording did, and no success "
            "is recorded that tells them apart. Add --dones task or --dones end"
        )
    return dones & success


def picked(
    names: Mapping[str, tuple[int, ...]], wanted: tuple[str, ...] | None, source: str
) -> tuple[str, ...]:
    """Return which parts of an observation to join, by name; the only one where none is named.

    Parameters
    ----------
    names
        The shapes of a row of each part of numbers.
    wanted
        Names, in the order in which they are joined.
    source
        What errors call it.

    Raises
    ------
    BadInput
        A name is not there, is no list of numbers, or one has to be named; the message lists them.
    """
    flat = {name: shape[0] for name, shape in names.items() if len(shape) == 1}
    there = ", ".join(f"{name} ({size})" for name, size in flat.items()) or "none"
    if wanted is None:
        if len(flat) == 1:
            return tuple(flat)
        raise BadInput(
            f"{source} has the parts of an observation {there}. Name those to learn from, in their order: "
            "--observations NAME NAME ..."
        )
    for name in wanted:
        if name not in flat:
            why = f"of shape {list(names[name])}" if name in names else "not there"
            raise BadInput(
                f"observation {name!r} of {source} is {why}, but must be one of {there}: set --observations"
            )
    return wanted


def numbers(source: str, name: str, value: Any, ndim: int) -> NDArray[Any]:
    """Return an array of real numbers of `ndim` axes; a last axis of length 1 too many is dropped."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise BadInput(f"{source}: {name} has dtype {array.dtype}, but must be real numbers")
    if array.ndim == ndim + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != ndim:
        raise BadInput(
            f"{source}: {name} has shape {list(array.shape)}, but must have {ndim} axes"
            + (", a row a step" if ndim == 2 else "")
        )
    return array


def flags(source: str, name: str, value: Any) -> NDArray[np.bool_]:
    """Return an array [T] of 0 and 1 as bool."""
    array = numbers(source, name, value, 1)
    if not np.isin(array, (0, 1)).all():
        raise BadInput(
            f"{source}: {name} must be 0 or 1, but has {array[~np.isin(array, (0, 1))][0]}"
        )
    return array.astype(bool)


def _rows(episode: Episode, reward: str, found: Counter[str]) -> dict[str, NDArray[Any]]:
    actions = numbers(episode.name, "actions", episode.actions, 2)
    T = len(actions)
    observations = numbers(episode.name, "observations", episode.observations, 2)
    more = len(observations) - T
    if more not in (0, 1):
        raise BadInput(
            f"{episode.name} has {len(observations)} observations for {T} actions, but must have as many, "
            "or one more: it is damaged, or was not finished. Leave it out of the source"
        )
    rewards, done = _rewards(episode, reward, T)
    for name, x in (("rewards", rewards), ("ends", done)):
        if len(x) != T:
            raise BadInput(
                f"{episode.name} has {len(x)} {name}, but must have {T}, as many as actions"
            )
    following = episode.next_observations
    if following is None:
        following = observations[1 : T + 1]
        if not more and T:
            following = np.concatenate([following, observations[-1:]])
    following = numbers(episode.name, "next observations", following, 2)
    observations = observations[:T]
    if following.shape != observations.shape:
        raise BadInput(
            f"{episode.name}: next observations have shape {list(following.shape)}, but must have "
            f"{list(observations.shape)}"
        )
    known = bool(more) or episode.next_observations is not None
    found["episodes with the last step's next observation"] += known
    ended = T > 0 and bool(done[-1])
    found["episodes ended by the task"] += ended
    found["episodes ended by time"] += not ended and episode.cut
    found["episodes whose end nothing marks"] += not ended and not episode.cut
    found["rows done before the last of their episode"] += int(done[:-1].sum())
    kept = T if known or ended else max(T - 1, 0)
    found["last steps left out, their next observation not being known"] += T - kept
    ends = np.zeros(kept, bool)
    ends[-1:] = True
    arrays = {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "masks": ~done,
        "next_observations": following,
    }
    arrays = {name: x[:kept] for name, x in arrays.items()} | {"terminals": ends}
    for name, x in arrays.items():
        with np.errstate(over="ignore"):
            arrays[name] = x.astype(np.float32)
        finite = np.isfinite(arrays[name]).all(axis=tuple(range(1, x.ndim)))
        if not finite.all():
            raise BadInput(
                f"{episode.name}: {name} is not finite as float32 in row {int(np.argmin(finite))}. Repair "
                "it, or leave that episode out of the source"
            )
    return arrays


def _rewards(episode: Episode, kind: str, T: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the rewards [T] of a kind, and in which rows the task is done by them."""
    done = np.asarray(episode.done, bool)
    if kind == "recorded":
        if episode.rewards is None:
            raise BadInput(
                f"{episode.name} has no rewards. Add --reward success where the source records success, or "
                "--reward success-at-end where every episode ends with its task solved"
            )
        return numbers(episode.name, "rewards", episode.rewards, 1), done
    if kind == "success":
        if episode.success is None:
            raise BadInput(
                f"{episode.name} records no success. Add --reward success-at-end where every episode ends "
                "with its task solved, or --reward recorded for the source's own rewards"
            )
        success = flags(episode.name, "success", episode.success)
    else:
        success = np.zeros(T, bool)
        success[-1:] = True
    return success.astype(np.float32) - 1, done | success if len(done) == T else done
