"""What evaluations leave on disk, so that no finished episode is lost and none is run twice.

Beside an evaluation FILE.json lies its record, FILE.episodes.jsonl: one line a finished episode,
appended as it ends, with all that the episode is a function of. A kill may leave half a line, which
the next evaluation skips. FILE.json itself holds whole cells only, those of earlier evaluations too.

N candidates, M Euler steps; steps in a file are M, or a schedule's name such as "1/2,1/4,1/4". A rule that
is not named is argmax, the only one of older files.
"""

import errno
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..act.rules import ARGMAX, rule_of
from ..act.schedule import order, schedule_of
from ..atomic import write_bytes
from ..errors import BadInput

# What an episode is a function of, beside its Task; the names are also those of an evaluation's fields.
_CONTEXT = ("policy", "env", "success_timing", "seed", "backend", "isa", "precision", "versions")
_KEPT = "-kept-"  # an evaluation that cannot be added to: evaluation-kept-1.json


class Cell(NamedTuple):
    """A way to act that is evaluated."""

    steps: int | str  # `Schedule.key`
    candidates: int  # N
    rule: str = str(ARGMAX)  # `str` of a Rule


def cell_of(row: Mapping[str, Any]) -> Cell:
    """Return the cell of an evaluation's row."""
    return Cell(row["steps"], row["candidates"], row.get("rule", str(ARGMAX)))


def cell_order(cell: Cell) -> tuple[Any, ...]:
    """Return what cells are sorted by: steps, then candidates, then the rule, argmax first."""
    return order(cell.steps), cell.candidates, cell.rule != str(ARGMAX), cell.rule


class Task(NamedTuple):
    """An episode to run."""

    steps: int | str
    candidates: int
    seed: int
    episode: int
    rule: str = str(ARGMAX)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, argmax unnamed."""
        values = self._asdict()
        return values if self.rule != str(ARGMAX) else {k: values[k] for k in values if k != "rule"}


class Episode(NamedTuple):
    """What one episode gave."""

    success: bool  # at any of its steps
    length: int  # steps
    returned: float  # sum of rewards, undiscounted
    act_seconds: float  # inside the policy alone
    calls: int = 0  # of a policy with chunks; 0: one a step

    def to_json(self) -> dict[str, Any]:
        """Return the fields, calls unnamed where there is one a step."""
        values = self._asdict()
        return values if self.calls else {k: values[k] for k in values if k != "calls"}


def evaluation_path(folder: Path, precision: str = "fp32", env: str | None = None) -> Path:
    """Return where a run's folder keeps an evaluation in a precision and, if named, another environment.

    Those are no figures of the training, and stand beside its own evaluation.json.
    """
    other = [] if precision == "fp32" else [precision]
    other += [] if env is None else [env]
    return folder / f"{'-'.join(['evaluation', *other])}.json"


def record_path(evaluation: Path) -> Path:
    """Return where the episodes of an evaluation's file are recorded: beside it."""
    return evaluation.with_suffix(".episodes.jsonl")


