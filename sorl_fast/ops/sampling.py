"""Best of N of a policy that stays as it is: its networks are made ready once, for one implementation.

Samplers run this, and the self-check judges this: what is judged is what runs.
"""

import importlib
from collections.abc import Callable, Mapping
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
    schedules: Mapping[int, Any]  # M -> the steps, as the implementation takes them

    @property
    def draws(self) -> bool:
        """Whether `best_of_n` takes a key (int64 [3], see `reference.normals`) instead of noise.

        Then it takes candidates=N too.
        """
        return self.implementation == "fused"

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

        The schedule is that of `steps`; where there is one, there must be a temperature.
        """
        if steps in self.schedules:
            options |= {"schedule": self.schedules[steps], "temperature": temperature}
        return self.function(self.actor, self.critic, obs, noise, steps, *args, **options)


def prepare(
    implementation: str,
    actor: Layers,
    critic: Layers,
    obs: int,
    precision: str,
    schedules: Mapping[int, Schedule] | None = None,
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
    schedules
        M -> its steps; a shortcut actor's where M is not there.
    """
    schedules = schedules or {}
    if implementation == "reference":
        return Prepared(implementation, actor, critic, reference.best_of_n, schedules)
    if implementation == "chain":
        first, second = (chain.prepare(net, precision) if net else None for net in (actor, critic))
        return Prepared(implementation, first, second, chain.best_of_n_of, schedules)
    triton: Any = importlib.import_module(".triton", __package__)
    first, second = (
        triton.prepare(net, obs, precision) if net else None for net in (actor, critic)
    )
    device = actor[0][0].device
    tables = {M: triton.Tabled(x, x.table(device)) for M, x in schedules.items()}
    return Prepared(implementation, first, second, triton.best_of_n_of, tables)
