"""All randomness of one update, drawn in one place and passed to the losses.

Two sources: `NoiseSource` draws from torch's generators, `KeyedNoise` makes everything but the step
counts a function of a key on the device, which is what a CUDA graph can replay.

Shape letters: B batch, A action.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
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


def draw_steps(config: AgentConfig, host: torch.Generator) -> int:
    """Draw one k, uniform on {1, 2, ..., M_BTT}.

    It chooses what is computed, so it comes from the host's generator: reading it never waits for the
    device.
    """
    i = int(torch.randint(len(config.btt_steps), (), generator=host))
    return config.btt_steps[i]


class NoiseSource:
    """Draws `UpdateNoise` for a batch size, from one generator on the host and one on the device."""

    def __init__(
        self,
        batch_size: int,
        act_dim: int,
        config: AgentConfig,
        host: torch.Generator,
        device: torch.Generator,
    ):
        self._shape = (batch_size, act_dim)
        self._config = config
        self._host = host
        self._device = device
        self._strata = consistency_strata(batch_size, config.m_disc).to(device.device)
        self._strata_steps = torch.exp2(self._strata)

    def _normal(self, rows: int) -> Tensor:
        shape = (rows, self._shape[1])
        return torch.randn(shape, generator=self._device, device=self._device.device)

    def draw(self) -> UpdateNoise:
        """Draw the noise of one update."""
        B, strata, steps = self._shape[0], self._strata, self._strata_steps
        M, random, device = self._config.m_disc, self._device, self._device.device
        fm_t = torch.randint(M, (B,), generator=random, device=device) / M
        # u < 1 and steps a power of two, so floor(u * steps) <= steps - 1 exactly
        u = torch.rand(len(strata), generator=random, device=device)
        sc_t = (u * steps).floor_() / steps
        return UpdateNoise(
            td_steps=draw_steps(self._config, self._host),
            td_noise=self._normal(B),
            fm_t=fm_t,
            fm_noise=self._normal(B),
            sc_log2_steps=strata,
            sc_t=sc_t,
            sc_noise=self._normal(len(strata)),
            q_steps=draw_steps(self._config, self._host),
            q_noise=self._normal(B),
        )


class KeyedNoise:
    """Draws a minibatch's indices and its `UpdateNoise` as a function of `key` alone.

    Nothing here waits for the device, and nothing but the key changes between two draws: one that was
    recorded draws afresh at every replay.

    Parameters
    ----------
    batch_size, act_dim
        B and A.
    transitions
        T, size of the data set, below 2^31. An index is floor(w T / 2^32) for a 32-bit word w: some
        transitions are drawn more often than others, by at most T / 2^32 of their share.
    config
        The algorithm.
    key
        int64 [3] on the device: seed, call, row_offset of `ops.normals` and `ops.words`.
    """

    def __init__(
        self, batch_size: int, act_dim: int, transitions: int, config: AgentConfig, key: Tensor
    ):
        self._shape = (batch_size, act_dim)
        self._transitions = transitions
        self._m_disc = config.m_disc
        self._key = key
        strata = consistency_strata(batch_size, config.m_disc)
        self._strata = strata.to(key.device)
        self._strata_steps = torch.exp2(strata).long().to(key.device)

    def draw(self, td_steps: int, q_steps: int) -> tuple[Tensor, UpdateNoise]:
        """Return indices int64 [B] into the data and the noise of one update."""
        (B, A), steps = self._shape, self._strata_steps
        for_index, for_fm, for_sc = ops.words(self._key, 3 * B).view(3, B)
        noise = ops.normals(self._key, 4 * B, 1, A).view(4, B, A)
        return _below(self._transitions, for_index), UpdateNoise(
            td_steps=td_steps,
            td_noise=noise[0],
            fm_t=_below(self._m_disc, for_fm) / self._m_disc,
            fm_noise=noise[1],
            sc_log2_steps=self._strata,
            sc_t=_below(steps, for_sc[: len(steps)]) / steps,
            sc_noise=noise[2, : len(steps)],
            q_steps=q_steps,
            q_noise=noise[3],
        )


def _below(bound: int | Tensor, words: Tensor) -> Tensor:
    """Turn 32-bit words into integers below `bound`, at most 2^31; uniform for a power of two."""
    return (words * bound) >> 32
