"""Whether an implementation's numbers are right: each operation's check, on one case.

An implementation can't pass by luck, for outputs begin as NaN; inputs lie between guards of NaN, so that
a read beyond them shows; weights change in place between calls; a row that is not finite must leave the
others alone.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import isolated
from ..status import Status
from . import reference
from .implementations import SAMPLING_OPERATIONS, SCHEDULED, Implementation, Task
from .parameters import Packings
from .problems import (
    KEYS,
    SETTINGS,
    TEMPERATURE,
    Case,
    Function,
    Problem,
    Truth,
    bounds,
    choices,
    grouped,
    key_of,
    normal,
    picked,
    random_layers,
    rules_of,
    schedules,
    solve,
    solved,
)
from .reference import Best

NORMALS_BOUND = 5e-7  # absolute
RULED = 7  # candidates that rules choose from


class Disagrees(Exception):
    """The numbers are wrong. The message says which, and by how much."""


# --- comparing ---------------------------------------------------------------------------------------


def agree(
    got: Mapping[str, Tensor],
    truth: Truth,
    where: str,
    keep: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise Disagrees unless every array is as near to the truth as it must be.

    Parameters
    ----------
    got
        Some of the truth's arrays, by name.
    where
        What to say about the case.
    keep
        Of some arrays, a mask of the entries that matter; all entries of the others do.
    """
    for name, x in got.items():
        y, bound = truth.exact[name], truth.bounds[name]
        if x.shape != y.shape:
            raise Disagrees(f"{name} has the shape {list(x.shape)}, not {list(y.shape)}, {where}")
        x = x.detach().to("cpu", torch.float64)
        error = (x - y).abs()
        if keep is not None and name in keep:
            error = error[keep[name].expand_as(error)]
        if not error.numel():
            continue
        bad = int((~error.isfinite()).sum())
        if bad:
            raise Disagrees(f"{name} has {bad} entries of {error.numel()} not finite, {where}")
        worst, scale = float(error.max()), max(float(y.abs().max()), 1e-30)
        if worst > bound:
            raise Disagrees(
                f"{name} is off by {worst / scale:.1e} of its largest entry, allowed are "
                f"{bound / scale:.1e}, {where}"
            )


class Guards:
    """Tensors on the device, each between two stretches of NaN that nobody may touch or read."""

    WIDTH = 256

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: list[tuple[Tensor, Tensor, bool]] = []

    def __call__(self, x: Tensor, *, written: bool = False, shift: int = 0) -> Tensor:
        """Return a copy of float32 x on the device.

        Parameters
        ----------
        written
            It may be changed.
        shift
            How many numbers it begins after an address that is a multiple of 16 bytes.
        """
        n = x.numel()
        memory = torch.full((n + 2 * self.WIDTH + shift,), torch.nan, device=self._device)
        memory = memory[shift:]
        own = memory[self.WIDTH : self.WIDTH + n].view(x.shape)
        own.copy_(x)
        self._kept.append((memory, x.detach().clone(), written))
        return own

    def all(self, given: Problem) -> Problem:
        """Return a problem on the device."""
        rest = tuple(self(x) if isinstance(x, Tensor) else x for x in given.rest)
        params = [self(p) for p in given.params]
        return Problem(
            *(given.operation, params, self(given.obs), self(given.act), rest, self(given.grad)),
            owner=Packings(),
        )

    def forget(self) -> None:
        """Say that what lies between the guards has been changed rightly."""
        self._kept = [(memory, x, True) for memory, x, _ in self._kept]

    def look(self, where: str) -> None:
        """Raise Disagrees if anything was written where it must not be."""
        for memory, x, written in self._kept:
            now = memory.cpu()
            w = self.WIDTH
            if not (now[:w].isnan().all() and now[len(now) - w :].isnan().all()):
                raise Disagrees(f"it writes beyond the ends of an input, {where}")
            if not written and not _same_bits(now[w : len(now) - w].view(x.shape), x.cpu()):
                raise Disagrees(f"it changes an input, {where}")


