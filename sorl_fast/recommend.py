"""Which run, steps, candidates, precision and threads to act with on this machine, for a time budget.

`sorl-fast recommend RUN... --budget-us 500` joins two measurements: how often each cell (steps M,
candidates N) of each run's evaluation succeeded, and how long a call of that cell takes here: of a
policy with chunks, of all h actions. The runs may be of several methods; their environment is one.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

from .act.choice import PolicyChoice
from .act.form import name_of
from .act.policy_file import Policy, digest, load
from .act.rules import ARGMAX, rule_of
from .act.sampler import BACKENDS, KNOWN_PRECISIONS, Sampler, fastest
from .act.schedule import check_fit, order, schedule_of
from .act.selection import cost
from .act.timing import act_time
from .cells import cell_name, pareto_front
from .config import DEFAULT_METHOD
from .cores import available_cores
from .errors import BadInput
from .machine import cpu_model
from .run_path import refuse_sweep
from .simulate.paired import sign_test

PRECISIONS = ("fp32", "bf16", "int8")
THREADS = (1, 2)
UNSTEADY = 10  # p99 / p50; on an idle machine about 1.5

Progress = Callable[[int, int], None]


class Rate(NamedTuple):
    """How often a cell succeeded in the evaluation."""

    steps: int | str  # M, or a schedule's name
    candidates: int  # N
    success: float  # in [0, 1]
    ci_low: float  # 95% interval
    ci_high: float
    rule: str = str(ARGMAX)
    outcomes: str = ""  # "1" or "0" an episode; empty where the evaluation states none
    seed: int | None = None  # the episodes': equal seeds are the same starts and noise

    @property
    def cell(self) -> tuple[int | str, int, str]:
        """What was evaluated: steps, candidates and rule."""
        return self.steps, self.candidates, self.rule


class Option(NamedTuple):
    """One way to act, and what it gives and costs."""

    rate: Rate
    precision: str
    threads: int
    p50_us: float  # one call for one observation, from Python
    p99_us: float
    evaluated: str = "fp32"  # the precision in which the rate was found
    method: str = DEFAULT_METHOD
    run: str = "RUN"  # as it was given
    backend: str = "native"  # what was timed
    chunk: int = 1  # h, actions of a call
    file: str = "RUN/policy.safetensors"  # the run's policy

    @property
    def actions_per_second(self) -> float:
        """At the median call."""
        return 1e6 * self.chunk / self.p50_us

    @property
    def python(self) -> str:
        """The call from Python, of a `sorl_fast.Sampler` and an observation `obs`."""
        rate = self.rate
        quoted = json.dumps(self.file, ensure_ascii=False)
        backend = "" if self.backend == "native" else f', backend="{self.backend}"'
        steps = f'"{rate.steps}"' if isinstance(rate.steps, str) else rate.steps
        rule = f', rule="{rate.rule}"' if rate.candidates > 1 else ""
        return (
            f'Sampler.load({quoted}{backend}, precision="{self.precision}", threads={self.threads})'
            f".act(obs, steps={steps}, candidates={rate.candidates}{rule})"
        )

    def __str__(self) -> str:
        return (
            f"{cell_name(*self.rate.cell)}, {self.precision}, "
            f"{self.threads} thread{'s' * (self.threads > 1)}"
        )


class Recommendation(NamedTuple):
    """Every option, by run, M and N, and the one to take."""

    env: str  # where success was evaluated
    options: tuple[Option, ...]
    budget_us: float
    choice: Option | None  # None: nothing fits the budget
    left_out: Mapping[str, str] = MappingProxyType({})  # precisions that are not there, and why

    @property
    def front(self) -> list[Option]:
        """The options that no other beats in both p99 and success, fastest first.

        Whatever the budget, the choice is one of them.
        """
        return pareto_front(self.options, lambda o: -o.p99_us, lambda o: o.rate.success)


def choose(options: Iterable[Option], budget_us: float) -> Option | None:
    """Return the option with the highest success whose p99 is within the budget; None if none is.

    Of equal successes the one with the lowest p99 is chosen.

    Parameters
    ----------
    options
        In any order.
    budget_us
        Microseconds that 99 of 100 calls may take.
    """
    fitting = [option for option in options if option.p99_us <= budget_us]
    return min(fitting, key=lambda option: (-option.rate.success, option.p99_us), default=None)


def not_worse(options: Iterable[Option], choice: Option) -> list[Option]:
    """Return the cheaper options that the evaluation cannot tell from the choice, cheapest first.

    As `compare` says. One option a cell, its fastest.
    """
    cells: dict[tuple[str, int | str, int, str], Option] = {}
    for option in sorted(options, key=lambda option: option.p99_us):
        rate, best = option.rate, choice.rate
        other = option.p99_us < choice.p99_us and (option.run, rate) != (choice.run, best)
        if other and not compare(rate, best).differ:
            cells.setdefault((option.run, *rate.cell), option)
    return list(cells.values())


class Comparison(NamedTuple):
    """Whether an evaluation tells two cells apart, and by what."""

    differ: bool
    how: str


def compare(a: Rate, b: Rate) -> Comparison:
    """Tell two cells apart at 5%: by McNemar's exact test where both have outcomes of the same episodes.

    Else by whether their 95% intervals overlap, which tells far fewer cells apart.
    """
    n = min(len(a.outcomes), len(b.outcomes))
    if n and a.seed is not None and a.seed == b.seed:
        p = sign_test(*([digit == "1" for digit in rate.outcomes[:n]] for rate in (a, b)))
        return Comparison(p < 0.05, f"exact paired test of the same {n} episodes: p = {p:.2g}")
    overlap = a.ci_low <= b.ci_high and b.ci_low <= a.ci_high
    return Comparison(not overlap, f"the 95% intervals {'' if overlap else 'do not '}overlap")


class Evaluation(NamedTuple):
    """What an evaluation.json says: where, in which precision, and how often each cell succeeded."""

    env: str
    precision: str
    rates: tuple[Rate, ...]
    policy: str | None  # the evaluated policy's digest; None: an older file, which states none
    timing: str | None  # how success was timed; None: not stated


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
    seed = values.get("seed")
    rates = tuple(
        _rate(row, f"evaluation {path}: row {i}", policy)._replace(seed=seed)
        for i, row in enumerate(rows)
    )
    if len({rate.cell for rate in rates}) < len(rates):
        raise BadInput(f"evaluation {path} has a cell of steps and candidates twice; {redo}")
    precision = values.get("precision", "fp32")  # older files do not say
    if precision not in KNOWN_PRECISIONS:
        known = ", ".join(KNOWN_PRECISIONS)
        raise BadInput(
            f"evaluation {path}: precision is {precision!r}, but must be one of {known}; {redo}"
        )
    stated = (values.get(name) for name in ("policy", "success_timing"))
    return Evaluation(str(values.get("env")), precision, rates, *stated)


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
            raise BadInput("another name than the schedule's own")
        check_fit(schedule_of(row["steps"]), policy.finest, policy.train_steps)
    except BadInput:
        bound = f"one of {', '.join(map(str, policy.train_steps))}"
        if policy.finest is not None:
            bound = f"M, or a schedule's name, of at most {2 * policy.finest} steps"
        raise refuse("steps", bound) from None
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
    outcomes = row.get("outcomes", "")  # older files have none
    if not isinstance(outcomes, str) or set(outcomes) - {"0", "1"}:
        raise refuse("outcomes", "a digit, 0 or 1, for each episode")
    measured = {name: row[name] for name in Rate._fields[:5]}
    return Rate(**measured, rule=rule, outcomes=outcomes)


class _Candidate(NamedTuple):
    """A run that may be recommended."""

    run: str  # as given
    method: str
    policy: Policy
    file: Path  # of its evaluation
    base: Evaluation
    path: Path  # of its policy


def recommend(
    run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    budget_us: float,
    *,
    evaluation: str | os.PathLike[str] | None = None,
    precisions: Sequence[str] = PRECISIONS,
    threads: Sequence[int] = THREADS,
    seconds: float = 0.5,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Recommendation:
    """Time every cell of the runs' evaluations on this machine and choose the best that fits a budget.

    Parameters
    ----------
    run
        A run's folder, or a policy file with its evaluation.json beside it; or several, of any methods
        and seeds, evaluated in one environment. Each run stands for itself: it is one that acts.
    budget_us
        Microseconds that a call may take, at the 99th percentile; above 0. Of a policy with chunks a call
        is one of h actions.
    evaluation
        Another evaluation.json than the run's, where there is one run. Where an
        evaluation-PRECISION.json of the same environment lies beside it, that precision's success is
        read from there, as far as it goes.
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
        A run, its evaluation or the budget is wrong, the runs were evaluated in different ways, or this
        build has no such backend.
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
    runs = [run] if isinstance(run, str | os.PathLike) else list(run)
    candidates = _candidates(runs, evaluation)
    work: list[tuple[_Candidate, str, int, Sampler, list[tuple[Rate, str]]]] = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for candidate in candidates:
        _, _, policy, file, base, _ = candidate
        samplers, left_out = _samplers(policy, _backend(policy, backend), precisions, threads)
        for (precision, count), sampler in samplers.items():
            rates = _rates_in(precision, base, file, policy)
            work.append((candidate, precision, count, sampler, rates))
        for precision, reason in left_out.items():
            reasons.setdefault((precision, reason), []).append(candidate.method)
    options: list[Option] = []
    total = sum(len(rates) for *_, rates in work)
    for candidate, precision, count, sampler, rates in work:
        for rate, evaluated in rates:
            times = act_time(sampler, rate.steps, rate.candidates, seconds, rule=rate.rule)
            method, run, chunk = candidate.method, candidate.run, candidate.policy.chunk
            about = (evaluated, method, run, sampler.backend)
            options.append(
                Option(rate, precision, count, *times, *about, chunk, str(candidate.path))
            )
            if progress is not None:
                progress(len(options), total)
    place = {candidate.run: i for i, candidate in enumerate(candidates)}
    options.sort(key=lambda option: (place[option.run], *_place(option)))
    left = {}
    for (precision, reason), methods in reasons.items():
        of = f" of {', '.join(dict.fromkeys(methods))}" if len(candidates) > 1 else ""
        left[precision + of] = reason
    env = candidates[0].base.env
    return Recommendation(env, tuple(options), budget_us, choose(options, budget_us), left)


