"""Train an expert: resumable, measured at every checkpoint, its file whole at every moment.

Beside the expert's file stands its checkpoint, FILE.checkpoint: all that the training goes on from,
the replay buffer included (about 0.3 KB a step for ant). Whatever is killed when: the same command
goes on from it. A training that was stopped is not the same to the bit as one that was not, for an
episode that had begun is not gone on with.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import atomic
from ..act import policy_file
from ..config import ExpertConfig
from ..envs.bodies import Body, find_body, open_online
from ..errors import BadInput, Stopped
from ..progress import progress as show_progress
from ..progress import say
from ..stopping import StopFlag, stop_flag
from .agent import BUFFER, Agent
from .measure import Measure, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOOK_EVERY = 40  # steps between looks at the stop flag: a second or so on a busy machine


@dataclass(frozen=True)
class ExpertReport:
    """What `train_expert` did.

    Attributes
    ----------
    path
        The expert's file.
    steps
        Steps that it has learned from.
    measure
        Its figures, as its file has them.
    already_done
        It had been trained as far before; nothing was changed.
    """

    path: Path
    steps: int
    measure: Mapping[str, Any]
    already_done: bool


def train_expert(config: ExpertConfig, *, progress: bool = True) -> ExpertReport:
    """Train an expert by SAC (sbx) in OGBench's online environment, and write it as a policy file.

    The reward of ant and humanoid is what they walk along a direction that is part of the
    observation and drawn anew every 100 or 200 steps; see `envs.bodies`.

    Parameters
    ----------
    config
        What to train, for how long, and where to.
    progress
        Show a progress bar, and each checkpoint's figures, on stderr.

    Returns
    -------
    ExpertReport

    Raises
    ------
    BadInput
        `config.env` is no body; `config.out` is there but no such expert, or its checkpoint is another
        training's or damaged; the folder is read-only or the disk full; another process trains to the
        same file; sbx is not installed.
    Stopped
        SIGTERM or Ctrl-C. Everything is saved, and the same call goes on.
    """
    body = find_body(config.env)
    training = _Training(config, body)
    with training.locked():
        state, history = training.read()
        done = history[-1]["steps"] if history else 0
        if done >= training.steps:
            return ExpertReport(training.out, done, history[-1], already_done=True)
        message = (
            f"stopped: the training is kept in {training.checkpoint}. Give the same command again to "
            "go on"
        )
        with stop_flag(message, second_interrupts=True) as stop:
            if progress:
                say(f"starting {body.online} and SAC (ten seconds)")
            agent = training.agent(state)
            history = training.run(agent, history, stop, progress=progress)
        return ExpertReport(training.out, agent.steps, history[-1], already_done=False)


class _Training:
    """A training's files, and what it is."""

    def __init__(self, config: ExpertConfig, body: Body) -> None:
        self.config, self.body = config, body
        self.steps = config.steps or body.steps
        self.out = Path(config.out).expanduser()
        self.checkpoint = self.out.with_name(f"{self.out.name}.checkpoint")
        self.sizes = {
            "hidden": config.hidden or body.hidden,
            "critic_hidden": config.hidden or body.critic_hidden,
            "depth": config.depth or body.depth,
        }
        self.about = {"expert": body.name, "seed": config.seed} | self.sizes

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file's training, which is then nobody else's."""
        if self.out.is_dir():
            raise BadInput(
                f"--out {self.out} is a folder, but must be a file. Choose another --out"
            )
        path = self.out.with_name(f".{self.out.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except OSError as err:
            raise BadInput(
                f"cannot write into {path.parent}: {err.strerror}. Choose an --out in a folder that you "
                "may write to"
            ) from err
        with lock:
            if not atomic.lock(lock):
                raise BadInput(
                    f"another process is training {self.out}. Wait for it, or choose another --out"
                )
            yield

    def read(self) -> tuple[dict[str, NDArray[Any]] | None, list[dict[str, Any]]]:
        """Return the arrays to go on from, or None, and the figures of earlier checkpoints."""
        if not self.checkpoint.exists():
            if self.out.exists():
                return None, self._finished()
            return None, []
        try:
            with (
                self.checkpoint.open("rb") as stream,
                np.load(stream, allow_pickle=False) as file,
            ):
                arrays = {name: file[name] for name in file.files}
            kept = json.loads(arrays.pop("about").tobytes())
            about, history = kept["about"], kept["history"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as err:
            raise BadInput(
                f"{self.checkpoint} cannot be read ({err}). Remove it to train from the beginning"
            ) from err
        if about != self.about:
            what = ", ".join(
                f"{k} {about.get(k)!r} and not {v!r}"
                for k, v in self.about.items()
                if about.get(k) != v
            )
            raise BadInput(
                f"{self.checkpoint} is of a training with {what}. Give its values to go on with it, or "
                "choose another --out"
            )
        return arrays, history

    def _finished(self) -> list[dict[str, Any]]:
        """Return the figures of a file whose checkpoint has been removed, if it needs none any more."""
        config = policy_file.load(self.out).config
        history: list[dict[str, Any]] = config.get("history", [])
        ours = all(config.get(name) == value for name, value in self.about.items())
        if not ours or not history or history[-1]["steps"] < self.steps:
            raise BadInput(
                f"{self.out} is there already, but not {self.checkpoint.name}, from which its training "
                "would go on. Choose another --out, or remove it"
            )
        return history

    def agent(self, state: dict[str, NDArray[Any]] | None) -> Agent:
        capacity = min(BUFFER, self.steps + 1000)
        if state is not None:
            capacity = min(BUFFER, max(capacity, len(state["buffer/rewards"])))
        env, seed = open_online(self.body), self.config.seed
        agent = Agent(self.body, env, seed, capacity=capacity, **self.sizes)
        if state is not None:
            try:
                agent.restore(state, seed)
            except (KeyError, ValueError, IndexError) as err:
                raise BadInput(
                    f"{self.checkpoint} does not fit this version ({err}). Remove it to train from the "
                    "beginning"
                ) from err
        return agent

    def run(
        self, agent: Agent, history: list[dict[str, Any]], stop: StopFlag, *, progress: bool
    ) -> list[dict[str, Any]]:
        """Learn until the end or a stop; return the figures of every checkpoint."""
        every, goal = self.config.checkpoint_every, self.steps
        with show_progress(" steps", shown=progress, name=self.body.name, scaled=True) as show:
            while True:
                show(min(agent.steps, goal), goal)
                due = goal if agent.steps >= goal else (agent.steps // every + 1) * every
                while agent.steps < min(due, goal) and not stop:
                    agent.learn(min(LOOK_EVERY, min(due, goal) - agent.steps))
                    show(min(agent.steps, goal), goal)
                try:
                    stop.check()
                    history = [*history, self._publish(agent, history, stop, progress=progress)]
                finally:
                    self._save(agent, history)
                if agent.steps >= goal:
                    return history

    def _publish(
        self,
        agent: Agent,
        history: list[dict[str, Any]],
        stop: StopFlag,
        *,
        progress: bool,
    ) -> dict[str, Any]:
        """Measure the expert as it is and write its file; return the figures."""
        found: Measure = measure(
            agent.policy({}), self.body, self.config.eval_episodes, self.config.seed, stop.check
        )
        if progress:
            say(f"{self.body.name} after {agent.steps:,} steps: {found}")
        row = {"steps": agent.steps} | found.to_dict()
        policy_file.save(self.out, agent.policy(self._config(agent.steps, [*history, row])))
        return row

    def _config(self, steps: int, history: list[dict[str, Any]]) -> dict[str, Any]:
        sizes = "".join(
            f" --{name} {value}"
            for name in ("hidden", "depth")
            if (value := getattr(self.config, name)) is not None
        )
        command = (
            f"sorl-fast expert --env {self.body.name} --steps {self.steps} "
            f"--seed {self.config.seed}{sizes} --out FILE"
        )
        versions = {
            name: importlib.metadata.version(name)
            for name in ("sbx-rl", "jax", "ogbench", "mujoco")
        }
        return (
            self.about
            | {"command": command, "steps": steps}
            | {k: v for k, v in history[-1].items() if k != "steps"}
            | {"versions": versions, "history": history}
        )

    def _save(self, agent: Agent, history: list[dict[str, Any]]) -> None:
        about = json.dumps({"about": self.about, "history": history}).encode()
        arrays: dict[str, Any] = agent.state() | {"about": np.frombuffer(about, np.uint8)}
        atomic.write_file(self.checkpoint, lambda file: np.savez(file, **arrays))


__all__ = ["ExpertReport", "Stopped", "train_expert"]
