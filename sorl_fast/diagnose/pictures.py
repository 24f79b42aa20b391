"""A picture of each part's figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.plotting import COLOURS, GREY, MARKERS, dress, new_figure, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Figures = dict[str, Any]

_WIDTH, _HEIGHT = 4.6, 3.5  # of a panel, inches


def draw(part: str, figures: Figures, env: str) -> Figure:
    """Return the picture of a part, by its name; `env` stands above it."""
    figure = _PICTURES[part](figures)
    figure.suptitle(env, fontsize=9, color=GREY, x=0.01, ha="left")
    return figure


def _alone() -> tuple[Figure, Axes]:
    figure = new_figure(7.2, 3.8)
    return figure, figure.add_subplot()


def _spread(f: Figures) -> Figure:
    figure, ax = _alone()
    x, y = np.asarray(f["spreads"]), np.asarray(f["disagreements"])
    ax.plot(x, y, ".", color=COLOURS[0], markersize=5, alpha=0.6, label="an observation")
    top = float(max(x.max(), y.max())) * 1.05 or 1.0
    ax.plot(
        [0, top], [0, top], color=GREY, linestyle="--", linewidth=1, label="as large as the spread"
    )
    ax.plot(f["spread"], f["disagreement"], "D", color=COLOURS[3], label="mean")
    ax.set_xlim(0, float(x.max()) * 1.05 or 1.0)
    ax.set_ylim(0, top if f["members"] > 1 else 1.0)
    title = f"{f['candidates']} candidates, {f['members']} critics"
    dress(ax, title, "deviation of Q over the candidates", "critics' disagreement about it")
    ax.legend(frameon=False, fontsize=9)
    return figure


def _bias(f: Figures) -> Figure:
    figure, (left, right) = panels(2, 2, _WIDTH, _HEIGHT)
    components = np.arange(len(f["correlation"]))
    chosen = [COLOURS[3] if a == f["component"] else COLOURS[0] for a in components]
    left.bar(components, f["correlation"], color=chosen)
    for a, (r, same) in enumerate(zip(f["correlation"], f["same_sign"], strict=True)):
        left.annotate(
            f"{same:.0%}",
            (a, r),
            xytext=(0, 3 if r >= 0 else -3),
            textcoords="offset points",
            ha="center",
            va="bottom" if r >= 0 else "top",
            fontsize=8,
            color=GREY,
        )
    left.set_ylim(-1.12, 1.12)
    dress(
        left,
        "Q's order (above: observations of that sign)",
        "component of the action",
        "correlation with Q",
    )
    spread = np.asarray(f["spread"], float)
    shift = np.divide(f["shift"], spread, out=np.zeros_like(spread), where=spread > 0)
    right.bar(components, shift, color=chosen)
    dress(right, "what argmax takes", "component of the action", "shift from the mean, deviations")
    for ax in (left, right):
        ax.axhline(0, color=GREY, linewidth=0.8)
        if len(components) <= 24:
            ax.set_xticks(components)
    return figure


def _centre(f: Figures) -> Figure:
    figure, ax = _alone()
    for i, (rule, row) in enumerate(f["distances"].items()):
        points = [(n, far) for n, far in zip(f["candidates"], row, strict=True) if far is not None]
        if points:
            x, y = zip(*points, strict=True)
            ax.plot(x, y, label=rule, color=COLOURS[i], marker=MARKERS[i], markersize=5)
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1, label="one at random")
    ax.set_xscale("log", base=2)
    ax.set_xticks(f["candidates"], [str(n) for n in f["candidates"]])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    dress(
        ax, "how far out the chosen one is", "candidates N", "distance from the centre, by chance's"
    )
    ax.legend(frameon=False, fontsize=9)
    return figure


def _returns(f: Figures) -> Figure:
    figure, axes = panels(len(f["ways"]), 3, _WIDTH, _HEIGHT)
    for i, (ax, way) in enumerate(zip(axes, f["ways"], strict=True)):
        points = np.asarray(way["points"]).reshape(-1, 2)
        ax.plot(points[:, 0], points[:, 1], ".", color=COLOURS[i], markersize=4, alpha=0.6)
        r = way["correlation"]
        told = "returns all the same" if r is None else f"rank correlation {r:+.2f}"
        dress(ax, f"{way['way']}: {told}", "Q", f"return of {f['window']} steps")
    return figure


def _standstills(f: Figures) -> Figure:
    figure, (left, right) = panels(2, 2, _WIDTH, _HEIGHT)
    names = [way["way"].replace(", ", "\n") for way in f["ways"]]
    at = np.arange(len(names))
    below = np.zeros(len(names))
    for label, colour, counts in (
        ("succeeded", COLOURS[2], [way["episodes"] - way["failed"] for way in f["ways"]]),
        ("failed, moving", COLOURS[1], [way["failed"] - way["stood"] for way in f["ways"]]),
        ("failed, standing still", COLOURS[3], [way["stood"] for way in f["ways"]]),
    ):
        left.bar(at, counts, bottom=below, color=colour, label=label, width=0.6)
        below = below + counts
    left.set_xticks(at, names)
    left.set_ylim(0, max(below.max(), 1) * 1.45)
    left.legend(frameon=False, fontsize=8, loc="upper left", ncols=1)
    dress(left, "how episodes ended", "", "episodes")
    for i, way in enumerate(f["ways"]):
        y = np.asarray(way["drift"], float)
        x = i + np.linspace(-0.2, 0.2, len(y)) if len(y) > 1 else np.full(len(y), float(i))
        right.plot(x, np.sort(y), ".", color=COLOURS[3], markersize=6)
    right.axhline(f["still"], color=GREY, linestyle="--", linewidth=1)
    right.set_xticks(at, names)
    right.set_xlim(-0.6, len(names) - 0.4)
    right.set_ylim(bottom=0)
    title = f"failures: drift of the last {f['window']} steps"
    dress(right, title, "", "in deviations of all that was met")
    return figure


def _errors(f: Figures) -> Figure:
    consistency = f["self_consistency"]
    figure, axes = panels(2 if consistency else 1, 2, _WIDTH, _HEIGHT)
    matching = f["flow_matching"]
    axes[0].plot(
        [e["t"] for e in matching],
        [e["error"] for e in matching],
        marker="o",
        markersize=5,
        color=COLOURS[0],
    )
    axes[0].set_ylim(bottom=0)
    dress(axes[0], f"flow matching, h = 1/{f['finest']}", "t", "mean square error")
    if consistency:
        for i, M in enumerate(sorted({e["steps"] for e in consistency})):
            some = [e for e in consistency if e["steps"] == M]
            axes[1].plot(
                [e["t"] for e in some],
                [e["error"] for e in some],
                label=f"h = 1/{M}" if M > 1 else "h = 1",
                color=COLOURS[i % 7],
                marker=MARKERS[i % 7],
                markersize=5,
            )
        axes[1].set_ylim(bottom=0)
        axes[1].legend(frameon=False, fontsize=9)
        dress(axes[1], "self-consistency of the big step h", "t", "mean square error")
    for ax in axes:
        ax.set_xlim(-0.04, 1.0)
    return figure


def _wasserstein(f: Figures) -> Figure:
    shortcut = f["to_finest"] is not None
    figure, axes = panels(2 if shortcut else 1, 2, _WIDTH, _HEIGHT)
    at, names = np.arange(len(f["steps"])), [str(M) for M in f["steps"]]
    ax = axes[0]
    ax.plot(at, f["to_data"], color=COLOURS[0], marker="o", label="from the data's neighbours")
    if shortcut:
        label = f"from M = {f['steps'][-1]}"
        ax.plot(at, f["to_finest"], color=COLOURS[3], marker="s", label=label)
    ax.axhline(
        f["floor"], color=GREY, linestyle="--", linewidth=1, label="two sets of the same policy"
    )
    ax.set_xticks(at, names)
    ax.set_ylim(0, max(*f["to_data"], f["floor"]) * 1.5)
    ax.legend(frameon=False, fontsize=8)
    dress(ax, f"sets of {f['samples']} actions", "Euler steps M", "W2")
    if shortcut:
        names = ["self-\nconsistency", "discretisation", "flow\nmatching"]
        terms = [max(f["to_finest"]), f["discretisation"], f["flow_to_data"]]
        axes[1].bar(range(3), terms, color=[COLOURS[3], COLOURS[1], COLOURS[0]], width=0.6)
        axes[1].set_xticks(range(3), names)
        dress(axes[1], "the bound's three terms", "", "W2")
    return figure


_PICTURES: dict[str, Callable[[Figures], Figure]] = {
    "spread": _spread,
    "bias": _bias,
    "centre": _centre,
    "returns": _returns,
    "standstills": _standstills,
    "errors": _errors,
    "wasserstein": _wasserstein,
}
