"""antsoccer: a four-legged robot dribbles a ball to a goal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .bodies import ANT, ANTBALL
from .family import Family, Preset, published
from .maze import Maze
from .mazes import Actor, open_maze, recipes, unit
from .recipe import Episode, Recipe, as_arrays, seeded

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CLOSE = 2.0  # metres from which on the ball is dribbled and not walked to
_FAR = 10.0  # as far away as a goal was in the training of dribbling
_STUCK_STEPS, _STUCK = 150, 2.0  # so long within so many metres is being stuck
_THERE = 0.5  # metres from where it goes that are close enough


class SoccerSource:
    """Walk to the ball and dribble it to random cells, with noise on every action.

    Parameters
    ----------
    recipe
        Of kind navigate: both, to one goal after another; stitch: one of the two, at random.
    walk, dribble
        The experts: one moves the ant in a direction, one the ball to a goal.

    Attributes
    ----------
    waypoints
        How many goals the newest episode reached.
    """

    def __init__(self, recipe: Recipe, walk: Actor, dribble: Actor) -> None:
        self._env = open_maze(recipe)
        self._recipe = recipe
        self._walk, self._dribble = walk, dribble
        self._maze = Maze(np.asarray(self._env.maze_map))
        self._is_open = "arena" in recipe.env  # nothing stands in the way
        self.waypoints: int | None = None

    def collect(self, seed: np.random.SeedSequence) -> Episode:
        """Return the arrays of the episode that `seed` stands for."""
        env_seed, rng = seeded(seed)
        env, cells = self._env, self._maze.cells
        navigates = self._recipe.kind == "navigate"
        only_walks = not navigates and bool(rng.integers(2))
        start, ball, goal = (cells[i] for i in rng.choice(len(cells), 3, replace=False))
        if not navigates and not only_walks:
            ball = start
        task = {"agent_init_ij": start, "ball_init_ij": ball, "goal_ij": goal}
        env.action_space.seed(env_seed)
        ob, _ = env.reset(seed=env_seed, options={"task_info": task})

        rows, reached = self._recipe.no_rows(), 0
        detour: NDArray[Any] | None = None  # where to walk to when stuck
        for step in range(self._recipe.steps):
            agent_xy, ball_xy = (np.asarray(xy) for xy in env.get_agent_ball_xy())
            goal_xy = np.asarray(env.cur_goal_xy)
            if detour is not None:
                action = self._towards(ob, detour)
            elif only_walks:
                action = self._towards(ob, goal_xy)
            elif navigates and np.linalg.norm(agent_xy - ball_xy) > _CLOSE:
                action = self._towards(ob, ball_xy)
            else:
                action = self._dribbled(ob, agent_xy, ball_xy, goal_xy)
            action = np.clip(action + rng.normal(0, self._recipe.noise, action.shape), -1, 1)
            rows["observations"].append(ob)
            rows["actions"].append(action)
            ob, _, _, _, info = env.step(action)
            rows["qpos"].append(info["prev_qpos"])
            rows["qvel"].append(info["prev_qvel"])
            if navigates:
                if detour is not None and np.linalg.norm(detour - ob[:2]) <= _THERE:
                    detour = None
                if info["success"]:
                    reached += 1
                    goal = cells[rng.integers(len(cells))]
                    env.set_goal(goal_xy=env.add_noise(env.ij_to_xy(goal)))
                if detour is None and step > _STUCK_STEPS and self._stuck(rows, ob):
                    detour = np.asarray(env.ij_to_xy(cells[rng.integers(len(cells))]))
        self.waypoints = reached if navigates else None
        return as_arrays(rows)

    def _stuck(self, rows: dict[str, list[Any]], ob: NDArray[Any]) -> bool:
        places = np.asarray(rows["observations"][-_STUCK_STEPS:])[:, :2]
        return bool(np.linalg.norm(places - ob[:2], axis=1).max() <= _STUCK)

    def _next(self, start_xy: NDArray[Any], goal_xy: NDArray[Any]) -> NDArray[Any]:
        """Return the next way-point of a path."""
        env = self._env
        cell = self._maze.next_cell(env.xy_to_ij(start_xy), env.xy_to_ij(goal_xy))
        return np.asarray(env.ij_to_xy(cell))

    def _towards(self, ob: NDArray[Any], goal_xy: NDArray[Any]) -> NDArray[Any]:
        """Return the action that walks to a place: of the ant's joints and their speeds alone."""
        if not self._is_open:
            goal_xy = self._next(ob[:2], goal_xy)
        seen = [ob[2:15], ob[22:36], unit(goal_xy - ob[:2])]
        return self._walk(np.concatenate(seen).astype(np.float32))

    def _dribbled(
        self, ob: NDArray[Any], agent_xy: NDArray[Any], ball_xy: NDArray[Any], goal_xy: NDArray[Any]
    ) -> NDArray[Any]:
        """Return the action that dribbles the ball to a place."""
        if not self._is_open:
            goal_xy = self._next(ball_xy, goal_xy)
        elif (far := np.linalg.norm(goal_xy - ball_xy)) > _FAR:
            goal_xy = ball_xy + _FAR * (goal_xy - ball_xy) / far
        seen = [ob[2:15], ob[17:], ball_xy - agent_xy, goal_xy - ball_xy]
        return self._dribble(np.concatenate(seen).astype(np.float32))


FAMILY = Family(
    name="antsoccer",
    data_from="expert",
    presets=(
        Preset(
            name="antsoccer-arena-navigate",
            obs_dim=42,
            act_dim=8,
            episode_limit=1000,
            methods={
                "sorl": {"q_coef": 500, "gamma": 0.995, "q_agg": "mean"},
                "fql": {"alpha": 10, "q_agg": "mean", "gamma": 0.995},
                "iql": {"alpha": 1, "gamma": 0.995},  # unconfirmed
                "ifql": {"num_samples": 64, "gamma": 0.995},  # unconfirmed
                "rebrac": {
                    "alpha_actor": 0.01,
                    "alpha_critic": 0.01,
                    "gamma": 0.995,
                },  # unconfirmed
                "idql": {"expectile": 0.7, "gamma": 0.995},
            },
            paper=published(1, 8, 0, 12, 60, (69, 2)),
        ),
    ),
    recipes=recipes(
        "antsoccer",
        {
            "arena": {"navigate": 1001, "stitch": 201},
            "medium": {"navigate": 1001, "stitch": 501},
        },
        noise=0.2,
        episodes={
            "navigate": 1000,
            "stitch": 5000,
            "medium-navigate": 4000,
            "medium-stitch": 8000,
        },
        bodies=(ANT, ANTBALL),
    ),
    open_source=SoccerSource,
    collectable="antsoccer-{arena,medium}-{navigate,stitch}-v0",
)
