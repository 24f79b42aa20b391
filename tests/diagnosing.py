"""Run folders to diagnose, made without a training, and a policy whose critic is known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from policies import make_policy

from sorl_fast.act.policy_file import Policy, save
from sorl_fast.config import TrainConfig
from sorl_fast.diagnose.arguments import DiagnoseConfig
from sorl_fast.learn.algorithms import method_config

SMALL = DiagnoseConfig(
    candidates=8, episodes=2, branches=1, observations=12, samples=6, seed=3, workers=1
)


def write_run(
    folder: Path, policy: Policy, data: Path, method: str = "sorl", env: str = "mine"
) -> Path:
    """Write what `diagnose` reads of a run: config.json and the policy."""
    folder.mkdir(parents=True)
    given = {"sorl": {"q_coef": 1.0}, "fql": {"alpha": 1.0}}.get(method, {})
    agent = method_config(method, env, given)
    train = TrainConfig(env=env, data=str(data), out=str(folder), steps=10)
    config = {"method": method, "agent": agent.to_dict(), "train": train.to_dict()}
    (folder / "config.json").write_text(json.dumps(config))
    save(folder / "policy.safetensors", policy)
    return folder


def policy_of(O: int = 4, A: int = 2, **more) -> Policy:
    """Return a shortcut policy that knows 1, 2 and 4 steps, with SORL's settings in its file."""
    return make_policy(O, A, m_disc=4, config={"gamma": 0.9, "flow_eps": 1e-5}, **more)


def biased(policy: Policy, component: int, by: float) -> Policy:
    """Return the policy with critics whose Q follows one component of the action almost alone."""
    O, H = policy.obs_dim, policy.hidden
    first, *others = ([x.copy() for x in layer] for layer in policy.critic)
    first[0][:] = 0
    first[0][:, O + component, 0] = 1
    for layer in (first, *others):
        layer[1][:] = 0
    w = others[-1][0]
    w[:] = 0
    for layer in others[:-1]:
        layer[0][:] = np.eye(H)
    w[:, 0] = by
    return replace(policy, critic=tuple(map(tuple, [first, *others])))
