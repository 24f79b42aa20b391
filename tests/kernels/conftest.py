"""What the kernels' tests run in: the interpreter, or a GPU."""

import os

import numpy as np
import pytest
import torch
from tolerances import ON_GPU

from .interpreter import repair
from .place import DEVICE

if ON_GPU:
    if not torch.cuda.is_available():
        pytest.exit("TRITON_INTERPRET is 0, but torch finds no GPU: unset it", returncode=4)
    # deterministic cuBLAS, which `poisoned` asks for, needs to be told so before it starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_default_device(DEVICE)
else:
    repair()


@pytest.fixture(autouse=True)
def _a_gpu_does_not_warn():
    """Let overflow and NaN pass in silence, as they do on a GPU; NumPy, the interpreter, warns."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def poisoned():
    """Fill what torch.empty gives with NaN, or the largest integer: a number never written is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=ON_GPU)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
