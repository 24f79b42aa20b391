"""The policy file that a command's RUN means, or what to give instead."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from .errors import BadInput

_SHOWN = 6  # names in a message


def policy_path(run: str) -> tuple[Path, Path | None]:
    """Return the policy file of RUN, and the run's folder if RUN is one.

    Raises
    ------
    BadInput
        There is none. The message names runs that are there.
    """
    path = Path(run)
    if path.is_dir():
        policy = path / "policy.safetensors"
        if not policy.is_file():
            refuse_sweep(path)
            raise BadInput(
                f"{path} has no policy.safetensors; train it with `sorl-fast train --out {path}`"
            )
        return policy, path
    if not path.is_file():
        raise BadInput(f"no run folder or policy file {path}. {_instead(path)}")
    return path, None


def refuse_sweep(folder: Path) -> None:
    """Raise BadInput, naming its runs, if a folder is a sweep's."""
    try:
        from .report.study import is_study
    except ModuleNotFoundError:  # without the extra "train" there is no sweep, nor a run to train
        return
    if is_study(folder):
        runs = _names(sorted(folder.glob("*/*/*/policy.safetensors")))
        there = f"one of its runs: {_list(runs)}" if runs else "a run, when one has a policy"
        raise BadInput(f"{folder} is a sweep's folder, not a run's. Give {there}")


def _instead(path: Path) -> str:
    """Return what to do about a run that is not there."""
    here = Path()
    found = [path.parent.glob("*/policy.safetensors"), here.glob("*/policy.safetensors")]
    found.append(here.glob("*/*/policy.safetensors"))
    runs = list(dict.fromkeys(_names(sorted(file for files in found for file in files))))
    close = difflib.get_close_matches(str(path), runs, 1, 0.8)
    if close:
        return f"Did you mean {close[0]}?"
    if runs:
        return f"There are {_list(runs)}"
    return f"`sorl-fast train --out {path}` makes one"


def _names(files: Iterable[Path]) -> list[str]:
    return [str(file.parent) for file in files]


def _list(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
