"""The critic ensemble Q(x, a, k) and its gradients.

A hidden layer is x W + b, GELU, then LayerNorm. A program takes one member and BM rows at a time. The
GELU's output goes to a scratch in global memory while its mean and variance are gathered, and is
normalised from there into a second scratch, the left operand of the next product. The backward starts
from dQ = 1 in every row and multiplies by the row's true gradient where something leaves the chain, so
that small gradients do not vanish in a narrow precision and rows cannot disturb each other.

Shape letters: B rows, O observation, A action, H hidden, L hidden layers, E members; AP and OP: A and
a piece of O, padded to a power of two.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dense import gelu, gelu_slope, input_product, product
from .packing import PRECISIONS, Packed, Sizes
from .tiles import Compile, Tile, architecture, processors
from .tiles import tile as choose_tile

PROGRAMS = 2  # that run at once on a processor: as many as the registers of four warps allow
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@triton.jit
def _gather(mean, spread, x, seen, H: tl.constexpr, BN: tl.constexpr):
    """Merge the columns x [BM, BN] into the mean and the sum of squared deviations of `seen` columns.

    The products are ordered so that an overflow cannot become infinity times zero.
    """
    there = seen * 1.0  # a loop's counter is an integer
    part = tl.sum(x, 1) / BN
    away = x - part[:, None]
    delta = part - mean
    spread += tl.sum(away * away, 1) + delta * (delta * (there * BN / (there + BN)))
    return mean + delta * (BN / (there + BN)), spread


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
    w = tl.load(weights + (O + ra)[:, None] * H + col[None, :], mask=(ra < A)[:, None], other=0.0)
    acc = input_product(acc, act, w, PRECISION)
    for o in range(0, O, OP):
        there = o + ro < O
        x = tl.load(
            obs + row[:, None] * O + (o + ro)[None, :],
            mask=live[:, None] & there[None, :],
            other=0.0,
        )
        w = tl.load(weights + (o + ro)[:, None] * H + col[None, :], mask=there[:, None], other=0.0)
        acc = input_product(acc, x, w, PRECISION)
    return acc


@triton.jit
def score(
    obs, row, live, act, k, weights, vectors, scratch, pre, stats, rows,
    O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, OP: tl.constexpr, H: tl.constexpr,
    L: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, SAVE: tl.constexpr,
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
    at = rm[:, None] * H + rn[None, :]
    raw = scratch
    left = scratch + BM * H
    hidden = weights + (O + A + 1) * H
    gains = vectors + L * H
    shifts = vectors + 2 * L * H
    wide = tl.full((), rows, tl.int64)

    mean = tl.zeros((BM,), tl.float32)
    spread = tl.zeros((BM,), tl.float32)
    for n in range(0, H, BN):
        acc = tl.zeros((BM, BN), tl.float32) + tl.load(vectors + n + rn)[None, :]
        acc = _inputs(acc, obs, row, live, act, k, weights, n + rn, O, A, AP, OP, H, PRECISION)
        if SAVE:
            tl.store(pre + at + n, acc.to(dtype), mask=live[:, None])
        acc = gelu(acc)
        mean, spread = _gather(mean, spread, acc, n, H, BN)
        tl.store(raw + at + n, acc.to(dtype))
    scale = tl.rsqrt(spread / H + 1e-6)
    if SAVE:
        tl.store(stats + rm * 2, mean, mask=live)
        tl.store(stats + rm * 2 + 1, scale, mask=live)
    tl.debug_barrier()

    for layer in range(1, L):
        for n in range(0, H, BN):
            x = (tl.load(raw + at + n).to(tl.float32) - mean[:, None]) * scale[:, None]
            gain = tl.load(gains + (layer - 1) * H + n + rn)
            shift = tl.load(shifts + (layer - 1) * H + n + rn)
            tl.store(left + at + n, (x * gain[None, :] + shift[None, :]).to(dtype))
        tl.debug_barrier()
        w = hidden + (layer - 1) * H * H + rk[:, None] * H + rn[None, :]
        mean = tl.zeros((BM,), tl.float32)
        spread = tl.zeros((BM,), tl.float32)
        for n in range(0, H, BN):
            acc = tl.zeros((BM, BN), tl.float32) + tl.load(vectors + layer * H + n + rn)[None, :]
            acc = product(
                acc, left + rm[:, None] * H + rk[None, :], w + n, H, H, BK, STAGES, PRECISION
            )
            if SAVE:
                tl.store(pre + layer * wide * H + at + n, acc.to(dtype), mask=live[:, None])
            acc = gelu(acc)
            mean, spread = _gather(mean, spread, acc, n, H, BN)
            tl.store(raw + at + n, acc.to(dtype))
        scale = tl.rsqrt(spread / H + 1e-6)
        if SAVE:
            tl.store(stats + (layer * wide + rm) * 2, mean, mask=live)
            tl.store(stats + (layer * wide + rm) * 2 + 1, scale, mask=live)
        tl.debug_barrier()

    last = hidden + (L - 1) * H * H
    q = tl.zeros((BM,), tl.float32) + tl.load(vectors + 3 * L * H)
    for n in range(0, H, BN):
        x = (tl.load(raw + at + n).to(tl.float32) - mean[:, None]) * scale[:, None]
        gain = tl.load(gains + (L - 1) * H + n + rn)
        shift = tl.load(shifts + (L - 1) * H + n + rn)
        w = tl.load(last + n + rn).to(tl.float32)
        q += tl.sum((x * gain[None, :] + shift[None, :]) * w[None, :], 1)
    tl.debug_barrier()  # the next tile writes the scratch that this one has just read
    return q


@triton.jit(do_not_specialize=["rows", "k"])
def _forward(
    q, pre, stats, scratch, obs, actions, weights, vectors, rows, k,
    E: tl.constexpr, O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, OP: tl.constexpr,
    H: tl.constexpr, L: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, SAVE: tl.constexpr,
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
            O, A, AP, OP, H, L, BM, BN, BK, STAGES, PRECISION, SAVE,
        )  # fmt: skip
        tl.store(q + member * wide + row, value, mask=live)


@triton.jit
def _through_layer(
    layer, dys, chain, pre, lefts, into, mean, scale, s1, s2, dq, weight, live, vectors, partial, rows,
    H: tl.constexpr, L: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, WEIGHTS: tl.constexpr,
    LAST: tl.constexpr,
):  # fmt: skip
    """Take a layer's gradient back through LayerNorm and GELU: from `dys` to `chain`, both [BM, H].

    s1, s2 [BM] are the means over H of gradient times gain, and of that times the normalised x.
    """
    dtype = chain.dtype.element_ty
    rm = tl.arange(0, BM)
    rn = tl.arange(0, BN)
    at = rm[:, None] * H + rn[None, :]
    step = tl.full((), rows, tl.int64) * H
    for n in range(0, H, BN):
        x = tl.load(pre + layer * step + at + n, mask=live[:, None], other=0.0).to(tl.float32)
        dy = tl.load(dys + at + n).to(tl.float32)
        gain = tl.load(vectors + (L + layer) * H + n + rn)[None, :]
        normal = (gelu(x) - mean[:, None]) * scale[:, None]
        dx = (dy * gain - s1[:, None] - normal * s2[:, None]) * scale[:, None] * gelu_slope(x)
        tl.store(chain + at + n, dx.to(dtype))
        if WEIGHTS:
            tl.store(
                into + layer * step + at + n, (dx * weight[:, None]).to(dtype),
                mask=live[:, None],
            )  # fmt: skip
            shift = tl.load(vectors + (2 * L + layer) * H + n + rn)[None, :]
            y = normal * gain + shift
            tl.store(partial + layer * H + n + rn, tl.sum(dx * dq[:, None], 0))
            tl.store(partial + (L + layer) * H + n + rn, tl.sum(dy * normal * dq[:, None], 0))
            tl.store(partial + (2 * L + layer) * H + n + rn, tl.sum(dy * dq[:, None], 0))
            if LAST:
                tl.store(partial + 3 * L * H + n + rn, tl.sum(y * dq[:, None], 0))
            else:
                tl.store(lefts + layer * step + at + n, y.to(dtype), mask=live[:, None])


@triton.jit(do_not_specialize=["rows"])
def _backward(
    grad_obs, grad_act, into, lefts, partial, scratch, grad, weight_of, pre, stats, weights,
    vectors, rows,
    E: tl.constexpr, O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, OP: tl.constexpr,
    H: tl.constexpr, L: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, WEIGHTS: tl.constexpr, TO_OBS: tl.constexpr,
    TO_ACT: tl.constexpr,
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
    ra = tl.arange(0, AP)
    ro = tl.arange(0, OP)
    at = rm[:, None] * H + rn[None, :]
    tiles = tl.cdiv(rows, BM)
    wide = tl.full((), rows, tl.int64)
    dys = scratch + tl.program_id(0).to(tl.int64) * (2 * BM * H)
    chain = dys + BM * H
    left = chain + rm[:, None] * H + rk[None, :]
    for item in range(tl.program_id(0), tiles * E, tl.num_programs(0)):
        member = item % E
        first = tl.full((), item // E, tl.int64) * BM
        row = first + rm
        live = row < rows
        dq = tl.load(grad + member * wide + row, mask=live, other=0.0)
        weight = tl.load(weight_of + member * wide + row, mask=live, other=0.0)
        w = weights + member * ((O + A + 1 + (L - 1) * H + 1) * H)
        v = vectors + member * (3 * L * H + 1)
        hidden = w + (O + A + 1) * H
        last = hidden + (L - 1) * H * H
        z = pre + (member * L * wide + first) * H
        d = into + (member * L * wide + first) * H
        y = lefts + (member * (L - 1) * wide + first) * H
        p = partial + tl.full((), item // E * E + member, tl.int64) * ((3 * L + 1) * H)
        of = stats + (member * L * wide + row) * 2

        mean = tl.load(of + (L - 1) * wide * 2, mask=live, other=0.0)
        scale = tl.load(of + (L - 1) * wide * 2 + 1, mask=live, other=0.0)
        s1 = tl.zeros((BM,), tl.float32)
        s2 = tl.zeros((BM,), tl.float32)
        for n in range(0, H, BN):
            dy = tl.zeros((BM, BN), tl.float32) + tl.load(last + n + rn).to(tl.float32)[None, :]
            tl.store(dys + at + n, dy.to(dtype))
            x = tl.load(z + (L - 1) * wide * H + at + n, mask=live[:, None], other=0.0).to(
                tl.float32
            )
            dy *= tl.load(v + (2 * L - 1) * H + n + rn)[None, :]
            s1 += tl.sum(dy, 1)
            s2 += tl.sum(dy * (gelu(x) - mean[:, None]) * scale[:, None], 1)
        tl.debug_barrier()
        _through_layer(
            L - 1, dys, chain, z, y, d, mean, scale, s1 / H, s2 / H, dq, weight, live, v, p, rows,
            H, L, BM, BN, WEIGHTS, True,
        )  # fmt: skip
        tl.debug_barrier()
        for i in range(1, L):
            layer = L - 1 - i
            mean = tl.load(of + layer * wide * 2, mask=live, other=0.0)
            scale = tl.load(of + layer * wide * 2 + 1, mask=live, other=0.0)
            s1 = tl.zeros((BM,), tl.float32)
            s2 = tl.zeros((BM,), tl.float32)
            for n in range(0, H, BN):
                right = hidden + layer * H * H + (n + rn)[None, :] * H + rk[:, None]
                dy = product(
                    tl.zeros((BM, BN), tl.float32), left, right, 1, H, BK, STAGES, PRECISION
                )
                tl.store(dys + at + n, dy.to(dtype))
                x = tl.load(z + layer * wide * H + at + n, mask=live[:, None], other=0.0).to(
                    tl.float32
                )
                dy *= tl.load(v + (L + layer) * H + n + rn)[None, :]
                s1 += tl.sum(dy, 1)
                s2 += tl.sum(dy * (gelu(x) - mean[:, None]) * scale[:, None], 1)
            tl.debug_barrier()
            _through_layer(
                layer, dys, chain, z, y, d, mean, scale, s1 / H, s2 / H, dq, weight, live, v, p, rows,
                H, L, BM, BN, WEIGHTS, False,
            )  # fmt: skip
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


def _pieces(sizes: Sizes, tile: Tile, precision: str) -> dict[str, Any]:
    """Return the constexprs that both kernels have."""
    E, O, A, H, L = sizes.members, sizes.obs, sizes.act, sizes.hidden, sizes.depth
    return dict(
        E=E, O=O, A=A, AP=max(16, triton.next_power_of_2(A)),
        OP=min(tile.BK, max(16, triton.next_power_of_2(O))),
        H=H, L=L, BM=tile.BM, BN=tile.BN, BK=tile.BK, STAGES=tile.stages,
        PRECISION=PRECISIONS[precision][1],
    )  # fmt: skip


def _compile(
    name: str, kernel: Any, arguments: dict[str, str], constexprs: dict[str, Any], tile: Tile
) -> Compile:
    pointers = tuple(a for a, kind in arguments.items() if kind.startswith("*"))
    options = dict(num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True)
    return Compile(name, kernel, arguments, constexprs, options, pointers)


def _forward_build(sizes: Sizes, precision: str, tile: Tile, save: bool) -> Compile:
    number = "*" + TYPES[PRECISIONS[precision][0]]
    arguments = dict(
        q="*fp32", pre=number, stats="*fp32", scratch=number, obs="*fp32", actions="*fp32",
        weights=number, vectors="*fp32", rows="i32", k="fp32",
    )  # fmt: skip
    constexprs = _pieces(sizes, tile, precision) | dict(SAVE=save)
    name = "critic_forward" + ("_save" if save else "")
    return _compile(name, _forward, arguments, constexprs, tile)


def _backward_build(
    sizes: Sizes, precision: str, tile: Tile, weights: bool, to_obs: bool, to_act: bool
) -> Compile:
    number = "*" + TYPES[PRECISIONS[precision][0]]
    arguments = dict(
        grad_obs="*fp32", grad_act="*fp32", into=number, lefts=number, partial="*fp32", scratch=number,
        grad="*fp32", weight_of="*fp32", pre=number, stats="*fp32", weights=number, vectors="*fp32",
        rows="i32",
    )  # fmt: skip
    constexprs = _pieces(sizes, tile, precision)
    constexprs |= dict(WEIGHTS=weights, TO_OBS=to_obs, TO_ACT=to_act)
    parts = {"weights": weights, "obs": to_obs, "act": to_act}
    name = "_".join(["critic_backward", *(part for part, asked in parts.items() if asked)])
    return _compile(name, _backward, arguments, constexprs, tile)


def aot(sizes: Sizes, precision: str, tile: Tile) -> list[Compile]:
    """Return the kernels that training and scoring launch, as a launch builds them."""
    return [
        _forward_build(sizes, precision, tile, save=False),
        _forward_build(sizes, precision, tile, save=True),
        _backward_build(sizes, precision, tile, weights=True, to_obs=False, to_act=False),
        _backward_build(sizes, precision, tile, weights=False, to_obs=False, to_act=True),
    ]


def _tile_of(net: Packed, rows: int, tile: Tile | None) -> Tile:
    arch = architecture(net.weights.device)
    return tile or choose_tile(arch, net.precision, net.sizes.hidden, rows * net.sizes.members)


def _work(net: Packed, rows: int, tile: Tile) -> tuple[int, Tensor]:
    """Return how many programs to launch, and their scratch."""
    device = net.weights.device
    items = triton.cdiv(rows, tile.BM) * net.sizes.members
    programs = min(items, PROGRAMS * processors(device))
    return programs, net.weights.new_empty((programs, 2, tile.BM, net.sizes.hidden))


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
    tile = _tile_of(net, B, tile)
    q = obs.new_empty((s.members, B))
    pre = net.weights.new_empty((s.members, s.depth, B, s.hidden) if save else 0)
    stats = obs.new_empty((s.members, s.depth, B, 2) if save else 0)
    if B:
        programs, scratch = _work(net, B, tile)
        build = _forward_build(s, net.precision, tile, save)
        build.kernel[(programs,)](
            *(q, pre, stats, scratch, obs, actions, net.weights, net.vectors, B, float(k)),
            **build.constexprs,
            **build.options,
        )
    return q, [pre, stats] if save else []


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Return left^T right, float32 [E, m, n], of [E, B, m] and [E, B, n]."""
    left = left.transpose(1, 2)
    if left.dtype == torch.float32 or not left.is_cuda:
        return torch.bmm(left.float(), right.float())
    return torch.bmm(left, right, out_dtype=torch.float32)


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
    tile = _tile_of(net, B, tile)
    grad_obs = obs.new_empty((E, B, O) if to_obs else 0)
    grad_act = obs.new_empty((E, B, A) if to_act else 0)
    into = net.weights.new_empty((E, L, B, H) if weights else 0)
    lefts = net.weights.new_empty((E, L - 1, B, H) if weights else 0)
    partial = obs.new_empty((triton.cdiv(B, tile.BM), E, 3 * L + 1, H) if weights else 0)
    weight_of, reach = grad, None
    if weights and B and net.precision == "fp16":
        # a mean loss has gradients near 1 / B, which fp16 rounds to nothing
        reach = grad.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
        weight_of = grad / reach
    if B:
        programs, scratch = _work(net, B, tile)
        build = _backward_build(s, net.precision, tile, weights, to_obs, to_act)
        build.kernel[(programs,)](
            *(grad_obs, grad_act, into, lefts, partial, scratch, grad, weight_of, pre, stats),
            *(net.weights, net.vectors, B),
            **build.constexprs,
            **build.options,
        )
    out = []
    if weights:
        sums = partial.sum(0)
        inputs = torch.cat([obs, actions], 1).to(net.weights.dtype).expand(E, B, O + A)
        products = [_outer(inputs, into[:, 0])]
        products += [_outer(lefts[:, i - 1], into[:, i]) for i in range(1, L)]
        if reach is not None:
            products = [x * reach for x in products]
        products[0] = torch.cat([products[0], k * sums[:, :1]], 1)
        for i in range(L):
            out += [products[i], sums[:, i], sums[:, L + i], sums[:, 2 * L + i]]
        out += [sums[:, 3 * L, :, None], grad.sum(1, keepdim=True)]
    return out + [x.sum(0) for x, asked in ((grad_obs, to_obs), (grad_act, to_act)) if asked]
