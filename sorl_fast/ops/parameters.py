"""A network's parameters as operations take them, and who owns what the backends make of them.

A backend packs the parameters into the form that it reads. Packed copies belong to the network: they
are kept in its `Packings` and go when it goes. Parameters that are plain lists of layers belong to
nobody, and are packed at every call.
"""

import itertools
import threading
from collections.abc import Iterable
from typing import Any, Self
from weakref import WeakValueDictionary

from torch import Tensor

from .reference import Layers


class Packings:
    """The packed copies of one network's parameters.

    Attributes
    ----------
    number
        Stands for this owner where torch passes nothing but tensors and numbers: see `find`.
    copies
        By what a backend tells them apart by; its name comes first. Read and written under `lock`.
    """

    __slots__ = ("__weakref__", "copies", "lock", "number")

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.copies: dict[tuple[Any, ...], Any] = {}
        self.lock = threading.Lock()  # several threads may call the operations
        _alive[self.number] = self


_numbers = itertools.count(1)
_alive: WeakValueDictionary[int, Packings] = WeakValueDictionary()


def find(number: int) -> Packings | None:
    """Return the owner with a number while it lives; 0 is nobody's."""
    return _alive.get(number)


_forgotten = 0


def forgotten() -> int:
    """Return how many times the packed copies were forgotten."""
    return _forgotten


def forget() -> None:
    """Forget the packed copies of every network; see `sorl_fast.ops.forget`."""
    global _forgotten
    _forgotten += 1
    for reference in _alive.valuerefs():
        owner = reference()
        if owner is not None:
            with owner.lock:
                owner.copies.clear()


class Parameters(tuple[tuple[Tensor, ...], ...]):
    """The layers of a network, as `reference` describes them, with the owner of their packed copies.

    Parameters
    ----------
    layers
        The tensors, layer by layer. Write them in place: see `sorl_fast.ops`.
    packings
        The owner, if these are another view of tensors that have one.
    """

    packings: Packings

    def __new__(
        cls, layers: Iterable[tuple[Tensor, ...]], packings: Packings | None = None
    ) -> Self:
        """Take the layers."""
        self = super().__new__(cls, layers)
        self.packings = packings or Packings()
        return self

    def detach(self) -> "Parameters":
        """Return the same parameters, and the same packed copies, without a gradient."""
        return Parameters((tuple(x.detach() for x in layer) for layer in self), self.packings)

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy has tensors of its own, and so an owner of its own
        return Parameters, (tuple(self),)


def owned(layers: Layers) -> Parameters:
    """Return parameters that have an owner; what had none gets one that lives as long as the result."""
    return layers if isinstance(layers, Parameters) else Parameters(layers)
