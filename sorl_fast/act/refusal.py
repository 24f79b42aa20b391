"""How a value of a policy file is refused: by name, with the value and its bound."""

from typing import Any, NoReturn

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
