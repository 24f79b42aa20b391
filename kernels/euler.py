"""The actor on the device: its first layer, a velocity, and M steps, as kernels call them.

The steps are Euler's of a shortcut actor, or those of a table on the device: COLUMNS float32 a step,
(t, l, a, b, s), for z <- clip(squash(a z + b v(x, z, t, l)) + clip(temperature s noise)).

Shape letters as in `actor`.
"""

import triton
import triton.language as tl

from .dense import gelu, input_product, product

BX = tl.constexpr(32)  # observation columns that the first layer takes at a time
COLUMNS = tl.constexpr(5)  # numbers of a step in a table


@triton.jit
def first_layer(
    obs, row, mask, log2_steps, w, v, first,
    O: tl.constexpr, A: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write b + x W_x + log2(1/h) w_h into `first` [BM, H]; log2_steps [BM]."""
    rm, rn, rx = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BX)
    for n in tl.range(0, H, BN, disable_licm=True):
        col = n + rn
        w_h = tl.load(w + (O + A + 1) * H + col).to(tl.float32)
        acc = tl.load(v + col)[None, :] + log2_steps[:, None] * w_h[None, :]
        for k in range(0, O, BX):
            o = k + rx
            there = mask[:, None] & (o < O)[None, :]
            x = tl.load(obs + row[:, None] * O + o[None, :], mask=there, other=0.0)
            w_x = tl.load(w + o[:, None] * H + col[None, :], mask=(o < O)[:, None], other=0.0)
            acc = input_product(acc, x, w_x, PRECISION)
        tl.store(first + rm[:, None] * H + col[None, :], acc)
    tl.debug_barrier()


@triton.jit
def evaluate(
    z, t, mask, w, v, scratch, first, pre, layer,
    O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, SAVE: tl.constexpr, log2_steps=None,
):  # fmt: skip
    """Return the velocity [BM, AP] at z [BM, AP], t [BM], after `first_layer`.

    log2_steps is added to what `first_layer` was given. With SAVE the pre-activations [BM, H] of layer
    l, of rows under `mask`, go to pre + l * layer.
    """
    dt: tl.constexpr = w.dtype.element_ty
    rm, rn, rk, ra = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, AP)
    for n in tl.range(0, H, BN, disable_licm=True):
        col = n + rn
        at = rm[:, None] * H + col[None, :]
        w_t = tl.load(w + (O + A) * H + col).to(tl.float32)
        w_z = tl.load(w + (O + ra)[:, None] * H + col[None, :], mask=(ra < A)[:, None], other=0.0)
        acc = tl.load(first + at) + t[:, None] * w_t[None, :]
        if log2_steps is not None:
            acc += log2_steps * tl.load(w + (O + A + 1) * H + col).to(tl.float32)[None, :]
        acc = input_product(acc, z, w_z, PRECISION)
        if SAVE:
            tl.store(pre + at, acc.to(dt), mask=mask[:, None])
        tl.store(scratch + at, gelu(acc).to(dt))
    tl.debug_barrier()
    w += (O + A + 2) * H
    for l in tl.range(1, L, disable_licm=True):
        source = scratch + ((l + 1) % 2) * (BM * H)
        for n in tl.range(0, H, BN, disable_licm=True):
            col = n + rn
            acc = tl.zeros((BM, BN), tl.float32) + tl.load(v + l * H + col)[None, :]
            left = source + rm[:, None] * H + rk[None, :]
            right = w + rk[:, None] * H + col[None, :]
            acc = product(acc, left, right, H, H, BK, STAGES, PRECISION)
            at = rm[:, None] * H + col[None, :]
            if SAVE:
                tl.store(pre + l * layer + at, acc.to(dt), mask=mask[:, None])
            tl.store(scratch + (l % 2) * (BM * H) + at, gelu(acc).to(dt))
        tl.debug_barrier()
        w += H * H
    source = scratch + ((L + 1) % 2) * (BM * H)
    bias = tl.load(v + L * H + ra, mask=ra < A, other=0.0)
    out = tl.zeros((BM, AP), tl.float32) + bias[None, :]
    for k in tl.range(0, H, BK, num_stages=STAGES):
        left = tl.load(source + rm[:, None] * H + (k + rk)[None, :])
        right = tl.load(w + (k + rk)[:, None] * A + ra[None, :], mask=(ra < A)[None, :], other=0.0)
        out = tl.dot(left, right, out, input_precision=PRECISION)
    tl.debug_barrier()  # the next step's first layer writes what other threads may still read
    return out


@triton.jit
def clip_finite(x, bound):
    """Clip what is finite to +-bound; what is not stays, so that it is seen."""
    clipped = tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))
    return tl.where(tl.abs(x) < float("inf"), clipped, x)


@triton.jit
def step(
    z, velocity, at, more, there, temperature, squash, noise_clip, clip,
):  # fmt: skip
    """Return the z [BM, AP] that a step of a table makes, before the next; at: the step's numbers.

    more: pointers [BM, AP] to the noise of this step, read under `there` where temperature s is not 0.
    temperature: pointer to a float32. squash: int32, whether tanh. Clips may be infinite.
    """
    z = tl.load(at + 2) * z + tl.load(at + 3) * velocity
    if squash != 0:
        # 1 - 2 / (e^2x + 1): where the exponential overflows, 1
        z = tl.where(tl.abs(z) < float("inf"), 1.0 - 2.0 / (tl.exp(2.0 * z) + 1.0), z)
    scale = tl.load(at + 4) * tl.load(temperature)
    if scale != 0.0:
        z += clip_finite(scale * tl.load(more, mask=there, other=0.0), noise_clip)
    return clip_finite(z, clip)


@triton.jit
def denoise(
    obs, row, mask, z, w, v, scratch, first, steps, h, log2_steps,
    O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    pre=None, zs=None, rows=0, SAVE: tl.constexpr = False, SAVE_Z: tl.constexpr = False,
    table=None, more=None, there=None, temperature=None, squash=None, noise_clip=None, clip=None,
):  # fmt: skip
    """Return z_1 [BM, AP], not clipped, after M = `steps` Euler steps from z [BM, AP].

    With `table`, after the steps of that, the rest as in `step`, `more` for the first; then h and
    log2_steps are not read.

    obs: pointer to float32 [B, O]. row: int64 [BM], the observation of each row; mask [BM]: rows that
    are there. z: float32, 0 in the columns behind A. w, v: the actor's `Packed.weights` and `.vectors`.
    scratch, first: this program's own 2 [BM, H] in the compute type and [BM, H] float32. h = 1/M,
    log2_steps = log2 M. With SAVE_Z, z before step m goes to zs + m * rows * A, and with SAVE the
    pre-activations of layer l to pre + (l * M + m) * rows * H; both point to the first row's place.
    """
    zero = tl.zeros((BM,), tl.float32)
    same = zero  # of all steps
    if table is None:
        same = zero + log2_steps
    first_layer(obs, row, mask, same, w, v, first, O, A, H, BM, BN, PRECISION)
    ra = tl.arange(0, AP)
    wide = tl.full((), rows, tl.int64)
    for m in tl.range(0, steps, disable_licm=True):
        if SAVE_Z:
            at = tl.arange(0, BM)[:, None] * A + ra[None, :]
            tl.store(zs + wide * m * A + at, z, mask=mask[:, None] & (ra < A)[None, :])
        kept = pre
        if SAVE:
            kept = pre + wide * m * H
        if table is None:
            velocity = evaluate(
                z, zero + m * h, mask, w, v, scratch, first, kept, wide * steps * H,
                O, A, AP, H, L, BM, BN, BK, STAGES, PRECISION, SAVE,
            )  # fmt: skip
            z += h * velocity
        else:
            at = table + m * COLUMNS
            velocity = evaluate(
                z, zero + tl.load(at), mask, w, v, scratch, first, kept, wide * steps * H,
                O, A, AP, H, L, BM, BN, BK, STAGES, PRECISION, SAVE, tl.load(at + 1),
            )  # fmt: skip
            z = step(z, velocity, at, more + m * A, there, temperature, squash, noise_clip, clip)
    return z