def by_success(
    run: str | os.PathLike[str], evaluation: str | os.PathLike[str] | None = None
) -> list[PolicyChoice]:
    """Return the ways to act of a run's evaluation, the most successful first: of equal ones the cheaper.

    What `Sampler.prepare_deadline` takes.

    Parameters
    ----------
    run
        A run's folder, or a policy file with its evaluation.json beside it.
    evaluation
        Another evaluation.json.

    Raises
    ------
    BadInput
        The run or its evaluation is wrong.
    """
    (candidate,) = _candidates([run], evaluation)
    ways = [
        (
            rate.success,
            PolicyChoice(
                steps=schedule_of(rate.steps), candidates=rate.candidates, rule=rule_of(rate.rule)
            ),
        )
        for rate in candidate.base.rates
    ]
    return [way for _, way in sorted(ways, key=lambda pair: (-pair[0], cost(pair[1])))]


def _candidates(
    runs: Sequence[str | os.PathLike[str]], evaluation: str | os.PathLike[str] | None
) -> list[_Candidate]:
    """Read the runs and their evaluations, which must be of one environment and timing."""
    if not runs:
        raise BadInput("no run to recommend. Give at least one: `sorl-fast recommend RUN`")
    if evaluation is not None and len(runs) > 1:
        raise BadInput(
            f"evaluation is {os.fspath(evaluation)!r}, but there are {len(runs)} runs, each with its own "
            "evaluation.json: give one run, or leave --evaluation out"
        )
    found: list[_Candidate] = []
    for run in runs:
        path = Path(run).expanduser()
        if path.is_dir():
            path, folder = path / "policy.safetensors", path
            if not path.is_file():
                refuse_sweep(folder)
        policy = load(path)
        file = Path(evaluation or path.parent / "evaluation.json")
        base = read_evaluation(file, policy)
        if not _is_of(base, policy):
            raise BadInput(
                f"evaluation {file} is of another policy than {path}, which may have been trained on "
                "since; evaluate the policy again: sorl-fast eval RUN"
            )
        first = found[0] if found else None
        if first is not None and base.env != first.base.env:
            raise BadInput(
                f"{first.run} was evaluated in {first.base.env}, but {os.fspath(run)} in {base.env}: "
                "success in different environments cannot be compared. Ask once for each environment"
            )
        if first is not None and base.timing != first.base.timing:
            raise BadInput(
                f"{first.run} was evaluated with success_timing={first.base.timing}, but "
                f"{os.fspath(run)} with {base.timing}: evaluate one again, sorl-fast eval RUN "
                "--success-timing"
            )
        if any(os.fspath(run) == other.run for other in found):
            raise BadInput(f"{os.fspath(run)} is given twice; give each run once")
        found.append(_Candidate(os.fspath(run), _method(path.parent), policy, file, base, path))
    return found


