"""Adam with a global-norm clip for one network, and the EMA of its target."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from .networks import Network


class AdamSettings(NamedTuple):
    """How one network follows its gradient, and its target the network."""

    lr: float
    tau: float = 0.0  # EMA rate of the target; of no meaning without one
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = math.inf  # of the gradient's global norm; infinite: no clip


class AdamEma:
    """The optimiser of one network, and what moves its target.

    Holds the moments and the number of steps made, on the host or, after `count_on_device`, on the
    device; the arithmetic is `ops.adam_ema_step`.

    Parameters
    ----------
    network
        What is trained.
    target
        Its EMA target, or None: it has none.
    settings
        Rates and bounds.
    """

    def __init__(self, network: Network, target: Network | None, settings: AdamSettings):
        self.params = list(network.tensors().values())
        self.targets = [] if target is None else list(target.tensors().values())
        self.first = [torch.zeros_like(p) for p in self.params]
        self.second = [torch.zeros_like(p) for p in self.params]
        self.steps: int | Tensor = 0
        self.settings = settings

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
        return self.apply(*self.gradients(loss, more))

    def gradients(
        self, loss: Tensor, more: Tensor | None = None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the gradients of `loss` and of `more`, as `apply` takes them."""
        grads = torch.autograd.grad(loss, self.params)
        return grads, () if more is None else torch.autograd.grad(more, self.params)

    def apply(self, grads: Sequence[Tensor], more_grads: Sequence[Tensor] = ()) -> Tensor:
        """Follow the gradient `grads + more_grads`, which are used up; return its norm."""
        self.steps += 1
        lr, tau, b1, b2, eps, clip_norm = self.settings
        with torch.no_grad():
            return ops.adam_ema_step(
                self.params,
                grads,
                self.first,
                self.second,
                self.targets,
                self.steps,
                lr=lr,
                b1=b1,
                b2=b2,
                eps=eps,
                clip_norm=clip_norm,
                tau=tau,
                more_grads=more_grads,
            )
