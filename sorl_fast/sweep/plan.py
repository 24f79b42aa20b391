"""From what a sweep is asked for to its jobs: a run's folder each, and the commands that fill it.

Everything that can be wrong is said here, before the first run starts.
"""

import argparse
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

from ..act.schedule import check_fit, schedule_of
from ..config import EvalConfig, MethodConfig, TrainConfig, check
from ..data.dataset import check_files
from ..envs import dataset_name
from ..errors import BadInput
from ..flags import add_flags, given, words_of
from ..learn.algorithms import METHODS, find_method, method_config, method_of
from ..learn.checkpoint import checkpoint_folders
from ..learn.run_folder import RunFolder, absolute
from .settings import SweepConfig

Fields = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """One cell of a sweep: a run, trained and evaluated."""

    name: str  # its folder's, below the sweep's
    method: str  # as the sweep names it
    env: str
    folder: str  # absolute
    train: dict[str, Any]  # fields of its TrainConfig that are not at their defaults
    agent: dict[str, Any]  # fields of the method's config that the user has given
    evaluations: tuple[dict[str, Any], ...]  # fields of each EvalConfig, likewise

    @property
    def config(self) -> TrainConfig:
        """The run's settings."""
        return TrainConfig.from_dict(self.train)

    @property
    def log(self) -> Path:
        """What its commands have said."""
        return Path(f"{self.folder}.log")

    @property
    def method_name(self) -> str:
        """The name of the method, whatever its settings."""
        return self.method.partition(":")[0]

    def evaluation(self, number: int) -> EvalConfig:
        """Return the settings of one of its evaluations."""
        return EvalConfig(**cast(Any, _tuples(self.evaluations[number])))

    def commands(self, cores: int = 0) -> list[list[str]]:
        """Return its command lines: the training, then each evaluation. Each may be given again.

        `cores` are what the threads of the one and the processes of the other are to be; 0: unsaid.
        """
        threads = {"threads": cores, "workers": cores} if cores else {}
        train = ["train", "--method", self.method_name, *words_of(self.train | threads)]
        lines = [[*train, *words_of(self.agent), "--go-on"]]
        workers = {"workers": cores} if cores else {}
        for evaluation in self.evaluations:
            lines.append(["eval", self.folder, *words_of(_tuples(evaluation) | workers)])
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Fields) -> Self:
        """Make a job of `to_json`'s values."""
        return cls(**{**values, "evaluations": tuple(values["evaluations"])})


def _tuples(values: Fields) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


class Variant(NamedTuple):
    """A method as a sweep names it."""

    label: str  # sorl, or sorl:sc_every=2,hidden=256
    method: str
    words: tuple[str, ...]  # its own settings, as flags

    @property
    def folder(self) -> str:
        """A name for the file system."""
        return self.label.replace(":", "-").replace(",", "-")


def variant_of(label: str) -> Variant:
    """Read NAME or NAME:FIELD=VALUE,...; BadInput says what is wrong with it."""
    name, colon, text = label.partition(":")
    find_method(name)
    words = []
    for part in text.split(",") if colon else ():
        field, equals, value = part.partition("=")
        ok = bool(equals and field.isidentifier() and value) and not set(value) & set("/\\ ")
        check(ok, "methods", label, "NAME or NAME:FIELD=VALUE,...", "Set --methods.")
        if value in ("true", "false"):
            words.append(f"--{'no-' * (value == 'false')}{field}".replace("_", "-"))
        else:
            words.append(f"--{field.replace('_', '-')}={value}")
    return Variant(label, name, tuple(words))


