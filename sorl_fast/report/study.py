"""A sweep's folder as a study: methods over tasks and seeds, beside the published figures.

A score is a run's success, in [0, 1], in its plain cell: the most equal Euler steps that it was evaluated
with, the fewest candidates, argmax. A method is what stands as one folder below an environment's.

N candidates, M Euler steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..act.policy_file import load
from ..act.rules import ARGMAX
from ..envs import PRESETS, dataset_name
from ..errors import BadInput
from ..simulate.episodes import Cell as Way
from ..simulate.episodes import cell_of
from ..simulate.evaluate import wilson
from .aggregate import Scores, Statistic, improvement, interval, iqm, mean, point
from .runs import Cell, Line, Run, Setting, cells_of, counted, load_run, widened
from .speeds import Job, Progress, Store, timed

PUBLISHED_UPDATES, PUBLISHED_SEEDS, PUBLISHED_TASKS = 1_000_000, 8, 5
ALL = "all tasks"  # what the aggregate over every family is called


class Member(NamedTuple):
    """One run of a study."""

    method: str  # its folder's name
    seed: int
    run: Run

    @property
    def env(self) -> str:
        """Its task."""
        return str(self.run.train["env"])

    @property
    def family(self) -> str:
        """The environment that its task belongs to."""
        return dataset_name(self.env).removesuffix("-v0")


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs of a sweep's folder."""

    folder: Path
    members: tuple[Member, ...]
    missing: tuple[str, ...]  # what of the folder is not shown, and why

    @property
    def methods(self) -> list[str]:
        """The methods, by name."""
        return sorted({m.method for m in self.members})

    @property
    def families(self) -> list[str]:
        """The environments."""
        return sorted({m.family for m in self.members})

    def of(self, method: str, family: str | None = None) -> list[Member]:
        """Return the runs of a method, of one family or of all."""
        return [m for m in self.members if m.method == method and family in (None, m.family)]


def is_study(folder: Path) -> bool:
    """Whether a folder is a sweep's, and no run's own."""
    return not (folder / "config.json").exists() and any(folder.glob("*/*/*/config.json"))


def load_study(folder: Path) -> Study:
    """Read every run of a sweep's folder: FOLDER/ENV/METHOD/seedS.

    Raises
    ------
    BadInput
        No run there can be read, or a file is damaged.
    """
    members, missing = [], []
    for path in sorted(folder.glob("*/*/*/config.json")):
        name = path.parent.relative_to(folder)
        try:
            run = load_run(path.parent)
        except BadInput as err:
            if "has nothing to report" not in str(err):
                raise
            missing.append(f"{name} has logged nothing yet")
            continue
        members.append(Member(path.parent.parent.name, int(run.train["seed"]), run))
        if run.evaluation is None:
            missing.append(f"{name} has not been evaluated")
        elif run.outdated:
            missing.append(f"{name} was trained on since it was evaluated")
        elif not run.complete:
            step = run.evaluation.get("step", 0)
            missing.append(
                f"{name}: its evaluation during the training, at {step:,} updates, stands in"
            )
    if not members:
        raise BadInput(
            f"{folder} has no run to report on: {'; '.join(missing) or 'it is empty'}. Run the sweep"
        )
    return Study(folder, tuple(members), tuple(missing))


def plain_way(rows: Iterable[Line]) -> Way | None:
    """Return the cell that a run is scored in; None where none of equal steps and argmax is there."""
    cells = [cell_of(row) for row in rows]
    plain = [c for c in cells if isinstance(c.steps, int) and c.rule == str(ARGMAX)]
    if not plain:
        return None
    fewest = min(c.candidates for c in plain)
    return max((c for c in plain if c.candidates == fewest), key=lambda c: int(c.steps))


Rows = dict[str, list[Line]]  # task -> each seed's row of an evaluation
Bounded = tuple[float, tuple[float, float] | None]  # a value and its interval


def rows_of(members: Sequence[Member]) -> Rows:
    """Return task -> each seed's row of the plain cell that all of the members' evaluations have."""
    evaluations = {id(m): m.run.evaluation for m in members if m.run.evaluation is not None}
    way = _shared_way([e["rows"] for e in evaluations.values()])
    found: Rows = {}
    for member in members:
        if id(member) in evaluations and way is not None:
            found.setdefault(member.env, []).append(_row(evaluations[id(member)]["rows"], way))
    return found


def scores(rows: Rows) -> dict[str, list[float]]:
    """Return task -> each seed's success."""
    return {task: [float(row["success"]) for row in some] for task, some in rows.items()}


def scores_of(members: Sequence[Member]) -> dict[str, list[float]]:
    """Return task -> each seed's success in the plain cell that all of the members' evaluations have."""
    return scores(rows_of(members))


def bounded(rows: Rows, statistic: Statistic) -> Bounded:
    """Return a statistic of success and its 95% interval; no interval where a task has one seed.

    The wider, at each end, of the stratified bootstrap's over seeds and Wilson's of all episodes pooled.
    """
    own = scores(rows)
    value, bounds = point(own, statistic), interval(own, statistic)
    if bounds is None:
        return value, None
    return value, widened(value, bounds, *counted(row for some in rows.values() for row in some))


