"""The page of a study: study.html, self-contained, with its pictures beside it as PNGs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic import write_bytes
from ..cells import cell_name
from ..errors import BadInput
from ..learn.algorithms import METHODS
from .aggregate import mean, profile
from .figures import draw_scaling
from .page import commands_of, few_episodes, rendered
from .pareto import draw_pareto, front_of, points_of, rate_text
from .plotting import COLOURS, GREY, data_uri, dress, panels, percent_axis, png, thousands
from .runs import Setting, widened
from .speeds import Progress, clock_of
from .study import (
    ALL,
    Bounded,
    Lane,
    Study,
    aggregates,
    beside,
    bounded,
    curve_of,
    lanes,
    load_study,
    per_task,
    scores_of,
    with_lane_speeds,
)
from .table import counts_differ

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Say = Callable[[str], None]


def _look(study: Study, method: str) -> dict[str, Any]:
    """Return a method's colour and, where a colour serves several, the dashes that set them apart."""
    known = [*METHODS]
    run = study.of(method)[0].run
    alike = [m for m in study.methods if study.of(m)[0].run.method == run.method]
    place = known.index(run.method) if run.method in known else len(known)
    styles = ("-", "--", ":", "-.")
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": styles[alike.index(method) % 4]}


def _legend(figure: Figure, axes: Sequence[Any]) -> None:
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
    )


def draw_profiles(study: Study) -> Figure | None:
    """The part of runs above each success, a line a method: a panel a family, and one of all."""
    parts: list[tuple[str, str | None]] = [(family, family) for family in study.families]
    parts += [(ALL, None)] if len(parts) > 1 else []
    shown = [
        (title, {m: s for m in study.methods if (s := scores_of(study.of(m, family)))})
        for title, family in parts
    ]
    shown = [(title, scores) for title, scores in shown if scores]
    if not shown:
        return None
    taus = np.linspace(0, 1, 101)
    figure, axes = panels(len(shown), 2, 4.8 if len(shown) > 1 else 7.2, 3.4)
    for ax, (title, scores) in zip(axes, shown, strict=True):
        for method, own in scores.items():
            value, band = profile(own, taus)
            look = _look(study, method)
            ax.step(100 * taus, 100 * value, where="post", label=method, linewidth=1.6, **look)
            if band is not None:
                runs = sum(map(len, own.values()))  # what is counted here, not episodes
                lows, highs = 100 * np.transpose(
                    [
                        widened(part, (low, high), part * runs, runs)
                        for part, low, high in zip(value, *band, strict=True)
                    ]
                )
                colour = look["color"]
                ax.fill_between(
                    100 * taus, lows, highs, step="post", color=colour, alpha=0.13, linewidth=0
                )
        percent_axis(ax)
        dress(ax, title, "success above, %", "part of runs, %")
    _legend(figure, axes)
    return figure


def draw_curves(study: Study) -> Figure | None:
    """Success against updates, the mean over tasks and seeds: a panel a family, a line a method."""
    shown = []
    for family in study.families:
        curves = {m: c for m in study.methods if (c := curve_of(study.of(m, family)))}
        if curves:
            shown.append((family, curves))
    if not shown:
        return None
    figure, axes = panels(len(shown), 2, 4.8 if len(shown) > 1 else 7.2, 3.4)
    for ax, (family, curves) in zip(axes, shown, strict=True):
        for method, curve in curves.items():
            look = _look(study, method)
            values, bounds = zip(*(bounded(rows, mean) for rows in curve.values()), strict=True)
            ax.plot(
                [*curve],
                [100 * value for value in values],
                label=method,
                marker="o",
                markersize=3,
                linewidth=1.6,
                **look,
            )
            if all(b is not None for b in bounds):
                low, high = (
                    100 * np.array([b[i] for b in bounds if b is not None]) for i in (0, 1)
                )
                ax.fill_between([*curve], low, high, color=look["color"], alpha=0.13, linewidth=0)
        percent_axis(ax)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(thousands)
        dress(ax, family, "updates", "success, %")
    _legend(figure, axes)
    return figure


