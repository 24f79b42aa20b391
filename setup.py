"""Build the C++ extensions, sorl_fast._native and, for the benchmarks, sorl_fast._bench.

All the rest stands in pyproject.toml.

SORL_FAST_NO_NATIVE=1 installs without them, and so without a compiler: acting is left to the backends
numpy, torch and triton, training to torch and triton.
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Sources and flags, which csrc/CMakeLists.txt reads too.
LIST = json.loads(Path("csrc/sources.json").read_text())
# -g0: Python's own flags ask for debug symbols, which take the compiler's time
STANDARD = ["-std=c++17", "-g0"]
WITHOUT = (
    "Or install without the native module, for the numpy and torch backends alone: set "
    "SORL_FAST_NO_NATIVE=1, as in `SORL_FAST_NO_NATIVE=1 pip install .`"
)


# Folders with a source for each instruction set, by extension.
FOLDERS = {"native": ("kernels", "train"), "bench": ("bench",)}


def sources(extension: str, arch: str) -> dict[str, list[str]]:
    """Return an extension's sources for a machine, and the flags of each."""
    found = {s["file"]: [] for s in LIST["sources"] if extension in s["in"]}
    for row in LIST["isas"]:
        for folder in FOLDERS[extension]:
            if row["arch"] in ("any", arch) and (folder != "train" or row["trains"]):
                own = LIST["train_flags"] if folder == "train" else []
                found[f"{folder}/{row['isa']}.cpp"] = [*row["flags"], *own]
    return found


def without_native() -> bool:
    """Say whether the user wants no native module."""
    wanted = os.environ.get("SORL_FAST_NO_NATIVE", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(
            f"SORL_FAST_NO_NATIVE is {wanted!r}, but must be 1 (no native module) or 0, or unset"
        )
    return wanted == "1"


class BuildNative(build_ext):
    """Compile each source with flags of its own: one instruction set a file."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the listed sources, then let setuptools compile the bindings and link."""

        def compiled(source: tuple[str, list[str]]) -> list[str]:
            return self.compiler.compile(
                [f"csrc/{source[0]}"],
                output_dir=f"{self.build_temp}/{ext.name}",
                include_dirs=ext.include_dirs,
                extra_postargs=[*ext.extra_compile_args, *source[1]],
            )

        here = sources(ext.name.removeprefix("sorl_fast._"), self.architecture())
        self.probe(list(dict.fromkeys(flag for flags in here.values() for flag in flags)))
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # a compiler is a process of its own
            for objects in pool.map(compiled, here.items()):
                ext.extra_objects += objects
        super().build_extension(ext)

    def ask(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run the compiler, with the environment's flags, and return what it said."""
        # older setuptools have one compiler for both languages
        command = getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so
        try:
            return subprocess.run([*command, *arguments], capture_output=True, text=True)
        except OSError as err:
            raise SystemExit(
                f"sorl-fast's native module needs a C++ compiler, but {command[0]!r} cannot be run: "
                f"{err.strerror}. Install g++ (11 or newer; Debian: apt-get install g++ python3-dev), "
                f"or name another by CC= and CXX=. {WITHOUT}"
            ) from None

    def architecture(self) -> str:
        """Return what the compiler compiles for; the kernel's machine may be another."""
        macros = self.ask("-dM", "-E", "-x", "c++", os.devnull).stdout.split()
        for machine in ("x86_64", "aarch64"):
            if f"__{machine}__" in macros:
                return machine
        return "other"

    def probe(self, flags: list[str]) -> None:
        """Refuse a compiler that is too old, in a sentence."""
        done = self.ask(*STANDARD, *flags, "-fsyntax-only", "csrc/probe.cpp")
        if done.returncode:
            lines = (done.stdout + done.stderr).splitlines()
            said = next((line for line in lines if "error" in line), "nothing")
            raise SystemExit(
                "sorl-fast's native module needs Linux and GCC 11 or clang 14, or newer, with a standard "
                "library that has std::from_chars of floating-point numbers (libstdc++ 11), and on x86-64 "
                "the flags -mavxvnni and -mamx-bf16; on 32-bit x86, add -msse2 -mfpmath=sse to CXXFLAGS. "
                f"This compiler says: {said.strip()}. Name another by CC= and CXX=. {WITHOUT}"
            )


def extensions() -> list[Extension]:
    """Return the extensions, or none where the user wants none."""
    if without_native():
        return []
    import pybind11

    return [
        Extension(
            f"sorl_fast._{name}",
            [f"csrc/{source}" for source in bindings],
            include_dirs=["csrc", "csrc/include", pybind11.get_include()],
            extra_compile_args=[*STANDARD, *LIST["flags"]],
            extra_link_args=["-pthread", "-Wl,-s"],  # -s: no symbols but those that are needed
            language="c++",
            # also what puts them into the source distribution
            depends=sorted(str(p) for p in Path("csrc").rglob("*.*") if p.suffix != ".pyc"),
        )
        for name, bindings in (
            ("native", ["bindings.cpp", "train/bindings.cpp"]),
            ("bench", ["bench/bindings.cpp"]),
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
