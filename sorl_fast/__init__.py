"""sorl-fast: train any-step shortcut policies for offline RL, and run them in a control loop.

The public names are loaded on first use, so that a robot pays for none of what training needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import cores as _cores  # noqa: F401 - sees the affinity before torch can change it
from .errors import BadInput, Diverged, Stopped
from .version import __version__

if TYPE_CHECKING:
    from .act.policy_file import Policy
    from .act.sampler import Sampler
    from .config import AgentConfig, TrainConfig

_LAZY = {
    "AgentConfig": "config",
    "Policy": "act.policy_file",
    "Sampler": "act.sampler",
    "TrainConfig": "config",
}

__all__ = [
    "AgentConfig",
    "BadInput",
    "Diverged",
    "Policy",
    "Sampler",
    "Stopped",
    "TrainConfig",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
