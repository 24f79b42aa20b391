"""What run folders hold, and the aggregation of runs that differ in their seed alone.

A run's folder gives config.json, log.jsonl, eval.jsonl (periodic evaluations) and evaluation.json
(the grid of `sorl-fast eval`). Success is a fraction in [0, 1].

N candidates, M Euler steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..act.policy_file import digest, load
from ..act.rules import ARGMAX, rule_of
from ..act.schedule import schedule_of
from ..config import DEFAULT_METHOD
from ..errors import BadInput
from ..learn.algorithms import find_method
from ..simulate.episodes import Cell as Way
from ..simulate.episodes import cell_of, cell_order
from ..simulate.evaluate import wilson

Line = dict[str, Any]

# Student's t, two-sided 95%, for 1, 2, ... 29 degrees of freedom.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045),
)

_NUMBERS = (  # of a row; it has its steps too, and may have a rule
    *("candidates", "episodes", "successes", "success", "ci_low", "ci_high"),
    *("episode_length", "actions_per_second", "returns"),
)


class Cell(NamedTuple):
    """One way to act, of one evaluation or of those of several seeds."""

    steps: int | str  # M, or a schedule's name
    candidates: int
    seeds: int
    episodes: int  # of all seeds together
    success: float
    low: float
    high: float
    episode_length: float
    actions_per_second: float
    returns: float
    rule: str = str(ARGMAX)

    @property
    def way(self) -> Way:
        """What was evaluated: steps, candidates and rule."""
        return Way(self.steps, self.candidates, self.rule)

    @property
    def is_plain(self) -> bool:
        """Whether it is M equal steps and argmax: what the axis of M has a place for."""
        return isinstance(self.steps, int) and self.rule == str(ARGMAX)

    @property
    def percent(self) -> tuple[float, float, float]:
        """Success and its interval in %."""
        return 100 * self.success, 100 * self.low, 100 * self.high


@dataclass(frozen=True)
class Run:
    """What a run's folder holds."""

    folder: Path
    config: dict[str, Any]
    log: list[Line]  # by step, training and validation merged
    evals: list[Line]  # by step
    evaluation: Line | None
    complete: bool  # `evaluation` is the grid of `sorl-fast eval`, not the last periodic one
    policy: str | None = None  # digest of its policy file; None: there is none that can be read

    @property
    def method(self) -> str:
        """The method's name; SORL's before runs recorded it."""
        return _method(self.config)

    @property
    def agent(self) -> dict[str, Any]:
        """The saved config of the method."""
        return dict(self.config["agent"])

    @property
    def train(self) -> dict[str, Any]:
        """The saved TrainConfig."""
        return dict(self.config["train"])

    @property
    def precision(self) -> str:
        """What the training's products read; fp32 before runs recorded it."""
        return str(self.train.get("precision", "fp32"))

    @property
    def timing(self) -> str:
        """The success timing of its evaluations, "" without any."""
        source = self.evaluation or (self.evals[-1] if self.evals else {})
        return str(source.get("success_timing", ""))

    @property
    def outdated(self) -> bool:
        """Whether the run was trained on since its grid was evaluated."""
        if not self.complete or self.evaluation is None:
            return False
        evaluated = self.evaluation.get("policy")
        if evaluated and self.policy:
            return bool(evaluated != self.policy)
        step = self.evaluation.get("step")  # all that an older evaluation states
        return bool(step and self.log and step < self.log[-1]["step"])

    @property
    def key(self) -> str:
        """Equal for runs that are seeds of one setting."""
        data = self.config.get("data") or {}
        source = data.get("sha256") or [data.get("transitions"), data.get("episodes")]
        own = self.train
        train = (self.method, own["env"], own["steps"], self.precision, own.get("chunk", 1))
        return json.dumps((self.agent, train, source, self.timing), sort_keys=True)


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone, or of a study in their task too: then `where` is given."""

    label: str
    runs: tuple[Run, ...]
    cells: tuple[Cell, ...]  # of the final evaluation, in `cell_order`
    timed_by: str = ""  # the backend whose actions a second its cells have, such as native avx512
    where: str = ""  # what its tasks are together called

    @property
    def method(self) -> str:
        """The method's name."""
        return self.runs[0].method

    @property
    def env(self) -> str:
        """The environment's name."""
        return self.where or str(self.runs[0].train["env"])

    @property
    def seeds(self) -> int:
        """How many seeds there are."""
        if not self.where:  # they differ in nothing else
            return len(self.runs)
        return len({run.train["seed"] for run in self.runs})

    def cell(self, steps: int | str, candidates: int, rule: str = str(ARGMAX)) -> Cell | None:
        """The cell of these steps, candidates and rule, None if it was not evaluated."""
        found = [c for c in self.cells if c.way == (steps, candidates, rule)]
        return found[0] if found else None


