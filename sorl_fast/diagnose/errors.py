"""Errors of a flow at given data, by time and by step size.

Both are means over observations, noise and components of the action: what training's losses average over
t and h as well. Shape letters: B observations, A action.
"""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from ..act.reference import Array
from .proposals import Velocity


class Error(TypedDict):
    """A mean square, and what it is a part of."""

    steps: int  # 1/h, h the step's size
    t: float
    error: float  # mean square
    off: float  # root mean square distance between where such a step ends and where it should


def flow_matching(
    velocity: Velocity,
    obs: Array,
    actions: Array,
    noise: Array,
    times: Sequence[float],
    log2_steps: float,
    flow_eps: float = 0.0,
) -> list[Error]:
    """Return the flow-matching error at each time.

    x_t = (1 - (1-e) t) x0 + t a and the mean of (s(x_t, t, h | x) - (a - (1-e) x0))^2, as in training. It
    is not 0 for the best of all fields, where several pairs of noise and action meet in one x_t: then it
    has the variance of their velocities too.

    Parameters
    ----------
    velocity
        The field.
    obs, actions
        Of data, [B, O] and [B, A].
    noise
        x0 [B, A].
    times
        Each in [0, 1).
    log2_steps
        log2(1/h), what the field is told of the step's size.
    flow_eps
        e.
    """
    target = actions - (1 - flow_eps) * noise
    found = []
    for t in times:
        x_t = (1 - (1 - flow_eps) * t) * noise + t * actions
        v = velocity(obs, x_t.astype(np.float32), t, log2_steps)
        found.append(_error(round(2**log2_steps), t, v, target))
    return found


def self_consistency(
    velocity: Velocity,
    obs: Array,
    actions: Array,
    noise: Array,
    m_disc: int,
    flow_eps: float = 0.0,
) -> list[Error]:
    """Return the self-consistency error of every step size h and time, h the big step.

    The mean of (s(x_t, t, h) - (v1 + v2)/2)^2 with v1 = s(x_t, t, h/2), v2 = s(x_t + h/2 v1, t + h/2, h/2):
    of the field that acts against itself, where training takes the EMA's for the target.

    Parameters
    ----------
    m_disc
        A power of two: h is 1, 1/2, ... down to 2/m_disc, none where it is 1.
    velocity, obs, actions, noise, flow_eps
        As in `flow_matching`.
    """
    found = []
    for log2_steps in range(m_disc.bit_length() - 1):
        M = 1 << log2_steps
        h = 1 / M
        for i in range(M):
            t = i / M
            x_t = ((1 - (1 - flow_eps) * t) * noise + t * actions).astype(np.float32)
            v1 = velocity(obs, x_t, t, log2_steps + 1)
            v2 = velocity(obs, x_t + np.float32(h / 2) * v1, t + h / 2, log2_steps + 1)
            found.append(_error(M, t, velocity(obs, x_t, t, log2_steps), (v1 + v2) / 2))
    return found


def _error(steps: int, t: float, v: Array, target: Array) -> Error:
    square = float(np.square(v.astype(np.float64) - target).mean())
    off = math.sqrt(square * v.shape[1]) / steps
    return {"steps": steps, "t": t, "error": square, "off": off}
