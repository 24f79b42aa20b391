"""The version of sorl-fast, and of what its results depend on."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of sorl-fast, of Python and of those of `packages` that are installed."""
    found = {"sorl_fast": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
