"""Names, shapes and sizes of a network: the only place that knows what its first layer reads.

A network is a stack of `depth` hidden layers and a last one. Its first layer reads the observation,
the action's columns and `extra` scalars behind them: an actor's are t and log2(1/h) (O + A + 2
inputs), a critic's is the step count k (O + A + 1). Layer i has a weight w [in, out], a bias b [out]
and, where hidden layers end in a LayerNorm, a gain g and a shift c [out]; networks with a LayerNorm
are ensembles, whose tensors have an axis E in front.

Shape letters: O observation, A action, H hidden, E members of an ensemble.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, Self, TypeVar

T = TypeVar("T")

LETTERS = "wbgc"  # of a layer's tensors, in their order
ACTOR_EXTRA = 2  # t and log2(1/h)
CRITIC_EXTRA = 1  # k


class Shaped(Protocol):
    """An array of numpy or torch."""

    @property
    def shape(self) -> Sequence[int]:
        """Its sizes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of one network; hashable, and in the order in which csrc and the kernels name them."""

    obs: int  # O
    act: int  # A, the action's columns of the first layer
    extra: int  # scalar columns behind them
    hidden: int  # H
    depth: int  # hidden layers
    out: int  # A of an actor, 1 of a critic
    members: int  # E, 1 of an actor
    norm: bool  # LayerNorm after each hidden layer's GELU, and the axis E

    @classmethod
    def actor(cls, obs: int, act: int, hidden: int, depth: int) -> Self:
        """Return the layout of a velocity field: [x, z, t, log2(1/h)] -> [A]."""
        return cls(obs, act, ACTOR_EXTRA, hidden, depth, act, 1, False)

    @classmethod
    def critic(cls, obs: int, act: int, hidden: int, depth: int, ensemble: int) -> Self:
        """Return the layout of a critic ensemble: [x, a, k] -> [E]; act = 0 is V(x)."""
        return cls(obs, act, CRITIC_EXTRA, hidden, depth, 1, ensemble, True)

    @classmethod
    def of(cls, params: Sequence[Shaped], obs: int, act: int, norm: bool) -> Self:
        """Read a layout off the flat list of a network's parameters, layer by layer."""
        depth = (len(params) - 2) // (4 if norm else 2)
        members = params[0].shape[0] if norm else 1
        hidden, out = params[0].shape[-1], params[-1].shape[-1]
        extra = CRITIC_EXTRA if norm else ACTOR_EXTRA
        return cls(obs, act, extra, hidden, depth, out, members, norm)

    @classmethod
    def of_act(cls, params: Sequence[Shaped], act: int, norm: bool) -> Self:
        """Read a layout off parameters whose number of action columns is known, not that of x."""
        extra = CRITIC_EXTRA if norm else ACTOR_EXTRA
        return cls.of(params, params[0].shape[-2] - act - extra, act, norm)

    @classmethod
    def of_obs(cls, params: Sequence[Shaped], obs: int, norm: bool) -> Self:
        """Read a layout off parameters whose number of observations is known, not that of actions."""
        extra = CRITIC_EXTRA if norm else ACTOR_EXTRA
        return cls.of(params, obs, params[0].shape[-2] - obs - extra, norm)

    @property
    def inputs(self) -> int:
        """Inputs of the first layer."""
        return self.obs + self.act + self.extra

    @property
    def action_columns(self) -> slice:
        """Where the first layer reads the action."""
        return slice(self.obs, self.obs + self.act)

    @property
    def extra_columns(self) -> slice:
        """Where it reads the scalars behind: an actor's t and log2(1/h), a critic's k."""
        return slice(self.obs + self.act, self.inputs)

    @property
    def log2_column(self) -> slice:
        """Where an actor reads log2(1/h)."""
        return slice(self.inputs - 1, self.inputs)

    @property
    def lead(self) -> tuple[int, ...]:
        """Axes in front of every tensor: (E,) or ()."""
        return (self.members,) if self.norm else ()

    @property
    def products(self) -> int:
        """Multiplications of one row: the numbers of all weights w."""
        return sum(prod(layer["w"]) for layer in self.layers())

    def layers(self) -> list[dict[str, tuple[int, ...]]]:
        """Return the shape of every tensor by its letter, layer by layer."""
        found = []
        for i in range(self.depth + 1):
            fan_in = self.hidden if i else self.inputs
            width = self.out if i == self.depth else self.hidden
            letters = LETTERS if self.norm and i < self.depth else "wb"
            vector = (*self.lead, width)
            found.append({x: (*self.lead, fan_in, width) if x == "w" else vector for x in letters})
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by its name in a file, `{layer}/{letter}`."""
        return {
            f"{i}/{x}": shape for i, layer in enumerate(self.layers()) for x, shape in layer.items()
        }

    def build(self, make: Callable[[int, str, tuple[int, ...]], T]) -> list[tuple[T, ...]]:
        """Return the layers of a network whose tensors are make(layer, letter, shape), in their order."""
        return [
            tuple(make(i, x, shape) for x, shape in layer.items())
            for i, layer in enumerate(self.layers())
        ]

    def gather(self, arrays: Mapping[str, T], prefix: str = "") -> tuple[tuple[T, ...], ...]:
        """Return the layers of a network whose tensors have the names of `shapes` behind a prefix."""
        return tuple(self.build(lambda i, x, _: arrays[f"{prefix}{i}/{x}"]))

    def group(self, params: Sequence[T]) -> list[tuple[T, ...]]:
        """Return a flat list of parameters as layers."""
        rest = iter(params)
        return self.build(lambda i, x, _: next(rest))

    def __len__(self) -> int:
        """Return how many tensors the network has."""
        return (len(LETTERS) if self.norm else 2) * self.depth + 2


def named(layers: Sequence[Sequence[T]]) -> dict[str, T]:
    """Return the tensors of a network by their names in a file, the inverse of `Layout.gather`."""
    return {
        f"{i}/{x}": tensor
        for i, layer in enumerate(layers)
        for x, tensor in zip(LETTERS, layer, strict=False)
    }
