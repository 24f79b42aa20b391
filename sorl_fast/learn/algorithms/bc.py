"""BC: behaviour cloning, a Gaussian of unit deviation fitted to the data's actions.

It is IQL's actor loss with alpha 0, and equals OGBench's GCBC (arXiv 2410.20092) exactly.

Shape letters: B batch, O observation, A action. All losses are scalars.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...act.form import Direct
from ...act.policy_file import Policy
from ...batch import Batch
from ..losses import gaussian_log_prob
from ..method import Export, Method, NetworkSpec, Trained
from ..noise import Noise, Plan
from .common import ActorConfig, export, mean_actor


@dataclass(frozen=True, kw_only=True)
class BcConfig(ActorConfig):
    """Every constant of BC; the defaults are those of FQL's repository."""

    method: ClassVar[str] = "bc"


def cloning_loss(mean: Tensor, actions: Tensor) -> Tensor:
    """-mean log N(a; mu, 1), means and actions [B, A]."""
    return -gaussian_log_prob(mean, actions).mean()


class Bc(Method[BcConfig]):
    """Behaviour cloning."""

    Config = BcConfig
    title = "BC: behaviour cloning with a Gaussian actor"
    metrics: ClassVar = {
        "actor_loss": "Actor loss",
        "mse": "Mean squared error of the action",
        "actor_grad_norm": "Actor's gradient norm",
    }
    val_metrics = ("actor_loss", "mse")
    plots = ("actor_loss", "mse")
    shown: ClassVar = {"actor": "actor_loss", "mse": "mse"}
    fields = ("observations", "actions")
    remedy = "Lower --lr"

    def networks(self, obs_dim: int, act_dim: int) -> dict[str, NetworkSpec]:
        """Return the actor mu(x)."""
        return {"actor": mean_actor(self.config, obs_dim, act_dim)}

    def plan(self, act_dim: int) -> Plan:
        """Return nothing: an update draws its minibatch alone."""
        return {}

    def losses(
        self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable
    ) -> dict[str, Tensor]:
        """Return the losses of the validation data."""
        mean = trained.networks["actor"](batch.observations)
        mse = (mean.detach() - batch.actions).square().mean()
        return {"actor_loss": cloning_loss(mean, batch.actions), "mse": mse}

    def update(self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable) -> Tensor:
        """Make one step of the actor."""
        found = self.losses(trained, batch, noise, choice)
        norms = trained.step({"actor": found["actor_loss"]})
        return torch.stack([x.detach() for x in (*found.values(), *norms)])

    def export(self, trained: Trained, about: Export) -> Policy:
        """Return the actor: its action is clip(mu(x) + temperature z), and there is no critic."""
        return export(self.config, trained, about, Direct(reads_noise=False))