def _same_bits(x: Tensor, y: Tensor) -> bool:
    return bool((x.view(torch.int32) == y.view(torch.int32)).all())


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory from torch.empty with NaN, or the largest integer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an operation without a deterministic form says so
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def wait(device: torch.device) -> None:
    """Wait till the device has done everything: what went wrong on it shows now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- checks ------------------------------------------------------------------------------------------


def check_network_operation(
    implementation: Implementation,
    task: Task,
    case: Case,
    device: torch.device,
    note: isolated.Note,
) -> None:
    """Check velocity, rollout or critic_ensemble on one case; raise Disagrees."""
    operation, precision = task.operation, task.precision
    given, truth = solved(operation, precision, case)
    function = functools.partial(implementation.function, precision=precision)
    guard = Guards(device)
    here = guard.all(given)

    note(f"values and gradients, {case}")
    with poisoned():
        first = solve(function, here)
        wait(device)
    agree(first, truth, f"at {case}")
    guard.look(f"at {case}")

    note(f"values alone, {case}")
    # observations whose rows do not follow each other in memory
    apart = here.obs.t().contiguous().t()
    with poisoned(), torch.no_grad():
        layers = grouped(here.params, here.critic)
        value = function(layers, apart, here.act, *here.rest)
        wait(device)
    agree({"value": value}, truth, f"without gradients at {case}")

    if implementation.draws:
        note(f"noise from a key, {case}")
        with poisoned(), torch.no_grad():
            value = function(layers, here.obs, key_of(case).to(device), *here.rest)
            wait(device)
        agree({"value": value}, truth, f"with noise from a key at {case}")

    note(f"gradients of the inputs alone, {case}")
    with poisoned():
        got = solve(function, here, weights=False)
        wait(device)
    agree(got, truth, f"with gradients of inputs alone at {case}")
    note(f"gradients of the weights alone, {case}")
    with poisoned():
        got = solve(function, here, inputs=())
        wait(device)
    agree(got, truth, f"with gradients of weights alone at {case}")
    note(f"the action's gradient alone, {case}")  # that of the Q loss
    with poisoned():
        got = solve(function, here, weights=False, inputs=("d action",))
        wait(device)
    agree(got, truth, f"with the action's gradient alone at {case}")
    guard.look(f"at {case}")
    if case.rows > 1000:
        return

    note(f"rows that are not finite, {case}")
    _check_bad_rows(function, here, truth, case, device)
    agree(first, truth, f"a later call changed an earlier result, at {case}")

    note(f"changed weights, {case}")
    other, other_truth = solved(operation, precision, case, 1)
    for p, q in zip(here.params, other.params, strict=True):
        p.copy_(q)
    guard.forget()
    grad = guard(other.grad)
    with poisoned():
        got = solve(function, here._replace(grad=grad))
        wait(device)
    agree(got, other_truth, f"after its weights changed in place, at {case}")
    guard.look(f"at {case}")


def _check_bad_rows(
    function: Function, here: Problem, truth: Truth, case: Case, device: torch.device
) -> None:
    """Rows of NaN and infinity give no finite result, and leave the other rows as they were."""
    B = case.rows
    spoiled = {0: torch.nan, B // 2: -torch.inf, B - 1: torch.inf}
    obs, act = here.obs.clone(), here.act.clone()
    for i, (row, x) in enumerate(spoiled.items()):
        (obs if i < 2 or act.shape[1] == 0 else act)[row, -1] = x
    good = torch.ones(B, dtype=torch.bool)
    good[list(spoiled)] = False
    with poisoned():
        got = solve(function, here._replace(obs=obs, act=act), weights=False)
        wait(device)
    of_value = good if here.critic else good[:, None]
    keep = {"value": of_value, "d obs": good[:, None], "d action": good[:, None]}
    agree(got, truth, f"in the rows beside those that are not finite, at {case}", keep)
    value = got["value"].cpu()
    with torch.no_grad():
        cpu = [p.cpu() for p in here.params]
        rest = [x.cpu() if isinstance(x, Tensor) else x for x in here.rest]
        expected = getattr(reference, here.operation)(
            grouped(cpu, here.critic), obs.cpu(), act.cpu(), *rest
        )
    if value[expected.isnan()].isfinite().any():
        raise Disagrees(f"it makes a number of one that is not finite, at {case}")


def check_best_of_n(
    implementation: Implementation,
    task: Task,
    case: Case,
    device: torch.device,
    note: isolated.Note,
) -> None:
    """Check best_of_n on one case: the winner is as good as the best, and is what it says it is."""
    for of in schedules(case) if task.operation == SCHEDULED else [""]:
        _check_best_of_n(implementation, task, case, of, device, note)
    if case.network == task.network and case.rows <= 1000:
        of = "uneven" if task.operation == SCHEDULED else ""
        several = case._replace(rows=max(case.rows, 4 * RULED), candidates=RULED)
        _check_rules(implementation, task, several, of, device, note)


def _check_best_of_n(
    implementation: Implementation,
    task: Task,
    case: Case,
    of: str,
    device: torch.device,
    note: isolated.Note,
) -> None:
    """Do it for the shortcut actor's steps, or for `of` of the case's schedules."""
    c, where = choices(task.precision, case, of), f"{of} {case}".strip()
    guard = Guards(device)
    actor, critic = ([guard(p) for p in params] for params in (c.actor, c.critic))
    obs, noise = (guard(x) for x in c.tensors)
    low, high = (guard(x) for x in c.limits)

    scheduled: dict[str, Any] = {}
    if c.schedule is not None:
        scheduled = {"schedule": c.schedule, "temperature": guard(torch.tensor(TEMPERATURE))}

    def call(obs: Tensor, noise: Tensor, alone: bool = False, **options: Any) -> Best:
        options |= scheduled
        with poisoned(), torch.no_grad():
            layers = grouped(actor, False), [] if alone else grouped(critic, True)
            rest = (c.steps, c.q_agg, low, high)
            found = implementation.function(
                *layers, obs, noise, *rest, precision=task.precision, **options
            )
            wait(device)
        return Best(*(x.cpu() for x in found))

    note(f"values, {where}")
    found = call(obs, noise)
    guard.look(f"at {where}")
    judge_winners(found, c.truth, None, f"at {where}")
    B, N, *_ = noise.shape
    nothing = torch.zeros(B, dtype=torch.bool)
    _check_status(found, c.limits, nothing, nothing, f"at {where}")
    key = key_of(case).to(device)
    if implementation.draws:
        note(f"noise from a key, {where}")
        drawn = call(obs, key, candidates=N)
        judge_winners(drawn, c.truth, None, f"with noise from a key at {where}")
    note(f"one candidate, its Q not asked for, {where}")
    lone: dict[str, Any] = {"noise": noise[:, :1].contiguous()}
    if implementation.draws:
        lone = {"noise": key, "candidates": 1}
    first = Truth({"action": c.truth.exact["action"][:, 0]}, c.truth.bounds)
    single = call(obs, want_q=False, **lone)
    agree({"action": single.action}, first, f"with one candidate at {where}")
    single = call(obs, alone=True, **lone)
    agree({"action": single.action}, first, f"without a critic at {where}")
    if single.q.isfinite().any():
        raise Disagrees(f"without a critic there is a Q, at {where}")
    if case.rows > 1000:
        return
    note(f"candidates that are not finite, {where}")
    bad_obs, bad_noise = obs.clone(), noise.clone()
    bad_obs[0, 0] = torch.nan
    left = torch.ones(B, N, dtype=torch.bool)
    left[0] = False
    if N > 1:  # the winners that there were
        for b in range(1, B):
            bad_noise[b, found.candidate[b], ..., -1] = torch.inf if b % 2 else torch.nan
            left[b, found.candidate[b]] = False
    beside = f"beside what is not finite, at {where}"
    found = call(bad_obs, bad_noise)
    judge_winners(found, c.truth, left, beside)
    _check_status(found, c.limits, ~left.any(1), left.any(1) & ~left.all(1), beside)


def _check_rules(
    implementation: Implementation,
    task: Task,
    case: Case,
    of: str,
    device: torch.device,
    note: isolated.Note,
) -> None:
    """Check every rule: the winner is whom it chooses where that is clear, and is what it says it is."""
    c, where = choices(task.precision, case, of), f"{of} {case}".strip()
    layers = [grouped([p.to(device) for p in x], x is c.critic) for x in (c.actor, c.critic)]
    obs, noise = c.tensors[0].clone(), c.tensors[1].clone()
    B, N, *_ = noise.shape
    noise[::2, 0] = torch.nan
    left = torch.ones(B, N, dtype=torch.bool)
    left[::2, 0] = False
    options: dict[str, Any] = {"precision": task.precision}
    if c.schedule is not None:
        options |= {"schedule": c.schedule, "temperature": torch.tensor(TEMPERATURE).to(device)}
    for rule in rules_of(c.limits, key_of(case)):
        note(f"rule {rule.name}, {where}")
        at = f"by the rule {rule.name} at {where}"
        guard = Guards(device)
        key = None if rule.key is None else rule.key.to(device)
        here = rule._replace(w=guard(rule.w), key=key)
        rest = c.steps, c.q_agg, *(guard(x) for x in c.limits)
        with poisoned(), torch.no_grad():
            found = implementation.function(
                *layers, guard(obs), guard(noise), *rest, rule=here, **options
            )
            wait(device)
        guard.look(at)
        action, index, q, status = (x.cpu() for x in found)
        expected, clear = picked(rule, c.truth, left, case.seed)
        if not left.gather(1, index.clamp(0, N - 1)[:, None]).all():
            raise Disagrees(f"a candidate that may not be chosen is, {at}")
        judge_winners(Best(action, index, q, status), c.truth, None, at, best=False)
        wrong = clear & (index != expected)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise Disagrees(
                f"row {row}'s winner is {int(index[row])}, not {int(expected[row])}, {at}"
            )
        nothing = torch.zeros(B, dtype=torch.bool)
        _check_status(Best(action, index, q, status), c.limits, nothing, ~left.all(1), at)


def _check_status(
    found: Best, limits: tuple[Tensor, Tensor], no_obs: Tensor, rejected: Tensor, where: str
) -> None:
    """Raise Disagrees unless the status says what happened to each row."""
    (low, high), action = limits, found.action
    clipped = ((action == low) | (action == high)).any(1)
    expected = Status.CLIPPED * clipped + Status.CANDIDATE_REJECTED * rejected
    expected = torch.where(no_obs, Status.NONFINITE_OBS, expected)
    wrong = found.status != expected
    if wrong.any():
        row = int(wrong.nonzero()[0])
        got = int(found.status[row])
        raise Disagrees(f"row {row} has status {got}, not {int(expected[row])}, {where}")


def judge_winners(
    found: Best, truth: Truth, left: Tensor | None, where: str, best: bool = True
) -> None:
    """Raise Disagrees unless each observation's winner is what it says, and one of the `best` left."""
    action, index, q, _ = found
    exact = truth.exact["q"] if left is None else truth.exact["q"].where(left, -torch.inf)
    rows = exact.amax(1) > -torch.inf
    action, index, q, exact = action[rows], index[rows], q[rows], exact[rows]
    B, N = exact.shape
    if index.dtype != torch.int64 or ((index < 0) | (index >= N)).any():
        raise Disagrees(f"a winner's index is not in 0 to {N - 1}, {where}")
    take = index[:, None]
    own = truth.exact["action"][rows].gather(1, take[..., None].expand(B, 1, action.shape[1]))
    won = exact.gather(1, take)[:, 0]
    agree(
        {"action": action, "q": q},
        Truth(
            {"action": own[:, 0], "q": truth.exact["q"][rows].gather(1, take)[:, 0]}, truth.bounds
        ),
        where,
    )
    behind = float((exact.amax(1) - won).max()) if B else 0.0
    if best and behind > 2 * truth.bounds["q"]:
        raise Disagrees(f"a winner's Q is {behind:.1e} below the best, {where}")


