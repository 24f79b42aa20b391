"""A robot's own units of action, and the [-1, 1] that networks work in: an affine map of each component.

Shape letter: A action.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BadInput

# So that no float32 between is subnormal, where flushing to zero would tell backends apart, or infinite.
_LEAST, _MOST = 2.0**-100, 2.0**126
_NUMBER = "0 or of a magnitude from 2^-100 to 2^126"
OF_DATA = "data"  # the range is that of the training data
RANGE_FORM = (
    "'data', LOW,HIGH for every component, or LOW,HIGH:LOW,HIGH:... with a pair for each; write "
    "--action-range=-2,2 with =, for the number may be negative"
)


@dataclass(frozen=True, eq=False)
class ActionMap:
    """What -1 and 1 stand for in the robot's own units.

    A component a in [-1, 1] is y = min(low + (a + 1) * ((high - low) / 2), high), in float32 and in this
    order: every backend's bits. Where low = high, y is that, whatever a is.

    Parameters
    ----------
    low, high
        [A], low <= high; each number 0 or of a magnitude from 2^-100 to 2^126. Kept as read-only copies,
        float32.

    Raises
    ------
    BadInput
        A shape is wrong or a number is out of its bounds; the message names it.
    """

    low: NDArray[Any]
    high: NDArray[Any]

    def __post_init__(self) -> None:
        low, high = (_numbers(name, getattr(self, name)) for name in ("low", "high"))
        if len(low) != len(high):
            _refuse("high", f"of {len(high)} components", f"of {len(low)}, as low is")
        for a, (least, most) in enumerate(zip(low, high, strict=True)):
            if least > most:
                _refuse(f"low[{a}]", float(least), f"at most high[{a}] = {float(most)}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def half(self) -> NDArray[np.float32]:
        """(high - low) / 2, float32 [A]."""
        half: NDArray[np.float32] = (self.high - self.low) / np.float32(2)
        return half

    def to_units(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return actions [..., A] of [-1, 1] in the robot's units, in their own floating-point type."""
        low, half, high = (x.astype(actions.dtype) for x in (self.low, self.half, self.high))
        return np.minimum(low + (actions + 1) * half, high)

    def from_units(self, actions: NDArray[Any]) -> NDArray[np.float64]:
        """Return the robot's actions [..., A] in [-1, 1], or beyond it where they are beyond low and high.

        A component whose low and high are equal is 0 there, and beyond where it is another number.
        """
        low, high = self.low.astype(np.float64), self.high.astype(np.float64)
        centred = np.asarray(actions, np.float64) - (low + (high - low) / 2)
        span = np.where(high > low, high - low, 1.0)
        # what float32's rounding of a constant moves is no other number
        rounding = np.maximum(np.abs(low), _LEAST) * 2.0**-23
        beyond = np.where(np.abs(centred) <= rounding, 0.0, np.copysign(np.inf, centred))
        return np.where(high > low, 2 * centred / span, beyond)

    def repeated(self, count: int) -> "ActionMap":
        """Return the map of `count` actions one after another, each in these units."""
        return ActionMap(np.tile(self.low, count), np.tile(self.high, count))

    def to_json(self) -> dict[str, list[float]]:
        """Return what a policy file holds: {"low": [A numbers], "high": [A numbers]}."""
        return {"low": self.low.tolist(), "high": self.high.tolist()}


def map_from_json(value: Any, act_dim: int) -> ActionMap:
    """Undo `ActionMap.to_json`, of values that may be damaged, for A = `act_dim` components."""
    if not isinstance(value, Mapping):
        _refuse("", value, "an object with low, high")
    for name in ("low", "high"):
        if name not in value:
            _refuse(name, "missing", "there")
    for name, numbers in value.items():
        if name not in ("low", "high"):
            _refuse(name, numbers, "absent: the fields are low, high")
        if not isinstance(numbers, list) or len(numbers) != act_dim:
            _refuse(name, numbers, f"a list of {act_dim} numbers")
        for a, x in enumerate(numbers):
            if type(x) not in (int, float):
                _refuse(f"{name}[{a}]", x, _NUMBER)
    return ActionMap(value["low"], value["high"])


def ranges_of(text: str) -> list[tuple[float, float]] | None:
    """Return the pairs (low, high) that an --action-range names: one, or one a component; None: "data".

    Raises
    ------
    BadInput
        It is neither; the message names it and what it may be.
    """
    if text == OF_DATA:
        return None
    pairs = []
    for part in text.split(":"):
        try:
            low, high = (float(x) for x in part.split(","))
            ActionMap(np.array([low]), np.array([high]))
        except (BadInput, ValueError) as err:
            why = f" ({err})" if isinstance(err, BadInput) else ""
            raise BadInput(
                f"action_range is {text!r}, of which {part!r} is no LOW,HIGH{why}. Give {RANGE_FORM}"
            ) from err
        pairs.append((low, high))
    return pairs


def _numbers(name: str, value: ArrayLike) -> NDArray[np.float32]:
    try:
        given = np.asarray(value, np.float64)
    except (OverflowError, TypeError, ValueError):
        _refuse(name, value, f"a list of numbers, each {_NUMBER}")
    if given.ndim != 1 or given.size == 0:
        _refuse(name, f"of shape {list(given.shape)}", "of shape [A]")
    with np.errstate(over="ignore"):
        data = given.astype(np.float32).tobytes()
    # on bytes, since a numpy array that owns its memory can be made writeable again
    array = np.frombuffer(data, np.float32)
    size = np.abs(array)
    good = (array == 0) | ((size >= _LEAST) & (size <= _MOST))
    if not good.all():
        worst = int(np.argmin(good))
        _refuse(f"{name}[{worst}]", float(given[worst]), _NUMBER)
    return array


def _refuse(name: str, value: object, bound: str) -> NoReturn:
    text = str(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    raise BadInput(f"{f'action_map {name}'.rstrip()} is {text}, but must be {bound}")
