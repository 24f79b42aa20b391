"""Schedules of Euler steps: how the way from noise to action is cut into M pieces.

A schedule is M equal steps, or sizes h_0, h_1, ... that sum to 1. What a step reads and does is defined by
`plan_of`; `reference.denoise` makes it.
"""

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from ..errors import BadInput

MAX_STEPS = 1 << 11  # twice the largest m_disc
_SUM = 1e-6  # how far sizes may sum from 1, and are then normalised
_EVEN = 1e-9  # relative: sizes nearer than this to 1/M are M equal steps
_SMALL = 2048  # denominators up to this are written as fractions
_SIZE = re.compile(r"\d{1,9}/0*[1-9]\d{0,8}|\d{0,20}\.?\d{0,30}(e-?\d{1,2})?")
_WAYS = 'an integer M, or sizes that sum to 1, such as [0.5, 0.25, 0.25] or "1/2,1/4,1/4"'


@dataclass(frozen=True)
class Schedule:
    """Step sizes h_i in the order of the steps; made by `schedule_of`, so that equal ones are equal.

    Parameters
    ----------
    sizes
        Each above 0; they sum to 1. M equal steps have sizes (1/M, ..., 1/M).
    """

    sizes: tuple[float, ...]

    @property
    def count(self) -> int:
        """M, the number of steps."""
        return len(self.sizes)

    @property
    def is_even(self) -> bool:
        """Whether all steps are equal."""
        return self.sizes == (1 / self.count,) * self.count

    @property
    def key(self) -> int | str:
        """M where the steps are equal, else the name: plain JSON, and `schedule_of` takes it back."""
        return self.count if self.is_even else str(self)

    def __str__(self) -> str:
        """Return "4", or the sizes: "1/2,1/4,1/4"; decimals that read back where there is no fraction."""
        return str(self.count) if self.is_even else ",".join(map(_size_name, self.sizes))


def order(key: int | str) -> tuple[int, tuple[float, ...]]:
    """Return what keys of schedules are sorted by: M, equal steps first, then the sizes."""
    if isinstance(key, int):
        return key, ()
    schedule = schedule_of(key)
    return schedule.count, schedule.sizes


class Step(NamedTuple):
    """One Euler step z <- z + h v(x, z, t, log2_steps)."""

    t: float
    log2_steps: float  # the step-size input, log2(1/h) or the finest that was trained
    h: float


class Plan(NamedTuple):
    """What acting by a schedule reads."""

    steps: tuple[Step, ...]
    k: int  # the critic's number of steps


def plan_of(schedule: Schedule, m_disc: int | None) -> Plan:
    """Return what the networks read at each step of a schedule.

    Step i goes from t_i = h_0 + ... + h_(i-1) by z <- z + h_i v(x, z, t_i, l_i), with the step-size
    input l_i = min(log2(1/h_i), log2(m_disc)). Of M equal steps t_i = i/M and log2(1/h) = log2 M.

    Parameters
    ----------
    schedule
        The steps.
    m_disc
        The finest grid that was trained; None: a policy of a form, which reads what its own counts say.
    """
    M = schedule.count
    finest = math.inf if m_disc is None else math.log2(m_disc)
    if schedule.is_even:
        fed = min(math.log2(M), finest)
        steps = [Step(i / M, fed, 1 / M) for i in range(M)]
    else:
        starts = [math.fsum(schedule.sizes[:i]) for i in range(M)]
        steps = [
            Step(t, min(-math.log2(h), finest), h)
            for t, h in zip(starts, schedule.sizes, strict=True)
        ]
    return Plan(tuple(steps), critic_steps(schedule, m_disc))


def critic_steps(schedule: Schedule, m_disc: int | None) -> int:
    """Return k, the number of steps that the critic is told: M, at most `m_disc` where there is one."""
    return schedule.count if m_disc is None else min(schedule.count, m_disc)


