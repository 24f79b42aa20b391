"""Networks as the kernels read them: packed once for each version of their parameters.

Shape letters as in `reference`.
"""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from ..kernels.packing import Packed, Sizes, pack
from ..layout import Layout
from . import graphs
from .parameters import Parameters
from .reference import Layers, flat

_KEPT = 16  # packed copies of a network that are kept


def sizes_of(layout: Layout) -> Sizes:
    """Return a layout as the kernels, which know nothing of ours, take it."""
    return Sizes(*astuple(layout))


class _Copy(NamedTuple):
    packed: Packed
    # Aliases: they keep the memory, and so its address, from going to other parameters while it is by
    # its address that the copy is told from one of parameters that have been replaced.
    aliases: list[Tensor]
    # addresses and versions of the parameters, and the number of replays, which change no version
    state: list[int]


def packed_copy(layers: Layers, obs: int, act: int, norm: bool, precision: str) -> Packed:
    """Return `pack` of the parameters; while they stay as they are, the copy made before.

    The copy belongs to the network; parameters without an owner are packed at every call. A CUDA graph
    packs what its replay finds: it never sees a copy made outside of its recording, and nobody sees one
    made inside of it.
    """
    params = flat(layers)
    aliases = [p.detach() for p in params]
    sizes = sizes_of(Layout.of(params, obs, act, norm))
    where = _place(params)
    if where is None or not isinstance(layers, Parameters):
        return pack(aliases, sizes, precision)
    state = [*(p.data_ptr() for p in params), *(p._version for p in aliases), graphs.replays()]
    copies, key = layers.packings.copies, ("triton", precision, sizes, where)
    with layers.packings.lock:
        found: _Copy | None = copies.get(key)
        if found is None or found.state != state:
            copies.pop(key, None)
            _make_room(copies)
            found = copies[key] = _Copy(pack(aliases, sizes, precision), aliases, state)
    return found.packed


def _place(params: Sequence[Tensor]) -> tuple[Any, ...] | None:
    """Return where a copy of the parameters may be used: device, stream, recording; None: nowhere else."""
    if any(type(p) is not Tensor and type(p) is not Parameter for p in params):
        return None  # torch only looks at what would be done
    device = params[0].device
    if device.type != "cuda":
        return (device,)
    cuda: Any = torch.cuda
    recording = graphs.recording()
    with cuda.device(device):
        if recording is None and cuda.is_current_stream_capturing():
            return None  # someone else's recording, which nobody tells apart from another
        return device, cuda.current_stream().cuda_stream, recording


def _make_room(copies: dict[tuple[Any, ...], Any]) -> None:
    """Make room for a copy: those of recordings that are over go, and the oldest of too many."""
    now = graphs.recording()
    own = [key for key in copies if key[0] == "triton"]
    over = [key for key in own if len(key[3]) == 3 and key[3][2] not in (None, now)]
    left = [key for key in own if key not in over]
    for key in [*over, *left[: max(0, len(left) - _KEPT + 1)]]:
        del copies[key]
