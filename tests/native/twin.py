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
    chosen = noise[np.arange(len(obs)), info.candidate][:, None]
    exact, alone = (
        best_of_n(policy, obs, z, steps, temperature=temperature, dtype=np.float64)
        for z in (noise, chosen)
    )
    return SimpleNamespace(
        action=np.abs(action - alone.action).max(initial=0),
        q=np.abs(info.q - alone.q).max(initial=0),
        regret=(exact.q - alone.q).max(initial=0),
        relative_regret=((exact.q - alone.q) / np.abs(exact.q)).max(initial=0),
    )
