"""The rules of choosing one of N candidates, in plain PyTorch: as `act.rules` defines them.

All rows at once, without waiting for the device. Shape letters: B observations, N candidates, A action.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

DRAW = ("better", "soft")  # by a random number


class Rule(NamedTuple):
    """A rule, and what it reads beside the candidates."""

    name: str  # as of `pick`
    parameter: tuple[int, int]
    w: Tensor  # [A]
    key: Tensor | None = None  # int64 [3], as of `reference.uniforms`, where the rule draws

    @property
    def reads_q(self) -> bool:
        """Whether choosing needs the critic."""
        return self.name != "centre"

    def picks(self, u: Tensor | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return `pick` of actions, Q and which are good."""
        return lambda actions, q, good: pick(self.name, self.parameter, actions, q, good, self.w, u)


def pick(
    name: str,
    parameter: tuple[int, int],
    actions: Tensor,
    q: Tensor,
    good: Tensor,
    w: Tensor,
    u: Tensor | None,
) -> Tensor:
    """Return the index [B] of the chosen candidates; where none is good it means nothing.

    Parameters
    ----------
    name
        argmax, medoid, nearest, better, soft or centre.
    parameter
        Numerator and denominator of the rule's; read where it has one.
    actions
        [B, N, A], within the bounds where good.
    q
        [B, N], read where good, and not by centre.
    good
        [B, N], bool: the candidates that may be chosen.
    w
        [A], 2 over the bounds' width: what distances are measured in.
    u
        [B], in [0, 1), float32; read by better and soft.
    """
    if name == "argmax":
        return highest(q, good)
    n = good.sum(1, keepdim=True)
    up, down = parameter
    size = (up * n + down - 1) // down
    actions = torch.where(good.unsqueeze(-1), actions, 0)
    if name == "centre":
        return _medoid(actions * w, good)
    if name == "nearest":
        offset = (actions - actions.sum(1, keepdim=True) / n.unsqueeze(-1)) * w
        # two are equally near, which rounding must not decide
        squared = torch.where(n == 2, 0, (offset * offset).sum(-1))
        return highest(q, _least(squared, good, size))
    if name == "soft":
        assert u is not None
        return _soft(q, good, n, up / down, u)
    part = _least(-q, good, size)
    if name == "medoid":
        return _medoid(actions * w, part)
    assert u is not None
    number = (u.double() * size[:, 0]).long().unsqueeze(-1)
    return _first(part & (part.cumsum(1) > number))


def highest(q: Tensor, good: Tensor) -> Tensor:
    """Return the index [B] of the highest good Q [B, N], the smallest of equal ones."""
    ranked = torch.where(good, q, -torch.inf)
    # argmax leaves open which of equal entries it returns
    return _first(ranked == ranked.amax(1, keepdim=True))


def _first(mask: Tensor) -> Tensor:
    """Return the first index [B] where mask [B, N] is true; the last of all where it never is."""
    N = mask.shape[1]
    return torch.where(mask, torch.arange(N, device=mask.device), N - 1).amin(1)


def _least(value: Tensor, good: Tensor, size: Tensor) -> Tensor:
    """Return the mask [B, N] of the `size` [B, 1] good candidates with the least value [B, N]."""
    order = torch.argsort(torch.where(good, value, torch.inf), dim=1, stable=True)
    return (order.argsort(1) < size) & good


def _medoid(scaled: Tensor, part: Tensor) -> Tensor:
    """Return the index [B] in a part [B, N] with the least sum of distances to the others of it."""
    distance = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    sums = torch.where(part.unsqueeze(1), distance, 0).sum(-1)
    sums = torch.where(part, sums, torch.inf)
    return _first(sums == sums.amin(1, keepdim=True))


def _soft(q: Tensor, good: Tensor, n: Tensor, tau: float, u: Tensor) -> Tensor:
    mean = torch.where(good, q, 0).sum(1, keepdim=True) / n
    squares = torch.where(good, (q - mean) ** 2, 0)
    scale = tau * (squares.sum(1, keepdim=True) / n).sqrt()
    highest_q = torch.where(good, q, -torch.inf).amax(1, keepdim=True)
    spread = (scale > 0) & (scale < torch.inf)
    weights = torch.where(spread, ((q - highest_q) / scale).exp(), 1)
    sums = torch.where(good, weights, 0).cumsum(1)
    above = good & (sums > u.unsqueeze(-1) * sums[:, -1:])
    last = torch.where(good, torch.arange(q.shape[1], device=q.device), 0).amax(1)
    return torch.where(above.any(1), _first(above), last)
