"""How much faster do two processes collect than one? `sorl-bench collect`."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sorl_fast.config import CollectConfig
from sorl_fast.cores import available_cores
from sorl_fast.data.collect import CollectReport, collect
from sorl_fast.machine import cpu_model


def run(argv: Sequence[str]) -> int:
    """Collect the same data set with one and with two workers; print steps a second and the ratio.

    The times are those of the whole command: start of the processes, simulation, writing of the
    files. The two results must be equal files, or nothing is reported.

    Parameters
    ----------
    argv
        The command line after `sorl-bench collect`.

    Returns
    -------
    int
        0, or 1 if the results differ.
    """
    parser = argparse.ArgumentParser(prog="sorl-bench collect", description=__doc__)
    parser.add_argument("--env", default="cube-single-play-v0", help="data set to collect")
    parser.add_argument("--episodes", type=int, default=50, help="training episodes")
    parser.add_argument("--seed", type=int, default=0, help="the collection's seed")
    args = parser.parse_args(argv)

    print(
        f"{cpu_model()}, {available_cores()} cores for this process, load {os.getloadavg()[0]:.2f} "
        "before the start (should be near 0)"
    )
    reports: dict[int, CollectReport] = {}
    with tempfile.TemporaryDirectory(prefix="sorl-bench-") as folder:
        for workers in (1, 2):
            config = CollectConfig(
                env=args.env,
                out=str(Path(folder) / str(workers)),
                episodes=args.episodes,
                seed=args.seed,
                workers=workers,
            )
            reports[workers] = report = collect(config)
            print(
                f"workers {workers}: {report.steps} steps in {report.seconds:.1f} s, "
                f"{report.steps / report.seconds:.0f} steps/s; load {os.getloadavg()[0]:.2f}"
            )
        one, two = reports[1], reports[2]
        if one.train_path.read_bytes() != two.train_path.read_bytes():
            print("the two collections differ, so their times mean nothing")
            return 1
    print(f"2 workers are {one.seconds / two.seconds:.2f} times as fast as 1")
    return 0
