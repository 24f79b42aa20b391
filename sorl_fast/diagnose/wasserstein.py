"""2-Wasserstein distances between sets of actions of one observation, by an exact assignment.

Shape letters: B observations, n actions of a set, A action, T transitions, O observation.
"""

import numpy as np
from numpy.typing import NDArray

from ..act.reference import Array

_ROWS = 1 << 16  # of data at once: memory


def wasserstein(x: Array, y: Array) -> NDArray[np.float64]:
    """Return W2 [B] of the uniform distributions on x [B, n, A] and on y [B, n, A].

    W2(x, y)^2 = min over permutations p of the mean of |x_i - y_p(i)|^2, exactly (the Hungarian method).
    """
    from scipy.optimize import linear_sum_assignment  # half a second to import

    found = np.empty(len(x))
    for b, (p, q) in enumerate(zip(x.astype(np.float64), y.astype(np.float64), strict=True)):
        cost = np.square(p[:, None] - q[None]).sum(-1)
        rows, columns = linear_sum_assignment(cost)
        found[b] = np.sqrt(cost[rows, columns].mean())
    return found


def neighbours(data: Array, obs: Array, count: int) -> tuple[NDArray[np.int64], Array]:
    """Return which rows of data [T, O] are nearest to each of obs [B, O], and how near.

    Distances are in units of the data's deviation, the root of the mean square over the components that
    vary; of equal distances the smaller row comes first.

    Parameters
    ----------
    data, obs
        Finite.
    count
        How many, at most T.

    Returns
    -------
    rows, distances
        [B, count], the nearest first.
    """
    mean, std = data.mean(0, dtype=np.float64), data.std(0, dtype=np.float64)
    varies = std > 0
    scale = np.sqrt(max(1, varies.sum()))
    x = ((obs[:, varies] - mean[varies]) / std[varies] / scale).astype(np.float32)
    best_rows = np.empty((len(obs), 0), np.int64)
    best = np.empty((len(obs), 0), np.float32)
    for start in range(0, len(data), _ROWS):
        part = data[start : start + _ROWS, varies]
        y = ((part - mean[varies]) / std[varies] / scale).astype(np.float32)
        squared = (x * x).sum(1)[:, None] - 2 * (x @ y.T) + (y * y).sum(1)
        squared = np.concatenate([best, np.maximum(squared, 0)], 1)
        rows = np.broadcast_to(np.arange(start, start + len(y)), (len(obs), len(y)))
        rows = np.concatenate([best_rows, rows], 1)
        order = np.argsort(squared, axis=1, kind="stable")[:, :count]
        best, best_rows = (np.take_along_axis(a, order, 1) for a in (squared, rows))
    return best_rows, np.sqrt(best)
