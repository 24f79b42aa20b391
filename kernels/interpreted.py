"""Whether Triton's interpreter, where it runs the kernels, computes with bfloat16 as a GPU does."""

import torch
import triton
import triton.language as tl


@triton.jit
def _square_kernel(x, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    rounded = tl.load(x + at).to(tl.bfloat16)
    tl.store(out + at, tl.dot(rounded, rounded))


def bf16_is_right() -> bool:
    """Return whether an interpreted product of bf16 is that of the rounded values.

    As it comes (triton 3.7) the interpreter keeps bf16 as bit patterns of 16 bits, which it cuts where
    it should round, and multiplies as integers.
    """
    # 1 + 3/256 rounds up, to 1 + 1/64; sums of these products are exact
    x = torch.full((16, 16), 1 + 3 / 256)
    out = torch.empty_like(x)
    _square_kernel[(1,)](x, out, 16)
    rounded = x.bfloat16().float()
    return torch.equal(out, rounded @ rounded)
