"""What cube, scene and puzzle share: a robot's arm, and oracles that serve one target after another."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .recipe import Episode, Kind, Recipe, as_arrays, seeded
from .simulator import Simulator

_KINDS: tuple[Kind, ...] = ("play", "noisy")
_STEPS = 1001


def recipes(*scenes: str, has_buttons: bool = False) -> tuple[Recipe, ...]:
    """Return the recipes of scenes such as cube-single."""
    return tuple(
        Recipe(f"{scene}-{kind}-v0", f"{scene}-v0", kind, _STEPS, has_buttons)
        for scene in scenes
        for kind in _KINDS
    )


class ManipulationSimulator(Simulator):
    """An environment of an arm."""

    def _make_seedable(self, env: Any) -> None:
        # These make a fresh space, seeded from the operating system, at each access, and step with
        # samples of it on reset. One space of their own is seedable.
        space = env.action_space
        env.__class__ = type(type(env).__name__, (type(env),), {"action_space": space})


class ManipulationSource:
    """An arm whose oracles pick, place, press and slide one target after another.

    A family states its oracles, and what else differs.
    """

    p_stack = (0.5, 0.5)  # an episode's probability of stacking cubes is drawn from this interval
    p_random = 0.1  # part of `noisy`'s actions that are drawn at random

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
        if self._noisy:
            self._oracles = self.noisy_oracles({"env": self._env, "min_norm": 0.4})
        else:
            settings = {"env": self._env, "noise": 0.1, "noise_smoothing": 0.5}
            self._oracles = self.play_oracles(settings)

    def play_oracles(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the oracles of `play` by the kind of target, made with `settings`."""
        raise NotImplementedError

    def noisy_oracles(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the oracles of `noisy` by the kind of target, made with `settings`."""
        raise NotImplementedError

    def is_spoilt(self, qpos: NDArray[np.float64]) -> bool:
        """Whether an episode with these positions [T, nq], as the simulator has them, must be dropped."""
        return False

    def collect(self, seed: np.random.SeedSequence) -> Episode | None:
        """Return the arrays of the episode that `seed` stands for; None if it must be dropped."""
        env_seed, rng = seeded(seed)
        env = self._env
        ob, info = env.reset(seed=env_seed)
        p_stack = rng.uniform(*self.p_stack)
        noise = rng.uniform(0, self._MAX_XI) * self._NOISE_SCALE
        oracle = self._oracles[info["privileged/target_task"]]
        oracle.reset(ob, info)

        rows = self._recipe.no_rows()
        for _ in range(self._recipe.steps):
            if self._noisy and rng.random() < self.p_random:
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
        return None if self.is_spoilt(np.asarray(rows["qpos"])) else as_arrays(rows)
