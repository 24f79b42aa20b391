"""Way-points are counted where they were the next ones, and a body is told the way to them."""

import dataclasses

import numpy as np
import pytest

from sorl_fast.envs import find_recipe, open_source
from sorl_fast.envs.antsoccer import SoccerSource
from sorl_fast.envs.maze import Maze
from sorl_fast.envs.mazes import Progress, unit
from sorl_fast.envs.recipe import collect_episode


def count(walls, places, goal):
    maze, progress = Maze(np.array(walls)), Progress(places[0])
    for here in places:
        progress.look(here, maze.next_cell(here, goal))
    return progress.reached


ROW = [[1] * 7, [1, 0, 0, 0, 0, 0, 1], [1] * 7]


@pytest.mark.parametrize(
    ("columns", "goal", "reached"),
    [
        ([1, 1, 2, 2, 3, 4, 5, 5, 5], 5, 4),
        ([3, 2, 1, 2, 3], 5, 2),  # away first
        ([1, 1, 1], 5, 0),
        ([1], 1, 0),
        ([1, 3], 5, 0),  # past it at once
    ],
    ids=["there", "back", "stuck", "start", "past"],
)
def test_way_points_are_counted_once_each(columns, goal, reached):
    assert count(ROW, [(1, j) for j in columns], (1, goal)) == reached


def test_a_direction_has_length_one_or_none():
    np.testing.assert_allclose(unit(np.array([3.0, -4.0])), [0.6, -0.8], atol=1e-6)
    np.testing.assert_array_equal(unit(np.zeros(2)), [0, 0])


class Seen:
    """An actor that notes what it reads and does nothing."""

    def __init__(self):
        self.obs = []

    def __call__(self, obs):
        assert obs.dtype == np.float32
        self.obs.append(obs)
        return np.zeros(8, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["navigate", "explore"])
def test_an_expert_reads_the_joints_and_a_direction(kind):
    recipe = dataclasses.replace(find_recipe(f"antmaze-medium-{kind}-v0"), steps=30)
    seen = Seen()
    source = open_source(recipe, [seen])
    episode = collect_episode(source, 0, 0, 0)
    obs = np.array(seen.obs)
    assert obs.shape == (30, 29)
    np.testing.assert_array_equal(obs[:, :27], episode["observations"][:, 2:])
    np.testing.assert_allclose(np.linalg.norm(obs[:, 27:], axis=1), 1, atol=1e-5)
    changes = np.flatnonzero(np.abs(np.diff(obs[:, 27:], axis=0)).sum(axis=1) > 0) + 1
    if kind == "explore":
        assert changes.tolist() == [10, 20]
    else:
        env = source._env
        xy = episode["qpos"][0, :2]
        goal = env.cur_goal_xy
        theirs, _ = env.get_oracle_subgoal(xy, goal)
        np.testing.assert_allclose(obs[0, 27:], unit(theirs - xy), atol=1e-4)
    noise = recipe.noise
    acted = episode["actions"]
    assert 0.5 * noise < acted.std() < 1.2 * noise


@pytest.mark.slow
@pytest.mark.parametrize("size", ["arena", "medium"])
def test_a_dribbling_expert_reads_what_it_was_trained_on(size):
    """As in ogbench's online environment: joints, speeds, the way to the ball and from it to the goal."""
    recipe = dataclasses.replace(find_recipe(f"antsoccer-{size}-stitch-v0"), steps=4)
    walk, dribble = Seen(), Seen()
    source = SoccerSource(recipe, walk, dribble)
    for index in range(6):
        episode = collect_episode(source, 0, 0, index)
        assert len(walk.obs) in (0, 4)  # one or the other, all the time
        assert len(walk.obs) + len(dribble.obs) == 4
        if dribble.obs:
            first, qpos, qvel = dribble.obs[0], episode["qpos"][0], episode["qvel"][0]
            np.testing.assert_allclose(first[:13], qpos[2:15])
            np.testing.assert_allclose(first[13:18], qpos[17:22])
            np.testing.assert_allclose(first[18:38], qvel)
            np.testing.assert_allclose(first[38:40], qpos[15:17] - qpos[:2], atol=1e-5)
            assert np.linalg.norm(first[40:42]) <= (10.0 if size == "arena" else 6.0) + 1e-4
        else:
            np.testing.assert_allclose(walk.obs[0][13:27], episode["qvel"][0][:14])
        walk.obs.clear()
        dribble.obs.clear()
