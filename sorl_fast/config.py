"""What every run has: defaults and units, checked once when a config is made.

A method's own fields stand with the method (`learn/algorithms/`), their values for an environment with
its family (`envs/`).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, cast, get_args

from .action_map import ranges_of
from .errors import BadInput

DEFAULT_METHOD = "sorl"  # what `train` trains unless told otherwise, and what runs of no name are
QAgg = Literal["mean", "min"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]


def option(
    default: Any = MISSING,
    *,
    help: str,  # noqa: A002 - argparse's own word
    hint: str = "",
    path: bool = False,
    later: bool = False,
) -> Any:
    """Declare a dataclass field whose `help` is the command line's text for its flag.

    `hint` says what to give where there is neither a default nor a preset. `path`: it names a file or
    folder, and the command line expands a leading ~. `later`: there were policies before it was, whose
    files say nothing of it; where it has its default, neither do today's (`MethodConfig.to_dict`).
    """
    return field(
        default=default, metadata={"help": help, "hint": hint, "path": path, "later": later}
    )


def check(ok: bool, name: str, value: object, bound: str, remedy: str = "") -> None:
    """Raise BadInput, naming value, bound and remedy, unless `ok`."""
    if not ok:
        flag = name.replace("_", "-")
        raise BadInput(f"{name} is {value!r}, but must be {bound}. {remedy or f'Set --{flag}.'}")


def check_list(name: str, value: tuple[Any, ...]) -> None:
    """Check a field that lists candidates, steps (where text names sizes), or rules by name."""
    if name.endswith("rules"):
        ok, bound = all(isinstance(v, str) for v in value), "one or more names of rules"
    else:
        sizes = name.endswith("steps")
        ok = all((sizes and isinstance(v, str)) or (isinstance(v, int) and v >= 1) for v in value)
        bound = "one or more integers of at least 1" + ", or step sizes such as 1/2,1/4,1/4" * sizes
    if not (value and ok):  # shown as on a command line
        shown = " ".join(map(str, value)) or "()"
        raise BadInput(f"{name} is {shown}, but must be {bound}. Set --{name.replace('_', '-')}.")


def is_power_of_two(n: int) -> bool:
    """Whether n is 1, 2, 4, ..."""
    return n >= 1 and n & (n - 1) == 0


def euler_steps(m_max: int) -> tuple[int, ...]:
    """Return the step counts {1, 2, 4, ..., m_max} that a policy with that maximum is trained for."""
    return tuple(2**i for i in range(m_max.bit_length()))


class MethodConfig:
    """What is learned, and by which rule: all of a method's algorithm, and nothing of the machine.

    Each method has a frozen dataclass of its own (`learn/algorithms/`), whose fields are flags of the
    command line. Two trainings with equal configs, data, seed and device type are the same experiment.
    """

    method: ClassVar[str]  # its name on the command line
    batch_size: int  # B, transitions a minibatch
    normalize_obs: bool

    @property
    def train_steps(self) -> tuple[int, ...]:
        """Step counts that the trained policy may act with."""
        return (1,)

    @property
    def finest(self) -> int | None:
        """m_disc where the policy takes any schedule of up to twice as many steps; None: its counts only."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values, without those `later` ones that have their defaults."""
        unsaid = {f.name: f.default for f in fields(cast(Any, self)) if f.metadata.get("later")}
        values = dataclasses.asdict(cast(Any, self))
        return {k: v for k, v in values.items() if k not in unsaid or v != unsaid[k]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from `to_dict`'s values; an unknown field is refused by name."""
        return cls(**_known(cls, values))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: where from, where to, how long, how often. The algorithm is a `MethodConfig`."""

    # fmt: off
    env: str = option(help="OGBench name such as cube-single-play-singletask-task2-v0, or any name of your own for --data FILE.npz")
    data: str = option(help="folder of OGBench files, or one .npz of your own transitions", path=True)
    out: str = option(help="the run's folder, made by this command", path=True)
    steps: int = option(1_000_000, help="updates in all, also with --resume")
    seed: int = option(0, help="seeds the weights, the minibatches and all noise")
    log_every: int = option(500, help="updates between lines of log.jsonl; 0: never")
    val_every: int = option(5_000, help="updates between losses on the validation data; 0: never")
    eval_every: int = option(100_000, help="updates between evaluations in the simulator, beside one at the end; 0, or above --steps: never; give 0 where --env is no single task of OGBench")
    eval_episodes: int = option(50, help="episodes a cell of the periodic evaluation")
    eval_steps: tuple[int | str, ...] = option((1, 2, 4, 8), help="Euler steps M of the periodic evaluation, or step sizes such as 1/2,1/4,1/4; only those that the policy acts with; left out, its own where it has none of these")
    eval_candidates: tuple[int, ...] = option((1,), help="candidates N of the periodic evaluation")
    eval_rules: tuple[str, ...] = option(("argmax", "medoid"), help="rules of choosing among N > 1 candidates of the periodic evaluation (see eval --rules); the policy file keeps the steps, candidates and rule that half of the last evaluation's episodes speak for")
    checkpoint_every: int = option(10_000, help="updates between checkpoints; 0: only at the end")
    keep_checkpoints: int = option(2, help="newest checkpoints kept; older ones are removed")
    workers: int = option(2, help="processes of the periodic evaluation")
    device: str = option("cpu", help="torch device of the training: cpu, cuda, cuda:1, ...")
    precision: Precision = option("fp32", help="fp32, or what products alone read instead: bf16 (faster on a GPU, or where the CPU has AMX), and on a GPU tf32 or fp16")
    threads: int = option(0, help="threads of the training; 0: one a core that this process may use; a CPU's native operations use 8 at most")
    download: bool = option(False, help="let ogbench download missing data files")
    action_range: str | None = option(None, help="of the actions of --data FILE.npz, which are mapped to [-1, 1], and by the policy file back to these units: data (from the least to the greatest there is), =LOW,HIGH, or =LOW,HIGH:LOW,HIGH:... with a pair for each component; left out: they are in [-1, 1]")
    chunk: int = option(1, help="actions of a chunk, h: the policy learns, values and returns the actions of h steps at once, with the rewards of h steps and the discount gamma^h")
    ood_rate: float = option(0.01, help="part of observations like the validation data's that the policy may take to be out of distribution (status bit OUT_OF_DISTRIBUTION), in (0, 1); 0: the policy file says nothing of it")
    tensorboard: bool = option(False, help="also write TensorBoard events (pip install sorl-fast[tensorboard])")
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("env", "data", "out"):
            check(bool(getattr(self, name)), name, getattr(self, name), "given")
        for name in (
            *("steps", "seed", "log_every", "val_every", "eval_every"),
            *("checkpoint_every", "threads"),
        ):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 0, name, value, "an integer of at least 0")
        rate = self.ood_rate
        ok = isinstance(rate, int | float) and 0 <= rate < 1
        check(ok, "ood_rate", rate, "a number of at least 0 and below 1")
        check(self.seed < 2**63, "seed", self.seed, "below 2^63")
        if self.action_range is not None:
            ranges_of(self.action_range)
        cpu = self.device.partition(":")[0] == "cpu"
        there = ("fp32", "bf16") if cpu else get_args(Precision)
        bound = " or ".join(there) + (" on the CPU" if cpu else "")
        check(self.precision in there, "precision", self.precision, bound)
        for name in ("eval_episodes", "workers", "keep_checkpoints", "chunk"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "an integer of at least 1")
        for name in ("eval_steps", "eval_candidates", "eval_rules"):
            value = getattr(self, name)
            check_list(name, value)
            check(len(set(value)) == len(value), name, value, "a list that has each once")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from `to_dict`'s values; an unknown field is refused by name."""
        known = _known(cls, values)
        for name in ("eval_steps", "eval_candidates", "eval_rules"):
            if name in known:
                known[name] = tuple(known[name])
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """One data collection with OGBench's oracles, or experts."""

    # fmt: off
    env: str = option(help="data set name such as cube-single-play-v0 or pointmaze-medium-navigate-v0")
    out: str = option(help="folder that receives {env}.npz and {env}-val.npz", path=True)
    episodes: int | None = option(None, help="training episodes; left out: 1000, and of antmaze, humanoidmaze and antsoccer as many as OGBench has; a tenth more, at least one, for validation")
    seed: int = option(0, help="episode e is seeded from (seed, e) alone")
    workers: int = option(2, help="processes")
    expert: tuple[str, ...] | None = option(None, help="policy files that move the body of antmaze, humanoidmaze or antsoccer, from `sorl-fast expert`; left out: the package's own", path=True)
    force: bool = option(False, help="replace finished files")
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("env", "out"):
            check(bool(getattr(self, name)), name, getattr(self, name), "given")
        for name in ("episodes", "workers"):
            value = getattr(self, name)
            ok = (name == "episodes" and value is None) or (isinstance(value, int) and value >= 1)
            check(ok, name, value, "an integer of at least 1")
        if self.expert is not None:
            ok = len(self.expert) > 0 and all(isinstance(v, str) and v for v in self.expert)
            check(ok, "expert", self.expert, "one or more paths of policy files")
        ok = isinstance(self.seed, int) and 0 <= self.seed < 2**63
        check(ok, "seed", self.seed, "in [0, 2^63)")


_CHOICES = {
    "format": ("minari", "lerobot", "robomimic", "d4rl"),
    "reward": ("recorded", "success", "success-at-end"),
    "dones": ("auto", "task", "end"),
}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """One import of another format's data into a file of a user's own."""

    # fmt: off
    out: str = option(help="the .npz to write; beside it NAME.json, which keeps what was found, and perhaps NAME-val.npz", path=True)
    format: Literal["minari", "lerobot", "robomimic", "d4rl"] | None = option(None, help="of the source; left out: what it looks like")
    observations: tuple[str, ...] | None = option(None, help="parts of an observation to join, in this order; left out: the only one")
    reward: Literal["recorded", "success", "success-at-end"] = option("recorded", help="the source's own rewards; success: 0 in the step that reaches success, where the task ends, else -1; success-at-end: the same, where every episode's last step is taken for success")
    dones: Literal["auto", "task", "end"] = option("auto", help="what dones of robomimic and LeRobot mean: the task's end, or only that of the recording; auto: the task's where they meet success")
    episode_limit: int | None = option(None, help="steps after which time ends an episode, for files of D4RL without timeouts")
    val_episodes: int = option(0, help="the last episodes, this many, become the validation data; 0: those that the source names, if any")
    download: bool = option(False, help="let Minari download a data set that is not here")
    force: bool = option(False, help="replace files that are there")
    # fmt: on

    def __post_init__(self) -> None:
        check(self.out.endswith(".npz"), "out", self.out, "the path of an .npz file")
        for name in ("format", "reward", "dones"):
            value, there = getattr(self, name), _CHOICES[name]
            ok = value in there or (name == "format" and value is None)
            check(ok, name, value, f"one of {', '.join(there)}")
        limit, val = self.episode_limit, self.val_episodes
        ok = limit is None or (type(limit) is int and limit >= 1)
        check(ok, "episode_limit", limit, "an integer of at least 1")
        check(type(val) is int and val >= 0, "val_episodes", val, "an integer of at least 0")


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """One training of an expert by SAC."""

    # fmt: off
    env: str = option(help="body that learns to move: ant, antball or humanoid")
    out: str = option(help="policy file that receives the expert, from the first checkpoint on", path=True)
    steps: int | None = option(None, help="steps in the environment in all; left out, as many as OGBench's own expert has: 400,000 (ant), 12,000,000 (antball) or 40,000,000 (humanoid)")
    seed: int = option(0, help="seeds weights, minibatches, noise, starts and directions")
    checkpoint_every: int = option(20_000, help="steps between checkpoints, each of which is measured and written to --out")
    eval_episodes: int = option(10, help="episodes of a checkpoint's measure")
    hidden: int | None = option(None, help="width of the actor's and the critics' hidden layers; left out: 256 for ant; OGBench's for the others, 512 and for humanoid's critics 1024")
    depth: int | None = option(None, help="hidden layers; left out: 2 for ant and 3 for the others")
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("env", "out"):
            check(bool(getattr(self, name)), name, getattr(self, name), "given")
        for name in ("steps", "checkpoint_every", "eval_episodes", "hidden", "depth"):
            value = getattr(self, name)
            optional = value is None and name in ("steps", "hidden", "depth")
            ok = optional or (isinstance(value, int) and value >= 1)
            check(ok, name, value, "an integer of at least 1")
        ok = isinstance(self.seed, int) and 0 <= self.seed < 2**31  # gymnasium's own bound is wider
        check(ok, "seed", self.seed, "in [0, 2^31)")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """One evaluation: a grid of cells (steps M, candidates N, rule), each over the same seeded starts."""

    # fmt: off
    steps: tuple[int | str, ...] | None = option(None, help="steps M, from 1 to twice the finest grid that the policy was trained for (--m-disc), or step sizes such as 1/2,1/4,1/4, a row of cells each; left out: those of 1 2 4 8 that the policy acts with, or else its own")
    candidates: tuple[int, ...] | None = option(None, help="candidates N of best-of-N, a column of cells each; left out: 1 4 8, or 1 where the policy has no critic")
    rules: tuple[str, ...] | None = option(None, help="rules of choosing among N > 1 candidates: argmax, medoid, nearest, better, soft, centre, with a parameter after a colon; left out: argmax, and the policy's own choice where its file has one")
    episodes: int = option(50, help="episodes a cell")
    seed: int = option(0, help="start of episode e and all its noise follow from (seed, e)")
    workers: int = option(2, help="processes, each with its own simulator")
    backend: str | None = option(None, help="sampler backend: native, numpy, torch or triton; left out: SORL_BACKEND, or else the fastest installed")
    precision: str = option("fp32", help="sampler precision: fp32, or where the backend has it bf16, int8, tf32 or fp16")
    success_timing: Literal["post", "pre"] = option("post", help="success judged on s' (post, the paper's) or on s (pre, the default of ogbench 1.2)")
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("episodes", "workers"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "an integer of at least 1")
        for name in ("steps", "candidates", "rules"):
            value = getattr(self, name)
            if value is not None:
                check_list(name, value)
        ok = isinstance(self.seed, int) and 0 <= self.seed < 2**32
        check(ok, "seed", self.seed, "in [0, 2^32)")
        timing = self.success_timing
        check(timing in ("post", "pre"), "success_timing", timing, "post or pre")


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise BadInput(
            f"{cls.__name__} has no field {unknown[0]!r}; it was written by another version. "
            f"Its fields are {', '.join(sorted(names))}"
        )
    return dict(values)
