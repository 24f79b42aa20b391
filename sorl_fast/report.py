"""The tables and pictures of one or more runs: a self-contained report.html, and its figures as PNGs.

A run's folder gives config.json, log.jsonl, eval.jsonl (periodic evaluations) and evaluation.json
(the grid of `sorl-fast eval`). Runs that differ in their seed alone are one setting, and are
aggregated. Success is a fraction in [0, 1] in the files, a percentage in what is shown.

N candidates, M Euler steps.
"""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .act.evaluate import wilson
from .atomic import write_bytes
from .config import Preset, find_preset
from .errors import BadInput
from .version import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Line = dict[str, Any]

# Okabe and Ito's colours, told apart with any colour vision; yellow is left out, being faint on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#555555"
_DPI = 150

# Student's t, two-sided 95%, for 1, 2, ... 29 degrees of freedom.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045),
)

_ROW_KEYS = (
    *("steps", "candidates", "episodes", "successes", "success", "ci_low", "ci_high"),
    *("episode_length", "actions_per_second", "returns"),
)


class Cell(NamedTuple):
    """One cell (M, N) of one evaluation, or of those of several seeds."""

    steps: int
    candidates: int
    seeds: int
    episodes: int  # of all seeds together
    success: float
    low: float
    high: float
    episode_length: float
    actions_per_second: float
    returns: float

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

    @property
    def agent(self) -> dict[str, Any]:
        """The saved AgentConfig."""
        return dict(self.config["agent"])

    @property
    def train(self) -> dict[str, Any]:
        """The saved TrainConfig."""
        return dict(self.config["train"])

    @property
    def timing(self) -> str:
        """The success timing of its evaluations, "" without any."""
        source = self.evaluation or (self.evals[-1] if self.evals else {})
        return str(source.get("success_timing", ""))

    @property
    def key(self) -> str:
        """Equal for runs that are seeds of one setting."""
        data = self.config.get("data") or {}
        source = data.get("sha256") or [data.get("transitions"), data.get("episodes")]
        parts = (self.agent, self.train["env"], self.train["steps"], source, self.timing)
        return json.dumps(parts, sort_keys=True)


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone."""

    label: str
    runs: tuple[Run, ...]
    cells: tuple[Cell, ...]  # of the final evaluation; by steps, then candidates

    @property
    def env(self) -> str:
        """The environment's name."""
        return str(self.runs[0].train["env"])

    def cell(self, steps: int, candidates: int) -> Cell | None:
        """The cell (M, N), None if it was not evaluated."""
        found = [c for c in self.cells if (c.steps, c.candidates) == (steps, candidates)]
        return found[0] if found else None


# Reading


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
        missing = [key for key in _ROW_KEYS if not isinstance(values.get(key), int | float)]
        if missing:
            raise BadInput(f"{path}: a row of rows has no number {missing[0]!r}. {remedy}")
    return dict(value)


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
    for section, names in (("agent", ("q_coef", "m_disc")), ("train", ("env", "steps", "seed"))):
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
    return Run(folder, config, log, evals, evaluation, complete)


# Aggregating


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
    low, high = wilson(sum(row["successes"] for row in rows), sum(row["episodes"] for row in rows))
    return mean, max(0.0, min(low, mean - half)), min(1.0, max(high, mean + half))


def cells_of(evaluations: Iterable[Line]) -> tuple[Cell, ...]:
    """Aggregate evaluations of several seeds, cell by cell; by steps, then candidates."""
    table: dict[tuple[int, int], list[Line]] = {}
    for evaluation in evaluations:
        for row in evaluation["rows"]:
            table.setdefault((row["steps"], row["candidates"]), []).append(row)
    cells = []
    for (steps, candidates), rows in sorted(table.items()):
        means = [
            sum(row[key] for row in rows) / len(rows)
            for key in ("episode_length", "actions_per_second", "returns")
        ]
        episodes = sum(row["episodes"] for row in rows)
        cells.append(Cell(steps, candidates, len(rows), episodes, *_interval(rows), *means))
    return tuple(cells)


def _settings(runs: Sequence[Run]) -> list[Setting]:
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
    described = [_described(group[0]) for group in groups.values()]
    varied = [key for key in described[0] if len({d.get(key) for d in described}) > 1]
    settings = []
    for group, values in zip(groups.values(), described, strict=True):
        label = ", ".join(f"{key} {values[key]}" for key in varied) or str(values["env"])
        evaluations = [run.evaluation for run in group if run.evaluation is not None]
        settings.append(Setting(label, tuple(group), cells_of(evaluations)))
    return settings


