"""Other people's data into one .npz of transitions: a source a file, one form of an episode, one writer."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from .. import atomic
from ..config import ImportConfig
from ..errors import BadInput
from ..version import __version__
from . import d4rl, lerobot, minari, robomimic
from .episode import Episode, Source, rows_of

SOURCES: dict[str, Any] = {x.NAME: x for x in (minari, lerobot, robomimic, d4rl)}


def run_import(source: str, config: ImportConfig) -> dict[str, Any]:
    """Write --out NAME.npz, NAME-val.npz for validation episodes, and what was found, NAME.json.

    Each file is there whole or not at all, NAME.npz last.

    Parameters
    ----------
    source
        A file, a folder, or the name of a Minari data set.
    config
        Its settings.

    Returns
    -------
    dict
        What NAME.json holds.

    Raises
    ------
    BadInput
        The source is not there, is damaged or has not what it must; a file is there already; or nothing
        can be written.
    """
    out = Path(config.out)
    val_path, found_path = out.with_name(f"{out.stem}-val.npz"), out.with_suffix(".json")
    for path in (out, val_path, found_path):
        if path.exists() and not config.force:
            raise BadInput(
                f"{path} is there already: choose another --out, or add --force to replace it"
            )
    path = Path(source).expanduser()
    name = config.format or _recognised(source, path)
    read: Source = SOURCES[name].read(source, path, config)
    train, val = _split(read.episodes, config.val_episodes)
    arrays, rows = rows_of(train, config.reward)
    found: dict[str, Any] = {"source": source, "format": name, "sorl_fast": __version__}
    found |= read.about | {"training": rows}
    if val:
        val_arrays, found["validation"] = rows_of(val, config.reward)
        for field in ("observations", "actions"):
            if val_arrays[field].shape[1] != arrays[field].shape[1]:
                raise BadInput(f"{source}: {field} of the validation episodes have another size")
        atomic.write_file(val_path, lambda file: np.savez(file, **val_arrays))  # type: ignore[arg-type]
    elif val_path.exists():
        val_path.unlink()  # of the data that --force replaces
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    atomic.write_bytes(found_path, text.encode())
    atomic.write_file(out, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return found


def text_of(found: dict[str, Any], config: ImportConfig) -> str:
    """Return what was found as lines, and how to train on it."""
    lines = [
        f"{name}: {_shown(value)}" for name, value in found.items() if not isinstance(value, dict)
    ]
    for part in ("training", "validation"):
        lines += [f"{part}, {name}: {_shown(value)}" for name, value in found.get(part, {}).items()]
    rows = found["training"]
    extreme = max(map(abs, (*rows["action low"], *rows["action high"])))
    more = " --action-range data" if extreme > 1 else ""
    lines.append(
        f"Written: {config.out}. Train: sorl-fast train --env NAME --data {config.out}{more} ..."
    )
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _recognised(source: str, path: Path) -> str:
    if not path.exists():
        return minari.NAME  # a name that Minari knows, or else what it says
    for name, module in SOURCES.items():
        if module.fits(path):
            return name
    raise BadInput(
        f"{source} is none of {', '.join(SOURCES)}: a folder with meta/info.json (LeRobotDataset v3) or "
        "data/metadata.json (Minari), or an HDF5 file of robomimic or D4RL. Name its --format to be told "
        "more"
    )


def _split(episodes: list[Episode], val_episodes: int) -> tuple[list[Episode], list[Episode]]:
    """Return training and validation: the last `val_episodes`, or else those that the source names."""
    if val_episodes >= max(len(episodes), 1):
        raise BadInput(
            f"val_episodes is {val_episodes}, but must be below {len(episodes)}, all that there are. Set "
            "--val-episodes"
        )
    if val_episodes:
        return episodes[:-val_episodes], episodes[-val_episodes:]
    return [x for x in episodes if not x.validation], [x for x in episodes if x.validation]