def groups_of(words: Sequence[str]) -> list[list[str]]:
    """Split a command line before each flag; BadInput if a word stands before the first."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append([word])
        elif groups:
            groups[-1].append(word)
        else:
            raise BadInput(
                f"{word!r} belongs to no flag; leave it out, or see `sorl-fast sweep --help`"
            )
    return groups


def _field_of(flag: str, config: type) -> bool:
    names = {field.name for field in dataclasses.fields(cast(Any, config))}
    word = flag.partition("=")[0].removeprefix("--").replace("-", "_")
    return word in names or word.removeprefix("no_") in names


def fields_of(variant: Variant, words: Sequence[str]) -> dict[str, Any]:
    """Return the method's fields among the flags of several methods, its own settings last."""
    config = find_method(variant.method).Config
    parser = argparse.ArgumentParser("sorl-fast sweep", allow_abbrev=False, add_help=False)
    add_flags(parser, config, variant.method)
    own = [word for group in groups_of(words) if _field_of(group[0], config) for word in group]
    for word in variant.words:
        if not _field_of(word, config):
            fields = ", ".join(field.name for field in dataclasses.fields(cast(Any, config)))
            raise BadInput(
                f"methods has {variant.label!r}, but {variant.method} has no field "
                f"{word.partition('=')[0].removeprefix('--').replace('-', '_')!r}. It has {fields}"
            )
    return given(parser.parse_args([*own, *variant.words]), config)


def check_words(words: Sequence[str], methods: Sequence[str]) -> None:
    """Raise BadInput for a flag that none of the methods has; one that some have is theirs alone."""
    for flag, *_ in groups_of(words):
        if any(_field_of(flag, find_method(name).Config) for name in methods):
            continue
        owners = [name for name in METHODS if _field_of(flag, find_method(name).Config)]
        name = flag.partition("=")[0]
        if not owners:
            configs = SweepConfig, TrainConfig, *(find_method(method).Config for method in methods)
            known = [
                f"--{f.name.replace('_', '-')}" for c in configs for f in dataclasses.fields(c)
            ]
            close = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {close[0]}?" if close else "see `sorl-fast sweep --help`"
            raise BadInput(f"{name} is no flag of a sweep, a run or a method: {remedy}")
        raise BadInput(
            f"{name} is a flag of {', '.join(owners)}, but this sweep trains {', '.join(methods)}. Leave "
            "it out, or add its method to --methods"
        )


def environments(sweep: SweepConfig) -> list[str]:
    """Return the environments of a sweep, whole names."""
    if Path(sweep.data).suffix == ".npz":
        check(sweep.tasks is None, "tasks", sweep.tasks, "left out with --data FILE.npz")
        return [*sweep.envs]
    whole = [env for env in sweep.envs if dataset_name(env) != env]
    if sweep.tasks is not None and whole:
        raise BadInput(
            f"tasks is {' '.join(sweep.tasks)}, but {whole[0]} names its task itself. Leave --tasks out, "
            "or name the environment without -singletask"
        )
    found = []
    for env in sweep.envs:
        family = env.removesuffix("-v0")
        tasks = [f"{family}-singletask-task{k}-v0" for k in sweep.task_numbers]
        found += [env] if env in whole else tasks
    check(len(set(found)) == len(found), "envs", " ".join(sweep.envs), "environments that differ")
    return found


def short_name(env: str) -> str:
    """Return cube-single-play-task2 of cube-single-play-singletask-task2-v0, for folders and tables."""
    name = env.removesuffix("-v0") if dataset_name(env) != env else env
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name.replace("-singletask", ""))


