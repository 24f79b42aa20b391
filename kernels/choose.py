"""Choosing one of N candidates by a rule other than the highest Q, after best-of-N has kept them all.

A program takes an observation; it compares its candidates BLOCK by BLOCK, so that one build serves any N.
What it finds of a candidate it notes in the candidate's mark, in memory. The rules are those that every
sampler has: distances are taken in units w a component, highest Q first, ties to the smallest index.

Shape letters: B observations, N candidates, O observation, A action (AP, a power of two).
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packing import Sizes
from .philox import uniform
from .tiles import Compile, Tile

RULES = ("medoid", "nearest", "better", "soft", "centre")
READ_Q = ("medoid", "nearest", "better", "soft")
DRAW = ("better", "soft")
BLOCK = 32  # candidates at a time
# bits of a candidate's mark, which the kernels have as literals
GOOD = 1  # it may be chosen
CHANGED = 2  # the bounds changed its action
PART = 4  # it is of the part that the rule chooses from

# a user's rows may begin anywhere
_UNALIGNED = ("obs", "key", "w")
_VARYING = ["N", "O", "A", "up", "down"]


class Rule(NamedTuple):
    """A rule and what it reads beside the candidates."""

    name: str  # of RULES
    up: int  # the parameter's numerator and denominator, read where the rule has one
    down: int
    w: Tensor  # float32 [A], contiguous: 2 over the bounds' width
    key: Tensor | None = (
        None  # int64 [3], where the rule draws: seed, call and number of the first row
    )


# ---- device helpers


@triton.jit
def _noted(marks, i, N, bit: tl.constexpr):
    """Whether candidates i are there and have a bit of their mark."""
    return (tl.load(marks + i, mask=i < N, other=0) & bit) != 0


@triton.jit
def _larger(best, winner, value, number):
    """Return the larger of two values and its candidate; 2147483647 is no candidate."""
    take = (number < 2147483647) & ((value > best) | (winner == 2147483647))
    return tl.where(take, value, best), tl.where(take, number, winner)


@triton.jit
def _top(value, among, i):
    """Return the highest value [BLOCK] among candidates i, and the first that has it."""
    top = tl.max(tl.where(among, value, -float("inf")), 0)
    return top, tl.min(tl.where(among & (value == top), i, 2147483647), 0)


@triton.jit
def _part_by(value, marks, size, N, BLOCK: tl.constexpr):
    """Note as the part the `size` good candidates of the highest value [N]."""
    r = tl.arange(0, BLOCK)
    for begin in tl.range(0, N, BLOCK):
        i = begin + r
        own = tl.load(value + i, mask=i < N, other=0.0)[:, None]
        before = tl.zeros((BLOCK,), tl.int32)
        for other in tl.range(0, N, BLOCK):
            j = other + r
            others = tl.load(value + j, mask=j < N, other=0.0)[None, :]
            first = (others > own) | ((others == own) & (j[None, :] < i[:, None]))
            before += tl.sum((first & _noted(marks, j, N, 1)[None, :]).to(tl.int32), 1)
        mark = tl.load(marks + i, mask=i < N, other=0)
        of_part = ((mark & 1) != 0) & (before < size)
        tl.store(marks + i, mark | tl.where(of_part, 4, 0), mask=i < N)
    tl.debug_barrier()


@triton.jit
def _medoid(actions, w, marks, N, A, BIT: tl.constexpr, BLOCK: tl.constexpr):
    """Return which candidate with a bit has the smallest sum of distances to the others with it."""
    r = tl.arange(0, BLOCK)
    best, winner = -float("inf"), 2147483647
    for begin in tl.range(0, N, BLOCK):
        i = begin + r
        sums = tl.zeros((BLOCK,), tl.float32)
        for other in tl.range(0, N, BLOCK):
            j = other + r
            squared = tl.zeros((BLOCK, BLOCK), tl.float32)
            for a in tl.range(0, A):
                x = tl.load(actions + i * A + a, mask=i < N, other=0.0)
                y = tl.load(actions + j * A + a, mask=j < N, other=0.0)
                apart = (x[:, None] - y[None, :]) * tl.load(w + a)
                squared += apart * apart
            near = tl.where(_noted(marks, j, N, BIT)[None, :], tl.sqrt(squared), 0.0)
            sums += tl.sum(near, 1)
        value, number = _top(-sums, _noted(marks, i, N, BIT), i)
        best, winner = _larger(best, winner, value, number)
    return winner


@triton.jit
def _highest(q, marks, N, BIT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the highest Q of the candidates with a bit, and the first that has it."""
    r = tl.arange(0, BLOCK)
    best, winner = -float("inf"), 2147483647
    for begin in tl.range(0, N, BLOCK):
        i = begin + r
        value = tl.load(q + i, mask=i < N, other=0.0)
        value, number = _top(value, _noted(marks, i, N, BIT), i)
        best, winner = _larger(best, winner, value, number)
    return best, winner


