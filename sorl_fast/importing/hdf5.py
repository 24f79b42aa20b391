"""Reading HDF5 files that are foreign, and perhaps damaged."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import BadInput


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield the h5py file; what h5py cannot read in the block is a BadInput."""
    try:
        import h5py
    except ImportError as err:
        raise BadInput(f"h5py is not installed ({err}): pip install 'sorl-fast[import]'") from err
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as err:
        raise BadInput(
            f"{path} cannot be read as HDF5: {err}. Copy it again from where it came"
        ) from err


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do."""
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


def array(source: str, group: Any, name: str) -> Any:
    """Return a data set of a group in memory; None where there is none of this name.

    Raises
    ------
    BadInput
        The name is a group's.
    """
    if name not in group:
        return None
    found = group[name]
    if not hasattr(found, "dtype"):
        raise BadInput(f"{source}: {name} is a group, but must be an array")
    return found[()]


def required(source: str, group: Any, name: str, remedy: str) -> Any:
    """Return `array`, or raise BadInput with the remedy where it is not there."""
    found = array(source, group, name)
    if found is None:
        raise BadInput(f"{source} has no {name}. {remedy}")
    return found
