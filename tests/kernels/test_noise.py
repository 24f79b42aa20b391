"""Noise and words drawn by kernels are those of every other backend, bit for bit."""

import numpy as np
import pytest
import torch
from sorl_fast.kernels import noise

from sorl_fast.act import philox
from sorl_fast.ops import reference

from .place import here

SEEDS = [0, 7, 2**63 + 5, 2**64 - 1]
CALLS = [0, 3, 2**32 + 1]


def key_of(seed, call, row_offset=0):
    values = np.array([seed, call, row_offset], np.uint64)
    return here(values.view(np.int64))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("call", CALLS)
def test_normals_are_the_samplers(seed, call):
    key = key_of(seed, call, row_offset=2**32 - 3)
    expected = philox.normals(seed, 5, 3, 7, call=call, row_offset=2**32 - 3)
    np.testing.assert_array_equal(reference.normals(key, 5, 3, 7).numpy(force=True), expected)
    np.testing.assert_array_equal(noise.normals(key, 5, 3, 7).numpy(force=True), expected)


@pytest.mark.parametrize(
    ("B", "N", "A"),
    [(0, 1, 1), (1, 1, 1), (3, 8, 5), (40, 1, 21), (513, 1, 1), (2, 32, 4)],
    ids=lambda n: str(n),
)
def test_normals_of_odd_shapes(B, N, A, poisoned):
    np.testing.assert_array_equal(
        noise.normals(key_of(11, 4), B, N, A).numpy(force=True), philox.normals(11, B, N, A, call=4)
    )


@pytest.mark.parametrize("draws", [2, 256])
def test_normals_of_several_draws_are_the_samplers(draws, poisoned):
    key = key_of(2**64 - 3, 4, row_offset=2**32 - 1)
    found = noise.normals(key, 2, 3, 5, draws).numpy(force=True)
    assert found.shape == (2, 3, draws, 5)
    for draw in (0, 1, draws // 2, draws - 1):
        expected = philox.normals(2**64 - 3, 2, 3, 5, 4, 2**32 - 1, draw)
        np.testing.assert_array_equal(found[:, :, draw], expected)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 511, 513])
@pytest.mark.parametrize("seed", SEEDS[2:])
def test_words_are_philox_at_their_counters(count, seed, poisoned):
    call, offset = 2**32 + 6, 9
    counter = np.zeros((4, -(-count // 4)), np.uint32)
    counter[0] = np.arange(counter.shape[1])
    counter[1], counter[2], counter[3] = 2**32 - 1, offset, 6
    expected = philox.philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).T.reshape(-1)[:count]
    for draw in (noise.words, reference.words):
        words = draw(key_of(seed, call, offset), count)
        assert words.dtype == torch.int64
        np.testing.assert_array_equal(words.numpy(force=True), expected.astype(np.int64))


def test_words_known_answer():
    # Random123's known-answer file has philox4x32 with all counters and keys ones
    key = torch.tensor([-1, -1, -1])
    counter = np.full((4, 1), 2**32 - 1, np.uint32)
    answer = [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox.philox4x32(counter, (2**32 - 1, 2**32 - 1))[:, 0].tolist() == answer
    # its first counter word is a position here: word 0 is what the oracle says at position 0
    counter[0] = 0
    expected = philox.philox4x32(counter, (2**32 - 1, 2**32 - 1))[:, 0].tolist()
    assert noise.words(key, 4).tolist() == reference.words(key, 4).tolist() == expected


def test_words_and_normals_are_other_streams():
    key = key_of(3, 1)
    words = noise.words(key, 4).numpy(force=True)
    of_normals = philox.philox4x32(np.array([[0], [0], [0], [1]], np.uint32), (3, 0))[:, 0]
    assert not np.isin(words, of_normals).any()


def test_a_draw_reads_the_key_afresh():
    key = key_of(5, 0)
    before = noise.normals(key, 2, 1, 3)
    key[1] += 1
    np.testing.assert_array_equal(
        noise.normals(key, 2, 1, 3).numpy(force=True), philox.normals(5, 2, 1, 3, call=1)
    )
    assert not torch.equal(before, noise.normals(key, 2, 1, 3))
