"""Small policies with weights in closed form: the same on every machine, without any generator."""

from pathlib import Path

import numpy as np

from sorl_fast.act.policy_file import Policy
from sorl_fast.layout import LETTERS, Layout

GOLDEN = Path(__file__).parent / "golden" / "reference_small.npz"


def filled(shape, salt, fan):
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

    def network(layout, first):
        def make(i, letter, shape):
            fan = sum(shape[-2:]) if letter == "w" else 60
            x = filled(shape, salt + 10 * i + first + LETTERS.index(letter), fan)
            return 1 + x if letter == "g" else x

        return layout.build(make)

    actor = network(Layout.actor(O, A, H, depth), 0)
    critic = network(Layout.critic(O, A, H, depth, E), 2)
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
        fields["obs_mean"] = filled((O,), salt + 5, 6)
        fields["obs_std"] = 1 + np.abs(filled((O,), salt + 6, 6))
    return Policy(**(fields | more))


def golden_policy():
    """Return the golden file's online actor and critic as a Policy, and its samples by name."""
    with np.load(GOLDEN) as file:
        arrays = {k: file[k] for k in file.files}
    actor = Layout.actor(28, 5, 64, 4).gather(arrays, "actor/")
    critic = Layout.critic(28, 5, 64, 4, 2).gather(arrays, "critic/")
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
