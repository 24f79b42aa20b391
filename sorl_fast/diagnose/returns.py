"""Whether Q orders what was met by the return that came of it.

Shape letters: T steps, B states, N actions.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def window_returns(rewards: Floats, ended: bool, gamma: float, window: int) -> Floats:
    """Return G_t = r_t + gamma r_{t+1} + ... + gamma^(window-1) r_{t+window-1} [n].

    Parameters
    ----------
    rewards
        [T].
    ended
        Whether the task was done with the last step, so that no reward comes after: then n = T. Where time
        ran out nobody knows what would have come: n = T - window + 1, or 0.
    gamma
        In [0, 1].
    window
        Steps, at least 1.
    """
    r = np.concatenate([rewards, np.zeros(window - 1)]) if ended else np.asarray(rewards)
    if len(r) < window:
        return np.empty(0)
    views = np.lib.stride_tricks.sliding_window_view(r, window)
    return np.asarray(views @ gamma ** np.arange(window, dtype=np.float64))


def discounted(rewards: Floats, gamma: float) -> float:
    """Return the discounted sum of rewards [T]."""
    return float(rewards @ gamma ** np.arange(len(rewards), dtype=np.float64))


def rank_correlation(x: Any, y: Any) -> float | None:
    """Return Spearman's correlation of x and y [n]; None of fewer than 3 or where either is constant."""
    from scipy.stats import spearmanr  # a second to import

    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of numbers so near to each other that it calls them constant
        found = float(spearmanr(x, y).statistic)
    return found if np.isfinite(found) else None


def among_candidates(q: Floats, returns: Floats) -> dict[str, Any]:
    """Say how Q orders actions of one state by the return of taking each of them.

    Parameters
    ----------
    q, returns
        [B, N] each, of B states and N actions.

    Returns
    -------
    dict
        correlation (Spearman's over the actions, mean over the states where the returns differ), error (its
        standard error over these states; None of fewer than 2), states (these), tied (states where all
        actions led to the same return), gain (the return of Q's best action less the actions' mean, over
        all states), gain_error.
    """
    found = [rank_correlation(a, b) for a, b in zip(q, returns, strict=True)]
    r = np.array([x for x in found if x is not None])
    tied = int((np.ptp(returns, axis=1) == 0).sum()) if len(returns) else 0
    best = returns[np.arange(len(q)), q.argmax(1)] - returns.mean(1) if len(q) else np.empty(0)
    return {
        "states": len(r),
        "tied": tied,
        "correlation": float(r.mean()) if len(r) else None,
        "error": _error(r),
        "gain": float(best.mean()) if len(best) else None,
        "gain_error": _error(best),
    }


def _error(x: Floats) -> float | None:
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else None


def pooled(parts: Sequence[Floats]) -> Floats:
    """Return arrays one after another; empty of none."""
    return np.concatenate(parts) if parts else np.empty(0)
