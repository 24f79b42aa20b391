"""The operations on the CPU, through csrc: registered with torch.library, differentiable.

Shape letters as in `reference`. An actor or critic reaches an operation as the flat list of its
parameters, layer by layer. A forward that is to be differentiated returns what its backward needs as a
second output, bytes that only backward can read.

Everything here takes float32 CPU tensors; `sorl_fast.ops` sends others elsewhere.
"""

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native
from ..errors import BadInput
from .reference import Layers, flat

PRECISIONS = ("fp32", "bf16")
BLOCK = 32  # csrc cuts matrices into blocks of 32 x 32,
PITCH = BLOCK * BLOCK + 32  # which are so many elements apart
MAX_DEPTH = 16  # hidden layers that csrc has room for
_KEPT = 8  # networks whose packed weights are kept


def isas(precision: str) -> list[str]:
    """Return the instruction sets that training in `precision` can use here, slowest first."""
    return list(_native.train_isas(precision))


def choose_isa(precision: str) -> str:
    """Return the fastest instruction set for `precision`, or the one that SORL_CPU_ISA names.

    Raises
    ------
    BadInput
        This machine has none, or not that one.
    """
    there = isas(precision)
    wanted = os.environ.get("SORL_CPU_ISA", "")
    if wanted in there:
        return wanted
    if wanted or not there:
        have = ", ".join(there) or "none"
        raise BadInput(
            f"SORL_CPU_ISA is {wanted!r}, but training in {precision} on this machine has: {have}. "
            "Leave it unset, or set SORL_BACKEND=torch"
        )
    return there[-1]


class Kind(NamedTuple):
    """Which network an operation runs, and how its flat parameters are read."""

    norm: bool  # a critic: LayerNorm, one k column; else an actor: t and log2(1/h) columns
    rollout: bool

    @property
    def extra(self) -> int:
        """Scalar columns behind the action's."""
        return 1 if self.norm else 2


VELOCITY, ROLLOUT, CRITIC = Kind(False, False), Kind(False, True), Kind(True, False)


class Sizes(NamedTuple):
    """What csrc must know of a network."""

    obs: int
    act: int
    extra: int
    hidden: int
    depth: int
    out: int
    members: int
    norm: bool


def sizes_of(kind: Kind, params: Sequence[Tensor], obs: int, act: int) -> Sizes:
    """Read a network's sizes off its parameters."""
    depth = (len(params) - 2) // (4 if kind.norm else 2)
    members = params[0].shape[0] if kind.norm else 1
    hidden, out = params[0].shape[-1], params[-1].shape[-1]
    return Sizes(obs, act, kind.extra, hidden, depth, out, members, kind.norm)


def saved_bytes(s: Sizes, rows: int, steps: int, precision: str, isa: str) -> int:
    """Return how many bytes a forward keeps; rows may be symbolic. csrc/train/plan.hpp: Saved."""
    split = 2 if precision == "bf16" else 1
    size = _native.train_element_bytes(precision, isa)

    def blocks(n: int) -> int:
        return (n + BLOCK - 1) // BLOCK

    R, H = blocks(rows), blocks(s.hidden)
    per_row_block = blocks(split * s.obs) + steps * (
        blocks(split * (s.act + s.extra)) + 2 * s.members * s.depth * H
    )
    floats = R * BLOCK * (s.act + (s.members * s.depth * steps if s.norm else 0))
    return R * per_row_block * PITCH * size + 4 * floats


