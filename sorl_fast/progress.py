"""How far a long command is, on standard error: a bar at a terminal, in a log a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 60.0  # at least, between two lines of a log


def at_terminal() -> bool:
    """Whether somebody watches standard error: a bar in a log would be a line of thousands."""
    return sys.stderr is not None and sys.stderr.isatty()


def say(text: str) -> None:
    """Write a line to standard error, if there is one, and let the log have it at once."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(
    unit: str, *, shown: bool = True, name: str = "", scaled: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """Yield callback(done, total).

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
        yield lambda done, total: None
        return
    if not at_terminal():
        yield _Lines(unit, name)
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # a robot has none
        yield lambda done, total: None
        return
    with tqdm(unit=unit, desc=name or None, unit_scale=scaled, smoothing=0.1) as bar:

        def show(done: int, total: int) -> None:
            if bar.total is None:  # what was there before is no work of this call
                bar.initial = bar.n = bar.last_print_n = done
            bar.total = total
            bar.update(done - bar.n)

        yield show


class _Lines:
    """Says how far it is every LINE_SECONDS, and when all is done."""

    def __init__(self, unit: str, name: str) -> None:
        self._unit, self._name = unit, f"{name}: " if name else ""
        self._start = self._said = time.monotonic()
        self._done: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        first, news = self._done is None, done != self._done
        self._done = done
        if first or not news or (done < total and now - self._said < LINE_SECONDS):
            return
        self._said = now
        seconds = now - self._start
        say(f"{self._name}{done:,} of {total:,}{self._unit} after {seconds:.0f} s")
