"""A run's folder: config.json, log.jsonl, log.csv, eval.jsonl, checkpoints/, policy.safetensors."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

from .. import atomic
from ..atomic import write_bytes
from ..config import DEFAULT_METHOD, MethodConfig, TrainConfig
from ..errors import BadInput
from .algorithms import find_method
from .checkpoint import checkpoint_folders

_LOCK = ".lock"


def absolute(path: str | Path) -> str:
    """Return `path` as it is found from any working directory.

    Symbolic links stay, unless there are `..`: these would need the folders that they lead out of.
    """
    path = Path(path).expanduser().absolute()
    return str(path.resolve() if ".." in path.parts else path)


class RunFolder:
    """Paths and line files of one run.

    Parameters
    ----------
    path
        The folder; `create` or `reopen` prepares it.
    columns
        What log.csv has beside `step`, in this order.
    """

    def __init__(self, path: str | Path, columns: Sequence[str]):
        self.path = Path(path).expanduser()
        self._lock: IO[str] | None = None
        self._columns = ("step", *columns)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        """The policy file: the newest exported weights."""
        return self.path / "policy.safetensors"

    def create(self, info: Mapping[str, Any]) -> None:
        """Make the folder and write config.json.

        Raises
        ------
        BadInput
            The folder holds something already, or cannot be written.
        """
        if self.path.exists() and (not self.path.is_dir() or self._holds_something()):
            if checkpoint_folders(self.checkpoints):
                remedy = "Continue it with --resume, or choose"
            elif (self.path / "config.json").is_file():
                remedy = (
                    "It is a run that stopped before its first checkpoint: remove it, or choose"
                )
            else:
                remedy = "Choose"
            raise BadInput(f"--out {self.path} exists and is not empty. {remedy} another folder")
        new = not self.path.exists()
        with contextlib.suppress(OSError):  # the first file says what is wrong
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            self.check_renames()
        except BadInput:
            if new:
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            raise
        self.lock()
        self.write_config(info)
        self._rewrite("log.jsonl", [])
        self._rewrite("eval.jsonl", [])
        self._rewrite_csv([])

    def clear(self) -> bool:
        """Remove what a run has left that was stopped before its first checkpoint; return whether it did.

        A folder of anything else stays as it is. The lock must be held.
        """
        names = {"config.json", "log.jsonl", "log.csv", "eval.jsonl", "tensorboard", "checkpoints"}
        there = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        # the policy is written before the first checkpoint
        left = there - {_LOCK} - names - {self.policy.name}
        if (
            "config.json" not in there
            or checkpoint_folders(self.checkpoints)
            or any(not name.endswith(".part") for name in left)
        ):
            return False
        try:
            for name in sorted(there - {_LOCK}):
                path = self.path / name
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as err:
            raise BadInput(
                f"{err.filename}, left by a run that was stopped before its first checkpoint, cannot be "
                f"removed: {err.strerror or err}. Remove it, or choose another --out"
            ) from err
        return True

    def _holds_something(self) -> bool:
        return any(path.name != _LOCK for path in self.path.iterdir())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def lock(self, patience: float = 0.0) -> None:
        """Keep other trainings out of the folder until this object's block, or the process, ends.

        Parameters
        ----------
        patience
            Seconds to wait for another training to end: one that was told to may be saving.

        Raises
        ------
        BadInput
            Another process is still training there.
        """
        if self._lock is not None:
            return
        try:
            lock = (self.path / _LOCK).open("w")
        except OSError:
            return  # no folder, or read-only: whoever reads or writes there next says so
        until = time.monotonic() + patience
        while not atomic.lock(lock):
            if time.monotonic() >= until:
                lock.close()
                raise BadInput(
                    f"another process is training in {self.path}. Stop it or wait for it, or choose "
                    "another --out"
                )
            time.sleep(0.1)
        self._lock = lock

    def check_renames(self) -> None:
        """Find out before the first update whether a checkpoint can be put in its place here.

        Raises
        ------
        BadInput
            It cannot: no checkpoint could ever be saved.
        """
        atomic.check_folder_renames(self.path)

    def write_config(self, info: Mapping[str, Any]) -> None:
        """Write config.json, whole or not at all."""
        write_bytes(self.path / "config.json", (json.dumps(info, indent=1) + "\n").encode())

    def read_config(self) -> tuple[MethodConfig, TrainConfig, dict[str, Any]]:
        """Read config.json back, with paths that are absolute.

        Raises
        ------
        BadInput
            It is missing or damaged.
        """
        file = self.path / "config.json"
        try:
            info = json.loads(file.read_text())
            method = find_method(
                info.get("method", DEFAULT_METHOD)
            )  # the only one of older versions
            agent = method.Config.from_dict(info["agent"])
            # of before there was such a thing: goes on to the bits that it would have had
            train = TrainConfig.from_dict({"ood_rate": 0.0} | info["train"])
            data = self._found(train.data, train.out)
            return agent, replace(train, data=data, out=absolute(self.path)), info
        except FileNotFoundError as err:
            raise BadInput(f"no {file}: {self.path} is not a run's folder") from err
        except (OSError, ValueError, KeyError, TypeError) as err:
            if isinstance(err, BadInput):
                raise
            raise BadInput(f"{file} cannot be read: {err}. Start the run anew") from err

    def _found(self, data: str, out: str) -> str:
        """Return where `data` is, absolute.

        An older run may name data and itself relative to a working directory that it does not name:
        that is the one from which `out` leads to this folder.
        """
        path = Path(data).expanduser()
        tail = Path(os.path.normpath(out)).parts
        for here in (self.path.absolute().parts, self.path.resolve().parts):
            above = len(here) - len(tail)
            if here[above:] == tail and (there := Path(*here[:above]) / path).exists():
                return absolute(there)
        return absolute(path)

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`: they belong to updates that a kill has lost."""
        for name in ("log.jsonl", "eval.jsonl"):
            lines = [x for x in self._read(name) if x["step"] <= step]
            self._rewrite(name, lines)
            if name == "log.jsonl":
                self._rewrite_csv(lines)

    def log(self, line: Mapping[str, float]) -> None:
        """Append one line to log.jsonl and log.csv."""
        self._append("log.jsonl", json.dumps(line))
        self._append("log.csv", ",".join(str(line.get(c, "")) for c in self._columns))

    def log_evaluation(self, line: Mapping[str, Any]) -> None:
        """Append one evaluation to eval.jsonl."""
        self._append("eval.jsonl", json.dumps(line))

    def evaluation(self, step: int) -> dict[str, Any] | None:
        """Return eval.jsonl's line of the network after `step` updates, if it has one."""
        lines = [line for line in self._read("eval.jsonl") if line["step"] == step]
        return lines[-1] if lines else None

    def _append(self, name: str, line: str) -> None:
        try:
            with (self.path / name).open("a") as file:
                file.write(line + "\n")
        except OSError as err:
            raise BadInput(
                f"cannot write {self.path / name}: {err.strerror}. Free some space, then continue "
                "with --resume from the last checkpoint"
            ) from err

    def _read(self, name: str) -> list[dict[str, Any]]:
        lines = []
        file = self.path / name
        for text in file.read_text().splitlines() if file.is_file() else []:
            try:
                lines.append(json.loads(text))
            except ValueError:
                break  # the writer was killed inside this line; what follows cannot exist
        return lines

    def _rewrite(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        write_bytes(self.path / name, "".join(json.dumps(x) + "\n" for x in lines).encode())

    def _rewrite_csv(self, lines: Sequence[Mapping[str, Any]]) -> None:
        rows = [self._columns, *([x.get(c, "") for c in self._columns] for x in lines)]
        text = os.linesep.join(",".join(str(v) for v in row) for row in rows) + os.linesep
        write_bytes(self.path / "log.csv", text.encode())
