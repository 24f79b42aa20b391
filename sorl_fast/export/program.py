"""What a policy's form comes down to in anyone's graph: one list of steps.

Shape letters: B observations, N candidates, A action, S normal numbers that a candidate takes.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..act.form import Diffusion, Direct, Tanh
from ..act.policy_file import Policy
from ..act.reference import plan_for
from ..act.schedule import Schedule


class Step(NamedTuple):
    """z <- clip(keep z + gain v(x, z, time, log2_steps) + clip(noise n)), with a `Program`'s clips."""

    time: float
    log2_steps: float
    keep: float
    gain: float
    noise: float = 0.0  # 0: none is added
    draw: int = 0  # which of the candidate's S numbers n is


class Program(NamedTuple):
    """What makes a candidate: an actor's steps from z, the candidate's first number, or from 0."""

    steps: tuple[Step, ...]
    k: int  # the critic's number of steps
    reads_z: bool = (
        True  # else an observation's candidates are the same up to the noise that is added
    )
    reads_time: bool = True
    squashes: bool = False  # v is a tanh
    noise_clip: float | None = None
    clip: float | None = None

    @property
    def draws(self) -> tuple[int, ...]:
        """Which of the S numbers are read, in order."""
        first = [0] if self.reads_z else []
        return tuple(first + [step.draw for step in self.steps if step.noise])


def program_of(policy: Policy, steps: int | Schedule) -> Program:
    """Return what a policy does by M steps or a schedule that it takes, and its own temperature."""
    form, plan = policy.form, plan_for(policy, steps)
    if isinstance(form, Direct):
        noise = 0.0 if form.reads_noise else form.noise_scale * policy.temperature
        return Program(
            steps=(Step(0.0, 0.0, 0.0, 1.0, noise),),
            k=plan.k,
            reads_z=form.reads_noise,
            reads_time=False,
            squashes=isinstance(form, Tanh),
            noise_clip=form.noise_clip,
        )
    if isinstance(form, Diffusion):
        scales = zip(form.times, form.z_scales, form.v_scales, form.noise_scales, strict=True)
        made = [
            Step(t, 0.0, a, b, s * policy.temperature, i)
            for i, (t, a, b, s) in enumerate(scales, 1)
        ]
        return Program(tuple(made), plan.k, clip=form.clip)
    return Program(tuple(Step(t, log2, 1.0, h) for t, log2, h in plan.steps), plan.k)


def draws_read(noise: NDArray[Any], program: Program) -> list[NDArray[Any]]:
    """Return those parts [B, N, A] of noise [B, N, A] or [B, N, S, A] that are read.

    Each in memory of its own, as a runtime likes its inputs; where S = 1 it is the caller's.
    """
    if noise.ndim == 3:
        return [noise for _ in program.draws]
    return [np.ascontiguousarray(noise[:, :, draw]) for draw in program.draws]
