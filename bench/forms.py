"""The other forms of a policy: which are raced, and what each comes down to in anyone's graph.

Shape letters: B observations, N candidates, A action, M steps, S normal numbers that a candidate takes.
"""

import math
from typing import NamedTuple

import numpy as np

from sorl_fast.act.form import SHORTCUT, Diffusion, Direct, Euler, Form, Tanh
from sorl_fast.act.policy_file import Policy

from .harness import Floats
from .shapes import reads_z

EULER = Euler(counts=(10,))
DIRECT = Direct(reads_noise=True)
# The default temperature is 0; but then all candidates are one, and there is nothing to choose.
TANH = Tanh(reads_noise=False, temperature=1.0, noise_scale=0.2, noise_clip=0.5)
NAMES = (EULER.kind, DIRECT.kind, TANH.kind, Diffusion.kind)


def make_form(name: str) -> Form | None:
    """Return the form of a name of `NAMES`, None for a shortcut: the methods' own defaults.

    Euler steps are IFQL's, the direct form FQL's, tanh ReBRAC's, and the diffusion IDQL's with the common
    networks: its coefficients are the method's, which needs what training needs.
    """
    if name == Diffusion.kind:
        from sorl_fast.learn.algorithms.idql import IdqlConfig, diffusion_form

        return diffusion_form(IdqlConfig(score="mlp"))
    return {SHORTCUT: None, EULER.kind: EULER, DIRECT.kind: DIRECT, TANH.kind: TANH}[name]


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


def program_of(policy: Policy, steps: int) -> Program:
    """Return what a policy does at `steps` steps and its own temperature."""
    form = policy.form
    if isinstance(form, Direct):
        noise = 0.0 if form.reads_noise else form.noise_scale * policy.temperature
        return Program(
            steps=(Step(0.0, 0.0, 0.0, 1.0, noise),),
            reads_z=reads_z(policy),
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
        return Program(tuple(made), clip=form.clip)
    h = 1 / steps
    return Program(tuple(Step(i / steps, math.log2(steps), 1.0, h) for i in range(steps)))


def draws_read(noise: Floats, program: Program) -> list[Floats]:
    """Return those parts [B, N, A] of noise [B, N, A] or [B, N, S, A] that are read.

    Each in memory of its own, as a runtime likes its inputs; where S = 1 it is the caller's.
    """
    if noise.ndim == 3:
        return [noise for _ in program.draws]
    return [np.ascontiguousarray(noise[:, :, draw]) for draw in program.draws]
