"""Aggregates over tasks and seeds, as R. Agarwal et al. define them (NeurIPS 2021, arXiv 2108.13264).

Scores are what N seeds reached in each of K tasks: task -> its seeds' scores. An interval is of the
stratified bootstrap: seeds are drawn anew, with replacement, within each task, and the percentiles of the
statistic are taken. It says how much another set of seeds would differ, on these tasks. NumPy alone: the
authors' own library, rliable, has had no release since 1.2.0 of August 2024.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, Sequence[float]]
Array = NDArray[np.float64]
Statistic = Callable[[Sequence[Array]], Array]  # of tasks' scores [..., N], of any number of draws

DRAWS = 2000  # of the bootstrap
LEVEL = 0.95


def _arrays(scores: Scores) -> list[Array]:
    arrays = [np.asarray(scores[task], np.float64) for task in sorted(scores)]
    if not arrays or any(x.size == 0 for x in arrays):
        raise ValueError("scores need a task, and each task a seed")
    return arrays


def mean(tasks: Sequence[Array]) -> Array:
    """Return the mean over tasks of the mean over seeds: sum_k sum_n x_kn / (K N)."""
    return np.mean([x.mean(-1) for x in tasks], axis=0)


def iqm(tasks: Sequence[Array]) -> Array:
    """Return the interquartile mean: the mean of the middle half of all K N scores together.

    floor(K N / 4) scores are left out at either end (section 4.3 of the paper; its code is
    `scipy.stats.trim_mean(scores, 0.25, axis=None)`).
    """
    pooled = np.sort(np.concatenate(tasks, axis=-1), axis=-1)
    n = pooled.shape[-1]
    cut = n // 4
    middle: Array = pooled[..., cut : n - cut].mean(-1)
    return middle


def point(scores: Scores, statistic: Statistic) -> float:
    """Return a statistic of the scores."""
    return float(statistic(_arrays(scores)))


def resampled(scores: Scores, draws: int, random: np.random.Generator) -> list[Array]:
    """Return every task's scores [draws, N], seeds drawn with replacement within each task."""
    arrays = _arrays(scores)
    return [x[random.integers(len(x), size=(draws, len(x)))] for x in arrays]


def interval(
    scores: Scores, statistic: Statistic, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95% interval of a statistic, of the stratified bootstrap; the same for equal scores.

    None where a task has one seed alone: from that, nothing says how much another would differ.
    """
    if min(map(len, scores.values())) < 2:
        return None
    return _percentiles(statistic(resampled(scores, draws, np.random.default_rng(seed))))


def _percentiles(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _wins(x: Sequence[Array], y: Sequence[Array]) -> Array:
    """Return the mean over tasks of P(X > Y) + P(X = Y) / 2 over pairs of seeds, for each draw."""
    found = []
    for a, b in zip(x, y, strict=True):
        a, b = a[..., :, None], b[..., None, :]
        found.append(((a > b) + 0.5 * (a == b)).mean((-2, -1)))
    return np.mean(found, axis=0)


def improvement(
    x: Scores, y: Scores, draws: int = DRAWS, seed: int = 0
) -> tuple[float, tuple[float, float] | None]:
    """Return the probability that X improves on Y, and its 95% interval.

    P(X > Y) = 1/K sum_k P(X_k > Y_k), P(X_k > Y_k) = 1/(N M) sum_ij S(x_ik, y_jk), with S = 1 where the
    first is larger, 1/2 where they are equal, else 0: the Mann-Whitney statistic (section 4.3). Of the
    tasks that both have; both sets of seeds are drawn anew for the interval.

    Raises
    ------
    ValueError
        They have no task in common.
    """
    shared = sorted(x.keys() & y.keys())
    if not shared:
        raise ValueError("the two have no task in common")
    ours, theirs = ({task: scores[task] for task in shared} for scores in (x, y))
    value = float(_wins(_arrays(ours), _arrays(theirs)))
    if min(len(s) for scores in (ours, theirs) for s in scores.values()) < 2:
        return value, None
    random = np.random.default_rng(seed)
    drawn = (resampled(scores, draws, random) for scores in (ours, theirs))
    return value, _percentiles(_wins(*drawn))


def _above(tasks: Sequence[Array], taus: Array) -> Array:
    """Return the part of scores above each tau, the mean over tasks: [..., T]."""
    parts = [(x[..., :, None] > taus).mean(-2) for x in tasks]
    return np.mean(parts, axis=0)


def profile(
    scores: Scores, taus: Array, draws: int = DRAWS, seed: int = 0
) -> tuple[Array, tuple[Array, Array] | None]:
    """Return the performance profile F(tau) [T], and its pointwise 95% band.

    F(tau) = 1/K sum_k 1/N sum_n [x_kn > tau], the part of runs that reach more than tau (section 4.2).
    The band is None where a task has one seed alone.
    """
    value = _above(_arrays(scores), taus)
    if min(map(len, scores.values())) < 2:
        return value, None
    drawn = _above(resampled(scores, draws, np.random.default_rng(seed)), taus)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return value, (low, high)
