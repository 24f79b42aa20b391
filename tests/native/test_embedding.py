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
from policies import make_policy
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


def build(folder):
    run("cmake", "--build", folder, "--parallel", len(os.sched_getaffinity(0)))


# Folders of libraries and headers: below the prefix, or absolute and elsewhere.
LAYOUTS = {
    "absolute": ("{root}/L/lib", "{root}/I/include"),
    "absolute libraries": ("{root}/L/lib", "include"),
    "absolute headers": ("lib", "{root}/I/include"),
    "nested": ("lib/deep/down", "include/deep"),
    "plain": ("lib", "include"),
}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Build the library as a user would, once, and install it in each layout; return where to."""
    root = tmp_path_factory.mktemp("library")
    places = {}
    for name, folders in LAYOUTS.items():
        places[name] = place = root / name.replace(" ", "_")
        libdir, includedir = (folder.format(root=place) for folder in folders)
        run(
            *("cmake", "-S", CSRC, "-B", root / "build", f"-DCMAKE_INSTALL_PREFIX={place / 'usr'}"),
            *(f"-DCMAKE_INSTALL_LIBDIR={libdir}", f"-DCMAKE_INSTALL_INCLUDEDIR={includedir}"),
        )
        build(root / "build")
        run("cmake", "--install", root / "build")
    shutil.rmtree(root / "build")  # what is installed must do without it
    return places


@pytest.fixture(scope="module")
def installed(layouts):
    return layouts["plain"] / "usr"


def pkg_config(folder, *arguments):
    (pc,) = folder.rglob("sorl_fast.pc")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(pc.parent)}
    return run("pkg-config", *arguments, "sorl_fast", env=environment, text=True).stdout.split()


@pytest.fixture(scope="module")
def programs(installed, tmp_path_factory):
    """Build csrc/tests/sample.cpp outside the tree, by each of the ways that are offered."""
    folder = tmp_path_factory.mktemp("consumer")
    shutil.copy(CSRC / "tests" / "sample.cpp", folder)
    (folder / "CMakeLists.txt").write_text(CONSUMER)
    run("cmake", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", folder / "build")
    flags = pkg_config(installed, "--cflags", "--libs")
    run(
        TOOLS[2],
        "-std=c++17",
        folder / "sample.cpp",
        "-o",
        folder / "by_pkg_config",
        *flags,
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found(layouts, layout, tmp_path):
    (library,) = layouts[layout].rglob("libsorl_fast.so")
    flags = pkg_config(layouts[layout], "--cflags", "--libs")
    assert not any("//" in flag for flag in flags)
    (include,) = (flag[2:] for flag in flags if flag.startswith("-I"))
    assert (Path(include) / "sorl_fast" / "sorl.h").is_file()
    assert f"-L{library.parent}" in map(os.path.normpath, flags)
    # and by CMake's package
    shutil.copy(CSRC / "tests" / "sample.cpp", tmp_path)
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER)
    package = library.parent / "cmake" / "sorl_fast"
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-Dsorl_fast_DIR={package}")
    build(tmp_path / "build")


PARENT = """
cmake_minimum_required(VERSION 3.18)
project(parent CXX)
set(CMAKE_CXX_STANDARD 20)
foreach(name objects shared static tests examples control_loop test_isas cost)
  add_custom_target(${{name}})
endforeach()
get_cmake_property(before VARIABLES)
{include}
get_cmake_property(after VARIABLES)
list(REMOVE_ITEM after ${{before}} before)
list(FILTER after EXCLUDE REGEX "^(SORL_|sorl_fast_|FETCHCONTENT_|FetchContent|_?CMAKE_|__)")
list(FILTER after EXCLUDE REGEX "^(FIND_PACKAGE_|_GNUInstallDirs)") # CMake's own, in its cache
if(after OR CMAKE_BUILD_TYPE OR NOT CMAKE_CXX_STANDARD EQUAL 20)
  message(FATAL_ERROR "leaked: ${{after}} ${{CMAKE_BUILD_TYPE}} ${{CMAKE_CXX_STANDARD}}")
