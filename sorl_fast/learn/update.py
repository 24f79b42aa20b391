"""One training update: critic step, actor step, EMA of both targets.

Two networks, two optimisers, two clips (the authors' release shares one of each: corrected; its
shared Adam steps twice an update, once with a zero critic gradient, so that its critic moves further
on momentum - which is why the two learning rates are separate fields here). The actor step and the
EMAs see the critic and the actor just updated (corrected as well).
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import ops
from ..batch import Batch
from ..config import AgentConfig
from ..errors import BadInput
from .losses import (
    flow_matching,
    q_loss,
    regression_losses,
    self_consistency,
    td_loss,
    td_target,
)
from .networks import Network, make_actor, make_critic
from .noise import UpdateNoise

METRICS = (
    "critic_loss",
    "actor_loss",
    "fm_loss",
    "sc_loss",
    "q_loss",
    "q_mean",
    "critic_grad_norm",
    "actor_grad_norm",
)


class AdamEma:
    """Adam with a global-norm clip for one network, and the EMA of its target.

    Holds the moments and the number of steps made, on the host or, after `count_on_device`, on the
    device; the arithmetic is `ops.adam_ema_step`.
    """

    def __init__(self, network: Network, target: Network, lr: float, config: AgentConfig):
        self.params = list(network.tensors().values())
        self.targets = list(target.tensors().values())
        self.first = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]
        self.steps: int | Tensor = 0
        self._lr = lr
        self._config = config

    def count_on_device(self) -> None:
        """Keep the number of steps where a recorded step reads and raises it at every replay."""
        self.steps = torch.tensor(int(self.steps), device=self.params[0].device)

    def count_from(self, steps: int) -> None:
        """Set the number of steps made."""
        if isinstance(self.steps, Tensor):
            self.steps.fill_(steps)
        else:
            self.steps = steps

    def step(self, loss: Tensor, more: Tensor | None = None) -> Tensor:
        """Follow the gradient of `loss`, or of `loss + more`; return its norm before the clip.

        Two parts of a loss that share no computation are best given apart: the step adds their
        gradients up as it reads them.
        """
        grads = torch.autograd.grad(loss, self.params)
        more_grads = () if more is None else torch.autograd.grad(more, self.params)
        return self.apply(grads, more_grads)

    def apply(self, grads: Sequence[Tensor], more_grads: Sequence[Tensor] = ()) -> Tensor:
        """Follow the gradient `grads + more_grads`, which are used up; return its norm."""
        self.steps += 1
        config = self._config
        with torch.no_grad():
            return ops.adam_ema_step(
                self.params,
                grads,
                self.first,
                self.second,
                self.targets,
                self.steps,
                lr=self._lr,
                b1=config.adam_b1,
                b2=config.adam_b2,
                eps=config.adam_eps,
                clip_norm=config.clip_norm,
                tau=config.tau,
                more_grads=more_grads,
            )


class Learner:
    """Both networks, their EMA targets and their optimisers.

    Parameters
    ----------
    obs_dim, act_dim
        O and A.
    config
        The algorithm.
    generator
        Draws the initial weights; a CPU generator, so that they are equal on every device.
    device
        Where everything lives.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        config: AgentConfig,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ):
        self.config = config
        self.actor = make_actor(obs_dim, act_dim, config, generator).to(device)
        self.critic = make_critic(obs_dim, act_dim, config, generator).to(device)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_adam = AdamEma(self.actor, self.target_actor, config.actor_lr, config)
        self.critic_adam = AdamEma(self.critic, self.target_critic, config.critic_lr, config)

    def count_on_device(self) -> None:
        """Count both optimisers' steps on the device: see `AdamEma.count_on_device`."""
        self.actor_adam.count_on_device()
        self.critic_adam.count_on_device()

    def losses(self, batch: Batch, noise: UpdateNoise) -> dict[str, Tensor]:
        """Return the losses at `batch` without a gradient; used on the validation data."""
        with torch.no_grad():
            fm, sc, q_part, q = self.actor_losses(batch, noise)
            return {
                "critic_loss": self.critic_loss(batch, noise),
                "fm_loss": fm,
                "sc_loss": sc,
                "q_loss": q_part,
                "q_mean": q.mean(),
            }

    def critic_loss(self, batch: Batch, noise: UpdateNoise) -> Tensor:
        """Return the TD loss."""
        target = td_target(
            self.actor, self.target_critic, batch, noise.td_steps, noise.td_noise, self.config
        )
        return td_loss(self.critic, batch, noise.td_steps, target)

    def actor_losses(
        self, batch: Batch, noise: UpdateNoise
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the flow-matching, self-consistency and Q losses, and Q [B]."""
        terms = (
            flow_matching(batch, noise.fm_t, noise.fm_noise, self.config),
            self_consistency(
                self.target_actor,
                batch,
                noise.sc_log2_steps,
                noise.sc_t,
                noise.sc_noise,
                self.config,
            ),
        )
        fm, sc = regression_losses(self.actor, batch.observations, terms)
        return fm, sc, *q_loss(self.actor, self.critic, batch, noise.q_steps, noise.q_noise)

    def update(self, batch: Batch, noise: UpdateNoise) -> Tensor:
        """Make one update in place.

        Returns
        -------
        Tensor
            The METRICS in their order, float32, on the device: nothing here waits for it.
        """
        config = self.config
        critic_loss = self.critic_loss(batch, noise)
        # The critic's target is next read by the next update, so its EMA may follow at once.
        critic_norm = self.critic_adam.step(critic_loss)

        fm, sc, q_part, q = self.actor_losses(batch, noise)
        regression = config.fm_coef * fm + config.sc_coef * sc
        actor_norm = self.actor_adam.step(regression, config.q_coef * q_part)
        actor_loss = regression + config.q_coef * q_part

        metrics = (critic_loss, actor_loss, fm, sc, q_part, q.mean(), critic_norm, actor_norm)
        return torch.stack([m.detach() for m in metrics])

    def _networks(self) -> dict[str, Network]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "target_actor": self.target_actor,
            "target_critic": self.target_critic,
        }

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that training changes, by name; references, not copies."""
        tensors = {
            f"{name}/{key}": x.detach()
            for name, network in self._networks().items()
            for key, x in network.tensors().items()
        }
        for name, adam in (("actor", self.actor_adam), ("critic", self.critic_adam)):
            keys = self._networks()[name].tensors()
            for key, m, v in zip(keys, adam.first, adam.second, strict=True):
                tensors[f"{name}_adam/first/{key}"] = m
                tensors[f"{name}_adam/second/{key}"] = v
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take over the tensors of `state()` and the number of updates they have seen.

        Raises
        ------
        BadInput
            A tensor is missing or has another shape. Nothing is changed then.
        """
        own = self.state()
        for name, x in own.items():
            if name not in tensors:
                raise BadInput(f"the checkpoint has no tensor {name!r}; choose another checkpoint")
            if tensors[name].shape != x.shape:
                raise BadInput(
                    f"{name!r} has shape {tuple(tensors[name].shape)} in the checkpoint, but "
                    f"{tuple(x.shape)} here: its config or data set is another one"
                )
        for name, x in own.items():
            x.copy_(tensors[name])
        for adam in (self.actor_adam, self.critic_adam):
            adam.count_from(steps)
