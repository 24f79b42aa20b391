"""The operations that cost time. Callers use these names; which backend runs them is decided here.

Every operation is defined by its plain PyTorch form in `reference`. float32 CPU tensors go to csrc
(`native`) where the extension is built and knows this machine. float32 tensors of a GPU go to kernels
(`triton`), to PyTorch's products (`chain`) or to the reference, whichever `table` found right and
fastest there. Anything else goes to the reference. SORL_OPS = native, torch or triton overrides,
and raises if that backend can't serve.

`Parameters` keep packed copies of a network, which go when it goes and are made anew when a parameter's
version counter moves; plain lists of layers are packed at every call. So write parameters in place under
`torch.no_grad`, as optimisers and load_state_dict do. Writes that torch does not count (through `.data`,
or a numpy view) go unseen until `forget` is called.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from ..cores import unpin
from ..errors import BadInput
from ..layout import Layout
from . import chain, parameters, reference, table
from .parameters import Parameters as Parameters
from .reference import Best, Layers, aggregate, flat
from .rules import Rule as Rule
from .sampling import prepare
from .schedule import Schedule as Schedule
from .schedule import euler as euler

unpin()  # of what `import torch` may have done: csrc's threads and other processes start from this one

__all__ = [
    "Best",
    "Parameters",
    "adam_ema_step",
    "aggregate",
    "backend",
    "best_of_n",
    "configure",
    "configured",
    "critic_ensemble",
    "forget",
    "native_setting",
    "normals",
    "prepare",
    "rollout",
    "sampling_implementation",
    "triton_device",
    "velocity",
    "words",
]

BACKENDS = ("native", "torch", "triton")
MAX_THREADS = 8  # of the native operations: more would wait for each other at batch 256
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}

_precision = {"cpu": "fp32", "cuda": "fp32"}
_threads = 1  # of the native operations


# ---- what is there


def _wanted() -> str:
    """Return what SORL_OPS names, or an empty string."""
    wanted = os.environ.get("SORL_OPS", "")
    if wanted not in ("", *BACKENDS):
        raise BadInput(
            f"SORL_OPS is {wanted!r}, but training has {', '.join(BACKENDS)}. Choose one of these or "
            "leave it unset (what acts is SORL_BACKEND)"
        )
    return wanted


def _load_native() -> ModuleType | BadInput:
    """Import the native operations, or say why they are not there."""
    try:
        module = importlib.import_module(".native", __name__)
    except ImportError as err:
        return BadInput(
            f"the native extension is not built: {err}. Install sorl-fast from a wheel or with a C++ "
            "compiler, or set SORL_OPS=torch"
        )
    if not module.isas("fp32"):
        return BadInput("the native extension cannot train on this CPU. Set SORL_OPS=torch")
    return module


def _load_triton() -> ModuleType | BadInput:
    """Import the kernels' operations, or say why they are not there."""
    try:
        return importlib.import_module(".triton", __name__)
    except ImportError as err:
        return BadInput(
            f"triton is not usable: {err}. Run `pip install sorl-fast[gpu]`, or choose another backend "
            "(SORL_OPS=torch)"
        )


_native_or_why: ModuleType | BadInput | None = None
_triton_or_why: ModuleType | BadInput | None = None


def _native() -> ModuleType | None:
    """Return the native operations if they are to be used, by SORL_OPS and what is there."""
    global _native_or_why
    wanted = _wanted()
    if wanted in ("torch", "triton"):
        return None
    if _native_or_why is None:
        _native_or_why = _load_native()
    if isinstance(_native_or_why, ModuleType):
        return _native_or_why
    if wanted == "native":
        raise _native_or_why
    return None


def _triton(device: torch.device) -> ModuleType | None:
    """Return the kernels' operations if they are to be used on a device, as `_native` does."""
    wanted = _wanted()
    forced = wanted == "triton"
    if not forced and (wanted or device.type == "cpu"):
        return None
    try:
        triton = _loaded_triton()
    except BadInput:
        if forced:
            raise
        return None
    if device.type == "cuda" and torch.cuda.is_available():
        return triton
    if device.type == "cpu" and triton.INTERPRETED:
        return triton
    if forced:
        there = "" if torch.cuda.is_available() else ", and torch finds no GPU on this machine"
        raise BadInput(
            f"SORL_OPS is 'triton', but the tensors are on {device.type}{there}. Use --device cuda "
            "on a machine with a GPU, or leave SORL_OPS unset"
        )
    return None


def forget() -> None:
    """Forget all packed copies of parameters, so that the next operations see any write to them."""
    parameters.forget()