def _method(folder: Path) -> str:
    """Return the method that a run's folder names; SORL's before runs recorded it."""
    try:
        return str(json.loads((folder / "config.json").read_bytes()).get("method", DEFAULT_METHOD))
    except (OSError, ValueError, AttributeError):
        return DEFAULT_METHOD


def _place(option: Option) -> tuple[Any, ...]:
    rate = option.rate
    rule = rate.rule != str(ARGMAX), rate.rule
    return order(rate.steps), rate.candidates, *rule, option.precision, option.threads


def _backend(policy: Policy, wanted: str | None) -> str:
    """Return what is timed: `wanted`, or else native where it runs the policy's form."""
    if wanted is None:
        runs = name_of(policy.form) in BACKENDS["native"].forms
        wanted = "native" if runs else fastest(policy)
    if wanted == "native" and find_spec("sorl_fast._native") is None:
        raise BadInput(
            "this installation of sorl-fast has no native module, which is what would be timed: "
            "install a wheel, or build it with g++ by `pip install -e .`"
        )
    return wanted


def _samplers(
    policy: Policy, backend: str, precisions: Sequence[str], threads: Sequence[int]
) -> tuple[dict[tuple[str, int], Sampler], dict[str, str]]:
    """Make a sampler for each precision and thread count, and say which precisions cannot be had."""
    counts = [n for n in threads if n <= available_cores()]
    if not counts:
        raise BadInput(
            f"threads is {list(threads)}, but this process may use {available_cores()} cores only"
        )
    if backend != "native":
        counts = [min(counts)]  # the others take their threads from the process
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
    """Return the tables and the advice as `sorl-fast recommend` prints them."""
    env, options, budget, choice, left_out = result
    several = len({option.run for option in options}) > 1
    chunks = any(option.chunk > 1 for option in options)
    backends = dict.fromkeys(option.backend for option in options)
    lines = [
        f"Success in {env}; times of this machine ({cpu_model()}), "
        + ("of a call, which returns a chunk of h actions" if chunks else "one action a call")
        + f", {next(iter(backends))} backend" * (len(backends) == 1 and "native" not in backends),
    ]

    def mark(option: Option) -> str:
        return "<-- this one" if option is choice else "" if option.p99_us <= budget else "too slow"

    lines += _table(options, several, mark)
    lines += [f"Left out: {precision}: {reason}" for precision, reason in left_out.items()]
    front = [option for option in options if option in result.front]
    lines += ["", "The Pareto front: no other option is both faster at p99 and better"]
    lines += _table(sorted(front, key=lambda option: option.p99_us), several, mark)
    lines.append("")
    lines += _unsteady(options)
    if choice is None:
        nearest = min(options, key=lambda option: option.p99_us)
        lines.append(
            f"Nothing fits {budget:g} us: the fastest is {_named(nearest, several)} with "
            f"p99 = {nearest.p99_us:.1f} us. Raise the budget, evaluate smaller cells, or train a smaller "
            "network (--hidden)."
        )
        return "\n".join(lines)
    lines.append(
        f"Within {budget:g} us at p99 the best is {_named(choice, several)}: "
        f"success {choice.rate.success:.1%}, p50 {choice.p50_us:.1f} us, p99 {choice.p99_us:.1f} us"
        + (f" a call, of {choice.chunk} actions." if choice.chunk > 1 else ".")
    )
    for option in not_worse(options, choice):
        lines.append(
            f"Not told apart by this evaluation ({compare(option.rate, choice.rate).how}), and cheaper: "
            f"{_named(option, several)}: success {option.rate.success:.1%}, p99 {option.p99_us:.1f} us."
        )
    if choice.precision != choice.evaluated:
        rules = "" if choice.rate.rule == str(ARGMAX) else f" --rules {choice.rate.rule}"
        lines.append(
            f"Success was evaluated in {choice.evaluated}; that {choice.precision} succeeds as often is "
            f"assumed. To be sure: sorl-fast eval {choice.run} --precision {choice.precision}{rules}, with "
            "the same --steps, --candidates and --episodes"
        )
    lines += [
        "In Python, after `from sorl_fast import Sampler`, with an observation obs:",
        choice.python,
    ]
    return "\n".join(lines)


