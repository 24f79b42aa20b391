"""Whether an episode stands still: its observations get nowhere, however much they tremble.

Shape letters: T steps, O observation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

STILL = 0.1  # of the deviation of all that was met: what drifts less stands still


def scale_of(observations: Sequence[Floats]) -> NDArray[np.float64]:
    """Return the deviation [O] of the observations of all episodes together, each [T, O]; 0: constant."""
    return np.concatenate(observations).astype(np.float64).std(0)


def drift(obs: Floats, scale: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return how far `window` steps in a row get, from every step on [max(0, T - window + 1)].

    That is the mean of a window's last half less that of its first half, over the component's `scale`, the
    root of the mean square over the components whose scale is not 0. What trembles or treads on the spot
    has a deviation, but no drift.

    Parameters
    ----------
    obs
        [T, O].
    scale
        [O], `scale_of` all episodes.
    window
        Steps, at least 2; of an odd number the middle one is left out.
    """
    varies = scale > 0
    n, half = max(0, len(obs) - window + 1), window // 2
    if n == 0 or not varies.any():
        return np.zeros(n)
    x = obs[:, varies].astype(np.float64) / scale[varies]
    sums = np.concatenate([np.zeros((1, x.shape[1])), (x - x[0]).cumsum(0)])
    means = (sums[half:] - sums[:-half]) / half  # of `half` steps from every step on
    last = window - half
    return np.sqrt(np.square(means[last : last + n] - means[:n]).mean(1))


def standing(obs: Floats, scale: NDArray[np.float64], window: int) -> NDArray[np.bool_]:
    """Return which steps [T] belong to a window that drifts less than STILL."""
    still = drift(obs, scale, window) < STILL
    found = np.zeros(len(obs), bool)
    for start in np.flatnonzero(still):
        found[start : start + window] = True
    return found
