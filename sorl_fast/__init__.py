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
    from .config import TrainConfig
    from .learn.algorithms.sorl import SorlConfig
    from .learn.algorithms.sorl import SorlConfig as AgentConfig

_LAZY = {
    "AgentConfig": "learn.algorithms.sorl:SorlConfig",  # its name before there were other methods
    "Policy": "act.policy_file",
    "Sampler": "act.sampler",
    "SorlConfig": "learn.algorithms.sorl",
    "TrainConfig": "config",
}

__all__ = [
    "AgentConfig",
    "BadInput",
    "Diverged",
    "Policy",
    "Sampler",
    "SorlConfig",
    "Stopped",
    "TrainConfig",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, _, attribute = _LAZY[name].partition(":")
        return getattr(import_module(f".{module}", __name__), attribute or name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
