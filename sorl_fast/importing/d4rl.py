"""D4RL's HDF5 files: arrays of all steps of all episodes, one behind the other.

terminals mark where the task ended, timeouts where time did; the row behind is another episode's first.
There is no state behind an episode's last row, unless the file has next_observations. Older files have no
timeouts: D4RL's own loader then counts to the environment's limit of steps.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ImportConfig
from ..errors import BadInput
from . import hdf5
from .episode import Episode, Source, flags, numbers

NAME = "d4rl"
_REMEDY = "D4RL's files have observations, actions, rewards and terminals: name another --format"


def fits(path: Path) -> bool:
    """Whether it looks like one."""
    if not hdf5.is_hdf5(path):
        return False
    with hdf5.opened(path) as file:
        return "observations" in file and "actions" in file


def read(source: str, path: Path, config: ImportConfig) -> Source:
    """Read all episodes."""
    if config.observations is not None:
        raise BadInput("D4RL's observations are one array: leave --observations out")
    with hdf5.opened(path) as file:
        found = {
            name: hdf5.required(source, file, name, _REMEDY)
            for name in ("observations", "actions", "rewards", "terminals")
        }
        found |= {
            name: hdf5.array(source, file, name) for name in ("timeouts", "next_observations")
        }
        success = hdf5.array(source, file, "infos/success")
    axes = {"observations": 2, "next_observations": 2, "actions": 2, "rewards": 1}
    arrays: dict[str, NDArray[Any]] = {
        name: numbers(source, name, x, axes[name]) if name in axes else flags(source, name, x)
        for name, x in found.items()
        if x is not None
    }
    rows = len(arrays["observations"])
    for name, x in arrays.items():
        if len(x) != rows:
            raise BadInput(
                f"{source}: {name} has {len(x)} rows, observations have {rows}: it is damaged"
            )
    ends, how = _ends(source, arrays, config)
    about: dict[str, Any] = {"episodes' ends": how}
    if "timeouts" in arrays:
        both = int((arrays["timeouts"] & arrays["terminals"]).sum())
        about["rows with terminal and timeout, taken as the task's end"] = both
    solved = None if success is None else flags(source, "infos/success", success)
    episodes: list[Episode] = []
    first = 0
    for last in [*np.flatnonzero(ends).tolist(), rows - 1]:
        part = slice(first, last + 1)
        if first <= last:
            following = arrays.get("next_observations")
            episodes.append(
                Episode(
                    name=f"{source}, episode {len(episodes)} (rows {first} to {last})",
                    observations=arrays["observations"][part],
                    actions=arrays["actions"][part],
                    rewards=arrays["rewards"][part],
                    success=None if solved is None else solved[part],
                    done=arrays["terminals"][part],
                    cut=bool(ends[last]),
                    next_observations=None if following is None else following[part],
                )
            )
        first = last + 1
    return Source(episodes, about)


def _ends(
    source: str, arrays: dict[str, Any], config: ImportConfig
) -> tuple[NDArray[np.bool_], str]:
    """Return which rows end an episode, and by what that was told."""
    terminals: NDArray[np.bool_] = arrays["terminals"]
    if "timeouts" in arrays:
        return terminals | arrays["timeouts"], "terminals and timeouts"
    limit = config.episode_limit
    if limit is not None:
        ends = terminals.copy()
        step = 0
        for row, end in enumerate(terminals):
            step += 1
            ends[row] |= step == limit
            step = 0 if end or step == limit else step
        return ends, f"terminals, and every {limit} steps"
    if "next_observations" in arrays:
        same = (arrays["next_observations"][:-1] == arrays["observations"][1:]).all(1)
        return terminals | np.append(
            ~same, False
        ), "terminals, and where the next row is another state"
    raise BadInput(
        f"{source} has no timeouts, so nothing says where time ended an episode. Give the environment's "
        "limit of steps, which D4RL's own loader counts to: --episode-limit N (1000 in MuJoCo's tasks)"
    )
