"""`sorl-fast diagnose`: figures into RUN/diagnose.json, a picture each, and what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_bytes
from ..errors import BadInput
from ..flags import given, make
from ..progress import progress as show_progress
from ..progress import say
from ..report.diagnosis import FILE, PICTURES
from ..report.plotting import png
from ..version import package_versions
from .advice import advice
from .arguments import DiagnoseConfig
from .parts import PARTS, Absent
from .pictures import draw
from .subject import gather

_DIGITS = 6  # of a figure that is kept


def run_diagnose(args: argparse.Namespace) -> int:
    """Run the command of these arguments, and print what was found."""
    config = make(DiagnoseConfig, given(args, DiagnoseConfig))
    folder = Path(args.run)
    if args.progress:
        say(
            f"looking into {folder}: {config.episodes} episodes, then {len(PARTS)} parts of a diagnosis"
        )
    with show_progress(" episodes and parts", shown=args.progress) as progress:
        result = diagnose(folder, config, progress, command=args.command_line)
    print(text(folder, result))
    return 0


def diagnose(
    folder: Path,
    config: DiagnoseConfig,
    progress: Callable[[int, int], None],
    command: str = "",
) -> dict[str, Any]:
    """Examine a run, and write diagnose.json and figures/diagnose-*.png into its folder.

    Nothing is written before all is found; each file is whole or not there at all. The figures are a
    function of policy, data and config, but for `workers`, which changes none.

    Parameters
    ----------
    folder
        The run's.
    config
        What is examined, and how much of it.
    progress
        Called with (done, all): episodes and parts. What it raises ends the examination.
    command
        The command line, for the record.

    Returns
    -------
    dict
        What diagnose.json holds: policy (digest), env, method, steps, settings, versions, command, and
        parts, a list of {name, title, says} with either figures and picture (its file's name in
        figures/) or absent, which says why.

    Raises
    ------
    BadInput
        The folder is no run's, a value is out of its bounds, data given are missing or damaged, a worker
        died, or a file cannot be written.
    """
    subject, done = gather(folder, config, progress, len(PARTS))
    parts: list[dict[str, Any]] = []
    pictures: dict[str, bytes] = {}
    for part in PARTS:
        head = {"name": part.name, "title": part.title}
        try:
            figures = part.figures(subject)
        except Absent as err:
            parts.append(head | {"absent": str(err), "says": [f"Not examined: {err}."]})
        else:
            name = f"diagnose-{part.name}.png"
            pictures[name] = png(draw(part.name, figures, subject.env))
            says = advice(part.name, figures, str(folder))
            parts.append(head | {"says": says, "picture": name, "figures": _plain(figures)})
        done()
    settings = dataclasses.asdict(config)
    result = {
        "policy": subject.policy.digest,
        "env": subject.env,
        "method": subject.method,
        "steps": subject.steps.key,
        "settings": {k: v for k, v in settings.items() if k not in ("workers", "data", "steps")},
        "versions": package_versions(("numpy", "scipy", "ogbench", "mujoco")),
        "command": command,
        "parts": parts,
    }
    try:
        old = list((folder / PICTURES).glob("diagnose-*.png"))
        for name, data in pictures.items():
            write_bytes(folder / PICTURES / name, data)
        write_bytes(folder / FILE, (json.dumps(result, indent=1) + "\n").encode())
        for path in old:
            if path.name not in pictures:
                path.unlink()
    except OSError as err:
        raise BadInput(f"{err.filename} cannot be replaced: {err.strerror or err}") from err
    return result


def text(folder: Path, result: dict[str, Any]) -> str:
    """Return what the command prints: the parts' sentences, and where the rest is."""
    lines = [f"{folder}: {result['method']} in {result['env']}, M = {result['steps']}", ""]
    for part in result["parts"]:
        lines += [part["title"], *(f"  {line}" for line in part["says"]), ""]
    lines.append(f"{folder / FILE}, pictures in {folder / 'figures'}; `sorl-fast report {folder}`")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Return figures as JSON values, floats of 6 digits; what is not finite becomes None."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