def draw_aggregates(study: Study, versus: str) -> Figure | None:
    """Interquartile mean, mean and probability of improvement with their intervals, of all tasks."""
    lines = aggregates(study, None, versus)
    if not lines:
        return None
    lines = sorted(lines, key=lambda line: line.iqm[0])
    titles = ("interquartile mean, %", "mean, %", f"better than {versus}, %")
    figure, axes = panels(3, 3, 3.2, 0.9 + 0.35 * len(lines))
    for ax, title, name in zip(axes, titles, ("iqm", "mean", "improvement"), strict=True):
        for row, line in enumerate(lines):
            found = getattr(line, name)
            if found is None:
                continue
            value, bounds = found
            colour = _look(study, line.method)["color"]
            if bounds is not None:
                ax.hlines(
                    row, 100 * bounds[0], 100 * bounds[1], color=colour, linewidth=6, alpha=0.4
                )
            ax.plot(100 * value, row, "|", color=colour, markersize=12, markeredgewidth=2.5)
        if name == "improvement":
            ax.axvline(50, color=GREY, linestyle=":", linewidth=1)
        ax.set_xlim(-3, 103)
        ax.set_ylim(-0.6, len(lines) - 0.4)
        ax.set_yticks(range(len(lines)), [line.method for line in lines] if ax is axes[0] else [])
        dress(ax, title, "", "")
    return figure


