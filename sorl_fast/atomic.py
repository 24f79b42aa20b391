"""Files and folders that are there whole or not at all: write beside, flush to disk, rename; and locks.

File systems differ in what they can do. Each way out of that is here, once.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
import warnings
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


def _sync(fd: int) -> None:
    """Flush to disk, where the file system has a way to: some have none for folders, some none at all."""
    try:
        os.fsync(fd)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def _sync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def _sync_rename(path: Path) -> None:
    """Make it survive a power cut that `path` has just been put in its place."""
    try:
        _sync_path(path.parent)
    except PermissionError:  # a folder that we may write to but not read
        pass
    except OSError as err:
        raise BadInput(
            f"{path} is written, but its folder cannot be flushed to disk: {err.strerror or err}. A "
            "power cut may undo it: look after the disk"
        ) from err


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
            _sync(file.fileno())
        part.replace(path)
    except OSError as err:
        raise _remedy(path, err) from err
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    _sync_rename(path)


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
            _sync_path(child)
        _sync_path(part)
        part.rename(path)  # fails if `path` is a folder that holds something
    except OSError as err:
        raise _remedy(path, err) from err
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _sync_rename(path)


def check_folder_renames(folder: Path) -> None:
    """Put a folder that holds a file in its place in `folder`, as `new_folder` will, and remove it.

    Raises
    ------
    BadInput
        The file system cannot do that (some network and object stores), or any OSError.
    """
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        with new_folder(probe) as part:
            (part / "file").write_bytes(b"x")
    except BadInput as err:
        reason = err.__cause__.strerror if isinstance(err.__cause__, OSError) else None
        raise BadInput(
            f"cannot write a folder into {folder} and rename it: {reason or err}. Checkpoints need that: "
            "free some space, or choose a folder that you may write to, on a file system that can"
        ) from err
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def lock(file: IO[Any]) -> bool:
    """Return whether `file` is this process's alone from now on; False: another process holds it.

    A file system without locks holds nobody up: there a warning tells the user to take care.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as err:
        warnings.warn(
            f"{file.name} cannot be locked: {err.strerror or err}. Going on without: no other process "
            f"may write into {Path(file.name).parent} meanwhile, which you must see to",
            RuntimeWarning,
            stacklevel=3,
        )
    return True
