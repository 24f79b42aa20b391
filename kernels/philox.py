"""Noise drawn inside a kernel: the Philox4x32-10 numbers of every other backend.

counter = ((draw << 24) + a // 4, candidate, row, call mod 2^32), key = (low, high 32 bits of the seed),
a the action component. With u = ((w >> 8) + 1) 2^-24 and v = (w' >> 8) 2^-24, words w, w' = 0, 1 give
sqrt(-2 ln u) cos 2 pi v and sqrt(-2 ln u) sin 2 pi v for a mod 4 = 0, 1, and words 2, 3 those for a mod
4 = 2, 3; in float64, rounded to float32. float64 because a GPU's float32 logarithm is approximate,
which near u = 1 costs three digits; the numbers are few.
"""

import triton
import triton.language as tl


@triton.jit
def _cosine(turn, quarter):
    """Return cos 2 pi (turn - quarter / 4) for float64 turn in [0, 1) and int32 quarter.

    By its Taylor polynomials within an eighth of a turn, to the last bits of float64: a GPU's own
    cosine brings code for large arguments that needs a stack.
    """
    nearest = tl.floor(4.0 * turn + 0.5)
    x = (4.0 * turn - nearest) * 1.5707963267948966
    s = x * x
    cosine = 4.779477332387385e-14  # 1 / 16!, then the others down to 1
    sine = -7.647163731819816e-13  # -1 / 15!, then the others down to 1
    cosine = cosine * s - 1.1470745597729725e-11
    sine = sine * s + 1.6059043836821613e-10
    cosine = cosine * s + 2.08767569878681e-09
    sine = sine * s - 2.505210838544172e-08
    cosine = cosine * s - 2.755731922398589e-07
    sine = sine * s + 2.7557319223985893e-06
    cosine = cosine * s + 2.48015873015873e-05
    sine = sine * s - 0.0001984126984126984
    cosine = cosine * s - 0.001388888888888889
    sine = sine * s + 0.008333333333333333
    cosine = cosine * s + 0.041666666666666664
    sine = sine * s - 0.16666666666666666
    cosine = (cosine * s - 0.5) * s + 1.0
    sine = sine * s * x + x
    turns = nearest.to(tl.int32) - quarter
    wave = tl.where(turns % 2 == 0, cosine, sine)
    return tl.where(((turns + 1) & 2) == 0, wave, -wave)


@triton.jit
def normals(seed, call, row, candidate, a, draw=None):
    """Standard normals for int64 seed and call, and blocks of row, candidate, a, draw that broadcast.

    draw is int64 in [0, 256); None: 0.
    """
    quad = a // 4 + row * 0 + candidate * 0
    if draw is not None:
        quad += draw << 24
    quad = quad.to(tl.uint32)
    c1 = (candidate + quad * 0).to(tl.uint32)
    c2 = (row + quad * 0).to(tl.uint32)
    c3 = (call + quad.to(tl.int64) * 0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, quad, c1, c2, c3)
    second = a % 4 >= 2
    u = tl.where(second, w2, w0)
    v = tl.where(second, w3, w1)
    u = ((u >> 8).to(tl.float64) + 1.0) * 5.9604644775390625e-08
    wave = _cosine((v >> 8).to(tl.float64) * 5.9604644775390625e-08, a % 2)
    return (tl.sqrt(-2.0 * tl.log(u)) * wave).to(tl.float32)


@triton.jit
def uniform(seed, call, row):
    """Return 24 uniform bits of int64 seed, call and row, as uint32: 2^24 u, what rules choose by.

    Word 0 at counter = (0, 2^32 - 1, row, call mod 2^32); no sampler has a candidate 2^32 - 1.
    """
    zero = (row * 0).to(tl.uint32)
    c3 = (call + row * 0).to(tl.uint32)
    w0, _, _, _ = tl.philox(seed, zero, zero + 0xFFFFFFFF, row.to(tl.uint32), c3)
    return w0 >> 8
