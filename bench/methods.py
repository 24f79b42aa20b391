"""The methods as `sorl-bench train` races them: settings, kinds of updates, FLOP, and torch.compile.

A method's update is not always the same: SORL's has a number of Euler steps, ReBRAC's an actor loss or
none. Those are its *turns*; what is timed is each of them, and an update's time is their mean.
"""

import functools
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sorl_fast.config import MethodConfig
from sorl_fast.data.dataset import TransitionData
from sorl_fast.learn.algorithms import METHODS, find_method, method_config, method_of
from sorl_fast.learn.algorithms.sorl import SorlConfig, Steps
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.method import Trained

from .harness import Disagreement

ENV, O, A = "cube-single-play-singletask-task1-v0", 28, 5
STEPS = (1, 2, 4, 8)  # SORL's k, the same for the TD and the Q loss

# Passes over each network, by its name, of one update: a forward is one, a backward two, of which one goes
# to the inputs and one to the weights.
Passes = Mapping[str, float]


class Job(NamedTuple):
    """A method as it is raced."""

    settings: Mapping[str, Any]  # beside those of cube-single's preset
    turns: Mapping[str, Hashable]  # label -> `Method.choose`'s choice
    passes: Callable[[Any, Hashable], Passes]  # of its config and a turn
    compiled: Sequence[
        str
    ]  # the functions of losses that torch.compile compiles, with their backwards
    by: str = "turn"  # what the turns differ in


def _sorl(config: SorlConfig, turn: Hashable) -> Passes:
    assert isinstance(turn, Steps)
    # rollout at x', flow matching, the target's half steps, self-consistency; rollout and its backward.
    # Of the critics: TD's target, TD; Q, and its backward to the actions only.
    return {"actor": turn.td + 3 + 2 + 3 + 3 * turn.q, "critic": 1 + 3 + 2}


def _implicit(config: MethodConfig, turn: Hashable) -> Passes:
    # V(x) and V(x'); the target critics and the online ones
    return {"value": 3 + 1, "critic": 1 + 3, "actor": 3}


def _rebrac(config: MethodConfig, turn: Hashable) -> Passes:
    if not turn:
        return {"actor": 1, "critic": 1 + 3}
    return {"actor": 1 + 3, "critic": 1 + 3 + 2}


def _fql(config: Any, turn: Hashable) -> Passes:
    return {"critic": 1 + 3 + 2, "flow": 3 + config.flow_steps, "actor": 1 + 3}


_ONE = {"": ()}
JOBS = {
    "sorl": Job(
        {},
        {str(k): Steps(k, k) for k in STEPS},
        _sorl,
        ("critic_loss", "actor_losses"),
        by="k",
    ),
    "bc": Job({}, _ONE, lambda config, turn: {"actor": 3}, ("losses",)),
    "iql": Job({}, _ONE, _implicit, ("losses",)),
    "rebrac": Job(
        {}, {"critic": False, "both": True}, _rebrac, ("critic_loss", "actor_loss"), by="loss"
    ),
    "ifql": Job({}, _ONE, _implicit, ("losses",)),
    "fql": Job({}, _ONE, _fql, ("losses",)),
    # of the common networks: its authors' own are plain PyTorch, whoever computes
    "idql": Job({"score": "mlp"}, _ONE, _implicit, ("actor_loss", "value_loss", "critic_loss")),
}
assert JOBS.keys() == METHODS.keys()


class Floor(NamedTuple):
    """What is to be reached at batch 256, 4 x 512, on two threads: fp32 of AVX-512, bf16 of AMX."""

    times_eager: float  # of torch in that precision
    ms: float | None = None  # an update, at most
    times_jax: float | None = None  # where JAX races


FLOORS = {
    ("fql", "fp32"): Floor(1.4, 50.0, 1.45),
    ("rebrac", "fp32"): Floor(1.4),
    ("iql", "fp32"): Floor(1.3),
    ("bc", "fp32"): Floor(1.3),
    **{(method, "bf16"): Floor(2.5) for method in ("bc", "iql", "rebrac", "ifql", "idql")},
    ("fql", "bf16"): Floor(2.5, 15.0),
    ("sorl", "bf16"): Floor(4.0),
}


class Setting(NamedTuple):
    """What every contender gets: data, and the initial state of all random numbers."""

    config: Any  # the method's
    data: TransitionData

    def learner(self) -> Learner:
        """Return a learner, the same each time."""
        return Learner(method_of(self.config), O, A, torch.Generator().manual_seed(0))


