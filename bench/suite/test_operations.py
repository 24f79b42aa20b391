"""Training's operations one by one, forward and backward, at the paper's network and batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sorl_fast.bench import shapes
from torch import Tensor

from sorl_fast import ops
from sorl_fast.ops import judge, problems, reference
from sorl_fast.ops.implementations import Network
from sorl_fast.ops.problems import Case, Problem, Truth

CELL = shapes.Cell(256, 8, 1)  # B is the batch, M the rollout's steps and the critic's k
CASE = Case(
    Network(CELL.obs_dim, CELL.act_dim, shapes.HIDDEN, shapes.DEPTH, shapes.ENSEMBLE),
    CELL.batch,
    CELL.steps,
    CELL.candidates,
    seed=0,
)
OPERATIONS = ("velocity", "rollout", "critic_ensemble")
PRECISIONS = ("fp32", "bf16")


def leaves(given: Problem) -> tuple[Callable[[], Tensor], dict[str, Tensor]]:
    """Return the operation on a problem's inputs, and all that gradients are asked of, by name."""
    params = [p.clone().requires_grad_() for p in given.params]
    obs, act = given.obs.clone().requires_grad_(), given.act.clone().requires_grad_()
    layers = problems.grouped(params, given.critic)
    function = getattr(ops, given.operation)
    asked = {f"d parameter {i}": p for i, p in enumerate(params)} | {"d obs": obs, "d action": act}
    return lambda: function(layers, obs, act, *given.rest), asked


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_forward(
    in_lane: Callable[..., Any],
    native_training: Callable[[str], int],
    operation: str,
    precision: str,
) -> None:
    """The value, and what the backward will need."""
    threads = native_training(precision)
    given, truth = problems.solved(operation, precision, CASE)
    call, _ = leaves(given)
    judge.agree({"value": call()}, truth, "before it is timed")
    in_lane(f"{operation} forward, B={CASE.rows}", precision, threads)(call)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_backward(
    in_lane: Callable[..., Any],
    native_training: Callable[[str], int],
    operation: str,
    precision: str,
) -> None:
    """The gradients of the parameters, the observations and the actions, of one forward."""
    threads = native_training(precision)
    given, truth = problems.solved(operation, precision, CASE)
    call, asked = leaves(given)
    value, inputs = call(), list(asked.values())

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, inputs, given.grad, retain_graph=True)

    backward()  # what is timed is one of many of the same forward, so the second one is judged
    judge.agree(dict(zip(asked, backward(), strict=True)), truth, "before it is timed")
    in_lane(f"{operation} backward, B={CASE.rows}", precision, threads)(backward)


def test_adam_ema_step(in_lane: Callable[..., Any], native_training: Callable[[str], int]) -> None:
    """Clip, Adam and the EMA of the critics, over and over with the same gradient."""
    threads = native_training("fp32")
    g = torch.Generator().manual_seed(0)
    params, grads, targets = (problems.random_layers(CASE.network, True, g) for _ in range(3))
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    state = {"parameter": params, "first": moments[0], "second": moments[1], "target": targets}

    def arrays(state: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        return {f"{name} {i}": x for name, part in state.items() for i, x in enumerate(part)}

    def step(function: Callable[..., Tensor], grads: list[Tensor], *state: list[Tensor]) -> Tensor:
        p, m, v, target = state
        return function(p, grads, m, v, target, 1, **problems.SETTINGS)

    double = {name: [x.double() for x in part] for name, part in state.items()}
    norm = step(reference.adam_ema_step, [x.double() for x in grads], *double.values())
    exact = {**arrays(double), "norm": norm}
    truth = Truth(exact, problems.bounds(exact, exact, "fp32"))
    norm = step(ops.adam_ema_step, grads, *state.values())
    judge.agree({**arrays(state), "norm": norm}, truth, "before it is timed")
    in_lane("adam_ema_step, critics", "fp32", threads)(
        lambda: step(ops.adam_ema_step, grads, *state.values())
    )
