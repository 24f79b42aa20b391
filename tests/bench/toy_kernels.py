"""A kernel to compile in tests: one product of tiles. And one that cannot be compiled."""

import os

import triton
import triton.language as tl
from sorl_fast.kernels.tiles import Compile


@triton.jit
def product(left, right, out, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for i in range(0, K, BK):
        a = tl.load(left + m[:, None] * K + (i + k)[None, :])
        b = tl.load(right + (i + k)[:, None] * BN + n[None, :])
        acc = tl.dot(a, b, acc, input_precision="ieee")
    tl.store(out + m[:, None] * BN + n[None, :], acc)


@triton.jit
def broken(left, BM: tl.constexpr):
    tl.store(left + tl.arange(0, BM), tl.arange(0, BM + 1))


def aot(precision, tile):
    """Precision fp16 stands for a kernel that does not compile, tf32 for a compiler that dies."""
    if precision == "tf32":
        os._exit(3)
    options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
    if precision == "fp16":
        return [Compile("broken", broken, {"left": "*fp16"}, {"BM": 16}, options, ())]
    kind = {"bf16": "*bf16", "fp32": "*fp32"}[precision]
    blocks = {"BM": tile.BM, "BN": 64, "BK": tile.BK}
    pointers = ("left", "right", "out")
    types = dict(zip(pointers, (kind, kind, "*fp32"), strict=True), K="i32")
    return [Compile("product", product, types, blocks, options, (*pointers, "K"))]