endif()
foreach(kind sorl_fast shared static)
  add_executable(by_${{kind}} sample.cpp)
  target_link_libraries(by_${{kind}} PRIVATE sorl_fast::${{kind}})
endforeach()
install(TARGETS by_static)
"""
INCLUDES = {
    "add_subdirectory": f"add_subdirectory({CSRC} sorl)",
    "FetchContent": f"""
include(FetchContent)
FetchContent_Declare(sorl_fast SOURCE_DIR {ROOT} SOURCE_SUBDIR csrc)
FetchContent_MakeAvailable(sorl_fast)
""",
}


@pytest.mark.parametrize("way", INCLUDES)
def test_a_part_of_another_project(way, policy, tmp_path):
    shutil.copy(CSRC / "tests" / "sample.cpp", tmp_path)
    (tmp_path / "CMakeLists.txt").write_text(PARENT.format(include=INCLUDES[way]))
    folder = tmp_path / "build"
    # the parent's cache may ask for the tests of a project of its own
    run("cmake", "-S", tmp_path, "-B", folder, "-DSORL_TESTS=ON", "-DSORL_EXAMPLES=ON")
    if way == "FetchContent":
        return  # the same targets
    build(folder)
    run("cmake", "--install", folder, "--prefix", tmp_path / "usr")
    assert [p.name for p in (tmp_path / "usr").rglob("*") if p.is_file()] == ["by_static"]
    np.zeros((1, OBS_DIM), np.float32).tofile(tmp_path / "obs")
    outs = [
        run(folder / f"by_{kind}", policy, tmp_path / "obs", 1, 4, 1, 42, 1, "fp32").stdout
        for kind in ("sorl_fast", "shared", "static")
    ]
    assert len(outs[0]) == 4 * ACT_DIM
    assert outs[0] == outs[1] == outs[2]


# Version N + 1 of the header, with one more field; a caller of it, and one of today's.
LATER_FIELD = "  int32_t later;\n} sorl_options;"
CALLER = r"""
#include <sorl_fast/sorl.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
int main(int, char** argv) {
  struct { sorl_options options; unsigned char guard[64]; } caller;
  std::memset(&caller, 0xA5, sizeof caller);
  sorl_options_init(&caller.options);
  for (unsigned char byte : caller.guard)
    if (byte != 0xA5) return std::puts("overrun"), 1;
  if (caller.options.struct_size != sizeof(sorl_options)) return std::puts("another size"), 1;
#ifdef LATER
  caller.options.later = std::atoi(argv[2]);
#endif
  sorl_policy* policy = nullptr;
  sorl_session* session = nullptr;
  char text[256] = "";
  if (sorl_policy_load(argv[1], &policy, text, sizeof text) != SORL_OK) return std::puts(text), 1;
  const int code = sorl_session_create(policy, &caller.options, &session, text, sizeof text);
  std::printf("%d %s\n", code, text);
}
"""


def test_callers_and_libraries_of_other_versions_go_together(installed, policy, tmp_path):
    (today,) = (p.parent for p in installed.rglob("libsorl_fast.so"))
    later = tmp_path / "later"
    shutil.copytree(CSRC / "include", later)
    header = later / "sorl_fast" / "sorl.h"
    text = header.read_text()
    assert text.count("} sorl_options;") == 1
    header.write_text(text.replace("} sorl_options;", LATER_FIELD))
    # the later library: its own C interface over today's objects
    run(
        *(TOOLS[2], "-std=c++17", "-O1", "-fPIC", "-shared", f"-I{later}", f"-I{CSRC}"),
        *(CSRC / "c_api.cpp", "-o", tmp_path / "libsorl_fast.so", "-Wl,-soname,libsorl_fast.so.1"),
        *(today / "libsorl_fast.a", "-pthread"),
    )
    (tmp_path / "libsorl_fast.so.1").symlink_to("libsorl_fast.so")
    (tmp_path / "caller.cpp").write_text(CALLER)
    for name, folder, flags in (
        ("old", installed / "include", ()),
        ("new", later, ("-DLATER",)),
    ):
        run(
            *(TOOLS[2], "-std=c++17", f"-I{folder}", *flags, tmp_path / "caller.cpp"),
            *("-o", tmp_path / name, f"-L{today}", "-lsorl_fast"),
        )

    def call(name, library, later=0):
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}
        return run(tmp_path / name, policy, later, env=environment, text=True).stdout

    for name in ("old", "new"):
        for library in (today, tmp_path):
            assert call(name, library) == "0 \n"
    assert call("new", tmp_path, later=1) == "0 \n"
    assert call("new", today, later=1).startswith("-1 options that this library does not know")


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


def test_the_loop_that_replays_chunks_calls_every_h_th_tick(installed, tmp_path):
    path = tmp_path / "chunked.safetensors"
    policy_file.save(path, make_policy(A=20, chunk=10))
    environment = os.environ | build_example(installed, "chunk_loop", tmp_path / "loop")
    out = run(tmp_path / "loop", path, "40", "500", env=environment, text=True).stdout
    first, calls, replays, last = out.splitlines()
    assert first.endswith("chunks of 10 actions of 2 numbers, 500 Hz: 50 calls a second")
    assert re.match(r"calls +4 ticks  p50", calls)
    assert re.match(r"replays +36 ticks  p50", replays)
    assert re.fullmatch(r"missed \d+ of 40 periods; held 0 actions", last)


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


@pytest.mark.parametrize("processor", [None, "", "i686"])
def test_cmake_compiles_what_setup_does(processor, tmp_path):
    # CMake 3.16 has no JSON parser, so csrc/CMakeLists.txt reads the list by its lines
    told = [] if processor is None else [f"-DCMAKE_SYSTEM_PROCESSOR={processor}"]
    told = told and ["-DCMAKE_SYSTEM_NAME=Linux", *told]  # else CMake asks the machine
    run("cmake", "-S", CSRC, "-B", tmp_path, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *told)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    found = {
        str(Path(c["file"]).relative_to(CSRC)): c["command"].split()
        for c in commands
        if not c["file"].endswith("c_api.cpp")
    }
    listed = json.loads((CSRC / "sources.json").read_text())
    here = {s["file"]: [] for s in listed["sources"] if "library" in s["in"]}
    for row in listed["isas"]:
        if row["arch"] in ("any", os.uname().machine):
            here[f"kernels/{row['isa']}.cpp"] = row["flags"]
    assert set(found) == set(here)
    for file, own in here.items():
        flags = [f for f in found[file] if f.startswith(("-O", "-f", "-m"))]
        assert set(flags) - {"-fPIC"} == {*own, *listed["flags"]}
    # and setup.py, which reads the same list, has none of its own
    assert not re.search(r"""["']-[mO]""", (ROOT / "setup.py").read_text())


def test_a_compiler_that_is_too_old_is_named(tmp_path):
    old = tmp_path / "old"  # knows no recent instruction set
    old.write_text(
        f'#!/bin/sh\nfor a; do [ "$a" != -mavxvnni ] || exit 1; done\nexec {TOOLS[2]} "$@"\n'
    )
    old.chmod(0o755)
    done = subprocess.run(
        ["cmake", "-S", CSRC, "-B", tmp_path / "build", f"-DCMAKE_CXX_COMPILER={old}"],
        capture_output=True,
        text=True,
    )
    if os.uname().machine == "x86_64":
        assert done.returncode != 0
        assert "needs Linux and GCC 11 or clang 14" in " ".join(done.stderr.split())
