"""ReBRAC (arXiv 2305.09836), as in FQL's repository: TD3 with cloning terms on actor and critic.

The actor's loss and the EMAs come with every `actor_freq`th update only. Adam steps the actor at every
one, with a gradient of zero in between: momentum moves it, and the count of steps has them all, as in
the authors' code.

Shape letters: B batch, O observation, A action, E critics. All losses are scalars.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...act.form import Tanh
from ...act.policy_file import Policy
from ...batch import Batch
from ...config import option
from ...ops import aggregate
from ..method import Export, Method, NetworkSpec, Trained
from ..networks import CriticEnsemble, DirectActor
from ..noise import Noise, Normal, Plan
from .common import CriticConfig, check_not_negative, check_whole, critic, export, mean_actor


@dataclass(frozen=True, kw_only=True)
class RebracConfig(CriticConfig):
    """Every constant of ReBRAC; the defaults are those of FQL's repository."""

    method: ClassVar[str] = "rebrac"

    # fmt: off
    alpha_actor: float = option(0.01, help="weight of cloning in the actor's loss")
    alpha_critic: float = option(0.01, help="weight of the next action's distance from the data in TD targets")
    actor_noise: float = option(0.2, help="deviation of the noise on the next action of TD targets")
    actor_noise_clip: float = option(0.5, help="bound of that noise")
    actor_freq: int = option(2, help="updates between two actor losses; the EMAs come with them")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "alpha_actor", "alpha_critic", "actor_noise", "actor_noise_clip")
        check_whole(self, "actor_freq")


# ---- losses


def act(actor: DirectActor, obs: Tensor) -> Tensor:
    """Return actions tanh(mu(x)) [B, A]."""
    return actor(obs).tanh()


def noisy(actions: Tensor, noise: Tensor, config: RebracConfig) -> Tensor:
    """Return clip(a + clip(deviation z, +-bound), +-1) [B, A] for actions and normal z [B, A]."""
    bound = config.actor_noise_clip
    return (actions + (config.actor_noise * noise).clamp(-bound, bound)).clamp(-1, 1)


@torch.no_grad()
def td_target(
    target_actor: DirectActor,
    target_critic: CriticEnsemble,
    batch: Batch,
    noise: Tensor,
    config: RebracConfig,
) -> Tensor:
    """Return y = r + gamma mask (min Q_target(x', a') - alpha_critic ||a' - a'_data||^2) [B].

    a' is the target actor's noisy action at x', a'_data the data's next one.
    """
    assert batch.next_actions is not None  # `Rebrac.fields` asks for it
    obs = batch.next_observations
    actions = noisy(act(target_actor, obs), noise, config)
    q = aggregate(target_critic(obs, actions, 0), "min")
    distance = (actions - batch.next_actions).square().sum(-1)
    return batch.rewards + config.gamma * batch.masks * (q - config.alpha_critic * distance)


