"""What is examined: a run's policy, its data, and episodes of it. Shape letters: T rows, O, A."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..act.choice import PolicyChoice
from ..act.policy_file import Policy, load
from ..act.schedule import Schedule, check_fit, schedule_of
from ..data.dataset import TransitionData, load_data
from ..envs import dataset_name
from ..errors import BadInput
from ..learn.run_folder import RunFolder
from ..simulate.evaluate import check_simulated
from .arguments import DiagnoseConfig
from .episodes import Branch, Branched, Episodes, Played, Trace
from .proposals import draws_nothing, noise, propose

Floats = NDArray[np.floating[Any]]

TRIED = 8  # candidates of a state that a branch is run for


class Stream(IntEnum):
    """What has random numbers of its own, so that more of one changes no other."""

    CANDIDATES = 1
    BRANCHES = 2
    VISITED = 3  # which observations
    POINTS = 4  # of a scatter
    VALIDATION = 5  # which rows
    FLOW = 6  # x0 of flow matching at data
    CONSISTENCY = 7
    CHOSEN = 8  # x0 of flow matching at candidates
    NEAR = 9  # which rows have their neighbours looked up
    SETS = 10


class Rows(NamedTuple):
    """Observations [T, O] and actions [T, A] of data, in the networks' units of actions."""

    observations: Floats
    actions: Floats


@dataclass(frozen=True)
class Branches:
    """What came of several candidates at each of B states."""

    observations: Floats  # [B, O]
    actions: Floats  # [B, TRIED, A]
    results: tuple[Branched, ...]  # B TRIED of them, a state's together


@dataclass(frozen=True)
class Subject:
    """A run, looked at from every side. What is absent is None, and `absent` says why by its name."""

    folder: Path
    policy: Policy
    method: str
    env: str
    steps: Schedule
    config: DiagnoseConfig
    absent: Mapping[str, str]  # of data, episodes, branches
    train: Rows | None
    val: Rows | None
    traces: Mapping[PolicyChoice, tuple[Trace, ...]]  # by the way to act; {} without episodes
    branches: Branches | None

    def rng(self, stream: Stream) -> np.random.Generator:
        """Return a stream's generator, from its start."""
        return np.random.default_rng((self.config.seed, stream))

    @property
    def gamma(self) -> float:
        """The discount of the critic's returns; 1 where there is none."""
        return float(self.policy.config.get("gamma", 1.0))

    def observations(self) -> Floats | None:
        """Return observations [B, O] that the policy met, or else of the validation data; None without."""
        met = [trace.observations for traces in self.traces.values() for trace in traces]
        if met:
            rows: Floats = np.concatenate(met)
        elif self.val is not None:
            rows = self.val.observations
        else:
            return None
        some = self.rng(Stream.VISITED).permutation(len(rows))[: self.config.observations]
        return rows[np.sort(some)]


