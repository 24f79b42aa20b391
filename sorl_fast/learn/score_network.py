"""IDQL's own networks, in plain PyTorch: a residual score network, ReLU critics and a ReLU value.

Their layers are named like those of every network, `{i}/{w,b,g,c}`, in the order in which a forward
reads them.

Shape letters: B batch, O observation, A action, H width, F Fourier frequencies, E critics.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor
from torch.nn.functional import layer_norm

from ..ops.forms import relu_critics, relu_stack, score
from ..ops.reference import LAYER_NORM_EPS
from .networks import Network

WIDER = 4  # a block's inner width over H


class ScoreNetwork(Network):
    """Noise eps(x, z, t) of one diffusion step: `ops.forms.score`."""

    def forward(
        self,
        obs: Tensor,
        z: Tensor,
        t: Tensor,
        keep: Sequence[Tensor] | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return the noise [B, A].

        Parameters
        ----------
        obs, z, t
            [B, O], [B, A], and the number of the step [B], from 0.
        keep
            A mask [B, H] a block: 1 where dropout keeps; None: no dropout.
        dropout
            The probability that the masks were drawn with.
        """
        return score(self.layers(), obs, z, t, keep, dropout)


class ReluCritics(Network):
    """Q(x, a) of E critics, ReLU between layers."""

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Return Q [E, B]."""
        return relu_critics(self.layers(), obs, actions)


class ReluValue(Network):
    """V(x): LayerNorm on the observation, ReLU between layers."""

    def forward(self, obs: Tensor) -> Tensor:
        """Return V [B]."""
        (gain, shift), *rest = self.layers()
        x = layer_norm(obs, obs.shape[-1:], gain, shift, LAYER_NORM_EPS)
        return relu_stack(x, rest).squeeze(-1)


# ---- fresh parameters, on the CPU


def fresh_score(
    O: int, A: int, H: int, blocks: int, frequencies: int, random: Generator
) -> ScoreNetwork:
    """Return a fresh score network: Glorot's uniform, in the blocks LeCun's normal."""
    layers = [{"w": 0.2 * torch.randn(1, frequencies, generator=random)}]
    layers += [_glorot(2 * frequencies, H, random), _glorot(H, H, random)]
    layers += [_glorot(A + O + H, H, random)]
    for _ in range(blocks):
        wide = _lecun(H, WIDER * H, random)
        layers += [wide | {"g": torch.ones(H), "c": torch.zeros(H)}]
        layers += [_lecun(WIDER * H, H, random)]
    return ScoreNetwork([*layers, _glorot(H, A, random)])


def fresh_critics(
    O: int, A: int, H: int, depth: int, members: int, random: Generator
) -> ReluCritics:
    """Return fresh critics: Glorot's uniform."""
    widths = [O + A, *[H] * depth, 1]
    return ReluCritics([_glorot(*pair, random, members) for pair in pairwise(widths)])


def fresh_value(O: int, H: int, depth: int, random: Generator) -> ReluValue:
    """Return a fresh value: Glorot's uniform."""
    norm = {"g": torch.ones(O), "c": torch.zeros(O)}
    return ReluValue([norm, *(_glorot(*pair, random) for pair in pairwise([O, *[H] * depth, 1]))])


def _glorot(
    fan_in: int, fan_out: int, random: Generator, members: int | None = None
) -> dict[str, Tensor]:
    lead = () if members is None else (members,)
    bound = math.sqrt(6 / (fan_in + fan_out))
    w = torch.empty(*lead, fan_in, fan_out).uniform_(-bound, bound, generator=random)
    return {"w": w, "b": torch.zeros(*lead, fan_out)}


def _lecun(fan_in: int, fan_out: int, random: Generator) -> dict[str, Tensor]:
    """Normal of variance 1 / fan_in, cut off at two of the deviations that give it."""
    w = torch.empty(fan_in, fan_out)
    std = math.sqrt(1 / fan_in) / 0.87962566103423978  # that of a normal cut off at +-2
    torch.nn.init.trunc_normal_(w, std=std, a=-2 * std, b=2 * std, generator=random)
    return {"w": w, "b": torch.zeros(fan_out)}
