"""Noise drawn inside a kernel: the numbers of every other backend."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from sorl_fast.kernels.philox import normals
from tolerances import PHILOX

from sorl_fast.act import philox

ROWS = 16  # (row, candidate) pairs that the kernel below draws


@triton.jit
def _draw(key, out, N: tl.constexpr, A: tl.constexpr, ROWS: tl.constexpr, AP: tl.constexpr):
    i, a = tl.arange(0, ROWS), tl.arange(0, AP)
    row = tl.load(key + 2) + i // N
    z = normals(tl.load(key), tl.load(key + 1), row[:, None], (i % N)[:, None], a[None, :])
    tl.store(out + i[:, None] * A + a[None, :], z, mask=(a < A)[None, :])


def drawn(seed, call, offset, N, A):
    """Noise [ROWS / N, N, A] as a kernel draws it."""
    key = torch.tensor([seed - (seed >> 63 << 64), call, offset])
    out = torch.full((ROWS // N, N, A), torch.nan)
    _draw[(1,)](key, out, N=N, A=A, ROWS=ROWS, AP=triton.next_power_of_2(A))
    return out.numpy(force=True)


def definition(seed, call, offset, N, A):
    return philox.normals(seed, ROWS // N, N, A, call=call, row_offset=offset)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, 2**64 - 1, 0x123456789ABCDEF], ids=hex)
@pytest.mark.parametrize(("N", "A"), [(1, 21), (4, 5), (16, 1)], ids=str)
def test_is_equal_bit_for_bit(seed, N, A):
    for call, offset in ((0, 0), (2**32 - 1, 2**31), (7, 2**32 - ROWS)):
        key = (seed, call, offset, N, A)
        np.testing.assert_array_equal(drawn(*key), definition(*key), err_msg=str(key))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    call=st.integers(0, 2**40),
    offset=st.integers(0, 2**32 - ROWS),
    N=st.sampled_from([1, 2, 8]),
    A=st.integers(1, 9),
)
def test_any_key(seed, call, offset, N, A):
    key = (seed, call, offset, N, A)
    np.testing.assert_allclose(drawn(*key), definition(*key), rtol=0, atol=PHILOX)
