"""Whether a runtime makes of a graph what the definition makes of the policy: the numpy Sampler.

Shape letters: B observations, N candidates, O observation, A action, S normal numbers of a candidate.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..act.choice import PolicyChoice
from ..act.philox import uniforms
from ..act.policy_file import Policy
from ..act.rules import pick, scale_of
from ..act.sampler import Sampler
from ..act.session import Status
from ..errors import BadInput
from .program import program_of
from .runtimes import Run

# How far an action may be from the definition's, in units of half the bounds' width and at least of 1, and
# how far, relative to the largest, a Q may be rounded: `sorl-bench`'s bounds of a race in fp32.
ACTION_BOUND, Q_BOUND = 1e-4, 1e-3
TRIALS = 32  # of choosing with rounded numbers, where another candidate was chosen
BATCHES = (1, 2, 5)  # the same graph must take each
SEED = 7


class Case(NamedTuple):
    """Inputs, and what the definition makes of them."""

    obs: NDArray[np.float32]  # [B, O]
    noise: NDArray[np.float32]  # [B, N, A] or [B, N, S, A]
    u: NDArray[np.float32]  # [B]
    actions: NDArray[np.float32]  # [B, A]
    good: NDArray[np.bool_]  # [B]


def make_case(policy: Policy, way: PolicyChoice, batch: int) -> Case:
    """Return a case; of several observations the last is not finite, nor is one candidate's noise."""
    rng = np.random.default_rng((SEED, batch))
    obs = rng.standard_normal((batch, policy.obs_dim), np.float32)
    if policy.obs_mean is not None and policy.obs_std is not None:
        obs = obs * policy.obs_std + policy.obs_mean
    if batch > 1:
        obs[-1, 0] = np.nan
    S, A = policy.draws, policy.act_dim
    shape = (batch, way.candidates, A) if S == 1 else (batch, way.candidates, S, A)
    noise = rng.standard_normal(shape, np.float32)
    if batch > 2:
        noise[1, 0] = np.nan
    key: dict[str, Any] = {"seed": SEED} if way.rule.draws else {}
    actions, info = Sampler(policy, "numpy").act(
        obs,
        way.steps,
        way.candidates,
        rule=way.rule,
        noise=noise,
        return_info=True,
        **key,
    )
    good = info.status & Status.HELD == 0
    u = uniforms(SEED, batch).astype(np.float32)
    return Case(obs, noise, u, actions, good)


def inputs_of(policy: Policy, way: PolicyChoice, case: Case) -> dict[str, NDArray[np.float32]]:
    """Return the inputs that the graph has, by name."""
    inputs = {"obs": case.obs}
    if program_of(policy, way.steps).draws:
        inputs["noise"] = case.noise
    if way.candidates > 1 and way.rule.draws:
        inputs["u"] = case.u
    return inputs


def check(policy: Policy, way: PolicyChoice, run: Run, name: str) -> float:
    """Run the cases and return the largest error of an action, in the units of `ACTION_BOUND`.

    An action may also be another candidate's, if the rule chooses that one where Q and actions are
    rounded within the bounds: a near tie.

    Raises
    ------
    BadInput
        The runtime, called `name`, fails or disagrees.
    """
    worst = 0.0
    for batch in BATCHES:
        case = make_case(policy, way, batch)
        try:
            actions, good = run(inputs_of(policy, way, case))
        except Exception as err:  # a runtime raises what it likes
            raise BadInput(
                f"{name} cannot run the graph for {batch} observations: {err}. Take another version of it; "
                "nothing was written"
            ) from err
        if actions.shape != case.actions.shape or not np.array_equal(good, case.good):
            raise BadInput(
                f"{name} makes actions {list(actions.shape)}, good {np.asarray(good).tolist()}, but the "
                f"definition {list(case.actions.shape)}, good {case.good.tolist()}. Take another version "
                "of it; nothing was written"
            )
        for row in range(batch):
            error = _error(policy, actions[row], case.actions[row])
            if error > ACTION_BOUND and case.good[row]:
                near = _may_win(policy, way, case, row)
                error = min([error, *(_error(policy, actions[row], a) for a in near)])
            if not error <= ACTION_BOUND:
                raise BadInput(
                    f"{name} makes an action that is {error:.3g} from the definition's, above "
                    f"{ACTION_BOUND:g}, for observation {row} of {batch}. Take another version of it; "
                    "nothing was written"
                )
            worst = max(worst, error)
    return worst


def _error(policy: Policy, action: NDArray[Any], expected: NDArray[Any]) -> float:
    low, high = policy.bounds
    unit = np.maximum(1, (high.astype(np.float64) - low) / 2)
    error = float(np.max(np.abs(action.astype(np.float64) - expected) / unit))
    return error if np.isfinite(error) else np.inf


def _may_win(policy: Policy, way: PolicyChoice, case: Case, row: int) -> list[NDArray[Any]]:
    """Return the candidates' actions, in the policy's units, that rounding may choose for a good row."""
    N = way.candidates
    if N == 1:
        return []
    sampler = Sampler(dataclasses.replace(policy, action_map=None), "numpy")
    # every candidate of the observation, as a row of its own
    actions, info = sampler.act(
        np.repeat(case.obs[row : row + 1], N, axis=0),
        way.steps,
        1,
        noise=case.noise[row][:, None],
        return_info=True,
    )
    good = info.status & Status.HELD == 0
    if way.rule.reads_q:
        good &= np.isfinite(info.q)
    w = scale_of(policy.action_low, policy.action_high)
    size = np.abs(info.q[good]).max(initial=1.0) if way.rule.reads_q else 1.0
    rng = np.random.default_rng(SEED)
    chosen = set()
    for _ in range(TRIALS):
        q = info.q + rng.uniform(-0.5, 0.5, N) * (Q_BOUND * size)
        moved = actions + rng.uniform(-1, 1, actions.shape) * ACTION_BOUND
        u = float(np.clip(case.u[row] + rng.uniform(-1, 1) * Q_BOUND, 0, 1 - 2.0**-24))
        chosen.add(pick(way.rule, moved, q, good, w, u if way.rule.name == "soft" else case.u[row]))
    units = policy.action_map
    return [actions[i] if units is None else units.to_units(actions[i]) for i in sorted(chosen)]
