"""Files and folders that are there whole or not at all: write beside, flush to disk, rename."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import BadInput


def _remedy(path: Path, err: OSError) -> BadInput:
    reason = err.strerror or str(err)
    return BadInput(
        f"cannot write {path}: {reason}. Free some space, or choose a folder that you may write to; "
        "nothing was changed"
    )


def _check_path(call: str, path: object) -> None:
    if not isinstance(path, str | os.PathLike):
        raise BadInput(f"path is a {type(path).__name__}, but must be a path: {call}")


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: str | os.PathLike[str], write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write(file)` on a hidden file beside `path`, then put it in the place of `path`.

    Parameters
    ----------
    path
        The file to make or replace; its folder is made if it is not there.
    write
        Receives the binary file, open for writing.

    Raises
    ------
    BadInput
        The folder is read-only, the disk is full, or any other OSError. `path` is as it was.
    """
    _check_path("write_file(path, write)", path)
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as err:
        raise _remedy(path, err) from err
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Put `data` into the file `path`, whole or not at all; errors as `write_file`."""
    _check_path("write_bytes(path, data)", path)
    if not isinstance(data, bytes | bytearray | memoryview):
        raise BadInput(
            f"data is a {type(data).__name__}, but must be bytes: write_bytes(path, data)"
        )
    write_file(path, lambda file: file.write(data))


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a folder under a hidden name, then rename it to `path`, which must be new.

    Yields
    ------
    Path
        The hidden folder to write into. If the block raises, it is removed and `path` is as it was.

    Raises
    ------
    BadInput
        Any OSError, as `write_file`.
    """
    _check_path("new_folder(path)", path)
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        yield part
        for child in part.iterdir():
            fd = os.open(child, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        _sync_folder(part)
        part.rename(path)  # fails if `path` is a folder that holds something
        _sync_folder(path.parent)
    except OSError as err:
        raise _remedy(path, err) from err
    finally:
        shutil.rmtree(part, ignore_errors=True)
