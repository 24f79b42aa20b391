"""Success of a policy in OGBench's simulators, over a grid of steps M, candidates N and rules of choosing.

The start of episode e follows from (seed, e), the same for every cell, and the policy's noise from
(seed, step of the episode, e). Each episode is thus a function of (policy, cell, seed, e) alone:
neither the number of workers nor the episodes that a worker ran before can change it.

N candidates, M Euler steps, O observation, A action. Only numpy is imported here; the simulator is
imported by the worker processes.
"""

import contextlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..act.choice import PolicyChoice
from ..act.policy_file import Policy, load, loads
from ..act.rules import ARGMAX, rule_of
from ..act.sampler import Sampler
from ..act.schedule import check_fit, schedule_of
from ..config import EvalConfig
from ..envs import dataset_name, open_simulator, refuse_images
from ..envs.simulator import INSTALL, Simulator, Timing
from ..errors import BadInput
from ..progress import Shown
from ..version import package_versions
from .episodes import Cell, Episode, Record, Task, cell_order
from .workers import Pool, WorkerDied, WorkerFailed

Progress = Callable[[int, int], None]

DEFAULT_STEPS, DEFAULT_CANDIDATES = (1, 2, 4, 8), (1, 4, 8)  # of an evaluation

_Z95 = 1.959963984540054  # the 97.5% quantile of the normal distribution


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95% score interval of a success probability.

    Parameters
    ----------
    successes
        Number of successes, in [0, n]; of comparisons a tie is half a one.
    n
        Number of trials, at least 1.

    Returns
    -------
    tuple of float
        Lower and upper bound, in [0, 1].

    Raises
    ------
    BadInput
        `n` or `successes` is out of its range.

    Notes
    -----
    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212; without continuity correction.
    """
    if n < 1 or not 0 <= successes <= n:
        raise BadInput(
            f"{successes} successes of {n} trials have no interval: there must be at least 1 trial, "
            "and from 0 to all of them successes. Run at least 1 episode"
        )
    p, zz = successes / n, _Z95**2 / n
    middle = (p + zz / 2) / (1 + zz)
    half = math.sqrt(zz * (p * (1 - p) + zz / 4)) / (1 + zz)
    # At 0 and n the bound is exact; rounding would leave 1e-17 there.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return low, high


def rollout(
    simulator: Simulator,
    sampler: Sampler,
    steps: int | str,
    candidates: int,
    seed: int,
    episode: int,
    rule: str = str(ARGMAX),
    seen: Callable[[NDArray[np.float32], NDArray[np.float32], float], None] | None = None,
) -> Episode:
    """Run one episode in a cell, one observation at a time; all actions of a chunk before the next call.

    `seen` is told of (observation, action, reward) of every step.
    """
    M = steps if isinstance(steps, int) else schedule_of(steps)
    observation = simulator.reset(seed, episode)
    ended = success = False
    length, calls, returned, seconds = 0, 0, 0.0, 0.0
    while not ended:
        start = time.perf_counter()
        calls += sampler.calls_next
        action = sampler.replay(
            observation, M, candidates, rule=rule, seed=seed, call=length, row_offset=episode
        )
        seconds += time.perf_counter() - start
        before = observation
        observation, reward, succeeded, ended = simulator.step(action)
        if seen is not None:
            seen(before, action, reward)
        success |= succeeded
        returned += reward
        length += 1
    chunked = sampler.policy.chunk > 1
    return Episode(success, length, returned, seconds, calls if chunked else 0)


class _Player:
    """What evaluates in a worker process: a simulator, and the policy that acts in it."""

    def __init__(self, env: str, success_timing: Timing, precision: str) -> None:
        self._env = env
        self._success_timing = success_timing
        self._precision = precision
        self._simulator: Simulator | None = None
        self._sampler: Sampler | None = None

    def prepare(self, shared: tuple[bytes, str | None]) -> None:
        """Act with this policy, its file's bytes, and this backend from now on."""
        if self._simulator is None:
            self._simulator = open_simulator(self._env, self._success_timing)
        policy = loads(shared[0])
        check_dims(self._env, self._simulator, policy)
        self._sampler = Sampler(policy, shared[1], self._precision)

    def do(self, task: Task) -> Episode:
        """Run one episode."""
        assert self._simulator is not None
        assert self._sampler is not None
        self._sampler.reset()  # no last action to hold: nothing passes from episode to episode
        return rollout(self._simulator, self._sampler, *task)


