"""The training loop: sample -> update -> log -> checkpoint -> evaluate."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import ops
from ..act.choice import MAX_CANDIDATES, PolicyChoice
from ..act.policy_file import Policy
from ..act.policy_file import load as load_policy
from ..act.policy_file import save as save_policy
from ..act.schedule import Schedule, check_fit, schedule_of
from ..act.selection import Tried, select
from ..config import MethodConfig, TrainConfig, check
from ..cores import available_cores
from ..data.dataset import DataPair, TransitionData, load_data
from ..errors import BadInput, Diverged, Stopped
from ..ops.graphs import CudaRecorder
from ..progress import at_terminal, say
from ..simulate.episodes import cell_of
from ..simulate.evaluate import Evaluator, check_cells, check_lists, way_of
from ..stopping import stop_flag
from ..version import package_versions
from .algorithms import method_of
from .capture import CapturedUpdates
from .checkpoint import Checkpoint, checkpoint_folders, load_latest, save_checkpoint
from .chunks import chunked, discount_of, over_chunks, units_of_chunks
from .learner import Learner
from .method import Export
from .noise import GeneratorNoise
from .ood import ood_test, said
from .run_folder import RunFolder, absolute

PACKAGES = ("torch", "numpy", "ogbench", "gymnasium", "mujoco", "safetensors")
CHECK_EVERY = 100  # updates between looks at the losses; a look waits for the device
VAL_BATCHES = 8
LOCK_SECONDS = 15.0  # that a resumed run waits for the one before, which may have been told to stop


class TrainResult(NamedTuple):
    """What a finished training leaves."""

    step: int
    policy: Path
    last: dict[str, float]  # the last log line
    evaluation: dict[str, Any] | None  # the last periodic evaluation

    def __str__(self) -> str:
        """Return what was made, and how it acts where no evaluation chose that."""
        said = f"{self.step} updates made. Policy: {self.policy}"
        policy = load_policy(self.policy)
        if policy.choice is not None or len(policy.train_steps) == 1:
            return said
        M, finest = policy.own.steps.key, policy.train_steps[-1]
        return (
            f"{said}\nNo evaluation chose how it acts: with {M} Euler step and one candidate, unless a "
            f"call says more (steps={finest})."
        )


def train(
    agent: MethodConfig,
    config: TrainConfig,
    *,
    resume: bool | None = False,
    command: str = "",
    progress: bool = True,
) -> TrainResult:
    """Train to `config.steps` updates, or go on from the last checkpoint to that total.

    On one device, with one number of threads, equal arguments give equal bits, interrupted or not.

    Parameters
    ----------
    agent, config
        The method with its settings, and the run.
    resume
        Go on from `config.out`'s newest checkpoint instead of starting a new run there. None: if there
        is one; else the run starts, anew where one was stopped before its first checkpoint.
    command
        The command line, kept in config.json.
    progress
        Show a progress bar on standard error; where that is no terminal, a line at each log line.

    Raises
    ------
    BadInput
        Something given is wrong, or the disk cannot be written.
    Diverged
        A loss became non-finite; the last good checkpoint is kept.
    Stopped
        SIGTERM or SIGINT arrived; everything was saved.
    """
    for name, value, kind in (("agent", agent, MethodConfig), ("config", config, TrainConfig)):
        if not isinstance(value, kind):
            raise BadInput(
                f"{name} is a {type(value).__name__}, but must be of type {kind.__name__}: "
                "train(agent, config)"
            )
    with ExitStack() as stack:
        run = _Run(agent, config, resume, command, stack)
        return run.go(progress)


class _PlainUpdates:
    """Makes updates one by one, all randomness but the choices from one generator of the device."""

    def __init__(self, learner: Learner, data: TransitionData, seed: int, host: torch.Generator):
        self._learner, self._data = learner, data
        device = data.transitions.rewards.device
        self._random = torch.Generator(device).manual_seed(seed)
        self._host = host
        plan = learner.method.plan(data.act_dim)
        self._noise = GeneratorNoise(plan, data.act_dim, self._random)
        self._made = 0
        self._metrics: list[Tensor] = []  # of the updates since the last look

    @property
    def pending(self) -> int:
        return len(self._metrics)

    def make(self) -> None:
        method = self._learner.method
        self._made += 1
        choice = method.choose(self._host, self._made)
        batch = self._data.sample(method.config.batch_size, self._random)
        self._metrics.append(self._learner.update(batch, self._noise.draw(), choice))

    def look(self) -> np.ndarray:
        values = torch.stack(self._metrics).cpu().numpy()
        self._metrics.clear()
        return values

    def state(self) -> dict[str, Tensor]:
        return {"random/device": self._random.get_state()}

    def restore(self, tensors: dict[str, Tensor], made: int) -> None:
        self._random.set_state(tensors["random/device"])
        self._made = made


def _updates(
    learner: Learner, data: TransitionData, seed: int, host: torch.Generator
) -> _PlainUpdates | CapturedUpdates:
    device = data.transitions.rewards.device
    if _has_graphs(device):
        return CapturedUpdates(learner, data, seed, host, CHECK_EVERY, CudaRecorder(device))
    return _PlainUpdates(learner, data, seed, host)


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


class _Run:
    """One call of `train`: its data, learner, random state and files."""

    def __init__(
        self,
        agent: MethodConfig,
        config: TrainConfig,
        resume: bool | None,
        command: str,
        stack: ExitStack,
    ):
        self.agent, self.config = agent, config
        self.device = _device(config.device)
        threads = config.threads or available_cores()
        # a process may do other things after a training: what is set here is set back
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.enter_context(
            ops.configured(precision=config.precision, threads=threads, device=self.device)
        )
        # What is left to torch beside native operations is too small to share out, and its threads
        # would spin on the cores that csrc's need.
        torch.set_num_threads(1 if ops.backend(self.device) == "native" else threads)
        # what cannot be evaluated, or written, is said before anything is made
        self.evaluation_steps = _evaluation_steps(agent, config)
        self.evaluator: Evaluator | None = None
        if self.evaluation_steps:
            most = max(config.eval_candidates)  # the last evaluation may choose it for the file
            bound = f"at most {MAX_CANDIDATES}, which a policy file can keep"
            check(most <= MAX_CANDIDATES, "eval_candidates", most, bound)
            self.evaluator = stack.enter_context(Evaluator(config.env, workers=config.workers))
        writer = _tensorboard_writer(config)
        self.method = method_of(over_chunks(agent, config.chunk))
        columns = ("seconds", "updates_per_second", *self.method.metrics)
        columns += tuple(f"val_{name}" for name in self.method.val_metrics)
        self.folder = stack.enter_context(RunFolder(config.out, columns))
        if resume or (resume is None and self.folder.path.is_dir()):
            self.folder.lock(LOCK_SECONDS)
        if resume is None:  # only now: whoever had the lock may have saved its first checkpoint
            resume = bool(checkpoint_folders(self.folder.checkpoints))
            begun = not resume and self.folder.clear()
            if begun:
                say(f"{config.out} was stopped before its first checkpoint: it starts anew")
        saved = self._saved_run() if resume else None
        self.data = load_data(
            config.env,
            config.data,
            download=config.download,
            normalize_obs=agent.normalize_obs,
            normaliser=self._saved_normaliser() if resume and agent.normalize_obs else None,
            next_actions="next_actions" in self.method.fields,
            action_range=config.action_range,
            chunk=config.chunk,
            discount=discount_of(agent),
            device=self.device,
        )
        self.ood = ood_test(self.data, config.ood_rate, config.chunk) if config.ood_rate else None
        if config.ood_rate:
            say(said(self.ood, config.ood_rate, self.data))
        self.host = torch.Generator().manual_seed(config.seed)
        obs_dim, act_dim = self.data.train.obs_dim, self.data.train.act_dim
        self.learner = Learner(self.method, obs_dim, act_dim, self.host, self.device)
        if self.evaluator is not None:
            policy = self._policy()
            cells = self.evaluation_steps, config.eval_candidates, config.eval_rules
            check_lists(*cells, config.eval_episodes, config.seed)
            check_cells(policy, "the policy", *cells)
            self.evaluator.check(policy)
        self.updates = _updates(self.learner, self.data.train, config.seed, self.host)
        self.step = 0
        self.seconds = 0.0  # spent training, not evaluating; summed over resumes
        self.digest = self.data.train.digest()
        self.window: list[np.ndarray] = []  # metrics of the updates since the last log line
        self.last: dict[str, float] = {}
        self.evaluation: dict[str, Any] | None = None
        self.evaluation_owed = False
        if saved is None:
            self.folder.create(self._info([command]))
        else:
            checkpoint, before, commands = saved
            self.folder.check_renames()
            self._restore(checkpoint)
            self.folder.write_config(self._info([*commands, command]))
            self.folder.rewind(self.step)
            # an evaluation comes after its checkpoint: what stopped the run may have cut it short
            due = before.eval_every > 0 and self.step == before.steps
            due |= _due(self.step, before.eval_every)
            self.evaluation_owed = due and self.folder.evaluation(self.step) is None
        self.tensorboard = None
        if writer is not None:
            # as log.jsonl is rewound: what a kill has lost is not shown twice
            purge = None if saved is None else self.step + 1
            self.tensorboard = writer(str(self.folder.path / "tensorboard"), purge_step=purge)
            stack.callback(self.tensorboard.close)
        self._stack = stack
        self._stop = stack.enter_context(stop_flag())

    def _info(self, commands: list[str]) -> dict[str, Any]:
        paths = {"data": absolute(self.config.data), "out": absolute(self.config.out)}
        return {
            "method": self.agent.method,
            "agent": self.agent.to_dict(),
            "train": self.config.to_dict() | paths,
            "versions": package_versions(PACKAGES),
            "command": commands[-1],
            "commands": commands,
            "data": _describe(self.data, self.digest),
        }

    def _saved_run(self) -> tuple[Checkpoint, TrainConfig, list[str]]:
        agent, train_config, info = self.folder.read_config()
        for name, old, new in (
            ("method", agent.method, self.agent.method),
            # of all fields: a dictionary leaves out some that have their defaults
            *(
                (f.name, *(getattr(x, f.name, None) for x in (agent, self.agent)))
                for f in fields(cast(Any, agent))
            ),
            ("env", train_config.env, self.config.env),
            ("seed", train_config.seed, self.config.seed),
            ("precision", train_config.precision, self.config.precision),
            ("action_range", train_config.action_range, self.config.action_range),
            ("chunk", train_config.chunk, self.config.chunk),
            ("device", _kind(train_config.device), _kind(self.config.device)),
        ):
            if old != new:
                raise BadInput(
                    f"--resume: {name} was {old!r} in {self.folder.path}, but is {new!r} now. Use the "
                    "old value, or choose another --out"
                )
        commands = list(info.get("commands", []))
        return load_latest(self.folder.checkpoints), train_config, commands

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.info.get("data") != self.digest:
            raise BadInput(
                f"--resume: the data in {self.config.data} are not those that {self.folder.path} was "
                "trained on. Name those with --data, or choose another --out"
            )
        tensors = {name: torch.from_numpy(x) for name, x in checkpoint.tensors.items()}
        self.host.set_state(tensors["random/host"])
        self.updates.restore(tensors, checkpoint.step)
        self.learner.load_state(tensors, checkpoint.step)
        self.step = checkpoint.step
        self.seconds = float(checkpoint.info["seconds"])
        if self.config.log_every:
            self.window = [*checkpoint.tensors.get("log/window", ())]  # older checkpoints have none

    def _saved_normaliser(self) -> tuple[Tensor, Tensor] | None:
        """Return mean and scale [O] that the run has begun with, if its policy is still there."""
        try:
            policy = load_policy(self.folder.policy)
        except BadInput:
            return None
        if policy.obs_mean is None or policy.obs_std is None:
            return None
        return torch.from_numpy(policy.obs_mean.copy()), torch.from_numpy(policy.obs_std.copy())

    def go(self, progress: bool) -> TrainResult:
        """Run to the total number of updates."""
        config = self.config
        total = max(config.steps, self.step)
        bar = tqdm(
            total=total,
            initial=self.step,
            unit=" updates",
            smoothing=0.1,
            disable=not (progress and at_terminal()),
        )
        self._lines = progress and not at_terminal()
        self._stack.callback(bar.close)
        if progress and self.step < total:
            rows = f"{self.agent.batch_size} of {len(self.data.train):,} transitions each"
            say(
                f"{self.agent.method}: updates {self.step + 1:,} to {total:,}, {rows}, into {config.out}"
            )
        if self.evaluation_owed and self.evaluator is not None:
            self._export()
            self._evaluate(bar)
        start = time.perf_counter()
        logged_at, logged_step = self.seconds, self.step
        while self.step < total:
            self.updates.make()
            self.step += 1
            bar.update()
            due = {
                "log": _due(self.step, config.log_every),
                "val": _due(self.step, config.val_every) and self.data.val is not None,
                "save": _due(self.step, config.checkpoint_every) or self.step == total,
                "eval": _due(self.step, config.eval_every)
                or (self.evaluator is not None and self.step == total),
            }
            due["save"] |= due["eval"]  # an evaluation may fail: no update is lost by it
            stopping = bool(self._stop)
            if any(due.values()) or stopping or self.updates.pending >= CHECK_EVERY:
                self._look()
            else:
                continue
            self.seconds += time.perf_counter() - start
            if due["log"]:
                rate = (self.step - logged_step) / max(self.seconds - logged_at, 1e-9)
                self._log(rate, bar)
                logged_at, logged_step = self.seconds, self.step
            if due["val"]:
                self._validate()
            if due["save"] or stopping:
                self._save()
            if stopping:
                raise Stopped(
                    f"stopped by {self._stop.signal} after {self.step} updates; all is saved. Go on with "
                    "the same command and --resume"
                )
            if due["eval"]:
                self._evaluate(bar)
            start = time.perf_counter()
        if not self.folder.policy.is_file():  # a finished run's may have been deleted
            self._export(_choice_of(self.folder.evaluation(self.step)))
        return TrainResult(self.step, self.folder.policy, self.last, self.evaluation)

    def _look(self) -> None:
        """Bring the pending metrics to the host and stop if one is not finite."""
        values = self.updates.look()
        first = self.step - len(values) + 1
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            name = [*self.method.metrics][column]
            raise Diverged(self._culprit(name, values[row, column], first + int(row)))
        if self.config.log_every:
            self.window.extend(values)

    def _culprit(self, name: str, value: float, step: int) -> str:
        kept = sorted(self.folder.checkpoints.glob("[0-9]*"))
        where = f"the last good checkpoint is {kept[-1]}" if kept else "there was no checkpoint yet"
        return (
            f"{name} became {value} at update {step}; {where}. {self.method.remedy}, or look for "
            "outliers in the data's rewards and observations"
        )

    def _log(self, rate: float, bar: "tqdm[Any]") -> None:
        means = np.stack(self.window).mean(0, dtype=np.float64).tolist()
        self.window.clear()
        line = {"step": self.step, "seconds": round(self.seconds, 3)}
        line |= {"updates_per_second": round(rate, 3)}
        line |= dict(zip(self.method.metrics, means, strict=True))
        self.last = line
        self._write(line)
        shown = {short: f"{line[name]:.3g}" for short, name in self.method.shown.items()}
        if self.evaluation:
            shown["success"] = _best(self.evaluation)
        bar.set_postfix(shown)
        if self._lines:
            text = ", ".join(f"{name} {value}" for name, value in shown.items())
            say(f"update {self.step:,} of {bar.total:,}: {text}, {rate:.3g} updates/s")

    def _write(self, line: Mapping[str, float]) -> None:
        self.folder.log(line)
        if self.tensorboard is not None:
            for name, value in line.items():
                if name != "step":
                    self.tensorboard.add_scalar(name, value, int(line["step"]))

    def _validate(self) -> None:
        """Mean losses over the same validation batches and noise every time."""
        assert self.data.val is not None
        host = torch.Generator().manual_seed(self.config.seed)
        device = torch.Generator(self.device).manual_seed(self.config.seed)
        method, data = self.method, self.data.val
        noise = GeneratorNoise(method.plan(data.act_dim), data.act_dim, device)
        sums = dict.fromkeys(method.val_metrics, 0.0)
        for number in range(1, VAL_BATCHES + 1):
            choice = method.choose(host, number)
            batch = data.sample(method.config.batch_size, device)
            for name, value in self.learner.losses(batch, noise.draw(), choice).items():
                sums[name] += float(value) / VAL_BATCHES
        self._write({"step": self.step} | {f"val_{k}": v for k, v in sums.items()})

    def _save(self) -> None:
        tensors = {name: x.cpu().numpy() for name, x in self.learner.state().items()}
        tensors["random/host"] = self.host.get_state().numpy()
        tensors |= {name: x.cpu().numpy() for name, x in self.updates.state().items()}
        if self.window:
            tensors["log/window"] = np.stack(self.window)
        if self.tensorboard is not None:
            self.tensorboard.flush()  # what it holds back would be lost with a kill
        info = {"seconds": self.seconds, "data": self.digest}
        self._export()
        keep = self.config.keep_checkpoints
        save_checkpoint(self.folder.checkpoints, self.step, tensors, info, keep)

    def _policy(self) -> Policy:
        data, env, h = self.data.train, self.config.env, self.config.chunk
        more = self.data.obs_mean, self.data.obs_std, units_of_chunks(self.data.action_map, h)
        policy = self.method.export(self.learner, Export(data.obs_dim, data.act_dim, env, *more))
        policy = chunked(policy, h, self.agent)
        return policy if self.ood is None else replace(policy, ood=self.ood)

    def _export(self, choice: PolicyChoice | None = None) -> None:
        policy = self._policy()
        if choice is not None and choice != policy.own:  # which says the same without one
            policy = replace(policy, choice=choice)
        save_policy(self.folder.policy, policy)

    def _evaluate(self, bar: "tqdm[Any]") -> None:
        """Evaluate in other processes, from the policy file: no random state here is touched."""
        config = self.config
        assert self.evaluator is not None
        result = self.evaluator.run(
            self.folder.policy,
            self.evaluation_steps,
            config.eval_candidates,
            config.eval_episodes,
            config.seed,
            progress=self._interruptible,
            rules=config.eval_rules,
        )
        if self.step >= config.steps:
            # before the line that says that this evaluation is done: a kill must not lose the choice
            result |= {"choice": self._choose(result)}
        self.evaluation = {"step": self.step} | result
        self.folder.log_evaluation(self.evaluation)
        tqdm.write(f"update {self.step}: {_summary(self.evaluation)}", file=sys.stderr)

    def _choose(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the way to act that the evaluation speaks for into the policy file; return it."""
        tried = [
            Tried(way_of(cell_of(row)), [digit == "1" for digit in row["outcomes"]])
            for row in result["rows"]
        ]
        found = select(tried)
        self._export(found.way)
        return found.way.to_json() | {"seen": [*found.seen], "told": [*found.told]}

    def _interruptible(self, done: int, total: int) -> None:
        if self._stop:
            self._save()
            raise Stopped(
                f"stopped by {self._stop.signal} while evaluating after {self.step} updates; all is "
                "saved. Go on with the same command and --resume"
            )


