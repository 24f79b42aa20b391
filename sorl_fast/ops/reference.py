"""Every operation in plain PyTorch: the definition, and the fallback of every faster backend.

Shape letters: B rows (a batch), O observation, A action, H hidden, E critics, N candidates, M Euler
steps. An actor is a list of layers (w [in, out], b [out]); a critic ensemble is a list of layers
(w [E, in, out], b [E, out], g [E, out], c [E, out]) whose last layer has only (w, b). Any floating
dtype; tests run these in float64.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from ..status import Status
from .rules import Rule, highest
from .schedule import Schedule, follow

Layers = Sequence[tuple[Tensor, ...]]

LAYER_NORM_EPS = 1e-6
_LOW32 = 0xFFFFFFFF


def flat(layers: Layers) -> list[Tensor]:
    """Return a network's parameters one after another."""
    return [x for layer in layers for x in layer]


def velocity(actor: Layers, obs: Tensor, z: Tensor, t: Tensor, log2_steps: Tensor) -> Tensor:
    """Shortcut model s_theta(z, t, h | x): the velocity of one Euler step (ALGORITHM: Networks).

    Parameters
    ----------
    actor
        Layers (w, b); the first reads [x, z, t, log2(1/h)] (`layout.Layout.actor`).
    obs, z
        Observations x [B, O] and partly denoised actions z_t [B, A].
    t, log2_steps
        Time in [0, 1] and log2(1/h), each [B]; both enter as raw numbers.

    Returns
    -------
    Tensor
        Velocity [B, A]; one Euler step is z + h * velocity.
    """
    x = torch.cat([obs, z, t.unsqueeze(-1), log2_steps.unsqueeze(-1)], -1)
    for w, b in actor[:-1]:
        x = gelu(torch.addmm(b, x, w), approximate="tanh")
    w, b = actor[-1]
    return torch.addmm(b, x, w)


def log2_fed(steps: int, log2_steps: float | None) -> float:
    """Return what a rollout of M = `steps` feeds as log2(1/h): log2(M) unless told otherwise."""
    return math.log2(steps) if log2_steps is None else log2_steps


def denoise(
    actor: Layers, obs: Tensor, noise: Tensor, steps: int, log2_steps: float | None = None
) -> Tensor:
    """Return z_1 [B, A] after M = `steps` Euler steps from noise [B, A], before any clip."""
    z = noise
    fed = obs.new_full(obs.shape[:1], log2_fed(steps, log2_steps))
    for i in range(steps):
        t = obs.new_full(obs.shape[:1], i / steps)
        z = z + velocity(actor, obs, z, t, fed) / steps
    return z


def rollout(
    actor: Layers, obs: Tensor, noise: Tensor, steps: int, log2_steps: float | None = None
) -> Tensor:
    """Sample actions [B, A] in [-1, 1]: M Euler steps z <- z + s(z, i/M, 1/M | x)/M, then one clip.

    Parameters
    ----------
    actor
        Layers as in `velocity`.
    obs, noise
        Observations [B, O] and standard normal noise z_0 [B, A].
    steps
        M, a step count that the actor is trained for.
    log2_steps
        What the actor reads as log2(1/h) at every step; None: log2(M). A flow actor, which knows no
        step size, is fed 0.
    """
    return denoise(actor, obs, noise, steps, log2_steps).clamp(-1, 1)


def critic_ensemble(critic: Layers, obs: Tensor, actions: Tensor, steps: int) -> Tensor:
    """Q_phi(x, a, k) of every member of the ensemble.

    Each hidden layer is linear, GELU (tanh form), then LayerNorm (eps 1e-6).

    Parameters
    ----------
    critic
        Layers (w, b, g, c) and a last (w, b); the first reads [x, a, k] (`layout.Layout.critic`).
    obs, actions
        [B, O] and [B, A]; A = 0 makes it V(x).
    steps
        k, the raw number of Euler steps that the action was or will be sampled with.

    Returns
    -------
    Tensor
        Q values [E, B].
    """
    k = obs.new_full((*obs.shape[:1], 1), float(steps))
    x = torch.cat([obs, actions, k], -1).expand(critic[0][0].shape[0], -1, -1)
    for w, b, g, c in critic[:-1]:
        x = gelu(torch.baddbmm(b.unsqueeze(1), x, w), approximate="tanh")
        x = layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS) * g.unsqueeze(1) + c.unsqueeze(1)
    w, b = critic[-1]
    return torch.baddbmm(b.unsqueeze(1), x, w).squeeze(-1)


