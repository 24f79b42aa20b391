"""Best of N of a policy that stays as it is: its networks are made ready once, for one implementation.

Samplers run this, and the self-check judges this: what is judged is what runs.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from . import chain, reference
from .reference import Best, Layers
from .schedule import Schedule


class Prepared(NamedTuple):
    """A policy's networks, ready for one implementation of `reference.best_of_n`; they must not change."""

    implementation: str  # fused, chain or reference
    actor: Any
    critic: Any
    # of the networks and the arguments of `reference.best_of_n` after them
    function: Callable[..., Best]
    schedule: Any = (
        None  # the steps as the implementation takes them; None: a shortcut actor's equal ones
    )

    @property
    def draws(self) -> bool:
        """Whether `best_of_n` takes a key (int64 [3], see `reference.normals`) instead of noise.

        Then it takes candidates=N too.
        """
        return self.implementation == "fused"

    def following(self, schedule: Schedule | None) -> "Prepared":
        """Return it for other steps, which lie on the device from now on; None: equal ones of Euler's."""
        if self.implementation != "fused" or schedule is None:
            return self._replace(schedule=schedule)
        triton: Any = importlib.import_module(".triton_sampling", __package__)
        tabled = triton.Tabled(schedule, schedule.table(self.actor.weights.device))
        return self._replace(schedule=tabled)

    def best_of_n(
        self,
        obs: Tensor,
        noise: Tensor,
        steps: int,
        *args: Any,
        temperature: Tensor | None = None,
        **options: Any,
    ) -> Best:
        """Return the best of N: `reference.best_of_n` without its first two arguments; no gradient.

        temperature is read where there is a schedule, and must be given there.
        """
        if self.schedule is not None:
            options |= {"schedule": self.schedule, "temperature": temperature}
        return self.function(self.actor, self.critic, obs, noise, steps, *args, **options)


def prepare(
    implementation: str,
    actor: Layers,
    critic: Layers,
    obs: int,
    precision: str,
) -> Prepared:
    """Make a policy's networks ready for one implementation, O = `obs`.

    Parameters
    ----------
    implementation
        fused (one kernel), chain (PyTorch's products) or reference (float32 whatever the precision).
    actor, critic
        Layers as in `reference.best_of_n`, float32, on one device; no layers of a critic: none.
    obs
        O.
    precision
        fp32, tf32, fp16 or bf16.
    """
    if implementation == "reference":
        return Prepared(implementation, actor, critic, reference.best_of_n)
    if implementation == "chain":
        first, second = (chain.prepare(net, precision) if net else None for net in (actor, critic))
        return Prepared(implementation, first, second, chain.best_of_n_of)
    triton: Any = importlib.import_module(".triton_sampling", __package__)
    first, second = (
        triton.prepare(net, obs, precision) if net else None for net in (actor, critic)
    )
    return Prepared(implementation, first, second, triton.best_of_n_of)
