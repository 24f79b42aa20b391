"""The critic ensemble Q(x, a, k) and its gradients.

A hidden layer is x W + b, GELU, then LayerNorm. A program takes one member and BM rows at a time.
Products go to a scratch in global memory; from there they are taken through GELU while its mean and
variance are gathered, and normalised into a second scratch, the left operand of the next product. That
keeps the loops around products small enough for their registers. The backward starts from dQ = 1 in
every row and multiplies by the row's true gradient where something leaves the chain, so that small
gradients do not vanish in a narrow precision and rows cannot disturb each other.

Shape letters: B rows, O observation, A action, H hidden, L hidden layers, E members; AP and OP: A and
a piece of O, padded to a power of two.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense import gelu, gelu_slope, input_product, product
from .packing import PRECISIONS, Packed, Sizes
from .products import float_product, unit_scale
from .tiles import POINTERS, Compile, Tile, architecture, processors
from .tiles import tile as choose_tile

ELEMENTS = 16  # of a block that a thread holds where no product is formed
PROGRAMS = 2  # programs a processor, at most: the registers allow one or two
# a user's rows may begin anywhere; the rest is allocated here, or packed
_UNALIGNED = ("obs", "actions", "grad", "weight_of")


@triton.jit
def _inputs(
    acc, obs, row, live, act, k, weights, col,
    O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, OP: tl.constexpr, H: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return acc [BM, BN] + [x, a, k] @ columns `col` of the first layer's weights."""
    ra = tl.arange(0, AP)
    ro = tl.arange(0, OP)
    acc += k * tl.load(weights + (O + A) * H + col).to(tl.float32)[None, :]
    w_a = tl.load(weights + (O + ra)[:, None] * H + col[None, :], mask=(ra < A)[:, None], other=0.0)
    acc = input_product(acc, act, w_a, PRECISION)
    for o in tl.range(0, O, OP, num_stages=1):
        there = o + ro < O
        x = tl.load(
            obs + row[:, None] * O + (o + ro)[None, :],
            mask=live[:, None] & there[None, :],
            other=0.0,
        )
        w_x = tl.load(
            weights + (o + ro)[:, None] * H + col[None, :], mask=there[:, None], other=0.0
        )
        acc = input_product(acc, x, w_x, PRECISION)
    return acc


