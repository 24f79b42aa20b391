"""A training step on the CPU as the flat list of what it called: recorded once, replayed without autograd.

Between two passes of csrc a step runs some hundred small operations of PyTorch, and with them the methods'
Python, the dispatcher and autograd, whose code each pass pushes out of the caches: milliseconds an update.
All that decides what is called, and with the same shapes, settings and choices it decides the same every
time. So the calls of one run are written down below autograd, each with the tensors that it read and wrote;
a replay makes them again, into the same memory: those that csrc can make together, as one call of it
(`program`), and the others when they are due. It computes what the step as written computes, bit for bit.
"""

import ctypes
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .recorded import Call, block, in_phases, tensors, written

# Recordings that one `Replayed` keeps: a step that is never the same again runs as written.
MOST = 64


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
            torch.autograd.graph.increment_version(written(func, args, kwargs or {}))
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


class _Recording:
    """The calls of one run, ready to be made again."""

    def __init__(self, calls: Sequence[Call], inputs: list[Tensor], result: Tensor, arena: Arena):
        from .program import Program, is_native  # there where anything was recorded

        self._inputs, self._result = inputs, result
        if torch.empty_like(result).stride() != result.stride():
            raise NotReplayable("there are gaps between the result's numbers")
        self._calls: list[Callable[[], Any]] = []
        calls = _changing([call for call in calls if not call.is_view])
        for call in calls:
            if call.ours and not is_native(
                call
            ):  # a kernel that was asked for on the CPU, interpreted
                raise NotReplayable(str(call.operation))
        phases = in_phases(calls, is_native)
        places = _places([call for _, phase in phases for call in phase], arena)
        for native, phase in phases:
            if native:
                self._calls.append(Program(phase, places).run)
            else:
                self._calls += [_again(call) for call in phase]

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        """Make the calls again, with other numbers in the inputs."""
        with torch.no_grad():
            # made now and filled by hand: after csrc's work torch's code is far away
            result = torch.empty_like(self._result)
            to, of, size = result.data_ptr(), self._result.data_ptr(), self._result.nbytes
            torch._foreach_copy_(self._inputs, [*inputs])
            for call in self._calls:
                call()
            ctypes.memmove(to, of, size)
            return result


# what these give depends on no number of their argument
_FILLED = {"ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full"}


def _changing(calls: Sequence[Call]) -> list[Call]:
    """Return the calls whose numbers are others in every replay: a loss's own gradient, say, is none."""
    constant: set[int] = set()
    written = {block(x) for call in calls if call.mutable for x in call.written()}
    changing = []
    for call in calls:
        read = [block(x) for x in call.given()]
        filled = call.operation._schema.name.removeprefix("aten::") in _FILLED
        made = {block(x) for x in call.made()}
        same = filled or all(x in constant for x in read)
        same = same and not call.random
        if same and made and not call.mutable and not made & written:
            constant |= made
        else:
            changing.append(call)
    return changing


def _places(calls: Sequence[Call], arena: Arena) -> dict[int, Tensor]:
    """Return which block of the arena stands for each large block that only our operations touch."""
    arena.begin()
    places: dict[int, Tensor] = {}
    last = _last_uses(calls)
    for i, call in enumerate(calls):
        for x in call.made():
            if block(x) in last and block(x) not in places:
                places[block(x)] = arena.take(x.numel() * x.element_size())
        for of, end in last.items():
            if end == i:
                arena.give(places[of])
    return places


def _last_uses(calls: Sequence[Call]) -> dict[int, int]:
    """Return of each large block that only our operations touch the last call that does."""
    last: dict[int, int] = {}
    for i, call in enumerate(calls):
        if call.ours and call.operation is not torch.ops.sorl_fast.adam_ema_step.default:
            for x in call.made():
                if x.numel() * x.element_size() >= 1 << 16:
                    last[block(x)] = i
    for i, call in enumerate(calls):
        for x in call.given():
            if block(x) in last:
                if call.ours:
                    last[block(x)] = i
                else:
                    del last[block(x)]
    return last


def _again(call: Call) -> Callable[[], Any]:
    """Return what makes one of PyTorch's own calls again, into the memory of its result."""
    operation, args, kwargs, result = call
    args = tuple(_detached(x) for x in args)
    kwargs = {name: _detached(x) for name, x in kwargs.items()}
    if operation._schema.is_mutable:
        if not operation._schema.name.startswith("aten::_fused_"):
            return lambda: operation(*args, **kwargs)
        changed = written(operation, args, kwargs)

        def fused() -> None:  # writes without a word to those who hold an older version
            operation(*args, **kwargs)
            torch.autograd.graph.increment_version(changed)

        return fused
    results = [x.detach() for x in tensors(result)]
    if not results:  # a number that the host has read, and may have acted upon
        raise NotReplayable(str(operation))
    into = _writing(operation)
    if into is not None and len(results) == len(into[1]):
        other, names = into
        kwargs |= dict(zip(names, results, strict=True))
        return lambda: other(*args, **kwargs)

    def copied() -> None:
        for own, x in zip(results, tensors(operation(*args, **kwargs)), strict=True):
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