def check_dims(env: str, simulator: Simulator, policy: Policy) -> None:
    """Raise BadInput unless a policy's observations and actions are the simulator's."""
    obs_shape = simulator.reset(0, 0).shape
    act_dim = policy.action_shape[-1]
    if obs_shape != (policy.obs_dim,) or simulator.act_dim != act_dim:
        raise BadInput(
            f"the policy maps {policy.obs_dim} observations to {act_dim} actions, but {env} "
            f"has observations of shape {list(obs_shape)} and {simulator.act_dim} actions. Evaluate "
            "it in the environment that it was trained for"
        )


def check_simulated(env: str) -> None:
    """Raise BadInput unless `env` is a single task of OGBench whose simulator is installed."""
    if dataset_name(env) == env:
        raise BadInput(
            f"{env!r} cannot be simulated: evaluation needs a single-task environment of OGBench, "
            "such as cube-single-play-singletask-task2-v0 (`sorl-fast envs` lists them). A policy "
            "trained on your own data is evaluated on your own robot: train it with --eval-every 0"
        )
    refuse_images(env)
    for package in ("ogbench", "gymnasium", "mujoco"):
        if find_spec(package) is None:
            raise BadInput(f"the package {package} is not installed; {INSTALL}")


@contextlib.contextmanager
def workers_explained() -> Iterator[None]:
    """Say what the user can do about a worker that is no more."""
    try:
        yield
    except WorkerDied as err:
        raise BadInput(
            f"a simulator process {err.how} in mid-evaluation. If memory ran out, use fewer --workers; "
            "otherwise its own message stands above"
        ) from err
    except WorkerFailed as err:
        raise RuntimeError(f"an episode failed\n{err}") from err


