"""Which steps, candidates, precision and threads to act with on this machine, for a time budget.

`sorl-fast recommend RUN --budget-us 500` joins two measurements: how often each cell (steps M, candidates
N) of the run's evaluation succeeded, and how long an action of that cell takes here.
"""

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .act.choice import PolicyChoice
from .act.policy_file import Policy, digest, load
from .act.rules import ARGMAX, rule_of
from .act.sampler import KNOWN_PRECISIONS, Sampler, acts, fastest
from .act.schedule import check_fit, order, schedule_of
from .cores import available_cores
from .errors import BadInput

PRECISIONS = ("fp32", "bf16", "int8")
THREADS = (1, 2)
WARM_UP = 50  # calls before those that count: pages, caches and the clock settle
LEAST_CALLS = 200  # a 99th percentile of fewer is the maximum in disguise

Progress = Callable[[int, int], None]


class Rate(NamedTuple):
    """How often a cell succeeded in the evaluation."""

    steps: int | str  # M, or a schedule's name
    candidates: int  # N
    success: float  # in [0, 1]
    ci_low: float  # 95% interval
    ci_high: float
    rule: str = str(ARGMAX)

    @property
    def cell(self) -> tuple[int | str, int, str]:
        """What was evaluated: steps, candidates and rule."""
        return self.steps, self.candidates, self.rule


class Option(NamedTuple):
    """One way to act, and what it gives and costs."""

    rate: Rate
    precision: str
    threads: int
    p50_us: float  # one action for one observation, called from Python
    p99_us: float
    evaluated: str = "fp32"  # the precision in which the rate was found

    def __str__(self) -> str:
        rule = "" if self.rate.rule == str(ARGMAX) else f"{self.rate.rule}, "
        return (
            f"M = {self.rate.steps}, N = {self.rate.candidates}, {rule}{self.precision}, "
            f"{self.threads} thread{'s' * (self.threads > 1)}"
        )


class Recommendation(NamedTuple):
    """Every option, in the order of M and N, and the one to take."""

    env: str  # where success was evaluated
    options: tuple[Option, ...]
    budget_us: float
    choice: Option | None  # None: nothing fits the budget
    left_out: Mapping[str, str] = MappingProxyType({})  # precisions that are not there, and why
    backend: str = "native"  # what was timed


def choose(options: Iterable[Option], budget_us: float) -> Option | None:
    """Return the option with the highest success whose p99 is within the budget; None if none is.

    Of equal successes the one with the lowest p99 is chosen.

    Parameters
    ----------
    options
        In any order.
    budget_us
        Microseconds that 99 of 100 actions may take.
    """
    fitting = [option for option in options if option.p99_us <= budget_us]
    return min(fitting, key=lambda option: (-option.rate.success, option.p99_us), default=None)


def not_worse(options: Iterable[Option], choice: Option) -> list[Option]:
    """Return the cheaper options whose interval of success overlaps the choice's, cheapest first.

    The evaluation cannot tell them from the choice. One option a cell, its fastest.
    """
    cells: dict[tuple[int | str, int, str], Option] = {}
    for option in sorted(options, key=lambda option: option.p99_us):
        rate, best = option.rate, choice.rate
        overlaps = rate.ci_low <= best.ci_high and best.ci_low <= rate.ci_high
        if overlaps and option.p99_us < choice.p99_us and rate != best:
            cells.setdefault(rate.cell, option)
    return list(cells.values())


class Evaluation(NamedTuple):
    """What an evaluation.json says: where, in which precision, and how often each cell succeeded."""

    env: str
    precision: str
    rates: tuple[Rate, ...]
    policy: str | None  # the evaluated policy's digest; None: an older file, which states none


