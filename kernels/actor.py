"""The shortcut actor: velocity, M-step rollout, and their backward, each one kernel.

A program takes tiles of BM rows. A tile's activations go through a scratch of the program's own in
global memory, small enough to stay in the L2 cache: two slots of [BM, H] in the compute precision that
layers write in turn, with a barrier between the writes of one layer and the reads of the next. What
every step's first layer shares, b + x W_x + log2(1/h) w_h, is computed once a tile into a float32
[BM, H]. Sums, z, biases and gradients are float32.

Shape letters: B rows, O observation, A action, AP A padded for products, H hidden, L hidden layers,
M Euler steps; BM, BN, BK rows, columns and depth of a block.
"""

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense import gelu, gelu_slope, product
from .euler import denoise, evaluate, first_layer
from .packing import PRECISIONS, Packed, Sizes
from .philox import normals
from .products import float_product, unit_scale
from .tiles import POINTERS, Compile, Tile, architecture, processors
from .tiles import tile as choose_tile

PROGRAMS = 4  # programs a processor, at most
# A forward that would keep more pre-activations than this keeps none; its backward computes them
# again, in chunks of rows that stay below it.
SAVED_BYTES = 1 << 30

# ---- forward kernels

_VARYING = ["rows", "steps"]
# a user's rows may begin anywhere, and A or O may be odd
_UNALIGNED = ["obs", "noise", "z", "t", "log2_steps", "key", "zs", "out", "grad", "last"]
_UNALIGNED += ["velocities"]


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def _velocity_kernel(
    obs, z, t, log2_steps, w, v, scratch, first, pre, out, rows,
    O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    scratch += program * (2 * BM * H)
    first += program * (BM * H)
    ra = tl.arange(0, AP)
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(rows, BM), tl.num_programs(0), disable_licm=True
    ):
        start = tl.full((), tile * BM, tl.int64)
        row = start + tl.arange(0, BM)
        mask = row < rows
        there = mask[:, None] & (ra < A)[None, :]
        at = row[:, None] * A + ra[None, :]
        steps = tl.load(log2_steps + row, mask=mask, other=0.0)
        first_layer(obs, row, mask, steps, w, v, first, O, A, H, BM, BN, PRECISION)
        kept = pre
        if SAVE:
            kept = pre + start * H
        velocity = evaluate(
            tl.load(z + at, mask=there, other=0.0), tl.load(t + row, mask=mask, other=0.0),
            mask, w, v, scratch, first, kept, rows.to(tl.int64) * H,
            O, A, AP, H, L, BM, BN, BK, STAGES, PRECISION, SAVE,
        )  # fmt: skip
        tl.store(out + at, velocity, mask=there)


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def _rollout_kernel(
    obs, noise, key, w, v, scratch, first, pre, zs, out, rows, steps, h, log2_steps,
    O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, DRAW: tl.constexpr, CLIP: tl.constexpr, SAVE: tl.constexpr,
    SAVE_Z: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    scratch += program * (2 * BM * H)
    first += program * (BM * H)
    ra = tl.arange(0, AP)
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(rows, BM), tl.num_programs(0), disable_licm=True
    ):
        start = tl.full((), tile * BM, tl.int64)
        row = start + tl.arange(0, BM)
        mask = row < rows
        there = mask[:, None] & (ra < A)[None, :]
        at = row[:, None] * A + ra[None, :]
        if DRAW:
            number = (tl.load(key + 2) + row)[:, None]
            z = normals(tl.load(key), tl.load(key + 1), number, ra[None, :] * 0, ra[None, :])
            z = tl.where(there, z, 0.0)
        else:
            z = tl.load(noise + at, mask=there, other=0.0)
        kept, kept_z = pre, zs
        if SAVE:
            kept = pre + start * H
        if SAVE_Z:
            kept_z = zs + start * A
        z = denoise(
            obs, row, mask, z, w, v, scratch, first, steps, h, log2_steps,
            O, A, AP, H, L, BM, BN, BK, STAGES, PRECISION, kept, kept_z, rows, SAVE, SAVE_Z,
        )  # fmt: skip
        if SAVE_Z:
            tl.store(zs + rows.to(tl.int64) * A * steps + at, z, mask=there)
        if CLIP:
            z = tl.where(z > 1.0, 1.0, tl.where(z < -1.0, -1.0, z))  # a NaN stays one
        tl.store(out + at, z, mask=there)


