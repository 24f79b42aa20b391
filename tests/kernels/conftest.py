"""The interpreter that the kernels' tests run in."""

from .interpreter import repair

repair()
