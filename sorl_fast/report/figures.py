"""The pictures: learning curves, scaling, losses; `PICTURES` is the list of all.

Success is shown in %. N candidates, M Euler steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..act.rules import ARGMAX
from ..act.schedule import order
from ..learn.algorithms import find_method
from .pareto import draw_pareto, say_pareto
from .plotting import (
    COLOURS,
    GREY,
    MARKERS,
    decades,
    dress,
    head,
    panels,
    percent_axis,
    thousands,
    wrap,
)
from .runs import Cell, Line, Setting, learning_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_STYLES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))  # of the rules beside argmax, which is solid


def _doubling_axis(ax: Axes, values: Sequence[int]) -> None:
    """Logarithmic, with a tick at each of `values` and at no other place."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(values), [str(v) for v in values])
    ax.minorticks_off()
    ax.set_xlim(min(values) / 1.5, max(values) * 1.5)


def _look(values: Sequence[int | str], value: int | str) -> dict[str, Any]:
    rank = values.index(value)
    return {"color": COLOURS[rank % len(COLOURS)], "marker": MARKERS[rank % len(MARKERS)]}


def _steps_of(settings: Sequence[Setting]) -> list[int | str]:
    """All M and schedules of the report, so that each has one colour in every picture."""
    found = {cell.steps for s in settings for cell in s.cells}
    for setting in settings:
        for run in setting.runs:
            found |= {row["steps"] for line in run.evals for row in line["rows"]}
    return sorted(found, key=order)


def _candidates_of(settings: Sequence[Setting]) -> list[int | str]:
    return sorted({cell.candidates for s in settings for cell in s.cells})


def _titled(settings: Sequence[Setting], setting: Setting, title: str) -> str:
    return f"{setting.label}: {title}" if len(settings) > 1 else title


def _losses_of(settings: Sequence[Setting]) -> dict[str, str]:
    """Return the metrics that the settings' methods want drawn, with their titles."""
    found: dict[str, str] = {}
    for setting in settings:
        method = find_method(setting.method)
        found = {name: method.metrics[name] for name in method.plots} | found
    return found


