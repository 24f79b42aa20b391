"""The operations on the CPU, through csrc: registered with torch.library, differentiable.

Shape letters as in `reference`. An actor or critic reaches an operation as the flat list of its
parameters, layer by layer, and as the number of who owns their packed copies. A forward that is to be
differentiated returns what its backward needs as a second output, bytes that only backward can read.

Everything here takes float32 CPU tensors; `sorl_fast.ops` sends others elsewhere.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native
from ..errors import BadInput
from ..layout import Layout
from .parameters import find, owned
from .reference import Layers, flat, log2_fed

PRECISIONS = ("fp32", "bf16")
BLOCK = 32  # csrc cuts matrices into blocks of 32 x 32,
PITCH = BLOCK * BLOCK + 32  # which are so many elements apart
MAX_DEPTH = 16  # hidden layers that csrc has room for


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
            "Leave it unset, or set SORL_OPS=torch"
        )
    return there[-1]


class Kind(NamedTuple):
    """Which network an operation runs."""

    norm: bool  # a critic, else an actor
    rollout: bool


VELOCITY, ROLLOUT, CRITIC = Kind(False, False), Kind(False, True), Kind(True, False)


def saved_bytes(s: Layout, rows: int, steps: int, precision: str, isa: str) -> int:
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

    def __init__(self, layout: Layout, params: Sequence[Tensor], precision: str, isa: str):
        _check_parameters(layout, params)
        self.net = _native.TrainNet(**asdict(layout), precision=precision, isa=isa)
        # Aliases: they keep the memory, and so its address, from going to other parameters while it is
        # by its address that the copy is told from one of parameters that have been replaced.
        self.aliases = [p.detach() for p in params]
        self.addresses = [p.data_ptr() for p in params]
        self.versions: list[int] = []

    def look(self) -> None:
        """Notice if a parameter was written to since the last look."""
        versions = [p._version for p in self.aliases]
        if versions != self.versions:
            self.net.changed()
            self.versions = versions

    def seen(self) -> None:
        """Take the parameters as they are for those that csrc has seen."""
        self.versions = [p._version for p in self.aliases]

    def ready(self, forward: bool, backward: bool) -> Any:
        """Return the network, its weights packed for forward, for backward, or at once for both."""
        self.look()
        self.net.ready(self.addresses, forward, backward)
        return self.net


def _check_parameters(s: Layout, params: Sequence[Tensor]) -> None:
    """Refuse what csrc, which reads by address, would read beyond."""
    # what the last layer gives is not read off the parameters
    own = replace(s, out=1 if s.norm else s.act)
    for (name, want), p in zip(own.shapes().items(), params, strict=True):
        if p.shape != want:
            raise BadInput(
                f"a parameter of layer {name.partition('/')[0]} has the shape {list(p.shape)}, but must "
                f"have {list(want)} with observations of {s.obs} and actions of {s.act} numbers"
            )


def network(
    sizes: Layout, params: Sequence[Tensor], precision: str, isa: str, owner: int
) -> _Packed:
    """Return the owner's packed copy, or one for this call alone where there is no owner."""
    packings = find(owner)
    if packings is None:
        return _Packed(sizes, params, precision, isa)
    key = ("native", precision, isa, sizes)
    with packings.lock:
        found: _Packed | None = packings.copies.get(key)
        if found is None or found.addresses != [p.data_ptr() for p in params]:
            found = packings.copies[key] = _Packed(sizes, params, precision, isa)
    return found


def lend(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an uninitialised tensor whose memory goes back to csrc's pool when it dies."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    lease = _native.Lease(count * dtype.itemsize)
    return torch.frombuffer(lease, dtype=dtype, count=count).view(tuple(shape))


def settle(tensors: Sequence[Tensor]) -> None:
    """Move tensors, which stay the same objects, into one block of memory on huge pages.

    An optimiser's pass goes through megabytes of them, and would look up a page's place every 4 KiB.
    """
    starts, end = [], 0
    for x in tensors:
        starts.append(end)
        end += (x.numel() + 15) // 16 * 16  # to the beginning of a line of cache
    block = lend((end,))
    for x, start in zip(tensors, starts, strict=True):
        place = block[start : start + x.numel()].view(x.shape)
        place.copy_(x.detach())
        x.data = place


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
    owner: int,
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
    sizes = Layout.of(params, obs.shape[1], A, kind.norm)
    packed = network(sizes, params, precision, isa, owner)
    out = torch.empty((sizes.members, B) if kind.norm else (B, A), dtype=torch.float32)
    count = saved_bytes(sizes, B, steps, precision, isa) if save else 0
    saved = lend((count,), torch.uint8)
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
    owner: int = 0,
) -> tuple[Tensor, Tensor]:
    extra, values = (t, log2_steps), (0.0, 0.0)
    return _forward(VELOCITY, actor, obs, z, extra, values, 1, precision, save, owner)


