"""Policies with weights as a training starts from, and the float64 twin of a result."""

from types import SimpleNamespace

import numpy as np

from sorl_fast.act.policy_file import Policy
from sorl_fast.act.reference import best_of_n
from sorl_fast.layout import Layout


def make_policy(
    O=28,
    A=5,
    H=64,
    depth=4,
    E=2,
    m_disc=8,
    seed=0,
    normalise=False,
    q_agg="mean",
    bounds=(-1.0, 1.0),
):
    rng = np.random.default_rng(seed)

    def make(i, letter, shape):
        if letter == "w":
            limit = np.sqrt(6 / sum(shape[-2:]))
            return rng.uniform(-limit, limit, shape).astype("f4")
        return rng.normal(float(letter == "g"), 0.1, shape).astype("f4")

    actor = Layout.actor(O, A, H, depth).build(make)
    critic = Layout.critic(O, A, H, depth, E).build(make)
    mean = rng.normal(0, 1, O).astype("f4") if normalise else None
    std = rng.uniform(0.5, 2, O).astype("f4") if normalise else None
    low, high = (np.full(A, b, "f4") for b in bounds)
    return Policy(
        obs_dim=O,
        act_dim=A,
        hidden=H,
        depth=depth,
        ensemble=E,
        m_disc=m_disc,
        m_btt=m_disc,
        q_agg=q_agg,
        env="test-v0",
        action_low=low,
        action_high=high,
        obs_mean=mean,
        obs_std=std,
        config={},
        actor=tuple(actor),
        critic=tuple(critic),
    )


def errors(policy, obs, noise, steps, action, info, temperature=None):
    """Compare with float64: errors of the action and its Q, and how much better the best Q is."""
    key = (policy.digest, obs.tobytes(), noise.tobytes(), noise.shape, str(steps), temperature)
    if key not in _EXACT:
        while len(_EXACT) >= 32:
            del _EXACT[next(iter(_EXACT))]
        _EXACT[key] = every_candidate(policy, obs, noise, steps, temperature)
    actions, q = _EXACT[key]
    rows = np.arange(len(obs))
    chosen, best = q[rows, info.candidate], q.max(1)
    return SimpleNamespace(
        action=np.abs(action - actions[rows, info.candidate]).max(initial=0),
        q=np.abs(info.q - chosen).max(initial=0),
        regret=(best - chosen).max(initial=0),
        relative_regret=((best - chosen) / np.abs(best)).max(initial=0),
    )


# what every instruction set and precision is held against, one after the other
_EXACT = {}


def every_candidate(policy, obs, noise, steps, temperature):
    """Return, in float64, actions [B, N, A] and Q [B, N] of each candidate as the only one."""
    B, N = noise.shape[:2]
    alone = best_of_n(
        policy,
        np.repeat(obs, N, 0),
        noise.reshape(B * N, 1, *noise.shape[2:]),
        steps,
        temperature=temperature,
        dtype=np.float64,
    )
    return alone.action.reshape(B, N, -1), alone.q.reshape(B, N)
