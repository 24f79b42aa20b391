"""A seed's noise as nodes of a graph: `act.philox`'s words, bit by bit, and the normals that they make.

Whole numbers are int64 by the standard, of which OpenVINO's CPU keeps 32 bits and ONNX Runtime all. So a
word is two halves of 16 bits, and a product is one of two halves, of which nothing is read that differs:
its low half, and the half above, by a division that leaves nothing over and without the sign. (Of uint64,
which one would choose, OpenVINO's products, shifts and exclusive ors are wrong.)

Shape letters: B observations, N candidates, D draws of a candidate that are read, A action, Q = A / 4
rounded up, K counters of an observation.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..act.philox import ROUNDS
from .graph import Graph

_HALF, _BASE = 0xFFFF, 0x10000
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.int64)  # of words 0 and 2
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.int64)  # what a round adds to the key
_DRAWER = 0xFFFFFFFF  # the candidate of `philox.uniforms`


def draw_noise(
    g: Graph, obs: str, N: int, A: int, draws: Sequence[int], uniform: bool
) -> tuple[list[str], str]:
    """Return the normals [B N, A] of each draw, and numbers [B, 1] that a rule draws by, "" if unwanted.

    They are those of `philox.normals` and `uniforms` for the graph's inputs: seed, [2], its low 32 bits
    first, and call, [1], both uint32. The normals are computed in float32.

    Parameters
    ----------
    g
        The graph.
    obs
        Any [B, ...]; its rows count from 0.
    N, A, draws
        Whose noise, and which of a candidate's numbers, each in [0, 256).
    uniform
        Whether numbers to draw by are wanted.
    """
    Q = -(-A // 4)
    K = len(draws) * N * Q
    even, odd = (_top24(g, word) for word in _words(g, obs, _counters(N, Q, draws, uniform)))
    u = ""
    if uniform:
        first = g.node("Slice", even, *(g.integers(*v) for v in ((0, K), (1, K + 1), (0, 2))))
        u = g.node("Reshape", g.times(first, 2.0**-24), g.integers(-1, 1))
        even, odd = (g.node("Slice", x, *map(g.integers, (0, K, 2))) for x in (even, odd))
    if not draws:
        return [], u
    by_quad = g.node("Transpose", _box_muller(g, even, odd, K), perm=[1, 2, 0])  # [B, K, 4]
    by_draw = g.node("Reshape", by_quad, g.integers(-1, len(draws), N, 4 * Q))
    ends = [(g.integers(i, 0), g.integers(i + 1, A)) for i in range(len(draws))]
    parts = [g.node("Slice", by_draw, *end, g.integers(1, 3)) for end in ends]
    return [g.node("Reshape", part, g.integers(-1, A)) for part in parts], u


def _counters(N: int, Q: int, draws: Sequence[int], uniform: bool) -> NDArray[np.int64]:
    """Return words 0 and 1 [2, K] of an observation's counters: by draw, candidate and quad."""
    first = np.array(draws, np.int64).reshape(-1, 1, 1) * 2**24 + np.arange(Q)
    pair = np.stack(np.broadcast_arrays(first, np.arange(N)[:, None])).reshape(2, -1)
    return np.concatenate([pair, [[0], [_DRAWER]]], 1) if uniform else pair