def aggregate(q: Tensor, q_agg: str) -> Tensor:
    """Reduce Q values [E, ...] over the ensemble by `q_agg`, mean or min."""
    return q.mean(0) if q_agg == "mean" else q.amin(0)


class Best(NamedTuple):
    """The winners of best-of-N."""

    action: Tensor  # [B, A], within the bounds; means nothing where no candidate was good
    candidate: Tensor  # [B], int64: the winner; ties go to the smallest
    q: Tensor  # [B], its aggregated Q: -inf where none was good, NaN where it was not computed
    status: Tensor  # [B], int32: bits of Status but HELD; one of the first two where none was good


def best_of_n(
    actor: Layers,
    critic: Layers,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    q_agg: str = "mean",
    low: Tensor | float = -1.0,
    high: Tensor | float = 1.0,
    *,
    want_q: bool = True,
    schedule: Schedule | None = None,
    temperature: Tensor | None = None,
    rule: Rule | None = None,
) -> Best:
    """Sample N candidates an observation and keep one, by default that with the highest Q(x, a, k).

    Candidate n of observation b starts from noise[b, n] and is scored with observation b, for any
    batch size (the authors' release pairs them wrongly when B > 1: corrected here). A candidate whose
    action (before the clip) or, where the rule reads it, Q is not finite never wins against one that is
    good. With N = 1 there is nothing to choose: Q rejects nothing.

    Parameters
    ----------
    actor, critic
        Layers as in `velocity` and `critic_ensemble`. No layers of a critic: N is 1 or the rule
        centre, and Q NaN.
    obs, noise
        Observations [B, O] and standard normal noise [B, N, A], or [B, N, S, A] with a schedule of S > 1
        draws.
    steps
        M, also the k that the critic is asked about unless the schedule has another.
    q_agg
        How the ensemble is aggregated: mean or min.
    low, high
        Action bounds, scalars or [A]: clipped to once, at the end, and that is what is scored.
    want_q
        Whether Q is wanted even if N = 1, where choosing does not need it.
    schedule, temperature
        The M steps where they are not `denoise`'s, and what multiplies their noise: one number on the
        device.
    rule
        How one is chosen; None: the highest Q.
    """
    make: Callable[..., Tensor] = functools.partial(denoise, actor)
    score = functools.partial(critic_ensemble, critic) if critic else None
    if schedule is not None:
        make = steps_of(functools.partial(velocity, actor), schedule, temperature)
        steps = schedule.k or steps
    options = {"want_q": want_q} | choosing(rule, len(obs))
    return best_of_parts(make, score, obs, noise, steps, q_agg, low, high, **options)


