"""The actions of a chunk, one a tick: what is left of it, and when the next call is due."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from .session import Info, Status


class Replay:
    """What is left of the last call's chunk.

    Parameters
    ----------
    length
        h, actions of a chunk, at least 2; or 1, of which nothing is ever left.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._at = length  # of the chunk's actions, the one that is next; h: a call is due
        self._actions: Any = None  # [..., h, A]
        self._info: Info | None = None

    @property
    def due(self) -> bool:
        """Whether the next tick is a call."""
        return self._at == self._length

    def drop(self) -> None:
        """Let the next tick be a call."""
        self._at = self._length

    def begin(self, actions: Any, info: Info) -> Any:
        """Return the first action [..., A] of a call's result, the caller's to change.

        Of a call that held an action, in any row, nothing is left: the next tick is a call again.

        Parameters
        ----------
        actions
            What the call returned: [A] or [B, A] where h is 1, else [h, A] or [B, h, A].
        info
            The call's.
        """
        if self._length == 1:
            return actions
        status = np.asarray(info.status) if isinstance(info.status, int) else info.status
        held = bool((status & int(Status.HELD)).any())
        self._actions, self._info = actions, info
        self._at = self._length if held else 1
        return _copy(actions[..., 0, :])

    def next(self) -> tuple[Any, Info]:
        """Return the action [..., A] that is next, the caller's to change, and its `Info`.

        Candidate and Q are the call's, the status is REPLAYED alone. Only where no call is `due`.
        """
        assert self._info is not None
        action = _copy(self._actions[..., self._at, :])
        self._at += 1
        status = self._info.status
        if isinstance(status, Status):
            return action, self._info._replace(status=Status.REPLAYED)
        # of the same kind: an array, or a tensor on its device
        return action, self._info._replace(status=status * 0 + int(Status.REPLAYED))


class Replaying:
    """What a Sampler does tick by tick.

    Parameters
    ----------
    shape
        [A], or [h, A], of what a call returns for one observation.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._replay = Replay(1 if len(shape) == 1 else shape[0])
        self._buffers: Any = None  # of replay_into

    @property
    def calls_next(self) -> bool:
        """Whether the next `replay` makes a call."""
        return self._replay.due

    def act(self, *arguments: Any, **more: Any) -> Any:
        """Make a call; see the Sampler's."""
        raise NotImplementedError

    def _call(self, *arguments: Any, **more: Any) -> tuple[Any, Info]:
        """Make a call; see the Sampler's."""
        raise NotImplementedError

    def act_into(self, *arguments: Any, **more: Any) -> Any:
        """Make a call into the caller's memory; see the Sampler's."""
        raise NotImplementedError

    def replay(
        self,
        obs: Any,
        steps: Any = None,
        candidates: int | None = None,
        *,
        rule: Any = None,
        seed: int | None = None,
        call: int | None = None,
        noise: Any = None,
        row_offset: int = 0,
        return_info: bool = False,
        temperature: float | None = None,
    ) -> Any:
        """Return the action of one tick: of a new call, or the next one of the last call's chunk.

        Every h-th tick makes a call by `act`, the others replay what it returned and read none of the
        arguments. The first action after a `reset` is that of a call. Where a call holds an action (its
        observation or result is not finite) it is that of one tick, and the next tick calls again. Of a
        policy without chunks every tick is a call.

        Parameters
        ----------
        obs, steps, candidates, rule, seed, call, noise, row_offset, temperature
            As in `act`. Read in ticks that call.
        return_info
            Also return an `Info`. Its status has REPLAYED where no call was made, and candidate and Q
            are then those of the chunk's call.

        Returns
        -------
        actions or (actions, Info)
            float32 [A], or [B, A] where the call's observations were a batch.

        Raises
        ------
        BadInput
            As in `act`.
        """
        if len(self._shape) == 1:
            how: Any = {"rule": rule, "seed": seed, "call": call, "noise": noise}
            how |= {"row_offset": row_offset, "temperature": temperature}
            return self.act(obs, steps, candidates, return_info=return_info, **how)
        if self._replay.due:
            actions, info = self._call(
                *(obs, steps, candidates, rule, seed, call, noise, row_offset, return_info),
                temperature,
            )
            action = self._replay.begin(actions, info)
        else:
            action, info = self._replay.next()
        return (action, info) if return_info else action

    def replay_into(
        self,
        obs: NDArray[np.float32],
        out: NDArray[np.float32],
        steps: Any = None,
        candidates: int | None = None,
        *,
        rule: Any = None,
        seed: int | None = None,
        call: int = 0,
        noise: NDArray[np.float32] | None = None,
        row_offset: int = 0,
        status: NDArray[np.uint32] | None = None,
    ) -> None:
        """Write what `replay` would return for one observation into the caller's own memory.

        Native backend only. Every h-th tick is a call by `act_into`, with its promises; the others copy
        one action, and set the status to REPLAYED.

        Parameters
        ----------
        obs
            float32 [O].
        out
            float32 [A], written.
        steps, candidates, rule, seed, call, noise, row_offset
            As in `act_into`, for one observation. Read in ticks that call.
        status
            uint32 [1], written, or None.

        Raises
        ------
        BadInput
            As in `act_into`.
        """
        if self._buffers is None:
            self._buffers = np.empty(self._shape, np.float32), np.zeros(1, np.uint32)
        actions, bits = self._buffers
        if (
            not isinstance(out, np.ndarray)
            or out.dtype != np.float32
            or out.shape != self._shape[-1:]
        ):
            raise BadInput(
                f"out must be a numpy array of float32 of the shape {list(self._shape[-1:])}"
            )
        if self._replay.due:
            how: Any = {"rule": rule, "seed": seed, "call": call, "noise": noise}
            self.act_into(
                obs, actions, steps, candidates, **how, row_offset=row_offset, status=bits
            )
            out[:] = self._replay.begin(actions, Info(None, None, bits))
            word = bits[0]
        else:
            out[:] = self._replay.next()[0]
            word = Status.REPLAYED
        if status is not None:
            status[0] = word


def _copy(action: Any) -> Any:
    """Return a copy of an array or tensor, which no later change of the chunk reaches."""
    return action.copy() if isinstance(action, np.ndarray) else action.clone()
