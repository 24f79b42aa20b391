"""The operations that cost time. Callers use these names; which backend runs them is decided here.

Every operation is defined by its plain PyTorch form in `reference`. float32 CPU tensors go to csrc
(`native`) where the extension is built and knows this machine; anything else to the reference.
SORL_BACKEND = native or torch overrides, and raises if that backend can't serve.
"""

import importlib
import os
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..errors import BadInput
from . import reference
from .reference import Layers, aggregate, best_of_n

__all__ = [
    "adam_ema_step",
    "aggregate",
    "backend",
    "best_of_n",
    "configure",
    "critic_ensemble",
    "normals",
    "rollout",
    "velocity",
    "words",
]

BACKENDS = ("native", "torch")
PRECISIONS = ("fp32", "bf16")

_precision = "fp32"


def _load_native() -> ModuleType | BadInput:
    """Import the native operations, or say why they are not there."""
    try:
        module = importlib.import_module(".native", __name__)
    except ImportError as err:
        return BadInput(
            f"the native extension is not built: {err}. Install sorl-fast from a wheel or with a C++ "
            "compiler, or set SORL_BACKEND=torch"
        )
    if not module.isas("fp32"):
        return BadInput("the native extension cannot train on this CPU. Set SORL_BACKEND=torch")
    return module


_native_or_why: ModuleType | BadInput | None = None


def _native() -> ModuleType | None:
    """Return the native operations if they are to be used, by SORL_BACKEND and what is there."""
    global _native_or_why
    wanted = os.environ.get("SORL_BACKEND", "")
    if wanted not in ("", *BACKENDS):
        raise BadInput(
            f"SORL_BACKEND is {wanted!r}, but training has {' and '.join(BACKENDS)}. Choose one of "
            "these or leave it unset"
        )
    if wanted == "torch":
        return None
    if _native_or_why is None:
        _native_or_why = _load_native()
    if isinstance(_native_or_why, ModuleType):
        return _native_or_why
    if wanted == "native":
        raise _native_or_why
    return None


def backend(device: torch.device | str = "cpu") -> str:
    """Return the backend, native or torch, that float32 tensors on `device` go to."""
    there = torch.device(device).type == "cpu" and _native() is not None
    return "native" if there else "torch"


def configure(*, precision: str = "fp32", threads: int = 1) -> None:
    """Choose how float32 operations are computed from now on, in this process.

    Parameters
    ----------
    precision
        fp32, or bf16: products of bf16 numbers summed in float32; parameters, optimiser state, z,
        LayerNorm statistics, Q and losses stay float32. Only the native backend has bf16.
    threads
        Threads of the native backend, at least 1 (it uses 8 at most).

    Raises
    ------
    BadInput
        bf16 is asked for where it can't be had, or a value is out of its bounds.
    """
    global _precision
    if precision not in PRECISIONS:
        raise BadInput(f"precision is {precision!r}, but must be fp32 or bf16. Set --precision")
    if threads < 1:
        raise BadInput(f"threads is {threads}, but must be at least 1. Set --threads")
    native = _native()
    if native is not None:
        native.choose_isa(precision)
        native._native.set_train_threads(min(threads, 8))
    elif precision != "fp32":
        raise BadInput(
            "precision is 'bf16', but only the native backend has it. Use --precision fp32"
        )
    _precision = precision


def _choose(layers: Layers | None, *inputs: Tensor) -> ModuleType | None:
    """Return the native operations if they serve these arguments, else None: the reference."""
    native = _native()
    if native is None:
        return None
    first = inputs[0]
    if layers is not None:
        inputs = (*inputs, *(x for layer in layers for x in layer))
    fits = all(
        x.dtype == torch.float32 and x.device.type == "cpu" and x.layout == torch.strided
        for x in inputs
    )
    if layers is not None:
        fits = fits and len(first) > 0 and 2 <= len(layers) <= native.MAX_DEPTH + 1
        fits = fits and all(x.is_contiguous() for layer in layers for x in layer)
    if fits:
        return native
    if os.environ.get("SORL_BACKEND") == "native" and first.dtype == torch.float32 and len(first):
        raise BadInput(
            "SORL_BACKEND is 'native', but it serves contiguous CPU tensors and 1 to 16 hidden "
            "layers. Leave it unset, or use --device cpu"
        )
    return None


def velocity(actor: Layers, obs: Tensor, z: Tensor, t: Tensor, log2_steps: Tensor) -> Tensor:
    """Shortcut model s_theta(z, t, h | x) [B, A]: see `reference.velocity`."""
    native = _choose(actor, obs, z, t, log2_steps)
    if native is None or t.requires_grad or log2_steps.requires_grad:
        return reference.velocity(actor, obs, z, t, log2_steps)
    return native.velocity(actor, obs, z, t, log2_steps, _precision)


def rollout(actor: Layers, obs: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Actions [B, A] in [-1, 1] after M = `steps` Euler steps: see `reference.rollout`."""
    native = _choose(actor, obs, noise)
    if native is None:
        return reference.rollout(actor, obs, noise, steps)
    return native.rollout(actor, obs, noise, steps, _precision)


def critic_ensemble(critic: Layers, obs: Tensor, actions: Tensor, steps: int) -> Tensor:
    """Q_phi(x, a, k) of every member [E, B]: see `reference.critic_ensemble`."""
    native = _choose(critic, obs, actions)
    if native is None:
        return reference.critic_ensemble(critic, obs, actions, steps)
    return native.critic_ensemble(critic, obs, actions, steps, _precision)


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
) -> Tensor:
    """Clip, Adam and the EMA of the targets, in place: see `reference.adam_ema_step`."""
    state = (*params, *first, *second, *targets)
    native = _choose(None, *grads, *more_grads, *state)
    fits = native is not None and isinstance(step, int)
    fits = fits and all(x.is_contiguous() for x in state)
    step_of = native.adam_ema_step if native is not None and fits else reference.adam_ema_step
    return step_of(
        *(params, grads, first, second, targets, step),
        lr=lr, b1=b1, b2=b2, eps=eps, clip_norm=clip_norm, tau=tau, more_grads=more_grads,
    )  # fmt: skip


def normals(key: Tensor, rows: int, candidates: int, act_dim: int) -> Tensor:
    """Standard normal noise [B, N, A] of a key on the device: see `reference.normals`."""
    return reference.normals(key, rows, candidates, act_dim)


def words(key: Tensor, count: int) -> Tensor:
    """Uniform 32-bit words [count] of a key on the device: see `reference.words`."""
    return reference.words(key, count)
