"""Random networks, and how the results of an operation are held against float64."""

import math
from dataclasses import astuple

import torch

from sorl_fast.layout import Layout


def layout(O=5, A=3, H=64, depth=2, E=0):
    """An actor's layout, or with E that of a critic ensemble."""
    return Layout.critic(O, A, H, depth, E) if E else Layout.actor(O, A, H, depth)


def layers(O=5, A=3, H=64, depth=2, *, E=0, seed=0, last=1.0, dtype=torch.float32, grad=True):
    """An actor, or with E a critic ensemble; all parameters random, gains about 1.

    `last` scales an actor's last weights: with small ones no action reaches the clip.
    """
    g = torch.Generator().manual_seed(seed)

    def make(i, letter, shape):
        if letter == "w":
            bound = (last if i == depth and not E else 1.0) * math.sqrt(6 / sum(shape[-2:]))
            x = torch.empty(shape).uniform_(-bound, bound, generator=g)
        else:
            x = 0.1 * torch.randn(shape, generator=g) + (letter == "g")
        return x.to(dtype).requires_grad_(grad)

    return layout(O, A, H, depth, E).build(make)


def normal_layers(layout, normal, *, w=1.0, b=0.1, g=0.2, last=(1.0, 0.1)):
    """A network of normal(*shape) numbers; `last` scales w and b of the last layer, 0.1 c."""
    scales = {"b": b, "g": g, "c": 0.1}

    def make(i, letter, shape):
        at_end = i == layout.depth
        if letter == "w":
            return (last[0] if at_end else w) * normal(*shape) / shape[-2] ** 0.5
        scale = last[1] if at_end else scales[letter]
        return scale * normal(*shape) + (letter == "g")

    return layout.build(make)


def packed(net, layout, precision="fp32"):
    """A network as the kernels take it."""
    from sorl_fast.kernels.packing import Sizes, pack

    return pack(flat(net), Sizes(*astuple(layout)), precision)


def normal(*shape, seed=7, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def double(x):
    if isinstance(x, torch.Tensor):
        return x.detach().double().requires_grad_(x.requires_grad)
    return [tuple(double(y) for y in layer) for layer in x]


def flat(net):
    return [x for layer in net for x in layer]


def agree(got, expected, bound):
    """Each array within `bound` of the float64 one, relative to its largest entry."""
    for i, (x, y) in enumerate(zip(got, expected, strict=True)):
        x, y = x.detach(), y.detach()
        assert x.shape == y.shape
        assert x.dtype == torch.float32
        assert x.isfinite().all(), i
        scale = float(y.abs().max()) if y.numel() else 0.0
        error = float((x.double() - y).abs().max()) if y.numel() else 0.0
        assert error <= bound * scale + 1e-30, (i, error / max(scale, 1e-30))
