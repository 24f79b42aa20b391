"""What setup.py asks the compiler, and what it says where there is none that will do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import some_fast

pytest.importorskip("setuptools", reason="what builds is not installed")

ROOT = Path(__file__).parents[1]
LIST = json.loads((ROOT / "csrc" / "sources.json").read_text())

# Notes what it is asked and compiles nothing. It is a compiler for MACHINE.
COMPILER = """#!{python}
import os, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    print(*arguments, file=log)
if "-dM" in arguments:
    print("#define __" + os.environ["MACHINE"] + "__ 1")
elif "-fsyntax-only" in arguments:
    sys.exit(os.environ["SAYS"] or 0)
else:
    open(arguments[arguments.index("-o") + 1], "w").close()
"""
# pybind11 is not among what tests need
RUN = """
import runpy, sys, types
sys.modules["pybind11"] = types.SimpleNamespace(get_include=lambda: "pybind11")
sys.argv = ["setup.py", "build_ext", "--build-temp=temp", "--build-lib=lib"]
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.fixture
def build(tmp_path):
    """Run setup.py build_ext with that compiler; return how it ended and what was compiled."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(ROOT / "setup.py", tmp_path)
    compiler, log = tmp_path / "compiler", tmp_path / "log"
    compiler.write_text(COMPILER.format(python=sys.executable, log=str(log)))
    compiler.chmod(0o755)

    def run(machine="x86_64", says="", **environment):
        given = {"CC": str(compiler), "CXX": str(compiler), "MACHINE": machine, "SAYS": says}
        log.write_text("")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN],
            cwd=tmp_path,
            env=os.environ | given | environment,
            capture_output=True,
            text=True,
        )
        lines = [line.split() for line in log.read_text().splitlines()]
        named = [line[line.index("-c") + 1] for line in lines if "-c" in line]
        return done, sorted(name.removeprefix("csrc/") for name in named), lines

    return run


@pytest.mark.slow
@pytest.mark.parametrize("machine", some_fast(["x86_64", "aarch64", "i386"], "aarch64"))
def test_the_compiler_says_which_sources_there_are(build, machine):
    done, compiled, lines = build(machine)
    assert done.returncode == 0, done.stderr
    isas = [row for row in LIST["isas"] if row["arch"] in ("any", machine)]
    folders = [("kernels", row) for row in isas] + [("bench", row) for row in isas]
    folders += [("train", row) for row in isas if row["trains"]]
    expected = [f"{folder}/{row['isa']}.cpp" for folder, row in folders]
    expected += [s["file"] for s in LIST["sources"] for part in s["in"] if part != "library"]
    bindings = ["bindings.cpp", "train/bindings.cpp", "bench/bindings.cpp"]
    assert compiled == sorted([*expected, *bindings])
    # the probe is asked with every flag of theirs
    probes = [line for line in lines if "csrc/probe.cpp" in line]
    assert len(probes) == 2  # of each extension
    for probe in probes:
        assert {flag for row in isas for flag in row["flags"]} <= set(probe)
        assert ("-mavxvnni" in probe) == (machine == "x86_64")


def test_a_compiler_that_is_too_old_is_named(build):
    done, compiled, _ = build(says="error: no member named 'from_chars'")
    assert done.returncode == 1
    assert not compiled
    for text in ("GCC 11 or clang 14", "no member named 'from_chars'", "SORL_FAST_NO_NATIVE=1"):
        assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_no_compiler_at_all_is_named_with_the_switch(build):
    done, _, lines = build(CC="/nowhere/gcc", CXX="/nowhere/g++")
    assert done.returncode == 1
    assert not lines
    for text in ("/nowhere/g", "No such file", "apt-get install g++", "SORL_FAST_NO_NATIVE=1"):
        assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_the_native_module_nothing_is_compiled(build):
    done, _, lines = build(SORL_FAST_NO_NATIVE="1", CC="/nowhere/gcc", CXX="/nowhere/g++")
    assert done.returncode == 0, done.stderr
    assert not lines
    done, compiled, _ = build(SORL_FAST_NO_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert compiled


def test_another_value_of_the_switch_is_refused(build):
    done, _, lines = build(SORL_FAST_NO_NATIVE="yes")
    assert done.returncode == 1
    assert not lines
    assert "SORL_FAST_NO_NATIVE is 'yes', but must be 1" in done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_probe_compiles_with_what_the_sources_need():
    machine = os.uname().machine
    flags = {f for row in LIST["isas"] if row["arch"] in ("any", machine) for f in row["flags"]}
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", *flags, "-fsyntax-only"]
    subprocess.run([*command, ROOT / "csrc" / "probe.cpp"], check=True)
