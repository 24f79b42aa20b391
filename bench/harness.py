"""A fair race: who times what, checked before it is timed, interleaved in rounds, in quantiles.

Everyone runs in this one process, a block of calls at a time. The thread pools of the peers spin for
a moment after a call, which is part of why they are fast and so is left to them; but a pool that still
spins would steal the next contender's core. So a block starts with a pause, in which the pools of the
one before go to sleep, and with warm-up calls that are not counted, in which its own pool and caches
wake up. Contenders take turns round by round, each round starting with another one, so that a slow
minute of the machine falls on all of them. (A process for each contender would keep pools apart too, but
not on two cores that both of them want, and costs an import of torch every time.)
"""

import contextlib
import gc
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sorl_fast.act.policy_file import Policy
from sorl_fast.act.reference import aggregate, critic_values, plan_for, propose
from sorl_fast.cores import available_cores
from sorl_fast.machine import cpu_model
from sorl_fast.version import package_versions

from .shapes import Cell

Floats = NDArray[np.floating[Any]]

PAUSE = 0.02  # seconds before a block: longer than any pool here spins (ONNX Runtime: about a millisecond)
WARM_UP = 3  # calls at the start of a block that are not counted
ROUNDS = 5
LONG = 0.5  # seconds of a call in which waking up is lost: it is not made twice to warm up

# How far an action may be from the float64 definition's, and how far the Q of the candidate that it
# belongs to may be below the best one's. bf16 and int8 round weights and activations to 8 bits: with the
# weights of `shapes.make_policy`, which are larger than any trained ones, actions of every contender
# stay within half of its bound.
ACTION_BOUND = {"fp32": 1e-4, "bf16": 0.1, "int8": 0.1}
Q_BOUND = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.1}


class Running(NamedTuple):
    """A contender made ready for one cell: bound to its weights, its inputs and its threads."""

    call: Callable[[], Any]  # what is timed
    actions: Callable[[Any], Floats]  # what `call` returned -> [B, A]
    settle: Callable[[], None] = lambda: None  # process-wide settings, before a block
    isa: str | None = None  # instruction set; None: the contender does not say
    cpp: Callable[[int], Sequence[float]] | None = None  # n -> seconds of n calls from C++
    keep: Any = None  # memory that is read and that nobody else holds


class Contender(Protocol):
    """One way to run the sampler, at one precision and number of threads."""

    @property
    def name(self) -> str:
        """Name in the tables."""

    @property
    def precision(self) -> str:
        """fp32 or bf16."""

    @property
    def threads(self) -> int:
        """Threads, at least 1."""

    def prepare(self, cell: Cell, policy: Policy, obs: Floats, noise: Floats) -> Running:
        """Make ready for a cell, with observations [B, O] and noise [B, N, A] or [B, N, S, A]."""


class Disagreement(AssertionError):
    """A contender computes something else. Its time would mean nothing."""


class Truth(NamedTuple):
    """What the definition makes of a cell's inputs, in float64."""

    actions: Floats  # [B, N, A], every candidate, within the bounds
    q: Floats  # [B, N]; zeros if N = 1


def truth(policy: Policy, obs: Floats, noise: Floats, steps: int) -> Truth:
    """Return every candidate's action and Q by the plain definition in float64.

    `noise` is [B, N, A], or [B, N, S, A] where the form draws S > 1 numbers.
    """
    B, N, *draw = noise.shape
    plan = plan_for(policy, steps)
    actor, critic = (
        [[a.astype(np.float64) for a in layer] for layer in layers]
        for layers in (policy.actor, policy.critic)
    )
    x = obs.astype(np.float64)
    if policy.obs_mean is not None and policy.obs_std is not None:
        x = (x - policy.obs_mean) / policy.obs_std
    rows = np.repeat(x, N, axis=0)
    flat = noise.astype(np.float64).reshape(B * N, *draw)
    z = propose(policy.form, actor, rows, flat, plan.steps, policy.temperature)
    actions = np.clip(z, policy.action_low, policy.action_high)
    q = np.zeros(B * N)
    if N > 1:
        q = aggregate(critic_values(critic, rows, actions, plan.k), policy.q_agg)
    return Truth(actions.reshape(B, N, policy.act_dim), q.reshape(B, N))


