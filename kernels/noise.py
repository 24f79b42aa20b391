"""Noise and random words from a key on the device: a replayed graph reads the key afresh.

A key is an int64 tensor [3]: seed (the bits of a uint64), call, row_offset. Normals are those of every
sampler (`philox`). Words are a stream apart: word i is word i mod 4 of Philox4x32-10 at counter =
(i // 4, 2^32 - 1, row_offset mod 2^32, call mod 2^32); no sampler has a candidate 2^32 - 1.

Shape letters: B rows, N candidates, S draws, A action.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .philox import normals as philox_normals
from .tiles import Compile, Tile

BLOCK = 256  # numbers a program draws

# ---- kernels


# one build for all: a number that is 1, or a number or address that 16 divides, would ask for another
@triton.jit(do_not_specialize=["count", "N", "S", "A"], do_not_specialize_on_alignment=["key"])
def _normals(out, key, count, N, S, A, BLOCK: tl.constexpr):
    """Write numbers [B, N, S, A]; S None: [B, N, A], of draw 0."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    if S is None:
        candidate, row = i // A % N, i // A // N + tl.load(key + 2)
        x = philox_normals(tl.load(key), tl.load(key + 1), row, candidate, i % A)
    else:
        draw, each = i // A % S, i // A // S
        candidate, row = each % N, each // N + tl.load(key + 2)
        x = philox_normals(tl.load(key), tl.load(key + 1), row, candidate, i % A, draw)
    tl.store(out + i, x, mask=there)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["key"])
def _words(out, key, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    quad = (i // 4).to(tl.uint32)
    row = (tl.load(key + 2) + quad.to(tl.int64) * 0).to(tl.uint32)
    call = (tl.load(key + 1) + quad.to(tl.int64) * 0).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(tl.load(key), quad, quad * 0 + 0xFFFFFFFF, row, call)
    first = tl.where(i % 2 == 0, w0, w1)
    second = tl.where(i % 2 == 0, w2, w3)
    tl.store(out + i, tl.where(i % 4 < 2, first, second).to(tl.int64), mask=there)


# ---- launchers


def _build(name: str, kernel: Any, types: dict[str, str]) -> Compile:
    options = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
    absent = dict.fromkeys(set(kernel.arg_names) - {*types, "BLOCK"})
    return Compile(name, kernel, types, {"BLOCK": BLOCK} | absent, options, ("out",))


def _normals_build(several: bool) -> Compile:
    types = {"out": "*fp32", "key": "*i64", "count": "i32", "N": "i32"}
    types |= {"S": "i32"} if several else {}
    name = "noise_normals_draws" if several else "noise_normals"
    return _build(name, _normals, types | {"A": "i32"})


def _words_build() -> Compile:
    return _build("noise_words", _words, {"out": "*i64", "key": "*i64", "count": "i32"})


def aot(precision: str, tile: Tile) -> list[Compile]:
    """Return the kernels as a launch builds them; they depend on neither argument."""
    return [_normals_build(False), _normals_build(True), _words_build()]


# ---- public functions


def normals(key: Tensor, rows: int, candidates: int, act_dim: int, draws: int = 1) -> Tensor:
    """Standard normal noise, each number a function of (key, row, candidate, draw, a) alone.

    Parameters
    ----------
    key
        int64 [3]: seed, call, row_offset.
    rows, candidates, act_dim
        B, N and A, each at least 0.
    draws
        S, from 1 to 256; above 1, A is below 2^26.

    Returns
    -------
    Tensor
        float32 [B, N, A], or [B, N, S, A] where S is above 1, on the key's device.
    """
    several = draws > 1
    shape = (rows, candidates, draws, act_dim) if several else (rows, candidates, act_dim)
    out = torch.empty(shape, device=key.device)
    count = out.numel()
    if count:
        build = _normals_build(several)
        args = {"out": out, "key": key, "count": count, "N": candidates, "S": draws, "A": act_dim}
        args = {arg: args[arg] for arg in build.signature}
        build.kernel[(triton.cdiv(count, BLOCK),)](**args, **build.constexprs, **build.options)
    return out


def words(key: Tensor, count: int) -> Tensor:
    """Uniform 32-bit words, int64 [count] in [0, 2^32); `key` as in `normals`."""
    out = torch.empty(count, dtype=torch.int64, device=key.device)
    if count:
        build = _words_build()
        build.kernel[(triton.cdiv(count, BLOCK),)](
            *(out, key, count), **build.constexprs, **build.options
        )
    return out