class _Packed:
    """One network's weights as csrc reads them, and the versions of the parameters they came from."""

    def __init__(self, sizes: Sizes, params: Sequence[Tensor], precision: str, isa: str):
        _check_parameters(sizes, params)
        self.net = _native.TrainNet(**sizes._asdict(), precision=precision, isa=isa)
        # Aliases: they keep the memory, and so its address, from going to other parameters while the
        # packed copy is known by that address.
        self.aliases = [p.detach() for p in params]
        self.addresses = [p.data_ptr() for p in params]
        self.forward: list[int] | None = None
        self.backward: list[int] | None = None

    def ready(self, forward: bool, backward: bool) -> Any:
        """Return the network, its weights packed for forward, for backward, or at once for both."""
        versions = [p._version for p in self.aliases]
        forward = forward and self.forward != versions
        # One pass over the weights is cheaper than two: who needed both before will need both again.
        backward = (backward or self.backward is not None) and self.backward != versions
        if forward or backward:
            self.net.pack(self.addresses, forward, backward)
        if forward:
            self.forward = versions
        if backward:
            self.backward = versions
        return self.net


def _check_parameters(s: Sizes, params: Sequence[Tensor]) -> None:
    """Refuse what csrc, which reads by address, would read beyond."""
    E = (s.members,) if s.norm else ()
    for layer in range(s.depth + 1):
        fan_in = s.hidden if layer else s.obs + s.act + s.extra
        width = (1 if s.norm else s.act) if layer == s.depth else s.hidden
        vector = (*E, width)
        shapes = [(*E, fan_in, width), vector] + [vector] * 2 * (s.norm and layer < s.depth)
        here, params = params[: len(shapes)], params[len(shapes) :]
        for want, p in zip(shapes, here, strict=True):
            if p.shape != want:
                raise BadInput(
                    f"a parameter of layer {layer} has the shape {list(p.shape)}, but must have "
                    f"{list(want)} with observations of {s.obs} and actions of {s.act} numbers"
                )


_packed: OrderedDict[tuple[Any, ...], _Packed] = OrderedDict()
_lock = threading.Lock()  # several threads may call the operations


def forget() -> None:
    """Forget all packed parameters; see `sorl_fast.ops.forget`."""
    with _lock:
        _packed.clear()


def _network(
    kind: Kind, params: Sequence[Tensor], obs: int, act: int, precision: str, isa: str
) -> _Packed:
    sizes = sizes_of(kind, params, obs, act)
    key = (precision, isa, sizes, *(p.data_ptr() for p in params))
    with _lock:
        found = _packed.get(key)
        if found is None:
            found = _packed[key] = _Packed(sizes, params, precision, isa)
            while len(_packed) > _KEPT:
                _packed.popitem(last=False)
        else:
            _packed.move_to_end(key)
    return found


