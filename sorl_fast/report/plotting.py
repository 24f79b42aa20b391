"""What every picture is made of: panels, axes, colours, and the words above it.

Success is shown in %.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .runs import Cell, Setting, episodes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; yellow is left out, being faint on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file; equal figures give equal bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def data_uri(image: bytes) -> str:
    """Return a PNG as a page holds it."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def panels(n: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of `n` panels, `columns` a row, of the given size in inches each."""
    columns = min(n, columns)
    rows = -(-n // columns)
    figure = new_figure(max(width * columns, 6.0), height * rows)
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(n)]
    return figure, axes


def dress(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    """Title, labels and grid, the same in every picture."""
    ax.set_title(wrap(title), fontsize=11, loc="left")
    ax.set_xlabel(xlabel, fontsize=10)
    ax.set_ylabel(ylabel, fontsize=10)
    ax.grid(True, which="major", color="#dddddd", linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def wrap(text: str, width: int = 46) -> str:
    """Break a text into lines of `width` characters."""
    return "\n".join(textwrap.wrap(text, width)) or text


def head(figure: Figure, settings: Sequence[Setting], cells: Sequence[Cell]) -> None:
    """Say above a picture what it shows, since it may be shown without the report."""
    words = sorted({setting.env for setting in settings})
    seeds = sorted({setting.seeds for setting in settings})
    count = " or ".join(map(str, seeds))
    words.append(f"{count} training seed{'s' if seeds != [1] else ''}")
    if cells:
        words.append(f"{episodes_of(cells)} episodes a cell")
        words.append("95% intervals" if seeds != [1] else "95% Wilson intervals")
    text = wrap(", ".join(words), int(figure.get_figwidth() * 15))
    figure.suptitle(text, fontsize=9, color=GREY, x=0.01, ha="left")


def percent_axis(ax: Axes) -> None:
    """Success from 0 to 100 %, with room for the points at both ends."""
    ax.set_ylim(-4, 104)
    ax.set_yticks(range(0, 101, 20))


def thousands(value: float, _: float = 0) -> str:
    """Return 2000 as 2k; the form of a formatter of ticks."""
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def decades(axis: Axis) -> None:
    """Label 1, 2 and 5 of each decade, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(thousands)
    axis.set_minor_formatter(NullFormatter())
