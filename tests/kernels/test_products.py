"""What backwards do in PyTorch; a GPU's own product in float32 is for the check on a GPU."""

import pytest
import torch
from sorl_fast.kernels.products import float_product, unit_scale

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("grad", "scale"),
    [([], 1), ([0.0], 1), ([1.0], 0.5), ([-0.75, 0.1], 1), ([6e-8], 2.0**23), ([1e30], 2.0**-100)],
    ids=["empty", "zero", "one", "negative", "small", "huge"],
)
def test_the_scale_is_the_power_of_two_that_brings_the_largest_below_one(grad, scale):
    assert unit_scale(torch.tensor(grad)) == scale


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
def test_a_gradient_that_is_not_finite_is_scaled_as_one_would_be(monkeypatch, bad):
    frexp = torch.frexp

    def of_a_gpu(x):
        mantissa, exponent = frexp(x)
        return mantissa, torch.where(x.isfinite(), exponent, 12345)

    monkeypatch.setattr(torch, "frexp", of_a_gpu)
    assert unit_scale(torch.tensor([0.25, bad])) == 0.5


@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 40)], ids=["one", "pairs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_products_are_float32(shape, dtype):
    left, right = torch.randn(shape).to(dtype), torch.randn(*shape[:-2], 40, 5).to(dtype)
    found = float_product(left, right)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), left.double() @ right.double(), rtol=0, atol=1e-4)