def _lend(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an uninitialised tensor whose memory goes back to csrc's pool when it dies."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    lease = _native.Lease(count * dtype.itemsize)
    return torch.frombuffer(lease, dtype=dtype, count=count).view(tuple(shape))


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _forward(
    kind: Kind,
    params: Sequence[Tensor],
    obs: Tensor,
    act: Tensor,
    extra: tuple[Tensor | None, Tensor | None],
    values: tuple[float, float],
    steps: int,
    precision: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    obs, act = obs.contiguous(), act.contiguous()
    B, A = act.shape if act.ndim == 2 else (-1, -1)
    rows = obs.ndim == 2 and obs.shape[0] == B
    if not rows or any(x is not None and x.shape != (B,) for x in extra):
        given = [list(x.shape) for x in (obs, act, *extra) if x is not None]
        raise BadInput(
            f"the inputs have the shapes {given}, but must all have the same rows: [B, O], [B, A] and, "
            "of t and log2_steps, [B]"
        )
    isa = choose_isa(precision)
    packed = _network(kind, params, obs.shape[1], A, precision, isa)
    sizes = sizes_of(kind, params, obs.shape[1], A)
    out = torch.empty((sizes.members, B) if kind.norm else (B, A))
    count = saved_bytes(sizes, B, steps, precision, isa) if save else 0
    saved = _lend((count,), torch.uint8)
    net = packed.ready(forward=True, backward=save)
    t, log2_steps = (None if x is None else x.contiguous() for x in extra)
    net.forward(
        *(B, steps, kind.rollout, _address(obs), _address(act), _address(t), _address(log2_steps)),
        *(*values, out.data_ptr(), saved.data_ptr() if save else 0),
    )
    return out, saved


def _velocity(
    actor: Sequence[Tensor],
    obs: Tensor,
    z: Tensor,
    t: Tensor,
    log2_steps: Tensor,
    precision: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    extra, values = (t, log2_steps), (0.0, 0.0)
    return _forward(VELOCITY, actor, obs, z, extra, values, 1, precision, save)


def _rollout(
    actor: Sequence[Tensor], obs: Tensor, noise: Tensor, steps: int, precision: str, save: bool
) -> tuple[Tensor, Tensor]:
    values = (0.0, math.log2(steps))
    return _forward(ROLLOUT, actor, obs, noise, (None, None), values, steps, precision, save)


def _critic(
    critic: Sequence[Tensor], obs: Tensor, actions: Tensor, k: int, precision: str, save: bool
) -> tuple[Tensor, Tensor]:
    values = (float(k), 0.0)
    return _forward(CRITIC, critic, obs, actions, (None, None), values, 1, precision, save)


def _backward(
    grad: Tensor,
    params: Sequence[Tensor],
    saved: Tensor,
    norm: bool,
    rollout: bool,
    act_dim: int,
    steps: int,
    precision: str,
    isa: str,
    weights: bool,
    to_obs: bool,
    to_act: bool,
) -> list[Tensor]:
    """Gradients of the parameters, then of the observations, then of the actions: those asked for.

    isa is the forward's: each keeps what it saves in a layout of its own.
    """
    kind = Kind(norm, rollout)
    B = grad.shape[1 if norm else 0]
    O = params[0].shape[-2] - act_dim - kind.extra
    sizes = sizes_of(kind, params, O, act_dim)
    expected = (sizes.members, B) if norm else (B, act_dim)
    if grad.shape != expected:
        raise BadInput(
            f"the gradient has the shape {list(grad.shape)}, but must be {list(expected)}"
        )
    kept = saved_bytes(sizes, B, steps, precision, isa)
    if saved.numel() != kept:
        raise RuntimeError(
            f"a forward kept {saved.numel()} bytes, but {precision} on {isa} keeps {kept}: it ran on "
            "another instruction set. Set SORL_CPU_ISA before the first operation, or not at all"
        )
    if B == 0:
        grads = [torch.zeros(p.shape) for p in params if weights]
        inputs = [torch.zeros(0, n) for n, asked in ((O, to_obs), (act_dim, to_act)) if asked]
        return grads + inputs
    # torch's allocator is quicker where a gradient is no larger than what it keeps at hand
    grads = [
        _lend(p.shape) if p.numel() > 16384 else torch.empty(p.shape) for p in params if weights
    ]
    grad_obs = torch.empty((B, O)) if to_obs else None
    grad_act = torch.empty((B, act_dim)) if to_act else None
    grad = grad.contiguous()
    net = _network(kind, params, O, act_dim, precision, isa).ready(forward=False, backward=True)
    net.backward(
        *(B, steps, rollout, grad.data_ptr(), saved.data_ptr()),
        *([g.data_ptr() for g in grads], _address(grad_obs), _address(grad_act)),
    )
    return [*grads, *(x for x in (grad_obs, grad_act) if x is not None)]


def _adam_ema_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    more_grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    targets: Sequence[Tensor],
    step: int,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float,
    tau: float,
) -> Tensor:
    def addresses(tensors: Sequence[Tensor]) -> list[int]:
        return [x.data_ptr() for x in tensors]

    shapes = [p.shape for p in params]
    for name, others in (
        *(("grads", grads), ("more_grads", more_grads or grads)),
        *(("first", first), ("second", second), ("targets", targets)),
    ):
        if (given := [x.shape for x in others]) != shapes:
            want, got = ([list(x) for x in part] for part in (shapes, given))
            raise BadInput(f"{name} have the shapes {got}, but must have the parameters' {want}")
    grads = [g.contiguous() for g in grads]
    more_grads = [g.contiguous() for g in more_grads]
    lists = [addresses(grads)] + ([addresses(more_grads)] if more_grads else [])
    # arithmetic is float32 always, also where SORL_CPU_ISA names what multiplies bf16 only
    wanted, there = os.environ.get("SORL_CPU_ISA", ""), isas("fp32")
    norm = _native.adam(
        *(wanted if wanted in there else there[-1], addresses(params), lists),
        *(addresses(first), addresses(second), addresses(targets), [p.numel() for p in params]),
        *(step, lr, b1, b2, eps, clip_norm, tau),
    )
    # csrc wrote behind torch's back: whoever holds an older version must notice
    torch.autograd.graph.increment_version([*params, *first, *second, *targets])
    return torch.tensor(norm)


_NETWORK = "Tensor[] params, Tensor obs, Tensor act"
_SCHEMAS = {
    "velocity": (
        f"({_NETWORK}, Tensor t, Tensor log2_steps, str precision, bool save) -> (Tensor, Tensor)",
        _velocity,
    ),
    "rollout": (f"({_NETWORK}, int steps, str precision, bool save) -> (Tensor, Tensor)", _rollout),
    "critic_ensemble": (
        f"({_NETWORK}, int k, str precision, bool save) -> (Tensor, Tensor)",
        _critic,
    ),
    "network_backward": (
        "(Tensor grad, Tensor[] params, Tensor saved, bool norm, bool rollout, int act_dim, int steps, "
        "str precision, str isa, bool weights, bool to_obs, bool to_act) -> Tensor[]",
        _backward,
    ),
    "adam_ema_step": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor[] more_grads, Tensor(b!)[] first, "
        "Tensor(c!)[] second, Tensor(d!)[] targets, int step, float lr, float b1, float b2, float eps, "
        "float clip_norm, float tau) -> Tensor",
        _adam_ema_step,
    ),
}
_library: Any = torch.library.Library("sorl_fast", "DEF")  # type: ignore[no-untyped-call]
for _name, (_schema, _function) in _SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, _function, "CPU")