def _rollout(
    actor: Sequence[Tensor],
    obs: Tensor,
    noise: Tensor,
    steps: int,
    log2_steps: float,
    precision: str,
    save: bool,
    owner: int = 0,
) -> tuple[Tensor, Tensor]:
    values = (0.0, log2_steps)
    return _forward(ROLLOUT, actor, obs, noise, (None, None), values, steps, precision, save, owner)


def _critic(
    critic: Sequence[Tensor],
    obs: Tensor,
    actions: Tensor,
    k: int,
    precision: str,
    save: bool,
    owner: int = 0,
) -> tuple[Tensor, Tensor]:
    values = (float(k), 0.0)
    return _forward(CRITIC, critic, obs, actions, (None, None), values, 1, precision, save, owner)


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
    owner: int = 0,
) -> list[Tensor]:
    """Gradients of the parameters, then of the observations, then of the actions: those asked for.

    isa is the forward's: each keeps what it saves in a layout of its own.
    """
    B = grad.shape[1 if norm else 0]
    sizes = Layout.of_act(params, act_dim, norm)
    O = sizes.obs
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
        grads = [torch.zeros(p.shape, dtype=torch.float32) for p in params if weights]
        inputs = [
            torch.zeros(0, n, dtype=torch.float32)
            for n, asked in ((O, to_obs), (act_dim, to_act))
            if asked
        ]
        return grads + inputs
    # torch's allocator is quicker where a gradient is no larger than what it keeps at hand
    grads = [
        lend(p.shape) if p.numel() > 16384 else torch.empty(p.shape, dtype=torch.float32)
        for p in params
        if weights
    ]
    grad_obs = torch.empty((B, O), dtype=torch.float32) if to_obs else None
    grad_act = torch.empty((B, act_dim), dtype=torch.float32) if to_act else None
    grad = grad.contiguous()
    net = network(sizes, params, precision, isa, owner).ready(forward=False, backward=True)
    net.backward(
        *(B, steps, rollout, grad.data_ptr(), saved.data_ptr()),
        *([g.data_ptr() for g in grads], _address(grad_obs), _address(grad_act)),
    )
    return [*grads, *(x for x in (grad_obs, grad_act) if x is not None)]


def isa_of_adam() -> str:
    """Return what the optimiser runs on: float32 always, also where SORL_CPU_ISA multiplies bf16 only."""
    wanted, there = os.environ.get("SORL_CPU_ISA", ""), isas("fp32")
    return wanted if wanted in there else there[-1]


def _adam_ema_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    more_grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    targets: Sequence[Tensor],
    step: int | Tensor,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float,
    tau: float,
    ema_before: bool = False,
) -> Tensor:
    def addresses(tensors: Sequence[Tensor]) -> list[int]:
        return [x.data_ptr() for x in tensors]

    shapes = [p.shape for p in params]
    for name, others in (
        *(("grads", grads), ("more_grads", more_grads or grads)),
        *(("first", first), ("second", second), ("targets", targets or params)),
    ):
        if (given := [x.shape for x in others]) != shapes:
            want, got = ([list(x) for x in part] for part in (shapes, given))
            raise BadInput(f"{name} have the shapes {got}, but must have the parameters' {want}")
    grads = [g.contiguous() for g in grads]
    more_grads = [g.contiguous() for g in more_grads]
    lists = [addresses(grads)] + ([addresses(more_grads)] if more_grads else [])
    norm = _native.adam(
        *(isa_of_adam(), addresses(params), lists),
        *(addresses(first), addresses(second), addresses(targets), [p.numel() for p in params]),
        *(int(step), lr, b1, b2, eps, clip_norm, tau, ema_before),
    )
    # csrc wrote behind torch's back: whoever holds an older version must notice
    torch.autograd.graph.increment_version([*params, *first, *second, *targets])
    return torch.tensor(norm, dtype=torch.float32)


