"""Work in child processes, for code that may crash, hang, or spoil the process that it runs in.

A child takes a list of items and reports item by item. When it dies, or reports nothing for too long,
the item that it was at is to blame, and a new child goes on with the rest; so does a new one after any
item that did not end well, since what an ill-behaved kernel leaves behind can't be trusted. No child
outlives its parent, however that ends: one that hangs would keep a GPU busy for ever.
"""

import contextlib
import importlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from .cores import unpin

Item = Mapping[str, Any]  # JSON values
# What became of an item: JSON values, among them `status` (ok, or else) and `reason`. With `harmless`
# true the child goes on although the status is not ok.
Outcome = dict[str, Any]
Note = Callable[[str], None]  # says what is being done, and that the child is alive
Worker = Callable[[Item, Note], Outcome]

_BOOTSTRAP = (
    "import json, sys; task = json.loads(sys.stdin.readline()); sys.path[:] = task['path']; "
    "from sorl_fast.isolated import serve; serve(task)"
)


class Unavailable(Exception):
    """Raised by a worker: what every item needs is not there. No item is to blame."""


def how_it_ended(code: int) -> str:
    """Return in words how a process ended: by its exit code, or -N of a signal N."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-code}"


def run(
    worker: str,
    items: Sequence[Item],
    *,
    silence: float = 120.0,
    start: float = 240.0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Outcome]:
    """Do every item in a child process and yield the outcomes, in order, as they come.

    Parameters
    ----------
    worker
        `module:function`, imported in the child; the function does one item, a `Worker`.
    items
        JSON values.
    silence
        Seconds without a report after which a child counts as hung.
    start
        The same for the time until a child is ready for its first item.
    environment
        More environment variables of the child.

    Yields
    ------
    Outcome
        What the worker returned, or a status and its reason: `failed` (the worker raised), `crashed`
        (the child died), `hung`, or `unchecked` (no child could be started, or the worker raised
        `Unavailable`: nothing is known about this item or any that follows).
    """
    done = 0
    while done < len(items):
        child = _Child(worker, items[done:], environment or {})
        reason: str | None = None  # why no other child is worth a try
        before = done
        try:
            for outcome in child.outcomes(start, silence):
                yield outcome
                done += 1
                if outcome["status"] == "unchecked":
                    reason = outcome["reason"]
            if done == before:
                reason = child.why_it_ended()
        finally:
            child.kill()
        if reason is not None:
            for _ in items[done:]:
                yield {"status": "unchecked", "reason": reason}
            return


class _Child:
    """One child process and what it has reported."""

    def __init__(self, worker: str, items: Sequence[Item], environment: Mapping[str, str]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble = ""
        self._buffer = b""
        unpin()
        task = {"worker": worker, "items": [dict(item) for item in items], "path": sys.path}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # so that compilers that it starts die with it
                env={**os.environ, **environment},
            )
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()  # and open till the end: see _end_with_parent
        except OSError as err:
            self._trouble = f"no child process could be started: {err}"

    def outcomes(self, start: float, silence: float) -> Iterator[Outcome]:
        """Yield what becomes of one item after another, till the child ends or must be ended."""
        doing: str | None = None  # an item is at work: what it said last
        limit = start
        while True:
            report = self._report(limit)
            if report is None or report == "silence":
                if doing is not None:
                    after = f" at: {doing}" if doing else ""
                    if report is None:
                        yield {"status": "crashed", "reason": f"{self._death()}{after}"}
                    else:
                        reason = f"said nothing for {limit:g} s{after}"
                        yield {"status": "hung", "reason": reason}
                elif report is not None:
                    self._trouble = f"the child process was not ready after {limit:g} s"
                return
            limit = silence
            if "note" in report:
                doing = report["note"]
            elif "outcome" in report:
                doing = None
                yield report["outcome"]
                if not _sound(report["outcome"]):
                    return

    def _report(self, limit: float) -> Any:
        """Return the child's next report; None at its end, "silence" if there is none in time."""
        if self._process is None:
            return None
        pipe = self._process.stdout
        assert pipe is not None
        end = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, end - time.monotonic())):
                    return "silence"
                data = os.read(pipe.fileno(), 65536)
                if not data:
                    return None
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _death(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "the process closed its report"
        said = self._said() if code >= 0 else ""
        return f"the process {how_it_ended(code)}" + (f" ({said})" if said else "")

    def _said(self) -> str:
        """Return the last line that the child wrote to its standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4096))
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def why_it_ended(self) -> str:
        """Return why a child ended without a word about any item."""
        return self._trouble or self._death()

    def kill(self) -> None:
        """End the child and whatever it started."""
        process = self._process
        if process is not None:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            # a process inside a hung driver call may outlive its SIGKILL: don't wait for ever
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(OSError):  # a task that did not fit in before the child died
                process.stdin.close()
            process.stdout.close()
        self._errors.close()


def _sound(outcome: Outcome) -> bool:
    """Whether the child may go on with other items."""
    return outcome["status"] == "ok" or outcome.get("harmless", False)


def _end_with_parent() -> None:
    """End this process, and what it started, when its standard input ends: the parent is no more."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


def serve(task: Mapping[str, Any]) -> None:
    """Do the items of a task in this process, which is a child of `run`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected: leave no core file
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # the report has a descriptor of its own, so that nothing that prints can disturb it
    report = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(content: Mapping[str, Any]) -> None:
        report.write(json.dumps(content) + "\n")
        report.flush()

    module, _, name = task["worker"].partition(":")
    work: Worker = getattr(importlib.import_module(module), name)
    for item in task["items"]:
        say({"note": ""})
        try:
            outcome = work(item, lambda text: say({"note": text}))
        except Unavailable as err:
            outcome = {"status": "unchecked", "reason": str(err)}
        except Exception as err:  # what it is, the parent's reader is told
            text = " ".join(str(err).split())
            outcome = {"status": "failed", "reason": f"{type(err).__name__}: {text[:500]}"}
        say({"outcome": outcome})
        if not _sound(outcome):
            return
