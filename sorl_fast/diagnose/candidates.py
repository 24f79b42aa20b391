"""How Q tells candidates of one observation apart: how much, along what, and what it chooses.

Shape letters: B observations, N candidates, A action, E critics.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..act.reference import Array
from ..act.rules import Rule, pick, rule_of

Figures = dict[str, Any]

RULES = ("argmax", "medoid", "nearest")  # whose choice's distance from the centre is told
_TINY = 1e-12  # relative: a spread below is rounding's, not the critic's


def finite(actions: Array, q: Array) -> NDArray[np.bool_]:
    """Return at which observations [B] all actions [B, N, A] and values [E, B, N] are finite."""
    return np.asarray(np.isfinite(actions).all((1, 2)) & np.isfinite(q).all((0, 2)), np.bool_)


def spread(q: Array, score: Array) -> Figures:
    """Compare what Q says of the candidates with what its members do not agree on.

    With c the members' values less their mean over the candidates, the spread of an observation is the
    deviation over n of `score`, the disagreement the root over n of the mean of the variance over e of
    c[e, n]: of two members the deviation of half their difference. A constant that members differ by
    changes no choice, and does not count.

    Parameters
    ----------
    q
        [E, B, N], E at least 1, finite.
    score
        [B, N], the values that choose: q aggregated.

    Returns
    -------
    dict
        spread, disagreement (means over B), ratio (the second by the first; None where the spread is 0),
        member_correlation (over the candidates, mean over observations and pairs of members; None of one
        member), observations, and spreads and disagreements [B].
    """
    q, score = q.astype(np.float64), score.astype(np.float64)
    centred = q - q.mean(-1, keepdims=True)
    spreads = score.std(-1)
    disagreements = np.sqrt(centred.var(0).mean(-1))
    total = float(spreads.mean())
    pairs = [
        _correlation(q[i], q[j]) for i in range(len(q)) for j in range(i + 1, len(q))
    ]  # each [B]
    found = np.concatenate(pairs) if pairs else np.empty(0)
    found = found[np.isfinite(found)]
    return {
        "observations": len(score),
        "candidates": score.shape[-1],
        "members": len(q),
        "spread": total,
        "disagreement": float(disagreements.mean()),
        "ratio": float(disagreements.mean()) / total if total > 0 else None,
        "member_correlation": float(found.mean()) if len(found) else None,
        "spreads": spreads,
        "disagreements": disagreements,
    }


def bias(actions: Array, score: Array) -> Figures:
    """Say along which component of the action Q orders the candidates, and how alike everywhere.

    An order that follows the observation prefers more of a component here and less of it there; one that
    is the same at nearly all observations is a bias of the critic, and best-of-N adds it to every action.

    Parameters
    ----------
    actions
        [B, N, A].
    score
        [B, N].

    Returns
    -------
    dict
        By component [A]: correlation (Pearson's over the candidates, mean over the observations), same_sign
        (the part of the observations whose correlation has the mean's sign), shift (the best candidate less
        the candidates' mean, mean over the observations), spread (deviation over the candidates); component
        (the one of the largest |correlation|), common (length of the mean of the correlations' unit
        vectors: 1 where Q's order is along one direction everywhere, about 1/sqrt(observations) where it is
        another each time), observations (with a spread of Q and of actions, which alone count). Without any
        of these only observations, 0.
    """
    actions, score = actions.astype(np.float64), score.astype(np.float64)
    r = np.stack([_correlation(actions[..., a], score) for a in range(actions.shape[-1])], -1)
    r = np.where(np.isfinite(r), r, 0.0)  # [B, A]; a component that does not vary orders nothing
    told = np.linalg.norm(r, axis=-1) > 0
    n = int(told.sum())
    if n == 0:
        return {"observations": 0}
    r, actions, score = r[told], actions[told], score[told]
    mean = r.mean(0)
    best = np.take_along_axis(actions, score.argmax(-1)[:, None, None], 1)[:, 0]
    units = r / np.linalg.norm(r, axis=-1, keepdims=True)
    return {
        "observations": n,
        "component": int(np.abs(mean).argmax()),
        "common": float(np.linalg.norm(units.mean(0))),
        "correlation": mean,
        "same_sign": (np.sign(r) == np.sign(mean)).mean(0),
        "shift": (best - actions.mean(1)).mean(0),
        "spread": actions.std(1).mean(0),
    }


def centre(actions: Array, score: Array, w: Array) -> Figures:
    """Say how far the chosen candidate is from the candidates' mean, for more and more candidates.

    Parameters
    ----------
    actions
        [B, N, A].
    score
        [B, N]; an empty [B, 0] without critics: then only `centre` chooses.
    w
        [A], the units of distances (`act.rules.scale_of`).

    Returns
    -------
    dict
        candidates (1, 2, 4, ... up to N), distances (by the rule, for each of these: the chosen one's
        distance from the mean of all N, in units of that of a candidate at random, mean over the
        observations; chance is 1), rank (by the rule, among all N: the part of the others that are nearer;
        chance is 0.5), distance (of a candidate at random, in units of half the bounds' width).
    """
    B, N, _ = actions.shape
    far = np.sqrt((((actions - actions.mean(1, keepdims=True)) * w) ** 2).sum(-1))  # [B, N]
    chance = float(far.mean())
    sizes = [n for n in (1 << i for i in range(N.bit_length())) if n <= N]
    sizes += [N] if sizes[-1] != N else []
    distances: dict[str, list[float | None]] = {}
    ranks = {}
    for rule in rules_of(score):
        row = []
        for n in sizes:
            chosen = far[np.arange(B), choose(rule, actions[:, :n], score[:, :n], w)]
            row.append(float(chosen.mean()) / chance if chance > 0 else None)
        distances[str(rule)] = row
        ranks[str(rule)] = float((far < chosen[:, None]).sum(-1).mean()) / max(N - 1, 1)
    return {"candidates": sizes, "distances": distances, "rank": ranks, "distance": chance}


def rules_of(score: Array) -> tuple[Rule, ...]:
    """Return the rules that are looked at: those that read Q [B, N], or of none [B, 0] the one without."""
    return tuple(rule_of(name) for name in (RULES if score.shape[-1] else ("centre",)))


def choose(rule: Rule, actions: Array, score: Array, w: Array) -> NDArray[np.int64]:
    """Return which candidate [B] a rule that draws nothing takes; arguments as of `centre`."""
    good = np.ones(actions.shape[1], bool)
    if len(good) == 1:
        return np.zeros(len(actions), np.int64)
    found = [pick(rule, a, s, good, w, 0.0) for a, s in zip(actions, score, strict=True)]
    return np.array(found, np.int64)


def _correlation(x: Array, y: Array) -> Array:
    """Return Pearson's correlation over the last axis; NaN where either does not vary."""
    dx, dy = (v - v.mean(-1, keepdims=True) for v in (x, y))
    sx, sy = (np.sqrt((d * d).sum(-1)) for d in (dx, dy))
    varies = (sx > _TINY * np.abs(x).max(-1)) & (sy > _TINY * np.abs(y).max(-1))
    with np.errstate(all="ignore"):
        return np.where(varies, (dx * dy).sum(-1) / (sx * sy), np.nan)