@triton.jit
def _from_mean(actions, w, marks, near, n, N, A, AP: tl.constexpr, BLOCK: tl.constexpr):
    """Write -|(a - mean) w|^2 of every good candidate to `near` [N]; 0 where there are two."""
    r, ra = tl.arange(0, BLOCK), tl.arange(0, AP)
    mean = tl.zeros((AP,), tl.float32)
    for begin in tl.range(0, N, BLOCK):
        i = begin + r
        there = _noted(marks, i, N, 1)[:, None] & (ra < A)[None, :]
        mean += tl.sum(tl.load(actions + i[:, None] * A + ra[None, :], mask=there, other=0.0), 0)
    mean /= n
    scale = tl.load(w + ra, mask=ra < A, other=0.0)
    for begin in tl.range(0, N, BLOCK):
        i = begin + r
        there = _noted(marks, i, N, 1)[:, None] & (ra < A)[None, :]
        x = tl.load(actions + i[:, None] * A + ra[None, :], mask=there, other=0.0)
        apart = (x - mean[None, :]) * scale[None, :]
        squared = tl.sum(tl.where(there, apart * apart, 0.0), 1)
        # two are equally near, which rounding must not decide
        tl.store(near + i, tl.where(n == 2, 0.0, -squared), mask=i < N)
    tl.debug_barrier()


@triton.jit
def _numbered(marks, number, N, BLOCK: tl.constexpr):
    """Return the candidate of the part that has `number` others of it before it."""
    r = tl.arange(0, BLOCK)
    winner, seen = 2147483647, 0
    for begin in tl.range(0, N, BLOCK):
        i = begin + r
        own = _noted(marks, i, N, 4)
        upto = seen + tl.cumsum(own.to(tl.int32), 0)
        first = tl.min(tl.where(own & (upto > number), i, 2147483647), 0)
        winner = tl.minimum(winner, first)
        seen += tl.sum(own.to(tl.int32), 0)
    return winner


@triton.jit
def _weights(q, marks, i, N, top, scale):
    """Return the weights [BLOCK] that `_soft` draws by."""
    spread = (scale > 0.0) & (scale < float("inf"))
    value = tl.load(q + i, mask=_noted(marks, i, N, 1), other=0.0)
    weight = tl.where(spread, tl.exp((value - top) / tl.where(spread, scale, 1.0)), 1.0)
    return tl.where(_noted(marks, i, N, 1), weight, 0.0)


@triton.jit
def _soft(q, marks, tau, u, n, N, BLOCK: tl.constexpr):
    """Return the first good i with e_0 + ... + e_i > u times the sum of all; the last one if none has."""
    r = tl.arange(0, BLOCK)
    top, _ = _highest(q, marks, N, 1, BLOCK)
    mean, squares, total = 0.0, 0.0, 0.0
    for begin in tl.range(0, N, BLOCK):
        mean += tl.sum(tl.load(q + begin + r, mask=_noted(marks, begin + r, N, 1), other=0.0), 0)
    mean /= n
    for begin in tl.range(0, N, BLOCK):
        good = _noted(marks, begin + r, N, 1)
        apart = tl.load(q + begin + r, mask=good, other=0.0) - mean
        squares += tl.sum(tl.where(good, apart * apart, 0.0), 0)
    scale = tau * tl.sqrt(squares / n)
    for begin in tl.range(0, N, BLOCK):
        total += tl.sum(_weights(q, marks, begin + r, N, top, scale), 0)
    winner, last, seen = 2147483647, 0, 0.0
    for begin in tl.range(0, N, BLOCK):
        i = begin + r
        weight, good = _weights(q, marks, i, N, top, scale), _noted(marks, i, N, 1)
        above = good & (seen + tl.cumsum(weight, 0) > u * total)
        winner = tl.minimum(winner, tl.min(tl.where(above, i, 2147483647), 0))
        last = tl.maximum(last, tl.max(tl.where(good, i, 0), 0))
        seen += tl.sum(weight, 0)
    return tl.where(winner == 2147483647, last, winner)