def read_evaluation(path: str | os.PathLike[str], policy: Policy) -> Evaluation:
    """Read an evaluation.json, whose cells must all be such as the policy can act with.

    Raises
    ------
    BadInput
        The file is not there, or is not an evaluation of such a policy.
    """
    path = Path(path)
    redo = "evaluate the policy again: sorl-fast eval RUN"
    try:
        values = json.loads(path.read_bytes())
    except OSError as err:
        raise BadInput(f"no evaluation {path} ({err.strerror}); {redo}") from err
    except ValueError as err:
        raise BadInput(f"evaluation {path} is not JSON ({err}); {redo}") from err
    rows = values.get("rows") if isinstance(values, dict) else None
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"evaluation {path} has no rows; {redo}")
    rates = tuple(_rate(row, f"evaluation {path}: row {i}", policy) for i, row in enumerate(rows))
    if len({rate.cell for rate in rates}) < len(rates):
        raise BadInput(f"evaluation {path} has a cell of steps and candidates twice; {redo}")
    precision = values.get("precision", "fp32")  # older files do not say
    if precision not in KNOWN_PRECISIONS:
        known = ", ".join(KNOWN_PRECISIONS)
        raise BadInput(
            f"evaluation {path}: precision is {precision!r}, but must be one of {known}; {redo}"
        )
    return Evaluation(str(values.get("env")), precision, rates, values.get("policy"))


def _is_of(evaluation: Evaluation, policy: Policy) -> bool:
    """Whether the evaluation is of this policy, as far as it says; training on makes another one."""
    return evaluation.policy in (None, digest(policy))


def _rate(row: Any, where: str, policy: Policy) -> Rate:
    def refuse(name: str, bound: str) -> BadInput:
        value = row.get(name) if isinstance(row, dict) else row
        return BadInput(
            f"{where}: {name} is {value!r}, but must be {bound}; evaluate the policy again: "
            "sorl-fast eval RUN"
        )

    if not isinstance(row, dict):
        raise refuse("the row", "an object")
    try:
        if schedule_of(row.get("steps")).key != row["steps"]:
            raise refuse("steps", "M, or a schedule's name")
        check_fit(schedule_of(row["steps"]), policy.finest, policy.train_steps)
    except BadInput:
        raise refuse("steps", f"one of {', '.join(map(str, policy.train_steps))}") from None
    if type(row.get("candidates")) is not int or row["candidates"] < 1:
        raise refuse("candidates", "an integer of at least 1")
    for name in ("success", "ci_low", "ci_high"):
        value = row.get(name)
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise refuse(name, "a number in [0, 1]")
    try:
        rule = str(rule_of(row.get("rule", str(ARGMAX))))
    except BadInput:
        raise refuse("rule", "a rule of choosing") from None
    return Rate(**{name: row[name] for name in Rate._fields[:-1]}, rule=rule)


def time_acts(
    sampler: Sampler,
    steps: int | str,
    candidates: int,
    seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
    rule: str = str(ARGMAX),
) -> NDArray[np.float64]:
    """Return the microseconds of each of at least 200 calls for one observation, after a warm-up."""
    obs = np.random.default_rng(0).standard_normal((64, sampler.policy.obs_dim), np.float32)
    M = steps if isinstance(steps, int) else schedule_of(steps)
    times = []
    end = clock() + int(seconds * 1e9)
    for i in itertools.count(-WARM_UP):
        if i >= LEAST_CALLS and clock() >= end:
            break
        x = obs[i % len(obs)]
        start = clock()
        sampler.act(x, M, candidates, rule=rule, seed=0, call=max(i, 0))
        if i >= 0:
            times.append((clock() - start) / 1e3)
    return np.array(times)