def make_jobs(sweep: SweepConfig, run: Fields, words: Sequence[str]) -> list[Job]:
    """Return the jobs of a sweep, by environment, method and seed.

    Parameters
    ----------
    sweep
        What it consists of.
    run
        Fields of `TrainConfig` that the user has given.
    words
        Flags of methods, applied to those of the sweep's methods that have them.

    Raises
    ------
    BadInput
        A value is out of its bounds, a flag belongs to no method of the sweep, or two cells would share
        a folder.
    """
    variants = [variant_of(label) for label in sweep.methods]
    check_words(words, list(dict.fromkeys(variant.method for variant in variants)))
    jobs = []
    for env in environments(sweep):
        simulated = dataset_name(env) != env and Path(sweep.data).suffix != ".npz"
        for variant in variants:
            fields = fields_of(variant, words)
            agent = method_config(variant.method, env, fields)
            evaluations = _evaluations(sweep, run, agent) if sweep.evaluate and simulated else ()
            for seed in sweep.seed_numbers:
                name = f"{short_name(env)}/{variant.folder}/seed{seed}"
                folder = absolute(Path(sweep.out) / name)
                train = _train(sweep, run, agent, env, seed, folder, simulated)
                jobs.append(Job(name, variant.label, env, folder, train, dict(fields), evaluations))
    names = [job.name for job in jobs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(
            f"two cells of the sweep would be {twice}: name methods and environments apart"
        )
    return jobs


def _train(
    sweep: SweepConfig,
    run: Fields,
    agent: MethodConfig,
    env: str,
    seed: int,
    folder: str,
    simulated: bool,
) -> dict[str, Any]:
    values: dict[str, Any] = {"env": env, "data": absolute(sweep.data), "out": folder, "seed": seed}
    values |= run
    if sweep.gpus and "device" not in run:
        values["device"] = "cuda"
    if not simulated:
        values.setdefault("eval_every", 0)
    if "eval_steps" in values:
        steps = _fitting(values["eval_steps"], agent)
        if steps:
            values["eval_steps"] = steps
        else:  # none is this method's: its own
            del values["eval_steps"]
    if "eval_candidates" in values and not has_critics(agent):
        values["eval_candidates"] = (1,)
    TrainConfig(**values)  # its bounds
    # the download is the sweep's: runs that start together would fetch the same file
    return {name: value for name, value in values.items() if name != "download"}


def _evaluations(
    sweep: SweepConfig, run: Fields, agent: MethodConfig
) -> tuple[dict[str, Any], ...]:
    """Return the fields of the evaluations of a method, with those steps and candidates that it has."""
    values: dict[str, Any] = {"episodes": sweep.episodes}
    if "eval_steps" in run and (steps := _fitting(run["eval_steps"], agent)):
        values["steps"] = steps
    if sweep.candidates is not None:
        values["candidates"] = sweep.candidates if has_critics(agent) else (1,)
    if sweep.rules is not None and has_critics(agent):
        values["rules"] = sweep.rules
    evaluations = [
        values if precision == "fp32" else values | {"precision": precision}
        for precision in sweep.precisions
    ]
    for evaluation in evaluations:
        EvalConfig(**cast(Any, evaluation))  # its bounds
    return tuple(evaluations)


def has_critics(agent: MethodConfig) -> bool:
    """Whether a method's policies can choose the best of several candidates."""
    return "critic" in method_of(agent).networks(1, 1)


def _fitting(steps: Sequence[int | str], agent: MethodConfig) -> tuple[int | str, ...]:
    """Return those steps that a method's policies act with."""
    found = []
    for M in steps:
        schedule = schedule_of(M, "eval_steps")
        try:
            check_fit(schedule, agent.finest, agent.train_steps)
        except BadInput:
            continue
        found.append(M)
    return tuple(found)


def check_data(jobs: Sequence[Job]) -> None:
    """Raise BadInput unless each data set of the jobs is there and whole, for every method."""
    seen = set()
    for job in jobs:
        next_actions = "next_actions" in find_method(job.method_name).fields
        chunk = job.config.chunk
        source = dataset_name(job.env), job.train["data"], next_actions, chunk
        if source not in seen:
            check_files(job.env, job.train["data"], next_actions=next_actions, chunk=chunk)
            seen.add(source)


def check_kept(job: Job) -> None:
    """Raise BadInput if a run that the job would go on with was begun with other settings."""
    folder = RunFolder(job.folder, ())
    saved = checkpoint_folders(folder.checkpoints)
    if not saved:
        return
    agent, train, _ = folder.read_config()
    new, config = method_config(job.method_name, job.env, job.agent), job.config
    for name, old, now in (
        ("method", agent.method, new.method),
        *(
            (f.name, getattr(agent, f.name), getattr(new, f.name, None))
            for f in dataclasses.fields(cast(Any, agent))
        ),
        *(
            (name, getattr(train, name), getattr(config, name))
            for name in ("env", "seed", "precision", "chunk")
        ),
    ):
        if old != now:
            raise BadInput(
                f"{name} was {old!r} in {job.folder}, but is {now!r} now. Use the old value, or choose "
                f"another --out; or name the new one apart: --methods {job.method_name} "
                f"{job.method_name}:{name}=VALUE"
            )
    made = int(saved[-1].name)
    if made > config.steps:
        raise BadInput(
            f"{job.folder} has made {made:,} updates, but --steps is {config.steps:,}. Give at least as "
            "many, or choose another --out"
        )
