"""The four losses of SORL (arXiv 2505.22866), pure functions of networks, batch, noise and config.

Shape letters: B batch, O observation, A action, E critics. All losses are scalars.
"""

from collections.abc import Sequence
from typing import NamedTuple

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


class Regression(NamedTuple):
    """Velocities that the actor is to learn: s(x_t, t, h) = target, one row each; may have no row."""

    x_t: Tensor  # [B, A]
    t: Tensor  # [B]
    log2_steps: Tensor  # [B], log2(1/h)
    target: Tensor  # [B, A], no gradient


def regression_losses(
    actor: ShortcutActor, obs: Tensor, terms: Sequence[Regression]
) -> list[Tensor]:
    """Mean of ||s(x_t, t, h) - target||^2 of each term; 0 for one that has no row.

    The actor runs once, on the rows of all terms: one wide batch is cheaper than several.
    """
    filled = [term for term in terms if len(term.t)]
    x_t, t, log2_steps, target = (torch.cat(parts) for parts in zip(*filled, strict=True))
    v = actor(obs.repeat(len(filled), 1), x_t, t, log2_steps)
    errors = iter((v - target).split([len(term.t) for term in filled]))
    return [next(errors).square().mean() if len(term.t) else v.new_zeros(()) for term in terms]


def flow_matching(batch: Batch, t: Tensor, noise: Tensor, config: AgentConfig) -> Regression:
    """Regress s(x_t, t, 1/M_disc) on a - (1-e) x0; arguments as in `flow_matching_loss`."""
    x_t = interpolate(batch.actions, noise, t, config.flow_eps)
    log2_steps = torch.full_like(t, config.m_disc.bit_length() - 1)
    return Regression(x_t, t, log2_steps, batch.actions - (1 - config.flow_eps) * noise)


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
    term = flow_matching(batch, t, noise, config)
    return regression_losses(actor, batch.observations, [term])[0]


@torch.no_grad()
def consistency_target(
    target_actor: ShortcutActor, obs: Tensor, x_t: Tensor, t: Tensor, log2_steps: Tensor
) -> Tensor:
    """Return (v1 + v2)/2 [B, A]: the mean velocity of two half steps of the EMA actor."""
    half = torch.exp2(-log2_steps - 1)
    v1 = target_actor(obs, x_t, t, log2_steps + 1)
    v2 = target_actor(obs, x_t + half.unsqueeze(-1) * v1, t + half, log2_steps + 1)
    return (v1 + v2) / 2


def self_consistency(
    target_actor: ShortcutActor,
    batch: Batch,
    log2_steps: Tensor,
    t: Tensor,
    noise: Tensor,
    config: AgentConfig,
) -> Regression:
    """Regress s(x_t, t, h) on two half steps' mean; arguments as in `self_consistency_loss`."""
    if len(t) == 0:
        none = batch.actions[:0]
        return Regression(none, t, log2_steps, none)
    x_t = interpolate(batch.actions, noise, t, config.flow_eps)
    target = consistency_target(target_actor, batch.observations, x_t, t, log2_steps)
    return Regression(x_t, t, log2_steps, target)


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
    term = self_consistency(target_actor, batch, log2_steps, t, noise, config)
    return regression_losses(actor, batch.observations, [term])[0]


def q_loss(
    actor: ShortcutActor, critic: CriticEnsemble, batch: Batch, steps: int, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """-mean(Q) / stopgrad(mean|Q|) of the actor's own k-step actions, gradient through all k steps.

    Q is the ensemble MEAN whatever q_agg says, as the authors do. The critic's own parameters get no
    gradient from here: nobody would read it.

    Returns
    -------
    loss, q
        The loss, and Q [B] for the log.
    """
    actions = actor.sample(batch.observations, noise, steps)
    q = critic(batch.observations, actions, steps, frozen=True).mean(0)
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
