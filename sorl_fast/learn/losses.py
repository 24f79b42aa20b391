"""The four losses of SORL (arXiv 2505.22866), pure functions of networks, batch, noise and config.

Shape letters: B batch, O observation, A action, E critics. All losses are scalars.
"""

import torch
from torch import Tensor

from ..batch import Batch
from ..config import AgentConfig
from ..ops import aggregate
from .networks import CriticEnsemble, ShortcutActor


def interpolate(actions: Tensor, noise: Tensor, t: Tensor, flow_eps: float) -> Tensor:
    """Return x_t = (1 - (1-e) t) x0 + t a [B, A] for actions and noise [B, A], t [B]."""
    t = t.unsqueeze(-1)
    return (1 - (1 - flow_eps) * t) * noise + t * actions


def flow_matching_loss(
    actor: ShortcutActor, batch: Batch, t: Tensor, noise: Tensor, config: AgentConfig
) -> Tensor:
    """Mean of ||s(x_t, t, 1/M_disc) - (a - (1-e) x0)||^2 over B and A.

    Parameters
    ----------
    t
        [B], on the grid {0, ..., M_disc-1} / M_disc.
    noise
        x0 [B, A], standard normal.
    """
    x_t = interpolate(batch.actions, noise, t, config.flow_eps)
    log2_steps = torch.full_like(t, config.m_disc.bit_length() - 1)
    v = actor(batch.observations, x_t, t, log2_steps)
    return (v - (batch.actions - (1 - config.flow_eps) * noise)).square().mean()


@torch.no_grad()
def consistency_target(
    target_actor: ShortcutActor, obs: Tensor, x_t: Tensor, t: Tensor, log2_steps: Tensor
) -> Tensor:
    """Return (v1 + v2)/2 [B, A]: the mean velocity of two half steps of the EMA actor."""
    half = torch.exp2(-log2_steps - 1)
    v1 = target_actor(obs, x_t, t, log2_steps + 1)
    v2 = target_actor(obs, x_t + half.unsqueeze(-1) * v1, t + half, log2_steps + 1)
    return (v1 + v2) / 2


def self_consistency_loss(
    actor: ShortcutActor,
    target_actor: ShortcutActor,
    batch: Batch,
    log2_steps: Tensor,
    t: Tensor,
    noise: Tensor,
    config: AgentConfig,
) -> Tensor:
    """Mean of ||s(x_t, t, h) - (v1 + v2)/2||^2: one big step h is to equal two half steps.

    Parameters
    ----------
    log2_steps
        [B], log2(1/h) of the BIG step; empty if M_disc = 1, when the loss is 0.
    t
        [B], on each row's grid {0, h, 2h, ...}.
    noise
        x0 [B, A], standard normal.
    """
    if len(log2_steps) == 0:
        return batch.actions.new_zeros(())
    x_t = interpolate(batch.actions, noise, t, config.flow_eps)
    target = consistency_target(target_actor, batch.observations, x_t, t, log2_steps)
    v = actor(batch.observations, x_t, t, log2_steps)
    return (v - target).square().mean()


def q_loss(
    actor: ShortcutActor, critic: CriticEnsemble, batch: Batch, steps: int, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """-mean(Q) / stopgrad(mean|Q|) of the actor's own k-step actions, gradient through all k steps.

    Q is the ensemble MEAN whatever q_agg says, as the authors do.

    Returns
    -------
    loss, q
        The loss, and Q [B] for the log.
    """
    actions = actor.sample(batch.observations, noise, steps)
    q = critic(batch.observations, actions, steps).mean(0)
    return -q.mean() / q.detach().abs().mean(), q


@torch.no_grad()
def td_target(
    actor: ShortcutActor,
    target_critic: CriticEnsemble,
    batch: Batch,
    steps: int,
    noise: Tensor,
    config: AgentConfig,
) -> Tensor:
    """Return y = r + gamma * mask * agg(Q_target(x', a', k)) [B], a' a k-step sample at x'.

    No gradient reaches the actor from here (the authors' release lets it: corrected).
    """
    actions = actor.sample(batch.next_observations, noise, steps)
    q = target_critic(batch.next_observations, actions, steps)
    return batch.rewards + config.gamma * batch.masks * aggregate(q, config.q_agg)


def td_loss(critic: CriticEnsemble, batch: Batch, steps: int, target: Tensor) -> Tensor:
    """Mean over B and both members of (Q(x, a, k) - y)^2, y [B] from `td_target`."""
    return (critic(batch.observations, batch.actions, steps) - target).square().mean()
