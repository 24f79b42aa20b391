"""The device helpers, and the interpreter that they are tested in."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from sorl_fast.kernels.dense import gelu, gelu_slope, input_product, product
from tolerances import FLOAT32

from .interpreter import narrow, widen


@triton.jit
def _gelu(x, value, slope, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(value + i, gelu(tl.load(x + i)))
    tl.store(slope + i, gelu_slope(tl.load(x + i)))


def both(x):
    value, slope = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    _gelu[(1,)](x, value, slope, n=len(x))
    return value, slope


def test_gelu_and_its_slope():
    x = torch.linspace(-25, 25, 4096)
    y = x.double().requires_grad_()
    expected = torch.nn.functional.gelu(y, approximate="tanh")
    (slope,) = torch.autograd.grad(expected.sum(), y)
    value, own = both(x)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(own.double(), slope, rtol=2e-6, atol=2e-6)


def test_gelu_where_the_cube_overflows():
    x = torch.tensor([1e20, -1e20, torch.inf, 3e38, -3e38, torch.nan, 0.0, -0.0])
    value, slope = both(x)
    assert value[:5].tolist() == [x[0], 0, torch.inf, x[3], 0]
    assert slope[:5].tolist() == [1, 0, 1, 1, 0]
    assert value[5].isnan()
    assert slope[5].isnan()
    assert value[6:].tolist() == [0, 0]
    assert slope[6:].tolist() == pytest.approx([0.5, 0.5])


@triton.jit
def _multiply(x, w, out, K: tl.constexpr, INPUT: tl.constexpr):
    i, k, n = tl.arange(0, 16), tl.arange(0, 16), tl.arange(0, 16)
    left = x + i[:, None] * K + k[None, :]
    right = w + k[:, None] * 16 + n[None, :]
    acc = tl.zeros((16, 16), tl.float32) + 1.0
    if INPUT:
        acc = input_product(acc, tl.load(left), tl.load(right), "ieee")
    else:
        acc = product(acc, left, right, 16, K, 16, 1, "ieee")
    tl.store(out + i[:, None] * 16 + n[None, :], acc)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_products_sum_in_float32(dtype):
    x, w = torch.randn(16, 48).to(dtype), torch.randn(48, 16).to(dtype)
    out = torch.full((16, 16), torch.nan)
    _multiply[(1,)](x, w, out, K=48, INPUT=False)
    torch.testing.assert_close(out.double(), x.double() @ w.double() + 1, rtol=FLOAT32, atol=1e-5)


def test_inputs_keep_sixteen_bits():
    x, w = 50 + torch.rand(16, 16), torch.randn(16, 16).bfloat16()
    out = torch.full((16, 16), torch.nan)
    _multiply[(1,)](x, w, out, K=16, INPUT=True)
    error = (out - 1 - x.double() @ w.double()).abs().amax()
    plain = ((x.bfloat16().double() - x) @ w.double()).abs().amax()
    assert error < plain / 50


def test_interpreter_rounds_as_torch_does():
    x = torch.cat([torch.randn(1000), torch.tensor([1.00390625, 1.01171875, torch.inf, 0, -0.0])])
    bits = narrow(x.numpy(force=True))
    np.testing.assert_array_equal(bits, x.bfloat16().view(torch.uint16).numpy(force=True))
    np.testing.assert_array_equal(widen(bits), x.bfloat16().float().numpy(force=True))
    assert np.isnan(widen(narrow(np.array([np.nan, -np.nan], np.float32)))).all()
