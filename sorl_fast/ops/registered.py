"""How an operation of the kernels is registered with torch.library, and how a network reaches it.

A network is the flat list of its parameters and the packed copy, which the kernels read.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

from ..kernels.packing import Packed
from ..layout import Layout
from .packed import packed_copy, sizes_of
from .reference import Layers, flat

T = TypeVar("T")

INTERPRETED: bool = triton.knobs.runtime.interpret
_library: Any = torch.library.Library("sorl_fast", "FRAGMENT")  # type: ignore[no-untyped-call]


def net_of(
    params: Sequence[Tensor], weights: Tensor, vectors: Tensor, obs: int, act: int, norm: bool,
    precision: str,
) -> Packed:  # fmt: skip
    """Return a network as the kernels take it."""
    return Packed(weights, vectors, sizes_of(Layout.of(params, obs, act, norm)), precision)


def arguments_of(
    layers: Layers, obs: Tensor, act: int, norm: bool, precision: str
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return a network as operations take it: its parameters and both tensors of its packed copy."""
    packed = packed_copy(layers, obs.shape[1], act, norm, precision)
    return flat(layers), packed.weights, packed.vectors


def on_its_device(function: Callable[..., T]) -> Callable[..., T]:
    """Make the device of the first argument the current one meanwhile: triton launches there."""

    @functools.wraps(function)
    def run(*args: Any) -> T:
        first: Tensor = args[0] if isinstance(args[0], Tensor) else args[0][0]
        if not first.is_cuda:
            return function(*args)
        with torch.cuda.device(first.device):
            return function(*args)

    return run


def register(name: str, schema: str, function: Callable[..., Any]) -> None:
    """Register an operation sorl_fast::name, for CUDA and, where triton interprets, for the CPU."""
    _library.define(name + schema)
    _library.impl(name, on_its_device(function), "CUDA")
    if INTERPRETED:
        _library.impl(name, function, "CPU")
