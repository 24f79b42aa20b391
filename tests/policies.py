"""Small policies with weights in closed form: the same on every machine, without any generator."""

from pathlib import Path

import numpy as np

from sorl_fast.act.policy_file import Policy

GOLDEN = Path(__file__).parent / "golden" / "reference_small.npz"


def _filled(shape, salt, fan):
    """Numbers spread over +-sqrt(6 / fan) by a multiplicative hash of their index."""
    index = np.arange(1, np.prod(shape, dtype=int) + 1, dtype=np.uint64) + np.uint64(salt * 7919)
    mixed = index * np.uint64(2654435761) % np.uint64(2**32)
    mixed = (mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(2**32)
    unit = mixed.astype(np.float64) / 2**31 - 1
    return (unit * np.sqrt(6 / fan)).reshape(shape).astype(np.float32)


def make_policy(
    O=3,
    A=2,
    H=8,
    depth=2,
    E=2,
    *,
    m_disc=8,
    q_agg="mean",
    salt=0,
    normalise=False,
    actor_out=None,
    critic_out=None,
    **more,
):
    """Return a Policy; `actor_out`, `critic_out` replace the last bias (and zero the last weights)."""
    actor, critic = [], []
    for i in range(depth + 1):
        fan_in, fan_out = (O + A + 2 if i == 0 else H), (A if i == depth else H)
        w = _filled((fan_in, fan_out), salt + 10 * i, fan_in + fan_out)
        actor.append((w, _filled((fan_out,), salt + 10 * i + 1, 60)))
        fan_in, fan_out = (O + A + 1 if i == 0 else H), (1 if i == depth else H)
        w = _filled((E, fan_in, fan_out), salt + 10 * i + 2, fan_in + fan_out)
        b = _filled((E, fan_out), salt + 10 * i + 3, 60)
        gain = 1 + _filled((E, fan_out), salt + 10 * i + 4, 60)
        shift = _filled((E, fan_out), salt + 10 * i + 5, 60)
        critic.append((w, b) if i == depth else (w, b, gain, shift))
    if actor_out is not None:
        w, b = actor[-1]
        actor[-1] = (np.zeros_like(w), np.broadcast_to(np.float32(actor_out), b.shape))
    if critic_out is not None:
        w, b = critic[-1]
        critic[-1] = (np.zeros_like(w), np.broadcast_to(np.float32(critic_out), b.shape))
    fields = {
        **{"obs_dim": O, "act_dim": A, "hidden": H, "depth": depth, "ensemble": E},
        **{"m_disc": m_disc, "m_btt": m_disc, "q_agg": q_agg, "env": "toy-v0"},
        **{"actor": tuple(actor), "critic": tuple(critic), "config": {"q_coef": 10.0}},
        **{"action_low": np.full(A, -1.0), "action_high": np.full(A, 1.0)},
    }
    if normalise:
        fields["obs_mean"] = _filled((O,), salt + 5, 6)
        fields["obs_std"] = 1 + np.abs(_filled((O,), salt + 6, 6))
    return Policy(**(fields | more))


def golden_policy():
    """Return the golden file's online actor and critic as a Policy, and its samples by name."""
    with np.load(GOLDEN) as file:
        arrays = {k: file[k] for k in file.files}
    actor = tuple((arrays[f"actor/{i}/w"], arrays[f"actor/{i}/b"]) for i in range(5))
    critic = tuple(
        tuple(arrays[f"critic/{i}/{part}"] for part in ("wbgc" if i < 4 else "wb"))
        for i in range(5)
    )
    policy = Policy(
        obs_dim=28,
        act_dim=5,
        hidden=64,
        depth=4,
        ensemble=2,
        m_disc=8,
        m_btt=8,
        q_agg="min" if arrays["meta/q_agg_min"] else "mean",
        actor=actor,
        critic=critic,
        action_low=-np.ones(5),
        action_high=np.ones(5),
    )
    samples = {k: v for k, v in arrays.items() if k.startswith("sample/")}
    return policy, samples
