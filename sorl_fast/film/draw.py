"""What stands in a film's picture, and how large it is: pure functions of pictures and words."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .render import taken

Pictures = NDArray[np.uint8]  # [T, W, W, 3]: of the steps that `render.taken` says
Colour = tuple[int, int, int]

GROUND: Colour = (24, 27, 34)
WORDS: Colour = (236, 238, 242)
SUCCESS: Colour = (104, 211, 145)
FAILURE: Colour = (252, 129, 117)
COLOURS = (GROUND, WORDS, SUCCESS, FAILURE)
_GAP = 8  # between pictures, and at the rim
_SIZES = range(15, 5, -1)  # of letters, in pixels; the largest that fits is taken
_LINE = 19  # from a line of words to the next
_BAR = 4  # the bar that says how far an episode is


class Shot(NamedTuple):
    """An episode of a film."""

    episode: int  # e, of its seed
    success: bool
    length: int  # steps
    pictures: Pictures

    @property
    def fate(self) -> str:
        """What became of it."""
        return f"success at step {self.length}" if self.success else f"failure: {self.length} steps"

    @property
    def colour(self) -> Colour:
        """Of its fate."""
        return SUCCESS if self.success else FAILURE


def fit(text: str, width: int) -> tuple[str, Any]:
    """Return the text and a font in which it is at most `width` pixels wide.

    The font is the largest of a few; where the smallest is too wide, the text is cut and ends in "...".
    """
    for size in _SIZES:
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            return text, font
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "...", font


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, colour: Colour
) -> None:
    text, font = fit(text, width)
    draw.text((at[0], at[1] + _LINE // 2), text, fill=colour, font=font, anchor="lm")


def _sheet(columns: int, rows: int, width: int, below: int, title: Sequence[str]) -> Image.Image:
    """Return an empty picture with a title above places for pictures `width` wide; both sides are even."""
    size = (
        _GAP + columns * (width + _GAP),
        _GAP + len(title) * _LINE + _GAP + rows * (width + below + _GAP),
    )
    sheet = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), GROUND)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(title):
        _write(draw, (_GAP, _GAP + i * _LINE), line, size[0] - 2 * _GAP, WORDS)
    return sheet


def _place(i: int, columns: int, width: int, below: int, title: Sequence[str]) -> tuple[int, int]:
    """Return the upper left corner of the i-th picture of a sheet."""
    top = _GAP + len(title) * _LINE + _GAP
    row, column = divmod(i, columns)
    return _GAP + column * (width + _GAP), top + row * (width + below + _GAP)


def frames(shots: Sequence[Shot], every: int, title: Sequence[str]) -> Iterator[Image.Image]:
    """Yield the pictures of a film: its episodes side by side, each with its number, step and fate.

    There are as many as the longest episode has; one that is over keeps its last.

    Parameters
    ----------
    shots
        At least one; pictures of one size.
    every
        Steps from picture to picture, at least 1.
    title
        Lines above all of them.
    """
    width = shots[0].pictures.shape[1]
    columns = math.ceil(math.sqrt(len(shots)))
    rows, below = math.ceil(len(shots) / columns), _BAR + 2 * _LINE
    empty = _sheet(columns, rows, width, below, title)
    most = max(shot.length for shot in shots)
    for t in range(max(len(shot.pictures) for shot in shots)):
        sheet = empty.copy()
        draw = ImageDraw.Draw(sheet)
        for i, shot in enumerate(shots):
            x, y = _place(i, columns, width, below, title)
            last = min(t, len(shot.pictures) - 1)
            step = taken(shot.length, every)[last]
            sheet.paste(Image.fromarray(shot.pictures[last]), (x, y))
            y += width
            far = max(1, round(width * step / most))
            draw.rectangle((x, y, x + far - 1, y + _BAR - 1), shot.colour)
            _write(draw, (x, y + _BAR), f"episode {shot.episode}, step {step}", width, WORDS)
            _write(draw, (x, y + _BAR + _LINE), shot.fate, width, shot.colour)
        yield sheet


def strip(shots: Sequence[Shot], every: int, title: Sequence[str], moments: int = 5) -> Image.Image:
    """Return a still picture of a film: a line an episode, from its first step to its last.

    Parameters are those of `frames`; `moments` is the number of pictures in a line, at least 2.
    """
    width = min(160, shots[0].pictures.shape[1])
    below = _LINE
    sheet = _sheet(moments, len(shots), width, below, title)
    draw = ImageDraw.Draw(sheet)
    for row, shot in enumerate(shots):
        steps = taken(shot.length, every)
        for column in range(moments):
            t = round(column * (len(shot.pictures) - 1) / (moments - 1))
            x, y = _place(row * moments + column, moments, width, below, title)
            picture = Image.fromarray(shot.pictures[t]).resize((width, width), Image.Resampling.BOX)
            sheet.paste(picture, (x, y))
            last = column == moments - 1
            words = shot.fate if last else f"step {steps[t]}"
            words = f"episode {shot.episode}" if column == 0 else words
            _write(draw, (x, y + width), words, width, shot.colour if last else WORDS)
    return sheet
