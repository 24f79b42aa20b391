"""Our operations of a recorded step, looked up once: what is left is the call of csrc."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..layout import Layout
from . import native


class _Memory:
    """Where a recorded call reads and writes: in place, or where large blocks have been moved to."""

    def __init__(self, places: Mapping[int, Tensor]) -> None:
        self._places = places
        self.kept: list[Tensor] = []  # addresses alone would keep nothing alive
        self.copies: list[tuple[Tensor, Tensor]] = []  # of what csrc cannot read where it is

    def address(self, x: Tensor | None) -> int:
        """Return where a contiguous tensor is."""
        if x is None:
            return 0
        start = x.untyped_storage().data_ptr()
        if start in self._places:
            place = self._places[start]
            self.kept.append(place)
            return place.data_ptr() + x.data_ptr() - start
        self.kept.append(x.detach())
        return x.data_ptr()

    def read(self, x: Tensor) -> int:
        """Return where any tensor, or a contiguous copy that each call renews, is."""
        if x.is_contiguous():
            return self.address(x)
        copy = x.detach().contiguous()
        self.copies.append((copy, x.detach()))
        return self.address(copy)

    def refresh(self) -> None:
        """Renew the copies."""
        for copy, x in self.copies:
            copy.copy_(x)


def prepared(
    operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any,
    places: Mapping[int, Tensor],
) -> Callable[[], Any] | None:  # fmt: skip
    """Return what does `operation(*args, **kwargs)` again, into the memory of its result.

    None: it is not csrc's, but a kernel that was asked for on the CPU, interpreted.

    Parameters
    ----------
    operation
        One of `native`'s, as torch.library has it.
    places
        Blocks of memory that stand for those of storages that begin at these addresses.
    """
    name = operation._schema.name.removeprefix("sorl_fast::")
    if name not in _PREPARE:
        return None
    return _PREPARE[name](args, kwargs.get("owner", 0), result, _Memory(places))


def _forward(
    kind: native.Kind, args: Sequence[Any], owner: int, result: Any, memory: _Memory
) -> Callable[[], None]:
    params, obs, act, *rest, precision, save = args
    steps, values = 1, (0.0, 0.0)
    extra: tuple[int, int] = 0, 0
    if kind == native.VELOCITY:
        extra = memory.read(rest[0]), memory.read(rest[1])
    elif kind == native.ROLLOUT:
        steps, values = rest[0], (0.0, rest[1])
    else:
        values = (float(rest[0]), 0.0)
    out, saved = result
    B, A = act.shape
    sizes = Layout.of(params, obs.shape[1], A, kind.norm)
    packed = native.network(sizes, params, precision, native.choose_isa(precision), owner)
    given = (
        *(B, steps, kind.rollout, memory.read(obs), memory.read(act), *extra, *values),
        *(memory.address(out), memory.address(saved) if save else 0),
    )

    def forward() -> None:
        memory.refresh()
        packed.ready(forward=True, backward=save).forward(*given)

    return forward


def _backward(
    args: Sequence[Any], owner: int, result: Sequence[Tensor], memory: _Memory
) -> Callable[[], None]:
    grad, params, saved, norm, rollout, act_dim, steps, precision, isa, weights, *asked = args
    sizes = Layout.of_act(params, act_dim, norm)
    packed = native.network(sizes, params, precision, isa, owner)
    addresses = [memory.address(x) for x in result]
    n = len(params) if weights else 0
    of_inputs = iter(addresses[n:])
    given = (
        *(grad.shape[1 if norm else 0], steps, rollout, memory.read(grad), memory.address(saved)),
        *(addresses[:n], *(next(of_inputs) if there else 0 for there in asked)),
    )

    def backward() -> None:
        memory.refresh()
        packed.ready(forward=False, backward=True).backward(*given)

    return backward


def _adam_ema_step(
    args: Sequence[Any], _: int, result: Tensor, memory: _Memory
) -> Callable[[], None]:
    params, grads, more, first, second, targets, step, *rates = args
    of_grads = [[memory.read(g) for g in part] for part in (grads, more) if part]
    of_params, *moments = [
        [memory.address(x) for x in part] for part in (params, first, second, targets)
    ]
    sizes, changed = [p.numel() for p in params], [*params, *first, *second, *targets]
    isa = native.isa_of_adam()
    rates = [*rates, False] if len(rates) == 6 else rates  # ema_before where it was left out

    def adam() -> None:
        memory.refresh()
        norm = _native.adam(isa, of_params, of_grads, *moments, sizes, int(step), *rates)
        torch.autograd.graph.increment_version(changed)
        result.fill_(norm)

    return adam


_PREPARE: dict[str, Callable[..., Callable[[], None]]] = {
    "velocity": lambda *a: _forward(native.VELOCITY, *a),
    "rollout": lambda *a: _forward(native.ROLLOUT, *a),
    "critic_ensemble": lambda *a: _forward(native.CRITIC, *a),
    "network_backward": _backward,
    "adam_ema_step": _adam_ema_step,
}