def write_study(
    folder: Path,
    out: Path | None = None,
    *,
    versus: str = "",
    backends: Sequence[str] = (),
    seconds: float = 0.2,
    again: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Path:
    """Write study.html and figures/study-*.png about a sweep's folder.

    Parameters
    ----------
    folder
        The sweep's folder.
    out
        The folder to write into; by default the sweep's.
    versus
        The method that others are held against, by its folder's name; by default the first one.
    backends
        Which to time policies on; by default the one that a Sampler chooses.
    seconds, again, progress, say
        As `write_report` has them.

    Returns
    -------
    Path
        study.html: one file, pictures included, without any reference to the network.

    Raises
    ------
    BadInput
        No run can be read, `versus` is none of the methods, or `out` cannot be written.
    """
    study = load_study(folder)
    out = folder if out is None else out
    versus = versus or study.methods[0]
    if versus not in study.methods:
        raise BadInput(
            f"versus is {versus!r}, but must be one of {', '.join(study.methods)}. Set --versus"
        )
    found = lanes(study, backends or ("",))
    timed, kept, untimed = with_lane_speeds(found, out / "speeds.json", seconds, again, progress)
    pictures: list[tuple[str, str, Figure | None, str]] = [
        ("aggregates", "All methods, all tasks", draw_aggregates(study, versus), _AGGREGATES),
        ("profiles", "Performance profiles", draw_profiles(study), _PROFILES),
        ("curves", "Learning curves", draw_curves(study), _CURVES),
    ]
    for lane, settings in found.items():
        if (lane.precision, lane.backend) == ("fp32", (backends or ("",))[0]):
            title = f"Sequential and parallel scaling: {lane.family}"
            pictures.append((f"scaling-{lane.family}", title, draw_scaling(settings), _SCALING))
    for lane, settings in timed.items():
        title = f"Speed and success: {', '.join(x for x in lane if x)}"
        pictures.append((f"speed-{lane.name}", title, draw_pareto(settings), _SPEED))
    shown = []
    written = set()
    for name, title, figure, caption in pictures:
        if figure is not None:
            data = png(figure)
            path = out / "figures" / f"study-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.png"
            write_bytes(path, data)
            written.add(path)
            shown.append({"title": title, "caption": caption, "uri": data_uri(data)})
    for path in (out / "figures").glob("study-*.png"):
        if path not in written:  # of an earlier page: it would show other results
            path.unlink()
    parts: list[tuple[str, str | None]] = [(family, family) for family in study.families]
    parts += [(ALL, None)] if len(parts) > 1 else []
    fronts = {family: front_table(timed, family) for family in study.families}
    table = per_task(study)
    values = {
        "folder": str(folder),
        "study": study,
        "versus": versus,
        "differ": counts_differ(cell.episodes for _, cells in table for cell in cells if cell),
        "notes": [*study.missing, *few_episodes(c for _, cells in table for c in cells if c)],
        "per_task": table,
        "aggregates": [(title, aggregates(study, family, versus)) for title, family in parts],
        "percent": _percent,
        "pictures": shown,
        "fronts": {family: lines for family, lines in fronts.items() if len(lines) > 1},
        "clock": "" if kept is None else clock_of(kept),
        "untimed": untimed,
        "beside": beside(study),
        "commands": _commands(study),
        "one_seed": any(
            len(seeds) == 1 for m in study.methods for seeds in scores_of(study.of(m)).values()
        ),
    }
    path = out / "study.html"
    write_bytes(path, rendered("study.html.jinja", values).encode())
    if say is not None:
        say(text(study, versus))
    return path


_AGGREGATES = (
    "Over all tasks and seeds. The bars are 95% intervals: none where a task has one seed. Methods that "
    "have not been run on the same tasks are not comparable here."
)
_PROFILES = (
    "The part of runs, task by task and seed by seed, that reach more than a success; bands 95%."
)
_CURVES = "Periodic evaluations during training, at the updates that all runs of a method have; bands 95%."
_SCALING = "Means over tasks and seeds of every evaluated cell; intervals 95%."
_SPEED = (
    "A point a cell, the mean over tasks and seeds. Labels are M/N. Filled, dotted line: no other cell of "
    "any method is both faster and better. A thin line joins the cells of a method that no other of its "
    "own beats."
)


def _percent(value: Bounded | None) -> str:
    if value is None:
        return "-"
    found, bounds = value
    if bounds is None:
        return f"{100 * found:.1f}"
    return f"{100 * found:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


def front_table(timed: Mapping[Lane, Sequence[Setting]], family: str) -> list[list[str]]:
    """Return the front of a family over all methods, precisions and backends, its head first."""
    points = [
        (lane, p)
        for lane, settings in timed.items()
        if lane.family == family
        for p in points_of(settings)
    ]
    front = front_of([p for _, p in points])
    differ = counts_differ(p.cell.episodes for p in front)
    lines = [["method", "cell", "precision", "backend", "actions/s", "success", "95% interval"]]
    for p in front:
        lane = next(lane for lane, other in points if other is p)
        success, low, high = p.cell.percent
        lines.append(
            [
                *(p.setting.label, cell_name(*p.cell.way), lane.precision),
                p.setting.timed_by.rpartition(", ")[0],
                *(
                    rate_text(p.cell.actions_per_second),
                    f"{success:.1f}%",
                    f"{low:.1f}-{high:.1f}%" + f" n={p.cell.episodes}" * differ,
                ),
            ]
        )
    return lines


def _commands(study: Study) -> list[tuple[str, list[str]]]:
    """Return the commands of the first run of each method and family."""
    found = []
    for family in study.families:
        for method in study.methods:
            for member in study.of(method, family)[:1]:
                found.append((f"{family}, {method}", commands_of(member.run)))
    return found


def text(study: Study, versus: str) -> str:
    """Return the aggregates as the terminal shows them."""
    rows = [["", "method", "tasks", "runs", "IQM", "mean", f"better than {versus}"]]
    parts: list[tuple[str, str | None]] = [(family, family) for family in study.families]
    parts += [(ALL, None)] if len(parts) > 1 else []
    for title, family in parts:
        for line in aggregates(study, family, versus):
            counts = str(line.tasks), str(line.runs)
            figures = map(_percent, (line.iqm, line.mean, line.improvement))
            rows.append([title, line.method, *counts, *figures])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([*map(str.ljust, row[:2], widths[:2]), *map(str.rjust, row[2:], widths[2:])])
        for row in rows
    ]
    words = (
        "Success in %, 95% intervals: the stratified bootstrap's over seeds, or Wilson's over all episodes "
        "where that is wider"
    )
    return "\n".join([words, *lines])
