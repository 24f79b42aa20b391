"""Tiny experts of random weights, and what else tests of them share."""

import dataclasses

import numpy as np

from sorl_fast.act.form import Tanh
from sorl_fast.act.policy_file import Policy, save
from sorl_fast.envs.bodies import Body
from sorl_fast.layout import Layout


def make_expert(body: Body, *, seed=0, hidden=8, depth=1, **changes) -> Policy:
    """A policy of an expert's form: random, so that it moves, and small."""
    rng = np.random.default_rng(seed)
    O, A = changes.get("obs_dim", body.obs_dim), changes.get("act_dim", body.act_dim)
    layers = Layout.actor(O, A, hidden, depth).build(
        lambda i, letter, shape: rng.normal(0, 0.5, shape).astype(np.float32)
    )
    fields = dict(
        obs_dim=O,
        act_dim=A,
        hidden=hidden,
        depth=depth,
        ensemble=0,
        m_disc=1,
        m_btt=1,
        q_agg="mean",
        actor=tuple(layers),
        critic=(),
        action_low=np.full(A, -1.0),
        action_high=np.full(A, 1.0),
        env=body.online,
        form=Tanh(reads_noise=False),
    )
    return Policy(**(fields | changes))


def save_expert(folder, body: Body, **changes) -> str:
    """Write a tiny expert into a folder; return its path."""
    path = folder / f"{body.name}.safetensors"
    save(path, make_expert(body, **changes))
    return str(path)


def renamed(policy: Policy, env: str) -> Policy:
    return dataclasses.replace(policy, env=env)
