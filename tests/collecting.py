"""Collections small enough for tests, and what stands in for the simulator."""

import dataclasses

import numpy as np

from sorl_fast.config import CollectConfig
from sorl_fast.data import collect as module
from sorl_fast.data.collect import run_recipe
from sorl_fast.envs import find_recipe
from sorl_fast.envs.recipe import DTYPES, collect_episode
from sorl_fast.errors import Stopped

NAME = "scene-play-v0"  # has all the keys
TINY = dataclasses.replace(find_recipe(NAME), steps=4)
HIDDEN = f".{NAME}.collect"


class FakeSource:
    """Arrays that follow from the seed alone, in no time."""

    def collect(self, seed):
        rng = np.random.default_rng(seed)
        episode = {
            key: rng.normal(size=(TINY.steps, 3)).astype(dtype) for key, dtype in DTYPES.items()
        }
        episode["terminals"] = np.arange(TINY.steps) == TINY.steps - 1
        return episode


class Simulator:
    """Stands in for the processes: counts the episodes and may break off."""

    def __init__(self, source):
        self.source = source
        self.collected = []
        self.break_after = None

    def __call__(self, jobs, config, recipe, experts, stop, *, progress, done):
        for job in jobs:
            if self.break_after is not None and len(self.collected) >= self.break_after:
                raise Stopped("broken off")
            episode = collect_episode(self.source, config.seed, job.split, job.episode)
            module._write_shard(job.path, episode)
            self.collected.append((job.split, job.episode))


def config(out, **changes):
    return CollectConfig(**({"env": NAME, "out": str(out), "episodes": 12} | changes))


def tiny(out, **changes):
    return run_recipe(config(out, **changes), TINY, progress=False)


def load(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
