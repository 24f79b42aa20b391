"""Collecting: one episode of OGBench's oracle, the simulator made before."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sorl_fast.envs import find_recipe, open_source
from sorl_fast.envs.recipe import collect_episode

ENV = "cube-single-play-v0"


def test_episode(in_lane: Callable[..., Any]) -> None:
    """Three episodes, all the same, for each takes about a second."""
    pytest.importorskip("ogbench")
    recipe = find_recipe(ENV)
    source = open_source(recipe)
    first, again = (collect_episode(source, 0, 0, 0) for _ in range(2))
    assert len(first["actions"]) == recipe.steps
    assert np.isfinite(first["observations"]).all()
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)
    in_lane(f"episode, {ENV}", "float64", 1).pedantic(
        collect_episode, args=(source, 0, 0, 0), rounds=3, warmup_rounds=0
    )
