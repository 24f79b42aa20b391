"""Whether an episode stands still: its observations stay within a small part of all that were met.

Shape letters: T steps, O observation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

STILL = 0.1  # of the deviation of all that was met: what moves less stands still


def scale_of(observations: Sequence[Floats]) -> NDArray[np.float64]:
    """Return the deviation [O] of the observations of all episodes together, each [T, O]; 0: constant."""
    return np.concatenate(observations).astype(np.float64).std(0)


def movement(obs: Floats, scale: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return how much `window` steps in a row move, from every step on [max(0, T - window + 1)].

    That is the deviation of each component within the window over its `scale`, the root of the mean square
    over the components whose scale is not 0: 1 where the window is as varied as all there is, 0 where
    nothing changes.

    Parameters
    ----------
    obs
        [T, O].
    scale
        [O], `scale_of` all episodes.
    window
        Steps, at least 1.
    """
    varies = scale > 0
    if len(obs) < window or not varies.any():
        return np.zeros(max(0, len(obs) - window + 1))
    x = obs[:, varies].astype(np.float64) / scale[varies]
    views = np.lib.stride_tricks.sliding_window_view(x, window, axis=0)  # [n, O, window]
    return np.sqrt(views.var(-1).mean(-1))


def standing(obs: Floats, scale: NDArray[np.float64], window: int) -> NDArray[np.bool_]:
    """Return which steps [T] belong to a window that moves less than STILL."""
    still = movement(obs, scale, window) < STILL
    found = np.zeros(len(obs), bool)
    for start in np.flatnonzero(still):
        found[start : start + window] = True
    return found
