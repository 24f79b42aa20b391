"""All randomness of one update, drawn in one place and passed to the losses.

Shape letters: B batch, A action.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..config import AgentConfig


class UpdateNoise(NamedTuple):
    """What one update draws, float32 tensors on the training's device."""

    td_steps: int  # k of the TD loss, from {1, 2, ..., M_BTT}
    td_noise: Tensor  # [B, A] standard normal
    fm_t: Tensor  # [B], in {0, ..., M_disc-1} / M_disc
    fm_noise: Tensor  # [B, A]
    sc_log2_steps: Tensor  # [B], log2(1/h) of the BIG step h
    sc_t: Tensor  # [B], in {0, h, 2h, ..., 1-h}
    sc_noise: Tensor  # [B, A]
    q_steps: int  # k of the Q loss, drawn apart from the TD loss's
    q_noise: Tensor  # [B, A]


def consistency_strata(batch_size: int, m_disc: int) -> Tensor:
    """Return log2(1/h) of every row [B]: equal strata L-1, ..., 0, rows left over get 0.

    L = log2(M_disc). M_disc = 1 has no strata: the result is empty, and so the loss is 0.
    """
    L = m_disc.bit_length() - 1
    if L == 0:
        return torch.zeros(0)
    strata = torch.arange(L - 1, -1, -1).repeat_interleave(batch_size // L)
    return torch.cat([strata, strata.new_zeros(batch_size - len(strata))]).float()


class NoiseSource:
    """Draws `UpdateNoise` for a batch size, from one generator on the host and one on the device.

    The step counts k are plain integers that choose what is computed, so they come from the host's
    generator: reading them never waits for the device.
    """

    def __init__(
        self,
        batch_size: int,
        act_dim: int,
        config: AgentConfig,
        host: torch.Generator,
        device: torch.Generator,
    ):
        self._shape = (batch_size, act_dim)
        self._m_disc = config.m_disc
        self._btt_steps = config.btt_steps
        self._host = host
        self._device = device
        self._strata = consistency_strata(batch_size, config.m_disc).to(device.device)
        self._strata_steps = torch.exp2(self._strata)

    def _steps(self) -> int:
        i = int(torch.randint(len(self._btt_steps), (), generator=self._host))
        return self._btt_steps[i]

    def _normal(self, rows: int) -> Tensor:
        shape = (rows, self._shape[1])
        return torch.randn(shape, generator=self._device, device=self._device.device)

    def draw(self) -> UpdateNoise:
        """Draw the noise of one update."""
        B, strata, steps = self._shape[0], self._strata, self._strata_steps
        random, device = self._device, self._device.device
        fm_t = torch.randint(self._m_disc, (B,), generator=random, device=device) / self._m_disc
        # u < 1 and steps a power of two, so floor(u * steps) <= steps - 1 exactly
        u = torch.rand(len(strata), generator=random, device=device)
        sc_t = (u * steps).floor_() / steps
        return UpdateNoise(
            td_steps=self._steps(),
            td_noise=self._normal(B),
            fm_t=fm_t,
            fm_noise=self._normal(B),
            sc_log2_steps=strata,
            sc_t=sc_t,
            sc_noise=self._normal(len(strata)),
            q_steps=self._steps(),
            q_noise=self._normal(B),
        )
