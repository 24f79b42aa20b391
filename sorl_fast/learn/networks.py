"""The networks: parameters, and forwards that call ops.

Shape letters as in `ops.reference`. Names of the parameters are those of the policy file:
`{i}.w`, `{i}.b`, and for the critic's hidden layers `{i}.g`, `{i}.c`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import ops
from ..layout import LETTERS, Layout


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

    def _gather(self) -> ops.Parameters:
        # once, not at every call: reading a ParameterDict costs as much as a small product
        return ops.Parameters(tuple(x for _, x in _ordered(layer)) for layer in self.stack)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._layers = self._gather()  # .to(device) and .double() may replace the parameters
        return self

    def layers(self) -> ops.Parameters:
        """Return the parameters layer by layer, as `ops` reads them, which owns their packed copies."""
        return self._layers

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by their names in the policy file, `{i}/{w,b,g,c}`."""
        return {
            f"{i}/{name}": x for i, layer in enumerate(self.stack) for name, x in _ordered(layer)
        }

    def arrays(self) -> tuple[tuple[NDArray[np.float32], ...], ...]:
        """Return the parameters layer by layer as arrays on the host, as a policy file has them."""
        return tuple(tuple(x.detach().cpu().numpy() for x in layer) for layer in self.layers())


def _gather_again(network: nn.Module, _: object) -> None:
    assert isinstance(network, Network)
    network._layers = network._gather()


def _ordered(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """Weight, bias, gain, shift: ParameterDict itself sorts its names."""
    assert isinstance(layer, nn.ParameterDict)
    return [(letter, layer[letter]) for letter in LETTERS if letter in layer]


class ShortcutActor(Network):
    """Shortcut model s_theta(z, t, h | x), of `Layout.actor`."""

    def forward(self, obs: Tensor, z: Tensor, t: Tensor, log2_steps: Tensor) -> Tensor:
        """Return the velocity [B, A] at z [B, A], t [B], log2(1/h) [B]."""
        return ops.velocity(self.layers(), obs, z, t, log2_steps)

    def sample(self, obs: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Return actions [B, A] in [-1, 1] after `steps` Euler steps from noise [B, A]."""
        return ops.rollout(self.layers(), obs, noise, steps)


class CriticEnsemble(Network):
    """Critic ensemble Q_phi(x, a, k), of `Layout.critic`."""

    def forward(self, obs: Tensor, actions: Tensor, steps: int, frozen: bool = False) -> Tensor:
        """Return Q values [E, B] of actions [B, A] sampled with k = `steps` Euler steps.

        With `frozen` no gradient reaches the parameters, only the actions.
        """
        layers = self.layers()
        if frozen:
            layers = layers.detach()
        return ops.critic_ensemble(layers, obs, actions, steps)


class FlowActor(Network):
    """Velocity field v(x, z, t) of a flow that knows no step size: a shortcut actor, log2(1/h) fed 0."""

    def forward(self, obs: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Return the velocity [B, A] at z [B, A], t [B]."""
        return ops.velocity(self.layers(), obs, z, t, torch.zeros_like(t))

    def sample(self, obs: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Return actions [B, A] in [-1, 1] after `steps` Euler steps from noise [B, A]."""
        return ops.rollout(self.layers(), obs, noise, steps, log2_steps=0.0)


class DirectActor(Network):
    """One-step actor mu(x, z) or mu(x): a shortcut actor whose other inputs are fed 0."""

    def forward(self, obs: Tensor, z: Tensor | None = None) -> Tensor:
        """Return the output [B, A], not clipped, at z [B, A]; None: 0."""
        zero = obs.new_zeros(len(obs))
        if z is None:
            z = obs.new_zeros(len(obs), self.layers()[-1][0].shape[-1])
        return ops.velocity(self.layers(), obs, z, zero, zero)


class Value(Network):
    """Value V(x): a critic ensemble of one member without action, k fed 0."""

    def forward(self, obs: Tensor) -> Tensor:
        """Return V [B]."""
        return ops.critic_ensemble(self.layers(), obs, obs[:, :0], 0)[0]


def _uniform(shape: tuple[int, ...], fan_in: int, scale: float, random: torch.Generator) -> Tensor:
    """Uniform in +-sqrt(6 scale / (fan_in + fan_out)): Glorot's, with scale = 1."""
    bound = math.sqrt(6 * scale / (fan_in + shape[-1]))
    return torch.empty(shape).uniform_(-bound, bound, generator=random)


def fresh_layers(
    layout: Layout, generator: torch.Generator, *, unused: Sequence[slice] = (), last: float = 1.0
) -> list[dict[str, Tensor]]:
    """Return fresh parameters on the CPU, float32; biases 0, LayerNorm gains 1.

    Parameters
    ----------
    layout
        The network.
    generator
        Draws the weights, layer by layer; a CPU generator, so that they are equal on every device.
    unused
        Columns of the first layer's input that the method always feeds 0. Their weights start at 0,
        stay there, for so are their gradients, and do not count in the fan-in.
    last
        Scale of the last layer's variance.
    """
    layers = []
    for i, shapes in enumerate(layout.layers()):
        fan_in = shapes["w"][-2]
        if i == 0:
            fan_in -= sum(len(range(*columns.indices(fan_in))) for columns in unused)
        scale = last if i == layout.depth else 1.0
        layer = {"w": _uniform(shapes["w"], fan_in, scale, generator)}
        if i == 0:
            for columns in unused:
                layer["w"][..., columns, :] = 0
        layer["b"] = torch.zeros(shapes["b"])
        if "g" in shapes:
            layer["g"] = torch.ones(shapes["g"])
            layer["c"] = torch.zeros(shapes["c"])
        layers.append(layer)
    return layers
