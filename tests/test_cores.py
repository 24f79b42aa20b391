"""How many cores there are: OpenMP's pins undone, control groups obeyed."""

import json
import math
import os
import subprocess
import sys

import pytest

from sorl_fast import cores
from sorl_fast.simulate.workers import worker_environment

ALL = sorted(os.sched_getaffinity(0))


@pytest.fixture
def one_core():
    """Somebody has pinned this thread, who is not OpenMP."""
    os.sched_setaffinity(0, ALL[:1])
    yield
    os.sched_setaffinity(0, ALL)


def run(code, **environment):
    """What `show` was given in a process of its own."""
    lines = "import os, json\nshow = lambda x: print(json.dumps(sorted(x)))\n" + code
    done = subprocess.run(
        [sys.executable, "-c", lines],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(len(ALL) < 2, reason="one core is one core")
@pytest.mark.parametrize(
    "variable",
    [{"OMP_PROC_BIND": "true"}, {"OMP_PLACES": "cores"}, {"GOMP_CPU_AFFINITY": f"{ALL[0]}"}],
    ids=lambda v: next(iter(v)),
)
def test_what_openmp_pins_is_given_back(variable):
    pinned, usable, after = run(
        "import sorl_fast, torch\n"
        "show(os.sched_getaffinity(0))\n"
        "from sorl_fast import cores\n"
        "show(cores.usable_cores())\n"
        "import sorl_fast.ops\n"
        "show(os.sched_getaffinity(0))\n",
        **variable,
    )
    assert len(pinned) == 1
    assert usable == after == ALL


@pytest.mark.slow
@pytest.mark.skipif(len(ALL) < 2, reason="one core is one core")
def test_torch_may_be_imported_first():
    pinned, after = run(
        "import torch\n"
        "show(os.sched_getaffinity(0))\n"
        "from sorl_fast import cores\n"
        "cores.unpin()\n"
        "show(os.sched_getaffinity(0))\n",
        OMP_PROC_BIND="close",
    )
    assert len(pinned) == 1
    assert after == ALL


@pytest.mark.slow
def test_a_worker_is_bound_nowhere(monkeypatch):
    for name, value in {"OMP_PROC_BIND": "true", "OMP_NUM_THREADS": "7", "MUJOCO_GL": "x"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with worker_environment():
        free, settings = run(
            "import torch\nshow(os.sched_getaffinity(0))\n"
            "show([os.environ['OMP_NUM_THREADS'], os.environ['MUJOCO_GL']])"
        )
    assert free == ALL
    assert settings == ["1", "disable"]
    assert dict(os.environ) == before


def test_anybody_elses_pin_stays(one_core, monkeypatch):
    import torch  # noqa: F401

    for name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"):
        monkeypatch.delenv(name, raising=False)
    cores.unpin()
    assert sorted(os.sched_getaffinity(0)) == ALL[:1]
    monkeypatch.setenv("OMP_PROC_BIND", "False")
    monkeypatch.setenv("OMP_PLACES", "cores")
    cores.unpin()
    assert cores.available_cores() == 1


@pytest.mark.slow
@pytest.mark.skipif(len(ALL) < 2, reason="one core")
def test_a_pin_made_after_openmps_was_undone_stays(monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    before, after = run(
        "import torch, sorl_fast.ops\nfrom sorl_fast.cores import unpin\nshow(os.sched_getaffinity(0))\n"
        f"os.sched_setaffinity(0, {{{ALL[-1]}}})\nunpin()\nshow(os.sched_getaffinity(0))"
    )
    assert before == ALL
    assert after == ALL[-1:]


# --- control groups


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A function that makes this process a member of a group: its path, what is mounted, its files."""
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr(cores, "PROC", tmp_path / "proc")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(64)))

    def make(membership, mount, files, root="/"):
        point = tmp_path / "a folder"
        for name, text in files.items():
            (point / name).parent.mkdir(parents=True, exist_ok=True)
            (point / name).write_text(text)
        (tmp_path / "proc" / "cgroup").write_text(membership)
        shown = str(point).replace(" ", "\\040")
        (tmp_path / "proc" / "mountinfo").write_text(
            f"22 1 8:1 / / rw - ext4 /dev/sda rw\n31 22 0:27 {root} {shown} rw,nosuid {mount}\n"
        )

    return make


V2 = "shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "- cgroup cgroup rw,cpu,cpuacct"
V1_MEMBER = "5:memory:/else\n4:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/\n"


def v1(quota, period=100_000, folder=""):
    return {f"{folder}cpu.cfs_quota_us": f"{quota}\n", f"{folder}cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("membership", "mount", "files", "root", "quota", "whole"),
    [
        ("0::/a/b\n", V2, {"a/b/cpu.max": "300000 100000\n"}, "/", 3, 3),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "max 100000\n"}, "/", math.inf, 64),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, "/", 2.5, 2),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "900000 100000\n"}, "/", 4, 4),
        ("0::/\n", V2, {"cpu.max": "50000 100000\n"}, "/", 0.5, 1),  # a container's own name space
        ("0::/../x\n", V2, {"cpu.max": "200000 100000\n"}, "/", 2, 2),  # outside of what is mounted
        ("0::/a/b\n", V2, {"a/b/cpu.max": "what?\n"}, "/", math.inf, 64),
        ("0::/a/b\n", V2, {}, "/", math.inf, 64),
        (V1_MEMBER, V1, v1(200_000, folder="a/b/"), "/", 2, 2),
        (V1_MEMBER, V1, v1(-1, folder="a/b/") | v1(150_000, 50_000, "a/"), "/", 3, 3),
        (V1_MEMBER, V1, v1(-1), "/", math.inf, 64),
        (V1_MEMBER, V1, v1(600_000), "/a/b", 6, 6),  # a container sees its own group as the root
        (V1_MEMBER, "- cgroup cgroup rw,memory", v1(100_000), "/", math.inf, 64),
        (V1_MEMBER, V2, {"cpu.max": "100000 100000\n"}, "/", 1, 1),
    ],
)  # fmt: skip
def test_a_quota_is_obeyed(group, membership, mount, files, root, quota, whole):
    group(membership, mount, files, root)
    assert cores.cpu_quota() == quota
    assert cores.available_cores() == whole


def test_no_control_groups_at_all(group):
    assert cores.cpu_quota() == math.inf
    assert cores.available_cores() == 64
