"""FQL (arXiv 2502.02538), as in its repository: a flow cloned from the data, and a one-step actor that is
distilled from it and climbs the critic.

Shape letters: B batch, O observation, A action, E critics. All losses are scalars.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...act.form import Direct
from ...act.policy_file import Policy
from ...batch import Batch
from ...config import QAgg, check, option
from ...ops import aggregate
from ..losses import flow_loss
from ..method import Export, Method, NetworkSpec, Trained
from ..networks import CriticEnsemble, DirectActor, FlowActor
from ..noise import Noise, Normal, Plan, Uniform
from .common import (
    CriticConfig,
    check_not_negative,
    check_whole,
    critic,
    export,
    flow_actor,
    one_step_actor,
)


@dataclass(frozen=True, kw_only=True)
class FqlConfig(CriticConfig):
    """Every constant of FQL; the defaults are those of its repository."""

    method: ClassVar[str] = "fql"

    # fmt: off
    alpha: float = option(help="weight of distillation in the actor's loss; no default outside the paper's table", hint="the paper used 10 to 300; start at 10 for locomotion, 300 for manipulation")
    q_agg: QAgg = option("mean", help="how the critic ensemble is aggregated in TD targets: mean or min")
    flow_steps: int = option(10, help="Euler steps of the flow that the one-step actor is distilled from")
    normalize_q_loss: bool = option(False, help="divide the actor's Q loss by mean|Q|")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "alpha")
        check(self.q_agg in ("mean", "min"), "q_agg", self.q_agg, "mean or min")
        check_whole(self, "flow_steps")


# ---- losses


def act(actor: DirectActor, obs: Tensor, noise: Tensor) -> Tensor:
    """Return actions clip(mu(x, z), +-1) [B, A] from noise [B, A]."""
    return actor(obs, noise).clamp(-1, 1)


@torch.no_grad()
def td_target(
    actor: DirectActor,
    target_critic: CriticEnsemble,
    batch: Batch,
    noise: Tensor,
    config: FqlConfig,
) -> Tensor:
    """Return y = r + gamma mask agg(Q_target(x', a')) [B], a' the one-step actor's at x'."""
    actions = act(actor, batch.next_observations, noise)
    q = target_critic(batch.next_observations, actions, 0)
    return batch.rewards + config.gamma * batch.masks * aggregate(q, config.q_agg)


def td_loss(critics: CriticEnsemble, batch: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over members and B of (Q(x, a) - y)^2, y [B], and Q [E, B]."""
    q = critics(batch.observations, batch.actions, 0)
    return (q - target).square().mean(), q


class ActorLoss(NamedTuple):
    """Parts of the one-step actor's loss, which is alpha distill_loss + q_loss."""

    distill_loss: Tensor  # mean ||mu(x, z) - clip(flow from z)||^2, the student not clipped
    q_loss: Tensor  # -mean Q


def actor_loss(
    actor: DirectActor,
    flow: FlowActor,
    critics: CriticEnsemble,
    obs: Tensor,
    noise: Tensor,
    config: FqlConfig,
) -> ActorLoss:
    """Return the one-step actor's loss from noise [B, A]; flow and critics get no gradient.

    Q is the ensemble MEAN whatever q_agg says, as the authors do.
    """
    with torch.no_grad():
        goal = flow.sample(obs, noise, config.flow_steps)
    output = actor(obs, noise)
    q = critics(obs, output.clamp(-1, 1), 0, frozen=True).mean(0)
    q_loss = -q.mean()
    if config.normalize_q_loss:
        q_loss = q_loss / q.detach().abs().mean()
    return ActorLoss((output - goal).square().mean(), q_loss)


# ---- the method


class Fql(Method[FqlConfig]):
    """Flow Q-learning."""

    Config = FqlConfig
    title = "FQL: a one-step actor distilled from a flow (arXiv 2502.02538)"
    metrics: ClassVar = {
        "critic_loss": "TD loss of the critic",
        "q_mean": "Mean Q",
        "flow_loss": "Flow matching",
        "actor_loss": "Actor loss",
        "distill_loss": "Distillation",
        "q_loss": "Q loss of the actor",
        "critic_grad_norm": "Critic's gradient norm",
        "flow_grad_norm": "Flow's gradient norm",
        "actor_grad_norm": "Actor's gradient norm",
    }
    val_metrics = (*("critic_loss", "q_mean", "flow_loss", "actor_loss", "distill_loss", "q_loss"),)
    plots = ("flow_loss", "distill_loss", "q_loss", "critic_loss")
    shown: ClassVar = {"critic": "critic_loss", "flow": "flow_loss", "q": "q_mean"}
    remedy = "Lower --lr"

    @classmethod
    def normalises_q(cls, agent: Mapping[str, Any]) -> bool:
        """Return whether `normalize_q_loss` was set."""
        return bool(agent.get("normalize_q_loss", False))

    def networks(self, obs_dim: int, act_dim: int) -> dict[str, NetworkSpec]:
        """Return the critics with an EMA target, the flow v(x, z, t) and the actor mu(x, z)."""
        return {
            "critic": critic(self.config, obs_dim, act_dim),
            "flow": flow_actor(self.config, obs_dim, act_dim),
            "actor": one_step_actor(self.config, obs_dim, act_dim),
        }

    def plan(self, act_dim: int) -> Plan:
        """Return the noise of the TD target's action, of the flow and of the actor."""
        B = self.config.batch_size
        return {"t": Uniform((B,)), "td_noise": Normal(B), "x0": Normal(B), "noise": Normal(B)}

    def losses(
        self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable
    ) -> dict[str, Tensor]:
        """Return the losses of the validation data."""
        config, obs = self.config, batch.observations
        critics, flow, actor = (trained.networks[name] for name in ("critic", "flow", "actor"))
        target = td_target(actor, trained.targets["critic"], batch, noise["td_noise"], config)
        td, q = td_loss(critics, batch, target)
        matching = flow_loss(flow, obs, batch.actions, noise["t"], noise["x0"])
        parts = actor_loss(actor, flow, critics, obs, noise["noise"], config)
        total = config.alpha * parts.distill_loss + parts.q_loss
        values = (td, q.detach().mean(), matching, total, *parts)
        return dict(zip(self.val_metrics, values, strict=True))

    def update(self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable) -> Tensor:
        """Make one step of critics, flow and actor."""
        found = self.losses(trained, batch, noise, choice)
        norms = trained.step({n: found[f"{n}_loss"] for n in ("critic", "flow", "actor")})
        return torch.stack([x.detach() for x in (*found.values(), *norms)])

    def export(self, trained: Trained, about: Export) -> Policy:
        """Return the one-step actor: its action is clip(mu(x, z))."""
        c = self.config
        return export(c, trained, about, Direct(reads_noise=True), c.q_agg)
