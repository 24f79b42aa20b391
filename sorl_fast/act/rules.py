"""Rules of choosing one of N candidates: which of them becomes the action.

A candidate is good if its action, before the clip, is finite and, where the rule reads Q, its Q is too;
the others are never chosen and move nothing. n is the number of good ones. Actions are compared after the
clip, in units of half the bounds' width: d(a, b) = |(a - b) w|, w = 2 / (high - low), and 0 where
high = low. By Q means the highest first, and ties go to the smallest index. A part p of n is ceil(p n)
candidates.

This is the definition, one observation at a time, in the dtype of what comes in. Shape letters: N
candidates, A action.
"""

import re
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput

Array = NDArray[np.floating[Any]]

_MOST = 1 << 15  # of a parameter's numerator and denominator: ceil(p n) is then exact in 64 bits
_HALF, _QUARTER, _ONE = Fraction(1, 2), Fraction(1, 4), Fraction(1)
# name -> the parameter that it has by itself; None: it takes none
DEFAULTS: dict[str, Fraction | None] = {
    "argmax": None,
    "medoid": _HALF,
    "nearest": _QUARTER,
    "better": _HALF,
    "soft": _ONE,
    "centre": None,
}
NAMES = tuple(DEFAULTS)
_NUMBER = re.compile(r"\d{1,9}(/0*[1-9]\d{0,8}|\.\d{1,9})?")
_KNOWN = ", ".join(
    name if has is None else f"{name}[:{'TAU' if name == 'soft' else 'PART'}]"
    for name, has in DEFAULTS.items()
)


class Rule(NamedTuple):
    """One rule: its name, and its parameter where it has one. `rule_of` makes and checks it.

    argmax
        The highest Q.
    medoid:p
        Of the part p best by Q, the one with the smallest sum of distances to the others of that part.
        (Of an even number on a line the middle two tie, and rounding may decide.)
    nearest:p
        Of the part p nearest to the mean of the good candidates, the one with the highest Q. Two
        candidates are equally near to their mean.
    better:p
        One of the part p best by Q, all with the same probability.
    soft:tau
        Candidate i with a probability proportional to exp((Q_i - max Q) / (tau s)), s the biased
        deviation of the good candidates' Q; where s is 0, all with the same.
    centre
        The medoid of all good candidates: no Q is read.
    """

    name: str
    parameter: Fraction | None = None

    @property
    def reads_q(self) -> bool:
        """Whether choosing needs the critic."""
        return self.name != "centre"

    @property
    def draws(self) -> bool:
        """Whether it chooses by a random number u."""
        return self.name in ("better", "soft")

    def __str__(self) -> str:
        """Return it as `rule_of` takes it back: "argmax", "medoid:1/2"."""
        return self.name if self.parameter is None else f"{self.name}:{self.parameter}"


ARGMAX = Rule("argmax")


def rule_of(value: Any, name: str = "rule") -> Rule:
    """Return the rule that a caller names, such as "medoid" or "medoid:1/4", or a Rule.

    Raises
    ------
    BadInput
        There is no such rule, or its parameter is out of its bounds: a part above 0 and at most 1, or
        tau above 0, each a fraction or a decimal whose numerator and denominator are at most 32768.
    """
    text = str(value) if isinstance(value, Rule) else value
    if not isinstance(text, str):
        raise BadInput(f"{name} is {value!r}, but must be text, one of {_KNOWN}")
    head, colon, tail = text.partition(":")
    if head not in DEFAULTS:
        raise BadInput(f"{name} is {text[:80]!r}, but must be one of {_KNOWN}")
    if not colon:
        return Rule(head, DEFAULTS[head])
    if DEFAULTS[head] is None:
        raise BadInput(f"{name} is {text[:80]!r}, but {head} takes no parameter: give {head!r}")
    what, bound = ("tau", "above 0") if head == "soft" else ("the part", "above 0 and at most 1")
    number = Fraction(tail) if _NUMBER.fullmatch(tail) else Fraction(0)
    if not 0 < number <= (_MOST if head == "soft" else 1):
        raise BadInput(
            f"{name} is {text[:80]!r}, but {what} must be a number {bound}: give such as "
            f"{Rule(head, DEFAULTS[head])}"
        )
    if max(number.numerator, number.denominator) > _MOST:
        raise BadInput(
            f"{name} is {text[:80]!r}, but {what} must be a fraction of integers of at most {_MOST}: give "
            f"such as {Rule(head, DEFAULTS[head])}"
        )
    return Rule(head, number)


