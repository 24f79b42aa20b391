"""The numpy backend: the definition itself.

Shape letters: B observations (rows), N candidates, A action.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..form import NAMES
from ..philox import uniforms
from ..policy_file import Policy
from ..reference import best_of_n
from ..rules import ARGMAX, Rule
from ..schedule import Schedule
from ..session import Backend, Info, NoiseKey, Status, as_floats, held_after, noise_of, rest


class NumpySession:
    """`reference.best_of_n` and the last good action. Not for two threads at once.

    Parameters
    ----------
    policy
        Read where it is; nothing is copied.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.reset()

    def reset(self) -> None:
        """Forget the last good action."""
        self._last = rest(self._policy)

    def array(self, name: str, value: Any) -> NDArray[np.float32]:
        """Return the caller's numbers as float32, or raise BadInput; see `Session.array`."""
        return as_floats(name, value)

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
        """Act on obs [B, O] with noise [B, N, A] or that of the key; see `Session.act`."""
        policy = self._policy
        if isinstance(noise, NoiseKey):
            noise = noise_of(noise, len(obs), candidates, policy.act_dim, policy.draws)
        u = None if draw is None else uniforms(draw.seed, len(obs), draw.call, draw.row_offset)
        options: dict[str, Any] = {"want_q": want_q, "temperature": temperature}
        choice = best_of_n(policy, obs, noise, steps, rule=rule, u=u, **options)
        held = choice.candidate < 0
        action = np.where(held[:, None], self._last, choice.action)
        good = np.flatnonzero(~held)
        if good.size:
            self._last = held_after(policy, action[good[-1]].copy())
        status = choice.status | np.where(held, np.uint32(Status.HELD), np.uint32(0))
        return action, Info(choice.candidate, choice.q, status)


BACKEND = Backend(
    name="numpy",
    precisions=("fp32",),
    forms=NAMES,
    why_not=lambda precision: "",
    make=lambda policy, precision, threads: NumpySession(policy),
)
