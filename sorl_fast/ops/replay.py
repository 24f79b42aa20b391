"""A training step on the CPU as the flat list of what it called: recorded once, replayed without autograd.

Between two passes of csrc a step runs some hundred small operations of PyTorch, and with them the methods'
Python, the dispatcher and autograd, whose code each pass pushes out of the caches: milliseconds an update.
All that decides what is called, and with the same shapes, settings and choices it decides the same every
time. So the calls of one run are written down below autograd, each with the tensors that it read and wrote;
a replay makes them again, in order, into the same memory. It computes what the step as written computes,
bit for bit.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Recordings that one `Replayed` keeps: a step that is never the same again runs as written.
MOST = 64


class Call(NamedTuple):
    """One operation as it was called below autograd."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


class _Listening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation that is called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable:  # torch counts no version of _foreach's tensors under a mode
            torch.autograd.graph.increment_version(_written(func, args, kwargs or {}))
        self.calls.append(Call(func, args, dict(kwargs or {}), result))
        return result


class NotReplayable(Exception):
    """A step did something that a replay would not do again."""


class Arena:
    """Memory of the large tensors that recordings of one step need only while they are replayed.

    All recordings share it: they are replayed one after the other. Blocks of one size serve one tensor
    after the other.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, list[Tensor]] = {}
        self._free: dict[int, list[Tensor]] = {}

    def begin(self) -> None:
        """Begin another recording: no block is taken."""
        self._free = {size: list(blocks) for size, blocks in self._blocks.items()}

    def take(self, size: int) -> Tensor:
        """Return a block of `size` bytes."""
        free = self._free.setdefault(size, [])
        if not free:
            from .native import lend  # there where anything was recorded

            free.append(lend((size,), torch.uint8))
            self._blocks.setdefault(size, []).append(free[-1])
        return free.pop()

    def give(self, block: Tensor) -> None:
        """Let a block serve the next who takes one of its size."""
        self._free[block.numel()].append(block)


class Replayed:
    """A step that runs as written twice for each key, and is replayed from then on.

    The first run warms up: what is made once is made there. The second is recorded.
    """

    def __init__(self) -> None:
        self._seen: dict[Hashable, _Recording | None] = {}  # None: seen once
        self._able = True
        self._arena = Arena()

    def __deepcopy__(self, _: Any) -> "Replayed":
        return Replayed()  # recordings write to the original's tensors

    def __call__(
        self, key: Hashable, inputs: Sequence[Tensor], step: Callable[..., Tensor]
    ) -> Tensor:
        """Return `step(*inputs)`, and change what it changes.

        Parameters
        ----------
        key
            All that decides which operations the step consists of, beside the shapes of the inputs.
        inputs
            Its tensors that are others every time. It may read and write more, if these stay where they
            are.
        step
            Reads no number of a tensor on the host, and returns a tensor that it has made.
        """
        if not self._able or not _usable(inputs):
            return step(*inputs)
        key = key, *(x.shape for x in inputs)
        if key not in self._seen:
            if len(self._seen) < MOST:
                self._seen[key] = None
            return step(*inputs)
        recording = self._seen[key]
        if recording is not None:
            return recording.replay(inputs)
        own = [x.detach().clone() for x in inputs]
        with _Listening() as listening:
            result = step(*own)
        try:
            self._seen[key] = _Recording(listening.calls, own, result.detach(), self._arena)
        except NotReplayable:
            self._able = False
        return result.clone()  # the next replay overwrites it


def _usable(inputs: Iterable[Tensor]) -> bool:
    """Whether nobody looks on, and changes what is called."""
    return (
        torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0
        and all(type(x) is Tensor and x.device.type == "cpu" for x in inputs)
    )


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of a call's argument or result."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [x for part in value for x in _tensors(part)]
    return []


def _written(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that a call writes to."""
    schema = operation._schema.arguments
    given = {a.name: x for a, x in zip(schema, args, strict=False)} | {**kwargs}
    written = [a.name for a in schema if a.alias_info is not None and a.alias_info.is_write]
    return _tensors([given.get(name) for name in written])


