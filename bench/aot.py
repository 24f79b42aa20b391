"""Machine code without a GPU: compiles kernels for a target and reads what the code needs.

The reading functions take text, so that tests can feed them. Run as a module this is a worker: jobs
come in as JSON lines, figures go out as JSON lines. It must be a process of its own, because triton
decides at import whether kernels are compiled or interpreted, and because a compiler may crash.
"""

import collections
import contextlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# target -> the shared memory that one block may ask for, in bytes (CUDA's compute capabilities, CDNA 3's
# instruction set manual). From sm_90 on `shared_bytes` includes the 1 KiB that the driver keeps a block,
# which these figures do not, so the limit is held with 1 KiB to spare.
SHARED_LIMIT = {
    "sm_80": 166_912,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "gfx942": 65_536,
}
TARGETS = tuple(SHARED_LIMIT)

# Matrix instructions: of Ampere and Ada, of Hopper's warp groups, of Blackwell's tensor memory, of CDNA
_MMA = re.compile(r"^(?:HMMA|HGMMA|UTC\w*MMA|v_s?mfma)")
_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.M)
_AMDGCN = re.compile(r"^\s+([a-z]\w+)", re.M)


class Resources(NamedTuple):
    """What a kernel's machine code takes."""

    registers: int  # of a thread (gfx942: vector registers, accumulation registers included)
    stack_bytes: int  # of a thread, in local memory
    spill_bytes: int  # of a thread: stores and loads, as they stand in the code
    shared_bytes: int  # of a block
    mma: dict[str, int]  # matrix instructions, by name
    serialized: bool  # Hopper: the compiler says that it waits for each product (C7510, C7512 ...)


def nvidia_resources(usage: str, log: str, sass: str, dynamic: int) -> Resources:
    """Read an NVIDIA kernel.

    Parameters
    ----------
    usage
        What `cuobjdump --dump-resource-usage` prints.
    log
        What `ptxas -v` prints.
    sass
        What `nvdisasm -c` prints.
    dynamic
        Bytes of shared memory that the launch asks for.

    Raises
    ------
    ValueError
        One of the texts is not of the form that is known.
    """
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of registers: {usage!r}")
    registers, stack, static = map(int, found.groups())
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not spills:
        raise ValueError(f"ptxas says nothing of spills: {log!r}")
    instructions = _SASS.findall(sass)
    if not instructions:
        raise ValueError("nvdisasm shows no instruction")
    return Resources(
        registers,
        stack,
        sum(int(stores) + int(loads) for stores, loads in spills),
        static + dynamic,
        _matrix(instructions),
        "wgmma.mma_async instructions are serialized" in log,
    )


def amd_resources(assembly: str, dynamic: int) -> Resources:
    """Read an AMD kernel from its assembly, whose end is its metadata.

    Raises
    ------
    ValueError
        The metadata lacks a field.
    """

    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        if found is None:
            raise ValueError(f"the metadata has no .{name}")
        return int(found[1])

    return Resources(
        field("vgpr_count"),
        field("private_segment_fixed_size"),
        4 * field("vgpr_spill_count"),  # scalar registers are spilled into vector registers
        max(dynamic, field("group_segment_fixed_size")),
        _matrix(_AMDGCN.findall(assembly)),
        False,
    )


def _matrix(instructions: list[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(filter(_MMA.match, instructions)).items()))


def needs_mma(ttir: str) -> bool:
    """Return whether a kernel has products that belong on the matrix units: any but exact float32."""
    dots = [line for line in ttir.splitlines() if "tt.dot" in line]
    return any("inputPrecision = tf32" in dot or re.search(r"xb?f16>", dot) for dot in dots)


def compile_one(compile_: Any, target: str) -> dict[str, Any]:
    """Compile one `kernels.tiles.Compile` for a target and return its figures as JSON values."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    maker, arch = target.split("_") if "_" in target else ("hip", target)
    goal = GPUTarget("hip", arch, 64) if maker == "hip" else GPUTarget("cuda", int(arch), 32)
    kernel = compile_.kernel
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={n: compile_.signature.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): value for n, value in compile_.constexprs.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in compile_.divisible},
    )
    start, log = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(log):  # that is where triton puts ptxas' words
        built = triton.compile(source, target=goal, options=dict(compile_.options))
    seconds = time.perf_counter() - start
    dynamic = int(built.metadata.shared)
    if maker == "hip":
        resources = amd_resources(built.asm["amdgcn"], dynamic)
    else:
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(built.asm["cubin"])
            file.flush()
            usage = _read(tools / "cuobjdump", "--dump-resource-usage", file.name)
            sass = _read(tools / "nvdisasm", "-c", file.name)
        resources = nvidia_resources(usage, log.getvalue(), sass, dynamic)
    return {
        **resources._asdict(),
        "needs_mma": needs_mma(built.asm["ttir"]),
        "seconds": seconds,
    }


def _read(*command: Any) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def do(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Compile all kernels of a job; yield a line before and one after each.

    Parameters
    ----------
    job
        `module`, whose `aot` is called with the `Sizes` made of each of `sizes`, with `precision` and
        with the tile for `target` and `rows`.
    """
    from sorl_fast.kernels.packing import Sizes
    from sorl_fast.kernels.tiles import tile

    target, precision, rows = job["target"], job["precision"], job["rows"]
    sizes = [Sizes(*values) for values in job["sizes"]]
    hidden = sizes[0].hidden if sizes else 64
    compiles = importlib.import_module(job["module"]).aot(
        *sizes, precision, tile(target, precision, hidden, rows)
    )
    for compile_ in compiles:
        yield {"begin": compile_.name}
        try:
            yield {"kernel": compile_.name, **compile_one(compile_, target)}
        except Exception as err:  # any of the compiler's own: it becomes a row, not the end
            yield {"kernel": compile_.name, "error": _reason(err)}


def _reason(err: BaseException) -> str:
    """Return what an error says in a line; triton wraps the one that matters in others."""
    while err.__cause__ is not None:
        err = err.__cause__
    return f"{type(err).__name__}: {' '.join(str(err).split())[-400:]}"


def work() -> None:
    """Do the jobs that standard input names, one a line; end each one's lines with one `{}`."""
    # the compilers may print: their words go to standard error, and only ours to standard output
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            for answer in do(job):
                answers.write(json.dumps(answer) + "\n")
        except Exception as err:  # whatever a job's module raises: a row too, the other jobs go on
            answer = {"kernel": job["module"], "error": _reason(err)}
            answers.write(json.dumps(answer) + "\n")
        answers.write("{}\n")


if __name__ == "__main__":
    work()
