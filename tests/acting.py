"""What the tests of acting share: the backends, a small policy and observations."""

import pytest
from policies import make_policy

from sorl_fast.act.philox import normals

POLICY = make_policy()

# triton: its kernels want a width of 64, so that here it computes by PyTorch's products
BACKENDS = ["numpy", "torch", "native", "triton"]
every = pytest.mark.parametrize("backend", BACKENDS)


def observations(rows, O=3, seed=0):
    return normals(seed, rows, 1, O, call=99)[:, 0]
