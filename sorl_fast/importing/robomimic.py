"""robomimic's HDF5 files: a group a demonstration, observations in parts.

data/demo_N has actions [T, A], rewards [T] of the state after each step, dones [T], obs/KEY [T, ...] and
perhaps next_obs/KEY. Its dones mark steps into success, the end of the recording, or both, as the file was
made (done_mode 0, 1, 2), which the file does not say: see `episode.task_ends`. mask/valid names the
demonstrations kept for validation.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ImportConfig
from ..errors import BadInput
from . import hdf5
from .episode import Episode, Source, flags, numbers, picked, task_ends

NAME = "robomimic"
_MAKE = "Make it with robomimic's dataset_states_to_obs.py, which adds what training needs"


def fits(path: Path) -> bool:
    """Whether it looks like one."""
    if not hdf5.is_hdf5(path):
        return False
    with hdf5.opened(path) as file:
        return "data" in file and hasattr(file["data"], "keys") and bool(_demos(file["data"]))


def read(source: str, path: Path, config: ImportConfig) -> Source:
    """Read all demonstrations."""
    with hdf5.opened(path) as file:
        if "data" not in file or not hasattr(file["data"], "keys") or not _demos(file["data"]):
            raise BadInput(
                f"{source} has no data/demo_0. It is no file of robomimic: name another --format"
            )
        data = file["data"]
        demos = [_Demo(f"{source}, {name}", name, data[name], config) for name in _demos(data)]
        valid = set(_names(file, "mask/valid"))
        env = _env(data)
    rewards = [demo.rewards for demo in demos]
    sparse = all(x is not None and np.isin(x, (0, 1)).all() for x in rewards)
    episodes = [demo.episode(config, sparse, demo.key in valid) for demo in demos]
    about = {"environment": env, "rewards are 0 or 1, taken as success": sparse}
    about |= {"observations": list(demos[0].keys), "demonstrations of mask/valid": len(valid)}
    return Source(episodes, about)


def _demos(data: Any) -> list[str]:
    """Return the names demo_N, by number."""
    names = [name for name in data if name.startswith("demo_") and name[5:].isdigit()]
    return sorted(names, key=lambda name: int(name[5:]))


def _names(file: Any, name: str) -> list[str]:
    found = file[name][()] if name in file else []
    return [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in found]


def _env(data: Any) -> str:
    try:
        return str(json.loads(data.attrs["env_args"])["env_name"])
    except (KeyError, TypeError, ValueError):
        return "not said"


class _Demo:
    """What a demonstration's group has, in memory."""

    def __init__(self, name: str, key: str, group: Any, config: ImportConfig):
        self.name, self.key = name, key
        self.actions = numbers(name, "actions", hdf5.required(name, group, "actions", _MAKE), 2)
        T = len(self.actions)
        said = int(group.attrs.get("num_samples", T))
        if said != T:
            raise BadInput(f"{name} has {T} actions, but num_samples says {said}: it is damaged")
        if "obs" not in group or not hasattr(group["obs"], "keys"):
            raise BadInput(f"{name} has no obs. {_MAKE}")
        shapes = {k: tuple(x.shape[1:]) for k, x in group["obs"].items() if hasattr(x, "dtype")}
        self.keys = picked(shapes, config.observations, name)
        self.obs = self._joined(group["obs"])
        self.next_obs = self._joined(group["next_obs"]) if "next_obs" in group else None
        rewards, dones = (hdf5.array(name, group, field) for field in ("rewards", "dones"))
        self.rewards = None if rewards is None else numbers(name, "rewards", rewards, 1)
        self.dones = None if dones is None else flags(name, "dones", dones)

    def _joined(self, group: Any) -> NDArray[Any]:
        parts = [
            numbers(self.name, key, hdf5.required(self.name, group, key, _MAKE), 2)
            for key in self.keys
        ]
        if len({len(x) for x in parts}) != 1:
            raise BadInput(
                f"{self.name}: {', '.join(self.keys)} have different numbers of rows: damaged"
            )
        return np.concatenate(parts, axis=1)

    def episode(self, config: ImportConfig, sparse: bool, validation: bool) -> Episode:
        success = self.rewards > 0 if sparse and self.rewards is not None else None
        meaning = "end" if config.reward != "recorded" and config.dones == "auto" else config.dones
        return Episode(
            name=self.name,
            observations=self.obs,
            actions=self.actions,
            rewards=self.rewards,
            success=success,
            done=task_ends(self.dones, success, meaning, len(self.actions), self.name),
            cut=self.dones is not None and bool(self.dones[-1:].any()),
            next_observations=self.next_obs,
            validation=validation,
        )