def settle(tensors: Sequence[Tensor]) -> None:
    """Move tensors of a training on the CPU to where its native passes through them are fastest.

    They stay the same objects, with the same numbers; where there is no native backend, nothing is done.
    """
    native = _native()
    if native is not None and tensors:
        native.settle(tensors)


def triton_device(precision: str = "fp32") -> torch.device:
    """Return the device that triton runs on unless told otherwise: the CPU where it interprets.

    Raises
    ------
    BadInput
        There is no triton, or no GPU, or triton interprets and computes wrongly in that precision.
    """
    triton = _loaded_triton()
    _check_interpreter(triton, precision)
    if triton.INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput(
            "backend is 'triton', but torch finds no GPU on this machine: choose backend native, numpy "
            "or torch"
        )
    return torch.device("cuda", torch.cuda.current_device())


def _check_interpreter(triton: ModuleType, precision: str) -> None:
    """Refuse bf16 where triton interprets its kernels and is wrong about it: actions would be noise."""
    if precision == "bf16" and triton.INTERPRETED and not triton.bf16_is_right():
        raise BadInput(
            "precision is 'bf16', but triton interprets its kernels here (TRITON_INTERPRET=1), and its "
            "interpreter computes with bf16 wrongly. Unset TRITON_INTERPRET, or choose precision fp32, "
            "tf32 or fp16"
        )


def _loaded_triton() -> ModuleType:
    global _triton_or_why
    if _triton_or_why is None:
        _triton_or_why = _load_triton()
    if isinstance(_triton_or_why, BadInput):
        raise _triton_or_why
    return _triton_or_why


def sampling_implementation(
    actor: Layers,
    critic: Layers,
    rows: int,
    precision: str,
    device: torch.device,
    scheduled: bool = False,
) -> str:
    """Return how a sampler computes the best of N of a policy: fused, chain or reference.

    Parameters
    ----------
    actor, critic
        The policy; a critic without layers: none.
    rows
        B N.
    precision
        fp32, tf32, fp16 or bf16; the reference is float32 whatever it is.
    device
        A GPU, or the CPU where triton interprets.
    scheduled
        Whether its steps are a `Schedule`'s.
    """
    triton = _loaded_triton()
    A = actor[-1][0].shape[-1]
    sizes = [Layout.of_act(flat(net), A, net is critic) for net in (actor, critic) if net]
    if not all(map(triton.serves, sizes)):
        return "chain"
    if device.type == "cpu":
        return "fused"
    operation = "best_of_n_scheduled" if scheduled else "best_of_n"
    return table.choice(operation, precision, sizes[-1], rows, device=device)


def backend(device: torch.device | str = "cpu") -> str:
    """Return the backend, native, torch or triton, that float32 tensors on `device` go to.

    triton on a GPU still leaves an operation to PyTorch where that is faster or a kernel is refused.
    """
    device = torch.device(device)
    if _triton(device) is not None:
        return "triton"
    return "native" if device.type == "cpu" and _native() is not None else "torch"


def native_setting() -> tuple[object, ...] | None:
    """Return what decides, beside arguments, what operations on the CPU call; None: they are not csrc's."""
    if _on_gpu(torch.device("cpu")) or _native() is None:
        return None
    isa = os.environ.get("SORL_CPU_ISA", "")
    return _wanted(), isa, _precision["cpu"], parameters.forgotten()


def configure(
    *, precision: str = "fp32", threads: int = 1, device: torch.device | str = "cpu"
) -> None:
    """Choose how float32 operations are computed from now on, in this process.

    Parameters
    ----------
    precision
        What products read: fp32, bf16, and on a GPU tf32 or fp16 too. They are summed in float32;
        parameters, optimiser state, z, LayerNorm statistics, Q and losses stay float32. On the CPU
        only the native backend has bf16.
    threads
        Threads of the native backend, at least 1 (it uses 8 at most).
    device
        The kind of device that this is for: cpu or cuda. The other keeps its precision.

    Raises
    ------
    BadInput
        The precision is asked for where it can't be had, or a value is out of its bounds.
    """
    global _threads
    device = torch.device(device)
    there = PRECISIONS["cuda" if _on_gpu(device) else "cpu"]
    if precision not in there:
        more = "" if _on_gpu(device) else " on the CPU"
        raise BadInput(
            f"precision is {precision!r}, but must be one of {', '.join(there)}{more}. Set --precision"
        )
    if threads < 1:
        raise BadInput(f"threads is {threads}, but must be at least 1. Set --threads")
    if _on_gpu(device):
        if (triton := _triton(device)) is not None:
            _check_interpreter(triton, precision)
    elif (native := _native()) is not None:
        native.choose_isa(precision)
        _threads = min(threads, MAX_THREADS)
        native._native.set_train_threads(_threads)
    elif precision != "fp32":
        raise BadInput(
            f"precision is {precision!r}, but only the native backend has it. Use --precision fp32"
        )
    _precision["cuda" if _on_gpu(device) else "cpu"] = precision


