"""Recorded calls as a program of csrc: what can be made again without Python and PyTorch, in one call.

The operations are `native`'s own, looked up once, and those of PyTorch whose numbers are the same whoever
computes them: one rounding an element, or sums, where PyTorch is seen to add in the order that csrc knows.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _native
from ..layout import Layout
from . import native
from .recorded import Call, block

# Numbers that PyTorch adds on one thread, whatever its number of threads.
MOST_SUMMED = 1 << 15


class Program:
    """Calls that are made again by `run`, in order.

    Parameters
    ----------
    calls
        Of which `is_native` holds.
    places
        Blocks of memory that stand for those of storages that begin at these addresses.
    """

    def __init__(self, calls: Sequence[Call], places: Mapping[int, Tensor]) -> None:
        self._program = _native.TrainProgram()
        self._places = places
        self._kept: list[Tensor] = []  # addresses alone would keep nothing alive
        self._networks = {id(x): x for call in calls if call.ours for x in _networks(call)}
        self._optimised: list[native._Packed] = []
        self._changed: list[Tensor] = []
        for call in calls:
            if call.ours:
                _OURS[_name(call)](self, call)
            else:
                self._elementwise(call)

    def run(self) -> None:
        """Make the calls."""
        for packed in self._networks.values():
            packed.look()
        try:
            self._program.run()
        finally:
            # csrc wrote behind torch's back: whoever holds an older version must notice,
            if self._changed:
                torch.autograd.graph.increment_version(self._changed)
            # but csrc, which knows what it has packed since
            for packed in self._optimised:
                packed.seen()

    def _address(self, x: Tensor | None) -> int:
        """Return where a tensor is, or what stands for it."""
        if x is None:
            return 0
        start = block(x)
        if start in self._places:
            place = self._places[start]
            self._kept.append(place)
            return place.data_ptr() + x.data_ptr() - start
        self._kept.append(x.detach())
        return x.data_ptr()

    def _read(self, x: Tensor) -> int:
        """Return where a tensor is, or a contiguous copy that each run renews."""
        if x.is_contiguous():
            return self._address(x)
        copy = torch.empty(x.shape, dtype=x.dtype)
        self._add("copy", copy, [x])
        return self._address(copy)

    def _add(self, op: str, out: Tensor, operands: Sequence[Tensor | float]) -> None:
        rows, columns = _matrix(out.shape)

        def operand(x: Tensor | float) -> tuple[int, int, int, float]:
            if not isinstance(x, Tensor):
                return 0, 0, 0, float(x)
            x = x.detach().expand(out.shape)
            strides = [s for s, n in zip(x.stride(), x.shape, strict=True) if n != 1]
            of_rows, of_columns = [0, 0, *strides][-2:]
            return self._address(x), of_rows, of_columns, 0.0

        self._program.elementwise(op, rows, columns, operand(out), [operand(x) for x in operands])

    def _elementwise(self, call: Call) -> None:
        self._changed += call.written()
        if _name(call) == "add_.Tensor":
            self._program.increment(self._address(call.args[0]), call.args[1])
            return
        if (found := _row_sums(call)) is not None:
            x, out, divisor = found
            rows, columns = x.shape
            name = f"row_sum_{_lanes(rows, columns, divisor)}"
            of_sums, of_rows = (self._address(out), 1, 0, 0.0), (self._address(x), columns, 1, 0.0)
            self._program.elementwise(name, rows, columns, of_sums, [of_rows])
            if divisor is not None:
                self._add("div", out, [out, divisor])
            return
        for op in _operations(call):
            self._add(*op)

    def _forward(self, kind: native.Kind, call: Call) -> None:
        params, obs, act, *rest, _, save = call.args
        steps, values = 1, (0.0, 0.0)
        extra: tuple[int, int] = 0, 0
        if kind == native.VELOCITY:
            extra = self._read(rest[0]), self._read(rest[1])
        elif kind == native.ROLLOUT:
            steps, values = rest[0], (0.0, rest[1])
        else:
            values = (float(rest[0]), 0.0)
        out, saved = call.result
        (packed,) = _networks(call)
        self._kept += params
        self._program.forward(
            *(packed.net, packed.addresses, len(act), steps, kind.rollout),
            *(self._read(obs), self._read(act), *extra, *values),
            *(self._address(out), self._address(saved) if save else 0),
        )

    def _backward(self, call: Call) -> None:
        grad, params, saved, norm, rollout, _, steps, *_, weights, to_obs, to_act = call.args
        (packed,) = _networks(call)
        self._kept += params
        addresses = [self._address(x) for x in call.result]
        n = len(params) if weights else 0
        of_inputs = iter(addresses[n:])
        self._program.backward(
            *(packed.net, packed.addresses, grad.shape[1 if norm else 0], steps, rollout),
            *(self._read(grad), self._address(saved), addresses[:n]),
            *(next(of_inputs) if there else 0 for there in (to_obs, to_act)),
        )

    def _adam(self, call: Call) -> None:
        params, grads, more, first, second, targets, step, *rates = call.args
        of_grads = [[self._read(g) for g in part] for part in (grads, more) if part]
        of_params, *moments = [
            [self._address(x) for x in part] for part in (params, first, second, targets)
        ]
        rates = [*rates, False] if len(rates) == 6 else rates  # ema_before where it was left out
        written = {*of_params, *moments[-1]}
        own = [x for x in self._networks.values() if written & {*x.addresses}]
        self._program.adam(
            *(native.isa_of_adam(), of_params, of_grads, *moments, [p.numel() for p in params]),
            *(self._address(step), *rates, self._address(call.result)),
            [x.net for x in own if written >= {*x.addresses}],
            [x.net for x in own if not written >= {*x.addresses}],
        )
        self._optimised += own
        # one object a parameter, the one that `seen` reads too: after csrc's work each is far away
        aliases = {
            at: x for packed in own for at, x in zip(packed.addresses, packed.aliases, strict=True)
        }
        self._changed += [aliases.get(x.data_ptr(), x) for x in call.written()]


_OURS: dict[str, Callable[[Program, Call], None]] = {
    "velocity.default": lambda program, call: program._forward(native.VELOCITY, call),
    "rollout.default": lambda program, call: program._forward(native.ROLLOUT, call),
    "critic_ensemble.default": lambda program, call: program._forward(native.CRITIC, call),
    "network_backward.default": Program._backward,
    "adam_ema_step.default": Program._adam,
}


def is_native(call: Call) -> bool:
    """Whether a program can make a call again."""
    if call.ours:
        return _name(call) in _OURS
    if _name(call) == "add_.Tensor":
        x, n = call.args[0], call.args[1:]
        return x.dtype == torch.int64 and x.ndim == 0 and isinstance(n[0], int) and not call.kwargs
    if (found := _row_sums(call)) is not None:
        return _lanes(*found[0].shape, found[2]) is not None
    return next(_operations(call), None) is not None and all(map(_possible, _operations(call)))


def _name(call: Call) -> str:
    return str(call.operation).partition(".")[2]


def _networks(call: Call) -> list[native._Packed]:
    """Return the packed copy that one of our calls runs on; the optimiser has none."""
    owner = call.kwargs.get("owner", 0)
    if _name(call) == "adam_ema_step.default":
        return []
    if _name(call) == "network_backward.default":
        _, params, _, norm, _, act_dim, _, precision, isa, *_ = call.args
        return [native.network(Layout.of_act(params, act_dim, norm), params, precision, isa, owner)]
    params, obs, act, *_, precision, _ = call.args
    sizes = Layout.of(params, obs.shape[1], act.shape[1], _name(call) == "critic_ensemble.default")
    return [native.network(sizes, params, precision, native.choose_isa(precision), owner)]


class _Operation(NamedTuple):
    """One of csrc/train/elementwise.hpp."""

    op: str
    out: Tensor
    operands: list[Tensor | float]


_BOOLEAN = {"ge", "le", "eq", "and"}  # what these give


def _possible(x: _Operation) -> bool:
    """Whether types and shapes are those that csrc has it for."""
    given = [torch.float32] * len(x.operands)
    if x.op == "and":
        given = [torch.bool] * 2
    elif x.op == "where":
        given[0] = torch.bool
    of_types = all(
        y.dtype == want if isinstance(y, Tensor) else type(y) in (int, float)
        for y, want in zip(x.operands, given, strict=True)
    )
    return (
        of_types
        and x.out.dtype == (torch.bool if x.op in _BOOLEAN else torch.float32)
        and x.out.device.type == "cpu"
        and x.out.numel() > 0
        and len([n for n in x.out.shape if n != 1]) <= 2
    )


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Return rows and columns of a shape that has no more."""
    rows, columns = [1, 1, *(n for n in shape if n != 1)][-2:]
    return rows, columns