def td_loss(critics: CriticEnsemble, batch: Batch, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over members and B of (Q(x, a) - y)^2, y [B], and Q [E, B]."""
    q = critics(batch.observations, batch.actions, 0)
    return (q - target).square().mean(), q


class ActorLoss(NamedTuple):
    """Parts of the actor's loss; the loss is their sum."""

    q_loss: Tensor  # -mean(min Q) / mean|min Q|
    bc_loss: Tensor  # alpha_actor mean ||a - a_data||^2


def actor_loss(
    actor: DirectActor, critics: CriticEnsemble, batch: Batch, config: RebracConfig
) -> ActorLoss:
    """Return the actor's loss; the critics get no gradient."""
    actions = act(actor, batch.observations)
    q = aggregate(critics(batch.observations, actions, 0, frozen=True), "min")
    distance = (actions - batch.actions).square().sum(-1).mean()
    return ActorLoss(-q.mean() / q.detach().abs().mean(), config.alpha_actor * distance)


# ---- the method


class Rebrac(Method[RebracConfig]):
    """TD3 with cloning terms."""

    Config = RebracConfig
    title = "ReBRAC: a deterministic actor, cloned and climbing the critic (arXiv 2305.09836)"
    metrics: ClassVar = {
        "critic_loss": "TD loss of the critic",
        "q_mean": "Mean Q",
        "critic_grad_norm": "Critic's gradient norm",
        # in between, those of the last update that had them
        "actor_loss": "Actor loss",
        "q_loss": "Q loss of the actor",
        "bc_loss": "Cloning loss of the actor",
        "actor_grad_norm": "Actor's gradient norm",
    }
    val_metrics = ("critic_loss", "q_mean", "actor_loss", "q_loss", "bc_loss")
    plots = ("q_loss", "bc_loss", "critic_loss")
    shown: ClassVar = {"critic": "critic_loss", "actor": "actor_loss", "q": "q_mean"}
    fields = Batch._fields
    remedy = "Lower --lr"

    @classmethod
    def normalises_q(cls, agent: Mapping[str, Any]) -> bool:
        """Return True: `q_loss` always is."""
        return True

    def networks(self, obs_dim: int, act_dim: int) -> dict[str, NetworkSpec]:
        """Return the actor tanh(mu(x)) and the critics, each with an EMA target."""
        return {
            "actor": mean_actor(self.config, obs_dim, act_dim, self.config.tau),
            "critic": critic(self.config, obs_dim, act_dim),
        }

    def plan(self, act_dim: int) -> Plan:
        """Return the noise of the next action."""
        return {"td_noise": Normal(self.config.batch_size)}

    def kept(self) -> dict[str, Tensor]:
        """Return the actor's metrics, which updates without an actor loss report again."""
        return {"actor": torch.zeros(4)}

    def choose(self, host: torch.Generator, step: int) -> bool:
        """Return whether this update has an actor loss and EMAs."""
        return step % self.config.actor_freq == 0

    def critic_loss(self, trained: Trained, batch: Batch, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return the TD loss and Q [E, B]."""
        targets = trained.targets["actor"], trained.targets["critic"]
        target = td_target(*targets, batch, noise["td_noise"], self.config)
        return td_loss(trained.networks["critic"], batch, target)

    def actor_loss(self, trained: Trained, batch: Batch) -> ActorLoss:
        """Return the actor's loss."""
        networks = trained.networks
        return actor_loss(networks["actor"], networks["critic"], batch, self.config)

    def losses(
        self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable
    ) -> dict[str, Tensor]:
        """Return the losses of the validation data."""
        td, q = self.critic_loss(trained, batch, noise)
        parts = self.actor_loss(trained, batch)
        values = (td, q.mean(), parts.q_loss + parts.bc_loss, *parts)
        return dict(zip(self.val_metrics, values, strict=True))

    def update(self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable) -> Tensor:
        """Make one step of both networks, the actor's with a gradient of zero unless `choice`."""
        actor, critics = trained.optimisers["actor"], trained.optimisers["critic"]
        td, q = self.critic_loss(trained, batch, noise)
        critic_grads = critics.gradients(td)
        if choice:
            parts = self.actor_loss(trained, batch)
            total = parts.q_loss + parts.bc_loss
            norm = actor.apply(*actor.gradients(total))
            values = torch.stack([x.detach() for x in (total, *parts, norm)])
            trained.kept["actor"].copy_(values)
        else:
            actor.apply(actor.zeros(), ema=False)
        critic_norm = critics.apply(*critic_grads, ema=bool(choice))
        of_critic = torch.stack([x.detach() for x in (td, q.mean(), critic_norm)])
        return torch.cat([of_critic, trained.kept["actor"]])

    def export(self, trained: Trained, about: Export) -> Policy:
        """Return the actor: its action is clip(tanh(mu(x)) + the noise of `noisy` times a temperature)."""
        c = self.config
        # a bound of 0 leaves nothing of the noise
        scale, clip = (c.actor_noise, c.actor_noise_clip) if c.actor_noise_clip else (0.0, None)
        form = Tanh(reads_noise=False, noise_scale=scale, noise_clip=clip)
        return export(c, trained, about, form)
