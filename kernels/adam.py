"""One optimiser step of a whole network in two launches: the gradient's norm, then clip, Adam and EMA.

The work is cut into chunks of at most BLOCK numbers of one tensor. Parameters, moments and targets are
found through a table of addresses on the device, made when a set of tensors is first seen: they stay
where they are. Gradients are new tensors every time, so their addresses are arguments.

A program takes every P-th chunk, P the number of programs, so that equal inputs give equal bits.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .packing import Sizes
from .tiles import Compile, Tile, processors

BLOCK = 1024
PROGRAMS = 8  # programs a processor, at most
MOST = 1024  # programs of a launch, at most; each adds up the squares of all

# ---- device helpers


@triton.jit
def _chunk(chunk, BLOCK: tl.constexpr):
    """Return the tensor of a chunk, its numbers [BLOCK] and which of them are there."""
    i = tl.arange(0, BLOCK)
    start = tl.multiple_of(tl.load(chunk + 1), 16)
    return tl.load(chunk), start + i, i < tl.load(chunk + 2)


@triton.jit
def _gradient(
    grads, tensor, at, there,
    TENSORS: tl.constexpr, PARTS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the numbers `at` [BLOCK] of a tensor's gradient, its parts summed; 0 where not there."""
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(PARTS):
        address = tl.cast(0, tl.int64)
        for i in tl.static_range(TENSORS):
            address = tl.where(tensor == i, grads[part * TENSORS + i].to(tl.int64), address)
        total += tl.load(_pointer(address, ALIGNED) + at, mask=there, other=0.0)
    return total


@triton.jit
def _pointer(address, ALIGNED: tl.constexpr):
    """Turn an address into a pointer to float32 numbers."""
    pointer = address.to(tl.pointer_type(tl.float32))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


# ---- kernels


