"""The statistics of a training's observations, by which a policy tells one that is out of distribution.

Shape letters: T transitions, O observation.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..act.ood import BLOCK, OodTest
from ..data.dataset import DataPair, TransitionData

MOST_ROWS = 200_000  # of a data set, evenly spaced
# Every observation is taken to have a noise of its own beside what the data show: a hundredth of its
# deviation, and no less than a millionth of its largest value and of the observations' middle deviation.
# What never varied, or is a sum of others, is then seen where it moves by a few of these.
OF_DEVIATION = 1e-2
OF_VALUE = 1e-6
LEAST = 1e-30  # of that noise: so that all of W is finite in float32
LEAST_THRESHOLD = 2.0**-100


def ood_test(data: DataPair, rate: float, chunk: int = 1) -> OodTest | None:
    """Return the test of a run's observations; None where the validation data are too few, or none.

    With S the covariance of at most 200,000 observations of the training data, d_i as below and L L^T =
    S + diag(d_i^2) (Cholesky),

        W = L^-1,  d_i = max(std_i / 100, max |x_i| / 10^6, median of the std above 0 / 10^6).

    The threshold is that of split conformal prediction: of n observations of the first half of the
    validation data the ceil((n + 1) (1 - rate))-th smallest d^2. The second half measures what is above it.
    Observations of one episode are alike, so that the halves are of whole episodes, where the data show
    where one ends; and for that reason the rate is no guarantee, as it would be for independent ones.

    Parameters
    ----------
    data
        As `load_data` returns them, normalised or not.
    rate
        In (0, 1), the part of observations like the data's that may be above the threshold.
    chunk
        h, steps of a transition.

    Returns
    -------
    OodTest or None
        None where a half has fewer observations than 1 / rate: its quantile would be its maximum.
    """
    if data.val is None:
        return None
    cut, T = halves(data.val, chunk), len(data.val)
    if min(cut, T - cut) < 1 / rate:
        return None
    mean, whiten = whitening(_raw(data, data.train, 0, len(data.train)))
    numbers: dict[str, Any] = {"mean": mean, "whiten": whiten, "rate": rate}
    unbounded = OodTest(**numbers, threshold=1.0, measured=0.0)
    known, other = (
        unbounded.squares(_raw(data, data.val, *part).numpy().astype(np.float32))
        for part in ((0, cut), (cut, T))
    )
    rank = math.ceil((len(known) + 1) * (1 - rate))
    known[np.isnan(known)] = np.inf  # of numbers too large to be added
    threshold = np.sort(known)[min(rank, len(known)) - 1]
    threshold = np.clip(threshold, LEAST_THRESHOLD, np.finfo(np.float32).max)
    measured = float(np.mean(~(other <= threshold)))
    return OodTest(**numbers, threshold=float(threshold), measured=measured)


def whitening(x: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return m [O] and W [O, O], lower triangular, of observations x float64 [T, O]: see `ood_test`."""
    mean = x.mean(0)
    covariance = x.new_zeros(x.shape[1], x.shape[1])
    for first in range(0, len(x), BLOCK):
        centred = x[first : first + BLOCK] - mean
        covariance += centred.T @ centred
    covariance /= len(x)
    std = covariance.diagonal().sqrt()
    moving = std[std > 0]
    most = torch.maximum(x.amax(0), -x.amin(0))
    middle = moving.median() if len(moving) else std.new_ones(())
    noise = torch.maximum(OF_DEVIATION * std, OF_VALUE * torch.maximum(most, middle))
    noise = noise.clamp(min=LEAST)
    scale = (std.square() + noise.square()).sqrt()
    # of deviations 1, so that no unit of a robot's matters to the factorisation
    regular = (covariance + noise.square().diag()) / torch.outer(scale, scale)
    lower = torch.linalg.cholesky(regular)
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower)).to(lower), upper=False)
    return mean.numpy(), (inverse / scale).numpy()


def said(test: OodTest | None, rate: float, data: DataPair) -> str:
    """Return the line that `train` prints of the test."""
    if test is not None:
        return (
            f"out-of-distribution bit: its threshold flags {test.measured:.2%} of held-out validation "
            f"observations (asked for: {rate:.2%})"
        )
    why = "there are no validation data"
    if data.val is not None:
        why = f"{len(data.val)} validation observations are too few for a rate of {rate:g}"
    return f"out-of-distribution bit: no observation will be marked, for {why}"


def _raw(data: DataPair, part: TransitionData, begin: int, end: int) -> Tensor:
    """Return observations [begin, end) of a part, at most `MOST_ROWS`, as the environment gives them."""
    x, n = part.transitions.observations, end - begin
    if n > MOST_ROWS:
        rows = begin + np.arange(MOST_ROWS) * n // MOST_ROWS
        x = x.index_select(0, torch.from_numpy(rows).to(x.device))
    else:
        x = x[begin:end]
    x = x.cpu().double()
    if data.obs_mean is None or data.obs_std is None:
        return x
    return x.mul_(data.obs_std.double()).add_(data.obs_mean.double())


def halves(val: TransitionData, chunk: int = 1) -> int:
    """Return the row at which the second half begins: behind an episode's end, if one is in the middle."""
    x, following = val.transitions.observations, val.transitions.next_observations
    T = len(val)
    go_on = (following[:-chunk] == x[chunk:]).all(1)
    ends = torch.nonzero(~go_on).flatten().cpu().numpy() + chunk  # where others begin
    nearest = min(ends.tolist(), key=lambda row: abs(row - T // 2), default=0)
    return nearest if abs(nearest - T // 2) <= T // 4 else T // 2
