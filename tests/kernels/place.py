"""Where the kernels' tests run: on the CPU, in Triton's interpreter; with TRITON_INTERPRET=0 on a GPU."""

import torch
from tolerances import ON_GPU

DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def generator(seed):
    """A generator of random numbers there."""
    return torch.Generator(DEVICE).manual_seed(seed)


def here(array):
    """The tensor of a NumPy array there."""
    return torch.from_numpy(array).to(DEVICE)
