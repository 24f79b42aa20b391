"""Minari's data sets, by Minari itself: a folder, or the name of one that it has on this machine.

An episode has T + 1 observations for T actions, rewards of each step, terminations (the task's) and
truncations (time's); its infos have T + 1 entries, the first from the reset. What its recorder had not
finished it marks as truncated.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ImportConfig
from ..errors import BadInput
from .episode import Episode, Source, flags, numbers, picked

NAME = "minari"
_SUCCESS = ("success", "is_success")


def fits(path: Path) -> bool:
    """Whether it looks like one: the folder of a data set, or its folder data."""
    return _data(path) is not None


def read(source: str, path: Path, config: ImportConfig) -> Source:
    """Read all episodes."""
    try:
        import minari
        from minari.dataset.minari_dataset import parse_dataset_id
    except ImportError as err:
        raise BadInput(f"minari is not installed ({err}): pip install 'sorl-fast[import]'") from err
    data = _data(path)
    try:
        if data is None:
            try:
                parse_dataset_id(source)
            except (TypeError, ValueError):
                raise BadInput(
                    f"{source} is no file or folder, and no name of a Minari data set such as "
                    "D4RL/door/human-v2. Check SOURCE"
                ) from None
            dataset = minari.load_dataset(source, download=config.download)
        else:
            dataset = minari.MinariDataset(data)
        episodes, keys = _episodes(source, dataset, config)
        env = getattr(dataset.spec.env_spec, "id", "not said")
    except BadInput:
        raise
    except FileNotFoundError as err:
        raise BadInput(
            f"{source} is no file or folder, and no Minari data set on this machine. Fetch it with "
            f"`minari download {source}`, or let this command with --download"
        ) from err
    except ImportError as err:
        raise BadInput(f"Minari lacks a package: {err}") from err
    except (
        ArithmeticError,
        AssertionError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as err:
        # a foreign library over a file that may be damaged
        what = f"{type(err).__name__}: {err}"[:300]
        raise BadInput(
            f"Minari does not read {source} ({what}). Download or copy it again"
        ) from err
    about = {"environment": env, "minari": version("minari"), "observations": keys}
    return Source(episodes, about)


def _data(path: Path) -> Path | None:
    for folder in (path, path / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    return None


def _episodes(source: str, dataset: Any, config: ImportConfig) -> tuple[list[Episode], list[str]]:
    episodes = []
    keys: list[str] = []
    indices = dataset.episode_indices
    said = dataset.storage.get_episode_metadata(indices)
    for raw, metadata in zip(dataset.iterate_episodes(), said, strict=True):
        name = f"{source}, episode {raw.id}"
        T = len(raw.rewards)
        if int(metadata.get("total_steps", T)) != T:
            # findings/minari_arrow_long_episodes.sh: above 32,767 steps Minari gives pieces
            raise BadInput(
                f"{name} has {T} steps as Minari reads it, but its metadata say {metadata['total_steps']}: "
                "it is damaged, or too long for Minari's arrow format. Store it as hdf5"
            )
        parts = dict(_leaves(raw.observations))
        if list(parts) == [""] and config.observations is not None:
            raise BadInput(f"{source}'s observations are one array: leave --observations out")
        shapes = {key: np.shape(x)[1:] for key, x in parts.items()}
        keys = list(picked(shapes, config.observations, name))
        if isinstance(raw.actions, Mapping | tuple | list):
            raise BadInput(f"{name}: actions are in parts, but must be one array [T, A]")
        cut = flags(name, "truncations", raw.truncations)
        episodes.append(
            Episode(
                name=name,
                observations=np.concatenate([numbers(name, k, parts[k], 2) for k in keys], axis=1),
                actions=raw.actions,
                rewards=raw.rewards,
                success=_success(name, raw.infos, T),
                done=flags(name, "terminations", raw.terminations),
                cut=bool(cut[-1:].any()),
            )
        )
    return episodes, keys


def _leaves(value: Any, name: str = "") -> Any:
    """Yield the arrays of an observation in parts, by names such as desired_goal or 0/position."""
    if isinstance(value, Mapping):
        parts = [*value.items()]
    elif isinstance(value, tuple):
        parts = [(str(i), x) for i, x in enumerate(value)]
    else:
        yield name, value
        return
    for key, x in parts:
        yield from _leaves(x, f"{name}/{key}" if name else str(key))


def _success(name: str, infos: Any, T: int) -> NDArray[np.bool_] | None:
    for key in _SUCCESS:
        if isinstance(infos, Mapping) and key in infos and not isinstance(infos[key], Mapping):
            found = flags(name, f"infos {key}", infos[key])
            if len(found) not in (T, T + 1):
                raise BadInput(f"{name}: infos {key} has {len(found)} entries for {T} steps")
            return found[len(found) - T :]
    return None
