"""The sampler in plain numpy: the definition that every other backend is tested against.

Shape letters: B observations, N candidates, R = B N rows, O observation, A action, H hidden,
E critics, M Euler steps. An actor is a tuple of layers (w [in, out], b [out]); a critic ensemble a
tuple of layers (w [E, in, out], b [E, out], g [E, out], c [E, out]), its last one (w, b) only. The
arithmetic is done in the dtype of what comes in: float32 is the definition, float64 the tests' twin.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..status import Status
from .form import Diffusion, Direct, Form, Tanh, is_residual
from .policy_file import Policy
from .rules import ARGMAX, Rule, pick, scale_of
from .schedule import Plan, Schedule, Step, plan_of, schedule_of

Array = NDArray[np.floating[Any]]
Layers = Sequence[Sequence[Array]]

LAYER_NORM_EPS = 1e-6


class Choice(NamedTuple):
    """The winners of best-of-N, before any action is held."""

    action: Array  # [B, A], in the units and within the bounds where a candidate was left, else undefined
    candidate: NDArray[np.int64]  # [B], the winner, -1 where none was left
    q: Array  # [B], the winner's aggregated Q, NaN where none was left or it was not asked for
    status: NDArray[np.uint32]  # [B], bits of Status without HELD


def gelu(x: Array) -> Array:
    """GELU, tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def layer_norm(x: Array, gain: Array, bias: Array) -> Array:
    """Standardise the last axis (biased variance, eps 1e-6), then scale and shift."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + LAYER_NORM_EPS) * gain + bias


def actor_velocity(actor: Layers, obs: Array, z: Array, t: float, log2_steps: float) -> Array:
    """Shortcut model s_theta(z, t, h | x): the velocity of one Euler step.

    Parameters
    ----------
    actor
        Layers (w, b); the first reads [x, z, t, log2(1/h)] (`layout.Layout.actor`).
    obs, z
        Observations x [R, O], already normalised, and partly denoised actions z_t [R, A].
    t, log2_steps
        Time in [0, 1) and log2(1/h) = log2 M; both enter as raw numbers.

    Returns
    -------
    Array
        Velocity [R, A]; one Euler step is z + h * velocity.
    """
    time = np.empty((len(z), 2), z.dtype)
    time[:] = t, log2_steps
    x = np.concatenate([obs, z, time], axis=1)
    for w, b in actor[:-1]:
        x = gelu(x @ w + b)
    w, b = actor[-1]
    return x @ w + b


def euler(actor: Layers, obs: Array, noise: Array, steps: Sequence[Step]) -> Array:
    """Return z_1 [R, A] after steps z <- z + h s(z, t, h | x) of a `schedule.plan_of`, unclipped."""
    z = noise
    for t, log2_steps, h in steps:
        z = z + h * actor_velocity(actor, obs, z, t, log2_steps)
    return z


def denoise(actor: Layers, obs: Array, noise: Array, steps: int) -> Array:
    """Return z_1 [R, A] after M = `steps` Euler steps z <- z + s(z, i/M, 1/M | x)/M, unclipped."""
    return euler(actor, obs, noise, plan_of(schedule_of(steps), None).steps)


def rollout(
    actor: Layers,
    obs: Array,
    noise: Array,
    steps: int,
    low: Array | float = -1.0,
    high: Array | float = 1.0,
) -> Array:
    """Sample actions [R, A]: `denoise`, then one clip to [low, high], scalars or [A]."""
    return np.clip(denoise(actor, obs, noise, steps), low, high)


def critic_values(critic: Layers, obs: Array, actions: Array, steps: int) -> Array:
    """Q_phi(x, a, k) of every member of the ensemble.

    Parameters
    ----------
    critic
        Layers (w, b, g, c) and a last (w, b); the first reads [x, a, k] (`layout.Layout.critic`).
    obs, actions
        [R, O], already normalised, and [R, A].
    steps
        k, the raw number of Euler steps that the actions were sampled with.

    Returns
    -------
    Array
        Q values [E, R].
    """
    k = np.full((len(actions), 1), steps, actions.dtype)
    x = np.concatenate([obs, actions, k], axis=1)
    for w, b, g, c in critic[:-1]:
        x = layer_norm(gelu(x @ w + b[:, None]), g[:, None], c[:, None])
    w, b = critic[-1]
    return (x @ w + b[:, None])[..., 0]


def finite_part(function: Callable[[Array], Array], x: Array) -> Array:
    """Apply a bounded function to what is finite: a candidate that is not must not pass for one."""
    return np.where(np.isfinite(x), function(x), x)


def clip_finite(x: Array, bound: float | None) -> Array:
    """Clip what is finite to +-bound; None: no clip."""
    return x if bound is None else finite_part(lambda v: np.clip(v, -bound, bound), x)


def one_step(actor: Layers, obs: Array, noise: Array, form: Direct, temperature: float) -> Array:
    """Return `form.Direct`'s or `form.Tanh`'s action [R, A], before the clip to the policy's bounds.

    At a scale of 0 the noise is not read.
    """
    z = noise if form.reads_noise else np.zeros_like(noise)
    f = actor_velocity(actor, obs, z, 0.0, 0.0)
    if isinstance(form, Tanh):
        f = finite_part(np.tanh, f)
    scale = form.noise_scale * temperature
    if form.reads_noise or scale == 0:
        return f
    return f + clip_finite(scale * noise, form.noise_clip)


def diffuse(actor: Layers, obs: Array, noise: Array, form: Diffusion, temperature: float) -> Array:
    """Return `form.Diffusion`'s action [R, A], before the clip to the policy's bounds.

    Parameters
    ----------
    actor
        Layers of `actor_velocity`, or of `score` where the form is residual.
    obs
        [R, O], already normalised.
    noise
        [R, S, A], S = `form.draws`: z_0, then that of the steps. Where temperature s_i is 0 it is not read.
    form, temperature
        The coefficients, and what multiplies the noise of the steps.
    """
    z = noise[:, 0]
    steps = zip(form.times, form.z_scales, form.v_scales, form.noise_scales, strict=True)
    for i, (t, a, b, s) in enumerate(steps):
        v = score(actor, obs, z, t) if form.residual else actor_velocity(actor, obs, z, t, 0.0)
        z = a * z + b * v
        if s * temperature != 0:
            z = z + s * temperature * noise[:, i + 1]
        z = clip_finite(z, form.clip)
    return z


def score(network: Layers, obs: Array, z: Array, t: float) -> Array:
    """IDQL's residual score network: the noise [R, A] that it sees in z at time t.

    f = 2 pi t w; [cos f, sin f] through Dense, swish, Dense; [z, x, that] through Dense, then blocks
    h + Dense(swish(Dense(LayerNorm(h)))), swish and Dense. A layer (w, b, g, c) has its LayerNorm
    before the product.
    """
    (frequencies,), first, second, entry, *blocks, last = network
    f = 2 * math.pi * t * frequencies
    time = _dense(_swish(_dense(np.concatenate([np.cos(f), np.sin(f)], 1), first)), second)
    h = _dense(np.concatenate([z, obs, np.repeat(time, len(z), axis=0)], axis=1), entry)
    for (w, b, g, c), narrow in zip(blocks[0::2], blocks[1::2], strict=True):
        h = h + _dense(_swish(_dense(layer_norm(h, g, c), (w, b))), narrow)
    return _dense(_swish(h), last)


def _dense(x: Array, layer: Sequence[Array]) -> Array:
    w, b = layer
    return x @ w + b


def _swish(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def relu_critic_values(critic: Layers, obs: Array, actions: Array) -> Array:
    """Q(x, a) [E, R] of critics with layers (w [E, in, out], b [E, out]) and ReLU between them."""
    x = np.concatenate([obs, actions], axis=1)
    for w, b in critic[:-1]:
        x = np.maximum(x @ w + b[:, None], 0)
    w, b = critic[-1]
    return (x @ w + b[:, None])[..., 0]


def propose(
    form: Form | None,
    actor: Layers,
    obs: Array,
    noise: Array,
    steps: Sequence[Step],
    temperature: float,
) -> Array:
    """Return candidates [R, A] of a policy's form, before the clip to its bounds.

    `noise` is [R, A], or [R, S, A] where the form draws S > 1 numbers. Only Euler steps read `steps`.
    """
    if isinstance(form, Direct):
        return one_step(actor, obs, noise, form, temperature)
    if isinstance(form, Diffusion):
        return diffuse(
            actor, obs, noise.reshape(len(obs), form.draws, noise.shape[-1]), form, temperature
        )
    return euler(actor, obs, noise, steps)


def aggregate(q: Array, q_agg: str) -> Array:
    """Reduce Q values [E, ...] over the ensemble by `q_agg`, mean or min."""
    value: Array = q.mean(0) if q_agg == "mean" else q.min(0)
    return value


def best_of_n(
    policy: Policy,
    obs: Array,
    noise: Array,
    steps: int | Schedule,
    *,
    rule: Rule = ARGMAX,
    u: Array | None = None,
    want_q: bool = True,
    temperature: float | None = None,
    dtype: DTypeLike = np.float32,
) -> Choice:
    """Sample N candidates an observation and keep one, by default that with the highest Q(x, a, k).

    Candidate n of observation b starts from noise[b, n], and becomes an action by the policy's form.
    That is clipped to the policy's bounds once, at the end, and is what the critic sees, at k = M (see
    `schedule.critic_steps`). A candidate whose action (before the clip) is not finite is rejected, and
    so is one whose Q is not where the rule reads Q; of the others the `rule` chooses. With N = 1 there
    is nothing to choose: Q rejects nothing. A policy without critics has no Q, which is NaN. What is
    chosen is put into the units of the policy's `action_map`, if there is one, at the very last. Its `ood`
    test of the observations, if there is one, changes statuses only.

    Parameters
    ----------
    policy
        Weights, bounds, normaliser, form and q_agg.
    obs, noise
        Observations [B, O] as the environment gives them, and z_0 [B, N, A], or [B, N, S, A] where the
        form draws S > 1 numbers; any value.
    steps
        M equal steps, or a schedule; one that `schedule.check_fit` allows the policy.
    rule
        How the candidate is chosen: `rules.Rule`. One that reads Q needs a critic where N > 1.
    u
        [B], in [0, 1), as `philox.uniforms` makes them; only a rule that draws reads them.
    want_q
        Whether Q is wanted even if choosing does not need it.
    temperature
        What multiplies the noise that the form adds; None: its own.
    dtype
        Of the arithmetic and the result.
    """
    B, N, *draw = noise.shape
    form = policy.form
    if temperature is None:
        temperature = policy.temperature
    plan = plan_for(policy, steps)
    actor, critic = (
        [[a.astype(dtype, copy=False) for a in layer] for layer in layers]
        for layers in (policy.actor, policy.critic)
    )
    low, high = (a.astype(dtype) for a in (policy.action_low, policy.action_high))
    choosing = N > 1 and rule.reads_q
    with np.errstate(all="ignore"):  # a NaN is a status here, never a warning
        x = obs.astype(dtype, copy=False)
        if policy.obs_mean is not None and policy.obs_std is not None:
            x = (x - policy.obs_mean.astype(dtype)) / policy.obs_std.astype(dtype)
        rows = np.repeat(x, N, axis=0)
        flat = noise.reshape(B * N, *draw).astype(dtype, copy=False)
        z = propose(form, actor, rows, flat, plan.steps, temperature)
        actions = np.clip(z, low, high)
        good = np.isfinite(z).all(1)
        q = np.full(B * N, np.nan, dtype)
        if critic and (choosing or want_q):
            values = (
                relu_critic_values(critic, rows, actions)
                if is_residual(form)
                else critic_values(critic, rows, actions, plan.k)
            )
            q = aggregate(values, policy.q_agg)
        if choosing:
            good &= np.isfinite(q)

        good, q = good.reshape(B, N), q.reshape(B, N)
        seen = np.isfinite(obs).all(1)
        left = seen & good.any(1)
        drawn = np.zeros(B) if u is None else u
        candidates, w = actions.reshape(B, N, policy.act_dim), scale_of(low, high)
        best = np.array(
            [
                pick(rule, candidates[b], q[b], good[b], w, drawn[b]) if N > 1 else 0
                for b in range(B)
            ],
            np.int64,
        )
        row = np.arange(B)
        won = row * N + best
        clipped = (actions[won] != z[won]).any(1)
        status = np.where(seen, 0, Status.NONFINITE_OBS)
        status |= np.where(seen & ~left, Status.NONFINITE_RESULT, 0)
        status |= np.where(left & clipped, Status.CLIPPED, 0)
        status |= np.where(left & ~good.all(1), Status.CANDIDATE_REJECTED, 0)
        if policy.ood is not None:
            status |= np.where(policy.ood.beyond(obs, dtype), Status.OUT_OF_DISTRIBUTION, 0)
        units = policy.action_map
        return Choice(
            actions[won] if units is None else units.to_units(actions[won]),
            np.where(left, best, -1),
            np.where(left, q[row, best], np.nan).astype(dtype, copy=False),
            status.astype(np.uint32),
        )


def plan_for(policy: Policy, steps: int | Schedule) -> Plan:
    """Return what a policy's networks read at each step."""
    return plan_of(schedule_of(steps), policy.finest)
