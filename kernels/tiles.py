"""How a kernel cuts its work, by target and precision. Settled by resources read from machine code;
none of it has yet been timed on a GPU.
"""

from typing import Any, NamedTuple

import torch

INTERPRETED = "interpreter"
# type of a tensor -> what triton calls a pointer to it
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


class Tile(NamedTuple):
    """Rows, output columns and depth of a block, warps of a program and stages of its pipeline."""

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int


class Compile(NamedTuple):
    """One kernel as a launch builds it, so that it can be built ahead of time as well."""

    name: str  # what a table of kernels calls it
    kernel: Any  # the function under triton.jit
    signature: dict[str, str]  # argument -> its type, *bf16, i32 ...; without the constexprs
    constexprs: dict[str, Any]  # argument -> value
    options: dict[str, Any]  # num_warps, num_stages, enable_fp_fusion
    divisible: tuple[str, ...]  # arguments that a launch sees to be multiples of 16


def architecture(device: torch.device) -> str:
    """Return sm_80, sm_90, gfx942 ... of a device; INTERPRETED of the CPU."""
    if device.type == "cpu":
        return INTERPRETED
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def processors(device: torch.device) -> int:
    """Return how many programs run at once: the number of multiprocessors; 2 in the interpreter."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def tile(arch: str, precision: str, hidden: int, rows: int) -> Tile:
    """Choose the blocks for `rows` rows of a network with `hidden` columns, a multiple of 64."""
    if arch == INTERPRETED:
        return Tile(16, 64, 64, 4, 1)
    many = rows >= 4096  # enough for larger blocks to keep every processor busy
    if arch.startswith("gfx"):
        narrow = precision in ("fp32", "tf32")
        return Tile((32 if narrow else 64) if many else 16, 64, 32, 4, 2)
    # 32 sums a thread and no more: with 64 the actor's kernels spill
    if precision == "fp32":
        return Tile(32, 64, 32, 8, 2) if many else Tile(16, 64, 32, 4, 2)
    if precision == "tf32":
        return Tile(64, 64, 32, 8, 2) if many else Tile(16, 64, 32, 4, 2)
    wide = 128 if hidden % 128 == 0 else 64
    return Tile(64, wide, 64, 8, 3) if many else Tile(16, wide, 64, 4, 3)