# ---- backward kernel


@triton.jit
def through_gelu(
    d, at, mask, pre, scratch, delta, acts, there,
    STORE: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Take the gradient d [BM, BN] of activations back to the pre-activations, and write it out.

    It goes to scratch + at, with STORE to delta + there + at too, and with WEIGHTS the activations to
    acts + there + at, for rows under `mask`; pre + there + at are the pre-activations.
    """
    dt: tl.constexpr = scratch.dtype.element_ty
    x = tl.load(pre + there + at, mask=mask[:, None], other=0.0).to(tl.float32)
    d = (d * gelu_slope(x)).to(dt)
    tl.store(scratch + at, d)
    if STORE:
        tl.store(delta + there + at, d, mask=mask[:, None])
    if WEIGHTS:
        tl.store(acts + there + at, gelu(x).to(dt), mask=mask[:, None])


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def _backward_kernel(
    grad, last, w, scratch, pre, delta, acts, velocities, out, rows, steps, h,
    O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, H: tl.constexpr, L: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, ROLLOUT: tl.constexpr, CLIP: tl.constexpr, WEIGHTS: tl.constexpr,
    STORE: tl.constexpr,
):  # fmt: skip
    dt: tl.constexpr = w.dtype.element_ty
    scratch += tl.program_id(0).to(tl.int64) * (2 * BM * H)
    rm, rn, rk, ra = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK), tl.arange(0, AP)
    wide = rows.to(tl.int64)
    w_z = w + O * H
    w_hidden = w + (O + A + 2) * H
    w_last = w_hidden + (L - 1) * H * H
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(rows, BM), tl.num_programs(0), disable_licm=True
    ):
        start = tl.full((), tile * BM, tl.int64)
        row = start + rm
        mask = row < rows
        there = mask[:, None] & (ra < A)[None, :]
        at = row[:, None] * A + ra[None, :]
        g = tl.load(grad + at, mask=there, other=0.0)
        if CLIP:
            z = tl.load(last + at, mask=there, other=0.0)
            g = tl.where((z >= -1.0) & (z <= 1.0), g, 0.0)
        for i in tl.range(0, steps, disable_licm=True):
            m = steps - 1 - i
            g_v = g
            if ROLLOUT:
                g_v = g * h
            if WEIGHTS:
                tl.store(velocities + wide * m * A + at, g_v, mask=there)
            begin = (wide * m + start) * H  # of this tile and step, in a layer's pre-activations
            for n in tl.range(0, H, BN, disable_licm=True):
                col = n + rn
                right = tl.load(
                    w_last + col[None, :] * A + ra[:, None], mask=(ra < A)[:, None], other=0.0
                )
                d = tl.dot(g_v.to(dt), right, input_precision=PRECISION)
                through_gelu(
                    d, rm[:, None] * H + col[None, :], mask, pre,
                    scratch + ((L - 1) % 2) * (BM * H), delta, acts,
                    begin + wide * steps * (L - 1) * H, STORE, WEIGHTS,
                )  # fmt: skip
            tl.debug_barrier()
            for j in tl.range(1, L, disable_licm=True):
                l = L - 1 - j
                source = scratch + ((l + 1) % 2) * (BM * H)
                for n in tl.range(0, H, BN, disable_licm=True):
                    col = n + rn
                    left = source + rm[:, None] * H + rk[None, :]
                    right = w_hidden + l * H * H + col[None, :] * H + rk[:, None]
                    d = tl.zeros((BM, BN), tl.float32)
                    d = product(d, left, right, 1, H, BK, STAGES, PRECISION)
                    through_gelu(
                        d, rm[:, None] * H + col[None, :], mask, pre,
                        scratch + (l % 2) * (BM * H), delta, acts,
                        begin + wide * steps * l * H, STORE, WEIGHTS,
                    )  # fmt: skip
                tl.debug_barrier()
            g_z = tl.zeros((BM, AP), tl.float32)
            for k in tl.range(0, H, BK, num_stages=STAGES):
                left = tl.load(scratch + rm[:, None] * H + (k + rk)[None, :])
                right = tl.load(
                    w_z + ra[None, :] * H + (k + rk)[:, None], mask=(ra < A)[None, :], other=0.0
                )
                g_z = tl.dot(left, right, g_z, input_precision=PRECISION)
            tl.debug_barrier()  # as in `evaluate`
            if ROLLOUT:
                g += g_z
            else:
                g = g_z
        tl.store(out + at, g, mask=there)


# ---- launchers


def _own(sizes: Sizes, precision: str, tile: Tile) -> dict[str, Any]:
    """Return the constexprs that every kernel here has."""
    pad = max(16, triton.next_power_of_2(sizes.act))
    shape = {"O": sizes.obs, "A": sizes.act, "AP": pad, "H": sizes.hidden, "L": sizes.depth}
    blocks = {"BM": tile.BM, "BN": tile.BN, "BK": tile.BK, "STAGES": tile.stages}
    return shape | blocks | {"PRECISION": PRECISIONS[precision][1]}


@lru_cache(maxsize=1024)
def _build(
    name: str, sizes: Sizes, precision: str, tile: Tile, flags: tuple[tuple[str, bool], ...]
) -> Compile:
    """Return the kernel `name`, velocity, rollout or backward, as a launch builds it."""
    on = dict(flags)
    kernel = {"velocity": _velocity_kernel, "rollout": _rollout_kernel}.get(name, _backward_kernel)
    own = POINTERS[PRECISIONS[precision][0]]
    types = dict.fromkeys(("w", "scratch", "pre", "delta", "acts"), own)
    types |= {"key": "*i64", "rows": "i32", "steps": "i32", "h": "fp32"}
    if name == "rollout":
        types["log2_steps"] = "fp32"
    constexprs = _own(sizes, precision, tile) | on
    if name == "backward":
        absent = {"last": not on["CLIP"], "delta": not on["STORE"]}
        absent |= dict.fromkeys(("acts", "velocities"), not on["WEIGHTS"])
    else:
        absent = {"pre": not on["SAVE"]}
    if name == "rollout":
        absent |= {"noise": on["DRAW"], "key": not on["DRAW"], "zs": not on["SAVE_Z"]}
    constexprs |= {arg: None for arg, gone in absent.items() if gone}
    signature = {arg: types.get(arg, "*fp32") for arg in kernel.arg_names if arg not in constexprs}
    aligned = {"w", "v", "scratch", "first", "pre", "delta", "acts"}
    return Compile(
        "actor_" + name + "".join(f"_{flag.lower()}" for flag, is_on in flags if is_on),
        kernel,
        signature,
        constexprs,
        # fusing a product and a sum is what these kernels are tested with
        {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
        tuple(arg for arg in signature if arg in aligned),
    )


def aot(sizes: Sizes, precision: str, tile: Tile) -> list[Compile]:
    """Return the kernels that training and sampling with an actor launch, to be built ahead."""
    wanted: list[tuple[str, dict[str, bool]]] = [
        ("velocity", {"SAVE": True}),
        ("rollout", {"DRAW": True, "CLIP": True, "SAVE": False, "SAVE_Z": False}),
        ("rollout", {"DRAW": True, "CLIP": True, "SAVE": True, "SAVE_Z": True}),
        ("backward", {"ROLLOUT": True, "CLIP": True, "WEIGHTS": True, "STORE": True}),
        ("backward", {"ROLLOUT": False, "CLIP": False, "WEIGHTS": True, "STORE": True}),
    ]
    return [_build(name, sizes, precision, tile, tuple(on.items())) for name, on in wanted]


def _launch(
    name: str, net: Packed, rows: int, tile: Tile | None, flags: dict[str, bool], **args: Any
) -> None:
    """Launch a kernel over `rows` rows, with scratch of its own."""
    if rows == 0:
        return
    sizes, device = net.sizes, net.weights.device
    if tile is None:
        tile = choose_tile(architecture(device), net.precision, sizes.hidden, rows)
    built = _build(name, sizes, net.precision, tile, tuple(flags.items()))
    programs = min(triton.cdiv(rows, tile.BM), PROGRAMS * processors(device))
    block = programs * tile.BM * sizes.hidden
    args |= {"w": net.weights, "rows": rows, "scratch": net.weights.new_empty(2 * block)}
    if name != "backward":
        args |= {"v": net.vectors, "first": net.vectors.new_empty(block)}
    args = {arg: args[arg] for arg in built.signature}
    built.kernel[(programs,)](**args, **built.constexprs, **built.options)


def rows_at_once(sizes: Sizes, precision: str, steps: int) -> int:
    """Return how many rows' pre-activations fit SAVED_BYTES; a forward of more keeps none."""
    each = sizes.depth * steps * sizes.hidden * PRECISIONS[precision][0].itemsize
    return max(1, SAVED_BYTES // each)


def _room(net: Packed, rows: int, steps: int, save: bool) -> Tensor | None:
    """Return memory for pre-activations [L, M, B or 0, H], or None where nothing is saved."""
    if not save:
        return None
    if rows > rows_at_once(net.sizes, net.precision, steps):
        rows = 0
    return net.weights.new_empty(net.sizes.depth, steps, rows, net.sizes.hidden)


def _log2_fed(steps: int, log2_steps: float | None) -> float:
    return math.log2(steps) if log2_steps is None else log2_steps


# ---- public functions


def velocity(
    net: Packed,
    obs: Tensor,
    z: Tensor,
    t: Tensor,
    log2_steps: Tensor,
    *,
    save: bool = False,
    tile: Tile | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Shortcut model s_theta(z, t, h | x).

    Parameters
    ----------
    net
        The actor.
    obs, z, t, log2_steps
        float32 [B, O], [B, A], [B], [B].
    save
        Whether `backward` is to follow.
    tile
        None: chosen by the device.

    Returns
    -------
    v, saved
        float32 [B, A]; with `save` [pre-activations [L, 1, B, H] in the compute precision, z [1, B, A],
        t, log2_steps], of which the last three are the arguments. Pre-activations above SAVED_BYTES
        are not kept, but [L, 1, 0, H].
    """
    obs, z, t, log2_steps = (x.contiguous() for x in (obs, z, t, log2_steps))
    B = len(obs)
    out = torch.empty_like(z)
    pre = _room(net, B, 1, save)
    flags = {"SAVE": pre is not None and pre.shape[2] == B}
    given = {"obs": obs, "z": z, "t": t, "log2_steps": log2_steps}
    _launch("velocity", net, B, tile, flags, **given, pre=pre, out=out)
    return out, [] if pre is None else [pre, z.unsqueeze(0), t, log2_steps]


def rollout(
    net: Packed,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    *,
    log2_steps: float | None = None,
    clip: bool = True,
    save: bool = False,
    tile: Tile | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Sample actions: M Euler steps z <- z + s(z, i/M, 1/M | x)/M, then one clip to [-1, 1].

    Parameters
    ----------
    net
        The actor.
    obs
        float32 [B, O].
    noise
        z_0, float32 [B, A]; or a key, int64 [3] = (seed, call, row offset), of which the kernel draws
        it: candidate 0 of each row.
    steps
        M, at least 1.
    log2_steps
        What the actor reads as log2(1/h); None: log2(M).
    clip
        Whether to clip at the end.
    save
        Whether `backward` is to follow.
    tile
        None: chosen by the device.

    Returns
    -------
    actions, saved
        float32 [B, A]; with `save` [pre-activations [L, M, B, H] in the compute precision, z
        [M + 1, B, A] before every step and before the clip]. Pre-activations above SAVED_BYTES are not
        kept, but [L, M, 0, H].
    """
    obs, noise = obs.contiguous(), noise.contiguous()
    draw = noise.dtype == torch.int64
    B, A = len(obs), net.sizes.act
    out = net.vectors.new_empty(B, A)
    pre = _room(net, B, steps, save)
    zs = net.vectors.new_empty(steps + 1, B, A) if save else None
    keep = pre is not None and pre.shape[2] == B
    flags = {"DRAW": draw, "CLIP": clip, "SAVE": keep, "SAVE_Z": save}
    given = {"obs": obs, "key" if draw else "noise": noise, "pre": pre, "zs": zs, "out": out}
    scalars = {"steps": steps, "h": 1.0 / steps, "log2_steps": _log2_fed(steps, log2_steps)}
    _launch("rollout", net, B, tile, flags, **given, **scalars)
    return out, [] if pre is None or zs is None else [pre, zs]


def backward(
    net: Packed,
    obs: Tensor,
    saved: list[Tensor],
    grad: Tensor,
    steps: int,
    *,
    rollout: bool,
    weights: bool,
    to_obs: bool,
    to_act: bool,
    log2_steps: float | None = None,
    clip: bool = True,
    tile: Tile | None = None,
) -> list[Tensor]:
    """Differentiate `velocity` or `rollout`.

    Parameters
    ----------
    net, obs, steps
        As in the forward; steps 1 of a velocity.
    saved
        What the forward returned.
    grad
        Gradient of its output, float32 [B, A].
    rollout
        Which of the two it was.
    weights, to_obs, to_act
        Whether gradients of the parameters, of the observations, and of the noise (or z) are wanted.
    log2_steps, clip
        As in the forward of a rollout.
    tile
        None: chosen by the device.

    Returns
    -------
    list of Tensor
        float32: those of the parameters in the order and shapes of `pack`, then d obs, then d noise.
    """
    obs, grad = obs.contiguous(), grad.contiguous()
    B = len(obs)
    log2_steps = _log2_fed(steps, log2_steps)
    wanted: dict[str, Any] = {"rollout": rollout, "clip": clip, "tile": tile}
    wanted["log2_steps"] = log2_steps
    wanted |= {"weights": weights, "to_obs": to_obs, "to_act": to_act}
    if saved[0].shape[2] == B:
        return _differentiate(net, obs, saved, grad, steps, **wanted)
    chunk = rows_at_once(net.sizes, net.precision, steps)
    sums: list[Tensor] = []
    tails: list[list[Tensor]] = []
    for i in range(0, B, chunk):
        part = slice(i, i + chunk)
        again = _recompute(net, obs[part], saved, part, steps, log2_steps, rollout, tile)
        grads = _differentiate(net, obs[part], again, grad[part], steps, **wanted)
        tails.append([grads.pop() for _ in range(to_obs + to_act)][::-1])
        sums = [a.add_(b) for a, b in zip(sums, grads, strict=True)] if sums else grads
    return sums + [torch.cat(x) for x in zip(*tails, strict=True)]


# ---- what `backward` is made of


def _recompute(
    net: Packed,
    obs: Tensor,
    saved: list[Tensor],
    part: slice,
    steps: int,
    log2_steps: float,
    of_rollout: bool,
    tile: Tile | None,
) -> list[Tensor]:
    """Run the forward again for some rows, this time keeping everything."""
    z = saved[1][0, part]
    if of_rollout:
        return rollout(net, obs, z, steps, log2_steps=log2_steps, save=True, tile=tile)[1]
    return velocity(net, obs, z, saved[2][part], saved[3][part], save=True, tile=tile)[1]


def _differentiate(
    net: Packed,
    obs: Tensor,
    saved: list[Tensor],
    grad: Tensor,
    steps: int,
    *,
    rollout: bool,
    weights: bool,
    to_obs: bool,
    to_act: bool,
    log2_steps: float,
    clip: bool,
    tile: Tile | None,
) -> list[Tensor]:
    """`backward` from pre-activations that were saved."""
    pre, zs = saved[:2]
    B, A = grad.shape
    scale = unit_scale(grad) if pre.dtype == torch.float16 else None
    if scale is not None:
        grad = grad * scale
    store = weights or to_obs
    delta = torch.empty_like(pre) if store else None
    acts = torch.empty_like(pre) if weights else None
    velocities = grad.new_empty(steps, B, A) if weights else None
    out = torch.empty_like(grad)
    flags = {"ROLLOUT": rollout, "CLIP": rollout and clip, "WEIGHTS": weights, "STORE": store}
    given: dict[str, Any] = {"grad": grad, "last": zs[-1], "pre": pre, "out": out}
    given |= {"delta": delta, "acts": acts, "velocities": velocities}
    _launch("backward", net, B, tile, flags, **given, steps=steps, h=1.0 / steps)
    grads: list[Tensor] = []
    if delta is not None:
        over_steps = delta[0].sum(0, dtype=torch.float32)  # [B, H]
    if delta is not None and acts is not None and velocities is not None:
        times = None if rollout else (saved[2], saved[3])
        first = _first_layer_gradient(obs, zs[:steps], delta[0], over_steps, log2_steps, times)
        grads = first + _other_gradients(acts, delta, velocities)
    if to_obs:
        O, H = net.sizes.obs, net.sizes.hidden
        grads.append(over_steps @ net.weights[0, : O * H].view(O, H).float().T)
    if to_act:
        grads.append(out)
    return grads if scale is None else [g / scale for g in grads]


def _first_layer_gradient(
    obs: Tensor,
    zs: Tensor,
    delta: Tensor,
    over_steps: Tensor,
    log2_steps: float,
    times: tuple[Tensor, Tensor] | None,
) -> list[Tensor]:
    """Gradients of w and b of layer 1; delta [M, B, H]; times: t, log2_steps of a velocity.

    log2_steps is that of a rollout.
    """
    M, B, H = delta.shape
    of_obs = obs.T @ over_steps
    z = zs.flatten(0, 1).to(delta.dtype)
    of_z = float_product(z.T, delta.view(M * B, H))
    if times is None:
        over_rows = delta.sum(1, dtype=torch.float32)  # [M, H]
        of_b = over_rows.sum(0)
        t = torch.arange(M, dtype=torch.float32, device=obs.device) / M
        of_t, of_h = t @ over_rows, log2_steps * of_b
    else:
        of_b = over_steps.sum(0)
        of_t, of_h = (x @ over_steps for x in times)
    return [torch.cat([of_obs, of_z, of_t.unsqueeze(0), of_h.unsqueeze(0)]), of_b]


def _other_gradients(acts: Tensor, delta: Tensor, velocities: Tensor) -> list[Tensor]:
    """Gradients of w and b of layers 2 to L and of the last."""
    L, M, B, H = acts.shape
    acts, delta = acts.view(L, M * B, H), delta.view(L, M * B, H)
    last = velocities.flatten(0, 1)
    of_w = float_product(acts[:-1].mT, delta[1:])
    of_b = delta[1:].sum(1, dtype=torch.float32)
    pairs = [x for pair in zip(of_w, of_b, strict=True) for x in pair]
    return [*pairs, float_product(acts[-1].T, last.to(acts.dtype)), last.sum(0)]