def _choice_of(evaluation: Mapping[str, Any] | None) -> PolicyChoice | None:
    """Return the way to act that an evaluation has found, if it has looked for one."""
    choice = (evaluation or {}).get("choice")
    names = ("rule", "steps", "candidates")
    return PolicyChoice(**{name: choice[name] for name in names}) if choice else None


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as err:
        first = str(err).splitlines()[0]
        raise BadInput(f"--device {name} cannot be used: {first}. Use --device cpu") from err
    return device


def _kind(device: str) -> str:
    """Return cpu of "cpu", cuda of "cuda:1": trainings on devices of one kind draw the same noise."""
    return device.partition(":")[0]


def _describe(data: DataPair, digest: str) -> dict[str, Any]:
    return {
        "path": absolute(data.train.source),
        "sha256": digest,
        "transitions": len(data.train),
        "val_transitions": 0 if data.val is None else len(data.val),
        "obs_dim": data.train.obs_dim,
        "act_dim": data.train.act_dim,
    }


def _best(evaluation: Mapping[str, Any]) -> str:
    return f"{max(row['success'] for row in evaluation['rows']):.0%}"


def _summary(evaluation: Mapping[str, Any]) -> str:
    cells = (
        f"M={row['steps']} N={row['candidates']} "
        f"{row['rule'] + ' ' if 'rule' in row else ''}{row['success']:.0%}"
        for row in evaluation["rows"]
    )
    text = f"success {', '.join(cells)} ({evaluation['rows'][0]['episodes']} episodes a cell)"
    if (way := _choice_of(evaluation)) is not None:
        choice = evaluation["choice"]
        (seen, n), (told, m) = choice["seen"], choice["told"]
        text += f"; the policy keeps {way}: chosen by {seen} of {n}, and {told} of the other {m} succeed"
    return text