def schedule_of(value: Any, name: str = "steps") -> Schedule:
    """Return the schedule that a caller names.

    Parameters
    ----------
    value
        M, from 1 to 2048; or step sizes, each above 0, whose sum is within 1e-6 of 1 and is made 1 in
        float64; or text of either, "4" or "1/2,1/4,1/4"; or a Schedule.
    name
        Of the argument, for the message.

    Raises
    ------
    BadInput
        It is none of these.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str):
        return _parse(value, name)
    try:
        count = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        if hasattr(value, "__iter__"):
            return _of_sizes(value, name)
        count = None
    if count is None or not 1 <= count <= MAX_STEPS:
        raise BadInput(
            f"{name} is {value!r}, but must be an integer from 1 to {MAX_STEPS}, or sizes that sum to 1, "
            f'such as [0.5, 0.25, 0.25] or "1/2,1/4,1/4". Set {name}='
        )
    return Schedule((1 / count,) * count)


def _parse(text: str, name: str) -> Schedule:
    if re.fullmatch(r"\d{1,9}", text):
        return schedule_of(int(text), name)
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2 or not all(part and _SIZE.fullmatch(part) for part in parts):
        raise BadInput(f"{name} is {text[:80]!r}, but must be {_WAYS}")
    try:
        sizes = [float(Fraction(part)) for part in parts]
    except ValueError:  # such as "."
        raise BadInput(f"{name} is {text[:80]!r}, but must be {_WAYS}") from None
    return _of_sizes(sizes, name)


def _of_sizes(values: Iterable[Any], name: str) -> Schedule:
    try:
        sizes = [math.nan if isinstance(x, bool | str) else float(x) for x in values]
    except (TypeError, ValueError):
        sizes = []
    except OverflowError:  # an integer beyond float64
        sizes = [math.inf]
    shown = ",".join(f"{h:g}" for h in sizes[:8]) + ",..." * (len(sizes) > 8)
    if not 1 <= len(sizes) <= MAX_STEPS:
        raise BadInput(
            f"{name} has {len(sizes)} sizes, but must be {_WAYS}: 1 to {MAX_STEPS} of them"
        )
    for i, h in enumerate(sizes):
        if not 0 < h < math.inf:
            raise BadInput(f"{name}[{i}] is {h} of {shown}, but a step's size must be above 0")
    total = math.fsum(sizes) if max(sizes) < 2 else sum(sizes)  # fsum raises where it overflows
    if not abs(total - 1) <= _SUM:
        raise BadInput(
            f"{name} is {shown}, which sums to {total:.9g}, but step sizes must sum to 1 "
            f"(within {_SUM:g}): the steps go from t = 0 to t = 1"
        )
    M = len(sizes)
    if abs(total - 1) > 2.0**-50:  # what was normalised once stays as it is
        sizes = [h / total for h in sizes]
    if all(abs(h * M - 1) <= _EVEN for h in sizes):
        return Schedule((1 / M,) * M)
    return Schedule(tuple(sizes))


def _size_name(h: float) -> str:
    fraction = Fraction(h).limit_denominator(_SMALL)
    return str(fraction) if float(fraction) == h else repr(h)


def check_fit(
    schedule: Schedule, m_disc: int | None, counts: tuple[int, ...], policy: str = "this policy"
) -> None:
    """Raise BadInput unless a policy acts by the schedule.

    Parameters
    ----------
    schedule
        The steps.
    m_disc
        The finest grid that a shortcut policy was trained for: it takes any schedule of at most
        2 m_disc steps. None: a policy of a form, which takes `counts` equal steps only.
    counts
        The policy's own step counts, for the message too.
    policy
        What the message calls it.
    """
    trained = ", ".join(map(str, counts))
    if m_disc is None:
        if schedule.key not in counts:
            raise BadInput(
                f"steps is {schedule}, but {policy} acts with {trained}: give that, or leave steps out"
            )
    elif schedule.count > 2 * m_disc:
        raise BadInput(
            f"steps is {schedule}{_in_words(schedule)}, but {policy} was trained for {trained} Euler steps "
            f"and takes at most {2 * m_disc}: give one to {2 * m_disc} steps, or train with a larger "
            "--m-disc"
        )


def _in_words(schedule: Schedule) -> str:
    return "" if schedule.is_even else f" ({schedule.count} steps)"
