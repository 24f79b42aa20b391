"""Success against speed: every method's cells in one picture, and the front that no cell beats.

One environment at a time. Success is shown in %. N candidates, M Euler steps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cells import cell_name, pareto_front
from ..learn.algorithms import METHODS
from ..simulate.episodes import cell_of
from .plotting import COLOURS, DPI, GREY, MARKERS, decades, dress, head, panels, percent_axis, wrap
from .runs import Cell, Setting, other_rules, series_names
from .table import counts_differ

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """A cell of one of the settings."""

    name: str  # the setting's, among those that it is shown with
    setting: Setting
    cell: Cell

    @property
    def place(self) -> tuple[float, float]:
        """Actions a second, and success in %."""
        return self.cell.actions_per_second, self.cell.percent[0]


def points_of(settings: Sequence[Setting]) -> list[Point]:
    """Return every cell of the settings, of one environment, whose speed and success are known."""
    named = zip(series_names(settings), settings, strict=True)
    return [
        Point(name, setting, cell)
        for name, setting in named
        for cell in setting.cells
        if cell.actions_per_second > 0 and math.isfinite(cell.actions_per_second + cell.success)
    ]


def front_of(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both speed and success, fastest first."""
    return pareto_front(points, lambda p: p.cell.actions_per_second, lambda p: p.cell.success)


def front_lines(settings: Sequence[Setting]) -> list[list[str]]:
    """Return the front of all methods as a table: its head, then a line a cell, fastest first.

    There is a column of rules where one of them is another than argmax.
    """
    front = front_of(points_of(settings))
    ruled = bool(other_rules(point.cell for point in front))
    differ = counts_differ(point.cell.episodes for point in front)
    lines = [
        [
            *("method", "M", "N", *["rule"] * ruled),
            *("actions/s", "success", "95% interval", "seeds", "run"),
        ]
    ]
    for name, setting, cell in front:
        success, low, high = cell.percent
        lines.append(
            [
                *(name, str(cell.steps), str(cell.candidates), *[cell.rule] * ruled),
                rate_text(cell.actions_per_second),
                f"{success:.1f}%",
                f"{low:.1f}-{high:.1f}%" + f" n={cell.episodes}" * differ,
                str(cell.seeds),
                ", ".join(str(run.folder) for run in setting.runs if _has(run.evaluation, cell)),
            ]
        )
    return lines


def _has(evaluation: dict[str, Any] | None, cell: Cell) -> bool:
    rows = () if evaluation is None else evaluation["rows"]
    return any(cell_of(row) == cell.way for row in rows)


def rate_text(rate: float) -> str:
    """Return actions a second as they are shown."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def front_text(env: str, settings: Sequence[Setting], clock: str) -> str:
    """Return the front of one environment as the terminal shows it; `clock` says whose speeds they are."""
    lines = front_lines(settings)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    words = [f"{env}: the Pareto front of speed and success over all methods given", clock]
    for line in lines:
        name, *numbers, run = (x.rjust(w) for x, w in zip(line, widths, strict=True))
        texts = [name.strip().ljust(widths[0]), *numbers, run.strip()]
        words.append("  ".join(texts))
    return "\n".join(words)


def say_pareto(settings: Sequence[Setting]) -> str:
    """Return the words below the picture."""
    several = sum(bool(s.cells) for s in settings) > 1
    ruled = bool(other_rules(cell for s in settings for cell in s.cells))
    what = "steps, candidates and another rule than argmax" if ruled else "steps and candidates"
    thin = " A thin line joins the cells of a method that no other of its own beats." * several
    return (
        f"Labels are M/N{' rule' * ruled}, {what}{' of the cells on the front' * several}. Filled, dotted "
        f"line: no other cell{' of any method' * several} is both faster and better.{thin}"
    )


def _colour_ranks(settings: Sequence[Setting]) -> list[int]:
    """Return the place in the colours of each setting: its method's own, where that sets them apart."""
    places = [[*METHODS].index(setting.method) for setting in settings]
    return places if len(set(places)) == len(places) else [*range(len(places))]


