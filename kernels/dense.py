"""Device helpers shared by the kernels: GELU, its slope, and one product of a tile with weights."""

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """Return GELU in its tanh form: x / (1 + exp(-2 c (x + 0.044715 x^3))), c = sqrt(2 / pi)."""
    # the square of a root is two instructions, where a division is ten
    root = tl.rsqrt(1.0 + tl.exp2(-x * (2.302208198144325 + 0.1029432395800235 * x * x)))
    return x * root * root


@triton.jit
def gelu_slope(x):
    """Return the derivative of `gelu`; 0 or 1 where the exponential would overflow."""
    near = tl.abs(x) < 10.0
    y = tl.where(near, x, 0.0)
    power = tl.exp2(-y * (2.302208198144325 + 0.1029432395800235 * y * y))
    root = tl.rsqrt(1.0 + power)
    s = root * root
    slope = s + y * (power * s) * s * (1.5957691216057308 + 0.2140644488178007 * y * y)
    return tl.where(near, slope, tl.where(x > 0.0, 1.0, x * 0.0))


@triton.jit
def product(
    acc, left, w, w_step, K: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return acc [BM, BN] + left [BM, K] @ w [K, BN].

    `left` is a block of pointers [BM, BK] to the first columns, `w` one [BK, BN] to the first rows;
    `w_step` is the distance between two rows of w. K is a multiple of BK.
    """
    for k in tl.range(0, K, BK, num_stages=STAGES):
        acc = tl.dot(tl.load(left + k), tl.load(w + k * w_step), acc, input_precision=PRECISION)
    return acc


@triton.jit
def input_product(acc, x, w, PRECISION: tl.constexpr):
    """Return acc + x @ w for float32 inputs x [BM, K], a block w [K, BN] in the compute precision.

    bf16 would round a position of 50 to a quarter: there x goes in as two parts, 16 bits in all.
    """
    high = x.to(w.dtype)
    acc = tl.dot(high, w, acc, input_precision=PRECISION)
    if w.dtype == tl.bfloat16:
        acc = tl.dot((x - high.to(tl.float32)).to(w.dtype), w, acc, input_precision=PRECISION)
    return acc
