import dataclasses

import numpy as np
import pytest

from sorl_fast.envs import RECIPES, find_recipe, open_source
from sorl_fast.envs.recipe import collect_episode

SIZES = ("medium", "large", "giant", "teleport")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_next_cell_agrees_with_ogbench(size):
    source = open_source(RECIPES[f"pointmaze-{size}-navigate-v0"])
    env, maze = source._env, source._maze
    rng = np.random.default_rng(0)
    for _ in range(200):
        start, goal = (maze.cells[i] for i in rng.integers(len(maze.cells), size=2))
        theirs, _ = env.get_oracle_subgoal(env.ij_to_xy(start), env.ij_to_xy(goal))
        assert tuple(theirs) == env.ij_to_xy(maze.next_cell(start, goal))


@pytest.mark.slow
def test_the_point_walks_from_goal_to_goal_and_a_stitch_is_four_cells_long():
    visited = {}
    for kind in ("navigate", "stitch"):
        recipe = dataclasses.replace(find_recipe(f"pointmaze-large-{kind}-v0"), steps=600)
        source = open_source(recipe)
        xy = collect_episode(source, 0, 0, 0)["qpos"]
        visited[kind] = list(dict.fromkeys(source._env.xy_to_ij(point) for point in xy))
    assert len(visited["stitch"]) == 5
    assert len(visited["navigate"]) > 10
