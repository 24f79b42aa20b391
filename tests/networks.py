"""Networks as flat parameters, and how the results of an operation are held against float64."""

import math
from itertools import pairwise

import torch


def layers(O=5, A=3, H=64, depth=2, *, E=0, seed=0, last=1.0):
    """An actor, or with E a critic ensemble; all parameters random, gains about 1.

    `last` scales an actor's last weights: with small ones no action reaches the clip.
    """
    g = torch.Generator().manual_seed(seed)
    lead, out, extra = ((E,), 1, 1) if E else ((), A, 2)
    found = []
    for i, (a, b) in enumerate(pairwise([O + A + extra, *[H] * depth, out])):
        bound = (last if i == depth and not E else 1.0) * math.sqrt(6 / (a + b))
        layer = [torch.empty(*lead, a, b).uniform_(-bound, bound, generator=g)]
        layer.append(0.1 * torch.randn(*lead, b, generator=g))
        if E and i < depth:
            layer.append(1 + 0.1 * torch.randn(*lead, b, generator=g))
            layer.append(0.1 * torch.randn(*lead, b, generator=g))
        found.append(tuple(x.requires_grad_() for x in layer))
    return found


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