class Evaluator:
    """Worker processes with a simulator each, kept for any number of evaluations.

    Use it as a context manager; the processes start with the first `check` or `run` and end with the block.
    In a script of your own, keep the call behind `if __name__ == "__main__":`, since the workers are
    started by multiprocessing's spawn method.

    Parameters
    ----------
    env
        An OGBench name with `singletask`, such as cube-single-play-singletask-task2-v0.
    success_timing
        Success judged on the state after the action ("post", the paper's) or before it ("pre").
    workers
        Number of processes, at least 1.
    backend
        The Sampler's backend in the workers; None: as `Sampler` chooses.
    precision
        The Sampler's.

    Raises
    ------
    BadInput
        `env` is not OGBench's, the simulator is not installed, or a value is out of its bounds.
    """

    def __init__(
        self,
        env: str,
        success_timing: Timing = "post",
        workers: int = 2,
        backend: str | None = None,
        precision: str = "fp32",
    ) -> None:
        EvalConfig(success_timing=success_timing, workers=workers, backend=backend)
        check_simulated(env)
        self.env = env
        self.success_timing = success_timing
        self.workers = workers
        self.backend = backend
        self.precision = precision
        self._pool = Pool(_Player, env, success_timing, precision, workers=workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes at once; a later `run` starts new ones."""
        self._pool.close()

    def check(self, policy: Policy) -> None:
        """Raise BadInput unless the environment is there and `policy` fits it and can be sampled here.

        It starts one worker process, or asks one that is there.
        """
        Sampler(policy, self.backend, self.precision)
        try:
            with workers_explained():
                self._pool.prepare((policy.file_bytes, self.backend))
        except BaseException:
            self.close()
            raise

    def run(
        self,
        policy_path: str | os.PathLike[str],
        steps: Sequence[int | str],
        candidates: Sequence[int],
        episodes: int,
        seed: int,
        progress: Progress | None = None,
        record: str | os.PathLike[str] | None = None,
        fresh: bool = False,
        rules: Sequence[str] = (str(ARGMAX),),
    ) -> dict[str, Any]:
        """Evaluate a policy file: `episodes` episodes in each cell of `steps` x `candidates` x `rules`.

        Parameters
        ----------
        policy_path
            The policy file.
        steps, candidates
            Euler steps M or names of schedules ("1/2,1/4,1/4"), all allowed by the policy, and candidates
            N, at least 1.
        episodes
            Episodes a cell, at least 1.
        seed
            In [0, 2^63).
        progress
            Called with (episodes done, episodes to run) at least twice a second. What it raises ends
            the evaluation and the worker processes, and is raised here. Its `more_steps`, if it has one
            (`progress.Shown`), is told the length of every finished episode.
        record
            A file that keeps each finished episode: those that it holds are not run again, so that
            an evaluation that was interrupted goes on where it stopped. See `episodes.Record`.
        fresh
            Run all episodes, and drop what `record` has of this policy, seed and so on.
        rules
            Rules of choosing (`act.rules`). Where N = 1 there is nothing to choose, and one cell.

        Returns
        -------
        dict
            JSON values: policy (the file's digest), env, success_timing, versions, seed, backend, isa
            (the native backend's instruction set, or ""), precision and rows, one a cell:
            steps, candidates, rule (argmax is not named), episodes, successes, outcomes (a digit an
            episode, 1 for success), success with its 95% Wilson interval ci_low and
            ci_high (all in [0, 1]), episode_length and returns (means over the episodes), and
            actions_per_second, one process and the policy alone; of a policy with chunks, of which each
            row then says `chunk`, also calls (a mean over the episodes) and calls_per_second. All but the
            rates are the same for any number of workers.

        Raises
        ------
        BadInput
            The file is no policy, a value is out of its bounds, the policy does not fit the
            environment, a worker died, or the record cannot be read or written.
        """
        policy = load(policy_path)
        check_lists(steps, candidates, rules, episodes, seed)
        check_cells(policy, str(policy_path), steps, candidates, rules)
        cells = grid(steps, candidates, rules)
        return self._evaluate(policy, cells, episodes, seed, progress, record, fresh)

    def _evaluate(
        self,
        policy: Policy,
        cells: Sequence[Cell],
        episodes: int,
        seed: int,
        progress: Progress | None,
        record: str | os.PathLike[str] | None,
        fresh: bool,
    ) -> dict[str, Any]:
        sampler = Sampler(policy, self.backend, self.precision)
        context = {
            "policy": policy.digest,
            "env": self.env,
            "success_timing": self.success_timing,
            "versions": package_versions(("numpy", "ogbench", "gymnasium", "mujoco")),
            "seed": seed,
            "backend": sampler.backend,
            "isa": sampler.isa,
            "precision": self.precision,
        }
        tasks = [task for cell in cells for task in _tasks(cell, seed, episodes)]
        with Record(None if record is None else Path(record), context, fresh) as kept:
            missing = [task for task in tasks if task not in kept.done]
            try:
                self._run_all(policy, sampler.backend, missing, kept, progress)
            except BaseException:
                self.close()
                raise
        done = kept.done
        rows = [
            _row(cell, [done[task] for task in _tasks(cell, seed, episodes)], policy.chunk)
            for cell in cells
        ]
        return context | {"rows": rows}

    def _run_all(
        self,
        policy: Policy,
        backend: str,
        tasks: list[Task],
        kept: Record,
        progress: Progress | None,
    ) -> None:
        done = 0
        shown = progress or Shown()
        more_steps = getattr(shown, "more_steps", lambda steps: None)
        with workers_explained():
            for finished in self._pool.run(tasks, (policy.file_bytes, backend)):
                if finished is not None:
                    kept.add(*finished)
                    done += 1
                    more_steps(finished[1].length)
                shown(done, len(tasks))


def evaluate(
    policy_path: str | os.PathLike[str],
    config: EvalConfig,
    env: str | None = None,
    progress: Progress | None = None,
    record: str | os.PathLike[str] | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Evaluate a policy file once, in `env` or the environment that it was trained for.

    See Also
    --------
    Evaluator.run : what is returned, and the errors.
    """
    if not isinstance(config, EvalConfig):
        raise BadInput(
            f"config is a {type(config).__name__}, but must be an EvalConfig: evaluate(policy_path, "
            "config)"
        )
    policy = load(policy_path)
    env = policy.env if env is None else env
    how = (config.success_timing, config.workers, config.backend, config.precision)
    with Evaluator(env, *how) as evaluator:
        cells = asked_cells(policy, config, str(policy_path))
        return evaluator._evaluate(
            policy, cells, config.episodes, config.seed, progress, record, fresh
        )


def asked_cells(policy: Policy, config: EvalConfig, named: str = "the policy") -> list[Cell]:
    """Return the cells of an evaluation of a policy, `named` in errors; None leaves lists to the policy.

    Raises
    ------
    BadInput
        A list names nothing, or something twice, or what the policy cannot act with.
    """
    steps, candidates = default_cells(policy, config.steps, config.candidates)
    rules = (str(ARGMAX),) if config.rules is None else config.rules
    check_lists(steps, candidates, rules, config.episodes, config.seed)
    check_cells(policy, named, steps, candidates, rules)
    cells = grid(steps, candidates, rules)
    if config.rules is None:
        cells = with_own(policy, cells, config.steps, config.candidates)
    return cells


def check_lists(
    steps: Sequence[int | str],
    candidates: Sequence[int],
    rules: Sequence[str],
    episodes: int,
    seed: int,
) -> None:
    """Raise BadInput unless each list names something, and each thing once."""
    EvalConfig(
        steps=tuple(steps), candidates=tuple(candidates), rules=tuple(rules), episodes=episodes
    )
    if not 0 <= seed < 2**63:  # a training passes its own seed, which may be that large
        raise BadInput(f"seed is {seed!r}, but must be in [0, 2^63). Set --seed")
    keys = [schedule_of(M).key for M in steps]
    for name, values in (
        ("steps", keys),
        ("candidates", [*candidates]),
        ("rules", [str(rule_of(rule, "rules")) for rule in rules]),
    ):
        if len(set(values)) < len(values):
            raise BadInput(f"{name} {values} names a value twice; give each once")


def grid(steps: Sequence[int | str], candidates: Sequence[int], rules: Sequence[str]) -> list[Cell]:
    """Return the cells of steps x candidates x rules: one where N = 1, whatever the rules."""
    product = itertools.product(steps, candidates, rules)
    cells = (
        Cell(schedule_of(M).key, N, str(ARGMAX if N == 1 else rule_of(rule)))
        for M, N, rule in product
    )
    return list(dict.fromkeys(cells))


def with_own(
    policy: Policy,
    cells: Sequence[Cell],
    steps: Sequence[int | str] | None,
    candidates: Sequence[int] | None,
) -> list[Cell]:
    """Return the cells, and that of the policy's own choice unless the caller's lists leave it out."""
    if policy.choice is None:
        return [*cells]
    (cell,) = grid([policy.own.steps.key], [policy.own.candidates], [str(policy.own.rule)])
    left_out = steps is not None and cell.steps not in [schedule_of(M).key for M in steps]
    left_out |= candidates is not None and cell.candidates not in candidates
    return [*cells] if left_out else sorted({*cells, cell}, key=cell_order)


def way_of(cell: Cell) -> PolicyChoice:
    """Return what a cell says to a policy's file."""
    rule, steps = rule_of(cell.rule), schedule_of(cell.steps)
    return PolicyChoice(rule=rule, steps=steps, candidates=cell.candidates)


def default_cells(
    policy: Policy, steps: Sequence[int | str] | None, candidates: Sequence[int] | None
) -> tuple[Sequence[int | str], Sequence[int]]:
    """Return the steps and candidates of an evaluation, where None leaves them to the policy."""
    if steps is None:
        steps = [M for M in DEFAULT_STEPS if M in policy.train_steps] or policy.train_steps
    if candidates is None:
        candidates = DEFAULT_CANDIDATES if policy.critic else (1,)
    return steps, candidates


def check_cells(
    policy: Policy,
    named: str,
    steps: Sequence[int | str],
    candidates: Sequence[int],
    rules: Sequence[str] = (str(ARGMAX),),
) -> None:
    """Raise BadInput unless the policy, `named` in the message, can act in every cell."""
    for M in steps:
        check_fit(schedule_of(M), policy.finest, policy.train_steps, named)
    wrong = [N for N in candidates if N > 1]
    for rule in rules:
        if wrong and not policy.critic and rule_of(rule).reads_q:
            raise BadInput(
                f"candidates has {wrong[0]}, but {named} has no critic to choose the best by; set "
                "--candidates 1 (--eval-candidates of a training), or --rules centre (--eval-rules), which "
                "needs none"
            )


def _tasks(cell: Cell, seed: int, episodes: int) -> list[Task]:
    return [Task(cell.steps, cell.candidates, seed, e, cell.rule) for e in range(episodes)]


def _row(cell: Cell, episodes: Sequence[Episode], chunk: int = 1) -> dict[str, Any]:
    n = len(episodes)
    seconds = sum(episode.act_seconds for episode in episodes)
    calls = sum(episode.calls or episode.length for episode in episodes)
    of_chunks = {"chunk": chunk, "calls": calls / n, "calls_per_second": calls / seconds}
    successes = sum(episode.success for episode in episodes)
    length = sum(episode.length for episode in episodes)
    low, high = wilson(successes, n)
    return {
        "steps": cell.steps,
        "candidates": cell.candidates,
        **({} if cell.rule == str(ARGMAX) else {"rule": cell.rule}),
        "episodes": n,
        "successes": successes,
        "outcomes": "".join(str(int(episode.success)) for episode in episodes),
        "success": successes / n,
        "ci_low": low,
        "ci_high": high,
        "episode_length": length / n,
        "actions_per_second": length / seconds,
        **(of_chunks if chunk > 1 else {}),
        "returns": sum(episode.returned for episode in episodes) / n,
    }