def steps_of(
    velocity: Callable[..., Tensor], schedule: Schedule, temperature: Tensor | None
) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Return what makes candidates by a schedule, as `best_of_parts` calls it."""

    def make(obs: Tensor, noise: Tensor, steps: int) -> Tensor:
        scale = obs.new_ones(()) if temperature is None else temperature
        return follow(velocity, schedule, obs, noise, scale)

    return make


def choosing(rule: Rule | None, rows: int) -> dict[str, Any]:
    """Return what `best_of_parts` chooses by, for B = `rows` observations."""
    if rule is None:
        return {}
    u = None if rule.key is None else uniforms(rule.key, rows)
    return {"pick": rule.picks(u), "reads_q": rule.reads_q}


def best_of_parts(
    denoise: Callable[[Tensor, Tensor, int], Tensor],
    score: Callable[[Tensor, Tensor, int], Tensor] | None,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    q_agg: str,
    low: Tensor | float,
    high: Tensor | float,
    *,
    want_q: bool,
    pick: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda actions, q, good: highest(q, good),
    reads_q: bool = True,
) -> Best:
    """Do what `best_of_n` does, of `denoise` and `critic_ensemble` with their networks given.

    They may be any that make candidates [B N, A] of noise [B, N, ...], and Q [E, B N] of those; without
    `score` there is no Q, and N is 1 where choosing reads it. `pick` is another rule of choosing: of
    actions [B, N, A], Q [B, N] and good [B, N] it returns the index [B], and `reads_q` says whether of Q.
    """
    B, N, *draw = noise.shape
    rows = obs.repeat_interleave(N, 0)
    z = denoise(rows, noise.reshape(B * N, *draw), steps)
    actions = clip(z, low, high)
    good = z.isfinite().all(1)
    choosing = N > 1 and reads_q
    scored = score is not None and (choosing or want_q)
    q = z.new_full((B * N,), torch.nan)
    if score is not None and scored:
        q = aggregate(score(rows, actions, steps), q_agg)
    if choosing:
        good = good & q.isfinite()

    good, q = good.view(B, N), q.view(B, N)
    index = (
        pick(actions.view(B, N, z.shape[1]), q, good)
        if N > 1
        else z.new_zeros(B, dtype=torch.int64)
    )
    won = torch.arange(B, device=z.device) * N + index
    some, best_q = good.any(1), q.gather(1, index[:, None])[:, 0]
    action = actions[won]
    status = torch.where((action != z[won]).any(1), Status.CLIPPED, 0)
    status = status | torch.where(good.all(1), 0, Status.CANDIDATE_REJECTED)
    status = torch.where(some, status, Status.NONFINITE_RESULT)
    status = torch.where(obs.isfinite().all(1), status, Status.NONFINITE_OBS)
    if scored:
        best_q = torch.where(some, best_q, -torch.inf)
    return Best(action, index, best_q, status.to(torch.int32))


def clip(z: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return z [..., A] within [low, high], scalars or [A]."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low = torch.as_tensor(low, dtype=z.dtype, device=z.device)
        high = torch.as_tensor(high, dtype=z.dtype, device=z.device)
        return z.clamp(low, high)
    return z.clamp(low, high)


def adam_ema_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    targets: Sequence[Tensor],
    step: int | Tensor,
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
    params, grads, first, second, targets
        Tensors of one network, in the same order and of the same shapes. `grads` is used up. Without
        targets there is no EMA.
    step
        Number of this step, from 1; an int64 scalar on the parameters' device is never read by the host.
    more_grads
        A second part of the gradient, added to `grads` first; empty: none.
    clip_norm
        Infinite: no clip.
    ema_before
        Whether the targets follow the parameters as they were before the step.

    Returns
    -------
    Tensor
        The gradient's global norm before the clip, a scalar.
    """
    for g, more in zip(grads, more_grads, strict=False):
        g.add_(more)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
    scale = torch.where(norm <= clip_norm, 1.0, clip_norm / norm)  # NaN is neither
    if ema_before:
        _ema(params, targets, tau)
    step_size, root = _corrections(step, lr, b1, b2, norm.dtype)
    for p, g, m, v in zip(params, grads, first, second, strict=True):
        g.mul_(scale)
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        change = v.sqrt().div_(root).add_(eps)
        if isinstance(step_size, Tensor):
            p.sub_(torch.div(m, change).mul_(step_size))
        else:
            p.addcdiv_(m, change, value=-step_size)
    if not ema_before:
        _ema(params, targets, tau)
    return norm


def _ema(params: Sequence[Tensor], targets: Sequence[Tensor], tau: float) -> None:
    if targets:
        for target, p in zip(targets, params, strict=True):
            target.lerp_(p, tau)


def _corrections(
    step: int | Tensor, lr: float, b1: float, b2: float, dtype: torch.dtype
) -> tuple[float | Tensor, float | Tensor]:
    """Adam's step size and the root of its second correction; float64 until they are done."""
    if not isinstance(step, Tensor):
        return lr / (1 - b1**step), math.sqrt(1 - b2**step)
    count = step.double()
    return (lr / (1 - b1**count)).to(dtype), (1 - b2**count).sqrt().to(dtype)


