"""One episode of OGBench data at a time, by OGBench's recipe and with the oracles of its package.

The recipe is that of the OGBench paper (arXiv 2410.20092) and its public generation scripts:
`play` follows pre-computed plans with smooth noise, `noisy` follows closed-loop oracles with
Gaussian noise and random actions, `navigate` and `stitch` follow shortest paths through a maze.

Everything random in an episode comes from one `numpy.random.SeedSequence`, so that an episode is a
function of (seed, split, episode) and not of the process, the worker or the episodes before it.
Nothing here imports a simulator until a source is opened.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np

from ..config import dataset_name
from ..errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

Episode = dict[str, "NDArray[Any]"]
Cell = tuple[int, int]  # row, column of a maze
Kind = Literal["play", "noisy", "navigate", "stitch"]

# Changes whenever the same seed would give other arrays; part of what a collection is.
RECIPE_VERSION = 1

# What OGBench's own files hold. Rows are states: the last row of an episode is its extra final
# state, marked by terminals, and its action leads nowhere.
DTYPES: dict[str, type[np.generic]] = {
    "observations": np.float32,
    "actions": np.float32,
    "terminals": np.bool_,
    "qpos": np.float32,
    "qvel": np.float32,
    "button_states": np.int64,
}

_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Recipe:
    """How one data set is collected.

    Attributes
    ----------
    dataset
        OGBench's name of the data set.
    env
        The gymnasium id of the environment that it is collected in.
    kind
        play and noisy for manipulation, navigate and stitch for point mazes.
    steps
        Rows of an episode, its extra final state included.
    """

    dataset: str
    env: str
    kind: Kind
    steps: int

    @property
    def is_maze(self) -> bool:
        """Whether the environment is a point maze; the others are manipulation."""
        return self.env.startswith("pointmaze-")

    @property
    def has_buttons(self) -> bool:
        """Whether the state has buttons beside qpos and qvel."""
        return self.env.startswith(("scene-", "puzzle-"))

    @property
    def keys(self) -> tuple[str, ...]:
        """The arrays of the data set, in the order of the file."""
        return tuple(key for key in DTYPES if key != "button_states" or self.has_buttons)


def _recipes() -> dict[str, Recipe]:
    found = {}
    cubes = [f"cube-{n}" for n in ("single", "double", "triple", "quadruple")]
    puzzles = [f"puzzle-{n}" for n in ("3x3", "4x4", "4x5", "4x6")]
    kind: Kind
    for scene in (*cubes, "scene", *puzzles):
        for kind in ("play", "noisy"):
            found[f"{scene}-{kind}-v0"] = Recipe(f"{scene}-{kind}-v0", f"{scene}-v0", kind, 1001)
    for size in ("medium", "large", "giant", "teleport"):
        for kind in ("navigate", "stitch"):
            steps = 201 if kind == "stitch" else 2001 if size == "giant" else 1001
            name = f"pointmaze-{size}-{kind}-v0"
            found[name] = Recipe(name, f"pointmaze-{size}-v0", kind, steps)
    return found


RECIPES: dict[str, Recipe] = _recipes()
"""Every data set that can be collected here, by name."""

_COLLECTABLE = (
    "cube-{single,double,triple,quadruple}-{play,noisy}-v0, scene-{play,noisy}-v0, "
    "puzzle-{3x3,4x4,4x5,4x6}-{play,noisy}-v0 and "
    "pointmaze-{medium,large,giant,teleport}-{navigate,stitch}-v0"
)


def find_recipe(env: str) -> Recipe:
    """Return the recipe of the data set `env`.

    Raises
    ------
    BadInput
        `env` names a task, a data set that needs a trained expert, or nothing that is known. The
        message says what can be collected and what to run.
    """
    if env in RECIPES:
        return RECIPES[env]
    dataset = dataset_name(env)
    if dataset in RECIPES:
        raise BadInput(
            f"{env} is one task of the data set {dataset}, which serves all its tasks. "
            f"Run `sorl-fast collect --env {dataset} ...`, then train with --env {env}"
        )
    if dataset.startswith(("ant", "humanoid", "visual-ant", "visual-humanoid")):
        task = f"{dataset.removesuffix('-v0')}-singletask-task1-v0"
        raise BadInput(
            f"{env} cannot be collected: it needs a trained locomotion expert. Get OGBench's files "
            f"with `sorl-fast train --env {task} --download ...`. "
            f"What can be collected: {_COLLECTABLE}"
        )
    raise BadInput(
        f"{env!r} is no data set that can be collected. Choose --env from {_COLLECTABLE}"
    )


class EpisodeSource(Protocol):
    """A simulator and its oracles: the only expensive thing to make, used for many episodes."""

    def collect(self, seed: np.random.SeedSequence) -> Episode | None:
        """Return the arrays of the episode that `seed` stands for; None if it must be dropped."""


def open_source(recipe: Recipe) -> EpisodeSource:
    """Make the simulator and the oracles of `recipe`; takes seconds."""
    return _MazeSource(recipe) if recipe.is_maze else _ManipulationSource(recipe)


def collect_episode(source: EpisodeSource, seed: int, split: int, episode: int) -> Episode:
    """Collect one episode; a function of its arguments alone, whatever `source` did before.

    Parameters
    ----------
    source
        From `open_source`.
    seed
        The collection's seed, in [0, 2^63).
    split
        0 for training, 1 for validation.
    episode
        Index in the split, from 0.

    Returns
    -------
    dict
        T = `recipe.steps` rows a key, dtypes as in `DTYPES`: observations [T, O], actions [T, A] in
        [-1, 1], terminals [T] (True in the last row only), qpos [T, nq], qvel [T, nv], and for
        scene and puzzle button_states [T, buttons].

    Notes
    -----
    NumPy's global generator is reseeded, since OGBench's oracles draw from it.
    """
    for attempt in range(_MAX_ATTEMPTS):
        data = source.collect(np.random.SeedSequence(seed, spawn_key=(split, episode, attempt)))
        if data is not None:
            return data
    raise RuntimeError(f"episode {episode} had to be dropped {_MAX_ATTEMPTS} times in a row")


def _seeded(seed: np.random.SeedSequence) -> tuple[int, np.random.Generator]:
    """Seed NumPy's global generator; return the environment's seed and a generator of our own."""
    for_oracles, for_env, for_us = seed.spawn(3)
    np.random.seed(for_oracles.generate_state(4))  # noqa: NPY002 - the oracles draw from it
    return int(for_env.generate_state(1)[0]), np.random.default_rng(for_us)


def _arrays(rows: dict[str, list[Any]]) -> Episode:
    rows["terminals"] = [False] * len(rows["actions"])
    rows["terminals"][-1] = True
    return {key: np.asarray(rows[key], dtype) for key, dtype in DTYPES.items() if key in rows}


class _ManipulationSource:
    """cube, scene and puzzle: oracles that pick, place, press and slide one target after another."""

    # Action noise of `noisy` in units of the episode's level xi: x, y, z, yaw, gripper.
    _NOISE_SCALE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
    _MAX_XI = 0.1

    def __init__(self, recipe: Recipe) -> None:
        import gymnasium
        import ogbench.manipspace  # noqa: F401 - registers the environments

        made = gymnasium.make(
            recipe.env, terminate_at_goal=False, mode="data_collection", disable_env_checker=True
        )
        # Without gymnasium's wrappers: the steps are counted here.
        self._env = cast("Any", made.unwrapped)
        # The first reset compiles the model and runs the solver before the controller's gains are
        # set; later ones after. No difference was ever seen, but no episode need be the first.
        self._env.reset(seed=0)
        self._recipe = recipe
        self._noisy = recipe.kind == "noisy"
        puzzle = recipe.env.startswith("puzzle-")
        self._random_actions = (0.2 if puzzle else 0.1) if self._noisy else 0.0
        self._p_stack = {
            "cube-single-v0": (0.0, 0.0),
            "cube-double-v0": (0.0, 0.25),
            "cube-triple-v0": (0.05, 0.35),
            "cube-quadruple-v0": (0.1, 0.5),
        }.get(recipe.env, (0.5, 0.5))
        self._oracles = self._noisy_oracles() if self._noisy else self._play_oracles()

    def _play_oracles(self) -> dict[str, Any]:
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

        common: dict[str, Any] = {"env": self._env, "noise": 0.1, "noise_smoothing": 0.5}
        if self._recipe.env.startswith("puzzle-"):
            return {"button": ButtonPlanOracle(gripper_always_closed=True, **common)}
        oracles = {"cube": CubePlanOracle(**common)}
        if self._recipe.env == "scene-v0":
            oracles["button"] = ButtonPlanOracle(**common)
            oracles["drawer"] = DrawerPlanOracle(**common)
            oracles["window"] = WindowPlanOracle(**common)
        return oracles

    def _noisy_oracles(self) -> dict[str, Any]:
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

        common: dict[str, Any] = {"env": self._env, "min_norm": 0.4}
        if self._recipe.env.startswith("puzzle-"):
            return {"button": ButtonMarkovOracle(gripper_always_closed=True, **common)}
        if self._recipe.env != "scene-v0":
            return {"cube": CubeMarkovOracle(**common)}
        return {
            # ogbench 1.2 sets max_step back to 200 in reset, for OGBench's own data too.
            "cube": CubeMarkovOracle(max_step=100, **common),
            "button": ButtonMarkovOracle(**common),
            "drawer": DrawerMarkovOracle(**common),
            "window": WindowMarkovOracle(**common),
        }

    def collect(self, seed: np.random.SeedSequence) -> Episode | None:
        env_seed, rng = _seeded(seed)
        env = self._env
        ob, info = env.reset(seed=env_seed)
        p_stack = rng.uniform(*self._p_stack)
        noise = rng.uniform(0, self._MAX_XI) * self._NOISE_SCALE
        oracle = self._oracles[info["privileged/target_task"]]
        oracle.reset(ob, info)

        rows: dict[str, list[Any]] = {key: [] for key in self._recipe.keys if key != "terminals"}
        for _ in range(self._recipe.steps):
            if self._random_actions and rng.random() < self._random_actions:
                action = rng.uniform(-1, 1, 5)
            else:
                action = oracle.select_action(ob, info)
                if self._noisy:
                    action = action + rng.normal(0, noise)
            action = np.clip(action, -1, 1)
            rows["observations"].append(ob)
            rows["actions"].append(action)
            ob, _, _, _, info = env.step(action)
            rows["qpos"].append(info["prev_qpos"])
            rows["qvel"].append(info["prev_qvel"])
            if self._recipe.has_buttons:
                rows["button_states"].append(info["prev_button_states"])
            if oracle.done:
                # As in OGBench, the oracle's next action still sees the info of the step before the
                # new target; only its reset sees the target.
                target_ob, target_info = env.set_new_target(p_stack=p_stack)
                oracle = self._oracles[target_info["privileged/target_task"]]
                oracle.reset(target_ob, target_info)
        if self._recipe.env == "scene-v0" and cube_left_view(np.asarray(rows["qpos"])):
            return None
        return _arrays(rows)


def cube_left_view(qpos: NDArray[np.floating[Any]]) -> bool:
    """Return whether the cube of a scene episode was ever out of sight and not in the drawer.

    Parameters
    ----------
    qpos
        [T, nq]; the cube's x, y, z in metres are columns 14 to 16.
    """
    y, z = qpos[:, 15], qpos[:, 16]
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return bool(np.any(y >= 0.29) or np.any((y <= -0.3) & ~in_drawer))


class _MazeSource:
    """pointmaze: walk along shortest paths to random cells, with noise on every action."""

    _NOISE = 0.5
    _STITCH_DISTANCE = 4  # cells between start and goal of a stitch episode

    def __init__(self, recipe: Recipe) -> None:
        import gymnasium
        import ogbench.locomaze  # noqa: F401 - registers the environments

        made = gymnasium.make(recipe.env, terminate_at_goal=False, disable_env_checker=True)
        self._env = cast("Any", made.unwrapped)
        self._env.reset(seed=0)  # as above: no episode is the first of its process
        self._recipe = recipe
        self._maze = Maze(np.asarray(self._env.maze_map))

    def collect(self, seed: np.random.SeedSequence) -> Episode | None:
        env_seed, rng = _seeded(seed)
        env, maze = self._env, self._maze
        start = maze.cells[rng.integers(len(maze.cells))]
        goals = maze.junctions
        if self._recipe.kind == "stitch":
            goals = maze.cells_at(start, self._STITCH_DISTANCE) or (start,)
        goal = goals[rng.integers(len(goals))]
        # A reset takes a few random steps first, from a generator that outlives the episode.
        env.action_space.seed(env_seed)
        ob, _ = env.reset(seed=env_seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})

        rows: dict[str, list[Any]] = {key: [] for key in self._recipe.keys if key != "terminals"}
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
        return _arrays(rows)


class Maze:
    """Shortest paths in a maze of square cells.

    Parameters
    ----------
    walls
        [rows, columns], 1 where there is a wall; the rim is all wall.
    """

    _STEPS = ((-1, 0), (0, -1), (1, 0), (0, 1))

    def __init__(self, walls: NDArray[np.integer[Any]]) -> None:
        self._free = np.asarray(walls) == 0
        self.cells: tuple[Cell, ...] = tuple((int(i), int(j)) for i, j in np.argwhere(self._free))
        # Corridors, free on two opposite sides only, are no goals.
        self.junctions: tuple[Cell, ...] = tuple(c for c in self.cells if not self._corridor(c))
        self._distances_to = functools.cache(self._search)

    def _corridor(self, cell: Cell) -> bool:
        i, j = cell
        up, left, down, right = (bool(self._free[i + di, j + dj]) for di, dj in self._STEPS)
        return up == down and left == right and up != left

    def _search(self, goal: Cell) -> dict[Cell, int]:
        distance = {goal: 0}
        queue = deque([goal])
        while queue:
            i, j = queue.popleft()
            for di, dj in self._STEPS:
                cell = (i + di, j + dj)
                if self._free[cell] and cell not in distance:
                    distance[cell] = distance[i, j] + 1
                    queue.append(cell)
        return distance

    def cells_at(self, start: Cell, steps: int) -> tuple[Cell, ...]:
        """Return the cells whose shortest path from `start` has `steps` steps."""
        return tuple(cell for cell, far in self._distances_to(start).items() if far == steps)

    def next_cell(self, start: Cell, goal: Cell) -> Cell:
        """Return the cell after `start` on a shortest path to `goal`; `start` if there is none."""
        distance = self._distances_to(goal)
        best = start
        if start in distance:
            for di, dj in self._STEPS:
                cell = (start[0] + di, start[1] + dj)
                if cell in distance and distance[cell] < distance[best]:
                    best = cell
        return best
