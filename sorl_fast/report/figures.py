"""The pictures: learning curves, scaling, speed against success, losses.

Success is shown in %. N candidates, M Euler steps.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..learn.algorithms import find_method
from .runs import Cell, Line, Setting, episodes_of, learning_curves, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; yellow is left out, being faint on white.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#555555"
_DPI = 150


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file; equal figures give equal bytes."""
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
        words.append(f"{episodes_of(cells)} episodes a cell")
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


def _has_losses(settings: Sequence[Setting], prefix: str) -> bool:
    """Whether a log has a loss of training (prefix "") or validation ("val_")."""
    log = [line for setting in settings for run in setting.runs for line in run.log]
    return any(_series(log, prefix + key)[0] for key in _losses_of(settings))


def _say_losses(settings: Sequence[Setting]) -> str:
    of = {"": "on training minibatches", "val_": "on the validation file"}
    words = [text for prefix, text in of.items() if _has_losses(settings, prefix)]
    return f"{' and '.join(words)}.".capitalize()


def _losses_legend(figure: Figure, ax: Axes, settings: Sequence[Setting]) -> None:
    one = len(settings) == 1
    entries: list[tuple[str, str, str]] = []
    for i, setting in enumerate(settings if not one else ()):
        entries.append((_wrap(setting.label), _COLOURS[i % len(_COLOURS)], "-"))
    if _has_losses(settings, ""):
        entries.append(("training", _COLOURS[0] if one else _GREY, "-"))
    if _has_losses(settings, "val_"):
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


def _scaling_views(settings: Sequence[Setting]) -> list[tuple[Setting, str]]:
    """Return what has a line of two points or more, in the order of the panels: against M or N."""
    views = []
    for setting in settings:
        lines = {
            "M": Counter(cell.candidates for cell in setting.cells),
            "N": Counter(cell.steps for cell in setting.cells),
        }
        views += [
            (setting, against)
            for against, points in lines.items()
            if max(points.values(), default=0) > 1
        ]
    return views


def _say_scaling(settings: Sequence[Setting]) -> str:
    of = {
        "M": "Sequential scaling: more Euler steps M.",
        "N": "Parallel scaling: the best of more candidates N by the critic's Q.",
    }
    drawn = {against for _, against in _scaling_views(settings)}
    return " ".join(text for against, text in of.items() if against in drawn)


def draw_scaling(settings: Sequence[Setting]) -> Figure | None:
    """Success against M, a line an N, and against N, a line an M; None if no line has two points."""
    all_steps, all_candidates = _steps_of(settings), _candidates_of(settings)
    views = _scaling_views(settings)
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


_Draw = Callable[[Sequence[Setting]], "Figure | None"]

# name, title, picture, and the words below a picture that is there
PICTURES: tuple[tuple[str, str, _Draw, Callable[[Sequence[Setting]], str]], ...] = (
    (
        "learning",
        "Success against updates",
        draw_learning,
        lambda settings: (
            "Periodic evaluations during training, one line for each number of Euler steps M."
        ),
    ),
    ("scaling", "Success against steps and candidates", draw_scaling, _say_scaling),
    (
        "pareto",
        "Success against speed",
        draw_pareto,
        lambda settings: (
            "Actions a second of the policy alone. Filled: no other cell is both faster and better."
        ),
    ),
    ("losses", "Losses", draw_losses, _say_losses),
)
