"""The steps that make an action of noise, a row of numbers each, for any network that gives a velocity.

A shortcut actor's M equal Euler steps need none of this: `reference.denoise`. Any other steps, a
diffusion's, one evaluation with or without noise, unequal ones of Euler's or finer ones than were
trained, are a `Schedule`.

Shape letters: R rows, O observation, A action, M steps, S normal numbers an action's component.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# of x [R, O], z [R, A], t [R] and log2(1/h) [R]
Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Schedule(NamedTuple):
    """Steps z <- clip(squash(a z + b v(x, z, t, l)) + clip(temperature s noise, +-noise_clip), +-clip)."""

    times: tuple[float, ...]  # t, a number a step, as the next four
    log2_steps: tuple[float, ...]  # l, what the network reads as log2(1/h)
    z_scales: tuple[float, ...]  # a
    v_scales: tuple[float, ...]  # b
    noise_scales: tuple[float, ...]  # s
    begins: bool = True  # whether z is noise at first, and not 0
    squash: bool = False  # whether a step's result goes through tanh, before noise is added
    noise_clip: float | None = None  # of what a step adds; None: none
    clip: float | None = None  # of a step's result; None: none
    k: int | None = None  # the number of steps that the critic is told; None: M

    @property
    def draws(self) -> int:
        """S: z's own where it begins as noise, then a number a step up to the last that adds any."""
        noisy = [i + 1 for i, s in enumerate(self.noise_scales) if s > 0]
        return max(1, self.begins + (noisy[-1] if noisy else 0))

    def table(self, device: torch.device) -> Tensor:
        """Return (t, l, a, b, s) of every step, float32 [M, 5], as the kernels read them."""
        return torch.tensor([*zip(*self[:5], strict=True)], dtype=torch.float32, device=device)


def finite_part(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a bounded function to what is finite: a candidate that is not must not pass for one."""
    return torch.where(x.isfinite(), function(x), x)


def clip_finite(x: Tensor, bound: float | None) -> Tensor:
    """Clip what is finite to +-bound; None: no clip."""
    return x if bound is None else finite_part(lambda v: v.clamp(-bound, bound), x)


def follow(
    velocity: Velocity, schedule: Schedule, obs: Tensor, noise: Tensor, temperature: Tensor
) -> Tensor:
    """Return z [R, A] after the steps of a schedule, never waiting for the device.

    Parameters
    ----------
    velocity
        v.
    schedule
        The steps.
    obs, noise
        [R, O] and [R, A], or [R, S, A] where S is above 1. Noise of a step whose temperature s is 0 is
        not read.
    temperature
        What multiplies s, one number on the device: a recorded graph reads it afresh.
    """
    drawn = noise.reshape(len(obs), schedule.draws, noise.shape[-1])
    z = drawn[:, 0] if schedule.begins else torch.zeros_like(drawn[:, 0])
    for i, (t, l, a, b, s) in enumerate(zip(*schedule[:5], strict=True)):
        of_row = (obs.new_full((len(obs),), x) for x in (t, l))
        z = a * z + b * velocity(obs, z, *of_row)
        if schedule.squash:
            z = finite_part(torch.tanh, z)
        if s > 0:
            scale = s * temperature
            more = torch.where(scale != 0, scale * drawn[:, schedule.begins + i], 0.0)
            z = z + clip_finite(more, schedule.noise_clip)
        z = clip_finite(z, schedule.clip)
    return z


def euler(steps: Sequence[tuple[float, float, float]], k: int) -> Schedule:
    """Return steps (t, log2_steps, h) of z <- z + h v(x, z, t, log2_steps); the critic is told k."""
    times, logs, sizes = zip(*steps, strict=True)
    return Schedule(times, logs, (1.0,) * len(sizes), sizes, (0.0,) * len(sizes), k=k)


def infinite(bound: float | None) -> float:
    """Return a clip as a number: infinite where there is none."""
    return math.inf if bound is None else bound
