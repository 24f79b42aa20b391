"""Best of N of a policy that stays as it is: its networks are made ready once, for one implementation.

Samplers run this, and the self-check judges this: what is judged is what runs.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from . import chain, reference
from .reference import Best, Layers


class Prepared(NamedTuple):
    """A policy's networks, ready for one implementation of `reference.best_of_n`; they must not change."""

    implementation: str  # fused, chain or reference
    actor: Any
    critic: Any
    # of the networks and the arguments of `reference.best_of_n` after them
    function: Callable[..., Best]

    @property
    def draws(self) -> bool:
        """Whether `best_of_n` takes a key (int64 [3], see `reference.normals`) instead of noise.

        Then it takes candidates=N too.
        """
        return self.implementation == "fused"

    def best_of_n(self, *args: Any, **options: Any) -> Best:
        """Return the best of N: `reference.best_of_n` without its first two arguments; no gradient."""
        return self.function(self.actor, self.critic, *args, **options)


def prepare(
    implementation: str, actor: Layers, critic: Layers, obs: int, precision: str
) -> Prepared:
    """Make a policy's networks ready for one implementation, O = `obs`.

    Parameters
    ----------
    implementation
        fused (one kernel), chain (PyTorch's products) or reference (float32 whatever the precision).
    actor, critic
        Layers as in `reference.best_of_n`, float32, on one device.
    obs
        O.
    precision
        fp32, tf32, fp16 or bf16.
    """
    if implementation == "reference":
        return Prepared(implementation, actor, critic, reference.best_of_n)
    if implementation == "chain":
        networks = chain.prepare(actor, precision), chain.prepare(critic, precision)
        return Prepared(implementation, *networks, chain.best_of_n_of)
    triton = importlib.import_module(".triton", __package__)
    networks = triton.prepare(actor, obs, precision), triton.prepare(critic, obs, precision)
    return Prepared(implementation, *networks, triton.best_of_n_of)
