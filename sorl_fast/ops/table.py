"""Which implementation of each operation a GPU uses: what `selfcheck` found, kept in a file.

The dispatch table is JSON in the user's cache folder (XDG_CACHE_HOME, or ~/.cache), one file for each
GPU, driver and set of versions. A table that is damaged, or was made by anything else, is not read: it
is made anew. An operation that the table does not know is checked on first use, with the others of its
network: a few minutes, most of them the compiler's.
An implementation that failed its check is never used, and a warning says so once in each process.
"""

import contextlib
import functools
import hashlib
import importlib
import json
import logging
import math
import os
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..atomic import write_bytes
from ..errors import BadInput
from ..layout import Layout
from ..version import __version__
from . import selfcheck
from .implementations import (
    DEFAULT,
    NAMES,
    OPERATIONS,
    PRECISIONS,
    SCHEDULED,
    Network,
    Task,
    tasks,
)
from .selfcheck import STATUSES, Result

FORMAT = 1

Entries = dict[str, dict[str, Result]]  # name of a task -> implementation -> result

_log = logging.getLogger(__name__)


def driver() -> str:
    """Return the GPU driver's version, or unknown."""
    for path in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        with contextlib.suppress(OSError):
            return Path(path).read_text().splitlines()[0].strip()
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return answer.stdout.splitlines()[0].strip()
    return "unknown"


@functools.cache
def _source_digest() -> str:
    """Return a digest of the sources that a table judges: kernels and operations."""
    digest = hashlib.sha256()
    folders = [Path(__file__).parent]
    with contextlib.suppress(ImportError):
        from .. import kernels

        folders.append(Path(str(kernels.__file__)).parent)
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def key(device: torch.device) -> dict[str, str]:
    """Return what a table is valid for: the device, its driver and the versions of the software."""
    try:
        triton = importlib.import_module("triton").__version__  # ROCm's comes under another name
    except ImportError:
        triton = "none"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = f"{properties.name}, {properties.total_memory} bytes"
    else:
        gpu = device.type
    return {
        "gpu": gpu,
        "driver": driver() if device.type == "cuda" else "none",
        "torch": torch.__version__,
        "triton": triton,
        "sorl_fast": __version__,
        "source": _source_digest(),
    }


def cache_folder() -> Path | None:
    """Return the folder that tables are kept in, or None if the user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if given and Path(given).is_absolute():  # the standard says to ignore a relative one
        return Path(given) / "sorl-fast"
    try:
        return Path.home() / ".cache" / "sorl-fast"
    except RuntimeError:
        return None


def table_path(device: torch.device) -> Path | None:
    """Return the file of this device's table, whether it is there or not."""
    folder = cache_folder()
    digest = hashlib.sha256(json.dumps(key(device), sort_keys=True).encode()).hexdigest()
    return None if folder is None else folder / f"dispatch-{digest[:16]}.json"


def _read_times(value: Any) -> dict[int, float]:
    times = {int(rows): float(us) for rows, us in value.items()}
    if not all(rows > 0 and math.isfinite(us) and us > 0 for rows, us in times.items()):
        raise ValueError("a time that is no time")
    return times


def parse(data: bytes, wanted: Mapping[str, str]) -> Entries:
    """Return the entries of a table that was made for the key `wanted`.

    Raises
    ------
    ValueError
        The bytes are no such table, or one for something else.
    """
    try:
        content = json.loads(data)
        if content["format"] != FORMAT or content["key"] != dict(wanted):
            raise ValueError("made for something else")
        entries: Entries = {}
        for name, implementations in content["entries"].items():
            if not set(implementations) <= set(NAMES):
                raise ValueError(f"unknown implementation in {name}")
            entries[name] = {
                implementation: Result(
                    status=STATUSES[STATUSES.index(found["status"])],
                    reason=str(found["reason"]),
                    forward=_read_times(found["forward"]),
                    backward=_read_times(found["backward"]),
                )
                for implementation, found in implementations.items()
            }
    except (KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError) as err:
        raise ValueError(f"damaged: {err!r}") from err
    return entries


