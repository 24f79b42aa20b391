"""The installed library, used from outside the tree, gives the bits that Python gives."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sorl_fast.bench import loop

from sorl_fast import Sampler
from sorl_fast.act import policy_file

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
TOOLS = ("cmake", "pkg-config", os.environ.get("CXX", "g++"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"no {tool}: apt-get install {tool}")
        for tool in TOOLS
    ),
]

CONSUMER = """
cmake_minimum_required(VERSION 3.16)
project(consumer CXX)
find_package(sorl_fast 0.1 REQUIRED)
add_executable(shared sample.cpp)
target_link_libraries(shared PRIVATE sorl_fast::sorl_fast)
add_executable(static sample.cpp)
target_link_libraries(static PRIVATE sorl_fast::static)
"""
OBS_DIM, ACT_DIM = 7, 3


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, check=False, **options)
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build and install the library as a user would; return where to."""
    folder = tmp_path_factory.mktemp("library")
    run("cmake", "-S", CSRC, "-B", folder / "build", f"-DCMAKE_INSTALL_PREFIX={folder / 'usr'}")
    run("cmake", "--build", folder / "build", "--parallel", len(os.sched_getaffinity(0)))
    run("cmake", "--install", folder / "build")
    shutil.rmtree(folder / "build")  # what is installed must do without it
    return folder / "usr"


@pytest.fixture(scope="module")
def programs(installed, tmp_path_factory):
    """Build csrc/tests/sample.cpp outside the tree, by each of the ways that are offered."""
    folder = tmp_path_factory.mktemp("consumer")
    shutil.copy(CSRC / "tests" / "sample.cpp", folder)
    (folder / "CMakeLists.txt").write_text(CONSUMER)
    run("cmake", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", folder / "build")
    (pc,) = installed.rglob("sorl_fast.pc")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(pc.parent)}
    flags = run("pkg-config", "--cflags", "--libs", "sorl_fast", env=environment, text=True).stdout
    run(
        TOOLS[2],
        "-std=c++17",
        folder / "sample.cpp",
        "-o",
        folder / "by_pkg_config",
        *flags.split(),
    )
    return {
        "find_package shared": folder / "build" / "shared",
        "find_package static": folder / "build" / "static",
        "pkg-config": folder / "by_pkg_config",
    }


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    script = "import sys; from make_corpus import policy; sys.stdout.buffer.write(policy(" + (
        f"O={OBS_DIM}, A={ACT_DIM}, H=48, D=3, E=2, m_disc=8, q_agg='min'))"
    )
    made = run(sys.executable, "-B", "-c", script, cwd=CSRC / "fuzz")
    path.write_bytes(made.stdout)
    return path


@pytest.mark.parametrize("way", ["find_package shared", "find_package static", "pkg-config"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize(
    ("rows", "steps", "candidates", "threads"), [(1, 8, 1, 1), (1, 4, 8, 1), (5, 2, 3, 2)]
)
def test_bits_are_pythons(
    programs, installed, policy, tmp_path, way, precision, rows, steps, candidates, threads
):
    obs = np.random.default_rng(0).standard_normal((rows, OBS_DIM)).astype(np.float32)
    obs.tofile(tmp_path / "obs")
    (library,) = installed.rglob("libsorl_fast.so")
    out = run(
        *(programs[way], policy, tmp_path / "obs", rows, steps, candidates, 42, threads, precision),
        env={**os.environ, "LD_LIBRARY_PATH": str(library.parent)},
    )
    embedded = np.frombuffer(out.stdout, np.float32).reshape(rows, ACT_DIM)
    sampler = Sampler.load(policy, backend="native", precision=precision, threads=threads)
    python = sampler.act(obs, steps=steps, candidates=candidates, seed=42)
    assert np.isfinite(python).all()
    assert embedded.tobytes() == np.asarray(python).tobytes()


def build_example(installed, name, to):
    """Compile csrc/examples/NAME.cpp; return the environment that it runs in."""
    (library,) = installed.rglob("libsorl_fast.so")
    run(
        *(TOOLS[2], "-std=c++17", CSRC / "examples" / f"{name}.cpp", "-o", to),
        *("-I", installed / "include", "-L", library.parent, "-lsorl_fast"),
    )
    return {"LD_LIBRARY_PATH": str(library.parent)}


def test_the_example_in_the_readme_runs(installed, policy, tmp_path):
    lines = (CSRC / "examples" / "fifteen_lines.cpp").read_text().partition("\n")[2]
    assert f"```cpp\n{lines}```" in (ROOT / "README.md").read_text()
    environment = os.environ | build_example(installed, "fifteen_lines", tmp_path / "example")
    out = run(tmp_path / "example", policy, env=environment, text=True).stdout
    assert re.fullmatch(r"(\S+ ){3}\(status \d+, on \w+\)\n", out)
    missing = subprocess.run(
        [tmp_path / "example", tmp_path / "no"], capture_output=True, text=True, env=environment
    )
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"{tmp_path / 'no'}: cannot be read: No such file")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_control_loop_reports_what_the_benchmark_reads(
    installed, policy, tmp_path, monkeypatch, precision
):
    for name, value in build_example(installed, "control_loop", tmp_path / "loop").items():
        monkeypatch.setenv(name, value)
    argv = ["--hz", "200", "--seconds", "1", "--policy", str(policy), "--example"]
    argv += [str(tmp_path / "loop"), "--candidates", "3", "--precision", precision]
    args = loop._parse(argv)
    args.steps = 4
    row = loop._example(policy_file.load(policy), args)
    assert (row["contender"], row["periods"], row["precision"]) == ("sorl-fast c++", 200, precision)
    assert row["isa"] == _native.isas(precision)[-1]
    assert 0 < row["latency"]["p50_us"] <= row["latency"]["p999_us"] <= row["latency"]["max_us"]


def test_cmake_compiles_what_setup_does(tmp_path):
    # CMake 3.16 has no JSON parser, so csrc/CMakeLists.txt reads the list by its lines
    run("cmake", "-S", CSRC, "-B", tmp_path, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    found = {
        str(Path(c["file"]).relative_to(CSRC)): c["command"].split()
        for c in commands
        if not c["file"].endswith("c_api.cpp")
    }
    listed = json.loads((CSRC / "sources.json").read_text())
    here = [
        source
        for source in listed["sources"]
        if source["arch"] in ("any", os.uname().machine)
        and not source["file"].startswith("train/")  # the Python module's alone
    ]
    assert set(found) == {s["file"] for s in here}
    for source in here:
        flags = [f for f in found[source["file"]] if f.startswith(("-O", "-f", "-m"))]
        assert set(flags) - {"-fPIC"} == {*source["flags"], *listed["flags"]}
    # and setup.py, which reads the same list, has none of its own
    assert not re.search(r"""["']-[mO]""", (ROOT / "setup.py").read_text())
