"""Rules of choosing one of N candidates as nodes of a graph; `act.rules` defines them.

Masks leave out what a rule may not choose. Ties go to the first index by comparisons, not by what a
runtime's ArgMax or TopK does with them. What counts is computed in float32 in whole numbers, exactly.

Shape letters: B observations, N candidates, A action.
"""

import numpy as np

from ..act.policy_file import Policy
from ..act.rules import Rule, part_size, scale_of
from .graph import MAX, Graph

MOST = 512  # candidates of a rule that compares pairs: [B, N, N, A] numbers in a call


def choose(
    g: Graph, rule: Rule, policy: Policy, N: int, actions: str, q: str, good: str, u: str
) -> str:
    """Return the chosen index, int64 [B, 1]; any where none is good.

    Parameters
    ----------
    g
        The graph.
    rule, policy, N
        How, and of how many, at least 2.
    actions, q, good, u
        Names of [B, N, A] within the bounds, [B, N], a mask [B, N], and [B, 1] in [0, 1); q and u only of
        a rule that reads them.
    """
    q = g.node("Where", good, q, g.number(0.0)) if q else q
    if rule.name == "argmax":
        return _best(g, q, good, N)
    if rule.name == "soft":
        return _soft(g, float(rule.parameter or 1), q, good, u, N)
    wide = g.node("Unsqueeze", good, g.integers(2))
    actions = g.node("Where", wide, actions, g.number(0.0))
    w = g.constant("choose/w", scale_of(policy.action_low, policy.action_high))
    if rule.name == "centre":
        return _medoid(g, actions, w, good, N)
    n = g.reduce("ReduceSum", g.floats(good), 1)
    sizes = np.array([part_size(rule, i) for i in range(N + 1)], np.float32)
    size = g.node("Gather", g.constant("choose/sizes", sizes), g.indices(n))
    nearness = _nearness(g, actions, w, good, n) if rule.name == "nearest" else q
    part = g.node("And", good, g.node("Less", _rank(g, nearness, good, N), size))
    if rule.name == "nearest":
        return _best(g, q, part, N)
    if rule.name == "medoid":
        return _medoid(g, actions, w, part, N)
    return _number(g, part, _times_size(g, u, size), N)  # better


def _first(g: Graph, mask: str, N: int) -> str:
    """Return the first index [B, 1] where a mask [B, N] is true, N - 1 where it is nowhere."""
    order = g.constant("choose/order", np.arange(N, dtype=np.float32)[None])
    return g.indices(g.reduce("ReduceMin", g.node("Where", mask, order, g.number(N - 1)), 1))


def _best(g: Graph, score: str, mask: str, N: int) -> str:
    """Return the index of the highest score within a mask."""
    score = g.node("Where", mask, score, g.number(-MAX))
    top = g.node("Equal", score, g.reduce("ReduceMax", score, 1))
    return _first(g, g.node("And", mask, top), N)


def _rank(g: Graph, score: str, mask: str, N: int) -> str:
    """Return how many [B, N] of a mask come before each: a higher score, or the same and a lower index."""
    own, other = (g.node("Unsqueeze", score, g.integers(axis)) for axis in (2, 1))
    earlier = g.constant("choose/earlier", np.tri(N, k=-1, dtype=bool)[None])
    tie = g.node("And", g.node("Equal", other, own), earlier)
    ahead = g.node("Or", g.node("Greater", other, own), tie)
    ahead = g.node("And", ahead, g.node("Unsqueeze", mask, g.integers(1)))
    return g.reduce("ReduceSum", g.floats(ahead), 2, keep=False)


def _medoid(g: Graph, actions: str, w: str, mask: str, N: int) -> str:
    """Return the index with the smallest sum of distances to the others of a mask."""
    one, other = (g.node("Unsqueeze", actions, g.integers(axis)) for axis in (2, 1))
    apart = g.node("Mul", g.node("Sub", one, other), w)
    squared = g.reduce("ReduceSum", g.node("Mul", apart, apart), 3, keep=False)
    of = g.node("Unsqueeze", g.floats(mask), g.integers(1))
    sums = g.reduce("ReduceSum", g.node("Mul", g.node("Sqrt", squared), of), 2, keep=False)
    return _best(g, g.node("Neg", sums), mask, N)


def _nearness(g: Graph, actions: str, w: str, good: str, n: str) -> str:
    """Return minus the squared distances [B, N] from the mean of the good; 0 where there are but two."""
    count = g.node("Unsqueeze", g.node("Max", n, g.number(1.0)), g.integers(2))
    mean = g.node("Div", g.reduce("ReduceSum", actions, 1), count)
    apart = g.node("Mul", g.node("Sub", actions, mean), w)
    squared = g.reduce("ReduceSum", g.node("Mul", apart, apart), 2, keep=False)
    few = g.node("Less", n, g.number(2.5))
    return g.node("Neg", g.node("Where", few, g.number(0.0), squared))


def _times_size(g: Graph, u: str, size: str) -> str:
    """Return floor(u size) [B, 1] exactly, of u a multiple of 2^-24 and sizes up to 2^12.

    u = (high + low) / 4096 with a whole number `high`: no product has more than 24 bits.
    """
    scaled = g.times(u, 4096.0)
    high = g.node("Floor", scaled)
    low = g.node("Floor", g.node("Mul", g.node("Sub", scaled, high), size))
    whole = g.node("Add", g.node("Mul", high, size), low)
    return g.node("Floor", g.times(whole, 1 / 4096))


def _number(g: Graph, part: str, place: str, N: int) -> str:
    """Return the index of what stands at a place [B, 1] in a part, counted from 0."""
    before = g.node("CumSum", g.floats(part), g.constant("choose/axis", np.int64(1)), exclusive=1)
    return _first(g, g.node("And", part, g.node("Equal", before, place)), N)


def _soft(g: Graph, tau: float, q: str, good: str, u: str, N: int) -> str:
    """Return the smallest i with e_0 + ... + e_i > u (e_0 + e_1 + ...), e = exp((q - max q) / (tau s))."""
    counted, zero = g.floats(good), g.number(0.0)
    n = g.node("Max", g.reduce("ReduceSum", counted, 1), g.number(1.0))
    mean = g.node("Div", g.reduce("ReduceSum", q, 1), n)
    off = g.node("Mul", g.node("Sub", q, mean), counted)
    variance = g.node("Div", g.reduce("ReduceSum", g.node("Mul", off, off), 1), n)
    scale = g.times(g.node("Sqrt", variance), tau)
    varies = g.node(
        "And", g.node("Greater", scale, zero), g.node("LessOrEqual", scale, g.number(MAX))
    )
    top = g.reduce("ReduceMax", g.node("Where", good, q, g.number(-MAX)), 1)
    below = g.node("Div", g.node("Sub", q, top), g.node("Where", varies, scale, g.number(1.0)))
    same = g.node("Where", varies, g.node("Exp", below), g.number(1.0))
    weights = g.node("Where", good, same, zero)
    sums = g.node("CumSum", weights, g.constant("choose/axis", np.int64(1)))
    total = g.reduce("ReduceMax", sums, 1)  # the last, as none is negative
    above = g.node("And", good, g.node("Greater", sums, g.node("Mul", u, total)))
    order = g.constant("choose/order", np.arange(N, dtype=np.float32)[None])
    last = g.node("Equal", order, g.reduce("ReduceMax", g.node("Mul", order, counted), 1))
    return _first(g, g.node("Or", above, g.node("And", good, last)), N)