class Record:
    """The finished episodes of one policy, environment, seed and way of acting.

    Use it as a context manager. Nothing is written before the first `add`.

    Parameters
    ----------
    path
        The record's file, which may hold other policies' episodes as well. None: kept in memory only.
    context
        What the episodes are functions of: the fields of `Evaluator.run`'s result from which they
        follow, of which policy is the file's digest.
    fresh
        Leave this context's earlier episodes out, and drop them from the file at the first `add`.

    Attributes
    ----------
    done
        The finished episodes, those of the file and those added.

    Raises
    ------
    BadInput
        The file cannot be read.
    """

    def __init__(self, path: Path | None, context: Mapping[str, Any], fresh: bool = False) -> None:
        self._path = path
        self._context = {name: context[name] for name in _CONTEXT}
        self._fresh = fresh
        self._file: FileIO | None = None
        self.done: dict[Task, Episode] = {}
        if not fresh:
            self.done = dict(found for line in self._lines() if (found := self._episode(line)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, task: Task, episode: Episode) -> None:
        """Note a finished episode; once this returns, no kill of this process can lose it.

        Raises
        ------
        BadInput
            The disk is full, the folder read-only, and the like.
        """
        self.done[task] = episode
        if self._path is None:
            return
        line = json.dumps(self._context | task.to_json() | episode.to_json()).encode() + b"\n"
        try:
            if self._file is None:
                self._file = self._open(self._path)
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as err:
            raise BadInput(
                f"cannot write {self._path}: {err.strerror or err}. Free some space, or choose a "
                "folder that you may write to; then give the same command again: what is in the file "
                "stays"
            ) from err

    def _open(self, path: Path) -> FileIO:
        if self._fresh and path.exists():
            others = [line for line in self._lines() if self._episode(line) is None]
            write_bytes(path, b"".join(line + b"\n" for line in others))
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open(
            "ab", buffering=0
        )  # a line is one write: two evaluations may share the file
        if path.read_bytes()[-1:] not in (b"", b"\n"):
            file.write(b"\n")  # ends what a kill has cut short
        return file

    def _lines(self) -> list[bytes]:
        if self._path is None:
            return []
        try:
            return [line for line in self._path.read_bytes().split(b"\n") if line]
        except FileNotFoundError:
            return []
        except OSError as err:
            raise BadInput(
                f"{self._path}, the record of finished episodes, cannot be read "
                f"({err.strerror or err}). Make it readable, or move it away to run all episodes again"
            ) from err

    def _episode(self, line: bytes) -> tuple[Task, Episode] | None:
        """Return what a line holds; None if it is another context's, or damaged."""
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(values, dict) or not _same_context(values, self._context):
            return None
        given = {"rule": str(ARGMAX), "calls": 0} | values
        task = Task._make(given.get(name) for name in Task._fields)
        episode = Episode._make(given.get(name) for name in Episode._fields)
        numbers = (episode.returned, episode.act_seconds)
        ok = (
            all(type(x) is int for x in (*task[1:4], episode.length, episode.calls))
            and type(task.steps) in (int, str)
            and type(task.rule) is str
            and type(episode.success) is bool
            and all(type(value) in (int, float) for value in numbers)
            and episode.length >= 1
            and 0 <= episode.calls <= episode.length
            and episode.act_seconds > 0
        )
        return (task, episode) if ok else None


def _same_context(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(name in a and name in b and a[name] == b[name] for name in _CONTEXT)


def keep_evaluation(
    path: Path, result: Mapping[str, Any], fresh: bool = False
) -> tuple[dict[str, Any], Path | None]:
    """Write an evaluation to `path` without losing what an earlier one found there.

    Cells of an earlier evaluation in the same context are kept, and so are its rows of more episodes.
    One in another context (of a policy trained on since, of another seed, ...) is moved aside, to the
    first free of FILE-kept-1.json, FILE-kept-2.json, ...

    Parameters
    ----------
    path
        The evaluation's file.
    result
        What `Evaluator.run` returns, and the `command`.
    fresh
        Leave out what the same context has there.

    Returns
    -------
    tuple
        The evaluation as written: rows in `cell_order`, and all `commands` that gave them;
        and where an earlier one was moved, or None.

    Raises
    ------
    BadInput
        The disk is full, the folder read-only, and the like; nothing was changed.
    """
    merged, aside = dict(result), None
    commands = [result["command"]]
    rows = {cell_of(row): row for row in result["rows"]}
    earlier = _read_evaluation(path)
    if earlier is not None and not _same_context(earlier, result):
        aside = _free_name(path)
        write_bytes(aside, path.read_bytes())
    elif earlier is not None and not fresh:
        commands = list(dict.fromkeys([*earlier.get("commands", []), *commands]))
        for row in earlier["rows"]:
            cell = cell_of(row)
            if cell not in rows or rows[cell]["episodes"] < row["episodes"]:
                rows[cell] = row
    merged |= {"commands": commands, "rows": [rows[cell] for cell in sorted(rows, key=cell_order)]}
    write_bytes(path, (json.dumps(merged, indent=1) + "\n").encode())
    return merged, aside


def _read_evaluation(path: Path) -> dict[str, Any] | None:
    """Return the evaluation in `path`; None if there is none, or nothing that rows could be added to."""
    try:
        values = json.loads(path.read_bytes())
        for row in values["rows"]:
            cell = cell_of(row)
            if not all(type(x) is int for x in (cell.candidates, row["episodes"])):
                return None
            rule_of(cell.rule)
            if type(cell.steps) not in (int, str) or schedule_of(cell.steps).key != cell.steps:
                return None
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError, BadInput):
        return None
    return values if values["rows"] else None


def _free_name(path: Path) -> Path:
    number = 1
    while (name := path.with_stem(f"{path.stem}{_KEPT}{number}")).exists():
        number += 1
    return name