def _optimised(
    step_of: Function, tensors: Sequence[Sequence[Tensor]], device: torch.device, scale: float
) -> dict[str, Tensor]:
    """Do three steps; return the state that they leave and the norms."""
    params, grads, more, first, second, targets = tensors
    norms = []
    for step in (1, 2, 3):
        of_step = [[x * scale * step for x in part] for part in (grads, more)]
        number = torch.tensor(step, device=device)
        norms.append(
            step_of(
                *(params, of_step[0], first, second, targets, number),
                **SETTINGS, more_grads=of_step[1] if step > 1 else (),
            ).reshape(())
        )  # fmt: skip
    groups = {"parameter": params, "first": first, "second": second, "target": targets}
    state = {f"{name} {i}": x for name, group in groups.items() for i, x in enumerate(group)}
    return {**state, "norm": torch.stack(norms)}


def check_adam_ema_step(
    implementation: Implementation,
    task: Task,
    case: Case,
    device: torch.device,
    note: isolated.Note,
) -> None:
    """Check three optimiser steps, with and without the clip; raise Disagrees."""
    g = torch.Generator().manual_seed(case.seed)
    shapes = [p.shape for p in random_layers(case.network, True, g)]
    tensors = [[normal(g, *shape) for shape in shapes] for _ in range(6)]
    tensors[3:5] = [[torch.zeros_like(x) for x in part] for part in tensors[3:5]]
    count = sum(x.numel() for x in tensors[0])
    # a norm below the clip's, and one above, whose tensors lie as a slice may
    for scale, shift in ((0.1 / math.sqrt(count), 0), (1.0, 1)):
        note(f"scale {scale:.1e}, {case}")
        guard = Guards(device)
        here = [[guard(x, written=True, shift=shift) for x in part] for part in tensors]
        with poisoned():
            got = _optimised(implementation.function, here, device, scale)
            wait(device)
        double = [[x.double() for x in part] for part in tensors]
        exact = _optimised(reference.adam_ema_step, double, torch.device("cpu"), scale)
        agree(got, Truth(exact, bounds(exact, exact, "fp32")), f"at {case}")
        guard.look(f"at {case}")
    note(f"gradients that are not finite, {case}")
    here = [[x.to(device) for x in part] for part in tensors]
    here[1][-1].fill_(torch.inf)
    with poisoned():
        got = _optimised(implementation.function, here, device, 1.0)
        wait(device)
    if got["norm"].isfinite().any():
        raise Disagrees(f"the norm of a gradient that is not finite is finite, at {case}")