def _halves(words: Any) -> NDArray[np.int64]:
    """Return halves [2, ...] of words, the low one first."""
    return np.stack([words & _HALF, words // _BASE])


def _words(g: Graph, obs: str, counters: NDArray[np.int64]) -> list[str]:
    """Return words (0, 2) and (1, 3) of Philox4x32-10 at the counters, each as halves [2, 2, B, K]."""
    K = counters.shape[1]
    fixed = np.zeros((2, 4, 1, K), np.int64)  # words in the order 0, 2, 1, 3
    fixed[:, [0, 2], 0] = _halves(counters)
    zero, one = (g.constant(f"noise/{i}", np.int64(i)) for i in (0, 1))
    rows = g.node("Range", zero, g.node("Gather", g.node("Shape", obs), zero), one)
    counter = g.constant("noise/counters", fixed)
    call = g.node("Cast", "call", to=7)
    for name, values, word, shape in (
        ("row", rows, 1, (1, 1, -1, 1)),
        ("call", call, 3, (1, 1, 1, 1)),
    ):
        place = g.constant(f"noise/{name}", np.eye(4, dtype=np.int64)[word].reshape(1, 4, 1, 1))
        halves = [g.node("Reshape", half, g.integers(*shape)) for half in _split(g, values)]
        part = g.node("Mul", g.node("Concat", *halves, axis=0), place)
        counter = g.node("Add", counter, part)
    even, odd = g.nodes("Split", 2, counter, axis=1, num_outputs=2)
    turned = g.constant("noise/turned", np.array([1, 0], np.int64))
    for key in _round_keys(g):
        low, high = _product(g, even, K)
        high = g.node("Gather", high, turned, axis=1)
        even = g.node("BitwiseXor", g.node("BitwiseXor", high, odd), key)
        odd = g.node("Gather", low, turned, axis=1)
    return [even, odd]


def _round_keys(g: Graph) -> list[str]:
    """Return each round's key as halves [2, 2, 1, 1]: the seed's words and so many times Weyl's."""
    times = _halves((np.arange(ROUNDS)[:, None] * _WEYL) & 0xFFFFFFFF)  # [2, rounds, 2]
    shape = g.integers(1, 2, 1, 1)
    own = [g.node("Reshape", half, shape) for half in _split(g, g.node("Cast", "seed", to=7))]
    low, high = (
        g.node("Add", half, g.constant(f"noise/weyl{i}", times[i].reshape(ROUNDS, 2, 1, 1)))
        for i, half in enumerate(own)
    )
    low, over = _carry(g, low)
    high, _ = _carry(g, g.node("Add", high, over))
    lows, highs = (g.nodes("Split", ROUNDS, x, axis=0, num_outputs=ROUNDS) for x in (low, high))
    return [g.node("Concat", *pair, axis=0) for pair in zip(lows, highs, strict=True)]


def _product(g: Graph, words: str, K: int) -> tuple[str, str]:
    """Return the low and the high words of words times the multipliers, all as halves [2, 2, B, K]."""
    factors = g.constant("noise/factors", _halves(_MULTIPLIERS).reshape(1, 2, 2, 1, 1))
    products = g.node("Mul", g.node("Unsqueeze", words, g.integers(1)), factors)
    products = g.node("Reshape", products, g.integers(4, 2, -1, K))
    low, high = (g.nodes("Split", 4, x, axis=0, num_outputs=4) for x in _split(g, products))
    # of low times low, low times high, high times low and high times high: 32 bits each, 16 apart
    second, over = _carry(g, _sum(g, high[0], low[1], low[2]))
    third, over = _carry(g, _sum(g, high[1], high[2], low[3], over))
    fourth = g.node("Add", high[3], over)
    return g.node("Concat", low[0], second, axis=0), g.node("Concat", third, fourth, axis=0)


def _split(g: Graph, x: str) -> tuple[str, str]:
    """Return the low half of whole numbers, and the half above it, whatever is above that."""
    low = g.node("BitwiseAnd", x, g.integer(_HALF))
    above = g.node("Div", g.node("Sub", x, low), g.integer(_BASE))
    return low, g.node("BitwiseAnd", above, g.integer(_HALF))


def _sum(g: Graph, *parts: str) -> str:
    """Return a sum of whole numbers, which the standard's Sum does not take."""
    return reduce(lambda x, y: g.node("Add", x, y), parts)


def _carry(g: Graph, x: str) -> tuple[str, str]:
    """Return the low half of a sum of a few halves, and what is over."""
    return g.node("BitwiseAnd", x, g.integer(_HALF)), g.node("Div", x, g.integer(_BASE))


def _top24(g: Graph, word: str) -> str:
    """Return word >> 8 as float32 [2, B, K], of halves [2, 2, B, K]."""
    low, high = g.nodes("Split", 2, word, axis=0, num_outputs=2)
    low, high = g.node("Div", low, g.integer(256)), g.node("Mul", high, g.integer(256))
    return g.node("Squeeze", g.floats(g.node("Add", low, high)), g.integers(0))


def _box_muller(g: Graph, even: str, odd: str, K: int) -> str:
    """Return normals [4, B, K], a mod 4 first, of words >> 8 (0, 2) and (1, 3), each [2, B, K].

    An angle is a quarter of turns and what is left, at most an eighth, whose sine and cosine are exact to
    float32's last places.
    """
    u = g.times(g.node("Add", even, g.number(1.0)), 2.0**-24)
    radius = g.node("Sqrt", g.times(g.node("Log", u), -2.0))
    turns = g.times(odd, 2.0**-22)  # quarters
    quarter = g.node("Round", turns)
    left = g.times(g.node("Sub", turns, quarter), np.pi / 2)
    cos, sin = g.node("Cos", left), g.node("Sin", left)
    tables = {"cos": [1, 0, -1, 0, 1], "sin": [0, 1, 0, -1, 0]}
    whole = g.indices(quarter)
    x, y = (
        g.node("Gather", g.constant(f"noise/{name}", np.array(table, np.float32)), whole)
        for name, table in tables.items()
    )
    along = g.node("Sub", g.node("Mul", x, cos), g.node("Mul", y, sin))
    across = g.node("Add", g.node("Mul", y, cos), g.node("Mul", x, sin))
    pair = [g.node("Unsqueeze", g.node("Mul", radius, v), g.integers(1)) for v in (along, across)]
    return g.node("Reshape", g.node("Concat", *pair, axis=1), g.integers(4, -1, K))