def _method(config: Any) -> str:
    """Return the method of a config.json, which may be anything."""
    return str(config.get("method", DEFAULT_METHOD)) if isinstance(config, dict) else DEFAULT_METHOD


def _load_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise BadInput(f"{path} cannot be read ({err}). {remedy}") from err


def _load_lines(path: Path, remedy: str) -> list[Line]:
    """Return a JSONL file's objects by their "step"; the last of equal steps wins, after a resume."""
    if not path.exists():
        return []
    try:
        texts = path.read_text("utf-8", errors="replace").split("\n")
    except OSError as err:
        raise BadInput(f"{path} cannot be read ({err}). {remedy}") from err
    half = texts.pop()  # what a killed writer left; "" after a whole line
    merged: dict[int, Line] = {}
    for number, text in enumerate([*texts, half], 1):
        try:
            line = json.loads(text) if text.strip() else None
            if line is not None:
                step = int(line["step"])
                merged[step] = merged.get(step, {}) | line
        except (ValueError, KeyError, TypeError) as err:
            if number > len(texts):
                break
            raise BadInput(f"line {number} of {path} is damaged ({err!r}). {remedy}") from err
    return [merged[step] for step in sorted(merged)]


def _check_evaluation(value: Any, path: Path, remedy: str) -> Line:
    rows = value.get("rows") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{path} holds no evaluation: its field rows is missing or empty. {remedy}")
    for row in rows:
        values = row if isinstance(row, dict) else {}
        if "steps" not in values:
            raise BadInput(f"{path}: a row of rows has no 'steps'. {remedy}")
        missing = [key for key in _NUMBERS if not isinstance(values.get(key), int | float)]
        if missing:
            raise BadInput(f"{path}: a row of rows has no number {missing[0]!r}. {remedy}")
        _check_way(cell_of(values), path, remedy)
    return dict(value)


def _check_way(way: Way, path: Path, remedy: str) -> None:
    """Raise BadInput unless a row's steps and rule are such as an evaluation writes."""
    try:
        steps_are = type(way.steps) in (int, str) and schedule_of(way.steps).key == way.steps
    except BadInput:
        steps_are = False
    if not steps_are:
        raise BadInput(
            f"{path}: steps of a row is {way.steps!r}, but must be M or the name of a schedule of "
            f"unequal steps, such as 1/2,1/4,1/4. {remedy}"
        )
    try:
        rule_of(way.rule)
    except BadInput as err:
        raise BadInput(f"{path}: of a row, {err}. {remedy}") from err


