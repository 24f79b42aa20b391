"""One episode of OGBench data at a time, by OGBench's recipe and with the oracles of its package.

The recipe is that of the OGBench paper (arXiv 2410.20092) and its public generation scripts:
`play` follows pre-computed plans with smooth noise, `noisy` follows closed-loop oracles with
Gaussian noise and random actions, `navigate` and `stitch` follow shortest paths through a maze,
`explore` random directions.

Everything random in an episode comes from one `numpy.random.SeedSequence`, so that an episode is a
function of (seed, split, episode) and not of the process, the worker or the episodes before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .bodies import Body

Episode = dict[str, "NDArray[Any]"]
Kind = Literal["play", "noisy", "navigate", "stitch", "explore"]

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
        play and noisy for manipulation, navigate, stitch and explore for mazes.
    steps
        Rows of an episode, its extra final state included.
    has_buttons
        The state has buttons beside qpos and qvel.
    noise
        Deviation of the noise on a maze's actions.
    episodes
        Training episodes unless another number is asked for.
    bodies
        Those whose experts are the oracles; none where they are of ogbench's package.
    """

    dataset: str
    env: str
    kind: Kind
    steps: int
    has_buttons: bool = False
    noise: float = 0.0
    episodes: int = 1000
    bodies: tuple[Body, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The arrays of the data set, in the order of the file."""
        return tuple(key for key in DTYPES if key != "button_states" or self.has_buttons)

    def no_rows(self) -> dict[str, list[Any]]:
        """Return an empty list for each array that a source fills: all but terminals."""
        return {key: [] for key in self.keys if key != "terminals"}


class EpisodeSource(Protocol):
    """A simulator and its oracles: the only expensive thing to make, used for many episodes."""

    def collect(self, seed: np.random.SeedSequence) -> Episode | None:
        """Return the arrays of the episode that `seed` stands for; None if it must be dropped."""


def collect_episode(source: EpisodeSource, seed: int, split: int, episode: int) -> Episode:
    """Collect one episode; a function of its arguments alone, whatever `source` did before.

    Parameters
    ----------
    source
        From `envs.open_source`.
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


def seeded(seed: np.random.SeedSequence) -> tuple[int, np.random.Generator]:
    """Seed NumPy's global generator; return the environment's seed and a generator of our own."""
    for_oracles, for_env, for_us = seed.spawn(3)
    np.random.seed(for_oracles.generate_state(4))  # noqa: NPY002 - the oracles draw from it
    return int(for_env.generate_state(1)[0]), np.random.default_rng(for_us)


def as_arrays(rows: dict[str, list[Any]]) -> Episode:
    """Return an episode's rows as arrays, and its terminals."""
    rows["terminals"] = [False] * len(rows["actions"])
    rows["terminals"][-1] = True
    return {key: np.asarray(rows[key], dtype) for key, dtype in DTYPES.items() if key in rows}
