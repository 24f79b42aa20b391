"""What backwards do in PyTorch: products in float32, and gradients brought within the range of fp16."""

import torch
from torch import Tensor


def float_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right in float32; 2 or 3 axes, of one type."""
    if left.dtype == torch.float32 or not left.is_cuda:
        return torch.matmul(left.float(), right.float())
    return (torch.mm if left.ndim == 2 else torch.bmm)(left, right, out_dtype=torch.float32)


def unit_scale(grad: Tensor) -> Tensor:
    """Return the power of two, a scalar, that brings the largest |grad| into [1/2, 1).

    A loss's gradient is a mean's, so small that fp16 would lose much of it; backward is linear in it.
    A largest that is not finite counts as 1: what a GPU calls its exponent could be anything.
    """
    if not grad.numel():
        return grad.new_ones(())
    largest = grad.abs().amax()
    _, exponent = torch.frexp(torch.where(largest.isfinite(), largest, 1.0))
    return torch.ldexp(grad.new_ones(()), -exponent.clamp(-100, 100))
