"""Acting within a deadline: what a session chooses from, and what it did.

The runtime decides (`csrc/deadline.hpp`); `docs/robot.md` says what a caller may rely on.
"""

import math
from typing import Any, NamedTuple

from ..errors import BadInput
from .choice import PolicyChoice
from .schedule import Plan
from .session import Status


class Planned(NamedTuple):
    """A way to act, and the microseconds that three of four of its calls took no longer than.

    Of a call's evaluations, and of its groups of candidates, the mean counts.
    """

    way: PolicyChoice
    call_us: float  # a whole call, and no less than its parts: the least deadline to begin with
    step_us: float  # one evaluation of the actor, for all candidates
    score_us: float  # the critics, for one group of candidates; 0 where none is scored
    rest_us: float  # what follows the last of either


class DeadlineInfo(NamedTuple):
    """How a call with a deadline went: an `Info` and what was done of which way."""

    candidate: int  # the winning candidate, -1 where the action was held
    q: float  # its Q, NaN where the way reads none or it was not scored
    status: Status
    way: PolicyChoice  # that was chosen
    evaluations: int  # of the actor, part of the action; fewer than way.steps.count if cut
    scored: int  # candidates that have a Q
    elapsed_us: float


def cut(plan: Plan, evaluations: int, finest: int | None, *, planned: bool) -> Plan:
    """Return the steps of a call that was cut short: the definition of what the runtime does.

    The last of the evaluations that were made reaches from its t to 1.

    Parameters
    ----------
    plan
        What was to be done, of Euler steps.
    evaluations
        From 1 to the plan's number of steps.
    finest
        The finest grid that a shortcut actor was trained for; None for another flow, whose network reads
        no step size.
    planned
        Whether the cut was decided before the last evaluation, which then reads the size of its step; else
        its velocity is of the step that was planned, and is prolonged.
    """
    *steps, last = plan.steps[:evaluations]
    h = 1 - last.t
    fed = last.log2_steps
    if planned and finest is not None and evaluations < len(plan.steps):
        fed = min(-math.log2(h), math.log2(finest))
    return Plan((*steps, last._replace(log2_steps=fed, h=h)), plan.k)


def microseconds(value: Any) -> float:
    """Return a deadline as a number of microseconds from now, or raise BadInput."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise BadInput(
            f"deadline_us is {value!r}, but must be a finite number of at least 0: microseconds from "
            "the call. Set deadline_us="
        )
    return number


def refuse_beside(given: dict[str, Any]) -> None:
    """Raise BadInput where a call with a deadline names what the deadline chooses."""
    for name, value in given.items():
        if value is not None:
            raise BadInput(
                f"{name} is given together with deadline_us, which chooses among the ways of "
                f"`prepare_deadline` with the policy's own noise: leave {name} out"
            )
