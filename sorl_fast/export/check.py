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
from ..act.session import NoiseKey, Status, noise_of
from ..errors import BadInput
from .program import program_of
from .runtimes import Run


class Bounds(NamedTuple):
    """How far an action may be from the definition's, in units of half the bounds' width and at least of
    1; how far, relative to the largest, a Q; and how often choosing is tried with numbers so rounded.
    """

    action: float
    q: float
    trials: int


# `sorl-bench`'s bounds of a race
BOUNDS = {
    "fp32": Bounds(1e-4, 1e-3, 32),
    "bf16": Bounds(0.1, 0.1, 256),
    "int8": Bounds(0.1, 0.1, 256),
}
BATCHES = (1, 2, 5)  # the same graph must take each
SEED, CALL = 7 + 2**40, 3


class Case(NamedTuple):
    """Inputs, and what the definition makes of them."""

    obs: NDArray[np.float32]  # [B, O]
    noise: NDArray[np.float32]  # [B, N, A] or [B, N, S, A]
    u: NDArray[np.float32]  # [B]
    actions: NDArray[np.float32]  # [B, A]
    good: NDArray[np.bool_]  # [B]


def make_case(policy: Policy, way: PolicyChoice, batch: int, source: str = "input") -> Case:
    """Return a case; of several observations the last is not finite, nor is one candidate's noise.

    By philox, which makes finite noise only, it is the noise of SEED and CALL.
    """
    rng = np.random.default_rng((SEED, batch))
    obs = rng.standard_normal((batch, policy.obs_dim), np.float32)
    if policy.obs_mean is not None and policy.obs_std is not None:
        obs = obs * policy.obs_std + policy.obs_mean
    if batch > 1:
        obs[-1, 0] = np.nan
    N, S, A = way.candidates, policy.draws, policy.act_dim
    key: dict[str, Any] = {"seed": SEED, "call": CALL}
    if source == "philox":
        noise, given = noise_of(NoiseKey(SEED, CALL, 0), batch, N, A, S), key
    else:
        noise = rng.standard_normal((batch, N, A) if S == 1 else (batch, N, S, A), np.float32)
        if batch > 2:
            noise[1, 0] = np.nan
        given = {"noise": noise} | (key if way.rule.draws else {})
    sampler = Sampler(policy, "numpy")
    actions, info = sampler.act(obs, way.steps, N, rule=way.rule, return_info=True, **given)
    good = info.status & Status.HELD == 0
    u = uniforms(SEED, batch, CALL).astype(np.float32)
    return Case(obs, noise, u, actions.reshape(batch, A), good)  # a chunk's actions are one row


def input_names(policy: Policy, way: PolicyChoice, source: str) -> list[str]:
    """Return the names of the inputs that the graph has."""
    reads = bool(program_of(policy, way.steps).draws)
    draws = way.candidates > 1 and way.rule.draws
    if source == "philox":
        return ["obs", "seed", "call"] if reads or draws else ["obs"]
    return ["obs"] + ["noise"] * reads + ["u"] * draws


def inputs_of(
    policy: Policy, way: PolicyChoice, case: Case, source: str = "input"
) -> dict[str, NDArray[Any]]:
    """Return the inputs that the graph has, by name."""
    values: dict[str, NDArray[Any]] = case._asdict()
    values["seed"] = np.array([SEED], "<u8").view(np.uint32)
    values["call"] = np.array([CALL], np.uint32)
    return {name: values[name] for name in input_names(policy, way, source)}


def check(
    policy: Policy,
    way: PolicyChoice,
    run: Run,
    name: str,
    source: str = "input",
    precision: str = "fp32",
) -> float:
    """Run the cases and return the largest error of an action, in the units of `Bounds.action`.

    An action may also be another candidate's, if the rule chooses that one where Q and actions are
    rounded within the bounds: a near tie.

    Raises
    ------
    BadInput
        The runtime, called `name`, fails or disagrees.
    """
    worst, bounds = 0.0, BOUNDS[precision]
    for batch in BATCHES:
        case = make_case(policy, way, batch, source)
        try:
            actions, good = run(inputs_of(policy, way, case, source))
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
            if error > bounds.action and case.good[row]:
                near = _may_win(policy, way, case, row, bounds)
                error = min([error, *(_error(policy, actions[row], a) for a in near)])
            if not error <= bounds.action:
                raise BadInput(
                    f"{name} makes an action that is {error:.3g} from the definition's, above "
                    f"{bounds.action:g}, for observation {row} of {batch}. Take another version of it; "
                    "nothing was written"
                )
            worst = max(worst, error)
    return worst


def _error(policy: Policy, action: NDArray[Any], expected: NDArray[Any]) -> float:
    low, high = policy.bounds
    unit = np.maximum(1, (high.astype(np.float64) - low) / 2)
    error = float(np.max(np.abs(action.astype(np.float64) - expected) / unit))
    return error if np.isfinite(error) else np.inf


def _may_win(
    policy: Policy, way: PolicyChoice, case: Case, row: int, bounds: Bounds
) -> list[NDArray[Any]]:
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
    actions = actions.reshape(N, -1)
    good = info.status & Status.HELD == 0
    if way.rule.reads_q:
        good &= np.isfinite(info.q)
    w = scale_of(policy.action_low, policy.action_high)
    size = np.abs(info.q[good]).max(initial=1.0) if way.rule.reads_q else 1.0
    rng = np.random.default_rng(SEED)
    chosen = set()
    for _ in range(bounds.trials):
        q = info.q + rng.uniform(-0.5, 0.5, N) * (bounds.q * size)
        moved = actions + rng.uniform(-1, 1, actions.shape) * bounds.action
        u = float(np.clip(case.u[row] + rng.uniform(-1, 1) * bounds.q, 0, 1 - 2.0**-24))
        chosen.add(pick(way.rule, moved, q, good, w, u if way.rule.name == "soft" else case.u[row]))
    units = policy.action_map
    return [actions[i] if units is None else units.to_units(actions[i]) for i in sorted(chosen)]