def _fake_forward(
    kind: Kind,
    params: Sequence[Tensor],
    obs: Tensor,
    act: Tensor,
    steps: int,
    precision: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    B, A = act.shape
    sizes = sizes_of(kind, params, obs.shape[1], A)
    count = saved_bytes(sizes, B, steps, precision, choose_isa(precision)) if save else 0
    out = obs.new_empty((sizes.members, B) if kind.norm else (B, A))
    return out, obs.new_empty((count,), dtype=torch.uint8)


@torch.library.register_fake("sorl_fast::velocity")
def _(params, obs, act, t, log2_steps, precision, save):  # type: ignore[no-untyped-def]
    return _fake_forward(VELOCITY, params, obs, act, 1, precision, save)


@torch.library.register_fake("sorl_fast::rollout")
def _(params, obs, act, steps, precision, save):  # type: ignore[no-untyped-def]
    return _fake_forward(ROLLOUT, params, obs, act, steps, precision, save)


@torch.library.register_fake("sorl_fast::critic_ensemble")
def _(params, obs, act, k, precision, save):  # type: ignore[no-untyped-def]
    return _fake_forward(CRITIC, params, obs, act, 1, precision, save)


@torch.library.register_fake("sorl_fast::network_backward")
def _(grad, params, saved, norm, rollout, act_dim, steps, precision, isa, weights, to_obs, to_act):  # type: ignore[no-untyped-def]
    B = grad.shape[1 if norm else 0]
    O = params[0].shape[-2] - act_dim - Kind(norm, rollout).extra
    grads = [torch.empty_like(p) for p in params] if weights else []
    return grads + [
        grad.new_empty((B, n)) for n, asked in ((O, to_obs), (act_dim, to_act)) if asked
    ]


@torch.library.register_fake("sorl_fast::adam_ema_step")
def _(params, *args, **kwargs):  # type: ignore[no-untyped-def]
    return params[0].new_empty(())


def _register_autograd(name: str, kind: Kind) -> None:
    """Make operation `name` differentiable, by hand.

    torch.library.register_autograd does the same, but flattens every list of parameters as a tree, in
    Python, several times a call.
    """
    operation = getattr(torch.ops.sorl_fast, name).default

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, n: int, *flat: Any) -> tuple[Tensor, Tensor]:
            params, rest = flat[:n], flat[n:]
            with torch._C._AutoDispatchBelowAutograd():
                out, saved = operation(list(params), *rest)
            ctx.save_for_backward(*params, saved)
            # else torch writes zeros as large as all that was kept
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(saved)
            ctx.n, ctx.others = n, len(rest) - 2
            ctx.act_dim = rest[1].shape[1]
            ctx.steps = rest[2] if kind.rollout else 1
            ctx.precision, ctx.saving = rest[-2:]
            ctx.isa = choose_isa(ctx.precision)
            return out, saved

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
            n = ctx.n
            asked: Sequence[bool] = ctx.needs_input_grad
            needs, to_obs, to_act = asked[1 : n + 1], asked[n + 1], asked[n + 2]
            if grad is None:
                return (None,) * (n + 3 + ctx.others)
            if not ctx.saving:
                raise RuntimeError(f"sorl_fast::{name} was called with save=False: no gradient")
            *params, saved = ctx.saved_tensors
            weights = any(needs)
            grads = torch.ops.sorl_fast.network_backward(
                *(grad, params, saved, kind.norm, kind.rollout, ctx.act_dim, ctx.steps),
                *(ctx.precision, ctx.isa, weights, to_obs, to_act),
            )
            of_params: list[Tensor | None] = [None] * n
            if weights:
                of_params = [g if need else None for g, need in zip(grads[:n], needs, strict=True)]
                grads = grads[n:]
            of_obs = grads[0] if to_obs else None
            of_act = grads[-1] if to_act else None
            return None, *of_params, of_obs, of_act, *[None] * ctx.others

    def autograd(params: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
        if _saving(params, *rest[:2]):
            return Differentiable.apply(len(params), *params, *rest)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return operation(list(params), *rest)

    _library.impl(name, autograd, "Autograd")


def _saving(params: Sequence[Tensor], *inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *params))