def load_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises
    ------
    BadInput
        A file is missing, empty or damaged; the message names it and the command that makes it.
    """
    train = f"`sorl-fast train --out {folder} ...` writes it"
    evaluate = f"`sorl-fast eval {folder}` writes it anew"
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a run's folder: no such folder. Make it: {train}")
    path = folder / "config.json"
    if not path.exists():
        raise BadInput(f"{folder} is not a run's folder: it has no config.json; {train}")
    config = _load_json(path, f"Train again: {train}")
    settings = find_method(_method(config)).Config
    required = [f.name for f in fields(cast(Any, settings)) if f.default is MISSING]
    for section, names in (("agent", required), ("train", ["env", "steps", "seed"])):
        values = config.get(section) if isinstance(config, dict) else None
        for name in names:
            if not isinstance(values, dict) or name not in values:
                raise BadInput(f"{path} has no {section}.{name}. Train again: {train}")

    log = _load_lines(folder / "log.jsonl", f"Delete the line, or train again: {train}")
    path = folder / "eval.jsonl"
    remedy = f"Delete the line, and evaluate: `sorl-fast eval {folder}`"
    evals = [_check_evaluation(line, path, remedy) for line in _load_lines(path, remedy)]
    path = folder / "evaluation.json"
    complete = path.exists()
    evaluation = evals[-1] if evals else None
    if complete:
        evaluation = _check_evaluation(_load_json(path, evaluate), path, evaluate)
    if not log and evaluation is None:
        raise BadInput(
            f"{folder} has nothing to report: log.jsonl, eval.jsonl and evaluation.json are missing "
            f"or empty. Train to the first log line (`sorl-fast train --out {folder} --resume ...`), "
            f"or evaluate: `sorl-fast eval {folder}`"
        )
    return Run(folder, config, log, evals, evaluation, complete, _policy_digest(folder))


def _policy_digest(folder: Path) -> str | None:
    try:
        return digest(load(folder / "policy.safetensors"))
    except BadInput:
        return None  # a report is of what was recorded: it needs no policy


def _interval(rows: Sequence[Line]) -> tuple[float, float, float]:
    """Return the success of a cell over seeds, and its interval.

    One seed: as evaluated (Wilson). More: the mean, with the wider of the 95% t interval over seeds
    and Wilson's over all episodes, since seeds that agree by chance would have an interval of width 0.
    """
    if len(rows) == 1:
        return rows[0]["success"], rows[0]["ci_low"], rows[0]["ci_high"]
    n = len(rows)
    rates = [row["success"] for row in rows]
    mean = sum(rates) / n
    t = _T95[n - 2] if n - 2 < len(_T95) else 1.96
    half = t * math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (n - 1) / n)
    bounds = max(0.0, mean - half), min(1.0, mean + half)
    return mean, *widened(mean, bounds, *counted(rows))


def counted(rows: Iterable[Line]) -> tuple[int, int]:
    """Return the successes and the episodes of all rows together."""
    counts = [(row["successes"], row["episodes"]) for row in rows]
    return sum(s for s, _ in counts), sum(n for _, n in counts)


def widened(
    value: float, bounds: tuple[float, float], successes: float, n: int
) -> tuple[float, float]:
    """Return an interval in [0, 1], each end moved out to that of Wilson's of `successes` in `n`.

    Seeds that agree by chance, all failing in 3 episodes each, would otherwise have an interval of width 0.
    `value` lies within whatever is returned.
    """
    low, high = wilson(successes, n)
    return min(low, value, bounds[0]), max(high, value, bounds[1])


def cells_of(evaluations: Iterable[Line]) -> tuple[Cell, ...]:
    """Aggregate evaluations of several seeds, cell by cell, in `cell_order`."""
    table: dict[Way, list[Line]] = {}
    for evaluation in evaluations:
        for row in evaluation["rows"]:
            table.setdefault(cell_of(row), []).append(row)
    cells = []
    for way in sorted(table, key=cell_order):
        rows = table[way]
        means = [
            sum(row[key] for row in rows) / len(rows)
            for key in ("episode_length", "actions_per_second", "returns")
        ]
        episodes = sum(row["episodes"] for row in rows)
        cell = Cell(way.steps, way.candidates, len(rows), episodes, *_interval(rows), *means)
        cells.append(cell._replace(rule=way.rule))
    return tuple(cells)


def group_settings(runs: Sequence[Run]) -> list[Setting]:
    """Group runs that differ in their seed alone; the same seed twice in a group is refused."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.key, []).append(run)
    for group in groups.values():
        seeds: dict[int, Path] = {}
        for run in group:
            seed = run.train["seed"]
            if seed in seeds:
                raise BadInput(
                    f"{seeds[seed]} and {run.folder} are the same setting with the same seed "
                    f"({seed}), which would count one experiment twice. Give only one of them"
                )
            seeds[seed] = run.folder
    settings = []
    for group in groups.values():
        evaluations = [run.evaluation for run in group if run.evaluation is not None]
        backends = {str(e["backend"]) for e in evaluations if e.get("backend")}
        cells = cells_of(evaluations)
        settings.append(Setting("", tuple(group), cells, " and ".join(sorted(backends))))
    alone = len(settings) == 1
    labels = [settings[0].env] if alone else series_names(settings)
    return [replace(s, label=label) for s, label in zip(settings, labels, strict=True)]