_NETWORK = "Tensor[] params, Tensor obs, Tensor act"
_OWNER = "*, int owner=0"  # the number of who owns the parameters' packed copies
_SCHEMAS = {
    "velocity": (
        f"({_NETWORK}, Tensor t, Tensor log2_steps, str precision, bool save, {_OWNER}) "
        "-> (Tensor, Tensor)",
        _velocity,
    ),
    "rollout": (
        f"({_NETWORK}, int steps, float log2_steps, str precision, bool save, {_OWNER}) "
        "-> (Tensor, Tensor)",
        _rollout,
    ),
    "critic_ensemble": (
        f"({_NETWORK}, int k, str precision, bool save, {_OWNER}) -> (Tensor, Tensor)",
        _critic,
    ),
    "network_backward": (
        "(Tensor grad, Tensor[] params, Tensor saved, bool norm, bool rollout, int act_dim, int steps, "
        f"str precision, str isa, bool weights, bool to_obs, bool to_act, {_OWNER}) -> Tensor[]",
        _backward,
    ),
    "adam_ema_step": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor[] more_grads, Tensor(b!)[] first, "
        "Tensor(c!)[] second, Tensor(d!)[] targets, Tensor step, float lr, float b1, float b2, float eps, "
        "float clip_norm, float tau, bool ema_before=False) -> Tensor",
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
    sizes = Layout.of(params, obs.shape[1], A, kind.norm)
    count = saved_bytes(sizes, B, steps, precision, choose_isa(precision)) if save else 0
    out = obs.new_empty((sizes.members, B) if kind.norm else (B, A))
    return out, obs.new_empty((count,), dtype=torch.uint8)


@torch.library.register_fake("sorl_fast::velocity")
def _(params, obs, act, t, log2_steps, precision, save, owner=0):  # type: ignore[no-untyped-def]
    return _fake_forward(VELOCITY, params, obs, act, 1, precision, save)


@torch.library.register_fake("sorl_fast::rollout")
def _(params, obs, act, steps, log2_steps, precision, save, owner=0):  # type: ignore[no-untyped-def]
    return _fake_forward(ROLLOUT, params, obs, act, steps, precision, save)


@torch.library.register_fake("sorl_fast::critic_ensemble")
def _(params, obs, act, k, precision, save, owner=0):  # type: ignore[no-untyped-def]
    return _fake_forward(CRITIC, params, obs, act, 1, precision, save)


@torch.library.register_fake("sorl_fast::network_backward")
def _(grad, params, saved, norm, rollout, act_dim, steps, precision, isa, *asked, owner=0):  # type: ignore[no-untyped-def]
    weights, to_obs, to_act = asked
    B = grad.shape[1 if norm else 0]
    O = Layout.of_act(params, act_dim, norm).obs
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
        def forward(ctx: Any, owner: int, n: int, *flat: Any) -> tuple[Tensor, Tensor]:
            params, rest = flat[:n], flat[n:]
            with torch._C._AutoDispatchBelowAutograd():
                out, saved = operation(list(params), *rest, owner=owner)
            ctx.owner, ctx.packings = owner, find(owner)  # which lives until the gradient is made
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
            needs, to_obs, to_act = asked[2 : n + 2], asked[n + 2], asked[n + 3]
            if grad is None:
                return (None,) * (n + 4 + ctx.others)
            if not ctx.saving:
                raise RuntimeError(f"sorl_fast::{name} was called with save=False: no gradient")
            *params, saved = ctx.saved_tensors
            weights = any(needs)
            grads = torch.ops.sorl_fast.network_backward(
                *(grad, params, saved, kind.norm, kind.rollout, ctx.act_dim, ctx.steps),
                *(ctx.precision, ctx.isa, weights, to_obs, to_act),
                owner=ctx.owner,
            )
            of_params: list[Tensor | None] = [None] * n
            if weights:
                of_params = [g if need else None for g, need in zip(grads[:n], needs, strict=True)]
                grads = grads[n:]
            of_obs = grads[0] if to_obs else None
            of_act = grads[-1] if to_act else None
            return None, None, *of_params, of_obs, of_act, *[None] * ctx.others

    def autograd(params: Sequence[Tensor], *rest: Any, owner: int = 0) -> tuple[Tensor, Tensor]:
        if _saving(params, *rest[:2]):
            return Differentiable.apply(owner, len(params), *params, *rest)  # type: ignore[no-untyped-call]
        with torch._C._AutoDispatchBelowAutograd():
            return operation(list(params), *rest, owner=owner)

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
    actor = owned(actor)
    params, owner = flat(actor), actor.packings.number
    save = _saving(params, obs, z)
    out, _ = torch.ops.sorl_fast.velocity(
        params, obs, z, t, log2_steps, precision, save, owner=owner
    )
    return out


def rollout(
    actor: Layers,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    precision: str,
    log2_steps: float | None = None,
) -> Tensor:
    """Return what `reference.rollout` does."""
    actor = owned(actor)
    params, owner, fed = flat(actor), actor.packings.number, log2_fed(steps, log2_steps)
    save = _saving(params, obs, noise)
    out, _ = torch.ops.sorl_fast.rollout(
        params, obs, noise, steps, fed, precision, save, owner=owner
    )
    return out


def critic_ensemble(
    critic: Layers, obs: Tensor, actions: Tensor, steps: int, precision: str
) -> Tensor:
    """Return what `reference.critic_ensemble` does."""
    critic = owned(critic)
    params, owner = flat(critic), critic.packings.number
    save = _saving(params, obs, actions)
    out, _ = torch.ops.sorl_fast.critic_ensemble(
        params, obs, actions, steps, precision, save, owner=owner
    )
    return out


def adam_ema_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    targets: Sequence[Tensor],
    step: int | Tensor,
    *,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float,
    tau: float,
    more_grads: Sequence[Tensor] = (),
    ema_before: bool = False,
) -> Tensor:
    """Do what `reference.adam_ema_step` does."""
    return torch.ops.sorl_fast.adam_ema_step(
        *(list(params), list(grads), list(more_grads), list(first), list(second), list(targets)),
        *(torch.as_tensor(step), lr, b1, b2, eps, clip_norm, tau, ema_before),
    )
