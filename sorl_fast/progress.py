"""How far a long command is, on standard error: a bar at a terminal, in a log a line now and then."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 60.0  # at least, between two lines of a log


def at_terminal() -> bool:
    """Whether somebody watches standard error: a bar in a log would be a line of thousands."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(text: str) -> None:
    """Write a line to standard error, if there is one, and let the log have it at once."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


class Shown:
    """How far something is, shown to nobody."""

    def __call__(self, done: int, total: int) -> None:
        """Say how many of how many are done."""

    def more_steps(self, steps: int) -> None:
        """Say that so many more steps were simulated, to be shown as a rate."""


@contextmanager
def progress(
    unit: str, *, shown: bool = True, name: str = "", scaled: bool = False
) -> Iterator[Shown]:
    """Yield a callback(done, total), whose `more_steps` may be told of steps too.

    Parameters
    ----------
    unit
        What is counted, with a space before it.
    shown
        False: show nothing at all.
    name
        What it is that is done.
    scaled
        Show thousands as k, in a bar.
    """
    if not shown:
        yield Shown()
        return
    if not at_terminal():
        yield _Lines(unit, name)
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # a robot has none
        yield Shown()
        return
    with tqdm(unit=unit, desc=name or None, unit_scale=scaled, smoothing=0.1) as bar:
        yield _Bar(bar)


class _Rate:
    """Steps a second since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self.steps = 0

    def __str__(self) -> str:
        return f"{self.steps / max(time.monotonic() - self._start, 1e-9):.0f} steps a second"


class _Bar(Shown):
    """A bar at a terminal."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._rate = _Rate()

    def __call__(self, done: int, total: int) -> None:
        if self._bar.total is None:  # what was there before is no work of this call
            self._bar.initial = self._bar.n = self._bar.last_print_n = done
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def more_steps(self, steps: int) -> None:
        self._rate.steps += steps
        self._bar.set_postfix_str(str(self._rate), refresh=False)


class _Lines(Shown):
    """Says how far it is every LINE_SECONDS, and when all is done."""

    def __init__(self, unit: str, name: str) -> None:
        self._unit, self._name = unit, f"{name}: " if name else ""
        self._start = self._said = time.monotonic()
        self._done: int | None = None
        self._rate = _Rate()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        first, news = self._done is None, done != self._done
        self._done = done
        if first or not news or (done < total and now - self._said < LINE_SECONDS):
            return
        self._said = now
        seconds = now - self._start
        rate = f", {self._rate}" if self._rate.steps else ""
        say(f"{self._name}{done:,} of {total:,}{self._unit} after {seconds:.0f} s{rate}")

    def more_steps(self, steps: int) -> None:
        self._rate.steps += steps
