"""The int8 path in plain numpy, float64: csrc/kernels/int8.hpp's rounding and amx_int8.hpp's, and no other.

Hidden layers read GELU's output x as floor + q s, q in 0 to 255 and one s for each group of values of a row
(on tiles: for the row), and weights as q s, q in -127 to 127 and one s a column. The floor is FLOOR in the
actor, and each row's own least value in a critic, whose LayerNorm is applied after the product. On tiles
the actor's last layer reads bf16, unless there are so few rows that it is products by vectors.
"""

import dataclasses
import itertools
import math

import numpy as np

from sorl_fast.act.reference import aggregate, gelu, layer_norm


@dataclasses.dataclass(frozen=True)
class Format:
    """What an instruction set rounds: how many values share a step (None: a row), the head's inputs."""

    group: int | None = 32
    bf16_head: bool = False


FORMATS = {"amx": Format(group=None, bf16_head=True)}  # the others: Format()
VECTORS = 2  # rows of a call up to which the head does not round
PADDING = 32  # rows are whole ones of these
FLOOR = -0.17005
LEAST = 1e-30


def weights(w):
    """Round w [in, out] to 8 bits by columns."""
    step = np.abs(w).max(0) / 127
    return np.rint(w / np.where(step > 0, step, 1)) * step


def activations(x, floor, group):
    """Round x [rows, width] to 8 bits by groups; what is beyond the width is zero, as it is there."""
    rows, width = x.shape
    padded = np.pad(x, ((0, 0), (0, -width % PADDING)))
    padded = padded.reshape(rows, -1, group or padded.shape[1])
    step = np.maximum(padded.max(-1, keepdims=True) - floor, LEAST) / 255
    return (floor + np.rint((padded - floor) / step) * step).reshape(rows, -1)[:, :width]


def to_bf16(x):
    """Round to 8 significant bits."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8)


def velocity(actor, obs, z, t, log2_steps, form):
    """Return the actor's velocity [rows, A]."""
    x = np.concatenate([obs, z, np.tile([t, log2_steps], (len(z), 1))], 1)
    for i, (w, b) in enumerate(actor[:-1]):
        x = gelu(x @ w + b if i == 0 else activations(x, FLOOR, form.group) @ weights(w) + b)
    w, b = actor[-1]
    return (to_bf16(x) if form.bf16_head else x) @ w + b


def value(critic, obs, action, steps, form):
    """Return the Q values [E, rows]."""
    inputs = np.concatenate([obs, action, np.full((len(action), 1), steps)], 1)
    members = []
    for e in range(len(critic[0][0])):
        layers = [[x[e] for x in layer] for layer in critic]
        x = gelu(inputs @ layers[0][0] + layers[0][1])
        for (_, _, g, c), (w, b, *_) in itertools.pairwise(layers[:-1]):
            folded = weights(g[:, None] * w)
            mean, inverse = x.mean(-1, keepdims=True), 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            rounded = activations(x, x.min(-1)[:, None, None], form.group)
            x = gelu(inverse * (rounded @ folded - mean * folded.sum(0)) + c @ w + b)
        x = layer_norm(x, *layers[-2][2:])
        members.append((x @ layers[-1][0] + layers[-1][1])[:, 0])
    return np.stack(members)


def sample(policy, obs, noise, steps, isa, rows):
    """Return the actions [B, A] and aggregated Q [B] of one candidate an observation, noise [B, A].

    `rows` of the observations are of one call.
    """
    form = FORMATS.get(isa, Format())
    form = dataclasses.replace(form, bf16_head=form.bf16_head and rows > VECTORS)
    actor, critic = (
        [[x.astype("f8") for x in layer] for layer in net] for net in (policy.actor, policy.critic)
    )
    x = obs.astype("f8")
    if policy.obs_mean is not None:
        x = (x - policy.obs_mean) / policy.obs_std
    z = noise.astype("f8")
    for i in range(steps):
        z = z + velocity(actor, x, z, i / steps, math.log2(steps), form) / steps
    action = np.clip(z, policy.action_low, policy.action_high)
    return action, aggregate(value(critic, x, action, steps, form), policy.q_agg)
