"""Actions of a user's own data in [-1, 1]: as they are, or by the map that an --action-range names.

Shape letters: T transitions, A action.
"""

import sys
from collections.abc import Mapping

import numpy as np

from ..action_map import OF_DATA, ActionMap, ranges_of
from ..errors import BadInput

_ROUNDING = (
    1e-6  # beyond 1, of what a user's own arithmetic may have made of an action at the bound
)
_NAMES = ("actions", "next_actions")


def action_map_of(text: str | None, actions: np.ndarray, source: str) -> ActionMap | None:
    """Return the map of an --action-range for data [T, A] of a file; None: there is no map.

    Parameters
    ----------
    text
        None for no map; else as `action_map.ranges_of` takes it. "data": from each component's least to its
        greatest value.
    actions
        [T, A], finite, T at least 1.
    source
        What the errors call the file.

    Raises
    ------
    BadInput
        There is another number of pairs than components, or the data's range cannot be mapped.
    """
    if text is None:
        return None
    pairs = ranges_of(text)
    A = actions.shape[1]
    if pairs is None:
        try:
            return ActionMap(actions.min(0), actions.max(0))
        except BadInput as err:
            raise BadInput(
                f"{source}: the actions have no range that can be mapped: {err}. Name one with "
                "--action-range=LOW,HIGH"
            ) from err
    if len(pairs) not in (1, A):
        raise BadInput(
            f"action_range names {len(pairs)} pairs LOW,HIGH, but the actions of {source} have {A} "
            f"components: give 1 or {A}"
        )
    low, high = zip(*(pairs if len(pairs) == A else pairs * A), strict=True)
    return ActionMap(np.array(low), np.array(high))


def unit_actions(
    arrays: Mapping[str, np.ndarray], units: ActionMap | None, source: str, *, clip: bool = False
) -> dict[str, np.ndarray]:
    """Return the arrays, with their actions (and next_actions) [T, A] in [-1, 1].

    Parameters
    ----------
    arrays
        Of a data set, shapes and finiteness checked.
    units
        The map; None: the actions must be in [-1, 1] as they are.
    source
        What the errors call the file.
    clip
        Bring what is beyond the range to its bounds, and say so on standard error, rather than refuse it.

    Raises
    ------
    BadInput
        An action is beyond the range; the message names it.
    """
    mapped = dict(arrays)
    for name in _NAMES:
        if name in arrays and units is not None:
            mapped[name] = units.from_units(arrays[name])
    unit = np.abs(mapped["actions"])
    if unit.max(initial=0.0) <= 1 + _ROUNDING:
        return mapped
    row, a = np.unravel_index(np.argmax(unit), unit.shape)
    value = float(arrays["actions"][row, a])
    if units is None:
        raise BadInput(
            f"{source}: actions reach {abs(value):g}, but must lie in [-1, 1]. Map them there with "
            f"--action-range {OF_DATA}, or --action-range=LOW,HIGH of the robot: the policy file then "
            "returns actions in these units"
        )
    low, high = float(units.low[a]), float(units.high[a])
    where = f"{source}: the action of row {row} is {value:g} in component {a}"
    if not clip:
        raise BadInput(
            f"{where}, but the action range is from {low:g} to {high:g} there. Widen --action-range, or "
            f"give --action-range {OF_DATA}"
        )
    count = int((unit > 1 + _ROUNDING).any(1).sum())
    print(
        f"{where}, beyond the training data's {low:g} to {high:g}: it and what else is beyond, in {count} "
        f"of {len(unit)} rows, is clipped in the validation data",
        file=sys.stderr,
    )
    for name in _NAMES:
        if name in mapped:
            mapped[name] = np.clip(mapped[name], -1, 1)
    return mapped
