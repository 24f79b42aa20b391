"""The report's page about diagnoses: what `sorl-fast diagnose` left in the runs' folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .plotting import data_uri
from .runs import Run

FILE = "diagnose.json"
PICTURES = "figures"  # the folder beside it


def diagnosis_of(run: Run) -> dict[str, Any]:
    """Return what a page says of a run's diagnosis.

    Returns
    -------
    dict
        folder, command (what to run where there is none, or one of another policy; else ""), and parts: a
        list of {title, says, uri}, uri None where a part has no picture.

    Raises
    ------
    BadInput
        diagnose.json is damaged.
    """
    again = f"sorl-fast diagnose {run.folder}"
    path = run.folder / FILE
    if not path.is_file():
        return {"folder": str(run.folder), "command": again, "parts": []}
    try:
        values = json.loads(path.read_text("utf-8"))
        parts = [
            {
                "title": str(part["title"]),
                "says": [str(line) for line in part["says"]],
                "uri": _picture(run.folder, part.get("picture")),
            }
            for part in values["parts"]
        ]
        outdated = run.policy is not None and values["policy"] != run.policy
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise BadInput(f"{path} cannot be read ({err!r}). Write it anew: `{again}`") from err
    return {"folder": str(run.folder), "command": again if outdated else "", "parts": parts}


def diagnoses(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return `diagnosis_of` each run."""
    return [diagnosis_of(run) for run in runs]


def _picture(folder: Path, name: str | None) -> str | None:
    """Return a picture as a page holds it; None: there is none, or its file is gone."""
    path = folder / PICTURES / Path(str(name)).name  # of this folder alone, whatever the file says
    return data_uri(path.read_bytes()) if name and path.is_file() else None