def check_noise(
    implementation: Implementation,
    task: Task,
    case: Case,
    device: torch.device,
    note: isolated.Note,
) -> None:
    """Check normals or words: equal integers, normals within NORMALS_BOUND; raise Disagrees."""
    shapes: list[tuple[int, ...]] = [(case.rows, case.candidates, case.network.act)]
    if task.operation == "words":
        shapes = [(math.prod(shapes[0]),)]
    elif case.rows <= 1000:
        shapes += [(*shapes[0], 3), (1, 2, case.network.act, 256)]
    for numbers, shape in itertools.product(KEYS, shapes):
        note(f"key {numbers}, {case}")
        key = torch.tensor(numbers)
        with poisoned():
            got = implementation.function(key.to(device), *shape).cpu()
            wait(device)
        expected = getattr(reference, task.operation)(key, *shape)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise Disagrees(f"the result is {list(got.shape)} {got.dtype}, at {case}")
        error = (got.double() - expected.double()).abs().max()
        if not error <= (NORMALS_BOUND if task.operation == "normals" else 0):
            raise Disagrees(
                f"the numbers of key {numbers} are off by {float(error):.1e}, at {case}"
            )


CHECKS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("velocity", "rollout", "critic_ensemble"), check_network_operation),
    **dict.fromkeys(SAMPLING_OPERATIONS, check_best_of_n),
    "adam_ema_step": check_adam_ema_step,
    "normals": check_noise,
    "words": check_noise,
}
