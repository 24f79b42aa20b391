"""Layers as nodes of a graph, in a precision: float32, bf16's products, or hidden layers in 8 bits.

In bf16 what a layer reads, its weights and its products are rounded to bf16; all between is float32. What
the first layer reads is a pair, its rounding and what that leaves, over weights that are there twice:
observations and z keep 16 bits. In int8 the hidden layers are those of the native runtime
(`csrc/kernels/int8.hpp`): each column of weights has a step, and so have every 32 values of a row of GELU's
output, above a floor, which is GELU's own or, where a layer norm follows, the row's least. First and last
layers are float32.

Shape letters: R rows, H hidden, G groups of 32 values.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layout import LETTERS
from .graph import MAX, Graph

_BF16, _UINT8 = 16, 2  # of onnx.TensorProto
_EPS = 1e-6  # layer norm's
_GROUP, _FLOOR, _LEAST = 32, -0.17005, 1e-30  # int8.hpp's kInt8Group, kFloor and kLeastRange
_ZERO = 128  # of weights, as unsigned bytes: ONNX Runtime's AVX2 saturates sums of signed ones

Layers = Sequence[Sequence[Any]]


def network(
    g: Graph,
    prefix: str,
    layers: Layers,
    x: str,
    relu: bool = False,
    suffix: str = "",
    precision: str = "fp32",
) -> str:
    """Return what layers (w, b), with (g, c) and a layer norm after them, make of x [R, in].

    Parameters
    ----------
    g
        The graph.
    prefix, suffix
        The constants go by the first, and the first bias by the other too.
    layers, x
        Weights [in, out], biases [out], and the name of what they read.
    relu
        Instead of GELU.
    precision
        One of `arguments.PRECISIONS`; int8 without relu.
    """
    if precision == "int8":
        return _int8_network(g, prefix, layers, x, suffix)
    for i, layer in enumerate(layers):
        names = _names(prefix, i, suffix)
        if precision == "bf16":
            x = _bf16_layer(g, names, layer[0], layer[1], x, pair=i == 0)
        else:
            x = _layer(g, names, layer[0], layer[1], x)
        if i + 1 < len(layers):
            x = g.node("Relu", x) if relu else _gelu(g, x)
        if len(layer) > 2:
            x = _norm(g, names, layer, x)
    return x


def _names(prefix: str, i: int, suffix: str) -> list[str]:
    names = [f"{prefix}/{i}/{part}" for part in LETTERS]
    names[1] += "" if i else suffix
    return names


def _gelu(g: Graph, x: str) -> str:
    return g.node("Gelu", x, approximate="tanh")


def _layer(g: Graph, names: Sequence[str], w: Any, b: Any, x: str) -> str:
    return g.node("Gemm", x, g.constant(names[0], w), g.constant(names[1], b))


def _norm(g: Graph, names: Sequence[str], layer: Sequence[Any], x: str) -> str:
    gain, shift = (g.constant(*pair) for pair in zip(names[2:], layer[2:], strict=True))
    return g.node("LayerNormalization", x, gain, shift, axis=-1, epsilon=_EPS)


def _bf16_layer(g: Graph, names: Sequence[str], w: Any, b: Any, x: str, pair: bool) -> str:
    """Return x w + b, of products in bf16; `pair`: x is its rounding and what that leaves."""
    read = g.node("Cast", x, to=_BF16)
    if pair:
        left = g.node("Sub", x, g.floats(read))
        read = g.node("Concat", read, g.node("Cast", left, to=_BF16), axis=1)
        w = np.concatenate([w, w])
    product = g.node("MatMul", read, g.bf16_constant(names[0], w))
    return g.node("Add", g.floats(product), g.constant(names[1], b))


def _int8_network(g: Graph, prefix: str, layers: Layers, x: str, suffix: str) -> str:
    first, *hidden, last = layers
    names = _names(prefix, 0, suffix)
    x = _gelu(g, _layer(g, names, first[0], first[1], x))
    for i, (before, layer) in enumerate(pairwise([first, *hidden]), 1):
        names = _names(prefix, i, suffix)
        x = _gelu(g, _int8_layer(g, names, layer[0], layer[1], before[2:], x))
    if len(last_norm := [first, *hidden][-1]) > 2:
        x = _norm(g, names, last_norm, x)
    return _layer(g, _names(prefix, len(layers) - 1, suffix), last[0], last[1], x)


def _int8_layer(g: Graph, names: Sequence[str], w: Any, b: Any, norm: Sequence[Any], x: str) -> str:
    """Return n(x) w + b [R, out], where n is a layer norm of (gain, shift), or nothing.

    n is folded in: with the inputs' mean and r = 1 / their deviation, the weights gain w, and their sums S
    over the inputs, it is r (x (gain w) - mean S) + shift w + b.
    """
    if norm:
        gain, shift = (np.asarray(a, np.float64) for a in norm)
        b = b + shift @ w.astype(np.float64)
        w = gain[:, None] * w
    q, step = _bytes_of(w)
    sums = step * q.sum(0)
    floor = g.reduce("ReduceMin", x, 1) if norm else g.number(_FLOOR)
    product = g.node(
        "Mul", _int8_product(g, names[0], q, x, floor), _vector(g, names[0] + "/step", step)
    )
    if not norm:
        return g.node("Add", product, _vector(g, names[1], b + _FLOOR * sums))
    mean = g.reduce("ReduceMean", x, 1)
    off = g.node("Sub", x, mean)
    variance = g.reduce("ReduceMean", g.node("Mul", off, off), 1)
    deviation = g.node("Sqrt", g.node("Add", variance, g.number(_EPS)))
    below = g.node("Mul", g.node("Sub", floor, mean), _vector(g, names[0] + "/sums", sums))
    standard = g.node("Div", g.node("Add", product, below), deviation)
    return g.node("Add", standard, _vector(g, names[1], b))


def _bytes_of(w: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return whole numbers [in, out] in [-127, 127], and each column's step."""
    w = np.asarray(w, np.float64)
    step = np.abs(w).max(0) / 127
    return np.rint(w / np.where(step > 0, step, 1)), step


