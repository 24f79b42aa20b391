"""How a kernel cuts its work, by target and precision. Settled by resources read from machine code;
none of it has yet been timed on a GPU.
"""

from typing import NamedTuple

import torch

INTERPRETED = "interpreter"


class Tile(NamedTuple):
    """Rows, output columns and depth of a block, warps of a program and stages of its pipeline."""

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int


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
    wide = 128 if hidden % 128 == 0 else 64
    if precision in ("fp32", "tf32"):
        return Tile(32 if rows >= 4096 else 16, 64, 32, 4, 2)
    if arch.startswith("gfx"):
        return Tile(64 if rows >= 4096 else 16, 64, 32, 4, 2)
    if rows < 4096:
        return Tile(16, wide, 64, 4, 3)
    return Tile(64, wide, 64, 4, 3)