def draw_pareto(settings: Sequence[Setting]) -> Figure | None:
    """Success against actions a second, the Pareto front marked; None without an evaluation.

    The settings are of one environment. A setting is a colour; a cell on the front is filled.
    """
    shown = [setting for setting in settings if points_of([setting])]
    if not shown:
        return None
    points = points_of(shown)
    front = front_of(points)
    rates = [point.cell.actions_per_second for point in points]
    backends = {setting.timed_by for setting in shown}
    figure, (ax,) = panels(1, 1, 7.2, 4.4)
    slowest = min(rates) / 1.5
    ax.plot(*zip(*_corners(front, slowest), strict=True), color=GREY, linestyle=":", linewidth=1.4)
    for rank, setting in zip(_colour_ranks(shown), shown, strict=True):
        own = [point for point in points if point.setting is setting]
        look: dict[str, Any] = {
            "color": COLOURS[rank % len(COLOURS)],
            "marker": MARKERS[rank % len(MARKERS)],
        }
        for point in own:
            _, low, high = point.cell.percent
            ax.vlines(point.place[0], low, high, color=look["color"], alpha=0.35)
        for filled in (False, True):
            ax.plot(
                *_columns([point.place for point in own if (point in front) == filled]),
                markersize=7,
                markeredgecolor=look["color"],
                markerfacecolor=look["color"] if filled else "white",
                markeredgewidth=1.4,
                linestyle="",
                marker=look["marker"],
            )
        if len(shown) > 1:
            line = _columns([point.place for point in front_of(own)])
            ax.plot(*line, color=look["color"], linewidth=0.9, alpha=0.6, zorder=1)
        seeds = setting.seeds
        words = [own[0].name, f"{seeds} seed{'s' * (seeds > 1)}"] if len(shown) > 1 else []
        words += [setting.timed_by] if len(backends) > 1 else []
        if words:
            ax.plot([], [], linestyle="", label=wrap(", ".join(words)), **look)
    ax.plot([], [], ":", color=GREY, label="Pareto front (filled)")
    ax.set_xscale("log")
    ax.set_xlim(slowest, max(rates) * 1.5)
    percent_axis(ax)
    only = backends.pop() if len(backends) == 1 else ""
    xlabel = "actions a second, one observation a call" + f", {only}" * bool(only)
    title = f"{points[0].name}: " if len(shown) == 1 else ""
    ruled = bool(other_rules(point.cell for point in points))
    dress(ax, f"{title}labels M/N, steps/candidates{' rule' * ruled}", xlabel, "success, %")
    decades(ax.xaxis)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    head(figure, shown, [point.cell for point in points])
    figure.draw_without_rendering()  # fixes the layout, which the labels' places depend on
    _label_points(ax, points, front, points if len(shown) == 1 else front)
    return figure


def _columns(places: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in places], [y for _, y in places]


def _corners(front: Sequence[Point], slowest: float) -> list[tuple[float, float]]:
    """Return the best success, in %, to be had at each speed or above, as a staircase."""
    corners = [point.place for point in front]
    stairs = corners[:1]
    for (_, low), (rate, high) in itertools.pairwise(corners):
        stairs += [(rate, low), (rate, high)]
    return [*stairs, (slowest, corners[-1][1])]


def _label_points(
    ax: Axes, points: Sequence[Point], front: Sequence[Point], named: Sequence[Point]
) -> None:
    """Write its cell beside each point of `named`: near it, within the axes, where it covers least."""
    from matplotlib.patheffects import withStroke

    scale = 72 / DPI  # pixels to points

    def place(rate: float, percent: float) -> tuple[float, float]:
        x, y = ax.transData.transform((rate, percent))
        return x * scale, y * scale

    left, bottom, right, top = (edge * scale for edge in ax.bbox.extents)
    taken = []
    for _, _, cell in points:
        low, mean, high = (place(cell.actions_per_second, z)[1] for z in sorted(cell.percent))
        x, _ = place(cell.actions_per_second, 0)
        taken += [(x - 5, mean - 5, x + 5, mean + 5), (x - 1, low, x + 1, high)]
    stairs = [place(*corner) for corner in _corners(front, ax.get_xlim()[0])]
    for (x0, y0), (x1, y1) in itertools.pairwise(stairs):
        taken.append((min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    sides = ((1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6), (1, 0), (-1, 0), (0, 1), (0, -1))
    for point in named:
        text = cell_name(*point.cell.way, short=True)
        x, y = place(*point.place)
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
            point.place,
            (best[0] - x, best[1] - y),
            textcoords="offset points",
            fontsize=8,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
