"""How a value of a policy file is refused: by name, with the value and its bound."""

from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import BadInput


class Words(str):
    """A value that is described, not quoted."""

    __repr__ = str.__str__


def refuse(name: str, value: object, bound: str) -> NoReturn:
    """Raise BadInput: `name` is `value`, but must be `bound`."""
    text = repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    raise BadInput(f"{name} is {text}, but must be {bound}")


def is_ints(values: Any) -> bool:
    """Whether `values` is a list of integers, True and False not being such."""
    return isinstance(values, list) and all(type(x) is int for x in values)


def is_number(x: Any) -> bool:
    """Whether `x` is an int or a float that float32 holds as a finite number."""
    # exact for an integer of any size
    return type(x) in (int, float) and abs(x) < 2.0**128


def array_of(name: str, value: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a read-only float32 copy, its shape and finiteness checked."""
    given = np.asarray(value)
    if given.dtype.kind not in "fiu":
        refuse(f"{name} dtype", given.dtype.name, "float32 or another real number type")
    if given.shape != shape:
        refuse(f"{name} shape", list(given.shape), f"{list(shape)}")
    with np.errstate(all="ignore"):
        # on bytes, since a numpy array that owns its memory can be made writeable again
        data = np.ascontiguousarray(given, np.float32).tobytes()
        array = np.frombuffer(data, np.float32).reshape(shape)
        # a NaN goes through min and max, which unlike isfinite make no array of the file's size
        finite = np.isfinite(array.min()) and np.isfinite(array.max())
    if not finite:
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        refuse(f"{name}[{', '.join(map(str, at))}]", float(array[at]), "finite")
    return array
