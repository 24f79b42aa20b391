"""The cost of a call in instructions, which no load of the machine disturbs, against a record.

After a change that is meant to cost or save: `python tests/native/test_cost.py` writes the record anew.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
RECORD = Path(__file__).with_name("cost.json")
COMPILER = os.environ.get("CXX", "g++")
# valgrind knows no AVX-512.
PATHS = [
    f"{isa} {precision}" for isa in ("scalar", "avx2") for precision in ("fp32", "bf16", "int8")
]


def compiler_version():
    """Return the compiler's major version: another one makes other code."""
    done = subprocess.run([COMPILER, "-dumpversion"], capture_output=True, text=True, check=True)
    return f"{COMPILER} {done.stdout.split('.')[0].strip()}"


def build(folder):
    """Compile csrc/tests/cost.cpp with the library and return the program."""
    options = ["-DSORL_TESTS=ON", f"-DCMAKE_CXX_COMPILER={COMPILER}"]
    jobs = str(len(os.sched_getaffinity(0)))
    for command in (
        ["cmake", "-S", CSRC, "-B", folder, *options],
        ["cmake", "--build", folder, "--target", "cost", "--parallel", jobs],
    ):
        subprocess.run(command, check=True, capture_output=True)
    (program,) = Path(folder).rglob("cost")
    return program


def instructions(program, path):
    """Count the instructions of one round of calls, without those of starting up."""

    def count(calls):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        command += [program, *path.split(), str(calls)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(re.search(r"Collected : (\d+)", done.stderr)[1])

    return (count(12) - count(2)) // 10


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Return the built program, on a machine like the record's."""
    for tool in ("valgrind", "cmake", COMPILER):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    if os.uname().machine != "x86_64":
        pytest.skip("the record is of x86-64")
    if compiler_version() != json.loads(RECORD.read_text())["compiler"]:
        pytest.skip(f"the record is of another compiler than {compiler_version()}")
    return build(tmp_path_factory.mktemp("cost"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", PATHS)
def test_a_call_costs_what_is_recorded(program, path):
    """A call takes the recorded number of instructions, to 1%."""
    recorded = json.loads(RECORD.read_text())["instructions"][path]
    assert instructions(program, path) == pytest.approx(recorded, rel=0.01)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        built = build(folder)
        record = {path: instructions(built, path) for path in PATHS}
    RECORD.write_text(
        json.dumps({"compiler": compiler_version(), "instructions": record}, indent=1) + "\n"
    )
    sys.stdout.write(RECORD.read_text())
