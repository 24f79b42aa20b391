"""Dataclasses of options as flags of a command line, and back."""

import argparse
import dataclasses
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import BadInput


def flag_of(name: str) -> str:
    """Return the flag of a field: --eval-steps of eval_steps."""
    return "--" + name.replace("_", "-")


def flags_of(config: Any) -> list[str]:
    """Return the flags of a dataclass of options."""
    return [flag_of(field.name) for field in dataclasses.fields(config)]


def _add_flag(
    parser: argparse._ActionsContainer, field: "dataclasses.Field[Any]", hint: Any
) -> None:
    """Add one dataclass field as a flag; a flag not given stays out of the parsed values."""
    options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    required = field.default is dataclasses.MISSING
    text = field.metadata["help"].replace("%", "%%")
    if not required:
        shown = (
            " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        )
        text += f" (default: {shown})"
    options["help"] = text
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(hint) is Literal:
        options["choices"] = get_args(hint)
    elif get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        kind = _number_or_text if get_origin(kind) is types.UnionType else kind
        metavar = field.name[0].upper()
        if field.metadata["path"]:
            kind, metavar = path_argument, "FILE"
        options |= {"type": kind, "nargs": "+", "metavar": metavar}
    else:
        kind = path_argument if field.metadata["path"] else hint
        options |= {"type": kind, "metavar": field.name.upper()}
    parser.add_argument(flag_of(field.name), **options)


def _number_or_text(text: str) -> int | str:
    """Return M of "4", and leave the sizes of steps, such as "1/2,1/4,1/4", to be read later."""
    try:
        return int(text)
    except ValueError:
        return text


def add_flags(
    parser: argparse.ArgumentParser, config: type, title: str, skip: Collection[str] = ()
) -> None:
    """Add every field of a dataclass of options as a flag, but those that `skip` names.

    One that is not given leaves no value.
    """
    group = parser.add_argument_group(title)
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name in skip:
            continue
        hint = hints[field.name]
        if get_origin(hint) in (Union, types.UnionType):
            hint = next(h for h in get_args(hint) if h is not type(None))
        _add_flag(group, field, hint)


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Add --no-progress, of a command that shows how far it is."""
    parser.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="show no progress on standard error (a bar at a terminal, else a line now and then)",
    )


def given(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """Return the flags of `config` that were on the command line; lists become tuples."""
    values = {f.name: getattr(args, f.name) for f in dataclasses.fields(config) if f.name in args}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def make(config: type, values: dict[str, Any]) -> Any:
    """Return the dataclass of options; BadInput names a field that must be given and is not."""
    for field in dataclasses.fields(config):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise BadInput(f"{flag_of(field.name)} is missing: {field.metadata['help']}")
    return config(**values)


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Return the command line that gives these values, by the fields' names."""
    words: list[str] = []
    for name, value in values.items():
        flag = flag_of(name)
        if isinstance(value, bool):
            words.append(flag if value else flag_of(f"no_{name}"))
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words.append(f"{flag}={value}" if str(value).startswith("-") else flag)
            words += [] if str(value).startswith("-") else [str(value)]
    return words


def path_argument(text: str) -> str:
    """Return a path given to any command, `~` and `~user` expanded: a shell leaves --out=~/x as it is."""
    try:  # not of "", which would become the folder that we are in
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} begins with ~, but there is no such home folder; write ./{text} for a file or "
            "folder of that name"
        ) from None
