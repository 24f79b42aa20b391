"""What a policy proposes at observations, and what its critics say of it: in plain numpy, batch by batch.

Everything is in the networks' own units: observations as the policy's normaliser makes them, actions
before its `action_map`. Shape letters: B observations, N candidates, O observation, A action, E critics.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..act import reference
from ..act.form import Direct, is_residual
from ..act.policy_file import Policy
from ..act.reference import Array
from ..act.schedule import Schedule, Step

_ROWS = 1 << 13  # through the networks at once: memory

# (x [B, O], z [B, A], t, log2(1/h)) -> velocity [B, A]
Velocity = Callable[[Array, Array, float, float], Array]


def inputs(policy: Policy, obs: Array) -> Array:
    """Return observations [B, O] as the networks read them, float32."""
    x = np.asarray(obs, np.float32)
    if policy.obs_mean is None or policy.obs_std is None:
        return x
    return (x - policy.obs_mean) / policy.obs_std


def draws_nothing(policy: Policy) -> bool:
    """Whether all candidates are the same action: the actor reads no noise, and none is added."""
    form = policy.form
    return isinstance(form, Direct) and not form.reads_noise and policy.temperature == 0


def noise(policy: Policy, rng: np.random.Generator, rows: int, candidates: int) -> Array:
    """Draw what candidates start from: [rows, N, A], or [rows, N, S, A] where the form draws S > 1."""
    S = policy.draws
    shape = (rows, candidates, policy.act_dim) if S == 1 else (rows, candidates, S, policy.act_dim)
    return rng.standard_normal(shape, np.float32)


def propose(policy: Policy, obs: Array, z: Array, steps: Schedule) -> Array:
    """Return the candidates [B, N, A], clipped to the policy's bounds, of `noise` z at obs [B, O]."""
    x, plan = inputs(policy, obs), reference.plan_for(policy, steps)

    def some(rows: Array, flat: Array) -> Array:
        form, temperature = policy.form, policy.temperature
        return reference.propose(form, policy.actor, rows, flat, plan.steps, temperature)

    actions = _in_parts(some, x, z)
    return np.clip(actions, policy.action_low, policy.action_high)


def integrate(policy: Policy, obs: Array, z: Array, count: int) -> Array:
    """Return the actions [B, N, A] of the flow that the finest grid's field defines, by `count` steps.

    Euler steps of dz/dt = s(z, t, 1/m_disc | x), whatever their own size: what the shortcut actor's finest
    steps approximate.
    """
    finest = float(np.log2(policy.m_disc))
    steps = [Step(i / count, finest, 1 / count) for i in range(count)]
    actions = _in_parts(
        lambda rows, flat: reference.euler(policy.actor, rows, flat, steps), inputs(policy, obs), z
    )
    return np.clip(actions, policy.action_low, policy.action_high)


def values(policy: Policy, obs: Array, actions: Array, steps: Schedule) -> Array:
    """Return Q [E, B, N] of every critic of actions [B, N, A] at obs [B, O]; E = 0 without critics."""
    B, N, _ = actions.shape
    if not policy.critic:
        return np.empty((0, B, N), np.float32)
    x, k = inputs(policy, obs), reference.plan_for(policy, steps).k

    def some(rows: Array, flat: Array) -> Array:
        if is_residual(policy.form):
            return reference.relu_critic_values(policy.critic, rows, flat).T
        return reference.critic_values(policy.critic, rows, flat, k).T

    return np.moveaxis(_in_parts(some, x, actions), -1, 0)


def velocity_of(policy: Policy) -> Velocity:
    """Return the velocity field of a policy whose actor is one, of observations as they come."""

    def velocity(obs: Array, z: Array, t: float, log2_steps: float) -> Array:
        return reference.actor_velocity(policy.actor, inputs(policy, obs), z, t, log2_steps)

    return velocity


def _in_parts(f: Callable[[Array, Array], Array], x: Array, per: NDArray[Any]) -> Array:
    """Return f(rows of x [B, O], rows of per [B, N, ...]) as [B, N, ...], some observations at a time."""
    B, N = per.shape[:2]
    size = max(1, _ROWS // N)
    parts = []
    with np.errstate(all="ignore"):  # what is not finite is seen to by whoever counts
        for i in range(0, B, size):
            rows = np.repeat(x[i : i + size], N, axis=0)
            out = f(rows, per[i : i + size].reshape(len(rows), *per.shape[2:]))
            parts.append(out.reshape(-1, N, *out.shape[1:]))
    return np.concatenate(parts) if parts else np.empty((0, N, 0), np.float32)
