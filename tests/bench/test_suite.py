"""The suite of `make bench`: it runs, saves and compares there, and nowhere else."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_pytest(*arguments):
    """What a command line would do, though this test runs under pytest, and perhaps under xdist."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def made_by(target):
    """The arguments of pytest in a target of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    (line,) = re.findall(rf"^{target}:.*\n(?:\t[^\n]*\n)*?\t.*-m pytest(.*)$", text, re.MULTILINE)
    return line.split()


def test_make_test_does_not_collect_it():
    assert not [word for word in made_by("test") if (ROOT / word).exists()]  # so it takes testpaths
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    assert settings["ini_options"]["testpaths"] == ["tests"]


@pytest.mark.slow
def test_it_runs_saves_and_compares_as_make_bench_runs_it(tmp_path):
    pytest.importorskip("pytest_benchmark")
    arguments = [a for a in made_by("bench") if a != "$(ARGS)"]
    assert "bench/suite" in arguments
    storage = f"--benchmark-storage=file://{tmp_path}"
    some = [*arguments, storage, "-q", "--benchmark-max-time=0.01", "-k", "M8-N1-int8-1T or load"]
    done = run_pytest(*some)
    assert done.returncode == 0, done.stdout[-2000:]
    (saved,) = tmp_path.rglob("*.json")
    found = json.loads(saved.read_text())
    assert {b["group"] for b in found["benchmarks"]} == {
        "act, B=1 M=8 N=1, int8, 1T",
        *(f"load, {precision}, 1T" for precision in ("fp32", "bf16", "int8")),
    }
    assert found["commit_info"]["id"]
    done = run_pytest(*some, "--benchmark-compare")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "0001_" in done.stdout
    assert "(NOW)" in done.stdout


@pytest.mark.slow
def test_all_of_it_can_be_collected_and_has_a_lane():
    pytest.importorskip("pytest_benchmark")
    done = run_pytest("bench/suite", "--collect-only", "-q", "--grid")
    assert done.returncode == 0, done.stdout[-2000:]
    for file in sorted((ROOT / "bench" / "suite").glob("test_*.py")):
        assert f"{file.name}::" in done.stdout
        assert "in_lane" in file.read_text()
    assert "B4096-M8-N8-int8-2T" in done.stdout


@pytest.mark.slow
def test_each_result_is_checked_before_it_is_timed(tmp_path):
    """A wrong sampler is not timed: here one whose tolerance is nothing."""
    pytest.importorskip("pytest_benchmark")
    plugin = tmp_path / "no_tolerance.py"
    plugin.write_text(
        "from sorl_fast.bench import harness\n"
        "harness.ACTION_BOUND.update(dict.fromkeys(harness.ACTION_BOUND, 0.0))\n"
    )
    more = ["-p", "no_tolerance", "-o", f"pythonpath={tmp_path}", "-k", "int8-1T or load"]
    done = run_pytest("bench/suite", "--benchmark-disable", "-q", *more)
    assert done.returncode == 1, done.stdout[-2000:]
    assert "an action is" in done.stdout
    assert " passed" not in done.stdout