def _operations(call: Call) -> Iterator[_Operation]:
    """Say one of PyTorch's calls in csrc's operations; say nothing if that cannot be."""
    out, args = call.result, call.args
    match _name(call), args:
        case _ if call.kwargs:  # nothing below has any that changes nothing
            return
        case (("add.Tensor" | "sub.Tensor" | "mul.Tensor" | "div.Tensor" as name), (a, b)):
            yield _Operation(name[:3], out, [a, b])
        case (("mul.Scalar" | "div.Scalar" as name), (a, b)):
            yield _Operation(name[:3], out, [a, b])
        case "rsub.Scalar", (a, b):
            yield _Operation("sub", out, [b, a])
        case (("neg.default" | "abs.default" as name), (a,)):
            yield _Operation(name[:3], out, [a])
        case "pow.Tensor_Scalar", (a, 2):
            yield _Operation("mul", out, [a, a])
        case ("pow.Tensor_Scalar", (a, 1)) | ("clone.default", (a,)):
            yield _Operation("copy", out, [a])
        case "copy_.default", (a, b):
            yield _Operation("copy", a, [b])
        case "clamp.default", (a, least, *largest):
            yield _Operation("clamp", out, [a, *_bounds(least, *largest)])
        case (("ge.Scalar" | "le.Scalar" | "eq.Scalar" as name), (a, b)):
            yield _Operation(name[:2], out, [a, b])
        case "logical_and_.default", (a, b):
            yield _Operation("and", a, [a, b])
        case "where.self", (a, b, c):
            yield _Operation("where", out, [a, b, c])
        case "mean.dim", (a, [0]) if a.shape[0] == 2:
            yield _Operation("half_sum", out, [a[0], a[1]])
        case "sum.dim_IntList", (a, [0]) if a.shape[0] == 2:
            yield _Operation("sum", out, [a[0], a[1]])
        case "amin.default", (a, [0]) if a.shape[0] == 2:
            yield _Operation("min", out, [a[0], a[1]])
        case "cat.default", (parts, *dim) if dim in ([], [0]):
            start = 0
            for part in parts:
                yield _Operation("copy", out[start : start + len(part)], [part])
                start += len(part)
        case "stack.default", (parts, *dim) if dim in ([], [0]):
            for i, part in enumerate(parts):
                yield _Operation("copy", out[i], [part])
        case "select_backward.default", (a, _, dim, index):
            yield _Operation("copy", out, [0.0])
            yield _Operation("copy", out.select(dim, index), [a])


