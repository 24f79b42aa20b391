"""The methods, one file each; `METHODS` is the only list of them."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Any

from ...config import MethodConfig
from ...envs import find_preset, similar_task
from ...errors import BadInput
from ..method import Method

# name on the command line -> (module, class)
METHODS: dict[str, tuple[str, str]] = {
    "sorl": ("sorl", "Sorl"),
    "bc": ("bc", "Bc"),
    "iql": ("iql", "Iql"),
    "rebrac": ("rebrac", "Rebrac"),
    "ifql": ("ifql", "Ifql"),
    "fql": ("fql", "Fql"),
    "idql": ("idql", "Idql"),
}


def find_method(name: str) -> type[Method[Any]]:
    """Return the method of that name.

    Raises
    ------
    BadInput
        There is none.
    """
    if name not in METHODS:
        raise BadInput(f"method is {name!r}, but must be one of {', '.join(METHODS)}")
    module, cls = METHODS[name]
    found: type[Method[Any]] = getattr(import_module(f".{module}", __name__), cls)
    return found


def method_of(config: MethodConfig) -> Method[Any]:
    """Return the method that a config belongs to, with it."""
    return find_method(config.method)(config)


def method_config(method: str, env: str, given: Mapping[str, Any]) -> MethodConfig:
    """Return a method's preset of `env` with the fields in `given` replaced.

    Raises
    ------
    BadInput
        `env` has no preset and a field that has no default is not in `given`, or a value is out of
        its bounds.
    """
    config = find_method(method).Config
    preset = find_preset(env)
    values = ({} if preset is None else preset.settings(method)) | dict(given)
    for field in fields(config):  # type: ignore[arg-type]  # every subclass is a dataclass
        if field.default is MISSING and field.name not in values:
            flag = field.name.replace("_", "-")
            similar = similar_task(env)
            # with data of one's own any name is right, so that this is asked and not refused
            hint = ", so" if similar is None else f": did you mean {similar}? If not,"
            raise BadInput(
                f"environment {env!r} has no preset{hint} {field.name} must be given: add --{flag} "
                f"({field.metadata['hint']}). `sorl-fast envs` lists the environments that have "
                "presets"
            )
    return config(**values)
