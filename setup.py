"""Build the one C++ extension, sorl_fast._native; all the rest stands in pyproject.toml."""

import json
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Sources and flags, which csrc/CMakeLists.txt reads too.
LIST = json.loads(Path("csrc/sources.json").read_text())


class BuildNative(build_ext):
    """Compile each source with flags of its own: one instruction set a file."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the listed sources, then let setuptools compile the bindings and link."""

        def compiled(source: dict) -> list[str]:
            return self.compiler.compile(
                [f"csrc/{source['file']}"],
                output_dir=self.build_temp,
                include_dirs=ext.include_dirs,
                extra_postargs=[*ext.extra_compile_args, *source["flags"]],
            )

        here = [s for s in LIST["sources"] if s["arch"] in ("any", platform.machine())]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # a compiler is a process of its own
            for objects in pool.map(compiled, here):
                ext.extra_objects += objects
        super().build_extension(ext)


setup(
    ext_modules=[
        Extension(
            "sorl_fast._native",
            ["csrc/bindings.cpp", "csrc/train/bindings.cpp"],
            include_dirs=["csrc", "csrc/include", pybind11.get_include()],
            extra_compile_args=["-std=c++17", *LIST["flags"]],
            extra_link_args=["-pthread", "-Wl,-s"],  # -s: Python's own flags ask for debug symbols
            language="c++",
            # also what puts them into the source distribution
            depends=sorted(str(p) for p in Path("csrc").rglob("*.*") if p.suffix != ".pyc"),
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
