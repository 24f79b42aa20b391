"""LeRobotDataset v3: meta/info.json, and parquet files with a row a frame, episodes one behind the other.

A row has the observation and the action commanded in that frame; next.reward, next.done and next.success,
where there are any, are of the step from it. There is no observation behind an episode's last frame. Read
with pyarrow alone: lerobot itself did not install beside the versions pinned here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ImportConfig
from ..errors import BadInput
from .episode import Episode, Source, flags, numbers, picked, task_ends

NAME = "lerobot"
_AGAIN = "Download it whole: hf download OWNER/NAME --repo-type dataset --local-dir FOLDER"
_COUNTERS = ("episode_index", "frame_index", "index")


def fits(path: Path) -> bool:
    """Whether it looks like one."""
    return (path / "meta" / "info.json").is_file()


def read(source: str, path: Path, config: ImportConfig) -> Source:
    """Read all episodes; one with a gap in its frames or time stamps becomes two."""
    info = _info(source, path)
    features = info["features"]
    shapes = {
        name: tuple(feature.get("shape", ()))
        for name, feature in features.items()
        if name.startswith("observation")
        and feature.get("dtype") not in ("image", "video", "string")
    }
    keys = picked(shapes, config.observations, source)
    optional = [
        n for n in ("timestamp", "next.reward", "next.done", "next.success") if n in features
    ]
    if "action" not in features:
        raise BadInput(f"{source} has no feature action, so there is nothing to imitate")
    columns = _columns(source, path, [*keys, "action", *_COUNTERS, *optional])
    order = np.argsort(columns["index"], kind="stable")
    columns = {name: x[order] for name, x in columns.items()}
    rows = len(order)
    if rows != info.get("total_frames", rows):
        raise BadInput(
            f"{source} has {rows} frames, but meta/info.json says {info['total_frames']}. {_AGAIN}"
        )
    fps = float(info["fps"])
    new = np.ones(rows, bool)
    new[1:] = np.diff(columns["episode_index"]) != 0
    gaps = np.zeros(rows, bool)
    gaps[1:] = np.diff(columns["frame_index"]) != 1
    if "timestamp" in columns:
        gaps[1:] |= np.abs(np.diff(columns["timestamp"].astype(np.float64)) - 1 / fps) > 0.25 / fps
    gaps &= ~new
    starts = np.flatnonzero(new | gaps)
    x = np.concatenate([columns[key].reshape(rows, -1) for key in keys], axis=1)
    episodes = []
    for first, end in zip(starts, [*starts[1:], rows], strict=True):
        part = slice(first, end)
        name = f"{source}, episode {columns['episode_index'][first]}"
        success = (
            flags(name, "next.success", columns["next.success"][part])
            if "next.success" in columns
            else None
        )
        dones = (
            flags(name, "next.done", columns["next.done"][part]) if "next.done" in columns else None
        )
        meaning = "end" if config.reward != "recorded" and config.dones == "auto" else config.dones
        whole = end == rows or bool(new[end])  # not cut by a gap
        episodes.append(
            Episode(
                name=name,
                observations=x[part],
                actions=columns["action"][part].reshape(end - first, -1),
                rewards=columns["next.reward"][part] if "next.reward" in columns else None,
                success=success,
                done=task_ends(dones, success, meaning, end - first, name),
                cut=whole and dones is not None and bool(dones[-1]),
            )
        )
    if gaps.any() and config.reward == "success-at-end":
        raise BadInput(
            f"{source} has {int(gaps.sum())} gaps inside episodes: where each ends is no success. Remove "
            "these episodes, or record success"
        )
    about = {
        "version": info["codebase_version"],
        "robot": info.get("robot_type") or "not said",
        "frames a second": fps,
        "gaps in frames or time stamps, where an episode is split": int(gaps.sum()),
        "observations": list(keys),
    }
    return Source(episodes, about)


def _info(source: str, path: Path) -> dict[str, Any]:
    file = path / "meta" / "info.json"
    try:
        info = json.loads(file.read_bytes())
    except (OSError, ValueError) as err:
        raise BadInput(f"{file} cannot be read: {err}. {_AGAIN}") from err
    if not isinstance(info, dict):
        raise BadInput(f"{file} is no JSON object. {_AGAIN}")
    version = info.get("codebase_version")
    if not str(version).startswith("v3."):
        raise BadInput(
            f"{source} is a LeRobotDataset {version}, but must be v3: convert it with lerobot's "
            "convert_dataset_v21_to_v30"
        )
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(x, dict) for x in features.values()):
        raise BadInput(f"{file}: features is {str(features)[:60]}, but must be an object. {_AGAIN}")
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise BadInput(f"{file}: fps is {fps!r}, but must be a number above 0. {_AGAIN}")
    return info


def _columns(source: str, path: Path, names: list[str]) -> dict[str, NDArray[Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as err:
        raise BadInput(
            f"pyarrow is not installed ({err}): pip install 'sorl-fast[import]'"
        ) from err
    files = sorted((path / "data").glob("*/*.parquet"))
    if not files:
        raise BadInput(f"{source} has no data/*/*.parquet. {_AGAIN}")
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for file in files:
        try:
            table = pyarrow.parquet.read_table(file, columns=names)
            for name in names:
                parts[name].append(_array(f"{file}", name, table.column(name).combine_chunks()))
        except (OSError, KeyError, pyarrow.ArrowException) as err:
            raise BadInput(f"{file} cannot be read: {str(err)[:200]}. {_AGAIN}") from err
    try:
        return {name: np.concatenate(found) for name, found in parts.items()}
    except ValueError as err:
        raise BadInput(
            f"{source}: its files have rows of different sizes: {err}. {_AGAIN}"
        ) from err


def _array(file: str, name: str, column: Any) -> NDArray[Any]:
    """Return a column of numbers, or of lists of numbers of one length, as [T] or [T, n]."""
    rows = len(column)
    if column.null_count:
        raise BadInput(f"{file}: {name} has {column.null_count} empty values. {_AGAIN}")
    if not hasattr(column, "flatten") or "list" not in str(column.type):
        return numbers(file, name, column.to_numpy(zero_copy_only=False), 1)
    flat = column.flatten()
    lengths = {len(x) for x in (column[0], column[-1])} if rows else {0}
    n = lengths.pop()
    if len(flat) != rows * n or lengths:
        raise BadInput(f"{file}: {name} has lists of different lengths. {_AGAIN}")
    return numbers(file, name, flat.to_numpy(zero_copy_only=False), 1).reshape(rows, n)