@triton.jit
def _activate(
    raw, pre, stats, live,
    H: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Take raw [BM, H] through GELU; return its rows' mean and 1 / deviation then, [BM, 1].

    With SAVE the numbers before go to `pre`, the results to `stats`. Every BE-th column has a running
    mean and sum of squared deviations, merged at the end: E[x^2] - E[x]^2 would cancel.
    """
    rm = tl.arange(0, BM)
    at = rm[:, None] * H + tl.arange(0, BE)[None, :]
    means = tl.zeros((BM, BE), tl.float32)
    spreads = tl.zeros((BM, BE), tl.float32)
    for n in range(0, H, BE):
        x = tl.load(raw + at + n)
        if SAVE:
            tl.store(pre + at + n, x, mask=live[:, None])
        x = gelu(x.to(tl.float32))
        tl.store(raw + at + n, x.to(raw.dtype.element_ty))
        delta = x - means
        means += delta * (BE / (n + BE))
        spreads += delta * (x - means)
    mean = tl.sum(means, 1)[:, None] / BE
    means -= mean
    variance = tl.sum(spreads + means * means * (H // BE), 1)[:, None] / H
    # an overflow makes the row NaN, as in PyTorch: dividing by it would hide it
    scale = tl.where(variance < float("inf"), tl.rsqrt(variance + 1e-6), float("nan"))
    if SAVE:
        tl.store(stats + 2 * rm[:, None], mean, mask=live[:, None])
        tl.store(stats + 2 * rm[:, None] + 1, scale, mask=live[:, None])
    tl.debug_barrier()
    return mean, scale


@triton.jit
def score(
    obs, row, live, act, k, weights, vectors, scratch, pre, stats, rows,
    O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, OP: tl.constexpr, H: tl.constexpr,
    L: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Return Q [BM] of one member, whose weights and vectors are given.

    The tile's rows read the observations `row` [BM] int64 and the actions act [BM, AP], zero beyond A;
    rows that are not `live` are computed and mean nothing. `scratch` holds 2 BM H numbers of the type
    of the weights. With SAVE, pre [L, rows, H] and stats [L, rows, 2] point to the tile's first row.
    """
    dtype = weights.dtype.element_ty
    rm = tl.arange(0, BM)
    rn = tl.arange(0, BN)
    rk = tl.arange(0, BK)
    re = tl.arange(0, BE)
    at = rm[:, None] * H + rn[None, :]
    at_e = rm[:, None] * H + re[None, :]
    raw = scratch
    left = scratch + BM * H
    wide = tl.full((), rows, tl.int64)
    hidden = weights + (O + A + 1) * H
    for n in range(0, H, BN):
        acc = tl.zeros((BM, BN), tl.float32) + tl.load(vectors + n + rn)[None, :]
        acc = _inputs(acc, obs, row, live, act, k, weights, n + rn, O, A, AP, OP, H, PRECISION)
        tl.store(raw + at + n, acc.to(dtype))
    tl.debug_barrier()
    mean, scale = _activate(raw, pre, stats, live, H, BM, BE, SAVE)
    gains = vectors + L * H
    for layer in range(1, L):
        for n in range(0, H, BE):
            x = (tl.load(raw + at_e + n).to(tl.float32) - mean) * scale
            gain = tl.load(gains + n + re)[None, :]
            shift = tl.load(gains + L * H + n + re)[None, :]
            tl.store(left + at_e + n, (x * gain + shift).to(dtype))
        tl.debug_barrier()
        pre += wide * H
        stats += wide * 2
        gains += H
        for n in range(0, H, BN):
            acc = tl.zeros((BM, BN), tl.float32) + tl.load(vectors + layer * H + n + rn)[None, :]
            acc = product(
                acc, left + rm[:, None] * H + rk[None, :],
                hidden + rk[:, None] * H + (n + rn)[None, :], H, H, BK, STAGES, PRECISION,
            )  # fmt: skip
            tl.store(raw + at + n, acc.to(dtype))
        tl.debug_barrier()
        mean, scale = _activate(raw, pre, stats, live, H, BM, BE, SAVE)
        hidden += H * H
    q = tl.zeros((BM, BE), tl.float32)
    for n in range(0, H, BE):
        x = (tl.load(raw + at_e + n).to(tl.float32) - mean) * scale
        gain = tl.load(gains + n + re)[None, :]
        shift = tl.load(gains + L * H + n + re)[None, :]
        q += (x * gain + shift) * tl.load(hidden + n + re).to(tl.float32)[None, :]
    tl.debug_barrier()  # the next tile writes the scratch that this one has just read
    return tl.sum(q, 1) + tl.load(vectors + 3 * L * H)


@triton.jit(do_not_specialize=["rows", "k"], do_not_specialize_on_alignment=_UNALIGNED)
def _forward(
    q, pre, stats, scratch, obs, actions, weights, vectors, rows, k,
    E: tl.constexpr, O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, OP: tl.constexpr,
    H: tl.constexpr, L: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """Write Q [E, rows] and, with SAVE, pre [E, L, rows, H] and stats [E, L, rows, 2]."""
    rm = tl.arange(0, BM)
    ra = tl.arange(0, AP)
    tiles = tl.cdiv(rows, BM)
    wide = tl.full((), rows, tl.int64)
    scratch += tl.program_id(0).to(tl.int64) * (2 * BM * H)
    for item in range(tl.program_id(0), tiles * E, tl.num_programs(0)):
        member = item % E
        first = tl.full((), item // E, tl.int64) * BM
        row = first + rm
        live = row < rows
        act = tl.load(
            actions + row[:, None] * A + ra[None, :],
            mask=live[:, None] & (ra < A)[None, :], other=0.0,
        )  # fmt: skip
        value = score(
            obs, row, live, act, k,
            weights + member * ((O + A + 1 + (L - 1) * H + 1) * H),
            vectors + member * (3 * L * H + 1),
            scratch, pre + (member * L * wide + first) * H, stats + (member * L * wide + first) * 2, rows,
            O, A, AP, OP, H, L, BM, BN, BE, BK, STAGES, PRECISION, SAVE,
        )  # fmt: skip
        tl.store(q + member * wide + row, value, mask=live)


@triton.jit
def _through_layer(
    layer, dys, chain, pre, stats, into, lefts, partial, vectors, dq, weight, live, rows,
    H: tl.constexpr, L: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Take a layer's gradient back through LayerNorm and GELU: from `dys` to `chain`, both [BM, H].

    pre, stats, into, lefts point to the tile's first row, partial and vectors to the member's first.
    """
    dtype = chain.dtype.element_ty
    rm = tl.arange(0, BM)
    re = tl.arange(0, BE)
    at = rm[:, None] * H + re[None, :]
    wide = tl.full((), rows, tl.int64)
    of = stats + (layer * wide + rm) * 2
    mean = tl.load(of, mask=live, other=0.0)[:, None]
    scale = tl.load(of + 1, mask=live, other=0.0)[:, None]
    pre += layer * wide * H
    gains = vectors + (L + layer) * H
    s1 = tl.zeros((BM, BE), tl.float32)
    s2 = tl.zeros((BM, BE), tl.float32)
    for n in range(0, H, BE):
        x = tl.load(pre + at + n, mask=live[:, None], other=0.0).to(tl.float32)
        dy = tl.load(dys + at + n).to(tl.float32) * tl.load(gains + n + re)[None, :]
        s1 += dy
        s2 += dy * (gelu(x) - mean) * scale
    s1 = tl.sum(s1, 1)[:, None] / H
    s2 = tl.sum(s2, 1)[:, None] / H
    for n in range(0, H, BE):
        x = tl.load(pre + at + n, mask=live[:, None], other=0.0).to(tl.float32)
        dy = tl.load(dys + at + n).to(tl.float32)
        gain = tl.load(gains + n + re)[None, :]
        normal = (gelu(x) - mean) * scale
        dx = (dy * gain - s1 - normal * s2) * scale * gelu_slope(x)
        tl.store(chain + at + n, dx.to(dtype))
        if WEIGHTS:
            out = (dx * weight[:, None]).to(dtype)
            tl.store(into + layer * wide * H + at + n, out, mask=live[:, None])
            col = partial + layer * H + n + re
            tl.store(col, tl.sum(dx * dq[:, None], 0))
            dy *= dq[:, None]
            tl.store(col + L * H, tl.sum(dy * normal, 0))
            tl.store(col + 2 * L * H, tl.sum(dy, 0))
            y = normal * gain + tl.load(gains + L * H + n + re)[None, :]
            if layer < L - 1:
                tl.store(lefts + layer * wide * H + at + n, y.to(dtype), mask=live[:, None])
            else:
                tl.store(partial + 3 * L * H + n + re, tl.sum(y * dq[:, None], 0))


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=_UNALIGNED)
def _backward(
    grad_obs, grad_act, into, lefts, partial, scratch, grad, weight_of, pre, stats, weights, vectors,
    rows,
    E: tl.constexpr, O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, OP: tl.constexpr,
    H: tl.constexpr, L: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
    BK: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, WEIGHTS: tl.constexpr,
    TO_OBS: tl.constexpr, TO_ACT: tl.constexpr,
):  # fmt: skip
    """Write what is asked for, each member apart.

    grad_obs [E, rows, O], grad_act [E, rows, A]; with WEIGHTS what the products for the weights need:
    the layers' gradients into [E, L, rows, H], made with the rows' gradients weight_of [E, rows]; the
    layers' inputs lefts [E, L - 1, rows, H], from the second on; and sums over a tile's rows,
    partial [tiles, E, 3 L + 1, H]: for b, g, c, and the last weights.
    """
    dtype = scratch.dtype.element_ty
    rm = tl.arange(0, BM)
    rn = tl.arange(0, BN)
    rk = tl.arange(0, BK)
    re = tl.arange(0, BE)
    ra = tl.arange(0, AP)
    ro = tl.arange(0, OP)
    tiles = tl.cdiv(rows, BM)
    wide = tl.full((), rows, tl.int64)
    dys = scratch + tl.program_id(0).to(tl.int64) * (2 * BM * H)
    chain = dys + BM * H
    left = chain + rm[:, None] * H + rk[None, :]
    for item in range(tl.program_id(0), tiles * E, tl.num_programs(0)):
        member = item % E
        tile = tl.full((), item // E, tl.int64)
        first = tile * BM
        row = first + rm
        live = row < rows
        dq = tl.load(grad + member * wide + row, mask=live, other=0.0)
        weight = tl.load(weight_of + member * wide + row, mask=live, other=0.0)
        w = weights + member * ((O + A + 1 + (L - 1) * H + 1) * H)
        hidden = w + (O + A + 1) * H
        for n in range(0, H, BE):
            dy = tl.load(hidden + (L - 1) * H * H + n + re)
            tl.store(
                dys + rm[:, None] * H + (n + re)[None, :], tl.broadcast_to(dy[None, :], (BM, BE))
            )
        tl.debug_barrier()
        for i in range(L):
            layer = L - 1 - i
            _through_layer(
                layer, dys, chain,
                pre + (member * L * wide + first) * H, stats + (member * L * wide + first) * 2,
                into + (member * L * wide + first) * H, lefts + (member * (L - 1) * wide + first) * H,
                partial + (tile * E + member) * ((3 * L + 1) * H), vectors + member * (3 * L * H + 1),
                dq, weight, live, rows, H, L, BM, BE, WEIGHTS,
            )  # fmt: skip
            tl.debug_barrier()
            if layer > 0:
                right = hidden + (layer - 1) * H * H + rn[None, :] * H + rk[:, None]
                for n in range(0, H, BN):
                    dy = tl.zeros((BM, BN), tl.float32)
                    dy = product(dy, left, right + n * H, 1, H, BK, STAGES, PRECISION)
                    tl.store(dys + rm[:, None] * H + (n + rn)[None, :], dy.to(dtype))
                tl.debug_barrier()

        # columns beyond the last one read it again: the product has no masks
        if TO_ACT:
            right = w + (O + tl.minimum(ra, A - 1))[None, :] * H + rk[:, None]
            da = product(tl.zeros((BM, AP), tl.float32), left, right, 1, H, BK, STAGES, PRECISION)
            tl.store(
                grad_act + (member * wide + row)[:, None] * A + ra[None, :], da * dq[:, None],
                mask=live[:, None] & (ra < A)[None, :],
            )  # fmt: skip
        if TO_OBS:
            for o in range(0, O, OP):
                right = w + tl.minimum(o + ro, O - 1)[None, :] * H + rk[:, None]
                dx = product(
                    tl.zeros((BM, OP), tl.float32), left, right, 1, H, BK, STAGES, PRECISION
                )
                tl.store(
                    grad_obs + (member * wide + row)[:, None] * O + (o + ro)[None, :],
                    dx * dq[:, None], mask=live[:, None] & (o + ro < O)[None, :],
                )  # fmt: skip


def pieces(sizes: Sizes, tile: Tile) -> dict[str, int]:
    """Return the constexprs of `score` that follow from a critic's sizes."""
    return {
        "O": sizes.obs,
        "A": sizes.act,
        "AP": max(16, triton.next_power_of_2(sizes.act)),
        "OP": min(32, max(16, triton.next_power_of_2(sizes.obs))),
        "H": sizes.hidden,
        "L": sizes.depth,
        "BE": max(16, min(tile.BN, ELEMENTS * 32 * tile.warps // tile.BM)),
    }


@lru_cache(maxsize=1024)
def _build(
    kernel: Any, sizes: Sizes, precision: str, tile: Tile, flags: tuple[tuple[str, bool], ...]
) -> Compile:
    """Return a kernel as a launch builds it."""
    dtype, dot = PRECISIONS[precision]
    own = ("pre", "scratch", "weights", "into", "lefts")
    types = dict.fromkeys(own, POINTERS[dtype]) | {"rows": "i32", "k": "fp32"}
    constexprs = {
        "E": sizes.members,
        **pieces(sizes, tile),
        "BM": tile.BM,
        "BN": tile.BN,
        "BK": tile.BK,
        "STAGES": tile.stages,
        "PRECISION": dot,
        **dict(flags),
    }
    signature = {a: types.get(a, "*fp32") for a in kernel.arg_names if a not in constexprs}
    name = "critic_forward" if kernel is _forward else "critic_backward"
    return Compile(
        name + "".join(f"_{flag.lower()}" for flag, on in flags if on),
        kernel,
        signature,
        constexprs,
        {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
        tuple(a for a, kind in signature.items() if kind[0] == "*" and a not in _UNALIGNED),
    )


def _backward_flags(weights: bool, to_obs: bool, to_act: bool) -> tuple[tuple[str, bool], ...]:
    return (("WEIGHTS", weights), ("TO_OBS", to_obs), ("TO_ACT", to_act))


def aot(sizes: Sizes, precision: str, tile: Tile) -> list[Compile]:
    """Return the kernels that training and scoring launch, to be built ahead of time."""
    wanted = [
        (_forward, (("SAVE", False),)),
        (_forward, (("SAVE", True),)),
        (_backward, _backward_flags(weights=True, to_obs=False, to_act=False)),
        (_backward, _backward_flags(weights=False, to_obs=False, to_act=True)),
    ]
    return [_build(kernel, sizes, precision, tile, flags) for kernel, flags in wanted]


def _launch(
    kernel: Any,
    flags: tuple[tuple[str, bool], ...],
    net: Packed,
    rows: int,
    tile: Tile,
    **args: Any,
) -> None:
    """Launch over `rows` rows, at least 1, of every member, with scratch of its own."""
    sizes, device = net.sizes, net.weights.device
    build = _build(kernel, sizes, net.precision, tile, flags)
    items = triton.cdiv(rows, tile.BM) * sizes.members
    programs = min(items, PROGRAMS * processors(device))
    args["scratch"] = net.weights.new_empty(programs * 2 * tile.BM * sizes.hidden)
    args |= {"weights": net.weights, "vectors": net.vectors, "rows": rows}
    build.kernel[(programs,)](**args, **build.constexprs, **build.options)


def _tile(net: Packed, rows: int) -> Tile:
    """Choose the blocks for `rows` rows of every member."""
    arch = architecture(net.weights.device)
    return choose_tile(arch, net.precision, net.sizes.hidden, rows * net.sizes.members)


def critic_ensemble(
    net: Packed,
    obs: Tensor,
    actions: Tensor,
    k: float,
    *,
    save: bool = False,
    tile: Tile | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Q(x, a, k) of every member.

    Parameters
    ----------
    net
        The ensemble.
    obs, actions
        float32 [B, O] and [B, A], contiguous, B at least 0.
    k
        The raw step count.
    save
        Whether `backward` will follow.
    tile
        How the work is cut; None: by the device.

    Returns
    -------
    q, saved
        float32 [E, B]; with `save` pre [E, L, B, H] in the type of the weights, before the GELU, and
        stats float32 [E, L, B, 2], the mean and 1 / standard deviation behind it; else nothing.
    """
    s, B = net.sizes, len(obs)
    tile = tile or _tile(net, B)
    q = obs.new_empty((s.members, B))
    pre = net.weights.new_empty((s.members, s.depth, B, s.hidden) if save else 0)
    stats = obs.new_empty((s.members, s.depth, B, 2) if save else 0)
    if B:
        _launch(
            _forward, (("SAVE", save),), net, B, tile,
            q=q, pre=pre, stats=stats, obs=obs, actions=actions, k=float(k),
        )  # fmt: skip
    return q, [pre, stats] if save else []


def backward(
    net: Packed,
    obs: Tensor,
    actions: Tensor,
    k: float,
    saved: Sequence[Tensor],
    grad: Tensor,
    *,
    weights: bool,
    to_obs: bool,
    to_act: bool,
    tile: Tile | None = None,
) -> list[Tensor]:
    """Gradients of sum(grad * Q), where `critic_ensemble` returned Q and `saved`.

    Parameters
    ----------
    net, obs, actions, k, saved
        As they went into `critic_ensemble` and came out of it.
    grad
        float32 [E, B], contiguous; members may be 0.
    weights, to_obs, to_act
        What is asked for. Without `weights` nothing is stored for them.
    tile
        How the work is cut; None: by the device.

    Returns
    -------
    list of Tensor
        float32: with `weights` one like each of the parameters that `pack` took, in its order; then
        with `to_obs` [B, O]; then with `to_act` [B, A].
    """
    s, B = net.sizes, len(obs)
    E, O, A, H, L = s.members, s.obs, s.act, s.hidden, s.depth
    pre, stats = saved
    tile = tile or _tile(net, B)
    grad_obs = obs.new_empty((E, B, O) if to_obs else 0)
    grad_act = obs.new_empty((E, B, A) if to_act else 0)
    into = net.weights.new_empty((E, L, B, H) if weights else 0)
    lefts = net.weights.new_empty((E, L - 1, B, H) if weights else 0)
    partial = obs.new_empty((triton.cdiv(B, tile.BM), E, 3 * L + 1, H) if weights else 0)
    scale = unit_scale(grad) if weights and net.precision == "fp16" else None
    weight_of = grad if scale is None else grad * scale
    if B:
        _launch(
            _backward, _backward_flags(weights, to_obs, to_act), net, B, tile,
            grad_obs=grad_obs, grad_act=grad_act, into=into, lefts=lefts, partial=partial, grad=grad,
            weight_of=weight_of, pre=pre, stats=stats,
        )  # fmt: skip
    out = []
    if weights:
        sums = partial.sum(0)
        inputs = torch.cat([obs, actions], 1).expand(E, B, O + A)
        products = [
            float_product(inputs.mT, into[:, 0].float())
        ]  # 16 bits are too few for a position
        products += [float_product(lefts[:, i - 1].mT, into[:, i]) for i in range(1, L)]
        if scale is not None:
            products = [x / scale for x in products]
        products[0] = torch.cat([products[0], k * sums[:, :1]], 1)
        for i in range(L):
            out += [products[i], sums[:, i], sums[:, L + i], sums[:, 2 * L + i]]
        out += [sums[:, 3 * L, :, None], grad.sum(1, keepdim=True)]
    return out + [x.sum(0) for x, asked in ((grad_obs, to_obs), (grad_act, to_act)) if asked]
