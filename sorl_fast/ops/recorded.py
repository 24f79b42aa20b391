"""What is known of a call that was recorded, and in which order recorded calls can be made again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """One operation as it was called below autograd."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def ours(self) -> bool:
        """Whether the operation is one of `native`'s."""
        return bool(self.operation.namespace == "sorl_fast")

    @property
    def mutable(self) -> bool:
        """Whether it writes to one of its arguments."""
        return bool(self.operation._schema.is_mutable)

    @property
    def is_view(self) -> bool:
        """Whether it only looks at its argument's memory."""
        returns = self.operation._schema.returns
        return bool(returns) and all(
            r.alias_info is not None and not r.alias_info.is_write for r in returns
        )

    @property
    def random(self) -> bool:
        """Whether it gives other numbers each time."""
        return torch.Tag.nondeterministic_seeded in self.operation.tags

    def given(self) -> list[Tensor]:
        """Return the tensors among its arguments."""
        return tensors([self.args, [*self.kwargs.values()]])

    def made(self) -> list[Tensor]:
        """Return the tensors of its result."""
        return tensors(self.result)

    def written(self) -> list[Tensor]:
        """Return the arguments that it writes to."""
        return written(self.operation, self.args, self.kwargs)


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors of a call's argument or result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [x for part in value for x in tensors(part)]
    return []


def written(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that a call writes to."""
    schema = operation._schema.arguments
    given = {a.name: x for a, x in zip(schema, args, strict=False)} | {**kwargs}
    names = [a.name for a in schema if a.alias_info is not None and a.alias_info.is_write]
    return tensors([given.get(name) for name in names])


def block(x: Tensor) -> int:
    """Return what tells the memory of a tensor, and of all views of it, from others."""
    return x.untyped_storage().data_ptr()


def in_phases(
    calls: Sequence[Call], native: Callable[[Call], bool]
) -> list[tuple[bool, list[Call]]]:
    """Return the calls in another order of the same effect, in as few phases as can be.

    Each phase is of `native` calls or of others: from one to the next what runs are other parts of the
    machine's code, that the caches have let go of. As many calls as can be made are made in each.
    """
    before = _before(calls)
    left, done = list(range(len(calls))), set[int]()
    phases: list[tuple[bool, list[Call]]] = []
    of_csrc = [native(call) for call in calls]
    now = False
    while left:
        phase, later = [], []
        for i in left:  # in order: what a call waits for comes before it
            if of_csrc[i] == now and before[i] <= done:
                done.add(i)
                phase.append(calls[i])
            else:
                later.append(i)
        if phase:
            phases.append((now, phase))
        left, now = later, not now
    return phases


def _before(calls: Sequence[Call]) -> list[set[int]]:
    """Return of each call the earlier ones that it must come after: they share memory one writes to."""
    RANDOM = -1  # stands for the generator's state
    reads, writes = [], []
    for call in calls:
        mine = {block(x) for x in [*call.written(), *call.made()]}
        writes.append(mine | {RANDOM} if call.random else mine)
        reads.append({block(x) for x in call.given()})
    return [
        {
            j
            for j in range(i)
            if writes[j] & (reads[i] | writes[i]) or reads[j] & writes[i]
        }
        for i in range(len(calls))
    ]  # fmt: skip
