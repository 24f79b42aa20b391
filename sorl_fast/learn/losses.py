"""Parts of losses that several methods share: pure functions of tensors.

Shape letters: B batch, A action.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def interpolate(actions: Tensor, noise: Tensor, t: Tensor, flow_eps: float = 0.0) -> Tensor:
    """Return x_t = (1 - (1-e) t) x0 + t a [B, A] for actions and noise [B, A], t [B]."""
    t = t.unsqueeze(-1)
    return (1 - (1 - flow_eps) * t) * noise + t * actions


def gaussian_log_prob(mean: Tensor, actions: Tensor) -> Tensor:
    """Return log N(a; mu, 1) [B] of actions under means, both [B, A]."""
    return -0.5 * ((actions - mean).square() + math.log(2 * math.pi)).sum(-1)


def expectile_loss(v: Tensor, q: Tensor, expectile: float) -> Tensor:
    """Mean of w (q - v)^2, both [B]; w = expectile where q >= v, else 1 - expectile."""
    diff = q - v
    return (torch.where(diff >= 0, expectile, 1 - expectile) * diff.square()).mean()


def flow_loss(
    flow: Callable[[Tensor, Tensor, Tensor], Tensor],
    obs: Tensor,
    actions: Tensor,
    t: Tensor,
    noise: Tensor,
) -> Tensor:
    """Mean of ||v(x, (1-t) x0 + t a, t) - (a - x0)||^2; t [B] in [0, 1), noise x0 [B, A]."""
    return (flow(obs, interpolate(actions, noise, t), t) - (actions - noise)).square().mean()
