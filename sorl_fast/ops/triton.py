"""The operations on a GPU, through kernels/: registered with torch.library, differentiable.

Shape letters as in `reference`. An actor or critic reaches an operation as the flat list of its
parameters, which autograd knows, and as the packed copy, which the kernels read; the copy is a
backward's as well. What a forward keeps for its backward are further outputs, empty where it keeps
nothing.

Everything here takes float32 tensors of a CUDA device, or of the CPU where triton interprets its
kernels (TRITON_INTERPRET=1, for tests); `sorl_fast.ops` sends others elsewhere.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import actor as actor_kernels
from ..kernels import adam as adam_kernels
from ..kernels import critic as critic_kernels
from ..kernels import noise as noise_kernels
from ..kernels.interpreted import bf16_is_right as bf16_is_right
from ..kernels.packing import Sizes
from ..layout import Layout
from .chain import products
from .packed import sizes_of
from .reference import Layers, log2_fed
from .registered import INTERPRETED as INTERPRETED
from .registered import arguments_of, net_of, on_its_device, register
from .triton_sampling import best_of_n as best_of_n

WIDTH = 64  # hidden layers are a multiple of it


def serves(sizes: Layout) -> bool:
    """Whether the kernels can run a network of these sizes."""
    act = 0 if sizes.norm else 1  # a critic without action is V(x)
    return sizes.hidden % WIDTH == 0 and sizes.depth >= 1 and sizes.obs >= 1 and sizes.act >= act


# ---- what is registered


def _velocity(
    params: Sequence[Tensor],
    weights: Tensor,
    vectors: Tensor,
    obs: Tensor,
    z: Tensor,
    t: Tensor,
    log2_steps: Tensor,
    precision: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    net = net_of(params, weights, vectors, obs.shape[1], z.shape[1], False, precision)
    out, saved = actor_kernels.velocity(net, obs, z, t, log2_steps, save=save)
    return out, saved[0] if save else weights.new_empty(0)


def _rollout(
    params: Sequence[Tensor],
    weights: Tensor,
    vectors: Tensor,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    log2_steps: float,
    precision: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    net = net_of(params, weights, vectors, obs.shape[1], params[-1].shape[-1], False, precision)
    out, saved = actor_kernels.rollout(net, obs, noise, steps, log2_steps=log2_steps, save=save)
    return out, *(saved if save else (weights.new_empty(0), obs.new_empty(0)))


def _critic(
    params: Sequence[Tensor],
    weights: Tensor,
    vectors: Tensor,
    obs: Tensor,
    actions: Tensor,
    k: int,
    precision: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    net = net_of(params, weights, vectors, obs.shape[1], actions.shape[1], True, precision)
    out, saved = critic_kernels.critic_ensemble(
        net, obs.contiguous(), actions.contiguous(), float(k), save=save
    )
    return out, *(saved if save else (weights.new_empty(0), obs.new_empty(0)))


def _actor_backward(
    grad: Tensor,
    params: Sequence[Tensor],
    weights: Tensor,
    vectors: Tensor,
    obs: Tensor,
    saved: Sequence[Tensor],
    steps: int,
    log2_steps: float,
    rollout: bool,
    precision: str,
    of_weights: bool,
    to_obs: bool,
    to_act: bool,
) -> list[Tensor]:
    """Gradients of the parameters, then of the observations, then of the actions: those asked for.

    log2_steps is that of a rollout.
    """
    net = net_of(params, weights, vectors, obs.shape[1], grad.shape[1], False, precision)
    with products(precision):
        grads = actor_kernels.backward(
            *(net, obs.contiguous(), list(saved), grad.contiguous(), steps),
            log2_steps=log2_steps, rollout=rollout, weights=of_weights, to_obs=to_obs, to_act=to_act,
        )  # fmt: skip
    return _apart(grads)


def _critic_backward(
    grad: Tensor,
    params: Sequence[Tensor],
    weights: Tensor,
    vectors: Tensor,
    obs: Tensor,
    actions: Tensor,
    saved: Sequence[Tensor],
    k: int,
    precision: str,
    of_weights: bool,
    to_obs: bool,
    to_act: bool,
) -> list[Tensor]:
    """Gradients as `_actor_backward` returns them."""
    net = net_of(params, weights, vectors, obs.shape[1], actions.shape[1], True, precision)
    with products(precision):
        grads = critic_kernels.backward(
            *(net, obs.contiguous(), actions.contiguous(), float(k), list(saved), grad.contiguous()),
            weights=of_weights, to_obs=to_obs, to_act=to_act,
        )  # fmt: skip
    return _apart(grads)


def _apart(grads: list[Tensor]) -> list[Tensor]:
    return [g.contiguous() for g in grads]


def _adam_ema_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    more_grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    targets: Sequence[Tensor],
    step: Tensor,
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float,
    tau: float,
    ema_before: bool = False,
) -> Tensor:
    return adam_kernels.adam_ema_step(
        *(params, grads, first, second, targets, step),
        lr=lr, b1=b1, b2=b2, eps=eps, clip_norm=clip_norm, tau=tau, more_grads=more_grads,
        ema_before=ema_before,
    )  # fmt: skip


_NETWORK = "Tensor[] params, Tensor weights, Tensor vectors, Tensor obs"
_ASKED = "str precision, bool of_weights, bool to_obs, bool to_act"
_SCHEMAS: dict[str, tuple[str, Callable[..., Any]]] = {
    "triton_velocity": (
        f"({_NETWORK}, Tensor z, Tensor t, Tensor log2_steps, str precision, bool save) "
        "-> (Tensor, Tensor)",
        _velocity,
    ),
    "triton_rollout": (
        f"({_NETWORK}, Tensor noise, int steps, float log2_steps, str precision, bool save) "
        "-> (Tensor, Tensor, Tensor)",
        _rollout,
    ),
    "triton_critic_ensemble": (
        f"({_NETWORK}, Tensor actions, int k, str precision, bool save) -> (Tensor, Tensor, Tensor)",
        _critic,
    ),
    "triton_actor_backward": (
        f"(Tensor grad, {_NETWORK}, Tensor[] saved, int steps, float log2_steps, bool rollout, {_ASKED}) "
        "-> Tensor[]",
        _actor_backward,
    ),
    "triton_critic_backward": (
        f"(Tensor grad, {_NETWORK}, Tensor actions, Tensor[] saved, int k, {_ASKED}) -> Tensor[]",
        _critic_backward,
    ),
    "triton_adam_ema_step": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor[] more_grads, Tensor(b!)[] first, "
        "Tensor(c!)[] second, Tensor(d!)[] targets, Tensor step, float lr, float b1, float b2, "
        "float eps, float clip_norm, float tau, bool ema_before=False) -> Tensor",
        _adam_ema_step,
    ),
}
for _name, (_schema, _function) in _SCHEMAS.items():
    register(_name, _schema, _function)


# ---- shapes alone


def _room(weights: Tensor, sizes: Sizes, steps: int, rows: int, precision: str) -> Tensor:
    kept = rows if rows <= actor_kernels.rows_at_once(sizes, precision, steps) else 0
    return weights.new_empty((sizes.depth, steps, kept, sizes.hidden))


@torch.library.register_fake("sorl_fast::triton_velocity")
def _(params, weights, vectors, obs, z, t, log2_steps, precision, save):  # type: ignore[no-untyped-def]
    sizes = sizes_of(Layout.of(params, obs.shape[1], z.shape[1], False))
    pre = _room(weights, sizes, 1, len(obs), precision) if save else weights.new_empty((0,))
    return torch.empty_like(z, memory_format=torch.contiguous_format), pre


@torch.library.register_fake("sorl_fast::triton_rollout")
def _(params, weights, vectors, obs, noise, steps, log2_steps, precision, save):  # type: ignore[no-untyped-def]
    B, A = len(obs), params[-1].shape[-1]
    out = obs.new_empty((B, A))
    if not save:
        return out, weights.new_empty((0,)), obs.new_empty((0,))
    sizes = sizes_of(Layout.of(params, obs.shape[1], A, False))
    pre = _room(weights, sizes, steps, B, precision)
    return out, pre, obs.new_empty((steps + 1, B, A))


@torch.library.register_fake("sorl_fast::triton_critic_ensemble")
def _(params, weights, vectors, obs, actions, k, precision, save):  # type: ignore[no-untyped-def]
    s, B = Layout.of(params, obs.shape[1], actions.shape[1], True), len(obs)
    out = obs.new_empty((s.members, B))
    if not save:
        return out, weights.new_empty((0,)), obs.new_empty((0,))
    pre = weights.new_empty((s.members, s.depth, B, s.hidden))
    return out, pre, obs.new_empty((s.members, s.depth, B, 2))


def _fake_backward(
    params: Sequence[Tensor], obs: Tensor, act: int, weights: bool, to_obs: bool, to_act: bool
) -> list[Tensor]:
    B, O = obs.shape
    grads = [p.new_empty(p.shape) for p in params] if weights else []
    return grads + [obs.new_empty((B, n)) for n, asked in ((O, to_obs), (act, to_act)) if asked]


@torch.library.register_fake("sorl_fast::triton_actor_backward")
def _(grad, params, weights, vectors, obs, saved, steps, log2_steps, rollout, precision, *asked):  # type: ignore[no-untyped-def]
    return _fake_backward(params, obs, grad.shape[1], *asked)


@torch.library.register_fake("sorl_fast::triton_critic_backward")
def _(grad, params, weights, vectors, obs, actions, saved, k, precision, *asked):  # type: ignore[no-untyped-def]
    return _fake_backward(params, obs, actions.shape[1], *asked)


@torch.library.register_fake("sorl_fast::triton_adam_ema_step")
def _(params, *args, **kwargs):  # type: ignore[no-untyped-def]
    return params[0].new_empty(())


# ---- gradients


def _given(params: Sequence[Tensor], needs: Sequence[bool], grads: list[Tensor], *to: bool) -> Any:
    """Sort what a backward returned: of the parameters (None where not needed), then of each of `to`."""
    weights = any(needs)
    n = len(params) if weights else 0
    of_params = (
        [g if need else None for g, need in zip(grads[:n], needs, strict=True)] if n else None
    )
    rest = iter(grads[n:])
    return of_params or [None] * len(needs), *(next(rest) if asked else None for asked in to)


def _check_saved(name: str, saved: bool) -> None:
    if not saved:
        raise RuntimeError(f"sorl_fast::{name} was called with save=False: no gradient")


def _setup_velocity(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    params, weights, vectors, obs, z, t, log2_steps, ctx.precision, ctx.saving = inputs
    ctx.save_for_backward(*params, weights, vectors, obs, output[1], z, t, log2_steps)
    ctx.set_materialize_grads(False)


def _velocity_gradients(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
    needs, _, _, to_obs, to_act, *others = ctx.needs_input_grad
    nothing = [None] * len(others)
    if grad is None:
        return [None] * len(needs), None, None, None, None, *nothing
    _check_saved("triton_velocity", ctx.saving)
    *params, weights, vectors, obs, pre, z, t, log2_steps = ctx.saved_tensors
    grads = torch.ops.sorl_fast.triton_actor_backward(
        *(grad, params, weights, vectors, obs, [pre, z.contiguous().unsqueeze(0), t, log2_steps]),
        *(1, 0.0, False, ctx.precision, any(needs), to_obs, to_act),
    )
    of_params, of_obs, of_act = _given(params, needs, grads, to_obs, to_act)
    return of_params, None, None, of_obs, of_act, *nothing


def _setup_rollout(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    params, weights, vectors, obs, _, ctx.steps, ctx.log2_steps, ctx.precision, ctx.saving = inputs
    ctx.save_for_backward(*params, weights, vectors, obs, *output[1:])
    ctx.set_materialize_grads(False)


def _rollout_gradients(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    needs, _, _, to_obs, to_act, *others = ctx.needs_input_grad
    nothing = [None] * len(others)
    if grad is None:
        return [None] * len(needs), None, None, None, None, *nothing
    _check_saved("triton_rollout", ctx.saving)
    *params, weights, vectors, obs, pre, zs = ctx.saved_tensors
    grads = torch.ops.sorl_fast.triton_actor_backward(
        *(grad, params, weights, vectors, obs, [pre, zs], ctx.steps, ctx.log2_steps, True),
        *(ctx.precision, any(needs), to_obs, to_act),
    )
    of_params, of_obs, of_act = _given(params, needs, grads, to_obs, to_act)
    return of_params, None, None, of_obs, of_act, *nothing


def _setup_critic(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    params, weights, vectors, obs, actions, ctx.k, ctx.precision, ctx.saving = inputs
    ctx.save_for_backward(*params, weights, vectors, obs, actions, *output[1:])
    ctx.set_materialize_grads(False)


def _critic_gradients(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    needs, _, _, to_obs, to_act, *others = ctx.needs_input_grad
    nothing = [None] * len(others)
    if grad is None:
        return [None] * len(needs), None, None, None, None, *nothing
    _check_saved("triton_critic_ensemble", ctx.saving)
    *params, weights, vectors, obs, actions, pre, stats = ctx.saved_tensors
    grads = torch.ops.sorl_fast.triton_critic_backward(
        *(grad, params, weights, vectors, obs, actions, [pre, stats], ctx.k),
        *(ctx.precision, any(needs), to_obs, to_act),
    )
    of_params, of_obs, of_act = _given(params, needs, grads, to_obs, to_act)
    return of_params, None, None, of_obs, of_act, *nothing


for _name, _gradients, _setup in (
    ("velocity", _velocity_gradients, _setup_velocity),
    ("rollout", _rollout_gradients, _setup_rollout),
    ("critic_ensemble", _critic_gradients, _setup_critic),
):
    torch.library.register_autograd(f"sorl_fast::triton_{_name}", _gradients, setup_context=_setup)


# ---- the operations


def _saving(params: Sequence[Tensor], *inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *params))


def velocity(
    actor: Layers, obs: Tensor, z: Tensor, t: Tensor, log2_steps: Tensor, precision: str
) -> Tensor:
    """Return what `reference.velocity` does; t and log2_steps get no gradient."""
    params, *packed = arguments_of(actor, obs, z.shape[1], False, precision)
    save = _saving(params, obs, z)
    out, _ = torch.ops.sorl_fast.triton_velocity(
        params, *packed, obs, z, t, log2_steps, precision, save
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
    """Return what `reference.rollout` does; noise may be a key (int64 [3]), then drawn in the kernel."""
    params, *packed = arguments_of(actor, obs, actor[-1][0].shape[-1], False, precision)
    save = _saving(params, obs, noise)
    out, *_ = torch.ops.sorl_fast.triton_rollout(
        params, *packed, obs, noise, steps, log2_fed(steps, log2_steps), precision, save
    )
    return out


def critic_ensemble(
    critic: Layers, obs: Tensor, actions: Tensor, steps: int, precision: str
) -> Tensor:
    """Return what `reference.critic_ensemble` does."""
    params, *packed = arguments_of(critic, obs, actions.shape[1], True, precision)
    save = _saving(params, obs, actions)
    out, *_ = torch.ops.sorl_fast.triton_critic_ensemble(
        params, *packed, obs, actions, steps, precision, save
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
    """Do what `reference.adam_ema_step` does; `grads` stays as it is."""
    if not isinstance(step, Tensor):
        step = params[0].new_full((), step, dtype=torch.int64)
    return torch.ops.sorl_fast.triton_adam_ema_step(
        *(list(params), list(grads), list(more_grads), list(first), list(second), list(targets)),
        *(step, lr, b1, b2, eps, clip_norm, tau, ema_before),
    )


normals = on_its_device(noise_kernels.normals)
words = on_its_device(noise_kernels.words)
