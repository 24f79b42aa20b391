"""The minibatch that data hands to learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Batch(NamedTuple):
    """Transitions (x, a, r, x', mask). B batch, O observation, A action; all float32, one device.

    The next action is there only where a method asks for it (`Method.fields`).
    """

    observations: torch.Tensor  # x [B, O]
    actions: torch.Tensor  # a [B, A], in [-1, 1]
    rewards: torch.Tensor  # r [B]
    next_observations: torch.Tensor  # x' [B, O]
    masks: torch.Tensor  # [B], 0 where the task is done (no bootstrap), 1 elsewhere
    next_actions: torch.Tensor | None = None  # a' [B, A], the data's action at x'
