"""IQL (arXiv 2110.06169), as in FQL's repository: a value by expectile regression, critics on it, and
an actor that clones actions weighted by their advantage, or (DDPG+BC) climbs the critic.

Shape letters: B batch, O observation, A action, E critics. All losses are scalars.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ...act.form import Direct
from ...act.policy_file import Policy
from ...batch import Batch
from ...config import check, option
from ...ops import aggregate
from ..losses import expectile_loss, gaussian_log_prob
from ..method import Export, Method, NetworkSpec, Trained
from ..networks import CriticEnsemble, DirectActor, Value
from ..noise import Noise, Plan
from .common import CriticConfig, check_not_negative, critic, export, mean_actor, value

MAX_WEIGHT = 100.0  # of a cloned action


@dataclass(frozen=True, kw_only=True)
class ImplicitConfig(CriticConfig):
    """Settings of IQL's value and critics, which IFQL shares."""

    # fmt: off
    expectile: float = option(0.9, help="expectile of Q that the value is fitted to, in (0, 1)")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.expectile < 1, "expectile", self.expectile, "in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class IqlConfig(ImplicitConfig):
    """Every constant of IQL; the defaults are those of FQL's repository."""

    method: ClassVar[str] = "iql"

    # fmt: off
    alpha: float = option(10.0, help="inverse temperature of the advantage weights (awr), or weight of cloning (ddpgbc)")
    actor_loss: Literal["awr", "ddpgbc"] = option("awr", help="how the actor learns: awr, cloning weighted by advantage, or ddpgbc, Q plus cloning")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "alpha")
        check(self.actor_loss in ("awr", "ddpgbc"), "actor_loss", self.actor_loss, "awr or ddpgbc")


# ---- value and critics


class Judged(NamedTuple):
    """Losses of value and critics, and what the actor needs of them."""

    value_loss: Tensor
    critic_loss: Tensor
    v: Tensor  # V(x) [B]
    q: Tensor  # Q(x, a) of the online critics [E, B]


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Mean over B, sum over the members of (Q - y)^2; q [E, B], y [B]."""
    return (q - target).square().sum(0).mean()


def judge(trained: Trained, batch: Batch, config: ImplicitConfig) -> Judged:
    """Return the losses of the value, on min Q_target, and of the critics, on r + gamma mask V(x')."""
    value_of: Value = trained.networks["value"]
    online: CriticEnsemble = trained.networks["critic"]
    with torch.no_grad():
        target_q = aggregate(trained.targets["critic"](batch.observations, batch.actions, 0), "min")
        y = batch.rewards + config.gamma * batch.masks * value_of(batch.next_observations)
    v = value_of(batch.observations)
    q = online(batch.observations, batch.actions, 0)
    return Judged(expectile_loss(v, target_q, config.expectile), critic_loss(q, y), v, q)


# ---- the actor


def awr_loss(mean: Tensor, actions: Tensor, advantage: Tensor, alpha: float) -> Tensor:
    """-mean min(exp(alpha adv), 100) log N(a; mu, 1); means, actions [B, A], advantages [B]."""
    weight = (alpha * advantage).exp().clamp(max=MAX_WEIGHT)
    return -(weight * gaussian_log_prob(mean, actions)).mean()


def ddpg_loss(online: CriticEnsemble, obs: Tensor, actions: Tensor) -> Tensor:
    """-mean(min Q) / mean|min Q| of the actor's actions [B, A]; the critics get no gradient."""
    q = aggregate(online(obs, actions, 0, frozen=True), "min")
    return -q.mean() / q.detach().abs().mean()


class Iql(Method[IqlConfig]):
    """Implicit Q-learning."""

    Config = IqlConfig
    title = "IQL: implicit Q-learning with a Gaussian actor (arXiv 2110.06169)"
    metrics: ClassVar = {
        "value_loss": "Expectile loss of the value",
        "critic_loss": "TD loss of the critic",
        "actor_loss": "Actor loss",
        "v_mean": "Mean V",
        "q_mean": "Mean Q",
        "value_grad_norm": "Value's gradient norm",
        "critic_grad_norm": "Critic's gradient norm",
        "actor_grad_norm": "Actor's gradient norm",
    }
    val_metrics = ("value_loss", "critic_loss", "actor_loss", "v_mean", "q_mean")
    plots = ("actor_loss", "value_loss", "critic_loss")
    shown: ClassVar = {"critic": "critic_loss", "actor": "actor_loss", "q": "q_mean"}
    remedy = "Lower --lr or --alpha"

    def networks(self, obs_dim: int, act_dim: int) -> dict[str, NetworkSpec]:
        """Return V(x), the critics with an EMA target, and the actor mu(x)."""
        return {
            "value": value(self.config, obs_dim),
            "critic": critic(self.config, obs_dim, act_dim),
            "actor": mean_actor(self.config, obs_dim, act_dim),
        }

    def plan(self, act_dim: int) -> Plan:
        """Return nothing: an update draws its minibatch alone."""
        return {}

    def actor_loss(self, trained: Trained, batch: Batch, judged: Judged) -> Tensor:
        """Return the actor's loss; its advantage is that of the ONLINE critics."""
        actor: DirectActor = trained.networks["actor"]
        mean = actor(batch.observations)
        if self.config.actor_loss == "awr":
            advantage = aggregate(judged.q.detach(), "min") - judged.v.detach()
            return awr_loss(mean, batch.actions, advantage, self.config.alpha)
        q_part = ddpg_loss(trained.networks["critic"], batch.observations, mean.clamp(-1, 1))
        return q_part - self.config.alpha * gaussian_log_prob(mean, batch.actions).mean()

    def losses(
        self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable
    ) -> dict[str, Tensor]:
        """Return the losses of the validation data."""
        judged = judge(trained, batch, self.config)
        actor = self.actor_loss(trained, batch, judged)
        values = (*judged[:2], actor, judged.v.detach().mean(), judged.q.detach().mean())
        return dict(zip(self.val_metrics, values, strict=True))

    def update(self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable) -> Tensor:
        """Make one step of value, critics and actor."""
        found = self.losses(trained, batch, noise, choice)
        norms = trained.step({n: found[f"{n}_loss"] for n in ("value", "critic", "actor")})
        return torch.stack([x.detach() for x in (*found.values(), *norms)])

    def export(self, trained: Trained, about: Export) -> Policy:
        """Return the actor: its action is clip(mu(x) + temperature z)."""
        return export(self.config, trained, about, Direct(reads_noise=False))