def _philox(counter: Sequence[Tensor], seed: Tensor) -> list[Tensor]:
    """Philox4x32-10 of four counter words (int64, below 2^32) under an int64 seed: four words."""
    c0, c1, c2, c3 = counter
    low, high = seed & _LOW32, (seed >> 32) & _LOW32
    for _ in range(10):
        # the 64 bits of a product are right, whatever sign int64 gives them
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((right >> 32) & _LOW32) ^ c1 ^ low, right & _LOW32
        c2, c3 = ((left >> 32) & _LOW32) ^ c3 ^ high, left & _LOW32
        low, high = (low + 0x9E3779B9) & _LOW32, (high + 0xBB67AE85) & _LOW32
    return [c0, c1, c2, c3]


def normals(key: Tensor, rows: int, candidates: int, act_dim: int, draws: int = 1) -> Tensor:
    """Standard normal noise, each number a function of (key, row, candidate, draw, a) alone.

    Philox4x32-10 and Box-Muller, the numbers of every sampler: counter = ((draw << 24) + a // 4,
    candidate, row_offset + row, call mod 2^32), float64 rounded to float32. Draw 0 is z_0, draw i + 1
    the noise that step i of a diffusion adds.

    Parameters
    ----------
    key
        int64 [3]: seed (the bits of a uint64), call, row_offset; read on its own device, so that a
        captured graph reads it afresh at every replay.
    rows, candidates, act_dim
        B, N and A.
    draws
        S, from 1 to 256; above 1, A is below 2^26.

    Returns
    -------
    Tensor
        float32 [B, N, A], or [B, N, S, A] where S is above 1.
    """
    quads = -(-act_dim // 4)
    shape = (rows, candidates, draws, quads)
    count = [torch.arange(n, device=key.device) for n in shape]
    counter = (
        count[3] + (count[2].view(-1, 1) << 24),
        count[1].view(-1, 1, 1),
        (count[0] + key[2]).view(-1, 1, 1, 1),
        key[1],
    )
    words = _philox([(c & _LOW32).expand(shape) for c in counter], key[0])
    u, v = torch.stack(words[0::2], -1) >> 8, torch.stack(words[1::2], -1) >> 8
    radius = torch.sqrt(-2 * torch.log((u + 1).double() * 2.0**-24))
    angle = v.double() * (2 * math.pi * 2.0**-24)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    x = pairs.view(rows, candidates, draws, 4 * quads)[..., :act_dim].float()
    return (x if draws > 1 else x[:, :, 0]).contiguous()


def uniforms(key: Tensor, rows: int) -> Tensor:
    """Return u [B] in [0, 1), multiples of 2^-24, float32: what rules of choosing draw by.

    (w >> 8) 2^-24 with w word 0 of Philox4x32-10 at counter = (0, 2^32 - 1, row_offset + row, call mod
    2^32). `key` as in `normals`.
    """
    row = (torch.arange(rows, device=key.device) + key[2]) & _LOW32
    zero = torch.zeros_like(row)
    word = _philox((zero, zero + _LOW32, row, (key[1] & _LOW32).expand(rows)), key[0])[0]
    return (word >> 8) * 2.0**-24


def words(key: Tensor, count: int) -> Tensor:
    """Uniform 32-bit words, int64 [count] in [0, 2^32): a stream apart from that of `normals`.

    Word i is word i mod 4 of Philox4x32-10 at counter = (i // 4, 2^32 - 1, row_offset mod 2^32,
    call mod 2^32); no sampler has a candidate 2^32 - 1. `key` as in `normals`.
    """
    quads = torch.arange(-(-count // 4), device=key.device)
    counter = (quads, torch.full_like(quads, _LOW32), key[2], key[1])
    out = _philox([(c & _LOW32).expand(quads.shape) for c in counter], key[0])
    return torch.stack(out, -1).view(-1)[:count]
