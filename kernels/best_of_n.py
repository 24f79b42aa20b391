"""Best of N: the whole sampler as one kernel.

A program takes a group of observations at a time, and NP candidates of each: it denoises them, clips
them, scores them with every critic at k = M, and keeps each observation's best so far, until all N
candidates have been seen. Observations times NP are the BM rows of its products.

Another rule than the highest Q needs all N at once: then the kernel keeps every candidate, and a second
one chooses (`choose`).

A policy's steps are a shortcut actor's, or those of a `Table`. The noise of a table's steps is read from
memory: drawing it among them would take the registers that products want, and a launch takes less.

Shape letters: B observations, N candidates, O observation, A action (AP padded for products), H hidden,
L hidden layers, E critics, M Euler steps; NP candidates at a time, G = BM / NP observations.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .choose import READ_Q, Rule, choose
from .critic import PROGRAMS, pieces, score
from .euler import denoise
from .noise import normals as normals_of
from .packing import PRECISIONS, Packed, Sizes
from .philox import normals
from .tiles import POINTERS, Compile, Tile, architecture, processors
from .tiles import tile as choose_tile

# bits of the flags, those of sorl_fast.status; the kernel has them as literals, for triton reads no
# globals
NONFINITE_OBS = 1  # the observation has a NaN or an infinity
NONFINITE_RESULT = 2  # every candidate was rejected
CLIPPED = 8  # the bounds changed the returned action
CANDIDATE_REJECTED = 16  # a candidate's action or Q was not finite; the best of the rest won

# a user's rows may begin anywhere
_UNALIGNED = ("obs", "noise", "key", "low", "high", "table", "temperature")
_VARYING = ["rows", "candidates", "steps", "draws", "begins", "squash"]


class Table(NamedTuple):
    """Steps that are not a shortcut actor's: see `euler`."""

    steps: Tensor  # float32 [M, 5]: (t, l, a, b, s) of each
    # float32, one number: what multiplies s; on the device, so that a recorded graph reads it afresh
    temperature: Tensor
    draws: int = 1  # S, how many numbers of noise a component of an action takes
    begins: bool = True  # whether z is the noise's draw 0 at first, and not 0
    squash: bool = False  # whether every step's result goes through tanh
    noise_clip: float = math.inf  # of what a step adds
    clip: float = math.inf  # of a step's result
    k: int | None = None  # the number of steps that the critic is told; None: M


# ---- device helpers


@triton.jit
def _finite(x):
    """Whether x is neither infinite nor NaN."""
    return tl.abs(x) < float("inf")


@triton.jit
def _of_group(x, G: tl.constexpr, NP: tl.constexpr):
    """Give the numbers [BM] of rows as those of observations and candidates [G, NP]."""
    return tl.reshape(x, [G, NP])


