"""The two networks: parameters, and forwards that call ops.

Shape letters as in `ops.reference`. Names of the parameters are those of the policy file:
`{i}.w`, `{i}.b`, and for the critic's hidden layers `{i}.g`, `{i}.c`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from .. import ops
from ..config import AgentConfig


class Network(nn.Module):
    """A stack of layers, each a ParameterDict; `layers()` is what ops take."""

    def __init__(self, layers: Sequence[dict[str, Tensor]]):
        super().__init__()
        self.stack = nn.ModuleList(
            nn.ParameterDict({name: nn.Parameter(x) for name, x in layer.items()})
            for layer in layers
        )
        self._layers = self._gather()
        # load_state_dict(..., assign=True) replaces the parameters
        self.register_load_state_dict_post_hook(_gather_again)  # type: ignore[no-untyped-call]

    def _gather(self) -> list[tuple[Tensor, ...]]:
        # once, not at every call: reading a ParameterDict costs as much as a small product
        return [tuple(x for _, x in _ordered(layer)) for layer in self.stack]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._layers = self._gather()  # .to(device) and .double() may replace the parameters
        return self

    def layers(self) -> list[tuple[Tensor, ...]]:
        """Return the parameters layer by layer, as `ops` reads them."""
        return self._layers

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by their names in the policy file, `{i}/{w,b,g,c}`."""
        return {
            f"{i}/{name}": x for i, layer in enumerate(self.stack) for name, x in _ordered(layer)
        }


def _gather_again(network: nn.Module, _: object) -> None:
    assert isinstance(network, Network)
    network._layers = network._gather()


def _ordered(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """Weight, bias, gain, shift: ParameterDict itself sorts its names."""
    assert isinstance(layer, nn.ParameterDict)
    return [(name, layer[name]) for name in "wbgc" if name in layer]


class ShortcutActor(Network):
    """Shortcut model s_theta(z, t, h | x): O + A + 2 -> depth x H -> A."""

    def forward(self, obs: Tensor, z: Tensor, t: Tensor, log2_steps: Tensor) -> Tensor:
        """Return the velocity [B, A] at z [B, A], t [B], log2(1/h) [B]."""
        return ops.velocity(self.layers(), obs, z, t, log2_steps)

    def sample(self, obs: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Return actions [B, A] in [-1, 1] after `steps` Euler steps from noise [B, A]."""
        return ops.rollout(self.layers(), obs, noise, steps)


class CriticEnsemble(Network):
    """Critic ensemble Q_phi(x, a, k): E x (O + A + 1 -> depth x H -> 1)."""

    def forward(self, obs: Tensor, actions: Tensor, steps: int, frozen: bool = False) -> Tensor:
        """Return Q values [E, B] of actions [B, A] sampled with k = `steps` Euler steps.

        With `frozen` no gradient reaches the parameters, only the actions.
        """
        layers = self.layers()
        if frozen:
            layers = [tuple(x.detach() for x in layer) for layer in layers]
        return ops.critic_ensemble(layers, obs, actions, steps)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Glorot: uniform in +-sqrt(6/(fan_in + fan_out)), of the last two axes."""
    bound = math.sqrt(6 / (shape[-2] + shape[-1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _widths(inputs: int, outputs: int, config: AgentConfig) -> list[tuple[int, int]]:
    sizes = [inputs, *[config.hidden] * config.depth, outputs]
    return list(pairwise(sizes))


def make_actor(
    obs_dim: int, act_dim: int, config: AgentConfig, generator: torch.Generator
) -> ShortcutActor:
    """Return a fresh actor on the CPU, float32, its weights drawn from `generator`."""
    return ShortcutActor(
        [
            {"w": _uniform((i, o), generator), "b": torch.zeros(o)}
            for i, o in _widths(obs_dim + act_dim + 2, act_dim, config)
        ]
    )


def make_critic(
    obs_dim: int, act_dim: int, config: AgentConfig, generator: torch.Generator
) -> CriticEnsemble:
    """Return a fresh critic ensemble on the CPU, float32, its weights drawn from `generator`."""
    E = config.ensemble
    layers = [
        {"w": _uniform((E, i, o), generator), "b": torch.zeros(E, o)}
        for i, o in _widths(obs_dim + act_dim + 1, 1, config)
    ]
    for layer in layers[:-1]:
        layer["g"] = torch.ones_like(layer["b"])
        layer["c"] = torch.zeros_like(layer["b"])
    return CriticEnsemble(layers)
