"""What a method is: everything about one way to learn a policy that the trainer does not know.

A method is one file of `algorithms/`. The trainer, its checkpoints, CUDA graphs, the command line and
the report know it through this interface only.

Shape letters: B batch, O observation, A action.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..act.form import Form
from ..act.policy_file import Policy
from ..action_map import ActionMap
from ..batch import Batch
from ..config import MethodConfig
from .networks import Network
from .noise import Noise, Plan
from .optimiser import AdamEma, AdamSettings, AdamWSettings


class NetworkSpec(NamedTuple):
    """One network that a method trains."""

    make: Callable[[torch.Generator], Network]  # fresh, on the CPU
    adam: AdamSettings | AdamWSettings
    target: bool = False  # whether an EMA target follows it


class Trained:
    """What a method's update reads and writes, by the names of `Method.networks`."""

    # each is a Network of the kind that the method made
    networks: dict[str, Any]
    targets: dict[str, Any]  # EMA targets, of those networks that have one
    optimisers: dict[str, AdamEma]
    kept: dict[str, Tensor]  # what an update leaves for later ones beside these: `Method.kept`

    def step(self, losses: Mapping[str, Tensor]) -> list[Tensor]:
        """Make a step of every network named, each along the gradient of its own loss.

        All gradients are taken before the first step. Returns their norms.
        """
        grads = {name: self.optimisers[name].gradients(loss) for name, loss in losses.items()}
        return [self.optimisers[name].apply(*parts) for name, parts in grads.items()]


class Export(NamedTuple):
    """What a policy file says beside the networks: see `act.policy_file.Policy`."""

    obs_dim: int
    act_dim: int
    env: str
    obs_mean: Tensor | None  # [O]
    obs_std: Tensor | None  # [O]
    action_map: ActionMap | None = None

    def policy(
        self,
        config: MethodConfig,
        actor: Network,
        critic: Network | None,
        *,
        hidden: int,
        depth: int,
        form: Form | None,
        q_agg: str = "min",
        m_disc: int = 1,
        m_btt: int = 1,
    ) -> Policy:
        """Return the policy of an actor and of the critics, if any, that choose its best candidate.

        The networks' actions are bounded by [-1, 1]; the other arguments are as in `Policy`.
        """
        mean, std = self.obs_mean, self.obs_std
        critics = () if critic is None else critic.arrays()
        return Policy(
            obs_dim=self.obs_dim,
            act_dim=self.act_dim,
            hidden=hidden,
            depth=depth,
            ensemble=len(critics[0][0]) if critics else 0,
            m_disc=m_disc,
            m_btt=m_btt,
            q_agg=q_agg,
            env=self.env,
            action_low=np.full(self.act_dim, -1, np.float32),
            action_high=np.full(self.act_dim, 1, np.float32),
            obs_mean=None if mean is None else mean.numpy(),
            obs_std=None if std is None else std.numpy(),
            config=config.to_dict(),
            form=form,
            action_map=self.action_map,
            actor=actor.arrays(),
            critic=critics,
        )


C = TypeVar("C", bound=MethodConfig)


class Method(ABC, Generic[C]):
    """One way to learn a policy.

    Parameters
    ----------
    config
        Its settings; an instance of `Config`.
    """

    Config: ClassVar[type[MethodConfig]]  # its `method` is the name on the command line
    title: ClassVar[str]  # one line: what it is, and of which paper
    metrics: ClassVar[Mapping[str, str]]  # what an update reports, in order: name -> what it is
    val_metrics: ClassVar[tuple[str, ...]]  # what `losses` reports
    shown: ClassVar[Mapping[str, str]]  # the progress bar's names -> metrics
    plots: ClassVar[tuple[str, ...]]  # metrics that the report draws
    fields: ClassVar[tuple[str, ...]] = Batch._fields[:5]  # what an update reads of a batch
    remedy: ClassVar[str]  # what to change where a loss diverges

    @classmethod
    def normalises_q(cls, agent: Mapping[str, Any]) -> bool:
        """Return whether the metric q_loss of a run of these settings is divided by its mean |Q|."""
        return False

    def __init__(self, config: C):
        self.config = config

    @abstractmethod
    def networks(self, obs_dim: int, act_dim: int) -> dict[str, NetworkSpec]:
        """Return what is trained, by name; their first weights are drawn in this order."""

    @abstractmethod
    def plan(self, act_dim: int) -> Plan:
        """Return what an update draws from the device's generator."""

    def kept(self) -> dict[str, Tensor]:
        """Return further tensors that updates write and read, as they start; on the CPU."""
        return {}

    def choose(self, host: torch.Generator, step: int) -> Hashable:
        """Return what decides which operations update number `step`, from 1, consists of.

        It is drawn on the host, and is the key under which a CUDA graph of the update is recorded:
        there are to be few.
        """
        return ()

    @abstractmethod
    def update(self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable) -> Tensor:
        """Make one update in place.

        Returns
        -------
        Tensor
            The `metrics` in their order, float32 [len(metrics)], on the device: nothing here waits
            for it.
        """

    @abstractmethod
    def losses(
        self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable
    ) -> dict[str, Tensor]:
        """Return the `val_metrics` at `batch`; nothing changes, no gradient is kept."""

    @abstractmethod
    def export(self, trained: Trained, about: Export) -> Policy:
        """Return what acts, as an immutable policy."""
