"""Episodes with pictures, in a child process: `evaluate.rollout` on a simulator that is looked at.

Nothing of an episode depends on being looked at: the parent checks that success and length are those of
the evaluation.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..act.policy_file import load
from ..act.sampler import Sampler
from ..envs import open_simulator
from ..envs.simulator import Simulator, Timing
from ..isolated import Item, Note, Outcome
from ..simulate.evaluate import rollout

_CAMERA = "front_pixels"  # of OGBench's arms; nearer than the other one
# MuJoCo's 4096 makes a picture on a CPU three times as slow, and no better at this size
_SHADOW = 1024


def taken(steps: int, every: int) -> list[int]:
    """Return the steps of which an episode of so many has pictures: 0, every k-th, and the last."""
    return [*range(0, steps, every), steps]


class Filmed(Simulator):
    """A simulator of which pictures are taken.

    Parameters
    ----------
    simulator
        What is looked at, from now on through this object alone.
    width
        Of a picture, which is square, in pixels.

    Attributes
    ----------
    every
        Steps from picture to picture.
    pictures
        [width, width, 3] each, of the steps that `taken` says.
    """

    def __init__(self, simulator: Simulator, width: int) -> None:
        self._env, self.act_dim = simulator._env, simulator.act_dim
        self._width = width
        self._model: Any = None
        self._step = 0
        self.every = 1
        self.pictures: list[NDArray[np.uint8]] = []

    def reset(self, seed: int, episode: int) -> NDArray[np.float32]:
        """Start an episode, and take its first picture."""
        observation = super().reset(seed, episode)
        self._step, self.pictures = 0, [self._look()]
        return observation

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool]:
        """Apply an action, and take a picture if it is time, or over."""
        result = super().step(action)
        self._step += 1
        if self._step % self.every == 0 or result[3]:
            self.pictures.append(self._look())
        return result

    def _look(self) -> NDArray[np.uint8]:
        import mujoco

        env = self._env.unwrapped
        if env.model is not self._model:  # a reset may have compiled another
            self._model = model = env.model
            for name in ("offwidth", "offheight"):
                setattr(model.vis.global_, name, max(self._width, getattr(model.vis.global_, name)))
            model.vis.quality.shadowsize = _SHADOW
            self._renderer = mujoco.Renderer(model, self._width, self._width)
            self._camera = _camera_of(env)
        self._renderer.update_scene(env.data, camera=self._camera)
        return np.array(self._renderer.render())


def _camera_of(env: Any) -> Any:
    """Return the camera that shows most: above a maze, in front of an arm."""
    import mujoco

    camera = mujoco.MjvCamera()
    if hasattr(
        env, "maze_map"
    ):  # as OGBench looks at mazes whose bodies have no camera of their own
        rows, columns = env.maze_map.shape
        camera.lookat[:2] = 2 * (columns - 3), 2 * (rows - 3)
        camera.distance, camera.elevation = 5 * (max(rows, columns) - 2), -90
        return camera
    if any(env.model.cam(i).name == _CAMERA for i in range(env.model.ncam)):
        return _CAMERA
    mujoco.mjv_defaultFreeCamera(env.model, camera)
    return camera


@functools.lru_cache(maxsize=1)  # a simulator and a renderer take seconds to make
def _filmed(env: str, success_timing: Timing, width: int) -> Filmed:
    return Filmed(open_simulator(env, success_timing), width)


def film_episode(item: Item, note: Note) -> Outcome:
    """Run an episode and write its pictures [T, width, width, 3] to a .npy; a worker of `isolated.run`.

    The item: `policy` a path, `backend`, `precision`; `env`, `success_timing`; `task`, the fields of a
    `simulate.episodes.Task`; `width`, `every`, and `out`.
    """
    filmed = _filmed(item["env"], item["success_timing"], item["width"])
    filmed.every = item["every"]
    sampler = Sampler(load(item["policy"]), item["backend"], item["precision"])
    episode = rollout(filmed, sampler, *item["task"])
    np.save(item["out"], np.stack(filmed.pictures))
    return {
        "status": "ok",
        "reason": "",
        "success": episode.success,
        "length": episode.length,
    }