def load_run(folder: Path) -> tuple[Policy, str, Any]:
    """Return the policy, the method's name and the TrainConfig of a run's folder.

    Raises
    ------
    BadInput
        It is no run's folder, or has no policy yet.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise BadInput(f"RUN is {folder}, which is {what}, but must be a run's folder: give that")
    agent, train, _ = RunFolder(folder, ()).read_config()
    path = folder / "policy.safetensors"
    if not path.is_file():
        raise BadInput(
            f"{folder} has no policy.safetensors: train it to its first checkpoint, with `sorl-fast train "
            f"--out {folder} --resume`"
        )
    return load(path), agent.method, train


def ways_of(policy: Policy, config: DiagnoseConfig) -> tuple[PolicyChoice, ...]:
    """Return the ways to act that are compared: one candidate, the best of N, and the policy's own choice.

    Raises
    ------
    BadInput
        The policy does not act with `config.steps`.
    """
    if config.steps is not None:
        schedule = schedule_of(config.steps)
    elif policy.choice is not None:
        schedule = policy.choice.steps
    else:
        schedule = schedule_of(policy.train_steps[-1])
    check_fit(schedule, policy.finest, policy.train_steps)
    ways = [PolicyChoice(steps=schedule)]
    if policy.critic and not draws_nothing(policy):
        ways.append(PolicyChoice(steps=schedule, candidates=config.candidates))
    if policy.choice is not None and config.steps is None and policy.choice not in ways:
        ways.append(policy.choice)
    return tuple(ways)


def gather(
    folder: Path, config: DiagnoseConfig, progress: Callable[[int, int], None], parts: int
) -> tuple[Subject, Callable[[], None]]:
    """Load a run, its data, and run its episodes.

    Parameters
    ----------
    folder
        The run's.
    config
        How much.
    progress
        Called with (done, all): of episodes, branches and `parts`.
    parts
        How many times what is returned beside the subject will be called: once for each part that is done.

    Raises
    ------
    BadInput
        The folder is no run's, the policy does not act so, or data given by --data are damaged.
    """
    policy, method, train = load_run(folder)
    ways = ways_of(policy, config)
    absent: dict[str, str] = {}
    rows = _data(policy, train, config, absent)
    can_simulate = config.episodes > 0 and dataset_name(train.env) != train.env
    if not can_simulate:
        absent["episodes"] = (
            "none were asked for (--episodes 0)"
            if config.episodes == 0
            else f"{train.env} is no single task of OGBench, and nothing here simulates it"
        )
    branching = can_simulate and config.branches > 0 and not draws_nothing(policy)
    branching = branching and bool(policy.critic)
    played = len(ways) * config.episodes if can_simulate else 0
    count = _Count(progress, played + TRIED * config.branches * branching + parts)
    traces: dict[PolicyChoice, tuple[Trace, ...]] = {}
    branches = None
    if can_simulate:
        check_simulated(train.env)
        with Episodes(train.env, policy, config.workers) as episodes:
            tasks = [_played(way, config.seed, e) for way in ways for e in range(config.episodes)]
            found = episodes.run(tasks, count.steps)
            size = config.episodes
            traces = {way: tuple(found[i * size : (i + 1) * size]) for i, way in enumerate(ways)}
            if branching:
                branches = _branch(policy, ways[0], traces[ways[0]], config, episodes, count)
    train_rows, val_rows = rows or (None, None)
    subject = Subject(
        *(folder, policy, method, train.env, ways[0].steps, config, absent),
        train_rows,
        val_rows,
        traces,
        branches,
    )
    return subject, count.one


class _Count:
    """How much is done."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._more = getattr(progress, "more_steps", lambda steps: None)
        progress(0, total)

    def one(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)

    def steps(self, steps: int) -> None:
        """Count a task of so many steps; 0: none is done, but a bar may be drawn."""
        if steps:
            self._more(steps)
            self._done += 1
        self._progress(self._done, self._total)


def _played(way: PolicyChoice, seed: int, episode: int) -> Played:
    return Played(way.steps.key, way.candidates, str(way.rule), seed, episode)


def _data(
    policy: Policy, train: Any, config: DiagnoseConfig, absent: dict[str, str]
) -> tuple[Rows, Rows] | None:
    """Return training and validation rows; where the run's own cannot be had `absent` says so."""
    path = train.data if config.data is None else config.data
    try:
        pair = load_data(train.env, path, action_range=train.action_range)
    except BadInput as err:
        if config.data is not None:
            raise
        absent["data"] = f"{err}. If they were moved, give --data"
        return None
    rows, val = _rows(pair.train), None if pair.val is None else _rows(pair.val)
    if rows.observations.shape[1] != policy.obs_dim or rows.actions.shape[1] != policy.act_dim:
        raise BadInput(
            f"{path} has O = {rows.observations.shape[1]}, A = {rows.actions.shape[1]}, but the policy "
            f"O = {policy.obs_dim}, A = {policy.act_dim}: give the data that it was trained on with --data"
        )
    return rows, rows if val is None else val


def _rows(data: TransitionData) -> Rows:
    t = data.transitions
    return Rows(t.observations.numpy(), t.actions.numpy())


def _branch(
    policy: Policy,
    way: PolicyChoice,
    traces: tuple[Trace, ...],
    config: DiagnoseConfig,
    episodes: Episodes,
    count: _Count,
) -> Branches:
    """Try candidates at states that are drawn from all that episodes of one candidate met."""
    rng = np.random.default_rng((config.seed, Stream.BRANCHES))
    lengths = np.array([trace.length for trace in traces])
    ends = np.cumsum(lengths)
    at = np.sort(rng.permutation(int(ends[-1]))[: config.branches])
    numbers = np.searchsorted(ends, at, side="right")
    steps = at - (ends - lengths)[numbers]
    obs = np.stack([traces[e].observations[t] for e, t in zip(numbers, steps, strict=True)])
    actions = propose(policy, obs, noise(policy, rng, len(obs), TRIED), way.steps)
    tasks = [
        Branch(_played(way, config.seed, int(e)), traces[e].actions[:t], actions[b, n])
        for b, (e, t) in enumerate(zip(numbers, steps, strict=True))
        for n in range(TRIED)
    ]
    return Branches(obs, actions, tuple(episodes.run(tasks, count.steps)))