def make_setting(batch: int, hidden: int = 512, depth: int = 4, method: str = "sorl") -> Setting:
    """Return synthetic transitions of cube-single's shape, and a method's settings there."""
    random = np.random.default_rng(0)
    T = 100_000
    arrays = {
        "observations": random.standard_normal((T, O)),
        "actions": np.tanh(random.standard_normal((T, A))),
        "rewards": -np.ones(T),
        "next_observations": random.standard_normal((T, O)),
        "masks": np.ones(T),
    }
    if "next_actions" in find_method(method).fields:
        arrays["next_actions"] = np.tanh(random.standard_normal((T, A)))
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    given = {**JOBS[method].settings, "batch_size": batch, "hidden": hidden, "depth": depth}
    config = method_config(method, ENV, given)
    return Setting(config, TransitionData(arrays, "synthetic"))


@functools.cache
def _products(config: MethodConfig) -> dict[str, int]:
    """Return the multiplications of one row in each of a method's networks: the numbers of all weights."""
    random = torch.Generator()
    return {
        name: sum(layer[0].numel() for layer in spec.make(random).layers())
        for name, spec in method_of(config).networks(O, A).items()
    }


def update_flop(batch: int, turn: Hashable, config: Any) -> float:
    """Return the nominal FLOP of one update: products only, a backward counted as two forwards."""
    products = _products(replace(config, batch_size=1))
    passes = JOBS[config.method].passes(config, turn)
    return 2 * batch * sum(count * products[name] for name, count in passes.items())


def mean_flop(config: Any) -> float:
    """Return the nominal FLOP of a method's update, the mean over its turns.

    At batch 256, 4 x 512, two critics, in GFLOP: SORL 14.7, FQL 12.0, IQL, IFQL and IDQL 6.2, ReBRAC
    5.1 (4.5 and 5.8), BC 1.2.
    """
    turns = JOBS[config.method].turns.values()
    return statistics.mean(update_flop(config.batch_size, turn, config) for turn in turns)


def compile_losses(learner: Learner, compile_: Callable[[Callable[..., Any]], Any]) -> None:
    """Compile a learner's losses with their backwards, a graph for each turn.

    The optimisers' steps, a few passes each, stay as they are. A compiled function can be differentiated
    only once, so the losses that it returns are added up before: SORL's two of the actor; of the others
    each network's own, which reaches no other network.
    """
    method = learner.method
    for function in JOBS[method.config.method].compiled:
        setattr(method, function, compile_(getattr(method, function)))
    if method.config.method == "sorl":
        adam = learner.optimisers["actor"]
        step = adam.step
        vars(adam)["step"] = lambda loss, more: step(loss + more)
    elif "losses" in JOBS[method.config.method].compiled:
        vars(learner)["step"] = functools.partial(_step_at_once, learner)


def _step_at_once(trained: Trained, losses: Mapping[str, Tensor]) -> list[Tensor]:
    """Do what `Trained.step` does, with one differentiation."""
    optimisers = [trained.optimisers[name] for name in losses]
    params = [p for optimiser in optimisers for p in optimiser.params]
    total = torch.stack([*losses.values()]).sum()
    grads = iter(torch.autograd.grad(total, params))
    return [optimiser.apply([next(grads) for _ in optimiser.params]) for optimiser in optimisers]


# How far the weights may be from those of torch's float32 after `UPDATES` updates, relative to how far they
# have gone. Adam steps alike along tiny gradients and large ones, so rounding shows:
# of SORL's, autocast's were 0.65 of it away on a machine with AMX, and ours 0.03. Wrong ones are 1 or more.
MOVED_BOUND = {"fp32": 2e-2, "bf16": 0.8}


def moved_apart(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> float:
    """Return ||p - p_expected|| / ||p_expected - p_start|| of all weights and targets; NaN where one is."""
    names = [name for name in expected if "_adam/" not in name and not name.startswith("kept/")]

    def norm(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        return float(torch.stack([(a[n] - b[n]).double().norm() for n in names]).norm())

    return norm(state, expected) / norm(expected, start)


def check_moved(who: str, precision: str, apart: float) -> None:
    """Raise Disagreement where weights are further apart than `MOVED_BOUND`, or not numbers."""
    if not apart <= MOVED_BOUND[precision]:
        raise Disagreement(
            f"{who} ({precision}): after some updates the weights are {apart:.3g} of their way from "
            f"torch's, above {MOVED_BOUND[precision]:g}: not timed"
        )
