"""A pytest plug-in for ci/gpu.sh: a share of the tests, and each outcome written down as it is known.

GPU_SHARE=I/N takes every N-th test from the I-th on; GPU_EVENTS is the file of events, a JSON value a line.
It stands in for plug-ins that may not be there, and for the terminal's: N processes share one.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave this process its share."""
    first, _, step = os.environ["GPU_SHARE"].partition("/")
    items[:] = items[int(first) :: int(step)]
    note("selected", count=len(items))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Count a file that cannot be read as a failed test."""
    if report.failed:
        say("failed", report)
    elif report.skipped:
        say("skipped", report)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note which test begins: should the process die, this one is to blame."""
    note("start", test=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what became of a test; of a setup or an end only what went wrong."""
    if report.failed or report.skipped:
        say("failed" if report.failed else "skipped", report)
    elif report.when == "call":
        note("passed", test=report.nodeid)


def say(what: str, report: Any) -> None:
    """Note an outcome and print why."""
    text = report.longreprtext or str(report.longrepr)
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        text = report.longrepr[2]
    errors = [line[2:].strip() for line in text.splitlines() if line.startswith("E ")]
    reason = (errors or text.splitlines()[-1:] or [""])[0]
    note(what, test=report.nodeid, reason=reason[:300])
    os.write(1, f"{what.upper()} {report.nodeid}\n{text}\n\n".encode())


def note(event: str, **more: Any) -> None:
    """Append an event to the file, in one write."""
    with Path(os.environ["GPU_EVENTS"]).open("a") as file:
        file.write(json.dumps({"event": event, **more}) + "\n")