def bounded_improvement(x: Scores, y: Scores) -> Bounded:
    """Return the probability that X improves on Y and its 95% interval, as `bounded` does.

    What is counted are not episodes but runs held against one another: Wilson's is of as many as can be
    paired off, each run in one pair.
    """
    value, bounds = improvement(x, y)
    if bounds is None:
        return value, None
    pairs = sum(min(len(x[task]), len(y[task])) for task in x.keys() & y.keys())
    return value, widened(value, bounds, value * pairs, pairs)


def _shared_way(evaluations: Sequence[Sequence[Line]]) -> Way | None:
    """Return the plain cell among those that every evaluation has."""
    if not evaluations:
        return None
    shared = set.intersection(*({cell_of(row) for row in rows} for rows in evaluations))
    return plain_way([row for row in evaluations[0] if cell_of(row) in shared])


def _row(rows: Iterable[Line], way: Way) -> Line:
    return next(row for row in rows if cell_of(row) == way)


def curve_of(members: Sequence[Member]) -> dict[int, Rows]:
    """Return updates -> task -> each seed's row then, at those updates that every run has."""
    logged = [{line["step"]: line["rows"] for line in m.run.evals} for m in members]
    with_any = [(m, lines) for m, lines in zip(members, logged, strict=True) if lines]
    if not with_any:
        return {}
    steps = sorted(set.intersection(*({*lines} for _, lines in with_any)))
    way = _shared_way([lines[step] for _, lines in with_any for step in steps])
    found: dict[int, Rows] = {}
    for step in steps if way is not None else ():
        assert way is not None
        tasks = found.setdefault(step, {})
        for member, lines in with_any:
            tasks.setdefault(member.env, []).append(_row(lines[step], way))
    return found


# ---- tables


class Aggregate(NamedTuple):
    """A method over the tasks of a family, or of all."""

    method: str
    tasks: int
    runs: int
    mean: Bounded
    iqm: Bounded
    improvement: Bounded | None  # over the chosen method


def aggregates(study: Study, family: str | None, versus: str) -> list[Aggregate]:
    """Return a line a method that has been evaluated in a family, or in any."""
    other = scores_of(study.of(versus, family))
    lines = []
    for method in study.methods:
        rows = rows_of(study.of(method, family))
        if not rows:
            continue
        compared = method != versus and rows.keys() & other.keys()
        lines.append(
            Aggregate(
                method,
                len(rows),
                sum(map(len, rows.values())),
                bounded(rows, mean),
                bounded(rows, iqm),
                bounded_improvement(scores(rows), other) if compared else None,
            )
        )
    return lines


def per_task(study: Study) -> list[tuple[str, list[Cell | None]]]:
    """Return task -> the plain cell of each method over its seeds."""
    lines = []
    for env in sorted({m.env for m in study.members}):
        cells = []
        for method in study.methods:
            rows = [m.run.evaluation for m in study.of(method) if m.env == env and m.run.evaluation]
            way = _shared_way([e["rows"] for e in rows])
            found = [c for c in cells_of(rows) if c.way == way]
            cells.append(found[0] if found else None)
        lines.append((env, cells))
    return lines


class Beside(NamedTuple):
    """A method's published figure and ours."""

    family: str
    method: str
    published: str
    ours: str
    differs: str


def beside(study: Study) -> list[Beside]:
    """Return ours beside the published figures (arXiv 2505.22866, table of results), and what differs."""
    lines = []
    for family in study.families:
        preset = PRESETS.get(family)
        for method in study.methods if preset is not None else ():
            members = study.of(method, family)
            if not members:
                continue
            assert preset is not None
            run = members[0].run
            rows = rows_of(members)
            result = preset.paper.get(run.method)
            if result is None:
                continue
            ours = _percent(*bounded(rows, mean)) if rows else "not run yet"
            lines.append(Beside(family, method, result.words, ours, _differing(members)))
    return lines


def _differing(members: Sequence[Member]) -> str:
    """Return in what runs differ from the published ones, in words."""
    run = members[0].run
    data = run.config.get("data") or {}
    seeds = len({m.seed for m in members})
    tasks = sorted({m.env.removesuffix("-v0").rpartition("-task")[2] for m in members})
    updates = int(run.train["steps"])
    words = []
    if updates != PUBLISHED_UPDATES:
        words.append(f"{updates:,} updates, not {PUBLISHED_UPDATES:,}")
    if seeds != PUBLISHED_SEEDS:
        words.append(f"{seeds} seed{'s' * (seeds > 1)}, not {PUBLISHED_SEEDS}")
    if len(tasks) != PUBLISHED_TASKS:
        words.append(f"task {', '.join(tasks)}, not all {PUBLISHED_TASKS}")
    rows = data.get("transitions")
    size = f" of {rows:,} transitions" if isinstance(rows, int) else ""
    words.append(f"data{size} as given here: the published ones are OGBench's own")
    if run.precision != "fp32":
        words.append(f"trained in {run.precision}")
    if run.timing not in ("", "post"):
        words.append(f"success_timing={run.timing}, not post")
    return "; ".join(words)