def recommend(
    run: str | os.PathLike[str],
    budget_us: float,
    *,
    evaluation: str | os.PathLike[str] | None = None,
    precisions: Sequence[str] = PRECISIONS,
    threads: Sequence[int] = THREADS,
    seconds: float = 0.5,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Recommendation:
    """Time every cell of a run's evaluation on this machine and choose the best that fits a budget.

    Parameters
    ----------
    run
        A run's folder, or a policy file with its evaluation.json beside it.
    budget_us
        Microseconds that an action may take, at the 99th percentile; above 0.
    evaluation
        Another evaluation.json than the run's. Where an evaluation-PRECISION.json of the same
        environment lies beside it, that precision's success is read from there, as far as it goes.
    precisions, threads
        What to try. Thread counts above this process's cores are left out, and so are precisions that
        this machine or SORL_CPU_ISA does not allow.
    seconds
        Time for each option; at least 200 calls are made.
    backend
        The sampler's; None: native, or numpy for a policy whose form native does not run.
    progress
        Called with (options timed, options in all).

    Raises
    ------
    BadInput
        The run, its evaluation or the budget is wrong, or this build has no such backend.
    """
    try:
        possible = math.isfinite(budget_us) and budget_us > 0
    except TypeError:  # recommend(budget_us, run)
        possible = False
    if not possible:
        raise BadInput(
            f"budget_us is {budget_us!r}, but must be finite and above 0. Set --budget-us; in "
            "Python: recommend(run, budget_us)"
        )
    path = Path(run).expanduser()
    path = path / "policy.safetensors" if path.is_dir() else path
    policy = load(path)
    if backend is None:
        way = PolicyChoice(steps=schedule_of(policy.train_steps[0]))
        backend = "native" if acts(policy, way, "native") else fastest(policy)
    if backend == "native" and find_spec("sorl_fast._native") is None:
        raise BadInput(
            "this installation of sorl-fast has no native module, which is what would be timed: "
            "install a wheel, or build it with g++ by `pip install -e .`"
        )
    file = Path(evaluation or path.parent / "evaluation.json")
    base = read_evaluation(file, policy)
    if not _is_of(base, policy):
        raise BadInput(
            f"evaluation {file} is of another policy than {path}, which may have been trained on "
            "since; evaluate the policy again: sorl-fast eval RUN"
        )
    counts = [n for n in threads if n <= available_cores()]
    if counts and backend != "native":
        counts = [min(counts)]  # the others take their threads from the process
    if not counts:
        raise BadInput(
            f"threads is {list(threads)}, but this process may use {available_cores()} cores only"
        )
    samplers, left_out = _samplers(policy, backend, precisions, counts)
    able = tuple(rate for rate in base.rates if acts(policy, _way_of(rate), backend))
    if not able:
        raise BadInput(
            f"evaluation {file} has no cell in which the {backend} backend can act: evaluate others, or "
            "choose backend numpy"
        )
    if missing := len(base.rates) - len(able):
        left_out[f"{missing} cells"] = f"the {backend} backend does not have their rule or steps"
    base = base._replace(rates=able)
    found = {p: _rates_in(p, base, file, policy) for p in precisions if p not in left_out}
    options: list[Option] = []
    total = len(samplers) * len(base.rates)
    for (precision, count), sampler in samplers.items():
        for rate, evaluated in found[precision]:
            times = time_acts(sampler, rate.steps, rate.candidates, seconds, rule=rate.rule)
            p50, p99 = (float(np.quantile(times, q, method="higher")) for q in (0.5, 0.99))
            options.append(Option(rate, precision, count, p50, p99, evaluated))
            if progress is not None:
                progress(len(options), total)
    options.sort(key=_place)
    choice = choose(options, budget_us)
    return Recommendation(base.env, tuple(options), budget_us, choice, left_out, backend)


def _way_of(rate: Rate) -> PolicyChoice:
    rule, steps = rule_of(rate.rule), schedule_of(rate.steps)
    return PolicyChoice(rule=rule, steps=steps, candidates=rate.candidates)


def _place(option: Option) -> tuple[Any, ...]:
    rate = option.rate
    rule = rate.rule != str(ARGMAX), rate.rule
    return order(rate.steps), rate.candidates, *rule, option.precision, option.threads


def _samplers(
    policy: Policy, backend: str, precisions: Sequence[str], counts: Sequence[int]
) -> tuple[dict[tuple[str, int], Sampler], dict[str, str]]:
    """Make a sampler for each precision and thread count, and say which precisions cannot be had."""
    samplers: dict[tuple[str, int], Sampler] = {}
    left_out: dict[str, str] = {}
    for precision in precisions:
        try:
            for count in counts:
                sampler = Sampler(policy, backend=backend, precision=precision, threads=count)
                samplers[precision, count] = sampler
        except BadInput as err:
            left_out[precision] = str(err)
    if not samplers:
        raise BadInput(next(iter(left_out.values()), f"precisions is {list(precisions)}: name one"))
    return samplers, left_out


def _rates_in(
    precision: str, base: Evaluation, file: Path, policy: Policy
) -> list[tuple[Rate, str]]:
    """Return each of `base`'s cells, and the precision that its success was found in.

    That is `precision` where `base` or a file beside it was made in it, else `base`'s.
    """
    own: dict[tuple[int | str, int, str], Rate] = {}
    beside = file.with_name(f"evaluation-{precision}.json")
    if precision != base.precision and beside.exists():
        other = read_evaluation(beside, policy)
        if other.env == base.env and other.precision == precision and _is_of(other, policy):
            own = {rate.cell: rate for rate in other.rates}
    return [
        (own[rate.cell], precision) if rate.cell in own else (rate, base.precision)
        for rate in base.rates
    ]


def text(result: Recommendation) -> str:
    """Return the table and the advice as `sorl-fast recommend` prints them."""
    env, options, budget, choice, left_out, backend = result
    lines = [
        f"Success in {env}; times of this machine, one action a call"
        + f", {backend} backend" * (backend != "native"),
        f"{'M':>4s} {'N':>4s} {'success':>8s} {'95% interval':>14s} {'precision':>9s} "
        f"{'threads':>7s} {'p50 us':>10s} {'p99 us':>10s}",
    ]
    for option in options:
        rate = option.rate
        interval = f"{rate.ci_low:.1%}-{rate.ci_high:.1%}"
        rule = "" if rate.rule == str(ARGMAX) else rate.rule + " "
        mark = "<-- this one" if option is choice else "" if option.p99_us <= budget else "too slow"
        lines.append(
            f"{rate.steps:>4} {rate.candidates:4d} {rate.success:8.1%} {interval:>14s} "
            f"{option.precision:>9s} {option.threads:7d} {option.p50_us:10.1f} {option.p99_us:10.1f} "
            f"{rule}{mark}".rstrip()
        )
    lines += [f"Left out: {precision}: {reason}" for precision, reason in left_out.items()]
    lines.append("")
    if choice is None:
        nearest = min(options, key=lambda option: option.p99_us)
        lines.append(
            f"Nothing fits {budget:g} us: the fastest is {nearest} with p99 = {nearest.p99_us:.1f} us. "
            "Raise the budget, evaluate smaller cells, or train a smaller network (--hidden)."
        )
        return "\n".join(lines)
    lines.append(
        f"Within {budget:g} us at p99 the best is {choice}: success {choice.rate.success:.1%}, "
        f"p50 {choice.p50_us:.1f} us, p99 {choice.p99_us:.1f} us."
    )
    for option in not_worse(options, choice):
        lines.append(
            f"Not told apart by this evaluation (the 95% intervals overlap), and cheaper: {option}: "
            f"success {option.rate.success:.1%}, p99 {option.p99_us:.1f} us."
        )
    if choice.precision != choice.evaluated:
        lines.append(
            f"Success was evaluated in {choice.evaluated}; that {choice.precision} succeeds as often is "
            f"assumed. To be sure: sorl-fast eval RUN --precision {choice.precision}, with the same "
            "--steps, --candidates and --episodes"
        )
    return "\n".join(lines)
