"""Bodies that an expert learns to move: OGBench's online environments, and what the expert reads there.

An expert reads a body's joint numbers and what it is to do: for ant and humanoid the unit direction in
which to walk, for antball, an ant with a ball, where ball and goal are. Data sets of mazes are the
doings of such an expert, told where to go cell by cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHIPPED = Path(__file__).parent / "experts"


@dataclass(frozen=True, kw_only=True)
class Body:
    """A body, and how OGBench trains its expert.

    Attributes
    ----------
    name
        What `sorl-fast expert --env` and an expert's file call it.
    online
        The gymnasium id of the environment that the expert is trained in.
    obs_dim, act_dim
        Numbers that an expert reads and writes.
    direction_steps
        Steps after which another direction is drawn; 0: the task has no direction.
    steps
        Steps of OGBench's own training.
    hidden, critic_hidden, depth
        Width of the actor's and the critics' layers, and how many hidden ones.
    layer_norm
        Whether the critics' hidden layers have a LayerNorm.
    update_every
        Steps for each update.
    ends
        Whether an episode's time limit counts as its end: nothing is expected after it.
    """

    name: str
    online: str
    obs_dim: int
    act_dim: int
    direction_steps: int
    steps: int
    hidden: int
    critic_hidden: int
    depth: int
    layer_norm: bool = False
    update_every: int = 1
    ends: bool = False

    @property
    def shipped(self) -> Path:
        """The expert of this body in the package, if it is there."""
        return SHIPPED / f"{self.name}.safetensors"

    @property
    def command(self) -> str:
        """The command that trains an expert for as long as OGBench does."""
        return (
            f"sorl-fast expert --env {self.name} --steps {self.steps} --out {self.name}.safetensors"
        )


ANT = Body(
    name="ant",
    online="online-ant-v0",
    obs_dim=29,
    act_dim=8,
    direction_steps=100,
    steps=400_000,
    hidden=256,
    critic_hidden=256,
    depth=2,
)
ANTBALL = Body(
    name="antball",
    online="online-antball-v0",
    obs_dim=42,
    act_dim=8,
    direction_steps=0,
    steps=12_000_000,
    hidden=512,
    critic_hidden=512,
    depth=3,
    layer_norm=True,
    update_every=4,
    ends=True,
)
HUMANOID = Body(
    name="humanoid",
    online="online-humanoid-v0",
    obs_dim=69,
    act_dim=21,
    direction_steps=200,
    steps=40_000_000,
    hidden=512,
    critic_hidden=1024,
    depth=3,
    layer_norm=True,
    update_every=4,
)
BODIES: dict[str, Body] = {body.name: body for body in (ANT, ANTBALL, HUMANOID)}


def find_body(name: str) -> Body:
    """Return the body of that name; BadInput names those that there are."""
    if name not in BODIES:
        raise BadInput(
            f"env is {name!r}, but must be one of {', '.join(BODIES)}, whose experts can be trained. "
            "Set --env"
        )
    return BODIES[name]


def open_online(body: Body) -> Any:
    """Make the environment that a body's expert is trained in; its observations are float32 [O].

    Directions and a ball's places are drawn from NumPy's global generator, which reset(seed) leaves
    alone.

    Raises
    ------
    BadInput
        The simulator is not installed.
    """
    try:
        import gymnasium
        import ogbench.online_locomotion  # noqa: F401 - registers the environments
        from ogbench.online_locomotion.wrappers import DMCHumanoidXYWrapper, GymXYWrapper
    except ImportError as err:
        raise BadInput(
            f"the simulator cannot be imported ({err}); pip install 'sorl-fast[train]'"
        ) from err

    if body is ANTBALL:
        env: Any = _unseen_ball()
    else:
        env = gymnasium.make(body.online, disable_env_checker=True)
        wrapper = DMCHumanoidXYWrapper if body is HUMANOID else GymXYWrapper
        env = wrapper(env, resample_interval=body.direction_steps)
    if body.ends:
        env = _ending(env)
    space = gymnasium.spaces.Box(-np.inf, np.inf, (body.obs_dim,), np.float32)
    return gymnasium.wrappers.TransformObservation(env, _float32, space)


def _float32(observation: NDArray[Any]) -> NDArray[np.float32]:
    return observation.astype(np.float32)


def _unseen_ball() -> Any:
    """Make antball's environment without a display: as it is made, it turns a camera (ogbench 1.2)."""
    from types import SimpleNamespace

    import gymnasium
    from ogbench.online_locomotion.ant_ball import AntBallEnv

    class Unseen(AntBallEnv):  # type: ignore[misc]
        def render(self) -> None:
            camera = SimpleNamespace(lookat=[0.0, 0.0, 0.0], distance=0.0, elevation=0.0)
            self.mujoco_renderer = SimpleNamespace(
                viewer=SimpleNamespace(cam=camera), close=lambda: None
            )

    limit = gymnasium.spec(ANTBALL.online).max_episode_steps
    return gymnasium.wrappers.TimeLimit(Unseen(), cast("int", limit))


def _ending(env: Any) -> Any:
    import gymnasium

    class Ending(gymnasium.Wrapper):
        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = self.env.step(action)
            return observation, reward, terminated or truncated, False, info

    return Ending(env)
