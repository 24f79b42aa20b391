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
    ema_before: bool = False  # whether the target follows the network as it was before the step


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
        self._zeros: list[Tensor] = []
        self.steps: int | Tensor = 0
        self.settings = settings

    def count_on_device(self) -> None:
        """Keep the number of steps where a recorded step reads and raises it at every replay."""
        if not isinstance(self.steps, Tensor):
            self.steps = torch.tensor(self.steps, device=self.params[0].device)

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

    def apply(
        self, grads: Sequence[Tensor], more_grads: Sequence[Tensor] = (), *, ema: bool = True
    ) -> Tensor:
        """Follow the gradient `grads + more_grads`, which are used up; return its norm.

        Without `ema` the target stays as it is this time.
        """
        self.steps += 1
        lr, tau, b1, b2, eps, clip_norm, ema_before = self.settings
        with torch.no_grad():
            return ops.adam_ema_step(
                self.params,
                grads,
                self.first,
                self.second,
                # none rather than a rate of 0: no pass over them, and their packed copies stay good
                self.targets if ema else [],
                self.steps,
                lr=lr,
                b1=b1,
                b2=b2,
                eps=eps,
                clip_norm=clip_norm,
                tau=tau,
                more_grads=more_grads,
                ema_before=ema_before,
            )

    def zeros(self) -> list[Tensor]:
        """Return a gradient of zero, as `apply` takes it: momentum alone moves the network."""
        if not self._zeros:  # made once: a zero that is used up is still one
            self._zeros = [torch.zeros_like(p) for p in self.params]
        return self._zeros


class AdamWSettings(NamedTuple):
    """How one network follows its gradient with decoupled weight decay and a rate that fades."""

    lr: float
    decay_steps: int  # the rate falls to 0 over so many steps, as half a cosine
    tau: float = 0.0  # EMA rate of the target, which follows the network after the step
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4  # of every parameter


class AdamW(AdamEma):
    """AdamW, by PyTorch's one pass: p <- p - lr c (m^ / (sqrt(v^) + eps) + weight_decay p).

    c = (1 + cos(pi min(s, decay_steps) / decay_steps)) / 2, s the number of steps made before.
    """

    def __init__(self, network: Network, target: Network | None, settings: AdamWSettings):
        super().__init__(network, target, AdamSettings(settings.lr, settings.tau))
        self.decaying = settings

    def apply(
        self, grads: Sequence[Tensor], more_grads: Sequence[Tensor] = (), *, ema: bool = True
    ) -> Tensor:
        """Follow the gradient as `AdamEma.apply` does."""
        c = self.decaying
        # float64 and on one device, whether the host or the device counts: the same bits
        made = torch.as_tensor(self.steps, device=self.params[0].device).double()
        self.steps += 1
        cosine = (1 + torch.cos(math.pi * (made / c.decay_steps).clamp(max=1.0))) / 2
        rate = (c.lr * cosine).float()
        # float32 as PyTorch's kernel reads it; beyond 2^24 steps there is nothing left to correct
        number = (made + 1).float()
        with torch.no_grad():
            grads = [*grads]
            if more_grads:
                torch._foreach_add_(grads, [*more_grads])
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._fused_adamw_(
                *(self.params, grads, self.first, self.second, [], [number] * len(grads)),
                lr=rate,
                beta1=c.b1,
                beta2=c.b2,
                weight_decay=c.weight_decay,
                eps=c.eps,
                amsgrad=False,
                maximize=False,
            )
            # it does not, and packed copies of the weights are made anew where a version has changed
            torch.autograd.graph.increment_version([*self.params, *self.first, *self.second])
            if ema and self.targets:
                torch._foreach_lerp_(self.targets, self.params, c.tau)
        return norm
