"""The cores that this process may use, whatever OpenMP and a container make of them.

Clusters set OMP_PROC_BIND: OpenMP then pins the thread that loads it, so that `import torch` leaves its
thread on one core, which all threads and processes started from there inherit. A container's CPU quota,
on the other hand, shows in no affinity: more threads than it allows run until the kernel stops them all.
"""

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc/self")


def available_cores() -> int:
    """Return how many cores this process may keep busy: its affinity's, or fewer by a CPU quota."""
    return max(1, math.floor(min(len(usable_cores()), cpu_quota())))


def usable_cores() -> frozenset[int]:
    """Return the cores of this thread's affinity, or those that it had before OpenMP pinned it."""
    now = frozenset(os.sched_getaffinity(0))
    return _START if now < _START and _pinned_by_openmp() and now in (_openmps or {now}) else now


def unpin() -> None:
    """Give this thread back what OpenMP took from it, for threads and processes started from here.

    A pin that OpenMP did not make stays, and so do those of OpenMP's own threads.
    """
    cores = usable_cores()
    if cores != (now := os.sched_getaffinity(0)):
        _openmps.add(frozenset(now))
        with contextlib.suppress(OSError):  # cores that were taken away from the process since
            os.sched_setaffinity(0, cores)


def _pinned_by_openmp() -> bool:
    """Whether torch has loaded OpenMP and the environment makes that pin its threads."""
    if "torch" not in sys.modules:
        return False
    if bind := os.environ.get("OMP_PROC_BIND", "").strip():
        return bind.lower() != "false"
    return any(os.environ.get(name) for name in ("OMP_PLACES", "GOMP_CPU_AFFINITY"))


def _at_start() -> frozenset[int]:
    """Return this thread's cores; where torch was imported before us, also those OpenMP knows."""
    cores = set(os.sched_getaffinity(0))
    if _pinned_by_openmp():
        # without the library, or an old one without places, what is left is all that is known
        with contextlib.suppress(OSError, AttributeError):
            openmp = ctypes.CDLL(None)
            for place in range(openmp.omp_get_num_places()):
                found = (ctypes.c_int * openmp.omp_get_place_num_procs(place))()
                openmp.omp_get_place_proc_ids(place, found)
                cores.update(found)
    return frozenset(cores)


_START = _at_start()
_openmps: set[frozenset[int]] = set()  # what OpenMP left a thread with, once that has been undone


# --- the quota of a control group -----------------------------------------------------------------


def cpu_quota() -> float:
    """Return how many cores' time the control groups of this process allow; infinity: no limit.

    The tightest of the group and all above it that can be seen, in version 1 and version 2.
    """
    try:
        groups = [line.split(":", 2) for line in (PROC / "cgroup").read_text().splitlines()]
        mounts = (PROC / "mountinfo").read_text().splitlines()
    except OSError:
        return math.inf
    limits = [math.inf]
    for mount in mounts:
        place, _, kind = mount.partition(" - ")
        root, point = (name.replace("\\040", " ") for name in place.split()[3:5])
        match kind.split():
            case ["cgroup2", *_]:
                paths, limit = [path for _, names, path in groups if not names], _limit_v2
            case ["cgroup", *_, options] if "cpu" in options.split(","):
                paths = [path for _, names, path in groups if "cpu" in names.split(",")]
                limit = _limit_v1
            case _:
                continue
        for path in paths:
            limits += map(limit, _folders(Path(point), root, path))
    return min(limits)


def _folders(point: Path, root: str, path: str) -> Iterator[Path]:
    """Yield the folders of a group and of those above it; `point` shows the hierarchy from `root` on."""
    inside = os.path.relpath(path, root)
    folder = point if inside.startswith("..") else point / inside
    yield folder
    while folder != point:
        folder = folder.parent
        yield folder


def _limit_v2(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return _ratio(-1 if quota == "max" else int(quota), int(period))
    return math.inf


def _limit_v1(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        return _ratio(quota, period)
    return math.inf


def _ratio(quota: int, period: int) -> float:
    return quota / period if quota > 0 and period > 0 else math.inf
