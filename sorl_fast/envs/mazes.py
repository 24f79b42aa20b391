"""Collecting in OGBench's mazes: shortest paths to random cells, the walking done by a body's expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .maze import Cell, Maze
from .recipe import Episode, Kind, Recipe, as_arrays, seeded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .bodies import Body

Actor = Callable[["NDArray[np.float32]"], "NDArray[np.float32]"]
"""An expert: an observation of its `bodies.Body` [O] -> an action [A]."""

_STITCH_DISTANCE = 4  # cells between start and goal of a stitch episode
_EXPLORE_STEPS = 10  # of an explored direction
_EXPLORE_NOISE = 1.0


def recipes(
    family: str,
    lengths: dict[str, dict[Kind, int]],
    noise: float,
    episodes: dict[str, int],
    bodies: tuple[Body, ...] = (),
) -> tuple[Recipe, ...]:
    """Return the recipes of a family of mazes.

    Parameters
    ----------
    family
        The first word of the names.
    lengths
        Rows of an episode, by the maze's size and the kind.
    noise
        Deviation of the action's noise; where a direction is explored it is 1.
    episodes
        How many OGBench has, by `size-kind` or else by kind.
    bodies
        Whose experts do the walking.
    """
    return tuple(
        Recipe(
            dataset=f"{family}-{size}-{kind}-v0",
            env=f"{family}-{size}-v0",
            kind=kind,
            steps=steps,
            noise=_EXPLORE_NOISE if kind == "explore" else noise,
            episodes=episodes.get(f"{size}-{kind}", episodes[kind]),
            bodies=bodies,
        )
        for size, kinds in lengths.items()
        for kind, steps in kinds.items()
    )


def open_maze(recipe: Recipe) -> Any:
    """Make the environment of a recipe, past its first reset: no episode is the first of its process."""
    import gymnasium
    import ogbench.locomaze  # noqa: F401 - registers the environments

    made = gymnasium.make(recipe.env, terminate_at_goal=False, disable_env_checker=True)
    env = cast("Any", made.unwrapped)
    env.reset(seed=0)
    return env


def unit(vector: NDArray[Any]) -> NDArray[Any]:
    """Return a vector's direction, 0 for no vector at all; OGBench's arithmetic."""
    return vector / (np.linalg.norm(vector) + 1e-6)


class Progress:
    """Counts the way-points that are reached: cells of a path, each where it was the next one."""

    def __init__(self, start: Cell) -> None:
        self.reached = 0
        self._here, self._aim = start, start

    def look(self, here: Cell, aim: Cell) -> None:
        """Note where the body is, and the cell that is its next way-point."""
        self.reached += here != self._here and here == self._aim
        self._here, self._aim = here, aim


class MazeSource:
    """Walk along shortest paths to random cells, or in random directions, with noise on every action.

    Parameters
    ----------
    recipe
        Of kind navigate: to one cell after another; stitch: to one a few cells away; explore: in
        a direction drawn anew every ten steps.
    act
        The expert that moves the body in a direction; None: the direction is the action.

    Attributes
    ----------
    waypoints
        How many the newest episode reached; None where there are none.
    """

    def __init__(self, recipe: Recipe, act: Actor | None = None) -> None:
        self._env = open_maze(recipe)
        self._recipe = recipe
        self._act = act
        self._maze = Maze(np.asarray(self._env.maze_map))
        self.waypoints: int | None = None

    def collect(self, seed: np.random.SeedSequence) -> Episode:
        """Return the arrays of the episode that `seed` stands for."""
        env_seed, rng = seeded(seed)
        env, maze, kind = self._env, self._maze, self._recipe.kind
        start = maze.cells[rng.integers(len(maze.cells))]
        goals = maze.junctions
        if kind == "stitch":
            goals = maze.cells_at(start, _STITCH_DISTANCE) or (start,)
        goal = goals[rng.integers(len(goals))]
        # A reset takes a few random steps first, from a generator that outlives the episode.
        env.action_space.seed(env_seed)
        ob, _ = env.reset(seed=env_seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})

        rows, progress = self._recipe.no_rows(), Progress(start)
        way = np.zeros(2)
        for step in range(self._recipe.steps):
            xy = env.get_xy()
            if kind != "explore":
                here = env.xy_to_ij(xy)
                aim = maze.next_cell(here, env.xy_to_ij(env.cur_goal_xy))
                progress.look(here, aim)
                way = unit(np.asarray(env.ij_to_xy(aim)) - xy)
            elif step % _EXPLORE_STEPS == 0:
                way = unit(rng.normal(size=2))
            action = self._intend(ob, way)
            action = np.clip(action + rng.normal(0, self._recipe.noise, action.shape), -1, 1)
            # In a teleport maze this is where the body stood before it was teleported, while qpos
            # is where it was taken to: so it is in OGBench's files.
            rows["observations"].append(ob)
            rows["actions"].append(action)
            ob, _, _, _, info = env.step(action)
            rows["qpos"].append(info["prev_qpos"])
            rows["qvel"].append(info["prev_qvel"])
            if info["success"] and kind == "navigate":
                goal = maze.junctions[rng.integers(len(maze.junctions))]
                # By place, not by cell: given a cell, ogbench 1.2 moves its marker to NaN.
                env.set_goal(goal_xy=env.add_noise(env.ij_to_xy(goal)))
        self.waypoints = None if kind == "explore" else progress.reached
        return as_arrays(rows)

    def _intend(self, ob: NDArray[Any], way: NDArray[Any]) -> NDArray[Any]:
        """Return the action before its noise."""
        if self._act is None:
            return way
        # without its place, which alone a teleport changes
        return self._act(np.concatenate([ob[2:], way]).astype(np.float32))