def _evaluation_steps(agent: MethodConfig, config: TrainConfig) -> tuple[int | str, ...]:
    """Return the Euler steps of the periodic evaluations; none if the run makes no evaluation."""
    if not 0 < config.eval_every <= config.steps:
        return ()
    unasked = config.eval_steps == TrainConfig.eval_steps
    steps: tuple[int | str, ...] = tuple(
        M
        for M in config.eval_steps
        if M in agent.train_steps or (not unasked and _fits(schedule_of(M, "eval_steps"), agent))
    )
    if not steps and unasked:
        steps = agent.train_steps
    if not steps:
        raise BadInput(
            f"eval_steps is {' '.join(map(str, config.eval_steps))}, but this policy will act "
            f"with {', '.join(map(str, agent.train_steps))} Euler steps. Set --eval-steps "
            "to some of these, or --eval-every 0"
        )
    return steps


def _fits(schedule: Schedule, agent: MethodConfig) -> bool:
    try:
        check_fit(schedule, agent.finest, agent.train_steps)
    except BadInput:
        return False
    return True


def _tensorboard_writer(config: TrainConfig) -> Any:
    """Return the class that writes TensorBoard's events, or None if nobody asked for it."""
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as err:
        raise BadInput(
            "--tensorboard needs a package that is not here: pip install 'sorl-fast[tensorboard]'"
        ) from err
    return SummaryWriter
