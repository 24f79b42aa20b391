"""A cell is one way for a policy to act: what it is called, and which of several no other beats."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def cell_name(
    steps: int | str, candidates: int, rule: str = "argmax", *, short: bool = False
) -> str:
    """Return what a cell is called everywhere: `M = 4, N = 8`, or `4/8` where there is little room.

    Parameters
    ----------
    steps
        Euler steps M, or the name of a schedule of unequal ones.
    candidates
        Candidates N, of which one is taken.
    rule
        How it is chosen, a part of the name where it is another than the paper's argmax.
    short
        For a point of a picture.
    """
    if rule == "argmax":
        return f"{steps}/{candidates}" if short else f"M = {steps}, N = {candidates}"
    return f"{steps}/{candidates} {rule}" if short else f"M = {steps}, N = {candidates}, {rule}"


def pareto_front(
    items: Iterable[T], speed: Callable[[T], float], success: Callable[[T], float]
) -> list[T]:
    """Return the items that no other beats, fastest first.

    a beats b if speed(a) >= speed(b) and success(a) >= success(b), one of them being unequal. Equals
    do not beat each other: all of them are returned, in the order given. What has a speed or success
    that is NaN is unknown, so it neither beats anything nor is returned.
    """
    known = [(speed(item), success(item), item) for item in items]
    known = [found for found in known if found[0] == found[0] and found[1] == found[1]]
    known.sort(key=lambda found: (-found[0], -found[1]))
    front: list[tuple[float, float, T]] = []
    for found in known:
        if not front or found[1] > front[-1][1] or found[:2] == front[-1][:2]:
            front.append(found)
    return [item for _, _, item in front]
