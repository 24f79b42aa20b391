"""Checkpoints that a kill cannot damage: RUN/checkpoints/{step:09d}/, whole or not there.

Numpy and safetensors only: no torch, no pickle. A folder is filled under a hidden name, flushed to
disk, then renamed; older checkpoints are removed only after the new one is in place.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..atomic import new_folder
from ..errors import BadInput

_NAME = re.compile(r"\d{9}")


class Checkpoint(NamedTuple):
    """What was saved after `step` updates."""

    step: int
    tensors: dict[str, np.ndarray]
    info: dict[str, Any]


def checkpoint_folders(root: Path) -> list[Path]:
    """Return the finished checkpoints in `root`, oldest first."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name))


def save_checkpoint(
    root: Path, step: int, tensors: Mapping[str, np.ndarray], info: Mapping[str, Any], keep: int
) -> Path:
    """Save one checkpoint and remove all but the `keep` newest.

    Parameters
    ----------
    root
        The run's `checkpoints` folder; made if need be.
    step
        Updates made so far. A checkpoint of that step that is already there is left as it is.
    tensors, info
        Numeric arrays by name, and JSON values.

    Returns
    -------
    Path
        The checkpoint's folder.

    Raises
    ------
    BadInput
        The disk is full or the folder read-only; older checkpoints are untouched.
    """
    folder = root / f"{step:09d}"
    if not folder.is_dir():
        with new_folder(folder) as part:
            (part / "state.safetensors").write_bytes(
                save({name: np.ascontiguousarray(x) for name, x in tensors.items()})
            )
            (part / "info.json").write_text(json.dumps({"step": step, **info}, indent=1))
    for old in checkpoint_folders(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_latest(root: Path) -> Checkpoint:
    """Load the newest checkpoint in `root`, and sweep out what a kill left half-made.

    Raises
    ------
    BadInput
        There is none, or it cannot be read.
    """
    folders = checkpoint_folders(root)
    if not folders:
        raise BadInput(f"no checkpoint in {root}: there is nothing to resume. Leave --resume out")
    for part in root.glob(".*.part"):
        with contextlib.suppress(OSError):
            shutil.rmtree(part)
    folder = folders[-1]
    try:
        info = json.loads((folder / "info.json").read_text())
        tensors = load_file(folder / "state.safetensors")
        return Checkpoint(int(info["step"]), tensors, info)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as err:
        remedy = f"Remove {folder} to resume from the checkpoint before it"
        raise BadInput(f"checkpoint {folder} cannot be read: {err}. {remedy}") from err
