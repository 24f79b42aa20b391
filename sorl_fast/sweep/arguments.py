"""A sweep's command line and its file; needs no torch, so that every command may know of it."""

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path

from ..config import TrainConfig
from ..errors import BadInput
from ..flags import add_flags, flag_of, path_argument
from .settings import OWN_OF_TRAINING, SweepConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every sweep has; those of the methods are read with the methods known."""
    parser.add_argument(
        "--file",
        metavar="FILE",
        type=path_argument,
        help="a TOML file of flags: methods = [...], steps = 60000, hidden = 256, ...; those of the "
        "command line win",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="print what would run, a line a run that is not done: for job arrays and xargs "
        "(docs/sweep.md)",
    )
    add_flags(parser, SweepConfig, "sweep")
    title = "each run (as `sorl-fast train` has them; --eval-steps also for the evaluation when trained)"
    add_flags(parser, TrainConfig, title, skip=OWN_OF_TRAINING)
    parser.epilog = (
        "And any flag of the methods (`sorl-fast methods`): it applies to those of --methods that have it, "
        "and is refused where none has it."
    )


def words_of_file(path: str) -> list[str]:
    """Return a TOML file's keys and values as a command line.

    Raises
    ------
    BadInput
        It cannot be read, or a value is no number, text, truth value or list of such.
    """
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise BadInput(
            f"--file {path} cannot be read: {err}. Write flags as TOML, steps = 60000"
        ) from err
    words: list[str] = []
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        plain = all(isinstance(item, int | float | str) for item in items)
        if not plain or (isinstance(value, list) and any(isinstance(x, bool) for x in value)):
            raise BadInput(
                f"{name} in {path} is {value!r}, but must be a number, text, true or false, or a list of "
                "numbers or texts. Write it as the flag takes it"
            )
        if isinstance(value, bool):
            words.append(flag_of(name) if value else flag_of(f"no_{name}"))
        else:
            words += [flag_of(name), *map(str, items)]
    return words


def read(
    argv: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[argparse.Namespace, list[str]]:
    """Parse a sweep's command line, its file first; return also the words that are the methods'."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--file", type=path_argument)
    file = early.parse_known_args(argv[1:])[0].file
    words = [] if file is None else words_of_file(file)
    args, rest = parser.parse_known_args([argv[0], *words, *argv[1:]])
    return args, rest
