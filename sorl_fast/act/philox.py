"""The noise of every backend: Philox4x32-10 words turned into standard normals.

Counter-based, so that any element can be made alone, in any order, on any machine. The generator is
that of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011); numpy.random.Philox is
the 4x64 one and gives other numbers.

Shape letters: B rows, N candidates, A action components.
"""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_LOW32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10: four random words a counter.

    Parameters
    ----------
    counter
        uint32 [4, ...], words 0 to 3 first.
    key
        Two integers in [0, 2^32).

    Returns
    -------
    NDArray[np.uint32]
        Words [4, ...], uniform on 32 bits.
    """
    words = np.asarray(counter).astype(np.uint64)
    lanes = (2, *(1,) * (words.ndim - 1))
    multipliers = _MULTIPLIERS.reshape(lanes)
    weyl = _WEYL.reshape(lanes)
    round_key = np.array(key, np.uint64).reshape(lanes)
    # both halves of a round go through one product: even holds words 0 and 2, odd words 1 and 3
    even, odd = words[0::2], words[1::2]
    for _ in range(ROUNDS):
        product = even * multipliers
        even = (product >> _32)[::-1] ^ odd ^ round_key
        odd = (product & _LOW32)[::-1]
        round_key = (round_key + weyl) & _LOW32
    out = np.empty(words.shape, np.uint32)
    out[0::2], out[1::2] = even, odd
    return out


def normals(
    seed: int,
    rows: int,
    candidates: int,
    act_dim: int,
    call: int = 0,
    row_offset: int = 0,
    draw: int = 0,
) -> NDArray[np.float32]:
    """Standard normal noise, each element a function of (seed, call, row, candidate, draw, a) alone.

    counter = ((draw << 24) + a // 4, candidate, row_offset + row, call mod 2^32), key = (low, high 32
    bits of the seed). Draw 0 is z_0, draw i + 1 the noise that step i of a diffusion adds.
    With u = ((w >> 8) + 1) 2^-24 in (0, 1] and v = (w' >> 8) 2^-24 in [0, 1), words w, w' = 0, 1
    give sqrt(-2 ln u) cos 2 pi v and sqrt(-2 ln u) sin 2 pi v for a mod 4 = 0, 1, and words 2, 3 those
    for a mod 4 = 2, 3 (Box-Muller). Computed in float64, rounded once to float32.

    Parameters
    ----------
    seed
        In [0, 2^64).
    rows, candidates, act_dim
        B, N and A, each at least 0.
    call
        Number of the call, at least 0; counts modulo 2^32.
    row_offset
        Row number of the first row: two halves of a batch, the second with row_offset = B / 2, get
        the noise of the whole.
    draw
        In [0, 256); above 0, A is below 2^26.

    Returns
    -------
    NDArray[np.float32]
        [B, N, A], of magnitude at most sqrt(48 ln 2) = 5.77.
    """
    quads = -(-act_dim // 4)
    counter = np.empty((4, rows, candidates, quads), np.uint32)
    counter[0] = np.arange(quads, dtype=np.uint32) + np.uint32(draw << 24)
    counter[1] = np.arange(candidates, dtype=np.uint32)[:, None]
    counter[2] = np.arange(row_offset, row_offset + rows, dtype=np.uint64)[:, None, None]
    counter[3] = call & 0xFFFFFFFF
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)) >> np.uint32(8)
    radius = np.sqrt(-2.0 * np.log((words[0::2] + 1.0) * 2.0**-24))
    angle = (2.0 * np.pi * 2.0**-24) * words[1::2]
    out = np.empty((rows, candidates, quads, 2, 2), np.float32)  # a = 4 quad + 2 pair + (cos, sin)
    out[..., 0] = np.moveaxis(radius * np.cos(angle), 0, -1)
    out[..., 1] = np.moveaxis(radius * np.sin(angle), 0, -1)
    return np.ascontiguousarray(out.reshape(rows, candidates, 4 * quads)[..., :act_dim])


def uniforms(seed: int, rows: int, call: int = 0, row_offset: int = 0) -> NDArray[np.float64]:
    """Uniform numbers, one a row: what a rule of choosing draws by, apart from the noise.

    u = (w >> 8) 2^-24 with w word 0 of Philox4x32-10 at counter = (0, 2^32 - 1, row_offset + row, call
    mod 2^32) and the key of `normals`; no sampler has a candidate 2^32 - 1.

    Parameters
    ----------
    seed, rows, call, row_offset
        As in `normals`.

    Returns
    -------
    NDArray[np.float64]
        [B], in [0, 1), exact in float32 too.
    """
    counter = np.empty((4, rows), np.uint32)
    counter[0] = 0
    counter[1] = 0xFFFFFFFF
    counter[2] = np.arange(row_offset, row_offset + rows, dtype=np.uint64)
    counter[3] = call & 0xFFFFFFFF
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return (words[0] >> np.uint32(8)) * 2.0**-24
