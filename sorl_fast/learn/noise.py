"""All randomness of one update, declared by the method, drawn in one place and passed to its losses.

A method says what an update draws (`Plan`). Two sources draw it: `GeneratorNoise` from one of torch's
generators; `KeyedNoise` makes it a function of a key on the device, which is what a CUDA graph can
replay.

Shape letters: B batch, A action, R rows of one draw.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops


class Normal(NamedTuple):
    """Standard normal [R, A]."""

    rows: int


class Grid(NamedTuple):
    """Uniform on {0, 1, ..., steps - 1} / steps, [R]."""

    rows: int
    steps: int


class Grids(NamedTuple):
    """Row i uniform on {0, 1, ..., steps[i] - 1} / steps[i], steps[i] a power of two, [R]."""

    steps: Tensor  # float32 [R], on the host


class Uniform(NamedTuple):
    """Uniform on [0, 1), of any shape, in steps of 2^-24."""

    shape: tuple[int, ...]


class Fixed(NamedTuple):
    """No randomness: a tensor that every update reads, moved to the device once."""

    value: Tensor


Draw = Normal | Grid | Grids | Uniform | Fixed
Plan = Mapping[str, Draw]  # drawn in this order
Noise = Mapping[str, Tensor]  # float32, on the training's device, by the names of the plan


class GeneratorNoise:
    """Draws a plan from one generator, on the generator's device."""

    def __init__(self, plan: Plan, act_dim: int, generator: torch.Generator):
        self._plan = _on(plan, generator.device)
        self._act_dim = act_dim
        self._random = generator

    def draw(self) -> Noise:
        """Draw the noise of one update."""
        return {name: self._one(draw) for name, draw in self._plan.items()}

    def _one(self, draw: Draw) -> Tensor:
        random, device = self._random, self._random.device
        match draw:
            case Normal(rows):
                return torch.randn((rows, self._act_dim), generator=random, device=device)
            case Grid(rows, steps):
                return torch.randint(steps, (rows,), generator=random, device=device) / steps
            case Grids(steps):
                # u < 1 and steps a power of two, so floor(u * steps) <= steps - 1 exactly
                u = torch.rand(len(steps), generator=random, device=device)
                return (u * steps).floor_() / steps
            case Uniform(shape):
                return torch.rand(shape, generator=random, device=device)
            case Fixed(value):
                return value


class KeyedNoise:
    """Draws a minibatch's indices and a plan as a function of `key` alone.

    Nothing here waits for the device, and nothing but the key changes between two draws: one that was
    recorded draws afresh at every replay.

    Parameters
    ----------
    plan
        What is drawn.
    batch_size, act_dim
        B and A.
    transitions
        T, size of the data set, below 2^31. An index is floor(w T / 2^32) for a 32-bit word w: some
        transitions are drawn more often than others, by at most T / 2^32 of their share.
    key
        int64 [3] on the device: seed, call, row_offset of `ops.normals` and `ops.words`.
    """

    def __init__(self, plan: Plan, batch_size: int, act_dim: int, transitions: int, key: Tensor):
        self._plan = _on(plan, key.device)
        self._shape = (batch_size, act_dim)
        self._transitions = transitions
        self._key = key
        self._words = [_words_of(draw) for draw in plan.values()]
        # a draw of fewer rows than a batch takes a batch's numbers: what follows does not move
        self._normals = [
            max(draw.rows, batch_size) if isinstance(draw, Normal) else 0 for draw in plan.values()
        ]

    def draw(self) -> tuple[Tensor, Noise]:
        """Return indices int64 [B] into the data and the noise of one update."""
        B, A = self._shape
        index, *words = ops.words(self._key, B + sum(self._words)).split_with_sizes(
            [B, *self._words]
        )
        normals = ops.normals(self._key, sum(self._normals), 1, A)[:, 0].split_with_sizes(
            self._normals
        )
        noise = {
            name: self._one(draw, w, z)
            for (name, draw), w, z in zip(self._plan.items(), words, normals, strict=True)
        }
        return _below(self._transitions, index), noise

    def _one(self, draw: Draw, words: Tensor, normals: Tensor) -> Tensor:
        match draw:
            case Normal(rows):
                return normals[:rows]
            case Grid(_, steps):
                return _below(steps, words) / steps
            case Grids(steps):
                return _below(steps.long(), words) / steps
            case Uniform(shape):
                return ((words >> 8) * 2.0**-24).view(shape)
            case Fixed(value):
                return value


def _on(plan: Plan, device: torch.device) -> Plan:
    """Return the plan with its tensors on a device."""
    moved: dict[str, Draw] = {}
    for name, draw in plan.items():
        match draw:
            case Grids(steps):
                moved[name] = Grids(steps.to(device))
            case Fixed(value):
                moved[name] = Fixed(value.to(device))
            case _:
                moved[name] = draw
    return moved


def _words_of(draw: Draw) -> int:
    """Return how many 32-bit words a draw takes."""
    match draw:
        case Grid(rows, _):
            return rows
        case Grids(steps):
            return len(steps)
        case Uniform(shape):
            return torch.Size(shape).numel()
    return 0


def _below(bound: int | Tensor, words: Tensor) -> Tensor:
    """Turn 32-bit words into integers below `bound`, at most 2^31; uniform for a power of two."""
    return (words * bound) >> 32
