"""Transitions of action chunks: h actions in a row as one action, and what they bring.

Shape letters: T transitions of single actions, K of chunks, O observation, A action, h actions of a chunk.
"""

from collections.abc import Mapping

import numpy as np

from ..errors import BadInput

ENDS = "ends"  # of `arrays`: which rows [T] end a trajectory


def chunk_transitions(
    arrays: Mapping[str, np.ndarray], length: int, discount: float, source: str
) -> dict[str, np.ndarray]:
    """Return the transitions of chunks of h actions, one for each row that begins one.

    Of the chunk that begins in row t, let k be the first of its rows t, ..., t + h - 1 where the task is
    done (mask 0), or else its last one, t + h - 1. Then

        a = (a_t, ..., a_{t+h-1}),  r = sum_{i=t}^{k} discount^(i-t) r_i,  x' = x'_{t+h-1},
        mask = mask_t ... mask_{t+h-1},

    and the backup r + discount^h mask Q(x', a') is that of h steps, or of those up to the task's end.

    A trajectory's end cuts the chunks short that begin in its last h - 1 rows. Such a one is left out, for
    it has no x' after h steps: Q-chunking leaves it out of the critic's loss, too (Q. Li, Z. Zhou,
    S. Levine, 2025, arXiv:2507.07969). But not where the task is done in it: what comes after k has no
    part in its value, and the states before an episode's end are in no other chunk. It is kept, and the
    trajectory's last action stands for those that are missing. (Q-chunking leaves these out as well, and
    adds the rewards behind k.)

    Parameters
    ----------
    arrays
        observations [T, O], actions [T, A], rewards, masks (0 or 1) and `ENDS` [T], next_observations
        [T, O], and perhaps next_actions [T, A]; rows in order, `ENDS` true in every trajectory's last one.
    length
        h, at least 1.
    discount
        Of a single step.
    source
        What the errors call the data.

    Returns
    -------
    dict
        observations [K, O], actions [K, h A], rewards and masks [K], next_observations [K, O], and
        next_actions [K, h A] where they were given: the chunk that begins at x', of which a trajectory's
        last action stands for those that are missing.

    Raises
    ------
    BadInput
        No trajectory is as long as a chunk.
    """
    T, ends = len(arrays["rewards"]), np.flatnonzero(arrays[ENDS])
    start = np.arange(T)
    last = ends[np.searchsorted(ends, start)]  # of each row's trajectory
    rows = [np.minimum(start + i, last) for i in range(length)]

    going = np.ones(T, bool)  # before row i of the chunk the task was not done
    rewards = np.zeros(T)
    for i, row in enumerate(rows):
        there = going & (start + i <= last)
        rewards[there] += discount**i * arrays["rewards"][row[there]].astype(np.float64)
        going[there] = arrays["masks"][row[there]] != 0
    keep = np.flatnonzero((start + length - 1 <= last) | ~going)
    if keep.size == 0:
        longest = int(np.diff(ends, prepend=-1).max(initial=0))
        raise BadInput(
            f"{source} has no trajectory of {length} transitions, the longest has {longest}: --chunk "
            f"{length} leaves nothing to learn from. Give a smaller --chunk"
        )
    chunks = {
        "observations": arrays["observations"][keep],
        "actions": np.concatenate([arrays["actions"][row[keep]] for row in rows], axis=1),
        "rewards": rewards[keep],
        "next_observations": arrays["next_observations"][rows[-1][keep]],
        "masks": going[keep].astype(np.float32),
    }
    if "next_actions" in arrays:
        following = [np.minimum(start + length - 1 + i, last)[keep] for i in range(length)]
        parts = [arrays["next_actions"][row] for row in following]
        chunks["next_actions"] = np.concatenate(parts, axis=1)
    return chunks
