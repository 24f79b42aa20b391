"""What a session and a backend are: the sampler chooses a backend and knows no more of it than this.

Shape letters: B observations (rows), N candidates, O observation, A action, M Euler steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from ..status import Status as Status
from .philox import normals
from .policy_file import Policy
from .rules import ARGMAX, Rule
from .schedule import Schedule


class Info(NamedTuple):
    """How a call went: numbers for one observation, arrays [B] for a batch, tensors for a tensor."""

    candidate: Any  # the winning candidate, int64; -1 where an action was held
    q: Any  # its Q, aggregated over the ensemble, float32; NaN where an action was held
    status: Any  # bits of Status, uint32 (int32 in a tensor)


class NoiseKey(NamedTuple):
    """What the noise of a call is a function of, beside its shape."""

    seed: int  # [0, 2^64)
    call: int  # [0, 2^32)
    row_offset: int  # row number of the first row


class Session(Protocol):
    """One backend at work: a policy, the scratch it needs and the last good action. One thread.

    The arguments have been checked. Every row of the result is an action to be executed: rows without
    a good candidate hold the last good action as it was before the call.
    """

    def array(self, name: str, value: Any) -> Any:
        """Return the caller's numbers as float32 in the backend's kind of array.

        Parameters
        ----------
        name
            Of the argument, for the message.
        value
            Numbers of any real type and any shape: an array, a tensor, a list.

        Raises
        ------
        BadInput
            They are no real numbers, or not where the backend can read them.
        """

    def reset(self) -> None:
        """Forget the last good action: what is held next is 0, clipped to the bounds."""

    def act(
        self,
        obs: Any,
        noise: Any | NoiseKey,
        candidates: int,
        steps: int | Schedule,
        want_q: bool,
        temperature: float = 0.0,
        rule: Rule = ARGMAX,
        draw: NoiseKey | None = None,
    ) -> tuple[Any, Info]:
        """Choose one of N actions for each observation.

        Parameters
        ----------
        obs
            float32 [B, O], from `array`; B may be 0, and any number may be NaN or infinite.
        noise
            float32 [B, N, A], or [B, N, S, A] where the policy draws S > 1 numbers, from `array`, or
            the key that it follows from: `noise_of`.
        candidates, steps
            N, at least 1, and M equal steps or another schedule that the policy takes.
        want_q
            Whether Q is wanted even if choosing does not need it.
        temperature
            What multiplies the noise that the policy's form adds; for a form that adds none, 0.
        rule
            How one is chosen.
        draw
            What the numbers follow from that a rule chooses by; given where the rule draws, and the
            noise's own where that is a key.

        Returns
        -------
        action, info
            float32 [B, A], finite, within `policy.bounds` and in their units, and arrays [B] of the
            backend's kind.
        """


class Backend(NamedTuple):
    """A way to act: what it is called, what it has, why it cannot serve, and how it is made.

    One file of `backends` each, with one of these in it.
    """

    name: str
    precisions: tuple[str, ...]
    forms: tuple[str, ...]  # of `form.NAMES`, those that it runs
    why_not: Callable[[str], str]  # precision -> why it cannot serve here and now; "" if it can
    # policy, precision, threads -> session. BadInput: a value is one that it cannot serve
    make: Callable[[Policy, str, int], Session]


def rest(policy: Policy) -> NDArray[np.float32]:
    """Return the action [A] that is held before there is a good one: 0, clipped to the bounds.

    In the units of the actions that a call returns, as all that is held.
    """
    return np.clip(np.zeros(policy.act_dim, np.float32), *policy.bounds)


def held_after(policy: Policy, action: Any) -> Any:
    """Return what is held after a good action [A]: of a chunk its last action, h times.

    That is where the robot is, or will be, when a later call finds no action: to begin the old chunk anew
    would be to jump back. `action`, an array or a tensor, is the session's own, contiguous, and changed.
    """
    each = action.reshape(policy.chunk, -1)
    each[:-1] = each[-1:]
    return action


def noise_of(
    key: NoiseKey, rows: int, candidates: int, act_dim: int, draws: int = 1
) -> NDArray[np.float32]:
    """Return the noise of a key, [B, N, A] or, where S = `draws` is above 1, [B, N, S, A]."""
    parts = [
        normals(key.seed, rows, candidates, act_dim, key.call, key.row_offset, draw)
        for draw in range(draws)
    ]
    return parts[0] if draws == 1 else np.stack(parts, axis=2)


def as_floats(name: str, value: Any) -> NDArray[np.float32]:
    """Return the caller's numbers as float32, or raise BadInput; see `Session.array`."""
    try:
        given = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as err:
        raise BadInput(
            f"{name} cannot be read as an array of numbers: {err}. Give a numpy array; a tensor on a "
            "GPU needs backend='torch' or 'triton'"
        ) from err
    if given.dtype.kind not in "fiu":
        refuse_dtype(name, given.dtype.name)
    with np.errstate(all="ignore"):  # 1e300 becomes an infinity, which has its status
        return given.astype(np.float32, copy=False)


def refuse_dtype(name: str, dtype: str) -> NoReturn:
    """Raise BadInput for numbers of another kind."""
    raise BadInput(
        f"{name} has the dtype {dtype}, but must be real numbers, floating point or integer: convert "
        "it to float32"
    )
