"""The second form of each operation: PyTorch's own products in the precision, one after the other.

What a product reads and what a hidden layer writes is in the precision; z, velocities, LayerNorm, Q,
sums within a product and gradients of parameters are float32. On any device, differentiable by
autograd, never waiting for the device: a CUDA graph can record it.

Shape letters as in `reference`.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, pad

from ..kernels.products import float_product, unit_scale
from .reference import LAYER_NORM_EPS, Best, Layers, best_of_parts, choosing, log2_fed, steps_of
from .rules import Rule
from .schedule import Schedule

# precision -> type of weights and activations; tf32 is float32 with products that round it
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
ALIGNED = 8  # numbers of 2 bytes in the 16 that tensor cores want rows to begin at


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Make float32 products of CUDA tensors round to tf32 exactly where the precision is tf32."""
    matmul: Any = torch.backends.cuda.matmul
    setting = "fp32_precision" if hasattr(matmul, "fp32_precision") else "allow_tf32"
    values = ("ieee", "tf32") if setting == "fp32_precision" else (False, True)
    before = getattr(matmul, setting)
    setattr(matmul, setting, values[precision == "tf32"])
    try:
        yield
    finally:
        setattr(matmul, setting, before)


class _Linear(torch.autograd.Function):
    """x w + b of rounded copies; gradients of the float32 originals are float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor, rounded: Tensor, bias: Tensor, precision: str
    ) -> Tensor:
        ctx.save_for_backward(x, rounded)
        ctx.inputs, ctx.precision = w.shape[-2], precision
        with products(precision):
            if bias.dtype != rounded.dtype:
                return float_product(x, rounded) + bias.unsqueeze(-2)
            if x.ndim == 2:
                return torch.addmm(bias, x, rounded)
            return torch.baddbmm(bias.unsqueeze(1), x, rounded)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rounded = ctx.saved_tensors
        of_x = of_w = of_b = None
        to_x, to_w, to_b = ctx.needs_input_grad[:3]
        d = grad.to(x.dtype)
        with products(ctx.precision):
            if to_x:
                of_x = torch.matmul(d, rounded.mT)
            if to_w:
                of_w = float_product(x.mT, d)[..., : ctx.inputs, :]
        if to_b:
            of_b = grad.sum(-2, dtype=torch.float32)
        return of_x, of_w, of_b, None, None, None


class Network(NamedTuple):
    """Layers with the copies that products read, made once for any number of steps."""

    layers: Layers
    rounded: list[tuple[Tensor, Tensor]]  # of w, its rows padded, and b; the last b is float32
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations."""
        return DTYPES[self.precision]

    def linear(self, i: int, x: Tensor) -> Tensor:
        """Layer i's product: in the precision, or float32 after the last layer."""
        out: Tensor = _Linear.apply(x, *self.layers[i][:2], *self.rounded[i], self.precision)  # type: ignore[no-untyped-call]
        return out

    def inputs(self, *columns: Tensor) -> Tensor:
        """Return columns side by side [B, X] in the precision, padded as the first weights are."""
        x = torch.cat([c if c.ndim == 2 else c.unsqueeze(-1) for c in columns], -1)
        return pad(x.to(self.dtype), (0, self.rounded[0][0].shape[-2] - x.shape[-1]))


def prepare(layers: Layers, precision: str) -> Network:
    """Round a network's weights to the precision, a key of DTYPES."""
    dtype, last = DTYPES[precision], len(layers) - 1
    rounded = []
    with torch.no_grad():
        for i, (w, b, *_) in enumerate(layers):
            spare = -w.shape[-2] % ALIGNED if dtype.itemsize == 2 else 0
            w_rounded = pad(w.to(dtype), (0, 0, 0, spare)) if spare else w.to(dtype)
            rounded.append((w_rounded, b.detach() if i == last else b.to(dtype)))
    return Network(layers, rounded, precision)


def velocity_of(actor: Network, obs: Tensor, z: Tensor, t: Tensor, log2_steps: Tensor) -> Tensor:
    """Return what `reference.velocity` does, of a prepared actor."""
    x = actor.inputs(obs, z, t, log2_steps)
    for i in range(len(actor.layers) - 1):
        x = gelu(actor.linear(i, x), approximate="tanh")
    return actor.linear(len(actor.layers) - 1, x)