def dump(entries: Entries, made_for: Mapping[str, str]) -> bytes:
    """Return the bytes that `parse` reads."""
    content = {
        "format": FORMAT,
        "key": dict(made_for),
        "entries": {
            name: {
                implementation: result._asdict()
                for implementation, result in implementations.items()
            }
            for name, implementations in entries.items()
        },
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def load(device: torch.device) -> Entries:
    """Return the entries of the device's table; none if there is no good one."""
    path = table_path(device)
    if path is None:
        return {}
    try:
        return parse(path.read_bytes(), key(device))
    except (OSError, ValueError):
        return {}


def save(device: torch.device, entries: Entries) -> Path | None:
    """Add entries to the device's table, whole or not at all; return the file.

    What could not be checked this time is left out, so that it is tried again.

    Raises
    ------
    BadInput
        The folder cannot be written.
    """
    path = table_path(device)
    if path is None:
        raise BadInput("there is no home folder to keep it in. Set XDG_CACHE_HOME to a folder")
    lasting = {
        name: implementations
        for name, implementations in entries.items()
        if all(result.status != "unchecked" for result in implementations.values())
    }
    write_bytes(path, dump(load(device) | lasting, key(device)))
    return path


class Chooser:
    """The table of one device at work.

    Parameters
    ----------
    device
        The device that operations run on.
    examine
        What examines tasks; a test gives its own.
    """

    def __init__(
        self, device: torch.device, examine: Callable[..., Entries] = selfcheck.examine
    ) -> None:
        self._device = device
        self._examine = examine
        self._entries = load(device)
        self._said: set[str] = set()
        self._memory: dict[tuple[Any, ...], str] = {}

    def choice(
        self, operation: str, precision: str, sizes: Layout | None, rows: int, *, grad: bool = False
    ) -> str:
        """See the module's `choice`."""
        memory = (operation, precision, sizes, rows, grad)
        if memory not in self._memory:
            if len(self._memory) > 4096:
                self._memory.clear()
            self._memory[memory] = self._decide(operation, precision, sizes, rows, grad)
        return self._memory[memory]

    def _decide(
        self, operation: str, precision: str, sizes: Layout | None, rows: int, grad: bool
    ) -> str:
        if operation not in OPERATIONS:
            raise BadInput(
                f"operation is {operation!r}, but must be one of {', '.join(OPERATIONS)}"
            )
        if precision not in PRECISIONS:
            raise BadInput(
                f"precision is {precision!r}, but must be one of {', '.join(PRECISIONS)}"
            )
        network = _network(sizes)
        task = Task(operation, precision, network)
        if task.name not in self._entries:
            # no other operation runs a network without action, and few policies have a schedule
            others = [t for t in tasks(network, (precision,)) if t.operation != SCHEDULED]
            self._fill([task, *others] if network.act else [task])
        implementations = self._entries.get(task.name, {})
        for implementation, result in implementations.items():
            if result.status != "ok":
                self._say(
                    f"{task.name} {implementation}",
                    f"sorl-fast does not use its {implementation} form of {task.name} on "
                    f"{key(self._device)['gpu']}, but the {best(implementations, rows, grad=grad)} form. "
                    f"The {implementation} form {_SAID[result.status]}: {result.reason}. "
                    "`sorl-fast doctor` checks again",
                )
        return best(implementations, rows, grad=grad)

    def _fill(self, wanted: Sequence[Task]) -> None:
        """Examine what is not known yet. A network's other operations are about to be used too."""
        new = {task.name: task for task in wanted if task.name not in self._entries}
        _log.warning(
            "first use on this GPU: checking and timing %d operations, once; a few minutes at most",
            len(new),
        )
        found = self._examine(list(new.values()), self._device)
        self._entries |= found
        try:
            save(self._device, found)
        except BadInput as err:
            self._say("", f"the GPU's dispatch table is made anew in every process: {err}")

    def _say(self, name: str, text: str) -> None:
        """Warn, once."""
        if name not in self._said:
            self._said.add(name)
            warnings.warn(text, RuntimeWarning, stacklevel=6)


_SAID = {
    "disagrees": "disagrees with the definition",
    "failed": "failed",
    "crashed": "crashed",
    "hung": "hung",
    "unchecked": "could not be checked",
}


def best(implementations: Mapping[str, Result], rows: int, *, grad: bool = False) -> str:
    """Return the fastest implementation that passed its check, by the measured row count nearest to `rows`.

    Those without a time at that count come after those that have one, in the order of NAMES; the
    reference is what remains when none passed.
    """
    passed = {
        implementation: implementations[implementation]
        for implementation in NAMES
        if implementation in implementations and implementations[implementation].status == "ok"
    }
    times = {
        implementation: r.backward if grad else r.forward for implementation, r in passed.items()
    }
    counts = {count for measured in times.values() for count in measured}
    if not counts:
        return next(iter(passed), "reference")
    nearest = min(counts, key=lambda count: abs(math.log(count / max(rows, 1))))
    return min(times, key=lambda implementation: times[implementation].get(nearest, math.inf))


def _network(sizes: Layout | None) -> Network:
    if sizes is None:  # an operation of no network
        return DEFAULT
    members = sizes.members if sizes.norm else DEFAULT.members
    return Network(sizes.obs, sizes.act, sizes.hidden, sizes.depth, members)


_choosers: dict[torch.device, Chooser] = {}


def choice(
    operation: str,
    precision: str,
    sizes: Layout | None,
    rows: int,
    *,
    grad: bool = False,
    device: torch.device | None = None,
) -> str:
    """Return the implementation, fused, chain or reference, that an operation takes on a GPU.

    Parameters
    ----------
    operation
        velocity, rollout, critic_ensemble, best_of_n, best_of_n_scheduled, adam_ema_step, normals or
        words.
    precision
        fp32, tf32, fp16 or bf16. The last three operations have one, whatever is given.
    sizes
        The actor's or the critic's, and the critic's, where there is one, for both of best_of_n. None
        for the last three operations.
    rows
        Rows: B, or B N for best_of_n; for the last three the number of results or parameters.
    grad
        Whether the operation will be differentiated.
    device
        The GPU; None: the current one.

    Raises
    ------
    BadInput
        The operation or the precision is unknown.
    """
    if device is None or (device.type == "cuda" and device.index is None):
        device = torch.device("cuda", torch.cuda.current_device())
    chooser = _choosers.get(device)
    if chooser is None:
        chooser = _choosers[device] = Chooser(device)
    return chooser.choice(operation, precision, sizes, rows, grad=grad)
