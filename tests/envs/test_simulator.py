"""An episode of a simulator follows from its seed alone."""

import hashlib
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from sorl_fast.envs import open_simulator
from sorl_fast.envs.simulator import Simulator


def run_python(code: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def episode_digest(simulator: Simulator, seed: int, episode: int, steps: int = 40) -> str:
    """Digest of the whole physical state at the start, warm start included, and of what follows."""
    import mujoco

    rng = np.random.default_rng(episode)
    digest = hashlib.sha256(simulator.reset(seed, episode).tobytes())
    base = simulator._env.unwrapped
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(base.model, kind))
    mujoco.mj_getState(base.model, base.data, state, kind)
    digest.update(state.tobytes())
    for _ in range(steps):
        action = rng.uniform(-1, 1, simulator.act_dim).astype(np.float32)
        observation, reward, _, _ = simulator.step(action)
        digest.update(observation.tobytes() + repr(reward).encode())
    return digest.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        "cube-single-play-singletask-task2-v0",
        "cube-double-play-singletask-v0",
        "scene-play-singletask-task2-v0",
        "puzzle-3x3-play-singletask-v0",
        "pointmaze-teleport-navigate-singletask-v0",
        "antmaze-large-navigate-singletask-v0",
        "antsoccer-arena-navigate-singletask-v0",
        "humanoidmaze-medium-navigate-singletask-v0",
    ],
)
def test_an_episode_does_not_depend_on_what_ran_before_it(env):
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_simulator import episode_digest, open_simulator
        print(episode_digest(open_simulator({env!r}), 3, 5))
    """
    simulator = open_simulator(env)
    first = episode_digest(simulator, 3, 5)
    others = [episode_digest(simulator, seed, e) for seed, e in ((3, 6), (4, 5), (3, 5))]
    np.random.seed(123)  # noqa: NPY002 - the state that an episode must not see
    simulator._env.step(np.ones(simulator.act_dim, np.float32))
    again = episode_digest(simulator, 3, 5)
    fresh = run_python(code)
    assert first == others[2] == again == fresh
    assert len({first, *others}) == 3, "another seed or episode must be another start"


@pytest.mark.slow
def test_success_timing_reaches_the_simulator():
    for timing in ("post", "pre"):
        for env in (
            "cube-single-play-singletask-task2-v0",
            "pointmaze-medium-navigate-singletask-task1-v0",
        ):
            assert open_simulator(env, timing)._env.unwrapped._success_timing == timing