@contextmanager
def configured(
    *, precision: str = "fp32", threads: int = 1, device: torch.device | str = "cpu"
) -> Iterator[None]:
    """`configure` for a block: what was chosen before is back after it, whatever ends it."""
    global _threads
    before = dict(_precision), _threads
    try:
        configure(precision=precision, threads=threads, device=device)
        yield
    finally:
        _precision.update(before[0])
        if _threads != before[1] and isinstance(_native_or_why, ModuleType):
            _threads = before[1]
            _native_or_why._native.set_train_threads(_threads)


# ---- who serves


def _on_gpu(device: torch.device) -> bool:
    """Whether the operations of a GPU are meant: always for CUDA, for the CPU if triton is forced."""
    return device.type == "cuda" or (device.type == "cpu" and _wanted() == "triton")


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether all are float32 numbers in memory of one device."""
    device, dtype, layout = tensors[0].device, torch.float32, torch.strided
    # `is`, and names of this function's own: an update asks this of some hundred tensors
    return all(x.dtype is dtype and x.layout is layout and x.device == device for x in tensors)


def _choose(
    operation: str,
    layers: Layers | None,
    *inputs: Tensor,
    rows: int | None = None,
    differentiable: bool = True,
) -> tuple[ModuleType | None, str]:
    """Return the module that serves an operation with these arguments, or None, and its precision.

    Parameters
    ----------
    operation
        Its name.
    layers
        The network; of best_of_n the critic. None: the operation has none.
    inputs
        All other tensors, with a network obs [B, O] first.
    rows
        As `table.choice` counts them; None: B.
    differentiable
        Whether gradients may be asked for.
    """
    rows = len(inputs[0]) if rows is None else rows
    if not _on_gpu(inputs[0].device):
        return _choose_on_cpu(layers, inputs, rows), _precision["cpu"]
    found = _choose_on_gpu(operation, layers, inputs, rows, differentiable)
    return found, _precision["cuda"]


def _choose_on_cpu(layers: Layers | None, inputs: Sequence[Tensor], rows: int) -> ModuleType | None:
    """Return native if it serves these arguments, else None: the reference."""
    native = _native()
    if native is None:
        return None
    params = flat(layers or ())
    fits = inputs[0].device.type == "cpu" and _plain((*inputs, *params))
    if layers is not None:
        fits = fits and rows > 0 and 2 <= len(layers) <= native.MAX_DEPTH + 1
        fits = fits and all(x.is_contiguous() and not x.is_inference() for x in params)
    if fits:
        return native
    if _wanted() == "native" and inputs[0].dtype == torch.float32 and rows:
        raise BadInput(
            "SORL_OPS is 'native', but it serves contiguous CPU tensors and 1 to 16 hidden "
            "layers. Leave it unset, or use --device cpu"
        )
    return None


def _choose_on_gpu(
    operation: str,
    layers: Layers | None,
    inputs: Sequence[Tensor],
    rows: int,
    differentiable: bool,
) -> ModuleType | None:
    """Return triton, chain or None, the reference, for tensors of a GPU."""
    device, params = inputs[0].device, flat(layers or ())
    if not _plain((*inputs, *params)):
        return None
    if _wanted() == "native":
        raise BadInput(
            f"SORL_OPS is 'native', but the tensors are on {device}. Leave it unset, or use "
            "--device cpu"
        )
    precision = _precision["cuda"]
    # precision is that of a network's products
    plain = None if precision == "fp32" or layers is None else chain
    triton = _triton(device)
    if triton is None or rows == 0:
        return plain
    sizes = None
    if layers is not None:  # the ensemble axis tells a critic from an actor
        sizes = Layout.of_obs(params, inputs[0].shape[-1], layers[0][0].ndim == 3)
    fits = all(x.is_contiguous() for x in (params or inputs))
    fits = fits and not any(x.is_inference() for x in params)
    fits = fits and (sizes is None or triton.serves(sizes))
    if _wanted() == "triton":
        if fits:
            return triton
        why = (
            "its kernels want contiguous tensors, and parameters made outside inference mode. Call "
            ".contiguous() or .clone() on them there"
        )
        if sizes is not None and sizes.hidden % triton.WIDTH:
            why = f"hidden is {sizes.hidden}, no multiple of {triton.WIDTH}. Set --hidden so"
        raise BadInput(f"SORL_OPS is 'triton', but {why}, or leave SORL_OPS unset")
    if not fits:
        return plain
    grad = differentiable and torch.is_grad_enabled()
    grad = grad and any(x.requires_grad for x in (*inputs, *params))
    implementation = table.choice(operation, precision, sizes, rows, grad=grad, device=device)
    # the reference is float32, and so right in any precision: what was refused must not come back
    return triton if implementation == "fused" else chain if implementation == "chain" else None


# ---- the operations


def velocity(actor: Layers, obs: Tensor, z: Tensor, t: Tensor, log2_steps: Tensor) -> Tensor:
    """Shortcut model s_theta(z, t, h | x) [B, A]: see `reference.velocity`."""
    fast, precision = _choose("velocity", actor, obs, z, t, log2_steps)
    if fast is None or ((t.requires_grad or log2_steps.requires_grad) and fast is not chain):
        return reference.velocity(actor, obs, z, t, log2_steps)
    return fast.velocity(actor, obs, z, t, log2_steps, precision)


def rollout(
    actor: Layers, obs: Tensor, noise: Tensor, steps: int, log2_steps: float | None = None
) -> Tensor:
    """Actions [B, A] in [-1, 1] after M = `steps` Euler steps: see `reference.rollout`."""
    fast, precision = _choose("rollout", actor, obs, noise)
    if fast is None:
        return reference.rollout(actor, obs, noise, steps, log2_steps)
    return fast.rollout(actor, obs, noise, steps, precision, log2_steps=log2_steps)


def critic_ensemble(critic: Layers, obs: Tensor, actions: Tensor, steps: int) -> Tensor:
    """Q_phi(x, a, k) of every member [E, B]: see `reference.critic_ensemble`."""
    fast, precision = _choose("critic_ensemble", critic, obs, actions)
    if fast is None:
        return reference.critic_ensemble(critic, obs, actions, steps)
    return fast.critic_ensemble(critic, obs, actions, steps, precision)


def best_of_n(
    actor: Layers,
    critic: Layers,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    q_agg: str = "mean",
    low: Tensor | float = -1.0,
    high: Tensor | float = 1.0,
    *,
    want_q: bool = True,
) -> Best:
    """Winning actions [B, A], winners, their Q and flags [B] of N candidates: see `reference.best_of_n`."""
    args = actor, critic, obs, noise, steps, q_agg, low, high
    if not _on_gpu(obs.device):
        return reference.best_of_n(*args, want_q=want_q)
    tensors = obs, noise, *flat(actor)
    rows = noise.shape[0] * noise.shape[1]
    fast, precision = _choose("best_of_n", critic, *tensors, rows=rows)
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *flat(critic)))
    if fast is None or grad:
        return reference.best_of_n(*args, want_q=want_q)
    return fast.best_of_n(*args, precision, want_q=want_q)


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
    """Clip, Adam and the EMA of the targets, in place: see `reference.adam_ema_step`."""
    state = (*params, *first, *second, *targets)
    grads, more_grads = ([g.contiguous() for g in part] for part in (grads, more_grads))
    count = sum(p.numel() for p in params)
    fast, _ = _choose(
        "adam_ema_step", None, *state, *grads, *more_grads, rows=count, differentiable=False
    )
    if not all(x.is_contiguous() for x in state):
        fast = None
    return (fast or reference).adam_ema_step(
        *(params, grads, first, second, targets, step),
        lr=lr, b1=b1, b2=b2, eps=eps, clip_norm=clip_norm, tau=tau, more_grads=more_grads,
        ema_before=ema_before,
    )  # fmt: skip


def normals(key: Tensor, rows: int, candidates: int, act_dim: int, draws: int = 1) -> Tensor:
    """Standard normal noise [B, N, (S,) A] of a key on the device: see `reference.normals`."""
    fast = _choose_noise("normals", key, rows * candidates * draws * act_dim)
    return fast.normals(key, rows, candidates, act_dim, draws)


def words(key: Tensor, count: int) -> Tensor:
    """Uniform 32-bit words [count] of a key on the device: see `reference.words`."""
    return _choose_noise("words", key, count).words(key, count)


def _choose_noise(operation: str, key: Tensor, count: int) -> ModuleType:
    triton = _triton(key.device) if _on_gpu(key.device) else None
    if triton is None or count == 0:
        return reference
    if _wanted() == "triton":
        return triton
    implementation = table.choice(operation, "fp32", None, count, device=key.device)
    return triton if implementation == "fused" else reference
