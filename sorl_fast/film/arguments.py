"""The command line of `sorl-fast film`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..flags import add_flags, given, make, path_argument
from .settings import FilmConfig


def add_film(
    commands: Any, policy_path: Callable[[str], tuple[Path, Path | None]]
) -> argparse.ArgumentParser:
    """Add the command to a parser's; `policy_path` finds RUN's policy file and, if it is one, folder."""
    sub: argparse.ArgumentParser = commands.add_parser(
        "film",
        help="a film of a policy's episodes, successes and failures side by side",
        description="Render seeded episodes off screen, the same that `sorl-fast eval` counts, with M, N, "
        "the rule and what becomes of each in the picture. A run's folder also gets film-strip.png, which "
        "`sorl-fast report` shows. It needs no display, but a library that renders without one.",
    )
    sub.add_argument(
        "run", metavar="RUN", type=path_argument, help="a run's folder or a policy file"
    )
    sub.add_argument(
        "--out",
        metavar="FILE",
        type=path_argument,
        help="a .gif, or where ffmpeg is installed an .mp4 (default: film.gif in the run's folder)",
    )
    add_flags(sub, FilmConfig, "film")

    def run(args: argparse.Namespace) -> int:
        config = make(FilmConfig, given(args, FilmConfig))
        try:
            from .command import film
        except ModuleNotFoundError as err:
            raise BadInput(f"{err.name} is not installed: pip install 'sorl-fast[film]'") from err
        print(film(*policy_path(args.run), args.out, config, progress=args.progress))
        return 0

    sub.set_defaults(run_command=run)
    return sub