def _unsteady(options: Iterable[Option]) -> list[str]:
    """Return a line where p99 says more of what else runs here than of the policy."""
    ratios = [option.p99_us / option.p50_us for option in options]
    middle = median(ratios)
    if middle <= UNSTEADY:
        return []
    return [
        f"p99 is {middle:.0f} times p50 in the median of the {len(ratios)} options, and over {UNSTEADY} "
        f"times in {sum(ratio > UNSTEADY for ratio in ratios)} of them: other programs run here; repeat "
        "it when the machine is idle."
    ]


def _named(option: Option, several: bool) -> str:
    return f"{option.method} of {option.run}: {option}" if several else str(option)


def _table(
    options: Sequence[Option], several: bool, mark: Callable[[Option], str]
) -> Iterable[str]:
    """Yield the options as lines of a table.

    Method, backend and run where there are several runs, the rule where there is another than argmax.
    """
    rates = [option.rate for option in options]
    wide = max([4, *(len(str(rate.steps)) for rate in rates)])
    others = [rate.rule for rate in rates if rate.rule != str(ARGMAX)]
    rule = max(map(len, [*others, str(ARGMAX)])) + 1
    first = f"{'method':8s}" if several else ""
    chosen = f"{'rule':{rule}s}" if others else ""
    last = f" {'backend':>8s} run" if several else ""
    # a call of a chunk is h actions
    calls = f" {'calls/s':>10s}" if any(option.chunk > 1 for option in options) else ""
    yield (
        f"{first}{'M':>{wide}s} {'N':>4s} {chosen}{'success':>8s} {'95% interval':>14s} "
        f"{'precision':>9s} {'threads':>7s} {'p50 us':>10s} {'p99 us':>10s} {'actions/s':>10s}{calls}{last}"
    )
    for option in options:
        rate = option.rate
        interval = f"{rate.ci_low:.1%}-{rate.ci_high:.1%}"
        first = f"{option.method:8s}" if several else ""
        chosen = f"{rate.rule:{rule}s}" if others else ""
        last = f"{option.backend:>8s} {option.run} " if several else ""
        rate_of_calls = f"{1e6 / option.p50_us:10,.0f} " if calls else ""
        yield (
            f"{first}{rate.steps!s:>{wide}s} {rate.candidates:4d} {chosen}{rate.success:8.1%} "
            f"{interval:>14s} {option.precision:>9s} {option.threads:7d} {option.p50_us:10.1f} "
            f"{option.p99_us:10.1f} {option.actions_per_second:10,.0f} {rate_of_calls}{last}{mark(option)}"
        ).rstrip()