def max_abs_error(actions: Floats, expected: Truth, q_bound: float) -> float:
    """Return how far actions [B, A] are from the nearest candidate that may win.

    A candidate may win if its Q is within `q_bound` of the best: rounding may turn a near tie, and the
    other action is then as good. A non-finite action is infinitely far.
    """
    distance = np.abs(actions[:, None, :] - expected.actions).max(-1)
    may_win = expected.q >= expected.q.max(-1, keepdims=True) - q_bound
    nearest = np.where(may_win, distance, np.inf).min(-1)
    return float(np.where(np.isfinite(nearest), nearest, np.inf).max())


def check(contender: Contender, running: Running, expected: Truth) -> float:
    """Call once and return the largest error of its actions.

    Raises
    ------
    Disagreement
        The error is above `ACTION_BOUND` of the contender's precision, or the shape is wrong.
    """
    running.settle()
    actions = running.actions(running.call())
    who = f"{contender.name} ({contender.precision}, {contender.threads} threads, {running.isa})"
    return judge(who, actions, expected, contender.precision)


def judge(who: str, actions: Floats, expected: Truth, precision: str) -> float:
    """Return the largest error of actions; raises Disagreement as `check` does."""
    B, _, A = expected.actions.shape
    if actions.shape != (B, A):
        raise Disagreement(f"{who}: actions of shape {list(actions.shape)}, not [{B}, {A}]")
    error = max_abs_error(actions, expected, Q_BOUND[precision])
    bound = ACTION_BOUND[precision]
    if error > bound:
        raise Disagreement(
            f"{who}: an action is {error:.3g} from the definition's, above {bound:g}: not timed"
        )
    return error


def quantile(seconds: Floats, q: float) -> float:
    """Return the smallest of the times that at least a part `q` of them does not exceed."""
    ordered = np.sort(seconds)
    return float(ordered[math.ceil(q * (len(ordered) - 1))])


