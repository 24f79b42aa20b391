import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorl_fast.config import PRESETS
from sorl_fast.data.oracles import (
    RECIPES,
    Maze,
    collect_episode,
    cube_left_view,
    find_recipe,
    open_source,
)
from sorl_fast.errors import BadInput

SCENES = (
    *("cube-single", "cube-double", "cube-triple", "cube-quadruple", "scene"),
    *("puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6"),
)
SIZES = ("medium", "large", "giant", "teleport")


def test_the_data_sets_are_those_of_the_recipe():
    manipulation = {f"{s}-{k}-v0" for s in SCENES for k in ("play", "noisy")}
    mazes = {f"pointmaze-{s}-{k}-v0" for s in SIZES for k in ("navigate", "stitch")}
    assert set(RECIPES) == manipulation | mazes


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("cube-single-play-v0", 1001),
        ("scene-noisy-v0", 1001),
        ("puzzle-4x6-play-v0", 1001),
        ("pointmaze-medium-navigate-v0", 1001),
        ("pointmaze-giant-navigate-v0", 2001),
        ("pointmaze-giant-stitch-v0", 201),
        ("pointmaze-teleport-stitch-v0", 201),
    ],
)
def test_episode_length(name, steps):
    assert find_recipe(name).steps == steps


def test_collectable_presets_have_a_recipe_and_the_others_have_none():
    for preset in PRESETS.values():
        assert (preset.dataset in RECIPES) == preset.collectable


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "cube-single-play-singletask-task2-v0",
            "Run `sorl-fast collect --env cube-single-play-v0",
        ),
        ("scene-play-singletask-v0", "Run `sorl-fast collect --env scene-play-v0"),
        ("antmaze-large-navigate-v0", "train --env antmaze-large-navigate-singletask-task1-v0"),
        ("antsoccer-arena-navigate-singletask-task1-v0", "trained locomotion expert"),
        ("humanoidmaze-medium-navigate-v0", "trained locomotion expert"),
        ("cube-single-v0", "cube-{single,double"),
        ("cube-octuple-play-v0", "no data set that can be collected"),
        ("visual-cube-single-play-v0", "no data set that can be collected"),
        ("pointmaze-medium-play-v0", "pointmaze-{medium,large"),
    ],
)
def test_what_cannot_be_collected_is_refused_with_a_way_out(name, says):
    with pytest.raises(BadInput) as error:
        find_recipe(name)
    assert name in str(error.value)
    assert says in str(error.value)


class Drops:
    """A source whose first attempts must be dropped."""

    def __init__(self, drops):
        self.drops = drops
        self.keys = []

    def collect(self, seed):
        self.keys.append((seed.entropy, *seed.spawn_key))
        return None if len(self.keys) <= self.drops else {"ok": np.zeros(1)}


def test_a_dropped_episode_is_replaced_by_the_next_attempt_of_the_same_episode():
    source = Drops(2)
    assert "ok" in collect_episode(source, 7, 1, 5)
    assert source.keys == [(7, 1, 5, 0), (7, 1, 5, 1), (7, 1, 5, 2)]


def test_an_episode_that_is_always_dropped_is_an_error():
    with pytest.raises(RuntimeError, match="episode 5 had to be dropped"):
        collect_episode(Drops(10**9), 7, 1, 5)


@pytest.mark.parametrize(
    ("y", "z", "left"),
    [
        (0.0, 0.02, False),
        (0.28, 0.02, False),
        (0.29, 0.02, True),
        (-0.29, 0.02, False),
        (-0.30, 0.02, True),
        (-0.30, 0.07, False),
        (-0.30, 0.09, True),
    ],
    ids=["middle", "right", "too far right", "left", "too far left", "in drawer", "above drawer"],
)
def test_cube_left_view(y, z, left):
    qpos = np.zeros((3, 25))
    qpos[1, 14:17] = 0.4, y, z
    assert cube_left_view(qpos) is left


@st.composite
def mazes(draw):
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    inside = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    walls = np.ones((rows + 2, columns + 2), dtype=int)
    walls[1:-1, 1:-1] = np.reshape(inside, (rows, columns))
    walls[1, 1] = 0
    return walls


