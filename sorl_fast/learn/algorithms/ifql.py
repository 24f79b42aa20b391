"""IFQL, as in FQL's repository (arXiv 2502.02538): IQL's value and critics, and a flow cloned from the
data, of whose candidates the critics choose when it acts.

Shape letters: B batch, O observation, A action. All losses are scalars.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...act.form import MAX_STEPS, Euler
from ...act.policy_file import Policy
from ...batch import Batch
from ...config import check, option
from ..losses import flow_loss
from ..method import Export, Method, NetworkSpec, Trained
from ..noise import Noise, Normal, Plan, Uniform
from .common import check_whole, critic, export, flow_actor, value
from .iql import ImplicitConfig, Iql, judge


@dataclass(frozen=True, kw_only=True)
class IfqlConfig(ImplicitConfig):
    """Every constant of IFQL; the defaults are those of FQL's repository."""

    method: ClassVar[str] = "ifql"

    # fmt: off
    flow_steps: int = option(10, help="Euler steps that the policy acts with")
    num_samples: int = option(32, help="candidates N of the paper's policy, for the record: act and evaluate with --candidates N")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "flow_steps", "num_samples")
        most = self.flow_steps <= MAX_STEPS  # of a policy file
        check(most, "flow_steps", self.flow_steps, f"at most {MAX_STEPS}")

    @property
    def train_steps(self) -> tuple[int, ...]:
        """The one step count that the policy acts with."""
        return (self.flow_steps,)


class Ifql(Method[IfqlConfig]):
    """Implicit Q-learning with a flow and best-of-N."""

    Config = IfqlConfig
    title = "IFQL: a cloned flow, and the best of N under IQL's critics (arXiv 2502.02538)"
    metrics: ClassVar = Iql.metrics | {"actor_loss": "Flow matching"}
    val_metrics = Iql.val_metrics
    plots = Iql.plots
    shown: ClassVar = Iql.shown
    remedy = "Lower --lr"

    def networks(self, obs_dim: int, act_dim: int) -> dict[str, NetworkSpec]:
        """Return V(x), the critics with an EMA target, and the flow v(x, z, t)."""
        return {
            "value": value(self.config, obs_dim),
            "critic": critic(self.config, obs_dim, act_dim),
            "actor": flow_actor(self.config, obs_dim, act_dim),
        }

    def plan(self, act_dim: int) -> Plan:
        """Return the noise of the flow's regression."""
        B = self.config.batch_size
        return {"t": Uniform((B,)), "x0": Normal(B)}

    def losses(
        self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable
    ) -> dict[str, Tensor]:
        """Return the losses of the validation data."""
        judged = judge(trained, batch, self.config)
        flow = trained.networks["actor"]
        actor = flow_loss(flow, batch.observations, batch.actions, noise["t"], noise["x0"])
        values = (*judged[:2], actor, judged.v.detach().mean(), judged.q.detach().mean())
        return dict(zip(self.val_metrics, values, strict=True))

    def update(self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable) -> Tensor:
        """Make one step of value, critics and flow."""
        found = self.losses(trained, batch, noise, choice)
        norms = trained.step({n: found[f"{n}_loss"] for n in ("value", "critic", "actor")})
        return torch.stack([x.detach() for x in (*found.values(), *norms)])

    def export(self, trained: Trained, about: Export) -> Policy:
        """Return the flow, and the critics that choose of its candidates."""
        return export(self.config, trained, about, Euler(counts=(self.config.flow_steps,)))
