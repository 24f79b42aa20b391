"""The command line of `sorl-fast diagnose`."""

import argparse
from dataclasses import dataclass

from ..config import check, option
from ..flags import add_flags, add_progress, path_argument


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig:
    """What is examined, and how much of it."""

    # fmt: off
    data: str | None = option(None, help="folder of OGBench files, or one .npz of your own; left out: the run's own", path=True)
    steps: str | None = option(None, help="M, or step sizes such as 1/2,1/4,1/4, that candidates are made with; left out: the policy's own choice where its file has one, or else the most that it was trained for")
    candidates: int = option(32, help="candidates N of best-of-N")
    episodes: int = option(20, help="episodes of each way to act, in the simulator; 0: none")
    branches: int = option(8, help="states of these episodes from which 8 candidates each are tried, to the episode's end; 0: none")
    observations: int = option(256, help="observations at which the candidates are looked at, and validation observations of the errors")
    samples: int = option(64, help="actions of each set that a 2-Wasserstein distance compares")
    seed: int = option(0, help="seeds the episodes, the noise and the choice of observations")
    workers: int = option(2, help="processes, each with its own simulator")
    # fmt: on

    def __post_init__(self) -> None:
        none = ("episodes", "branches")  # may be 0
        for name in (*none, "workers", "candidates", "observations", "samples"):
            value, low = getattr(self, name), 0 if name in none else 1 if name == "workers" else 2
            whole = isinstance(value, int) and low <= value < 2**20
            check(whole, name, value, f"an integer from {low} to {2**20 - 1}")
        ok = isinstance(self.seed, int) and 0 <= self.seed < 2**32
        check(ok, "seed", self.seed, "in [0, 2^32)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("run", metavar="RUN", type=path_argument, help="a run's folder")
    add_progress(parser)
    add_flags(parser, DiagnoseConfig, "diagnosis")