def _series(lines: Sequence[Line], key: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return [step for step, _ in found], [float(value) for _, value in found]


def draw_losses(settings: Sequence[Setting]) -> Figure | None:
    """Losses against updates, training and validation; None if nothing was logged."""
    logs = [(i, run.log) for i, setting in enumerate(settings) for run in setting.runs]
    shown = [
        (key, title)
        for key, title in _losses_of(settings).items()
        if any(_series(log, k)[0] for _, log in logs for k in (key, f"val_{key}"))
    ]
    if not shown:
        return None
    figure, axes = panels(len(shown), 2, 4.6, 2.7)
    for ax, (key, title) in zip(axes, shown, strict=True):
        drawn: list[float] = []
        for i, log in logs:
            # With one setting, colour sets training and validation apart as well as the dashes do.
            second = i if len(settings) > 1 else 3
            for name, colour, style in ((key, i, "-"), (f"val_{key}", second, "--")):
                x, y = _series(log, name)
                marker = "." if len(x) <= 20 else ""
                colour_ = COLOURS[colour % len(COLOURS)]
                ax.plot(x, y, style, color=colour_, marker=marker, linewidth=1.2)
                drawn += [value for value in y if math.isfinite(value)]
        if drawn and min(drawn) > 0 and max(drawn) > 10 * min(drawn):
            ax.set_yscale("log")
            decades(ax.yaxis)
        ax.xaxis.set_major_formatter(thousands)
        dress(ax, title, "updates", "loss")
    _losses_legend(figure, axes[0], settings)
    head(figure, settings, ())
    return figure


def _has_losses(settings: Sequence[Setting], prefix: str) -> bool:
    """Whether a log has a loss of training (prefix "") or validation ("val_")."""
    log = [line for setting in settings for run in setting.runs for line in run.log]
    return any(_series(log, prefix + key)[0] for key in _losses_of(settings))


def _say_losses(settings: Sequence[Setting]) -> str:
    of = {"": "on training minibatches", "val_": "on the validation file"}
    words = [text for prefix, text in of.items() if _has_losses(settings, prefix)]
    found = [f"{' and '.join(words)}.".capitalize()]
    normalised = [s for s in settings if _has_normalised_q(s)]
    if normalised:
        methods = dict.fromkeys(find_method(s.method).title.partition(":")[0] for s in normalised)
        found.append(
            f"The actor's Q loss ({', '.join(methods)}) is divided by its own mean |Q|, so it stays near "
            "-1 while values are positive and near 1 while they are negative."
        )
    log = [line for setting in settings for run in setting.runs for line in run.log]
    if _series(log, "val_critic_loss")[0]:
        found.append(
            "A TD loss is a squared error of values: on validation data it grows as they themselves grow."
        )
    return " ".join(found)


def _has_normalised_q(setting: Setting) -> bool:
    """Whether a log has a Q loss that its method divides by its mean |Q|."""
    log = [line for run in setting.runs for line in run.log]
    there = any(_series(log, key)[0] for key in ("q_loss", "val_q_loss"))
    agent = setting.runs[0].config.get("agent", {})
    return there and find_method(setting.method).normalises_q(agent)


def _losses_legend(figure: Figure, ax: Axes, settings: Sequence[Setting]) -> None:
    one = len(settings) == 1
    entries: list[tuple[str, str, str]] = []
    for i, setting in enumerate(settings if not one else ()):
        entries.append((wrap(setting.label), COLOURS[i % len(COLOURS)], "-"))
    if _has_losses(settings, ""):
        entries.append(("training", COLOURS[0] if one else GREY, "-"))
    if _has_losses(settings, "val_"):
        entries.append(("validation", COLOURS[3] if one else GREY, "--"))
    for label, colour, style in entries:
        ax.plot([], [], style, color=colour, label=label)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def draw_learning(settings: Sequence[Setting]) -> Figure | None:
    """Success against updates, one line an M, at the smallest N; None without periodic evaluations.

    Of equal steps and argmax.
    """
    shown = [s for s in settings if learning_curves(s)]
    if not shown:
        return None
    all_steps = _steps_of(settings)
    figure, axes = panels(len(shown), 2, 5.4 if len(shown) > 1 else 7.2, 3.6)
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
        percent_axis(ax)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(thousands)
        dress(ax, _titled(settings, setting, f"N = {smallest}"), "updates", "success, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    head(figure, shown, [cell for s in shown for cs in learning_curves(s).values() for cell in cs])
    return figure


class _Curve(NamedTuple):
    """A line of a scaling picture."""

    of: int | str  # its N, or its M or schedule
    rule: str
    points: list[tuple[int, Cell]]  # against M or N


class _View(NamedTuple):
    """A panel of the scaling picture."""

    setting: Setting
    against: str  # M or N
    curves: list[_Curve]


def _against_steps(setting: Setting) -> list[_Curve]:
    """Return success against M, a line an N: of argmax and equal steps, for which the axis has a place."""
    found: dict[int, list[tuple[int, Cell]]] = {}
    for cell in setting.cells:
        if isinstance(cell.steps, int) and cell.is_plain:
            found.setdefault(cell.candidates, []).append((cell.steps, cell))
    return [_Curve(N, str(ARGMAX), found[N]) for N in sorted(found)]


def _against_candidates(setting: Setting) -> list[_Curve]:
    """Return success against N, a line an M or schedule and a rule.

    Where N = 1 there is nothing to choose: lines of all rules start at the cell of argmax.
    """
    found: dict[tuple[int | str, str], list[tuple[int, Cell]]] = {}
    for cell in setting.cells:
        found.setdefault((cell.steps, cell.rule), []).append((cell.candidates, cell))
    curves = []
    for (steps, rule), points in found.items():
        first = setting.cell(steps, 1)
        if first is not None and points[0][0] > 1:
            points.insert(0, (1, first))
        curves.append(_Curve(steps, rule, points))
    return curves


def _scaling_views(settings: Sequence[Setting]) -> list[_View]:
    """Return what has a line of two points or more, in the order of the panels: against M or N."""
    views = []
    for setting in settings:
        of = {"M": _against_steps(setting), "N": _against_candidates(setting)}
        views += [
            _View(setting, against, curves)
            for against, curves in of.items()
            if any(len(curve.points) > 1 for curve in curves)
        ]
    return views


def _rules_in(views: Sequence[_View]) -> list[str]:
    """Return the rules beside argmax that the panels have lines of."""
    return sorted({c.rule for view in views for c in view.curves} - {str(ARGMAX)})


def _say_scaling(settings: Sequence[Setting]) -> str:
    views = _scaling_views(settings)
    of = {
        "M": "Sequential scaling: more Euler steps M.",
        "N": "Parallel scaling: the best of more candidates N by the critic's Q.",
    }
    rules = _rules_in(views)
    if rules:
        of["M"] = "Sequential scaling: more Euler steps M, all equal; argmax chooses."
        of["N"] = (
            "Parallel scaling: more candidates N, of which a rule takes one. The paper's is argmax, the "
            f"best by the critic's Q: solid. Dashed or dotted, hollow: {', '.join(rules)}. Where N = 1 "
            "there is nothing to choose, and all rules are one cell."
        )
    drawn = {view.against for view in views}
    return " ".join(text for against, text in of.items() if against in drawn)


def draw_scaling(settings: Sequence[Setting]) -> Figure | None:
    """Success against M, a line an N, and against N, a line an M and a rule.

    None if no line has two points.
    """
    views = _scaling_views(settings)
    if not views:
        return None
    all_steps, all_candidates = _steps_of(settings), _candidates_of(settings)
    rules = _rules_in(views)
    figure, axes = panels(len(views), 2, 4.8 if len(views) > 1 else 7.2, 3.6)
    for ax, (setting, against, curves) in zip(axes, views, strict=True):
        if against == "M":
            title, xlabel, other, lines = "sequential scaling", "Euler steps M", "N", all_candidates
        else:
            title, other, lines = "parallel scaling", "M", all_steps
            xlabel = f"candidates N, {'one' if rules else 'best'} of N"
        # all within 6% of their M or N, in logarithm, so that none seems to be at another
        gap = min(0.04, 0.16 / max(1, len(curves) - 1))
        for rank, curve in enumerate(curves):
            look = _look(lines, curve.of)
            if against == "M":  # N has greys: a colour is an M in every picture
                look["color"] = str(0.72 * lines.index(curve.of) / max(1, len(lines) - 1))
            if curve.rule in rules:
                look["linestyle"] = _STYLES[rules.index(curve.rule) % len(_STYLES)]
                look["markerfacecolor"] = "white"
            # side by side, so that the intervals of one x do not cover one another
            dodge = 2 ** (gap * (rank - (len(curves) - 1) / 2))
            _draw_curve(ax, curve, dodge, f"{other} = {curve.of}", look)
        _doubling_axis(ax, sorted({x for curve in curves for x, _ in curve.points}))
        percent_axis(ax)
        dress(ax, _titled(settings, setting, title), xlabel, "success, %")
        _scaling_legend(figure, ax, rules if against == "N" else ())
    cells = [cell for view in views for curve in view.curves for _, cell in curve.points]
    head(figure, settings, cells)
    return figure


def _draw_curve(ax: Axes, curve: _Curve, dodge: float, label: str, look: dict[str, Any]) -> None:
    """Draw a line with the intervals of its points."""
    mean, low, high = zip(*(cell.percent for _, cell in curve.points), strict=True)
    errors = [
        [m - a for m, a in zip(mean, low, strict=True)],
        [b - m for m, b in zip(mean, high, strict=True)],
    ]
    ax.errorbar(
        [x * dodge for x, _ in curve.points],
        mean,
        yerr=errors,
        label=label,
        capsize=2.5,
        linewidth=1.4,
        elinewidth=1,
        markersize=5,
        **look,
    )


def _scaling_legend(figure: Figure, ax: Axes, rules: Sequence[str]) -> None:
    """Name below a panel its own series: each N or M and, where there are several, each rule once."""
    from matplotlib.transforms import offset_copy

    entries: dict[str, Any] = {}
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
        entries.setdefault(label, handle)
    if rules:
        styles: dict[str, Any] = {str(ARGMAX): "-"}
        styles |= {rule: _STYLES[i % len(_STYLES)] for i, rule in enumerate(rules)}
        for rule, style in styles.items():
            (entries[rule],) = ax.plot([], [], color=GREY, linestyle=style)
    longest = max(len(label) for label in entries)
    ax.legend(
        [*entries.values()],
        [*entries],
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=offset_copy(
            ax.transAxes, figure, y=-32, units="points"
        ),  # below the axis' label
        ncols=max(1, min(5, 75 // (longest + 9))),
        columnspacing=1,
        handlelength=1.6,
        frameon=False,
        fontsize=9,
    )


class Picture(NamedTuple):
    """One of the report's pictures."""

    name: str  # of its file
    title: str
    draw: Callable[[Sequence[Setting]], Figure | None]  # None: there is nothing to draw
    caption: Callable[[Sequence[Setting]], str]  # the words below it, where it is there
    by_environment: bool = False  # a picture for each, never one of several


PICTURES: tuple[Picture, ...] = (
    Picture("pareto", "Success against speed", draw_pareto, say_pareto, by_environment=True),
    Picture(
        "learning",
        "Success against updates",
        draw_learning,
        lambda settings: (
            "Periodic evaluations during training, one line for each number of Euler steps M."
        ),
    ),
    Picture("scaling", "Success against steps and candidates", draw_scaling, _say_scaling),
    Picture("losses", "Losses", draw_losses, _say_losses),
)