def _differences(described: Sequence[Mapping[str, str]]) -> list[str]:
    """Say of each what sets it apart from the others; "" of one alone."""
    names = dict.fromkeys(key for d in described for key in d)  # methods have fields of their own
    varied = [key for key in names if len({d.get(key) for d in described}) > 1]
    return [", ".join(f"{key} {d[key]}" for key in varied if key in d) for d in described]


def series_names(settings: Sequence[Setting]) -> list[str]:
    """Name each setting by its method, and by what sets it apart where a method has several.

    Where they are in several environments, by its own as well.
    """
    names = []
    apart = len({setting.env for setting in settings}) > 1
    for setting in settings:
        alike = [other for other in settings if other.method == setting.method]
        rank = next(i for i, other in enumerate(alike) if other is setting)
        own = _differences([_described(other.runs[0]) for other in alike])[rank]
        if apart and len({other.env for other in alike}) == 1:  # else it is among the differences
            own = ", ".join(words for words in (f"env {setting.env}", own) if words)
        title = find_method(setting.method).title.partition(":")[0]
        names.append(f"{title}, {own}" if own else title)
    return names


def short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return each folder's name, with as many of those above it as tell it from the others."""
    names = {}
    for folder in folders:
        parts = folder.parts
        for n in range(1, len(parts) + 1):
            if not any(other.parts[-n:] == parts[-n:] for other in folders if other != folder):
                break
        names[folder] = str(Path(*parts[-n:])) if parts else str(folder)
    return names


def by_environment(settings: Iterable[Setting]) -> dict[str, list[Setting]]:
    """Return the settings of each environment, in the order given."""
    found: dict[str, list[Setting]] = {}
    for setting in settings:
        found.setdefault(setting.env, []).append(setting)
    return found


def _described(run: Run) -> dict[str, str]:
    """What may set one setting apart from another, in the words of the labels."""
    data = run.config.get("data") or {}
    values = {"env": run.train["env"], "updates": f"{run.train['steps']:,}"}
    values |= {"method": run.method, "precision": run.precision} | run.agent
    values |= {"chunk": run.train.get("chunk", 1)}
    values |= {"transitions": data.get("transitions"), "data": str(data.get("sha256", ""))[:8]}
    return {key: str(value) for key, value in (values | {"success": run.timing}).items()}


def learning_curves(setting: Setting) -> dict[int, tuple[Cell, ...]]:
    """Aggregate the periodic evaluations of a setting at those updates that most of its seeds have.

    Of M equal steps and argmax. Updates without any such cell are left out.
    """
    by_step: dict[int, list[Line]] = {}
    for run in setting.runs:
        for line in run.evals:
            by_step.setdefault(line["step"], []).append(line)
    most = max((len(lines) for lines in by_step.values()), default=0)
    curves = {}
    for step in sorted(by_step):
        cells = tuple(cell for cell in cells_of(by_step[step]) if cell.is_plain)
        if cells and len(by_step[step]) == most:
            curves[step] = cells
    return curves


def other_rules(cells: Iterable[Cell]) -> list[str]:
    """Return the rules of choosing that the cells have beside argmax, sorted."""
    return sorted({cell.rule for cell in cells} - {str(ARGMAX)})


def episodes_of(cells: Sequence[Cell]) -> str:
    """Say how many episodes a cell has: `50`, or `10 to 50` where cells differ."""
    return episodes_text([cell.episodes for cell in cells])


def episodes_text(counts: Sequence[int]) -> str:
    """Say how many episodes there are: `50`, or `10 to 50`."""
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"
