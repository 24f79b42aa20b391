"""What a sweep is asked for: its flags, beside those of a training and of the methods."""

from dataclasses import dataclass
from typing import Literal, get_args

from ..config import check, check_list, option
from ..errors import BadInput

Engine = Literal["local", "ray"]
TASKS = (1, 2, 3, 4, 5)  # of every environment of OGBench

# fields of a training that a sweep sets for each run, or has flags of its own for
OWN_OF_TRAINING = ("env", "data", "out", "seed", "workers", "threads")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The cells of a sweep, how each is evaluated, and where all of that runs."""

    # fmt: off
    methods: tuple[str, ...] = option(help="methods, as `sorl-fast methods` names them; NAME:FIELD=VALUE,... is one with settings of its own, a column of the study beside NAME")
    envs: tuple[str, ...] = option(help="environments such as cube-single-play, of each the --tasks; or whole names such as cube-single-play-singletask-task2-v0, or any one name for --data FILE.npz")
    tasks: tuple[str, ...] | None = option(None, help="tasks of each environment: numbers and ranges such as 1-5 or 2 4; left out: all five")
    seeds: tuple[str, ...] = option(("0",), help="seeds: numbers and ranges such as 0-7")
    data: str = option(help="folder of OGBench files, or one .npz of your own transitions: the same for every run", path=True)
    out: str = option(help="the sweep's folder; a run stands in OUT/ENV/METHOD/seedS", path=True)
    evaluate: bool = option(True, help="evaluate each run when it is trained; not done where nothing simulates the environment")
    candidates: tuple[int, ...] | None = option(None, help="candidates N of that evaluation; a method without critics has 1 alone; left out: as `sorl-fast eval` has them")
    rules: tuple[str, ...] | None = option(None, help="rules of choosing among N > 1 candidates in that evaluation (see eval --rules)")
    episodes: int = option(50, help="episodes a cell of that evaluation")
    precisions: tuple[str, ...] = option(("fp32",), help="sampler precisions to evaluate in, one after the other: fp32, bf16, int8")
    engine: Engine = option("local", help="where runs are made: local, on this machine, or ray, on a cluster of Ray")
    address: str = option("auto", help="of the Ray cluster; auto: the one that this machine belongs to; local: one of this machine, for the sweep's time")
    jobs: int = option(0, help="runs at a time; 0: as many as the cores, and the GPUs if any, allow (of a Ray cluster: as it has room for)")
    threads: int = option(0, help="cores of a run, its threads and the processes of its evaluations; 0: an equal share")
    gpus: int = option(0, help="GPUs of this machine to train on, which sets --device cuda; 0: none, or with --device cuda all of them (of a Ray cluster: whatever number above 0)")
    jobs_per_gpu: int = option(1, help="runs that share a GPU")
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("data", "out"):
            check(bool(getattr(self, name)), name, getattr(self, name), "given")
        for name in ("methods", "envs", "seeds", "precisions"):
            value = getattr(self, name)
            check(len(value) > 0 and all(value), name, value, "one or more")
            check(len(set(value)) == len(value), name, value, "a list that has each once")
        for name in ("candidates", "rules"):
            value = getattr(self, name)
            if value is not None:
                check_list(name, value)
        for name in ("episodes", "jobs_per_gpu"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "an integer of at least 1")
        for name in ("jobs", "threads", "gpus"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 0, name, value, "an integer of at least 0")
        check(self.engine in get_args(Engine), "engine", self.engine, "local or ray")
        for task in self.task_numbers:
            check(task in TASKS, "tasks", task, "from 1 to 5")
        numbers("seeds", self.seeds)

    @property
    def task_numbers(self) -> tuple[int, ...]:
        """The tasks of each environment."""
        return TASKS if self.tasks is None else numbers("tasks", self.tasks)

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seeds of each setting."""
        return numbers("seeds", self.seeds)


def numbers(name: str, words: tuple[str, ...]) -> tuple[int, ...]:
    """Return the numbers of words such as 0-7, 9 or 1,3; each once, in the order given.

    Raises
    ------
    BadInput
        A word is none of these, a range runs backwards or has more than 10,000, or a number comes twice.
    """
    found: list[int] = []
    for word in (part for text in words for part in str(text).split(",")):
        first, dash, last = word.partition("-")
        ok = (
            first.isascii()
            and first.isdigit()
            and (not dash or (last.isascii() and last.isdigit()))
        )
        if not ok or len(word) > 40:
            raise BadInput(
                f"{name} has {word!r}, but must be numbers and ranges such as 0 2 or 0-7. Set --{name}"
            )
        low, high = int(first), int(last) if dash else int(first)
        check(0 <= high - low < 10_000, name, word, "a range upwards of at most 10,000 numbers")
        found += range(low, high + 1)
    check(len(set(found)) == len(found), name, " ".join(words), "numbers that come once each")
    return tuple(found)
