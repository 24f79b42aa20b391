"""OGBench's simulators, made so that an episode is a function of its seed alone."""

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput

Timing = Literal["post", "pre"]
INSTALL = "install the simulator: pip install 'sorl-fast[train]'"


class Simulator:
    """One OGBench single-task environment whose episodes are functions of (seed, episode) alone.

    Parameters
    ----------
    env
        An OGBench name with `singletask`, such as antmaze-large-navigate-singletask-task1-v0.
    success_timing
        Success judged on the state after the action ("post") or before it ("pre").

    Raises
    ------
    BadInput
        The simulator is not installed, or has no environment of that name.
    """

    def __init__(self, env: str, success_timing: Timing = "post") -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no display, float64 bounds: not the user's affair
                import gymnasium
                import ogbench

                self._env = ogbench.make_env_and_datasets(
                    env, env_only=True, success_timing=success_timing, disable_env_checker=True
                )
                self._make_seedable(self._env.unwrapped)
                space = self._env.unwrapped.action_space
        except ImportError as err:
            raise BadInput(f"the simulator cannot be imported ({err}); {INSTALL}") from err
        except gymnasium.error.Error as err:
            raise BadInput(f"ogbench has no environment for {env!r}: {err}") from err
        self.act_dim = int(space.shape[0]) if space.shape else 0

    def _make_seedable(self, env: Any) -> None:
        """Mend what keeps the environment's episodes from following from its seed: a family's own."""

    def reset(self, seed: int, episode: int) -> NDArray[np.float32]:
        """Start episode `episode` of `seed`, both at least 0; return its first observation [O]."""
        entropy = np.random.SeedSequence((seed, episode))
        env_seed, space_seed, global_seed = (int(word) for word in entropy.generate_state(3))
        np.random.seed(global_seed)  # noqa: NPY002 - the mazes draw from numpy's global state
        self._env.action_space.seed(space_seed)
        observation, _ = self._env.reset(seed=env_seed)
        return np.asarray(observation, np.float32)

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool]:
        """Apply an action [A]; return the observation [O], the reward, success, and whether it ended."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        ended = bool(terminated or truncated)
        return np.asarray(observation, np.float32), float(reward), bool(info["success"]), ended
