"""The implementations of each operation (fused kernels, a chain of library products, the plain
reference), by name, and the tasks: an operation in a precision, on a network.

Shape letters as in `reference`.
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..layout import Layout
from . import reference
from .reference import Layers
from .schedule import Schedule

ACTOR_OPERATIONS = ("velocity", "rollout")
# best_of_n of a policy whose steps are a `Schedule`: other code of the kernel's
SCHEDULED = "best_of_n_scheduled"
SAMPLING_OPERATIONS = ("best_of_n", SCHEDULED)
NETWORK_OPERATIONS = (*ACTOR_OPERATIONS, "critic_ensemble", *SAMPLING_OPERATIONS)
PLAIN_OPERATIONS = ("adam_ema_step", "normals", "words")  # of no network, in one precision
OPERATIONS = (*NETWORK_OPERATIONS, *PLAIN_OPERATIONS)
NAMES = ("fused", "chain", "reference")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


class Network(NamedTuple):
    """Sizes of an actor and its critics."""

    obs: int
    act: int
    hidden: int
    depth: int
    members: int

    def layout(self, critic: bool) -> Layout:
        """Return the layout of the critics, or of the actor."""
        if critic:
            return Layout.critic(*self)
        return Layout.actor(self.obs, self.act, self.hidden, self.depth)


DEFAULT = Network(28, 5, 512, 4, 2)


class Task(NamedTuple):
    """What is examined as one: an operation in a precision, on a network."""

    operation: str
    precision: str
    network: Network

    @property
    def name(self) -> str:
        """The task's name in a table; what does not matter to the operation is left out of it."""
        if self.operation in PLAIN_OPERATIONS:
            return self.operation
        O, A, H, L, E = self.network
        E = 1 if self.operation in ACTOR_OPERATIONS else E
        return f"{self.operation} {self.precision} O{O} A{A} H{H} L{L} E{E}"


class Implementation(NamedTuple):
    """One implementation of an operation.

    `function` takes the arguments that the reference's does and, for an operation of a network,
    precision=. With `draws` it also takes a key (int64 [3], see `reference.normals`) instead of noise;
    best_of_n then takes candidates=; it also takes rule=. best_of_n_scheduled also takes schedule= and
    temperature=. `prepare` is `sampling.prepare` for the implementation, where a sampler makes networks
    ready once: what is timed is what follows.
    """

    function: Callable[..., Any]
    draws: bool = False
    prepare: Callable[..., Any] | None = None


def _late(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports its module when it is called, in the child."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f".{module}", __package__), name)(*args, **kwargs)

    return call


def _reference(name: str) -> Callable[..., Any]:
    def call(*args: Any, precision: str, **kwargs: Any) -> Any:
        return getattr(reference, name)(*args, **kwargs)

    return getattr(reference, name) if name in PLAIN_OPERATIONS else call


def _best_of_n(implementation: str) -> Implementation:
    prepare = functools.partial(_late("sampling", "prepare"), implementation)

    def call(
        actor: Layers, critic: Layers, obs: Tensor, noise: Tensor, steps: int, *args: Any,
        precision: str, schedule: Schedule | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        networks = prepare(actor, critic, obs.shape[-1], precision).following(schedule)
        return networks.best_of_n(obs, noise, steps, *args, **options)

    return Implementation(call, draws=implementation == "fused", prepare=prepare)


# operation -> name of the implementation -> implementation
ON_GPU: dict[str, dict[str, Implementation]] = {
    name: {
        "fused": Implementation(_late("triton", name), draws=name == "rollout"),
        **({"chain": Implementation(_late("chain", name))} if name in NETWORK_OPERATIONS else {}),
        "reference": Implementation(_reference(name)),
    }
    for name in OPERATIONS
    if name not in SAMPLING_OPERATIONS
}
# as a sampler runs it
ON_GPU |= {
    operation: {name: _best_of_n(name) for name in NAMES} for operation in SAMPLING_OPERATIONS
}

GPU = f"{__name__}:ON_GPU"


Implementations = Mapping[str, Mapping[str, Implementation]]


def registered(registry: str) -> Implementations:
    """Return what `module:attribute` names, a mapping or a function that returns one."""
    module, _, name = registry.partition(":")
    found = getattr(importlib.import_module(module), name)
    return found() if callable(found) else found


def tasks(network: Network, precisions: Sequence[str]) -> list[Task]:
    """Return every task of a network in some precisions, and those of no network."""
    found = [Task(name, p, network) for p in precisions for name in NETWORK_OPERATIONS]
    return found + [Task(name, "fp32", network) for name in PLAIN_OPERATIONS]