@triton.jit(do_not_specialize=["count"])
def _squares(
    partial, chunks, count, grads,
    TENSORS: tl.constexpr, PARTS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write each program's sum of squares of the gradient into partial [P]; chunks [count, 3]."""
    total = tl.zeros((BLOCK,), tl.float32)
    for c in range(tl.program_id(0), count, tl.num_programs(0)):
        tensor, at, there = _chunk(chunks + 3 * c, BLOCK)
        g = _gradient(grads, tensor, at, there, TENSORS, PARTS, ALIGNED, BLOCK)
        total += g * g
    tl.store(partial + tl.program_id(0), tl.sum(total, 0))


@triton.jit(do_not_specialize=["count"])
def _step(
    norm, partial, chunks, count, state, step, grads,
    lr, log_b1, log_b2, new1, new2, b2, eps, clip_norm, tau,
    TENSORS: tl.constexpr, PARTS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
    P: tl.constexpr, EMA: tl.constexpr, EMA_BEFORE: tl.constexpr,
):  # fmt: skip
    """Make the step from `_squares`' partial sums, of which there are at most P, a power of two.

    state [4, TENSORS]: addresses of parameters, first and second moments, targets. step: pointer to the
    number of this step. new1 = 1 - b1, new2 = 1 - b2. With EMA the targets follow the parameters, with
    EMA_BEFORE those of before the step.
    """
    r = tl.arange(0, P)
    squares = tl.load(partial + r, mask=r < tl.num_programs(0), other=0.0)
    length = tl.sqrt_rn(tl.sum(squares, 0))
    if tl.program_id(0) == 0:
        tl.store(norm, length)
    # NaN is neither: it reaches the scale, and with it everything, as in the definition
    scale = tl.where(
        length <= clip_norm, 1.0, clip_norm / tl.where(length <= clip_norm, 1.0, length)
    )
    done = tl.load(step).to(tl.float64)
    step_size = (lr / (1.0 - tl.exp(done * log_b1))).to(tl.float32)
    root = tl.sqrt(1.0 - tl.exp(done * log_b2)).to(tl.float32)
    for c in range(tl.program_id(0), count, tl.num_programs(0)):
        tensor, at, there = _chunk(chunks + 3 * c, BLOCK)
        ps = _pointer(tl.load(state + tensor), ALIGNED) + at
        ms = _pointer(tl.load(state + TENSORS + tensor), ALIGNED) + at
        vs = _pointer(tl.load(state + 2 * TENSORS + tensor), ALIGNED) + at
        g = scale * _gradient(grads, tensor, at, there, TENSORS, PARTS, ALIGNED, BLOCK)
        m = tl.load(ms, mask=there, other=0.0)
        m += new1 * (g - m)
        v = b2 * tl.load(vs, mask=there, other=0.0) + new2 * (g * g)
        old = tl.load(ps, mask=there, other=0.0)
        p = old - step_size * (m / (tl.sqrt_rn(v) / root + eps))
        tl.store(ms, m, mask=there)
        tl.store(vs, v, mask=there)
        tl.store(ps, p, mask=there)
        if EMA:
            targets = _pointer(tl.load(state + 3 * TENSORS + tensor), ALIGNED) + at
            target = tl.load(targets, mask=there, other=0.0)
            followed = old if EMA_BEFORE else p
            tl.store(targets, target + tau * (followed - target), mask=there)


# ---- launchers


class _Table(NamedTuple):
    """Where a set of tensors lies, on its device."""

    key: tuple[int, ...]  # addresses and sizes that the tensors hold
    state: Tensor  # int64 [4, tensors], addresses
    chunks: Tensor  # int64 [count, 3]: tensor, first number, how many
    aligned: bool


# by the first tensor of the first moments: a table lives as long as the optimiser, whose captured steps
# read it
_tables = WeakTensorKeyDictionary()


def _table(state: Sequence[Sequence[Tensor]]) -> _Table:
    """Return the table of these tensors; the first call of a set waits for the device."""
    owner = state[1][0]
    key = tuple(x.data_ptr() for group in state for x in group)
    key += tuple(x.numel() for x in state[0])
    found: _Table | None = _tables.get(owner)
    if found is None or found.key != key:
        chunks = [
            (i, start, min(BLOCK, x.numel() - start))
            for i, x in enumerate(state[0])
            for start in range(0, x.numel(), BLOCK)
        ]
        addresses = [[x.data_ptr() for x in group] for group in state]
        found = _Table(
            key,
            torch.tensor(addresses, device=owner.device),
            torch.tensor(chunks, dtype=torch.int64, device=owner.device).view(-1, 3),
            all(a % 16 == 0 for group in addresses for a in group),
        )
        _tables[owner] = found
    return found


_OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


def _squares_build(tensors: int, parts: int, aligned: bool) -> Compile:
    types: dict[str, Any] = {"partial": "*fp32", "chunks": "*i64", "count": "i32"}
    types |= {"grads": ("*fp32",) * (tensors * parts)}
    constexprs = {"TENSORS": tensors, "PARTS": parts, "ALIGNED": aligned, "BLOCK": BLOCK}
    return Compile("adam_squares", _squares, types, constexprs, _OPTIONS, ("partial", "chunks"))


def _step_build(
    tensors: int, parts: int, aligned: bool, ema: bool = True, ema_before: bool = False
) -> Compile:
    types: dict[str, Any] = {"norm": "*fp32", "partial": "*fp32", "chunks": "*i64", "count": "i32"}
    types |= {"state": "*i64", "step": "*i64", "grads": ("*fp32",) * (tensors * parts)}
    numbers = ("lr", "log_b1", "log_b2", "new1", "new2", "b2", "eps", "clip_norm", "tau")
    types |= dict.fromkeys(numbers, "fp32")
    constexprs = {"TENSORS": tensors, "PARTS": parts, "ALIGNED": aligned, "BLOCK": BLOCK, "P": MOST}
    constexprs |= {"EMA": ema, "EMA_BEFORE": ema_before}
    divisible = ("norm", "partial", "chunks", "state", "step")
    return Compile("adam_step", _step, types, constexprs, _OPTIONS, divisible)


def aot(sizes: Sizes, precision: str, tile: Tile) -> list[Compile]:
    """Return the kernels of a network's optimiser as a launch builds them; all of it is float32.

    An actor's gradient has two parts, that of the regressions and that of the Q loss.
    """
    tensors = sizes.depth * (4 if sizes.norm else 2) + 2
    parts = 1 if sizes.norm else 2
    return [_squares_build(tensors, parts, True), _step_build(tensors, parts, True)]


# ---- public function


def adam_ema_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    targets: Sequence[Tensor],
    step: Tensor,
    *,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float,
    tau: float,
    more_grads: Sequence[Tensor] = (),
    ema_before: bool = False,
) -> Tensor:
    """Clip by the global norm, one Adam step, then the EMA of the targets; all in place.

    scale = min(1, clip_norm / norm); m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2;
    p <- p - lr m^ / (sqrt(v^) + eps) with the bias-corrected m^, v^; target <- (1-tau) target + tau p.

    Parameters
    ----------
    params, first, second, targets
        float32, contiguous, of one network, in the same order and of the same shapes; not empty. The
        first call with a set of tensors writes their addresses to the device and waits for that.
        Without targets there is no EMA.
    grads, more_grads
        float32, the gradient and, if given, a second part of it to be added. Neither is changed.
    step
        int64, a scalar on the device: the number of this step, from 1.
    ema_before
        Whether the targets follow the parameters as they were before the step.

    Returns
    -------
    Tensor
        The gradient's global norm before the clip, a scalar.
    """
    # no kernel reads the last row of a network without targets
    table = _table((params, first, second, targets or params))
    parts = tuple(g.contiguous() for g in (*grads, *more_grads))
    aligned = table.aligned and all(g.data_ptr() % 16 == 0 for g in parts)
    tensors, device = len(params), params[0].device
    count = len(table.chunks)
    programs = max(1, min(count, PROGRAMS * processors(device), MOST))
    norm = params[0].new_empty(())
    partial = params[0].new_empty(programs)
    build = _squares_build(tensors, len(parts) // tensors, aligned)
    build.kernel[(programs,)](
        *(partial, table.chunks, count, parts), **build.constexprs, **build.options
    )
    build = _step_build(tensors, len(parts) // tensors, aligned, bool(targets), ema_before)
    numbers = lr, _log(b1), _log(b2), 1 - b1, 1 - b2, b2, eps, clip_norm, tau
    build.kernel[(programs,)](
        *(norm, partial, table.chunks, count, table.state, step, parts),
        *map(float, numbers),  # triton would build an integer 1 into the kernel
        **build.constexprs,
        **build.options,
    )
    # written behind torch's back: whoever holds an older version must notice
    torch.autograd.graph.increment_version([*params, *first, *second, *targets])
    return norm


def _log(b: float) -> float:
    return math.log(b) if b else -math.inf
