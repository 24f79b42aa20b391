"""Every operation in plain PyTorch: the definition, and the fallback of every faster backend.

Shape letters: B rows (a batch), O observation, A action, H hidden, E critics, N candidates, M Euler
steps. An actor is a list of layers (w [in, out], b [out]); a critic ensemble is a list of layers
(w [E, in, out], b [E, out], g [E, out], c [E, out]) whose last layer has only (w, b). Any floating
dtype; tests run these in float64.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

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


def denoise(actor: Layers, obs: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Return z_1 [B, A] after M = `steps` Euler steps from noise [B, A], before any clip."""
    z = noise
    log2_steps = obs.new_full(obs.shape[:1], math.log2(steps))
    for i in range(steps):
        t = obs.new_full(obs.shape[:1], i / steps)
        z = z + velocity(actor, obs, z, t, log2_steps) / steps
    return z


def rollout(actor: Layers, obs: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Sample actions [B, A] in [-1, 1]: M Euler steps z <- z + s(z, i/M, 1/M | x)/M, then one clip.

    Parameters
    ----------
    actor
        Layers as in `velocity`.
    obs, noise
        Observations [B, O] and standard normal noise z_0 [B, A].
    steps
        M, a step count that the actor is trained for.
    """
    return denoise(actor, obs, noise, steps).clamp(-1, 1)


def critic_ensemble(critic: Layers, obs: Tensor, actions: Tensor, steps: int) -> Tensor:
    """Q_phi(x, a, k) of every member of the ensemble.

    Each hidden layer is linear, GELU (tanh form), then LayerNorm (eps 1e-6).

    Parameters
    ----------
    critic
        Layers (w, b, g, c) and a last (w, b); the first reads [x, a, k] (`layout.Layout.critic`).
    obs, actions
        [B, O] and [B, A].
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


def best_of_n(
    actor: Layers,
    critic: Layers,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    q_agg: str = "mean",
    low: Tensor | float = -1.0,
    high: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample N candidates an observation and keep the one with the highest Q(x, a, M).

    Candidate n of observation b starts from noise[b, n] and is scored with observation b, for any
    batch size (the authors' release pairs them wrongly when B > 1: corrected here).

    Parameters
    ----------
    actor, critic
        Layers as in `velocity` and `critic_ensemble`.
    obs, noise
        Observations [B, O] and standard normal noise [B, N, A].
    steps
        M, also the k that the critic is asked about.
    q_agg
        How the ensemble is aggregated: mean or min.
    low, high
        Action bounds, scalars or [A].

    Returns
    -------
    actions, index, q
        Winning actions [B, A], winning candidates [B] (int64; ties go to the smallest) and their
        aggregated Q [B]. A candidate whose action or Q is not finite never wins against one that is.
    """
    B, N, A = noise.shape
    O = obs.shape[-1]
    rows = obs.unsqueeze(1).expand(B, N, O).reshape(B * N, O)
    z = denoise(actor, rows, noise.reshape(B * N, A), steps)
    q = aggregate(critic_ensemble(critic, rows, clip(z, low, high), steps), q_agg)
    return choose(z.view(B, N, A), q.view(B, N), low, high)


def clip(z: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return z [..., A] within [low, high], scalars or [A]."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        low = torch.as_tensor(low, dtype=z.dtype, device=z.device)
        high = torch.as_tensor(high, dtype=z.dtype, device=z.device)
        return z.clamp(low, high)
    return z.clamp(low, high)


def choose(
    z: Tensor, q: Tensor, low: Tensor | float, high: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose among candidates z [B, N, A], not clipped, by q [B, N]: see `best_of_n`."""
    B, N, A = z.shape
    q = torch.where(z.isfinite().all(-1) & q.isfinite(), q, -torch.inf)
    best = q.amax(1, keepdim=True)
    # argmax leaves open which of equal entries it returns: the smallest index is the rule here
    take = torch.where(q == best, torch.arange(N, device=q.device), N).amin(1, keepdim=True)
    won = z.gather(1, take.unsqueeze(-1).expand(B, 1, A)).squeeze(1)
    return clip(won, low, high), take.squeeze(1), q.gather(1, take).squeeze(1)


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
) -> Tensor:
    """Clip by the global norm, one Adam step, then the EMA of the targets; all in place.

    scale = min(1, clip_norm / norm); m <- b1 m + (1-b1) g; v <- b2 v + (1-b2) g^2;
    p <- p - lr m^ / (sqrt(v^) + eps) with the bias-corrected m^, v^; target <- (1-tau) target + tau p.

    Parameters
    ----------
    params, grads, first, second, targets
        Tensors of one network, in the same order and of the same shapes. `grads` is used up.
    step
        Number of this step, from 1; an int64 scalar on the parameters' device is never read by the host.
    more_grads
        A second part of the gradient, added to `grads` first; empty: none.

    Returns
    -------
    Tensor
        The gradient's global norm before the clip, a scalar.
    """
    for g, more in zip(grads, more_grads, strict=False):
        g.add_(more)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
    scale = (clip_norm / norm).clamp(max=1.0)
    step_size, root = _corrections(step, lr, b1, b2, norm.dtype)
    for p, g, m, v, target in zip(params, grads, first, second, targets, strict=True):
        g.mul_(scale)
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        change = v.sqrt().div_(root).add_(eps)
        if isinstance(step_size, Tensor):
            p.sub_(torch.div(m, change).mul_(step_size))
        else:
            p.addcdiv_(m, change, value=-step_size)
        target.lerp_(p, tau)
    return norm


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


def normals(key: Tensor, rows: int, candidates: int, act_dim: int) -> Tensor:
    """Standard normal noise z_0, each number a function of (key, row, candidate, a) alone.

    Philox4x32-10 and Box-Muller, the numbers of every sampler: counter = (a // 4, candidate,
    row_offset + row, call mod 2^32), float64 rounded to float32.

    Parameters
    ----------
    key
        int64 [3]: seed (the bits of a uint64), call, row_offset; read on its own device, so that a
        captured graph reads it afresh at every replay.
    rows, candidates, act_dim
        B, N and A.

    Returns
    -------
    Tensor
        float32 [B, N, A].
    """
    quads = -(-act_dim // 4)
    shape = (rows, candidates, quads)
    count = [torch.arange(n, device=key.device) for n in shape]
    counter = (count[2], count[1].view(-1, 1), (count[0] + key[2]).view(-1, 1, 1), key[1])
    words = _philox([(c & _LOW32).expand(shape) for c in counter], key[0])
    u, v = torch.stack(words[0::2], -1) >> 8, torch.stack(words[1::2], -1) >> 8
    radius = torch.sqrt(-2 * torch.log((u + 1).double() * 2.0**-24))
    angle = v.double() * (2 * math.pi * 2.0**-24)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return pairs.view(rows, candidates, 4 * quads)[..., :act_dim].float().contiguous()


def words(key: Tensor, count: int) -> Tensor:
    """Uniform 32-bit words, int64 [count] in [0, 2^32): a stream apart from that of `normals`.

    Word i is word i mod 4 of Philox4x32-10 at counter = (i // 4, 2^32 - 1, row_offset mod 2^32,
    call mod 2^32); no sampler has a candidate 2^32 - 1. `key` as in `normals`.
    """
    quads = torch.arange(-(-count // 4), device=key.device)
    counter = (quads, torch.full_like(quads, _LOW32), key[2], key[1])
    out = _philox([(c & _LOW32).expand(quads.shape) for c in counter], key[0])
    return torch.stack(out, -1).view(-1)[:count]