def check_critic(rule: Rule, candidates: int, has_critic: bool) -> None:
    """Raise BadInput unless there is what the rule needs to choose among N candidates."""
    if candidates > 1 and rule.reads_q and not has_critic:
        raise BadInput(
            f"candidates is {candidates}, but this policy has no critic to choose the best by: give "
            "candidates=1, or rule='centre', which needs none"
        )


def part_size(rule: Rule, n: int) -> int:
    """Return ceil(p n), the number of candidates of a rule's part of n; n for a rule without one."""
    p = rule.parameter
    return n if p is None or rule.name == "soft" else -(-p.numerator * n // p.denominator)


def scale_of(low: Array, high: Array) -> Array:
    """Return w [A] = 2 / (high - low), by which distances are measured; 0 where that is not finite."""
    with np.errstate(all="ignore"):
        w = 2 / (high - low)
        return np.where(np.isfinite(w), w, 0).astype(w.dtype)


def pick(rule: Rule, actions: Array, q: Array, good: NDArray[np.bool_], w: Array, u: float) -> int:
    """Return the index of the chosen candidate; 0 where none is good.

    Parameters
    ----------
    rule
        Which rule.
    actions
        [N, A], within the bounds where good.
    q
        [N], read where good, and not by a rule that does not read it.
    good
        [N].
    w
        [A], see `scale_of`.
    u
        In [0, 1), read by a rule that draws. It is a multiple of 2^-24.
    """
    index = np.flatnonzero(good)
    n = len(index)
    if n == 0:
        return 0
    actions, size = actions[index], part_size(rule, n)
    if rule.name == "centre":
        return int(index[_medoid(actions, w)])
    q = q[index]
    if rule.name == "nearest":
        part = np.sort(np.argsort(_from_mean(actions, w), kind="stable")[:size])
        return int(index[part[np.argmax(q[part])]])
    if rule.name == "soft":
        return int(index[_soft(q, float(rule.parameter or 1), u)])
    part = np.sort(np.argsort(-q, kind="stable")[:size])
    if rule.name == "better":
        return int(index[part[int(u * size)]])
    if rule.name == "medoid":
        return int(index[part[_medoid(actions[part], w)]])
    return int(index[np.argmax(q)])


def _medoid(actions: Array, w: Array) -> int:
    """Return which of actions [n, A] has the smallest sum of distances to the others."""
    sums = [np.sqrt((((actions - a) * w) ** 2).sum(1)).sum() for a in actions]
    return int(np.argmin(sums))


def _from_mean(actions: Array, w: Array) -> Array:
    """Return the squared distances [n] of actions [n, A] from their mean; 0 for two."""
    if len(actions) <= 2:  # equally near, which rounding must not decide
        return np.zeros(len(actions), actions.dtype)
    squared: Array = (((actions - actions.mean(0)) * w) ** 2).sum(1)
    return squared


def _soft(q: Array, tau: float, u: float) -> int:
    """Return the smallest i with e_0 + ... + e_i > u (e_0 + e_1 + ...), e = exp((q - max q) / (tau s))."""
    scale = q.dtype.type(tau) * q.std()
    weights = np.exp((q - q.max()) / scale) if 0 < scale < np.inf else np.ones_like(q)
    sums = np.cumsum(weights)
    above = sums > q.dtype.type(u) * sums[-1]
    return int(np.argmax(above)) if above.any() else len(q) - 1