@given(mazes(), st.data())
def test_next_cell_leads_to_the_goal_in_as_many_steps_as_cells_at_says(walls, data):
    maze = Maze(walls)
    start = data.draw(st.sampled_from(maze.cells))
    goal = data.draw(st.sampled_from(maze.cells))
    far = [n for n in range(len(maze.cells)) if goal in maze.cells_at(start, n)]
    cell = start
    for left in range(far[0] if far else 3, 0, -1):
        after = maze.next_cell(cell, goal)
        assert walls[after] == 0
        if far:
            assert sum(abs(a - b) for a, b in zip(after, cell, strict=True)) == 1
            assert goal in maze.cells_at(after, left - 1)
        else:
            assert after == start
        cell = after
    assert (cell == goal) == bool(far)
    assert maze.next_cell(goal, goal) == goal


def test_corridors_are_no_goals():
    walls = np.array(
        [
            [1, 1, 1, 1, 1],
            [1, 0, 0, 0, 1],
            [1, 0, 1, 1, 1],
            [1, 0, 1, 0, 1],
            [1, 1, 1, 1, 1],
        ]
    )
    assert Maze(walls).junctions == ((1, 1), (1, 3), (3, 1), (3, 3))


# --- with the simulator ---------------------------------------------------------------------------


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


FAMILIES = [
    "cube-single-play-v0",
    "cube-double-noisy-v0",
    "scene-play-v0",
    "scene-noisy-v0",
    "puzzle-3x3-play-v0",
    "puzzle-3x3-noisy-v0",
    "pointmaze-teleport-navigate-v0",
    "pointmaze-medium-stitch-v0",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_an_episode_is_whole_and_does_not_depend_on_those_before(name):
    recipe = dataclasses.replace(find_recipe(name), steps=100)
    source = open_source(recipe)
    episode = collect_episode(source, 3, 0, 1)

    assert tuple(episode) == recipe.keys
    assert {key: str(array.dtype) for key, array in episode.items()} == {
        "observations": "float32",
        "actions": "float32",
        "terminals": "bool",
        "qpos": "float32",
        "qvel": "float32",
        **({"button_states": "int64"} if recipe.has_buttons else {}),
    }
    assert {len(array) for array in episode.values()} == {100}
    assert np.flatnonzero(episode["terminals"]).tolist() == [99]
    assert np.abs(episode["actions"]).max() <= 1
    assert all(np.isfinite(array).all() for array in episode.values())
    # Row t is one state: the observation starts with the joint positions of qpos.
    if not recipe.is_maze:
        np.testing.assert_array_equal(episode["observations"][:, :6], episode["qpos"][:, :6])

    collect_episode(source, 3, 0, 2)
    collect_episode(source, 4, 1, 1)
    np.random.seed(99)  # noqa: NPY002 - what the process drew before must not matter
    again = collect_episode(source, 3, 0, 1)
    fresh = collect_episode(open_source(recipe), 3, 0, 1)
    for key in recipe.keys:
        assert episode[key].dtype == again[key].dtype == fresh[key].dtype
        np.testing.assert_array_equal(episode[key], again[key])
        np.testing.assert_array_equal(episode[key], fresh[key])


@pytest.mark.slow
def test_episodes_of_other_indices_splits_and_seeds_differ():
    source = open_source(dataclasses.replace(find_recipe("pointmaze-medium-navigate-v0"), steps=3))
    first = collect_episode(source, 0, 0, 0)["observations"]
    for seed, split, episode in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2**63 - 1, 0, 0)]:
        assert not np.array_equal(first, collect_episode(source, seed, split, episode))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cube-single-play-v0", "cube-single-noisy-v0"])
def test_the_oracle_moves_the_cube(name):
    source = open_source(dataclasses.replace(find_recipe(name), steps=150))
    xy = collect_episode(source, 0, 0, 0)["qpos"][:, 14:16]
    assert np.linalg.norm(xy - xy[0], axis=1).max() > 0.05


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
