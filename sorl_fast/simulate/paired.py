"""Two ways to act, compared episode by episode: the same starts and the same noise."""

import math
from collections.abc import Sequence

from ..errors import BadInput


def sign_test(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Return the p-value of McNemar's exact test that two ways succeed equally often.

    Of the d episodes in which only one succeeded, each way is the one with probability 1/2 if they are
    equal: p = min(1, 2 sum_{i <= k} C(d, i) / 2^d), k the smaller of the two counts. Two-sided; d = 0: 1.

    Parameters
    ----------
    a, b
        Success of each episode, in the same order.

    Raises
    ------
    BadInput
        They are not equally many.
    """
    if len(a) != len(b):
        raise BadInput(
            f"{len(a)} and {len(b)} episodes cannot be paired: give the same episodes of both"
        )
    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    d = only_a + only_b
    return min(1.0, 2 * sum(math.comb(d, i) for i in range(min(only_a, only_b) + 1)) / 2**d)