_register_autograd("velocity", VELOCITY)
_register_autograd("rollout", ROLLOUT)
_register_autograd("critic_ensemble", CRITIC)


def velocity(
    actor: Layers, obs: Tensor, z: Tensor, t: Tensor, log2_steps: Tensor, precision: str
) -> Tensor:
    """Return what `reference.velocity` does."""
    params = flat(actor)
    save = _saving(params, obs, z)
    out, _ = torch.ops.sorl_fast.velocity(params, obs, z, t, log2_steps, precision, save)
    return out


def rollout(actor: Layers, obs: Tensor, noise: Tensor, steps: int, precision: str) -> Tensor:
    """Return what `reference.rollout` does."""
    params = flat(actor)
    save = _saving(params, obs, noise)
    out, _ = torch.ops.sorl_fast.rollout(params, obs, noise, steps, precision, save)
    return out


def critic_ensemble(
    critic: Layers, obs: Tensor, actions: Tensor, steps: int, precision: str
) -> Tensor:
    """Return what `reference.critic_ensemble` does."""
    params = flat(critic)
    save = _saving(params, obs, actions)
    out, _ = torch.ops.sorl_fast.critic_ensemble(params, obs, actions, steps, precision, save)
    return out


def adam_ema_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    targets: Sequence[Tensor],
    step: int,
    *,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float,
    tau: float,
    more_grads: Sequence[Tensor] = (),
) -> Tensor:
    """Do what `reference.adam_ema_step` does."""
    return torch.ops.sorl_fast.adam_ema_step(
        *(list(params), list(grads), list(more_grads), list(first), list(second), list(targets)),
        *(step, lr, b1, b2, eps, clip_norm, tau),
    )