def _block(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _is_view(call: Call) -> bool:
    """Whether a call only looks at its argument's memory."""
    returns = call.operation._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


def _ours(call: Call) -> bool:
    return bool(call.operation.namespace == "sorl_fast")


class _Recording:
    """The calls of one run, ready to be made again."""

    def __init__(self, calls: Sequence[Call], inputs: list[Tensor], result: Tensor, arena: Arena):
        from .prepared import prepared

        self._inputs, self._result = inputs, result
        self._calls: list[Callable[[], Any]] = []
        calls = _changing([call for call in calls if not _is_view(call)])
        arena.begin()
        places: dict[int, Tensor] = {}
        last = _last_uses(calls)
        for i, call in enumerate(calls):
            for x in _tensors(call.result):
                if _block(x) in last and _block(x) not in places:
                    places[_block(x)] = arena.take(x.numel() * x.element_size())
            if _ours(call):
                again = prepared(*call, places)
                if again is None:
                    raise NotReplayable(str(call.operation))
                self._calls.append(again)
            else:
                self._calls.append(_again(call))
            for block, end in last.items():
                if end == i:
                    arena.give(places[block])

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """Make the calls again, with other numbers in the inputs."""
        with torch.no_grad():
            for own, x in zip(self._inputs, inputs, strict=True):
                own.copy_(x)
            for call in self._calls:
                call()
            return self._result.clone()


# what these give depends on no number of their argument
_FILLED = {"ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full"}


def _changing(calls: Sequence[Call]) -> list[Call]:
    """Return the calls whose numbers are others in every replay: a loss's own gradient, say, is none."""
    constant: set[int] = set()
    written = {
        _block(x)
        for call in calls
        if call.operation._schema.is_mutable
        for x in _written(call.operation, call.args, call.kwargs)
    }
    changing = []
    for call in calls:
        read = [_block(x) for x in _tensors([call.args, [*call.kwargs.values()]])]
        filled = call.operation._schema.name.removeprefix("aten::") in _FILLED
        made = {_block(x) for x in _tensors(call.result)}
        same = filled or all(block in constant for block in read)
        same = same and torch.Tag.nondeterministic_seeded not in call.operation.tags
        if same and made and not call.operation._schema.is_mutable and not made & written:
            constant |= made
        else:
            changing.append(call)
    return changing


def _last_uses(calls: Sequence[Call]) -> dict[int, int]:
    """Return of each large block that only our operations touch the last call that does."""
    last: dict[int, int] = {}
    for i, call in enumerate(calls):
        if _ours(call) and call.operation is not torch.ops.sorl_fast.adam_ema_step.default:
            for x in _tensors(call.result):
                if x.numel() * x.element_size() >= 1 << 16:
                    last[_block(x)] = i
    for i, call in enumerate(calls):
        for x in _tensors([call.args, [*call.kwargs.values()]]):
            if _block(x) in last:
                if _ours(call):
                    last[_block(x)] = i
                else:
                    del last[_block(x)]
    return last


def _again(call: Call) -> Callable[[], Any]:
    """Return what makes one of PyTorch's own calls again, into the memory of its result."""
    operation, args, kwargs, result = call
    args = tuple(_detached(x) for x in args)
    kwargs = {name: _detached(x) for name, x in kwargs.items()}
    if operation._schema.is_mutable:
        if not operation._schema.name.startswith("aten::_fused_"):
            return lambda: operation(*args, **kwargs)
        written = _written(operation, args, kwargs)

        def fused() -> None:  # writes without a word to those who hold an older version
            operation(*args, **kwargs)
            torch.autograd.graph.increment_version(written)

        return fused
    results = [x.detach() for x in _tensors(result)]
    if not results:  # a number that the host has read, and may have acted upon
        raise NotReplayable(str(operation))
    into = _writing(operation)
    if into is not None and len(results) == len(into[1]):
        other, names = into
        kwargs |= dict(zip(names, results, strict=True))
        return lambda: other(*args, **kwargs)

    def copied() -> None:
        for own, x in zip(results, _tensors(operation(*args, **kwargs)), strict=True):
            own.copy_(x)

    return copied


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple | list):
        return type(value)([_detached(x) for x in value])
    return value


def _writing(operation: Any) -> tuple[Any, list[str]] | None:
    """Return the overload that writes to given tensors, and what it calls them; None: there is none."""
    packet, wanted = operation.overloadpacket, _signature(operation, out=False)
    if any(str(r.type) != "Tensor" for r in operation._schema.returns):
        return None
    for name in packet.overloads():
        other = getattr(packet, name)
        names = [a.name for a in other._schema.arguments if a.is_out]
        if len(names) != len(operation._schema.returns) or _signature(other, out=False) != wanted:
            continue
        # one without a kernel of its own would compute elsewhere, and copy more slowly than we do
        if torch._C._dispatch_has_kernel_for_dispatch_key(other.name(), "CPU"):
            return other, names
    return None


def _signature(operation: Any, *, out: bool) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in operation._schema.arguments if a.is_out == out]
