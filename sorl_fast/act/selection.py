"""Which of the evaluated ways to act a policy keeps: chosen on half of the episodes, told on the rest.

The best of many cells looks better than it is; the episodes that chose it cannot say how good it is.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..errors import BadInput
from .choice import PolicyChoice


class Tried(NamedTuple):
    """A way to act, and the success of its episodes 0, 1, 2, ..., the same episodes for all."""

    way: PolicyChoice
    outcomes: Sequence[bool]


class Selected(NamedTuple):
    """The way to keep."""

    way: PolicyChoice
    seen: tuple[int, int]  # successes and episodes of the half that chose it
    told: tuple[int, int]  # of the other half: what to expect


def cost(way: PolicyChoice) -> int:
    """Return the evaluations of networks an action takes: M N, and N of the critic where it is read."""
    scored = way.candidates > 1 and way.rule.reads_q
    return way.candidates * (way.steps.count + scored)


def select(tried: Iterable[Tried]) -> Selected:
    """Choose by the even episodes: of what is within one standard error of the best, the cheapest.

    N > 1 is thus never chosen where it did not succeed more often than N = 1 at the same steps, which
    is cheaper. The standard error is sqrt(p (1 - p) / n), p = (k + 1) / (n + 2) of the best's k of n
    successes, so that it is above 0 at k = n. Of equal costs the more successful, then the first, is
    chosen.

    Parameters
    ----------
    tried
        At least one, each of at least one episode and all of as many.

    Raises
    ------
    BadInput
        There is nothing to choose from, or the episodes are not equally many.
    """
    ways = list(tried)
    counts = {len(way.outcomes) for way in ways}
    if len(counts) != 1 or 0 in counts:
        raise BadInput(
            f"{len(ways)} ways to act of {sorted(counts)} episodes cannot be chosen from: give one or "
            "more, all of the same episodes"
        )
    n = len(ways[0].outcomes[::2])
    best = max(sum(t.outcomes[::2]) for t in ways)
    p = (best + 1) / (n + 2)
    least = best - n * math.sqrt(p * (1 - p) / n)
    near = [t for t in ways if sum(t.outcomes[::2]) >= least]
    chosen = min(near, key=lambda t: (cost(t.way), -sum(t.outcomes[::2])))
    rest = chosen.outcomes[1::2]
    return Selected(chosen.way, (sum(chosen.outcomes[::2]), n), (sum(rest), len(rest)))
