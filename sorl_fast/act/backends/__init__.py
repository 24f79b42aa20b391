"""The backends that can act, one a file. None imports more than numpy before it is asked to serve."""

from ..session import Backend
from . import native, numpy, torch, triton

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (numpy.BACKEND, native.BACKEND, torch.BACKEND, triton.BACKEND)
}
