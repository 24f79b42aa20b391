"""The noise: published known answers, DESIGN's definition word by word, and what may be split."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import PHILOX

from sorl_fast.act.philox import normals, philox4x32

SEEDS = st.integers(0, 2**64 - 1)


def words(text):
    return [int(word, 16) for word in text.split()]


# kat_vectors of Random123, philox4x32 with 10 rounds: counter, key, answer
KNOWN = {
    "zeros": (
        *("00000000 00000000 00000000 00000000", "00000000 00000000"),
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    "ones": (
        *("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff"),
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    "pi": (
        *("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0"),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN.values(), ids=KNOWN)
def test_known_answers(counter, key, answer):
    out = philox4x32(np.array(words(counter), np.uint32), tuple(words(key)))
    assert out.dtype == np.uint32
    assert out.tolist() == words(answer)


def test_known_answers_side_by_side():
    counters = np.array([words(KNOWN[k][0]) for k in ("zeros", "zeros", "pi")], np.uint32).T
    out = philox4x32(counters.reshape(4, 3, 1), (0, 0))
    assert out.shape == (4, 3, 1)
    assert out[:, 1, 0].tolist() == words(KNOWN["zeros"][2])


def scalar_words(counter, key):
    """Philox4x32-10 once more, a word at a time in Python's integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 % 2**32, (p0 >> 32) ^ c[3] ^ k1, p0 % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def scalar_normal(seed, call, row, candidate, a, draw=0):
    w = scalar_words(
        ((draw << 24) + a // 4, candidate, row, call % 2**32), (seed % 2**32, seed // 2**32)
    )
    first = a % 4 // 2 * 2
    radius = math.sqrt(-2 * math.log(((w[first] >> 8) + 1) * 2.0**-24))
    turn = 2 * math.pi * ((w[first + 1] >> 8) * 2.0**-24)
    return radius * (math.sin(turn) if a % 2 else math.cos(turn))


@given(
    seed=SEEDS,
    call=st.integers(0, 2**40),
    row=st.integers(0, 2**32 - 3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)),
    draw=st.sampled_from([0, 0, 1, 2, 255]),
)
def test_equals_the_scalar_definition(seed, call, row, shape, draw):
    B, N, A = shape
    z = normals(seed, B, N, A, call, row, draw)
    assert z.shape == shape
    assert z.dtype == np.float32
    expected = [
        [[scalar_normal(seed, call, row + b, n, a, draw) for a in range(A)] for n in range(N)]
        for b in range(B)
    ]
    np.testing.assert_allclose(z, expected, rtol=0, atol=PHILOX)


FROZEN = {  # (seed, call, row, candidate, a): normal
    (0x0, 0, 0, 0, 0): 0.991137505,
    (0x0, 0, 0, 0, 3): -0.48206836,
    (0x1, 0, 0, 0, 4): 0.626947641,
    (0x2A, 7, 3, 2, 1): 0.17040205,
    (0xFFFFFFFFFFFFFFFF, 4294967295, 4294967295, 63, 6): -1.45611441,
    (0x123456789ABCDEF, 1000, 255, 7, 20): 1.69432044,
}


@pytest.mark.parametrize("key", FROZEN, ids=str)
def test_frozen_values(key):
    seed, call, row, candidate, a = key
    z = normals(seed, 1, candidate + 1, a + 1, call, row)
    assert abs(z[0, candidate, a] - FROZEN[key]) < PHILOX


@given(seed=SEEDS, A=st.integers(1, 13))
def test_a_tail_is_a_prefix(seed, A):
    whole = normals(seed, 2, 3, 13)
    np.testing.assert_array_equal(normals(seed, 2, 3, A), whole[..., :A])
    np.testing.assert_array_equal(normals(seed, 2, 1, 13), whole[:, :1])


@given(seed=SEEDS, B=st.integers(1, 9), cut=st.integers(0, 9), call=st.integers(0, 2**32))
def test_a_batch_may_be_split(seed, B, cut, call):
    cut = min(cut, B)
    whole = normals(seed, B, 2, 5, call)
    parts = [normals(seed, cut, 2, 5, call), normals(seed, B - cut, 2, 5, call, row_offset=cut)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_call_counts_modulo_2_to_the_32():
    np.testing.assert_array_equal(normals(3, 2, 2, 5, call=2**32 + 7), normals(3, 2, 2, 5, call=7))


@pytest.mark.parametrize(
    "other",
    [
        *({"seed": 4}, {"seed": 3 + 2**32}, {"seed": 3 + 2**63}, {"call": 1}, {"call": 2**31}),
        *({"row_offset": 1}, {"row_offset": 2**32 - 4}, {"draw": 1}, {"draw": 255}),
    ],
    ids=str,
)
def test_every_bit_of_the_key_matters(other):
    base = {"seed": 3, "rows": 4, "candidates": 2, "act_dim": 5}
    assert not np.isin(normals(**(base | other))[0], normals(**base)[0]).any()


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (1, 1, 1)], ids=str)
def test_edges_of_shape(shape):
    z = normals(0, *shape)
    assert z.shape == shape
    assert z.flags.c_contiguous


def test_is_standard_normal_and_independent():
    z = normals(2024, 20_000, 2, 5).astype(np.float64)
    n = z.size  # 200,000: the bounds below are over four standard errors
    assert abs(z.mean()) < 4.5 / math.sqrt(n)
    assert abs(z.var() - 1) < 4.5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4.5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4.5 * math.sqrt(96 / n)
    assert np.abs(z).max() < math.sqrt(48 * math.log(2)) + 1e-6
    columns = z.reshape(20_000, 10)
    correlation = np.corrcoef(columns.T) - np.eye(10)
    assert np.abs(correlation).max() < 5 / math.sqrt(20_000)
    lag = (columns[1:] * columns[:-1]).mean(0)
    assert np.abs(lag).max() < 5 / math.sqrt(20_000)
    # the share below each decile of the normal distribution
    deciles = [-1.2815516, -0.8416212, -0.5244005, -0.2533471, 0.0]
    for share, x in zip((0.1, 0.2, 0.3, 0.4, 0.5), deciles, strict=True):
        assert abs((z < x).mean() - share) < 4.5 * math.sqrt(share * (1 - share) / n)
