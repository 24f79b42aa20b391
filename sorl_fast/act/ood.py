"""Whether an observation is out of distribution: its Mahalanobis distance to those of the training.

    d^2(x) = |W (x - m)|^2

m and W are the mean and a whitening matrix of the training's observations, W^T W the inverse of their
covariance. An observation with d^2 above a threshold has the status OUT_OF_DISTRIBUTION; its action is what
it would be. The threshold is a quantile of validation observations, so that about a stated rate of
observations like those of the data is above it. `learn.ood` makes all of it.

Shape letters: O observation, B observations (rows).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .refusal import array_of, is_number, refuse

_FIELDS = ("threshold", "rate", "measured")
BLOCK = 10_000  # rows whitened at once: memory


@dataclass(frozen=True, kw_only=True, eq=False)
class OodTest:
    """The statistics and the threshold of a policy. Arrays are copied to float32 and made read-only.

    Parameters
    ----------
    mean
        m [O], of observations as the environment gives them: a policy's normaliser has no part in this.
    whiten
        W [O, O].
    threshold
        Of d^2, above 0: a float32 number.
    rate
        In (0, 1), the part of observations like the data's that was to be above it.
    measured
        In [0, 1], the part of validation observations above it that had no part in choosing it.

    Raises
    ------
    BadInput
        A value is out of its bounds; the message names it, and the bound.
    """

    mean: NDArray[np.float32] = field(repr=False)
    whiten: NDArray[np.float32] = field(repr=False)
    threshold: float
    rate: float
    measured: float

    def __post_init__(self) -> None:
        shape = np.shape(self.mean)
        if len(shape) != 1:
            refuse("ood/mean shape", list(shape), "[O]")
        for name, wanted in (("mean", shape), ("whiten", shape * 2)):
            object.__setattr__(self, name, array_of(f"ood/{name}", getattr(self, name), wanted))
        for name in _FIELDS:
            value = getattr(self, name)
            number = float(value) if is_number(value) else np.nan
            if name == "threshold":
                with np.errstate(all="ignore"):
                    number = float(np.float32(number))
            ok, bound = {
                "threshold": (0 < number < np.inf, "a number above 0, finite in float32"),
                "rate": (0 < number < 1, "a number above 0 and below 1"),
                "measured": (0 <= number <= 1, "a number from 0 to 1"),
            }[name]
            if not ok:
                refuse(f"ood {name}", value, bound)
            object.__setattr__(self, name, number)

    @property
    def dim(self) -> int:
        """O."""
        return len(self.mean)

    def squares(self, x: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Return d^2 [B] of observations x [B, O], computed in `dtype`.

        What is too large for that is infinite, or a NaN; so is what is not finite itself.
        """
        mean, whiten = self.mean.astype(dtype), self.whiten.astype(dtype).T
        found = np.empty(len(x), dtype)
        with np.errstate(all="ignore"):
            for i in range(0, len(x), BLOCK):
                y = (x[i : i + BLOCK].astype(dtype, copy=False) - mean) @ whiten
                found[i : i + BLOCK] = (y * y).sum(1)
        return found

    def beyond(self, x: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[np.bool_]:
        """Return which [B] of observations x [B, O] are out of distribution.

        One that is finite and so far off that its d^2 is not, is. One that is not finite is not: it has a
        status of its own.
        """
        far: NDArray[np.bool_] = ~(self.squares(x, dtype) <= self.threshold)
        return far & np.isfinite(x).all(1)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays by their names in the file."""
        return {"ood/mean": self.mean, "ood/whiten": self.whiten}

    def to_json(self) -> dict[str, float]:
        """Return the rest, as the file's metadata have it."""
        return {name: getattr(self, name) for name in _FIELDS}


def tensor_shapes(obs_dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of `OodTest.tensors`."""
    return {"ood/mean": (obs_dim,), "ood/whiten": (obs_dim, obs_dim)}


def ood_from_json(value: Any, arrays: Mapping[str, NDArray[np.float32]]) -> OodTest:
    """Undo `to_json` and `tensors`, or raise BadInput."""
    if not isinstance(value, dict) or set(value) != set(_FIELDS):
        refuse("ood", value, f"an object with {', '.join(_FIELDS)}")
    return OodTest(mean=arrays["ood/mean"], whiten=arrays["ood/whiten"], **value)