class _RowSums(NamedTuple):
    """A sum of each row of a matrix, or the mean of its one row."""

    x: Tensor  # [rows, columns], contiguous
    out: Tensor
    divisor: float | None


def _row_sums(call: Call) -> _RowSums | None:
    """Return what a call adds up, if it is numbers that lie beside each other."""
    if call.kwargs or not call.args or not isinstance(call.args[0], Tensor):
        return None
    x = call.args[0].detach()
    if not x.is_contiguous() or x.dtype != torch.float32 or not 0 < x.numel() < MOST_SUMMED:
        return None
    match _name(call), call.args:
        case "mean.default", (_,):
            return _RowSums(x.view(1, -1), call.result, x.numel())
        case "sum.dim_IntList", (_, [dim]) if dim in (-1, x.ndim - 1) and x.ndim > 0:
            return _RowSums(x.view(-1, x.shape[-1]), call.result.view(-1), None)
    return None


@functools.cache
def _lanes(rows: int, columns: int, divisor: float | None) -> int | None:
    """Return how many numbers csrc must add at a time for PyTorch's bits; None: that isn't how it adds.

    The order is PyTorch's own affair: it is another one with another instruction set, and may be another
    one with another version. So both add some numbers of which any other order would round otherwise.
    """
    random = torch.Generator().manual_seed(0)
    for lanes in (16, 8, 4, 1):
        same = True
        for _ in range(8 if rows * columns > 1 else 1):
            x = torch.randn((rows, columns), generator=random, dtype=torch.float32).exp()
            out = torch.empty(rows, dtype=torch.float32)
            program = _native.TrainProgram()
            of_sums, of_rows = (out.data_ptr(), 1, 0, 0.0), (x.data_ptr(), columns, 1, 0.0)
            program.elementwise(f"row_sum_{lanes}", rows, columns, of_sums, [of_rows])
            program.run()
            if divisor is None:
                same = same and torch.equal(out, x.sum(-1))
            else:
                same = same and torch.equal(out[0] / divisor, x.mean())
        if same:
            return lanes
    return None


def _bounds(least: float | None, largest: float | None = None) -> tuple[float, float]:
    return (
        -math.inf if least is None else least,
        math.inf if largest is None else largest,
    )