# ---- kernel


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def _choose(
    action, index, best_q, flags, obs, actions, q, marks, near, w, key, N, O, A, up, down, tau,
    RULE: tl.constexpr, READS_Q: tl.constexpr, AP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write action [B, A], index, best_q and flags [B]; the marks [B, N] are used up."""
    row = tl.program_id(0).to(tl.int64)
    r, ra = tl.arange(0, BLOCK), tl.arange(0, AP)
    actions += row * N * A
    marks += row * N
    if q is not None:
        q += row * N
    n = 0
    for begin in tl.range(0, N, BLOCK):
        i = begin + r
        mark = tl.load(marks + i, mask=i < N, other=0)
        if READS_Q:
            value = tl.load(q + i, mask=i < N, other=0.0)
            mark = tl.where(tl.abs(value) < float("inf"), mark, mark & 2)
            tl.store(marks + i, mark, mask=i < N)
        n += tl.sum(mark & 1, 0)
    tl.debug_barrier()

    size = (up.to(tl.int64) * n + down - 1) // down
    if RULE == "centre":
        winner = _medoid(actions, w, marks, N, A, 1, BLOCK)
    elif RULE == "soft":
        u = uniform(tl.load(key), tl.load(key + 1), tl.load(key + 2) + row)
        winner = _soft(q, marks, tau, u.to(tl.float32) * 5.9604644775390625e-08, n, N, BLOCK)
    elif RULE == "nearest":
        near += row * N
        _from_mean(actions, w, marks, near, n, N, A, AP, BLOCK)
        _part_by(near, marks, size, N, BLOCK)
        _, winner = _highest(q, marks, N, 4, BLOCK)
    else:
        _part_by(q, marks, size, N, BLOCK)
        if RULE == "better":
            u = uniform(tl.load(key), tl.load(key + 1), tl.load(key + 2) + row)
            winner = _numbered(marks, (u.to(tl.int64) * size) >> 24, N, BLOCK)
        else:
            winner = _medoid(actions, w, marks, N, A, 4, BLOCK)
    winner = tl.where(n == 0, 0, winner)

    chosen = tl.load(actions + winner * A + ra, mask=ra < A, other=0.0)
    tl.store(action + row * A + ra, chosen, mask=ra < A)
    tl.store(index + row, winner.to(tl.int64))
    if q is not None:
        tl.store(best_q + row, tl.where(n == 0, -float("inf"), tl.load(q + winner)))
    else:
        tl.store(best_q + row, float("nan"))
    seen = 0
    for o in tl.range(0, O, BLOCK):
        x = tl.load(obs + row * O + o + r, mask=o + r < O, other=0.0)
        seen += tl.sum(tl.where(tl.abs(x) < float("inf"), 0, 1), 0)
    flag = tl.where((tl.load(marks + winner) & 2) != 0, 8, 0) + tl.where(n < N, 16, 0)
    tl.store(flags + row, tl.where(seen > 0, 1, tl.where(n == 0, 2, flag)))


# ---- launchers


@lru_cache(maxsize=1024)
def _build(rule: str, act: int, scored: bool) -> Compile:
    """Return the kernel as a launch builds it."""
    types = dict.fromkeys(_VARYING, "i32")
    types |= {"index": "*i64", "flags": "*i32", "marks": "*i32", "key": "*i64", "tau": "fp32"}
    constexprs: dict[str, Any] = {"RULE": rule, "READS_Q": rule in READ_Q, "BLOCK": BLOCK}
    constexprs |= {"AP": triton.next_power_of_2(act)}
    absent = [] if rule in DRAW else ["key"]
    absent += [] if rule == "nearest" else ["near"]
    absent += [] if scored else ["q"]
    constexprs |= dict.fromkeys(absent)
    kernel = _choose
    signature = {a: types.get(a, "*fp32") for a in kernel.arg_names if a not in constexprs}
    return Compile(
        "_".join(["choose", rule, *(["alone"] if not scored else [])]),
        kernel,
        signature,
        constexprs,
        {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True},
        tuple(a for a, kind in signature.items() if kind[0] == "*" and a not in _UNALIGNED),
    )


def aot(actor: Sizes, precision: str, tile: Tile) -> list[Compile]:
    """Return the kernels that a sampler launches; they depend on the actor's A alone."""
    builds = [_build(rule, actor.act, True) for rule in RULES]
    return [*builds, _build("centre", actor.act, False)]


def choose(
    rule: Rule, obs: Tensor, actions: Tensor, q: Tensor | None, marks: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose one of N candidates of each observation.

    Parameters
    ----------
    rule
        How.
    obs
        float32 [B, O], contiguous: one that is not finite has a flag.
    actions
        float32 [B, N, A], contiguous, within the bounds where good.
    q
        float32 [B, N], contiguous; None: there is none, which only centre allows.
    marks
        int32 [B, N], contiguous: GOOD where an action was finite before the clip, plus CHANGED where
        the bounds changed it. A rule that reads Q chooses among those only whose Q is finite too. They
        are used up.

    Returns
    -------
    action, index, q, flags
        As of `best_of_n.best_of_n`.
    """
    B, N, A = actions.shape
    action, best_q = obs.new_empty((B, A)), obs.new_empty(B)
    index = torch.empty(B, dtype=torch.int64, device=obs.device)
    flags = torch.empty(B, dtype=torch.int32, device=obs.device)
    if B:
        build = _build(rule.name, A, q is not None)
        args = {
            "action": action, "index": index, "best_q": best_q, "flags": flags, "obs": obs,
            "actions": actions, "q": q, "marks": marks, "w": rule.w, "key": rule.key,
            "near": obs.new_empty((B, N)) if rule.name == "nearest" else None,
            "N": N, "O": obs.shape[1], "A": A, "up": rule.up, "down": rule.down,
            "tau": rule.up / rule.down,
        }  # fmt: skip
        args = {arg: args[arg] for arg in build.signature}
        build.kernel[(B,)](**args, **build.constexprs, **build.options)
    return action, index, best_q, flags