def _int8_product(g: Graph, name: str, q: NDArray[np.float64], x: str, floor: str) -> str:
    """Return (x rounded by groups, less the floor) times whole numbers q [in, out], as float32 [R, out]."""
    inputs, out = q.shape
    more = -inputs % _GROUP
    padded = np.pad(q, ((0, more), (0, 0))).reshape(-1, _GROUP, out)
    weights = g.constant(name, (padded + _ZERO).astype(np.uint8))
    if more:
        x = g.node("Pad", x, g.integers(0, 0, 0, more))
    groups = g.node("Reshape", x, g.integers(-1, len(padded), _GROUP))
    if floor != g.number(_FLOOR):
        floor = g.node("Unsqueeze", floor, g.integers(2))
    top = g.reduce("ReduceMax", groups, 2)
    span = g.node("Max", g.node("Sub", top, floor), g.number(_LEAST))  # [R, G, 1]
    scaled = g.node("Div", g.node("Sub", groups, floor), span)
    whole = g.node("Cast", g.node("Round", g.times(scaled, 255.0)), to=_UINT8)
    by_group = g.node("Transpose", whole, perm=[1, 0, 2])
    zeros = (g.constant(f"bytes/{zero}", np.uint8(zero)) for zero in (0, _ZERO))
    products = g.floats(g.node("MatMulInteger", by_group, weights, *zeros))  # [G, R, out]
    # a byte hides what is not finite: then the step is not
    size = g.node("Abs", g.reduce("ReduceSum", groups, 2))
    fine = g.node("LessOrEqual", size, g.number(MAX))
    step = g.node("Where", fine, g.times(span, 1 / 255), g.number(np.nan))
    step = g.node("Transpose", step, perm=[1, 0, 2])
    return g.reduce("ReduceSum", g.node("Mul", products, step), 0, keep=False)


def _vector(g: Graph, name: str, value: Any) -> str:
    with np.errstate(over="ignore"):  # then no result is finite, which is told
        return g.constant(name, np.asarray(value, np.float32))
