"""Who is raced on a GPU, and how each is made to compute what it is asked: see `gpu`.

Shape letters: B observations, N candidates, O observation.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sorl_fast import ops
from sorl_fast.ops import chain, reference
from sorl_fast.ops.implementations import ON_GPU, PLAIN_OPERATIONS
from sorl_fast.ops.reference import Layers

# name in the rows -> the name in `ops.implementations` of what it takes
CONTENDERS = {
    "torch-eager": "reference",
    "torch-compile": "reference",
    "cublas-graph": "chain",
    "sorl-fast": "fused",
}
UPDATE_OPERATIONS = (
    "velocity",
    "rollout",
    "critic_ensemble",
    "adam_ema_step",
    "normals",
    "words",
)


class Plainly:
    """Stands in for CUDA graphs where there are none: the function itself is its recording."""

    def run(self, function: Callable[[], Any]) -> Any:
        """Run it."""
        return function()

    def record(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Return it."""
        return function


def plain_best_of_n(
    actor: Layers, critic: Layers, obs: Tensor, noise: Tensor, steps: int, low: Tensor, high: Tensor
) -> Tensor:
    """Return the actions as a user's own PyTorch would: of numbers that are not finite it says nothing."""
    B, N, A = noise.shape
    rows = obs.repeat_interleave(N, 0)
    actions = reference.denoise(actor, rows, noise.reshape(B * N, A), steps).clamp(low, high)
    q = reference.critic_ensemble(critic, rows, actions, steps).mean(0).view(B, N)
    return actions.view(B, N, A)[torch.arange(B, device=obs.device), q.argmax(1)]


def chain_call(
    actor: Layers, critic: Layers, obs: Tensor, noise: Tensor, steps: int, low: Tensor, high: Tensor,
    precision: str,
) -> Callable[[], Tensor]:  # fmt: skip
    """Return the call of PyTorch's products, weights rounded before."""
    N = noise.shape[1]
    act, score = chain.prepare(actor, precision), chain.prepare(critic, precision)

    def rollout() -> Tensor:
        return chain.denoise_of(act, obs, noise[:, 0], steps).clamp(-1, 1)

    def best_of_n() -> Tensor:
        return chain.best_of_n_of(act, score, obs, noise, steps, "mean", low, high).action

    return rollout if N == 1 else best_of_n


def fused_call(
    actor: Layers, critic: Layers, obs: Tensor, noise: Tensor, steps: int, low: Tensor, high: Tensor,
    precision: str,
) -> Callable[[], Tensor]:  # fmt: skip
    """Return the call of our kernels, weights packed before."""
    # triton need not be installed; without it this contender's rows say so
    from sorl_fast.kernels.actor import rollout

    from sorl_fast.ops.triton_sampling import pack_network

    N, O = noise.shape[1], obs.shape[1]
    act = pack_network(actor, O, precision)
    if N == 1:
        return lambda: rollout(act, obs, noise[:, 0], steps)[0]

    from sorl_fast.kernels.best_of_n import best_of_n

    score = pack_network(critic, O, precision)
    return lambda: best_of_n(act, score, obs, noise, N, steps, "mean", low, high)[0]


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Round the factors of float32 products to tf32 exactly where the precision is tf32.

    Through PyTorch's older setting: it keeps both in step, and torch.compile reads the older one, which
    is an error where only the newer one was set.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def routed(name: str, precision: str) -> Iterator[None]:
    """Make the operations of an update take one implementation, whatever the dispatch would choose."""
    before = {operation: getattr(ops, operation) for operation in UPDATE_OPERATIONS}
    for operation in UPDATE_OPERATIONS:
        there = ON_GPU[operation]
        function = there.get(name, there["reference"]).function
        if operation not in PLAIN_OPERATIONS:
            function = functools.partial(function, precision=precision)
        setattr(ops, operation, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(ops, name, function)
