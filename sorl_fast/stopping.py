"""How a run is stopped: a signal sets a flag, and whoever runs looks at it where nothing gets lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import Stopped
from .progress import Shown


class StopFlag:
    """Whether this process was asked to stop; true from then on.

    Attributes
    ----------
    signal
        SIGTERM or SIGINT, whichever came first; empty before.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self.signal = ""

    def __bool__(self) -> bool:
        return bool(self.signal)

    def check(self) -> None:
        """Raise Stopped with the flag's message if this process was asked to stop."""
        if self:
            raise Stopped(self._message)


@contextmanager
def stop_flag(message: str = "stopped", *, second_interrupts: bool = False) -> Iterator[StopFlag]:
    """Yield a flag that SIGTERM and Ctrl-C set, and that nothing else comes of in this block.

    Outside the main thread no signal can be caught: the flag stays unset, the handlers as they are.

    Parameters
    ----------
    message
        What `StopFlag.check` says: what was kept, and how to go on.
    second_interrupts
        A Ctrl-C after the first signal raises KeyboardInterrupt at once.
    """
    flag = StopFlag(message)
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def ask(number: int, frame: object) -> None:
        flag.signal = flag.signal or signal.Signals(number).name
        if second_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stopping(Shown):
    """A progress at whose every call a stop that was asked for happens."""

    def __init__(self, shown: Shown, stop: StopFlag) -> None:
        self._shown, self._stop = shown, stop

    def __call__(self, done: int, total: int) -> None:
        self._stop.check()
        self._shown(done, total)

    def more_steps(self, steps: int) -> None:
        self._shown.more_steps(steps)


@contextmanager
def stoppable(progress: Shown, kept: str) -> Iterator[Shown]:
    """Yield a progress at whose calls SIGTERM or Ctrl-C end what runs, which says what is `kept`.

    With "" nothing is kept, and the signals do what they did.
    """
    if not kept:
        yield progress
        return
    message = f"stopped; {kept}. Give the same command again to go on"
    with stop_flag(message, second_interrupts=True) as stop:
        yield _Stopping(progress, stop)
