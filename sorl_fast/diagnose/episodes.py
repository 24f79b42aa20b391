"""Episodes that are looked into: what was met and done at every step, and what another action led to.

An episode is a function of (policy, way, seed, number) alone, as in an evaluation; so is what would have
come of another action at one of its steps, for the steps before are run again. Only numpy is imported here;
the simulator is imported by the worker processes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..act.policy_file import Policy, loads
from ..act.sampler import Sampler
from ..envs import open_simulator
from ..envs.simulator import Simulator
from ..simulate.evaluate import check_dims, rollout, workers_explained
from ..simulate.workers import Pool

Floats = NDArray[np.float32]


class Played(NamedTuple):
    """An episode to run, in a way to act."""

    steps: int | str  # `Schedule.key`
    candidates: int
    rule: str
    seed: int
    episode: int


class Trace(NamedTuple):
    """What one episode met."""

    observations: Floats  # [T, O]
    actions: Floats  # [T, A]
    rewards: NDArray[np.float64]  # [T]
    success: bool  # then it ended with it, and nothing comes after
    length: int


class Branch(NamedTuple):
    """An episode of `way` with another action at one step, and one candidate a step from there on."""

    way: Played
    before: Floats  # [t, A], the actions up to that step
    action: Floats  # [A]


class Branched(NamedTuple):
    """What came of it."""

    rewards: NDArray[np.float64]  # from that step on
    success: bool
    length: int  # steps that were simulated


class _Looker:
    """What simulates in a worker process."""

    def __init__(self, env: str) -> None:
        self._env = env
        self._simulator: Simulator | None = None
        self._sampler: Sampler | None = None

    def prepare(self, shared: bytes) -> None:
        """Act with this policy, its file's bytes, from now on."""
        if self._simulator is None:
            self._simulator = open_simulator(self._env)
        policy = loads(shared)
        check_dims(self._env, self._simulator, policy)
        self._sampler = Sampler(policy)

    def do(self, task: Played | Branch) -> Trace | Branched:
        """Run one episode, or one from a step on."""
        assert self._simulator is not None
        assert self._sampler is not None
        self._sampler.reset()
        if isinstance(task, Branch):
            return branch(self._simulator, self._sampler, task)
        return trace(self._simulator, self._sampler, task)


def trace(simulator: Simulator, sampler: Sampler, task: Played) -> Trace:
    """Run one episode and keep what it met."""
    met: list[tuple[Floats, Floats, float]] = []
    played = rollout(
        simulator,
        sampler,
        *(task.steps, task.candidates, task.seed, task.episode, task.rule),
        lambda *step: met.append(step),
    )
    obs, actions, rewards = zip(*met, strict=True)
    return Trace(
        np.array(obs, np.float32),
        np.array(actions, np.float32),
        np.array(rewards, np.float64),
        played.success,
        played.length,
    )


def branch(simulator: Simulator, sampler: Sampler, task: Branch) -> Branched:
    """Run an episode's steps again, take another action, then one candidate a step to its end."""
    way, t = task.way, len(task.before)
    simulator.reset(way.seed, way.episode)
    for action in task.before:
        simulator.step(action)
    observation, reward, success, ended = simulator.step(task.action)
    rewards = [reward]
    while not ended:
        call = t + len(rewards)
        action = sampler.act(
            observation, way.steps, 1, seed=way.seed, call=call, row_offset=way.episode
        )
        observation, reward, succeeded, ended = simulator.step(action)
        rewards.append(reward)
        success |= succeeded
    return Branched(np.array(rewards, np.float64), success, t + len(rewards))


class Episodes:
    """Worker processes that run such episodes. A context manager; `simulate.workers.Pool` says more.

    Parameters
    ----------
    env
        A single task of OGBench.
    policy
        What acts.
    workers
        Number of processes, at least 1.
    """

    def __init__(self, env: str, policy: Policy, workers: int) -> None:
        self._pool = Pool(_Looker, env, workers=workers)
        self._shared = policy.file_bytes

    def __enter__(self) -> "Episodes":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def run(self, tasks: Sequence[Any], done: Callable[[int], None]) -> list[Any]:
        """Return the result of each task, in their order.

        Parameters
        ----------
        tasks
            Of `Played` or `Branch`.
        done
            Told of the steps of each task that is done, and of 0 now and then.

        Raises
        ------
        BadInput
            The policy does not fit the environment, or a worker died.
        """
        found: dict[int, Any] = {}
        numbers = {id(task): i for i, task in enumerate(tasks)}
        with workers_explained():
            for finished in self._pool.run(tasks, self._shared):
                if finished is None:
                    done(0)
                    continue
                task, result = finished
                found[numbers[id(task)]] = result
                done(result.length)
        return [found[i] for i in range(len(tasks))]
