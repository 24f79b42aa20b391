"""pointmaze: a point is pushed through a maze."""

from typing import Any, cast

import numpy as np

from .family import Family
from .maze import Maze
from .recipe import Episode, Kind, Recipe, as_arrays, seeded

_SIZES = ("medium", "large", "giant", "teleport")
_KINDS: tuple[Kind, ...] = ("navigate", "stitch")


def _recipe(size: str, kind: Kind) -> Recipe:
    steps = 201 if kind == "stitch" else 2001 if size == "giant" else 1001
    return Recipe(f"pointmaze-{size}-{kind}-v0", f"pointmaze-{size}-v0", kind, steps)


class PointMazeSource:
    """Walk along shortest paths to random cells, with noise on every action."""

    _NOISE = 0.5
    _STITCH_DISTANCE = 4  # cells between start and goal of a stitch episode

    def __init__(self, recipe: Recipe) -> None:
        import gymnasium
        import ogbench.locomaze  # noqa: F401 - registers the environments

        made = gymnasium.make(recipe.env, terminate_at_goal=False, disable_env_checker=True)
        self._env = cast("Any", made.unwrapped)
        self._env.reset(seed=0)  # no episode is the first of its process
        self._recipe = recipe
        self._maze = Maze(np.asarray(self._env.maze_map))

    def collect(self, seed: np.random.SeedSequence) -> Episode:
        """Return the arrays of the episode that `seed` stands for."""
        env_seed, rng = seeded(seed)
        env, maze = self._env, self._maze
        start = maze.cells[rng.integers(len(maze.cells))]
        goals = maze.junctions
        if self._recipe.kind == "stitch":
            goals = maze.cells_at(start, self._STITCH_DISTANCE) or (start,)
        goal = goals[rng.integers(len(goals))]
        # A reset takes a few random steps first, from a generator that outlives the episode.
        env.action_space.seed(env_seed)
        ob, _ = env.reset(seed=env_seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})

        rows = self._recipe.no_rows()
        for _ in range(self._recipe.steps):
            xy = env.get_xy()
            towards = maze.next_cell(env.xy_to_ij(xy), env.xy_to_ij(env.cur_goal_xy))
            way = np.asarray(env.ij_to_xy(towards)) - xy
            way = way / (np.linalg.norm(way) + 1e-6)
            action = np.clip(way + rng.normal(0, self._NOISE, 2), -1, 1)
            # In a teleport maze this is where the point stood before it was teleported, while qpos
            # is where it was taken to: so it is in OGBench's files.
            rows["observations"].append(ob)
            rows["actions"].append(action)
            ob, _, _, _, info = env.step(action)
            rows["qpos"].append(info["prev_qpos"])
            rows["qvel"].append(info["prev_qvel"])
            if info["success"] and self._recipe.kind == "navigate":
                goal = maze.junctions[rng.integers(len(maze.junctions))]
                # By place, not by cell: given a cell, ogbench 1.2 moves its marker to NaN.
                env.set_goal(goal_xy=env.add_noise(env.ij_to_xy(goal)))
        return as_arrays(rows)


FAMILY = Family(
    name="pointmaze",
    data_from="oracle",
    recipes=tuple(_recipe(size, kind) for size in _SIZES for kind in _KINDS),
    open_source=PointMazeSource,
    collectable="pointmaze-{medium,large,giant,teleport}-{navigate,stitch}-v0",
)