def _described(run: Run) -> dict[str, str]:
    """What may set one setting apart from another, in the words of the labels."""
    data = run.config.get("data") or {}
    values = {"env": run.train["env"], "updates": f"{run.train['steps']:,}"} | run.agent
    values |= {"transitions": data.get("transitions"), "data": str(data.get("sha256", ""))[:8]}
    return {key: str(value) for key, value in (values | {"success": run.timing}).items()}


def pareto_front(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that no other beats in both speed and success, fastest first."""
    front: list[Cell] = []
    for cell in sorted(cells, key=lambda c: (-c.actions_per_second, -c.success)):
        if not front or cell.success > front[-1].success:
            front.append(cell)
    return front


# Drawing


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _panels(n: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of `n` panels, `columns` a row, of the given size in inches each."""
    columns = min(n, columns)
    rows = -(-n // columns)
    figure = _figure(max(width * columns, 6.0), height * rows)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(n)]
    return figure, axes


def _dress(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(_wrap(title), fontsize=11, loc="left")
    ax.set_xlabel(xlabel, fontsize=10)
    ax.set_ylabel(ylabel, fontsize=10)
    ax.grid(True, which="major", color="#dddddd", linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _wrap(text: str, width: int = 46) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text


def _head(figure: Figure, settings: Sequence[Setting], cells: Sequence[Cell]) -> None:
    """Say above a picture what it shows, since it may be shown without the report."""
    words = sorted({setting.env for setting in settings})
    seeds = sorted({len(setting.runs) for setting in settings})
    count = " or ".join(map(str, seeds))
    words.append(f"{count} training seed{'s' if seeds != [1] else ''}")
    if cells:
        words.append(f"{_episodes(cells)} episodes a cell")
        words.append("95% intervals" if seeds != [1] else "95% Wilson intervals")
    text = _wrap(", ".join(words), int(figure.get_figwidth() * 15))
    figure.suptitle(text, fontsize=9, color=_GREY, x=0.01, ha="left")


def _percent_axis(ax: Axes) -> None:
    ax.set_ylim(-4, 104)
    ax.set_yticks(range(0, 101, 20))


def _doubling_axis(ax: Axes, values: Sequence[int]) -> None:
    """Logarithmic, with a tick at each of `values` and at no other place."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(values), [str(v) for v in values])
    ax.minorticks_off()
    ax.set_xlim(min(values) / 1.5, max(values) * 1.5)


def _look(values: Sequence[int], value: int) -> dict[str, Any]:
    rank = sorted(values).index(value)
    return {"color": _COLOURS[rank % len(_COLOURS)], "marker": _MARKERS[rank % len(_MARKERS)]}


def _steps_of(settings: Sequence[Setting]) -> list[int]:
    """All M of the report, so that each has one colour in every picture."""
    found = {cell.steps for s in settings for cell in s.cells}
    for setting in settings:
        for run in setting.runs:
            found |= {row["steps"] for line in run.evals for row in line["rows"]}
    return sorted(found)


def _candidates_of(settings: Sequence[Setting]) -> list[int]:
    return sorted({cell.candidates for s in settings for cell in s.cells})


def _titled(settings: Sequence[Setting], setting: Setting, title: str) -> str:
    return f"{setting.label}: {title}" if len(settings) > 1 else title


_LOSSES = (
    ("fm_loss", "Flow matching"),
    ("sc_loss", "Self-consistency"),
    ("q_loss", "Q loss of the actor"),
    ("critic_loss", "TD loss of the critic"),
)


def _series(lines: Sequence[Line], key: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return [step for step, _ in found], [float(value) for _, value in found]


def draw_losses(settings: Sequence[Setting]) -> Figure | None:
    """Losses against updates, training and validation; None if nothing was logged."""
    logs = [(i, run.log) for i, setting in enumerate(settings) for run in setting.runs]
    shown = [
        (key, title)
        for key, title in _LOSSES
        if any(_series(log, k)[0] for _, log in logs for k in (key, f"val_{key}"))
    ]
    if not shown:
        return None
    figure, axes = _panels(len(shown), 2, 4.6, 2.7)
    for ax, (key, title) in zip(axes, shown, strict=True):
        drawn: list[float] = []
        for i, log in logs:
            # With one setting, colour sets training and validation apart as well as the dashes do.
            second = i if len(settings) > 1 else 3
            for name, colour, style in ((key, i, "-"), (f"val_{key}", second, "--")):
                x, y = _series(log, name)
                marker = "." if len(x) <= 20 else ""
                colour_ = _COLOURS[colour % len(_COLOURS)]
                ax.plot(x, y, style, color=colour_, marker=marker, linewidth=1.2)
                drawn += [value for value in y if math.isfinite(value)]
        if drawn and min(drawn) > 0 and max(drawn) > 10 * min(drawn):
            ax.set_yscale("log")
            _decades(ax.yaxis)
        ax.xaxis.set_major_formatter(_thousands)
        _dress(ax, title, "updates", "loss")
    _losses_legend(figure, axes[0], settings)
    _head(figure, settings, ())
    return figure


def _losses_legend(figure: Figure, ax: Axes, settings: Sequence[Setting]) -> None:
    one = len(settings) == 1
    entries: list[tuple[str, str, str]] = []
    for i, setting in enumerate(settings if not one else ()):
        entries.append((_wrap(setting.label), _COLOURS[i % len(_COLOURS)], "-"))
    entries.append(("training", _COLOURS[0] if one else _GREY, "-"))
    log = [line for setting in settings for run in setting.runs for line in run.log]
    if any(f"val_{key}" in line for line in log for key, _ in _LOSSES):
        entries.append(("validation", _COLOURS[3] if one else _GREY, "--"))
    for label, colour, style in entries:
        ax.plot([], [], style, color=colour, label=label)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _thousands(value: float, _: float = 0) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def draw_learning(settings: Sequence[Setting]) -> Figure | None:
    """Success against updates, one line an M, at the smallest N; None without periodic evaluations."""
    shown = [s for s in settings if any(run.evals for run in s.runs)]
    if not shown:
        return None
    all_steps = _steps_of(settings)
    figure, axes = _panels(len(shown), 2, 5.4 if len(shown) > 1 else 7.2, 3.6)
    for ax, setting in zip(axes, shown, strict=True):
        curves = learning_curves(setting)
        smallest = min(cell.candidates for cells in curves.values() for cell in cells)
        for M in all_steps:
            points = [
                (step, cell)
                for step, cells in curves.items()
                for cell in cells
                if (cell.steps, cell.candidates) == (M, smallest)
            ]
            if not points:
                continue
            look = _look(all_steps, M)
            x = [step for step, _ in points]
            mean, low, high = zip(*(cell.percent for _, cell in points), strict=True)
            ax.plot(x, mean, label=f"M = {M}", markersize=4, linewidth=1.6, **look)
            if len(x) > 1:
                ax.fill_between(x, low, high, color=look["color"], alpha=0.13, linewidth=0)
            else:
                ax.vlines(x, low, high, color=look["color"], alpha=0.5)
        _percent_axis(ax)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(_thousands)
        _dress(ax, _titled(settings, setting, f"N = {smallest}"), "updates", "success, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    _head(figure, shown, [cell for s in shown for cs in learning_curves(s).values() for cell in cs])
    return figure


def learning_curves(setting: Setting) -> dict[int, tuple[Cell, ...]]:
    """Aggregate the periodic evaluations of a setting at those steps that most of its seeds have."""
    by_step: dict[int, list[Line]] = {}
    for run in setting.runs:
        for line in run.evals:
            by_step.setdefault(line["step"], []).append(line)
    most = max((len(lines) for lines in by_step.values()), default=0)
    return {step: cells_of(by_step[step]) for step in sorted(by_step) if len(by_step[step]) == most}


def draw_scaling(settings: Sequence[Setting]) -> Figure | None:
    """Success against M, a line an N, and against N, a line an M; None if no line has two points."""
    all_steps, all_candidates = _steps_of(settings), _candidates_of(settings)
    views: list[tuple[Setting, str]] = []
    for setting in settings:
        if len({cell.steps for cell in setting.cells}) > 1:
            views.append((setting, "M"))
        if len({cell.candidates for cell in setting.cells}) > 1:
            views.append((setting, "N"))
    if not views:
        return None
    figure, axes = _panels(len(views), 2, 4.8 if len(views) > 1 else 7.2, 3.6)
    for ax, (setting, against) in zip(axes, views, strict=True):
        if against == "M":
            title, xlabel = "sequential scaling", "Euler steps M"
            values, lines, other = all_steps, all_candidates, "N"
        else:
            title, xlabel = "parallel scaling", "candidates N, best of N"
            values, lines, other = all_candidates, all_steps, "M"
        for rank, line in enumerate(lines):
            cells = [
                (x, cell)
                for x in values
                if (cell := setting.cell(*((x, line) if against == "M" else (line, x))))
            ]
            if not cells:
                continue
            # side by side, so that the intervals of one x do not cover one another
            dodge = 2 ** (0.09 * (rank - (len(lines) - 1) / 2))
            mean, low, high = zip(*(cell.percent for _, cell in cells), strict=True)
            errors = [
                [m - a for m, a in zip(mean, low, strict=True)],
                [b - m for m, b in zip(mean, high, strict=True)],
            ]
            look = _look(lines, line)
            if against == "M":  # N has greys: a colour is an M in every picture
                look["color"] = str(0.72 * rank / max(1, len(lines) - 1))
            ax.errorbar(
                [x * dodge for x, _ in cells],
                mean,
                yerr=errors,
                label=f"{other} = {line}",
                capsize=2.5,
                linewidth=1.4,
                elinewidth=1,
                markersize=5,
                **look,
            )
        _doubling_axis(ax, [v for v in values if _has(setting, against, v)])
        _percent_axis(ax)
        _dress(ax, _titled(settings, setting, title), xlabel, "success, %")
    entries: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=8,
        frameon=False,
        fontsize=9,
    )
    _head(figure, settings, [cell for setting in settings for cell in setting.cells])
    return figure


def _has(setting: Setting, against: str, value: int) -> bool:
    return any((c.steps if against == "M" else c.candidates) == value for c in setting.cells)


def draw_pareto(settings: Sequence[Setting]) -> Figure | None:
    """Success against actions a second, the Pareto front marked; None without an evaluation."""
    shown = [setting for setting in settings if setting.cells]
    if not shown:
        return None
    all_steps = _steps_of(settings)
    rates = [cell.actions_per_second for s in shown for cell in s.cells]
    figure, axes = _panels(len(shown), 2, 5.4 if len(shown) > 1 else 7.2, 4.0)
    for ax, setting in zip(axes, shown, strict=True):
        front = pareto_front(setting.cells)
        corners = _corners(front, min(rates) / 1.5)
        ax.plot(*zip(*corners, strict=True), color=_GREY, linestyle=":", linewidth=1.4)
        for cell in setting.cells:
            look = _look(all_steps, cell.steps)
            mean, low, high = cell.percent
            ax.vlines(cell.actions_per_second, low, high, color=look["color"], alpha=0.35)
            ax.plot(
                cell.actions_per_second,
                mean,
                markersize=7,
                markeredgecolor=look["color"],
                markerfacecolor=look["color"] if cell in front else "white",
                markeredgewidth=1.4,
                linestyle="",
                marker=look["marker"],
            )
        ax.set_xscale("log")
        ax.set_xlim(min(rates) / 1.5, max(rates) * 1.5)
        _percent_axis(ax)
        _dress(
            ax,
            _titled(settings, setting, "labels M/N, steps/candidates"),
            "actions a second, one CPU process",
            "success, %",
        )
        _decades(ax.xaxis)
    handles: Any = [
        axes[0].plot([], [], linestyle="", label=f"M = {M}", **_look(all_steps, M))[0]
        for M in all_steps
        if any(cell.steps == M for s in shown for cell in s.cells)
    ]
    handles += axes[0].plot([], [], ":", color=_GREY, label="Pareto front (filled)")
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    _head(figure, shown, [cell for setting in shown for cell in setting.cells])
    figure.draw_without_rendering()  # fixes the layout, which the labels' places depend on
    for ax, setting in zip(axes, shown, strict=True):
        _label_points(ax, setting.cells)
    return figure


def _corners(front: Sequence[Cell], slowest: float) -> list[tuple[float, float]]:
    """Return the best success, in %, to be had at each speed or above, as a staircase."""
    corners = [(cell.actions_per_second, cell.percent[0]) for cell in front]
    stairs = corners[:1]
    for (_, low), (rate, high) in itertools.pairwise(corners):
        stairs += [(rate, low), (rate, high)]
    return [*stairs, (slowest, corners[-1][1])]


def _decades(axis: Axis) -> None:
    """Label 1, 2 and 5 of each decade, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(_thousands)
    axis.set_minor_formatter(NullFormatter())


def _label_points(ax: Axes, cells: Sequence[Cell]) -> None:
    """Write M/N beside each point: near it, within the axes, and where it covers least."""
    from matplotlib.patheffects import withStroke

    scale = 72 / _DPI  # pixels to points

    def place(rate: float, percent: float) -> tuple[float, float]:
        x, y = ax.transData.transform((rate, percent))
        return x * scale, y * scale

    left, bottom, right, top = (edge * scale for edge in ax.bbox.extents)
    taken = []
    for cell in cells:
        low, mean, high = (place(cell.actions_per_second, z)[1] for z in sorted(cell.percent))
        x, _ = place(cell.actions_per_second, 0)
        taken += [(x - 5, mean - 5, x + 5, mean + 5), (x - 1, low, x + 1, high)]
    stairs = [place(*corner) for corner in _corners(pareto_front(cells), ax.get_xlim()[0])]
    for (x0, y0), (x1, y1) in itertools.pairwise(stairs):
        taken.append((min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    sides = ((1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6), (1, 0), (-1, 0), (0, 1), (0, -1))
    for cell in cells:
        text = f"{cell.steps}/{cell.candidates}"
        x, y = place(cell.actions_per_second, cell.percent[0])
        width, height = 4.8 * len(text), 8.0
        costs = []
        for reach, (dx, dy) in itertools.product((7, 12, 18, 26, 34), sides):
            x0 = x + dx * reach + width * (dx - 1) / 2
            y0 = y + dy * (reach + 2) - height / 2
            box = (x0, y0, x0 + width, y0 + height)
            outside = width * height - _overlap(box, (left, bottom, right, top))
            cost = sum(_overlap(box, other) for other in taken) + 9 * outside + 2 * (reach - 7)
            costs.append((cost, box))
        _, best = min(costs, key=lambda pair: pair[0])
        taken.append(best)
        ax.annotate(
            text,
            (cell.actions_per_second, cell.percent[0]),
            (best[0] - x, best[1] - y),
            textcoords="offset points",
            fontsize=8,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


_PICTURES: tuple[tuple[str, str, Callable[[Sequence[Setting]], Figure | None], str], ...] = (
    (
        "learning",
        "Success against updates",
        draw_learning,
        "Periodic evaluations during training, one line for each number of Euler steps M.",
    ),
    (
        "scaling",
        "Success against steps and candidates",
        draw_scaling,
        "Left, sequential scaling: more Euler steps M. Right, parallel scaling: the best of more "
        "candidates N by the critic's Q.",
    ),
    (
        "pareto",
        "Success against speed",
        draw_pareto,
        "Actions a second of the policy alone. Filled: no other cell is both faster and better.",
    ),
    (
        "losses",
        "Losses",
        draw_losses,
        "On training minibatches and on the validation file.",
    ),
)


# Words


_TIMING = {
    "post": "on the state after each action (success_timing=post, as in the paper)",
    "pre": "on the state before each action (success_timing=pre; the paper judged the one after)",
}
_ONE_SEED = (
    "Intervals are Wilson's 95% intervals over episodes: one training seed, so they say nothing about "
    "how much another seed would differ."
)
_SEVERAL_SEEDS = (
    "Over several seeds, success is the mean over seeds and its interval the wider of two: the 95% t "
    "interval over seeds, and Wilson's 95% interval over all their episodes. With one seed it is "
    "Wilson's."
)


def _span(cell: Cell) -> str:
    mean, low, high = cell.percent
    return f"{mean:.0f}% [{low:.0f}, {high:.0f}]"


def _episodes(cells: Sequence[Cell]) -> str:
    """Say how many episodes a cell has: `50`, or `10 to 50` where cells differ."""
    counts = {cell.episodes for cell in cells}
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def terminal_table(evaluation: Mapping[str, Any]) -> str:
    """Return an evaluation as a small text table: a line an M, a column an N.

    Parameters
    ----------
    evaluation
        What `sorl_fast.act.evaluate.Evaluator.run` returns.

    Returns
    -------
    str
        Lines without a final line break. A cell is success, its 95% interval and actions a second.
    """
    cells = cells_of([dict(evaluation)])
    all_steps = sorted({cell.steps for cell in cells})
    all_candidates = sorted({cell.candidates for cell in cells})
    by_place = {(cell.steps, cell.candidates): cell for cell in cells}
    grid = [["", *(f"N = {N}" for N in all_candidates)]]
    for M in all_steps:
        line = [f"M = {M}"]
        for N in all_candidates:
            cell = by_place.get((M, N))
            line.append(f"{_span(cell)} {_rate(cell.actions_per_second)}/s" if cell else "-")
        grid.append(line)
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    lines = [
        f"{evaluation['env']}: success [95% interval] and actions per second of the policy alone",
        f"{_episodes(cells)} episodes a cell, success_timing={evaluation['success_timing']}",
    ]
    for line in grid:
        texts = [text.rjust(width) for text, width in zip(line, widths, strict=True)]
        lines.append("   ".join(texts).rstrip())
    return "\n".join(lines)


def _notes(settings: Sequence[Setting]) -> list[str]:
    """What a reader must know before believing a number."""
    notes = []
    for run in (run for setting in settings for run in setting.runs):
        name = run.folder.name
        if run.evaluation is None:
            notes.append(
                f"{name} has not been evaluated: no success is shown for it. Run "
                f"`sorl-fast eval {run.folder}`."
            )
        elif not run.complete:
            notes.append(
                f"{name} has no evaluation.json: the last periodic evaluation, after "
                f"{run.evaluation['step']:,} updates, stands in. Run `sorl-fast eval {run.folder}` "
                "for the full grid."
            )
        steps, every = run.train["steps"], run.train.get("log_every", 0)
        if run.log and every and run.log[-1]["step"] + every < steps:
            notes.append(
                f"{name} logged {run.log[-1]['step']:,} of its {steps:,} updates: it was stopped, "
                "or is still training."
            )
        if not run.log:
            notes.append(f"{name} has no log lines: no losses are shown for it.")
    for setting in settings:
        counts = {cell.seeds for cell in setting.cells}
        if len(counts) > 1:
            notes.append(f"{setting.label}: not every seed has every cell; the counts are stated.")
    if len({setting.env for setting in settings}) > 1:
        notes.append("The settings are in different environments: their success is not comparable.")
    if len({run.timing for s in settings for run in s.runs if run.timing}) > 1:
        notes.append(
            "The settings judge success at different times (post and pre): not comparable as they are."
        )
    if any(cell.episodes < 50 for s in settings for cell in s.cells):
        notes.append("Cells have fewer than 50 episodes: read the intervals, not the percentages.")
    return notes


def _grid(setting: Setting) -> dict[str, Any]:
    all_candidates = sorted({cell.candidates for cell in setting.cells})
    lines = [
        (M, [setting.cell(M, N) for N in all_candidates])
        for M in sorted({cell.steps for cell in setting.cells})
    ]
    return {
        "label": setting.label,
        "seeds": len(setting.runs),
        "episodes": _episodes(setting.cells) if setting.cells else "0",
        "candidates": all_candidates,
        "lines": lines,
        "front": pareto_front(setting.cells),
        "cells": setting.cells,
    }


def _paper(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Our cells at the smallest N beside the paper's figures, where the family is in its table."""
    lines = []
    for setting in settings:
        preset: Preset | None = find_preset(setting.env)
        if preset is None or not setting.cells:
            continue
        smallest = min(cell.candidates for cell in setting.cells)
        lines.append(
            {
                "label": setting.label,
                "preset": preset,
                "cells": [cell for cell in setting.cells if cell.candidates == smallest],
                "candidates": smallest,
                "seeds": len(setting.runs),
                "episodes": _episodes(setting.cells),
                "data": _data_words(setting.runs[0]),
            }
        )
    return lines


def _data_words(run: Run) -> str:
    data = run.config.get("data") or {}
    words = []
    for key, text in (("transitions", "transitions"), ("episodes", "episodes")):
        if isinstance(data.get(key), int):
            words.append(f"{data[key]:,} {text}")
    return ", ".join(words) or "not recorded"


def _runs(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    lines = []
    for setting in settings:
        for run in setting.runs:
            logged = [line for line in run.log if "updates_per_second" in line]
            last = logged[-1] if logged else {}
            rates = sorted(line["updates_per_second"] for line in logged)
            evaluation = run.evaluation or {}
            if run.complete:
                source = "evaluation.json"
            else:
                source = "eval.jsonl, last line" if run.evaluation else "not evaluated"
            if evaluation:
                source += f" ({evaluation.get('backend')}, seed {evaluation.get('seed')})"
            lines.append(
                {
                    "folder": str(run.folder),
                    "label": setting.label,
                    "seed": run.train["seed"],
                    "updates": f"{last['step']:,}" if last else "not logged",
                    "minutes": f"{last['seconds'] / 60:,.1f}"
                    if "seconds" in last
                    else "not logged",
                    "rate": f"{rates[len(rates) // 2]:,.1f}" if rates else "not logged",
                    "device": run.train.get("device", "not recorded"),
                    "evaluation": source,
                    "data": _data_words(run),
                    "versions": dict(run.config.get("versions") or {}),
                    "eval_versions": dict(evaluation.get("versions") or {}),
                    "commands": _commands(run),
                }
            )
    return lines


def _commands(run: Run) -> list[str]:
    """Return the command lines of the training, its resumptions too, and of the evaluation."""
    found = run.config.get("commands") or [run.config.get("command")]
    return [str(text) for text in (*found, (run.evaluation or {}).get("command")) if text]


def _config_table(settings: Sequence[Setting]) -> list[tuple[str, list[str], bool]]:
    """Return (field, its value in each setting, whether settings differ) of agent and training."""
    columns = []
    for setting in settings:
        train = {k: v for k, v in setting.runs[0].train.items() if k not in ("seed", "out")}
        seeds = ", ".join(str(run.train["seed"]) for run in setting.runs)
        columns.append(setting.runs[0].agent | train | {"seeds": seeds})
    names = list(dict.fromkeys(name for column in columns for name in column))
    table = []
    for name in names:
        values = [_value(column.get(name)) for column in columns]
        table.append((name, values, len(set(values)) > 1))
    return table


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _gpu(settings: Sequence[Setting]) -> str:
    used = {str(run.train.get("device", "cpu")) for s in settings for run in s.runs}
    trained = sorted(device for device in used if device != "cpu")
    if trained:
        return f"Training used {', '.join(trained)}; acting was not yet measured on a GPU."
    return "Not yet measured on a GPU."


# Writing


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write report.html and figures/*.png about the runs.

    Parameters
    ----------
    runs
        Run folders, at least one. Those that differ in their seed alone are aggregated; others are
        compared side by side.
    out
        The folder to write into; by default the first run's.

    Returns
    -------
    Path
        report.html: one file, pictures included, without any reference to the network.

    Raises
    ------
    BadInput
        A folder or file is missing, empty or damaged, a seed is there twice, or `out` cannot be
        written; the message names it and the remedy.
    """
    if not runs:
        raise BadInput("no run to report on. Give at least one: `sorl-fast report RUN`")
    settings = _settings([load_run(Path(run)) for run in runs])
    out = Path(runs[0]) if out is None else Path(out)
    pictures = []
    for name, title, draw, caption in _PICTURES:
        figure = draw(settings)
        path = out / "figures" / f"{name}.png"
        if figure is None:
            with contextlib.suppress(OSError):  # a folder that refuses is named by the next write
                path.unlink()  # of an earlier report: it would show other results
            continue
        data = _png(figure)
        write_bytes(path, data)
        uri = "data:image/png;base64," + base64.b64encode(data).decode()
        pictures.append({"title": title, "caption": caption, "uri": uri})
    path = out / "report.html"
    write_bytes(path, _render(settings, pictures).encode())
    return path


def _render(settings: Sequence[Setting], pictures: Sequence[Mapping[str, str]]) -> str:
    from jinja2 import Environment, StrictUndefined

    text = files("sorl_fast").joinpath("report.html.jinja").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"span": _span, "rate": _rate}
    several = any(len(setting.runs) > 1 for setting in settings)
    timings = sorted({run.timing for s in settings for run in s.runs if run.timing})
    return environment.from_string(text).render(
        version=__version__,
        envs=sorted({setting.env for setting in settings}),
        settings=settings,
        several_settings=len(settings) > 1,
        notes=_notes(settings),
        timings=[_TIMING.get(timing, f"as success_timing={timing} says") for timing in timings],
        intervals=_SEVERAL_SEEDS if several else _ONE_SEED,
        grids=[_grid(setting) for setting in settings if setting.cells],
        pictures=pictures,
        paper=_paper(settings),
        runs=_runs(settings),
        config=_config_table(settings),
        gpu=_gpu(settings),
    )
