"""The interpreter that the kernels' tests run in."""

import numpy as np
import pytest
import torch

from .interpreter import repair

repair()


@pytest.fixture(autouse=True)
def _a_gpu_does_not_warn():
    """Let overflow and NaN pass in silence, as they do on a GPU; NumPy, the interpreter, warns."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def poisoned():
    """Fill what torch.empty gives with NaN, so that a number never written is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
