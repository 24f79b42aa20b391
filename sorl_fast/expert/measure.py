"""How well an expert does: whole episodes of the environment that it was trained in, acted by a Sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..act.policy_file import Policy
from ..act.sampler import Sampler
from ..envs.bodies import Body, open_online


@dataclass(frozen=True)
class Measure:
    """Means over episodes without action noise.

    Attributes
    ----------
    episodes
        How many.
    mean, std
        Of an episode's sum of rewards.
    length
        Steps of an episode.
    speed
        Metres a second along the direction asked for; None where the task has none.
    """

    episodes: int
    mean: float
    std: float
    length: float
    speed: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures for a file, rounded to what they are worth."""
        speed = None if self.speed is None else round(self.speed, 3)
        return {
            "episodes": self.episodes,
            "return": round(self.mean, 2),
            "return_std": round(self.std, 2),
            "length": round(self.length, 1),
            "metres_a_second": speed,
        }

    def __str__(self) -> str:
        speed = "" if self.speed is None else f", {self.speed:.2f} m/s as directed"
        return (
            f"return {self.mean:.1f} +- {self.std:.1f} over {self.episodes} episodes of "
            f"{self.length:.0f} steps{speed}"
        )


def measure(
    policy: Policy,
    body: Body,
    episodes: int,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> Measure:
    """Let the expert act for whole episodes, each a function of (seed, episode); about 1 s each.

    NumPy's global generator, from which the directions come, is left as it was. `check` is called at every
    step, and may raise to end this.
    """
    before = np.random.get_state()  # noqa: NPY002 - the environments draw from it, also when made
    sampler, env = Sampler(policy), open_online(body)
    returns, lengths, metres = [], [], 0.0
    try:
        for episode in range(episodes):
            words = np.random.SeedSequence((seed, episode)).generate_state(2)
            np.random.seed(words[0])  # noqa: NPY002
            obs, _ = env.reset(seed=int(words[1]))
            total, steps, ended = 0.0, 0, False
            xy = env.unwrapped.data.qpos[:2].copy()
            while not ended:
                if check is not None:
                    check()
                obs, reward, terminated, truncated, info = env.step(sampler.act(obs, seed=0))
                total, steps, ended = total + float(reward), steps + 1, terminated or truncated
                if body.direction_steps:
                    metres += float((info["xy"] - xy) @ info["direction"])
                    xy = info["xy"]
            returns.append(total)
            lengths.append(steps)
        seconds = sum(lengths) * float(env.unwrapped.dt)
    finally:
        np.random.set_state(before)  # noqa: NPY002
        env.close()
    return Measure(
        episodes=episodes,
        mean=float(np.mean(returns)),
        std=float(np.std(returns)),
        length=float(np.mean(lengths)),
        speed=metres / seconds if body.direction_steps else None,
    )
