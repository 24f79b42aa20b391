"""Noise drawn inside a kernel: the Philox4x32-10 numbers of every other backend.

counter = (a // 4, candidate, row, call mod 2^32), key = (low, high 32 bits of the seed), a the action
component. With u = ((w >> 8) + 1) 2^-24 and v = (w' >> 8) 2^-24, words w, w' = 0, 1 give
sqrt(-2 ln u) cos 2 pi v and sqrt(-2 ln u) sin 2 pi v for a mod 4 = 0, 1, and words 2, 3 those for
a mod 4 = 2, 3; in float64, rounded to float32. float64 because a GPU's float32 logarithm is
approximate, which near u = 1 costs three digits; the numbers are few.
"""

import triton
import triton.language as tl


@triton.jit
def normals(seed, call, row, candidate, a):
    """Standard normals for int64 seed and call, and blocks of row, candidate, a that broadcast."""
    quad = (a // 4 + row * 0 + candidate * 0).to(tl.uint32)
    c1 = (candidate + quad * 0).to(tl.uint32)
    c2 = (row + quad * 0).to(tl.uint32)
    c3 = (call + quad.to(tl.int64) * 0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, quad, c1, c2, c3)
    second = a % 4 >= 2
    u = tl.where(second, w2, w0)
    v = tl.where(second, w3, w1)
    u = ((u >> 8).to(tl.float64) + 1.0) * 5.9604644775390625e-08
    angle = (v >> 8).to(tl.float64) * 3.7450702829239286e-07  # 2 pi 2^-24
    wave = tl.where(a % 2 == 0, tl.cos(angle), tl.sin(angle))
    return (tl.sqrt(-2.0 * tl.log(u)) * wave).to(tl.float32)
