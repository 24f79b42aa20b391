"""How far a sweep is, in one table: a line an environment, a column a method."""

import sys
import time
from collections.abc import Callable, Sequence

from ..progress import LINE_SECONDS, at_terminal, say
from .job import Outcome
from .plan import Job, short_name

TERMINAL_SECONDS = 1.0  # between two looks of the table at a terminal


class Table:
    """Which jobs wait, run, are done, have failed; shown in place at a terminal, in a log now and then.

    Parameters
    ----------
    jobs
        All of the sweep's.
    done
        The names of those that were done before it began.
    shown
        False: say nothing but what has failed.
    clock
        Seconds, for tests.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        done: Sequence[str],
        *,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs, self._clock = jobs, clock
        self.begun: dict[str, float] = {}  # when
        self.outcomes: dict[str, Outcome] = {name: Outcome(name, 0) for name in done}
        self._before = len(self.outcomes)
        self._shown, self._in_place = shown, shown and at_terminal()
        self._start = self._said = clock()
        self._lines = 0  # of the table at the terminal, which the next one replaces

    def begin(self, name: str) -> None:
        """Note that a job runs from now on, perhaps again, elsewhere."""
        self.begun.setdefault(name, self._clock())

    def end(self, outcome: Outcome) -> None:
        """Note that a job has ended; a failure is said at once."""
        self.outcomes[outcome.name] = outcome
        self.begun.pop(outcome.name, None)
        if not outcome.done and not outcome.stopped:
            self._above(f"{outcome.name} failed: {outcome.why}")
        elif self._shown and not self._in_place:
            state = "stopped" if outcome.stopped else "done"
            say(f"{outcome.name} {state} ({self._count('done')} of {len(self._jobs)} done)")

    def show(self, last: bool = False) -> None:
        """Show the table, if it is time."""
        if not self._shown:
            return
        now = self._clock()
        every = TERMINAL_SECONDS if self._in_place else LINE_SECONDS
        if not last and now - self._said < every and self._lines + (not self._in_place):
            return
        self._said = now
        self._erase()
        text = self.text()
        say(text)
        self._lines = text.count("\n") + 1 if self._in_place else 0

    def _above(self, text: str) -> None:
        self._erase()
        say(text)

    def _erase(self) -> None:
        if self._in_place and self._lines:
            print(f"\x1b[{self._lines}A\x1b[J", end="", file=sys.stderr, flush=True)
            self._lines = 0

    def _state(self, name: str) -> str:
        outcome = self.outcomes.get(name)
        if outcome is None:
            return "running" if name in self.begun else "waiting"
        if outcome.stopped:
            return "stopped"
        return "done" if outcome.done else "failed"

    def _count(self, state: str, jobs: Sequence[Job] | None = None) -> int:
        return sum(self._state(job.name) == state for job in (self._jobs if jobs is None else jobs))

    def text(self) -> str:
        """Return the table."""
        methods = list(dict.fromkeys(job.method for job in self._jobs))
        lines = [["", *methods]]
        for env in dict.fromkeys(job.env for job in self._jobs):
            cells = []
            for method in methods:
                jobs = [job for job in self._jobs if (job.env, job.method) == (env, method)]
                words = [f"{self._count('done', jobs)}/{len(jobs)}"]
                words += [
                    f"{count} {state}"
                    for state in ("running", "stopped", "failed")
                    if (count := self._count(state, jobs))
                ]
                cells.append(", ".join(words))
            lines.append([short_name(env), *cells])
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        rows = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        ]
        return "\n".join([self._headline(), *rows])

    def _headline(self) -> str:
        counts = [
            f"{self._count(state)} {state}"
            for state in ("done", "running", "waiting", "stopped", "failed")
            if state == "done" or self._count(state)
        ]
        seconds = self._clock() - self._start
        words = f"{len(self._jobs)} runs: {', '.join(counts)}; {_duration(seconds)} so far"
        made = self._count("done") - self._before
        left = self._count("running") + self._count("waiting")
        # half of what runs is behind us, on the average
        if made and left:
            ahead = seconds / made * (left - self._count("running") / 2)
            words += f", about {_duration(max(0.0, ahead))} left"
        return words


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