class Figures(NamedTuple):
    """Quantiles of a call's time in microseconds."""

    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float

    @classmethod
    def of(cls, seconds: Floats) -> "Figures":
        """Summarise times in seconds; with fewer than 1000 of them, p99.9 is the maximum."""
        return cls(*(1e6 * quantile(seconds, q) for q in (0.5, 0.99, 0.999, 1.0)))


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector out of what is timed."""
    was_on = gc.isenabled()
    gc.disable()  # and no collection first: with torch loaded that takes longer than a block
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def time_calls(
    call: Callable[[], Any],
    seconds: float,
    between: Callable[[], None] | None = None,
    least: int = 1,
    most: int = 100_000,
    warm_up: int = WARM_UP,
) -> Floats:
    """Time calls one by one for about `seconds`, at least `least` of them; `between` is not timed.

    A first call that takes longer than the whole block is its warm-up and is not made again. One that
    takes longer than `LONG` is no warm-up but the first of the times.
    """
    clock = time.perf_counter_ns
    with no_garbage_collection():
        times: list[int] = []
        start = clock()
        for _ in range(warm_up):
            before = clock()
            call()
            took = clock() - before
            if took > LONG * 1e9 and between is None:
                times.append(took)
                break
            if clock() - start > seconds * 1e9:
                break
        end = (start if times else clock()) + int(seconds * 1e9)
        while len(times) < most and (len(times) < least or clock() < end):
            if between is not None:
                between()
            before = clock()
            call()
            times.append(clock() - before)
    return np.array(times) * 1e-9


def interleave(
    runners: Sequence[Running],
    seconds: float,
    rounds: int = ROUNDS,
    between: Callable[[], None] | None = None,
    least: int = 1,
    most: int = 100_000,
) -> list[Floats]:
    """Time all of them in turn, in rounds; return the times of each, of all rounds.

    Parameters
    ----------
    runners
        Checked contenders.
    seconds
        A contender's time in all, spread over the rounds.
    rounds
        Blocks a contender.
    between
        Called before each call, untimed.
    least, most
        Calls of one block.
    """
    times: list[list[Floats]] = [[] for _ in runners]
    for r in range(rounds):
        for k in range(len(runners)):
            i = (k + r) % len(runners)
            time.sleep(PAUSE)
            runners[i].settle()
            times[i].append(time_calls(runners[i].call, seconds / rounds, between, least, most))
    return [np.concatenate(blocks) for blocks in times]


def time_cpp(running: Running, seconds: float, p50: float, rounds: int = ROUNDS) -> Floats:
    """Time calls as a C++ program sees them, for about `seconds`, where the contender offers it.

    Parameters
    ----------
    running
        A contender whose `cpp` is not None.
    seconds
        Time in all.
    p50
        Seconds that a call takes, about.
    rounds
        Blocks, each after a pause and warm-up calls.
    """
    assert running.cpp is not None
    calls = max(1, int(seconds / rounds / p50))
    blocks = []
    for _ in range(rounds):
        time.sleep(PAUSE)
        if p50 <= LONG:
            running.cpp(min(WARM_UP, calls))
        blocks.append(np.array(running.cpp(calls)))
    return np.concatenate(blocks)


class CacheEvictor:
    """Reads a buffer much larger than L2 on every core that this process may use.

    What a control loop at 100 Hz meets: between two actions other programs have had the caches.
    """

    def __init__(self, l2_bytes: int | None = None) -> None:
        size = 4 * (l2_bytes or l2_cache() or 2 << 20)
        self._buffer = np.ones(size // 8)
        self._cores = sorted(os.sched_getaffinity(0))

    def __call__(self) -> None:
        """Evict; the calling thread may run anywhere again afterwards."""
        for core in self._cores:
            os.sched_setaffinity(0, {core})
            self._buffer.sum()
        os.sched_setaffinity(0, self._cores)


def l2_cache() -> int | None:
    """Return the bytes of one core's L2 cache, if the system says so."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with contextlib.suppress(OSError, ValueError):
            if (index / "level").read_text().strip() == "2":
                return int((index / "size").read_text().strip().removesuffix("K")) * 1024
    return None


def commit(package: Path | None = None) -> str | None:
    """Return the commit of a package's source tree, with + if it was changed since; None if it is no tree.

    What is installed into an environment that lies inside some tree is not of that tree. Without a
    package: of this one.
    """
    here = package or Path(__file__).resolve().parent
    try:
        _, head, changes = (
            subprocess.run(
                ["git", "-C", str(here), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for command in (
                ("ls-files", "--error-unmatch", "__init__.py"),
                ("rev-parse", "HEAD"),
                ("status", "--porcelain", "-uno"),
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + "+" * bool(changes)


def machine(isas: Mapping[str, Sequence[str]], packages: Sequence[str]) -> dict[str, Any]:
    """Return what a reader needs to judge the figures, as JSON values.

    Parameters
    ----------
    isas
        Instruction sets of the native sampler by precision, slowest first.
    packages
        Distributions whose versions are recorded where they are installed.
    """
    return {
        "cpu": cpu_model(),
        "cores": available_cores(),
        "l2_bytes": l2_cache(),
        "isas": {precision: list(names) for precision, names in isas.items()},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": os.getloadavg()[0],
        "versions": package_versions(packages),
        "commit": commit(),
    }


def headline(machine: Mapping[str, Any]) -> str:
    """Return what a reader of figures must know first, from `machine()`: where, of what, how idle."""
    versions = ", ".join(f"{name} {text}" for name, text in machine["versions"].items())
    isas = "; ".join(f"{p}: {', '.join(names)}" for p, names in machine["isas"].items())
    text = (
        f"{machine['cpu']}, {machine['cores']} cores, L2 {(machine['l2_bytes'] or 0) >> 20} MiB a core, "
        f"{machine['system']}, load {machine['load']:.2f}\ninstruction sets: {isas}\n{versions}\n"
        f"commit {machine['commit']}"
    )
    if machine["load"] > 0.3:
        text += (
            "\nBUSY: other programs are running (or ended less than a minute ago), so these figures are "
            "disturbed"
        )
    return text