def denoise_of(
    actor: Network, obs: Tensor, noise: Tensor, steps: int, log2_steps: float | None = None
) -> Tensor:
    """Return what `reference.denoise` does, of a prepared actor."""
    z = noise
    fed = obs.new_full(obs.shape[:1], log2_fed(steps, log2_steps))
    for i in range(steps):
        t = obs.new_full(obs.shape[:1], i / steps)
        z = z + velocity_of(actor, obs, z, t, fed) / steps
    return z


def critic_of(critic: Network, obs: Tensor, actions: Tensor, steps: int) -> Tensor:
    """Return what `reference.critic_ensemble` does, of a prepared critic."""
    k = obs.new_full(obs.shape[:1], float(steps))
    x = critic.inputs(obs, actions, k).expand(critic.layers[0][0].shape[0], -1, -1)
    for i, (_, _, g, c) in enumerate(critic.layers[:-1]):
        x = gelu(critic.linear(i, x), approximate="tanh").float()
        x = layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
        x = torch.addcmul(c.unsqueeze(1), x, g.unsqueeze(1)).to(critic.dtype)
    return critic.linear(len(critic.layers) - 1, x).squeeze(-1)


def best_of_n_of(
    actor: Network,
    critic: Network | None,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    q_agg: str,
    low: Tensor | float,
    high: Tensor | float,
    *,
    want_q: bool = True,
    schedule: Schedule | None = None,
    temperature: Tensor | None = None,
    rule: Rule | None = None,
) -> Best:
    """Return what `reference.best_of_n` does, of prepared networks; None: no critic."""
    make: Any = functools.partial(denoise_of, actor)
    score = None if critic is None else functools.partial(critic_of, critic)
    if schedule is not None:
        make = steps_of(functools.partial(velocity_of, actor), schedule, temperature)
        steps = schedule.k or steps
    options = {"want_q": want_q} | choosing(rule, len(obs))
    return best_of_parts(make, score, obs, noise, steps, q_agg, low, high, **options)


# ---- gradients in fp16


class _Scale:
    value: Tensor


class _Leave(torch.autograd.Function):
    """The identity; scales the gradient that comes in."""

    @staticmethod
    def forward(ctx: Any, scale: _Scale, out: Tensor) -> Tensor:
        ctx.scale = scale
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        ctx.scale.value = unit_scale(grad)
        return None, grad * ctx.scale.value


class _Enter(torch.autograd.Function):
    """The identity; takes the scale off the gradient that goes out."""

    @staticmethod
    def forward(ctx: Any, scale: _Scale, x: Tensor) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad / ctx.scale.value


def _differentiable(
    function: Any, layers: Layers, inputs: Sequence[Tensor], *rest: Any, precision: str
) -> Tensor:
    """Return function(network, *inputs, *rest), its gradients kept within the range of fp16."""
    if precision != "fp16" or not torch.is_grad_enabled():
        return function(prepare(layers, precision), *inputs, *rest)
    scale = _Scale()

    def enter(x: Tensor) -> Tensor:
        return _Enter.apply(scale, x) if x.requires_grad else x  # type: ignore[no-untyped-call]

    entered = [tuple(enter(x) for x in layer) for layer in layers]
    out = function(prepare(entered, precision), *map(enter, inputs), *rest)
    left: Tensor = _Leave.apply(scale, out)  # type: ignore[no-untyped-call]
    return left


# ---- the operations


def velocity(
    actor: Layers, obs: Tensor, z: Tensor, t: Tensor, log2_steps: Tensor, precision: str
) -> Tensor:
    """Return what `reference.velocity` does."""
    return _differentiable(velocity_of, actor, (obs, z, t, log2_steps), precision=precision)


def rollout(
    actor: Layers,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    precision: str,
    log2_steps: float | None = None,
) -> Tensor:
    """Return what `reference.rollout` does."""
    z = _differentiable(denoise_of, actor, (obs, noise), steps, log2_steps, precision=precision)
    return z.clamp(-1, 1)


def critic_ensemble(
    critic: Layers, obs: Tensor, actions: Tensor, steps: int, precision: str
) -> Tensor:
    """Return what `reference.critic_ensemble` does."""
    return _differentiable(critic_of, critic, (obs, actions), steps, precision=precision)


def best_of_n(
    actor: Layers,
    critic: Layers,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    q_agg: str,
    low: Tensor | float,
    high: Tensor | float,
    precision: str,
    *,
    want_q: bool = True,
) -> Best:
    """Return what `reference.best_of_n` does, without a gradient."""
    networks = prepare(actor, precision), prepare(critic, precision)
    return best_of_n_of(*networks, obs, noise, steps, q_agg, low, high, want_q=want_q)
