"""Acting: the sampler's cells, and what comes before the first action."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sorl_fast.bench import harness, shapes
from sorl_fast.bench.shapes import Cell, Lane

from sorl_fast.act import policy_file
from sorl_fast.act.policy_file import Policy
from sorl_fast.act.sampler import Sampler

LOADED = Cell(1, 8, 8)


def test_act_into(
    in_lane: Callable[..., Any], checked: Callable[[Lane], harness.Running], lane: Lane
) -> None:
    """One call of the native sampler, as `sorl-bench sampler` times it."""
    running = checked(lane)
    in_lane(f"act, {lane.cell}", lane.precision, lane.threads)(running.call)


@pytest.mark.parametrize("precision", shapes.PRECISIONS)
def test_load(
    in_lane: Callable[..., Any],
    policies: Callable[[Cell], Policy],
    truth_of: Callable[[Cell], harness.Truth],
    tmp_path: Path,
    precision: str,
) -> None:
    """From a policy file to a sampler that may be called: read, check, pack."""
    path = tmp_path / "policy.safetensors"
    policy_file.save(path, policies(LOADED))
    obs, noise = shapes.make_inputs(LOADED)

    def load() -> Sampler:
        return Sampler.load(path, backend="native", precision=precision)

    actions = np.asarray(load().act(obs, LOADED.steps, LOADED.candidates, noise=noise))
    harness.judge("the loaded policy", actions, truth_of(LOADED), precision)
    in_lane("load", precision, 1)(load)
