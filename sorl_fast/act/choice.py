"""How a policy acts unless a call says otherwise: its own rule, steps and candidates, kept in its file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .refusal import Words, is_ints, is_number, refuse
from .rules import ARGMAX, Rule, check_critic, rule_of
from .schedule import Schedule, check_fit, schedule_of

MAX_CANDIDATES = 1 << 12  # memory that a file asks for
_NAMES = ("rule", "steps", "candidates")
_CANDIDATES = f"an integer from 1 to {MAX_CANDIDATES}"
_STEPS = "an integer M, or 2 or more sizes above 0 that sum to 1"


@dataclass(frozen=True, kw_only=True)
class PolicyChoice:
    """A policy's own way to act.

    Parameters
    ----------
    rule
        As `rules.rule_of` takes it: "medoid:1/2", or a Rule.
    steps
        As `schedule.schedule_of` takes it: M, sizes, or a Schedule.
    candidates
        N, at least 1; in a policy at most 4096.

    Raises
    ------
    BadInput
        One of them is wrong.
    """

    steps: Schedule
    candidates: int = 1
    rule: Rule = ARGMAX

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", rule_of(self.rule, "choice rule"))
        object.__setattr__(self, "steps", schedule_of(self.steps, "choice steps"))
        if not is_ints([self.candidates]) or self.candidates < 1:
            refuse("choice candidates", self.candidates, _CANDIDATES)

    def __str__(self) -> str:
        """Return such as "M = 4, N = 8, medoid:1/2"."""
        text = f"M = {self.steps}, N = {self.candidates}"
        return text if self.candidates == 1 else f"{text}, {self.rule}"

    def check(self, m_disc: int | None, counts: tuple[int, ...], has_critic: bool) -> None:
        """Raise BadInput unless a policy's file may say so; the first two as in `schedule.check_fit`."""
        if self.candidates > MAX_CANDIDATES:
            refuse("choice candidates", self.candidates, _CANDIDATES)
        check_fit(self.steps, m_disc, counts, "choice: the policy")
        check_critic(self.rule, self.candidates, has_critic)

    def to_json(self) -> dict[str, Any]:
        """Return what the file holds: {"rule": "medoid:1/2", "steps": 4 or [sizes], "candidates": 8}."""
        steps = self.steps
        sizes: int | list[float] = steps.count if steps.is_even else list(steps.sizes)
        return {"rule": str(self.rule), "steps": sizes, "candidates": self.candidates}


def choice_from_json(value: Any) -> PolicyChoice:
    """Undo `PolicyChoice.to_json`, of values that may be damaged."""
    if not isinstance(value, Mapping):
        refuse("choice", value, f"an object with {', '.join(_NAMES)}")
    for name in _NAMES:
        if name not in value:
            refuse(f"choice {name}", Words("missing"), "there")
    for name, x in value.items():
        if name not in _NAMES:
            refuse(f"choice {name}", x, f"absent: the fields are {', '.join(_NAMES)}")
    rule, steps = value["rule"], value["steps"]
    if not isinstance(rule, str) or str(rule_of(rule, "choice rule")) != rule:
        refuse("choice rule", rule, "a rule's full name, such as argmax or medoid:1/2")
    sizes = isinstance(steps, list) and len(steps) > 1 and all(map(is_number, steps))
    if not sizes and not is_ints([steps]):
        refuse("choice steps", steps, _STEPS)
    return PolicyChoice(**value)
