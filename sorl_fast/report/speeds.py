"""Actions a second of every cell of a report: measured here by one clock, kept, and used again.

speeds.json, beside report.html, holds what was measured and on which machine. A policy is known there
by its digest, so that a run that was trained on is measured again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..act.policy_file import Policy, load
from ..act.rules import ARGMAX
from ..act.sampler import Sampler
from ..act.timing import act_time
from ..atomic import write_bytes
from ..cores import available_cores
from ..errors import BadInput
from ..machine import cpu_model
from ..simulate.episodes import Cell as Way
from ..simulate.episodes import cell_of
from ..version import __version__
from .runs import Run, Setting

Progress = Callable[[int, int], None]

_NEEDED = ("policy", "precision", "steps", "candidates", "backend", "p50_us")


class _Key(NamedTuple):
    policy: str  # digest
    precision: str
    steps: int | str
    candidates: int
    rule: str
    asked: str = ""  # the backend that was asked for; "": the Sampler's own choice

    def to_json(self) -> dict[str, Any]:
        """Return the fields, argmax and a backend that nobody has asked for unnamed."""
        unnamed = {"rule": str(ARGMAX), "asked": ""}
        return {k: v for k, v in self._asdict().items() if v != unnamed.get(k)}


@dataclasses.dataclass
class Store:
    """What speeds.json holds: rows by `Job.key`."""

    machine: dict[str, Any]
    rows: dict[_Key, dict[str, Any]]


class Job(NamedTuple):
    """A policy whose cells are to be timed."""

    policy: Policy
    precision: str  # of its evaluation
    ways: tuple[Way, ...]
    backend: str = ""  # "": the Sampler's own choice

    def key(self, way: Way) -> _Key:
        """Return what the speed of one of its cells is kept under."""
        return _Key(self.policy.digest, self.precision, *way, self.backend)

    def rate(self, row: Mapping[str, Any]) -> float:
        """Return the actions a second of a cell that was timed: h of each call, of a chunk."""
        return 1e6 * self.policy.chunk / float(row["p50_us"])

    def sampler(self) -> Sampler:
        """Return what acts; BadInput where it cannot here."""
        return Sampler(self.policy, self.backend or None, self.precision)


def _here() -> dict[str, Any]:
    return {"cpu": cpu_model(), "cores": available_cores(), "sorl_fast": __version__}


def _read(path: Path) -> Store:
    """Return what is stored; of a file that is missing or not ours, nothing."""
    try:
        values = json.loads(path.read_bytes())
        rows = {
            _Key(row["policy"], row["precision"], *cell_of(row), row.get("asked", "")): dict(row)
            for row in values["speeds"]
            if all(name in row for name in _NEEDED) and row["p50_us"] > 0
        }
        return Store(dict(values["machine"]), rows)
    except (OSError, ValueError, KeyError, TypeError):
        return Store({}, {})


def _job(run: Run) -> Job:
    """Return what is to be timed of a run that has an evaluation; BadInput: it has no policy."""
    evaluation = run.evaluation
    assert evaluation is not None
    ways = tuple(cell_of(row) for row in evaluation["rows"])
    policy = load(run.folder / "policy.safetensors")
    return Job(policy, str(evaluation.get("precision", "fp32")), ways)


def with_speeds(
    settings: Sequence[Setting],
    store: Path,
    seconds: float,
    again: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Setting], str]:
    """Return the settings with actions a second by one clock, and whose clock that is, in words.

    The clock is this machine's: each cell of each run is timed with one observation a call, on one
    thread where the backend is native. What `store` holds of this machine is not timed again; what it
    holds of another machine is used if nothing is missing, so that a report may be written again
    elsewhere. Where a run cannot be timed, because its policy is not there or does not act here, all
    speeds are those that the evaluations met: two clocks are never mixed.

    Parameters
    ----------
    settings
        The report's, of any environments.
    store
        speeds.json; written if anything is timed.
    seconds
        Time for each cell; at least 200 calls are made.
    again
        Time every cell, whatever `store` holds.
    progress
        Called with (cells timed, cells to time).
    """
    runs = [run for s in settings for run in s.runs if run.evaluation is not None]
    if not runs:
        return list(settings), ""
    try:
        jobs = {run.folder: _job(run) for run in runs}
        kept = timed(list(jobs.values()), store, seconds, again, progress)
    except BadInput as err:
        return list(settings), (
            "Speeds as the evaluations met them, beside the simulator and other workers, since not every "
            f"run can be timed here: {err}"
        )
    return [_replaced(setting, jobs, kept.rows) for setting in settings], clock_of(kept)


def clock_of(kept: Store) -> str:
    """Return whose clock measured the speeds, in words."""
    where = f"{kept.machine['cpu']}, {kept.machine['cores']} cores"
    return (
        f"Speeds measured on {where}: the median call from Python, one observation a call, one thread "
        "where the backend is native; actions/s is one over it, and of chunks of h actions h over it."
    )


def timed(
    jobs: Sequence[Job], path: Path, seconds: float, again: bool, progress: Progress | None
) -> Store:
    """Return the speeds of all cells, of one machine; the parameters as `with_speeds`."""
    wanted = {job.key(way): (job, way) for job in jobs for way in job.ways}
    kept = Store({}, {}) if again else _read(path)
    missing = [key for key in wanted if key not in kept.rows]
    if not missing and {"cpu", "cores"} <= kept.machine.keys():
        return kept
    here = _here()
    if kept.machine != here:
        kept, missing = Store(here, {}), list(wanted)
    samplers: dict[tuple[str, str, str], Sampler] = {}
    for done, key in enumerate(missing, 1):
        job, way = wanted[key]
        which = key.policy, key.precision, key.asked
        if which not in samplers:
            samplers[which] = job.sampler()
        sampler = samplers[which]
        time = act_time(sampler, way.steps, way.candidates, seconds, rule=way.rule)
        backend = f"{sampler.backend} {sampler.isa}".strip()
        kept.rows[key] = key.to_json() | {"backend": backend} | time._asdict()
        if progress is not None:
            progress(done, len(missing))
    values = {"machine": kept.machine, "speeds": list(kept.rows.values())}
    write_bytes(path, (json.dumps(values, indent=1) + "\n").encode())
    return kept


def _replaced(
    setting: Setting, jobs: Mapping[Path, Job], rows: Mapping[_Key, Mapping[str, Any]]
) -> Setting:
    """Return the setting with the measured speeds of its cells, the mean over its runs."""
    own = [jobs[run.folder] for run in setting.runs if run.folder in jobs]
    cells, backends = [], set()
    for cell in setting.cells:
        found = [(rows[job.key(cell.way)], job) for job in own if cell.way in job.ways]
        backends |= {str(row["backend"]) for row, _ in found}
        rate = sum(job.rate(row) for row, job in found) / len(found)
        cells.append(cell._replace(actions_per_second=rate))
    return dataclasses.replace(setting, cells=tuple(cells), timed_by=" and ".join(sorted(backends)))