def _percent(value: float, bounds: tuple[float, float] | None) -> str:
    if bounds is None:
        return f"{100 * value:.1f}%"
    return f"{100 * value:.1f}% [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


# ---- what several tasks and seeds have in common, for the pictures of cells


def pooled(members: Sequence[Member], family: str, evaluations: Sequence[Line]) -> Setting:
    """Return a method's runs in a family as one setting: cells are the means over tasks and seeds.

    A cell's interval is that of `bounded`, or with one seed a task Wilson's over all episodes.
    """
    cells = []
    for cell in cells_of(evaluations):
        rows: Rows = {}
        for evaluation in evaluations:
            for row in evaluation["rows"]:
                if cell_of(row) == cell.way:
                    rows.setdefault(str(evaluation["env"]), []).append(row)
        value, bounds = bounded(rows, mean)
        if bounds is None:
            bounds = wilson(*counted(row for some in rows.values() for row in some))
        seeds = max(map(len, rows.values()))
        low, high = min(bounds[0], value), max(bounds[1], value)
        cells.append(cell._replace(success=value, low=low, high=high, seeds=seeds))
    runs = tuple(m.run for m in members)
    tasks = len({m.env for m in members})
    where = f"{family}, {tasks} task{'s' * (tasks > 1)}"
    return Setting(members[0].method, runs, tuple(cells), where=where)


def evaluations_of(member: Member) -> dict[str, Line]:
    """Return precision -> the run's evaluation in it, of those in its own environment."""
    found: dict[str, Line] = {}
    if member.run.evaluation is not None:
        precision = str(member.run.evaluation.get("precision", "fp32"))
        found[precision] = {"env": member.env} | member.run.evaluation
    for path in sorted(member.run.folder.glob("evaluation-*.json")):
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as err:
            remedy = f"`sorl-fast eval {member.run.folder}` writes it anew"
            raise BadInput(f"{path} cannot be read ({err}). {remedy}") from err
        precision = str(values.get("precision", "fp32"))
        # not what was moved aside, nor of another environment
        if path.stem == f"evaluation-{precision}" and values.get("rows"):
            found[precision] = {"env": member.env} | values
    return found


class Lane(NamedTuple):
    """How policies acted: a picture of speed and success each."""

    family: str
    precision: str
    backend: str  # "": the Sampler's own choice

    @property
    def name(self) -> str:
        """For a title or a file."""
        return "-".join(x for x in self if x)


def lanes(study: Study, backends: Sequence[str]) -> dict[Lane, list[Setting]]:
    """Return the pooled settings of each family, precision and backend, a method each."""
    found: dict[Lane, list[Setting]] = {}
    for family in study.families:
        for method in study.methods:
            members = study.of(method, family)
            kept = {id(m): evaluations_of(m) for m in members}
            for precision in sorted({p for e in kept.values() for p in e}):
                some = [m for m in members if precision in kept[id(m)]]
                setting = pooled(some, family, [kept[id(m)][precision] for m in some])
                for backend in backends:
                    found.setdefault(Lane(family, precision, backend), []).append(setting)
    return found


def with_lane_speeds(
    found: Mapping[Lane, Sequence[Setting]],
    store: Path,
    seconds: float,
    again: bool,
    progress: Progress | None,
) -> tuple[dict[Lane, list[Setting]], Store | None, list[str]]:
    """Return the settings with speeds measured here, whose clock that is, and what could not be timed.

    One policy of a setting is timed for all: an action's time does not depend on the weights. A lane in
    which some method's policy cannot act is left out, for a front of the others would say too much.
    """
    jobs: dict[Lane, list[Job]] = {}
    untimed: list[str] = []
    for lane, settings in found.items():
        own = []
        try:
            for setting in settings:
                policy = _policy_of(setting)
                job = Job(policy, lane.precision, tuple(c.way for c in setting.cells), lane.backend)
                job.sampler()
                own.append(job)
        except BadInput as err:
            untimed.append(f"{lane.name}: no speeds, since not every method acts so here: {err}")
            continue
        jobs[lane] = own
    if not jobs:
        return {}, None, untimed
    kept = timed([job for own in jobs.values() for job in own], store, seconds, again, progress)
    result: dict[Lane, list[Setting]] = {}
    for lane, own in jobs.items():
        for setting, job in zip(found[lane], own, strict=True):
            rows = {way: kept.rows[job.key(way)] for way in job.ways}
            cells = [c._replace(actions_per_second=job.rate(rows[c.way])) for c in setting.cells]
            timed_by = " and ".join(sorted({str(row["backend"]) for row in rows.values()}))
            timed_by += f", {lane.precision}"
            replaced = dataclasses.replace(setting, cells=tuple(cells), timed_by=timed_by)
            result.setdefault(lane, []).append(replaced)
    return result, kept, untimed


def _policy_of(setting: Setting) -> Any:
    errors = []
    for run in setting.runs:
        try:
            return load(run.folder / "policy.safetensors")
        except BadInput as err:
            errors.append(str(err))
    raise BadInput(errors[0])
