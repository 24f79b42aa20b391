"""The forms of a policy beside Euler steps, in plain PyTorch: as `act.reference` defines them.

Shape letters: R rows, O observation, A action, S normal numbers an action's component, H hidden,
E critics.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, relu, silu

from .reference import LAYER_NORM_EPS, Layers, velocity
from .schedule import clip_finite, finite_part

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x [R, O], z [R, A] and t [R]


def one_step(
    actor: Layers,
    obs: Tensor,
    noise: Tensor,
    *,
    reads_noise: bool,
    tanh: bool,
    scale: float,
    noise_clip: float | None,
) -> Tensor:
    """Return f(x, z) or its tanh [R, A], plus clip(scale noise, +-noise_clip), not clipped itself.

    Parameters
    ----------
    actor
        Layers as in `reference.velocity`, fed 0 as t and log2(1/h).
    obs, noise
        [R, O] and [R, A].
    reads_noise
        Whether the noise is z, and nothing is added; otherwise z is 0.
    tanh
        Whether the network's output goes through tanh.
    scale, noise_clip
        Of the added noise; at 0 it is not read.
    """
    zero = obs.new_zeros(len(obs))
    f = velocity(actor, obs, noise if reads_noise else torch.zeros_like(noise), zero, zero)
    if tanh:
        f = finite_part(torch.tanh, f)
    if reads_noise or scale == 0:
        return f
    return f + clip_finite(scale * noise, noise_clip)


def diffuse(
    network: Network,
    obs: Tensor,
    noise: Tensor,
    steps: Sequence[tuple[float, float, float, float]],
    clip: float | None,
) -> Tensor:
    """Return z [R, A] after steps i of z <- clip(a z + b v(x, z, t) + s noise_(i + 1), +-clip).

    Parameters
    ----------
    network
        v.
    obs, noise
        [R, O] and [R, S, A], z_0 first.
    steps
        (t, a, b, s) of each; where s is 0 its noise is not read.
    clip
        None: no clip.
    """
    z = noise[:, 0]
    for i, (t, a, b, s) in enumerate(steps):
        z = a * z + b * network(obs, z, obs.new_full((len(obs),), t))
        if s != 0:
            z = z + s * noise[:, i + 1]
        z = clip_finite(z, clip)
    return z


def score(
    network: Layers,
    obs: Tensor,
    z: Tensor,
    t: Tensor,
    keep: Sequence[Tensor] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """IDQL's residual score network (arXiv 2304.10573): the noise [R, A] of one diffusion step.

    Time goes through Fourier features of learned frequencies and two layers; [z, x, time] through one
    layer, residual blocks h + Dense(swish(Dense(LayerNorm(dropout(h))))), swish and a last layer.

    Parameters
    ----------
    network
        Frequencies (w [1, F]), layers (w, b), and in each block first (w, b, g, c), whose LayerNorm is
        before the product.
    obs, z, t
        [R, O], [R, A], and the time [R].
    keep
        A mask [R, H] a block: 1 where dropout keeps; None: no dropout.
    dropout
        The probability that the masks were drawn with.
    """
    (frequencies,), first, second, entry, *blocks, last = network
    f = 2 * math.pi * t.unsqueeze(-1) @ frequencies
    time = _dense(silu(_dense(torch.cat([f.cos(), f.sin()], -1), first)), second)
    h = _dense(torch.cat([z, obs, time], -1), entry)
    for j in range(len(blocks) // 2):
        (w, b, gain, shift), narrow = blocks[2 * j : 2 * j + 2]
        inner = h if keep is None else h * keep[j] / (1 - dropout)
        inner = layer_norm(inner, inner.shape[-1:], gain, shift, LAYER_NORM_EPS)
        h = h + _dense(silu(_dense(inner, (w, b))), narrow)
    return _dense(silu(h), last)


def relu_critics(critic: Layers, obs: Tensor, actions: Tensor) -> Tensor:
    """Q(x, a) [E, R] of critics with layers (w [E, in, out], b [E, out]) and ReLU between them."""
    return relu_stack(torch.cat([obs, actions], -1), critic).squeeze(-1)


def relu_stack(x: Tensor, layers: Layers) -> Tensor:
    """Return x [R, in] through layers with ReLU between them: [R, out], or [E, R, out] of an ensemble."""
    for i, (w, b) in enumerate(layers):
        x = x if i == 0 else relu(x)
        x = x @ w + b.unsqueeze(-2) if w.ndim == 3 else torch.addmm(b, x, w)
    return x


def _dense(x: Tensor, layer: Sequence[Tensor]) -> Tensor:
    w, b = layer
    return torch.addmm(b, x, w)