@triton.jit
def _drawn(
    key, row, candidate, room, A: tl.constexpr, AP: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """Return the noise [BM, AP] of a key, through `room`, BM AP float32 of the program's own.

    Drawn a few columns at a time, for the float64 registers that it takes.
    """
    rm, ra, few = tl.arange(0, BM), tl.arange(0, AP), tl.arange(0, 4)
    seed, call = tl.load(key), tl.load(key + 1)
    number = (tl.load(key + 2) + row)[:, None]
    for a in tl.range(0, A, 4, disable_licm=True):
        z = normals(seed, call, number, candidate[:, None], a + few[None, :])
        tl.store(room + rm[:, None] * AP + (a + few)[None, :], z)
    tl.debug_barrier()
    z = tl.load(room + rm[:, None] * AP + ra[None, :], mask=(ra < A)[None, :], other=0.0)
    tl.debug_barrier()
    return z


# ---- kernel


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def _best_of_n(
    action, index, q, flags, obs, noise, key, low, high, actor_w, actor_v, critic_w, critic_v,
    scratch, first, rows, candidates, steps, h, log2_steps,
    table, temperature, draws, begins, squash, noise_clip, clip, k, marks,
    E: tl.constexpr, O: tl.constexpr, A: tl.constexpr, AP: tl.constexpr, OP: tl.constexpr,
    H: tl.constexpr, L: tl.constexpr, ACTOR_H: tl.constexpr, ACTOR_L: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, NP: tl.constexpr, DRAW: tl.constexpr, SCORE: tl.constexpr,
    MEAN: tl.constexpr,
):  # fmt: skip
    """Write action [rows, A], index, q, flags [rows]; H and L without a name are the critic's.

    With `marks` nothing is chosen: action [rows, N, A], q and marks [rows, N] are every candidate's, see
    `choose.choose`.
    """
    G: tl.constexpr = BM // NP
    WIDEST: tl.constexpr = H if H > ACTOR_H else ACTOR_H
    program = tl.program_id(0).to(tl.int64)
    scratch += program * (2 * BM * WIDEST)
    first += program * (BM * (ACTOR_H if ACTOR_H > AP else AP))
    rm = tl.arange(0, BM)
    ra = tl.arange(0, AP)
    ro = tl.arange(0, OP)
    inside = ra < A
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, G), tl.num_programs(0), disable_licm=True):
        group = (tile * G + tl.arange(0, G)).to(tl.int64)
        there = group < rows
        row = (tile * G + rm // NP).to(tl.int64)
        best = tl.zeros((G,), tl.float32)
        best_q = tl.zeros((G,), tl.float32)
        best_index = tl.zeros((G,), tl.int32)
        clipped = tl.zeros((G,), tl.int32)
        good_ones = tl.zeros((G,), tl.int32)
        for begin in tl.range(0, candidates, NP, disable_licm=True):
            candidate = begin + rm % NP
            live = (row < rows) & (candidate < candidates)
            if table is None:
                if DRAW:
                    z = _drawn(key, row, candidate, first, A, AP, BM)
                else:
                    at = (row * candidates + candidate)[:, None] * A + ra[None, :]
                    z = tl.load(noise + at, mask=live[:, None] & inside[None, :], other=0.0)
                z = tl.where(live[:, None] & inside[None, :], z, 0.0)
                z = denoise(
                    obs, row, live, z, actor_w, actor_v, scratch, first, steps, h, log2_steps,
                    O, A, AP, ACTOR_H, ACTOR_L, BM, BN, BK, STAGES, PRECISION,
                )  # fmt: skip
            else:
                at = noise + (row * candidates + candidate)[:, None] * (draws * A) + ra[None, :]
                own = live[:, None] & inside[None, :]
                z = tl.load(at, mask=own & (begins != 0), other=0.0)
                z = denoise(
                    obs, row, live, z, actor_w, actor_v, scratch, first, steps, h, log2_steps,
                    O, A, AP, ACTOR_H, ACTOR_L, BM, BN, BK, STAGES, PRECISION,
                    table=table, more=at + begins * A, there=own, temperature=temperature,
                    squash=squash, noise_clip=noise_clip, clip=clip,
                )  # fmt: skip
            z = tl.where(inside[None, :], z, 0.0)  # a NaN spreads to the padding
            good = live & (tl.sum(tl.where(_finite(z), 0, 1), 1) == 0)
            lowest = tl.load(low + ra, mask=inside, other=0.0)[None, :]
            highest = tl.load(high + ra, mask=inside, other=0.0)[None, :]
            # a NaN stays one
            bounded = tl.where(z < lowest, lowest, tl.where(z > highest, highest, z))
            changed = tl.max(tl.where(bounded != z, 1, 0), 1)
            value = tl.zeros((BM,), tl.float32)
            if SCORE:
                for e in tl.range(0, E, disable_licm=True):
                    told = k
                    if table is None:
                        told = steps * 1.0
                    one = score(
                        obs, row, live, bounded, told,
                        critic_w + e * ((O + A + 1 + (L - 1) * H + 1) * H),
                        critic_v + e * (3 * L * H + 1), scratch, scratch, first, rows,
                        O, A, AP, OP, H, L, BM, BN, BE, BK, STAGES, PRECISION, False,
                    )  # fmt: skip
                    if MEAN:
                        value += one
                    else:
                        less = (one < value) | (one != one) | (e == 0)
                        value = tl.where(less & (value == value), one, value)
                if MEAN:
                    value /= E
                if marks is None:
                    good = good & (_finite(value) | (candidates == 1))
            if marks is not None:
                at = row * candidates + candidate
                tl.store(
                    action + at[:, None] * A + ra[None, :], bounded,
                    mask=live[:, None] & inside[None, :],
                )  # fmt: skip
                tl.store(marks + at, good.to(tl.int32) + 2 * changed, mask=live)
                if SCORE:
                    tl.store(q + at, value, mask=live)
            else:
                rank = tl.where(good & _finite(value), value, -float("inf"))

                rank = _of_group(rank, G, NP)
                number = _of_group(candidate, G, NP)
                top = tl.max(rank, 1)
                winner = tl.min(tl.where(rank == top[:, None], number, 2147483647), 1)
                won = number == winner[:, None]
                take = (top > best) | (begin == 0)
                best = tl.where(take, top, best)
                best_index = tl.where(take, winner, best_index)
                top = tl.sum(tl.where(won, _of_group(value, G, NP), 0.0), 1)
                best_q = tl.where(take, top, best_q)
                edge = tl.max(tl.where(won, _of_group(changed, G, NP), 0), 1)
                clipped = tl.where(take, edge, clipped)
                bounded = tl.reshape(bounded, [G, NP, AP])
                bounded = tl.sum(tl.where(won[:, :, None], bounded, 0.0), 1)
                tl.store(
                    action + group[:, None] * A + ra[None, :], bounded,
                    mask=(there & take)[:, None] & inside[None, :],
                )  # fmt: skip
                good_ones += tl.sum(_of_group(good.to(tl.int32), G, NP), 1)

        if marks is None:
            seen = tl.zeros((G,), tl.int32)
            for o in range(0, O, OP):
                x = tl.load(
                    obs + group[:, None] * O + (o + ro)[None, :],
                    mask=there[:, None] & (o + ro < O)[None, :], other=0.0,
                )  # fmt: skip
                seen += tl.sum(tl.where(_finite(x), 0, 1), 1)
            some = good_ones > 0
            flag = tl.where(clipped > 0, 8, 0) + tl.where(good_ones < candidates, 16, 0)
            flag = tl.where(seen > 0, 1, tl.where(some, flag, 2))
            if SCORE:
                best_q = tl.where(some, best_q, -float("inf"))
            else:
                best_q += float("nan")
            tl.store(index + group, best_index.to(tl.int64), mask=there)
            tl.store(q + group, best_q, mask=there)
            tl.store(flags + group, flag, mask=there)


# ---- launchers


def candidates_at_once(rows: int, candidates: int, tile: Tile, programs: int) -> int:
    """Choose NP, a power of two up to BM: the one that lets `programs` programs end soonest."""

    def rounds(np: int) -> int:
        groups = triton.cdiv(rows, tile.BM // np)
        return triton.cdiv(groups, programs) * triton.cdiv(candidates, np)

    powers = [1 << i for i in range(tile.BM.bit_length())]
    return min(reversed(powers), key=rounds)


_OF_TABLES = ["table", "temperature", "draws", "begins", "squash", "noise_clip", "clip", "k"]


@lru_cache(maxsize=1024)
def _build(
    actor: Sizes, critic: Sizes | None, precision: str, tile: Tile, at_once: int,
    draw: bool, score_them: bool, mean: bool, tabled: bool = False, keep: bool = False,
) -> Compile:  # fmt: skip
    """Return the kernel as a launch builds it; without a critic for one that scores nothing."""
    dtype, dot = PRECISIONS[precision]
    number = POINTERS[dtype]
    types = dict.fromkeys(("actor_w", "critic_w", "scratch"), number)
    types |= {"index": "*i64", "flags": "*i32", "key": "*i64", "marks": "*i32"}
    types |= dict.fromkeys(_VARYING, "i32")
    types |= dict.fromkeys(("h", "log2_steps", "noise_clip", "clip", "k"), "fp32")
    constexprs: dict[str, Any] = {
        "E": critic.members if critic else 0,
        **pieces(critic or actor, tile),
        "ACTOR_H": actor.hidden,
        "ACTOR_L": actor.depth,
        "BM": tile.BM,
        "BN": tile.BN,
        "BK": tile.BK,
        "STAGES": tile.stages,
        "PRECISION": dot,
        "NP": at_once,
        "DRAW": draw,
        "SCORE": score_them,
        "MEAN": mean,
    }
    absent = ["noise" if draw else "key"]
    absent += ["h", "log2_steps"] if tabled else _OF_TABLES
    absent += [] if critic else ["critic_w", "critic_v"]
    absent += ["index", "flags"] if keep else ["marks"]
    absent += ["q"] if keep and not score_them else []
    constexprs |= dict.fromkeys(absent)
    kernel = _best_of_n
    signature = {a: types.get(a, "*fp32") for a in kernel.arg_names if a not in constexprs}
    flags = {"draw": draw, "score": score_them, "mean": mean}
    flags |= {"table": tabled, "alone": critic is None, "keep": keep}
    return Compile(
        "_".join(["best_of_n", *(flag for flag, on in flags.items() if on)]),
        kernel,
        signature,
        constexprs,
        {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True},
        tuple(a for a, kind in signature.items() if kind[0] == "*" and a not in _UNALIGNED),
    )


def aot(actor: Sizes, critic: Sizes, precision: str, tile: Tile) -> list[Compile]:
    """Return the kernels that a sampler launches, to be built ahead of time."""
    shared, alone = (actor, critic, precision, tile), (actor, None, precision, tile)
    few = min(8, tile.BM)
    # each of the kernel's ways alone, and together; how Q is aggregated meets no other way
    return [
        _build(*shared, few, draw=True, score_them=True, mean=True),
        _build(*shared, few, draw=True, score_them=True, mean=False),
        _build(*shared, 1, draw=True, score_them=False, mean=True),
        _build(*alone, 1, draw=True, score_them=False, mean=True),
        _build(*shared, few, draw=False, score_them=True, mean=True, tabled=True),
        _build(*shared, few, draw=True, score_them=True, mean=True, keep=True),
        _build(*shared, few, draw=False, score_them=True, mean=True, tabled=True, keep=True),
        _build(*alone, few, draw=False, score_them=False, mean=True, tabled=True, keep=True),
    ]


def best_of_n(
    actor: Packed,
    critic: Packed | None,
    obs: Tensor,
    noise: Tensor,
    candidates: int,
    steps: int,
    q_agg: str,
    low: Tensor,
    high: Tensor,
    *,
    want_q: bool = True,
    table: Table | None = None,
    rule: Rule | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample N candidates an observation, keep the one with the highest Q(x, a, k).

    Parameters
    ----------
    actor, critic
        The two networks, of one precision. Without a critic there is no Q, and N is 1 or the rule centre.
    obs
        float32 [B, O], contiguous, B at least 0.
    noise
        float32 [B, N, A], or [B, N, S, A] with a table of S > 1 draws, contiguous; or a key: int64 [3]
        of seed, call and number of the first row.
    candidates, steps
        N and M, at least 1.
    q_agg
        How the ensemble is aggregated: mean or min.
    low, high
        float32 [A]: an action is clipped to them once, at the end, and that is what is scored.
    want_q
        Whether Q is wanted even if N = 1, where choosing does not need it.
    table
        The M steps; None: a shortcut actor's, each z <- z + s(z, i/M, 1/M | x)/M, and k = M.
    rule
        Another way to choose, of N > 1; None: the highest Q.
    tile
        How the work is cut; None: by the device.

    Returns
    -------
    action, index, q, flags
        float32 [B, A], int64 [B], float32 [B] and int32 [B]. Ties go to the smallest index. A candidate
        whose action or, where choosing reads it, whose Q is not finite never wins against a good one;
        where none is good, index 0 wins and q is -inf (NaN where it was not computed). flags is a sum
        of CLIPPED and CANDIDATE_REJECTED, or NONFINITE_RESULT alone, or NONFINITE_OBS alone.
    """
    rule = rule if candidates > 1 else None
    choosing = candidates > 1 and (rule is None or rule.name in READ_Q)
    if (table is not None or rule is not None) and not choosing and not want_q:
        critic = None  # one build for all that score nothing
    sizes, B, device = actor.sizes, len(obs), obs.device
    of_critic = None if critic is None else critic.sizes
    hidden = sizes.hidden if of_critic is None else of_critic.hidden
    A, widest = sizes.act, max(hidden, sizes.hidden)
    if tile is None:
        common = math.gcd(hidden, sizes.hidden)
        tile = choose_tile(architecture(device), actor.precision, common, B * candidates)
    action, q = obs.new_empty((B, A)), obs.new_empty(B)
    index = torch.empty(B, dtype=torch.int64, device=device)
    flags = torch.empty(B, dtype=torch.int32, device=device)
    if B == 0:
        return action, index, q, flags
    most = PROGRAMS * processors(device)
    at_once = candidates_at_once(B, candidates, tile, most)
    if table is not None and noise.dtype == torch.int64:
        noise = normals_of(noise, B, candidates, A, table.draws)
    draw = noise.dtype == torch.int64
    score_them = critic is not None and (choosing or want_q)
    build = _build(
        *(sizes, of_critic, actor.precision, tile, at_once, draw, score_them),
        *(q_agg == "mean" or not score_them, table is not None, rule is not None),
    )
    programs = min(triton.cdiv(B, tile.BM // at_once), most)
    args: dict[str, Any] = {
        "action": action, "index": index, "q": q, "flags": flags, "obs": obs,
        "key" if draw else "noise": noise, "low": low, "high": high,
        "actor_w": actor.weights, "actor_v": actor.vectors,
        "scratch": actor.weights.new_empty(programs * 2 * tile.BM * widest),
        "first": obs.new_empty(programs * tile.BM * max(sizes.hidden, build.constexprs["AP"])),
        "rows": B, "candidates": candidates, "steps": steps,
    }  # fmt: skip
    if critic is not None:
        args |= {"critic_w": critic.weights, "critic_v": critic.vectors}
    if table is None:
        args |= {"h": 1.0 / steps, "log2_steps": math.log2(steps)}
    else:
        args |= {"table": table.steps, "temperature": table.temperature, "draws": table.draws}
        args |= {"begins": int(table.begins), "squash": int(table.squash)}
        args |= {"noise_clip": table.noise_clip, "clip": table.clip}
        args |= {"k": float(steps if table.k is None else table.k)}
    if rule is None:
        build.kernel[(programs,)](**args, **build.constexprs, **build.options)
        return action, index, q, flags
    every, of_every = obs.new_empty((B, candidates, A)), obs.new_empty((B, candidates))
    marks = torch.empty((B, candidates), dtype=torch.int32, device=device)
    args |= {"action": every, "q": of_every, "marks": marks}
    args = {arg: args[arg] for arg in build.signature}
    build.kernel[(programs,)](**args, **build.constexprs, **build.options)
    return choose(rule, obs, every, of_every if score_them else None, marks)
