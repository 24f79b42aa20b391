"""Episodes follow from their seed alone, whatever their source did before."""

import dataclasses

import numpy as np
import pytest

from sorl_fast.envs import find_recipe, open_source
from sorl_fast.envs.recipe import collect_episode
from sorl_fast.errors import BadInput


class Drops:
    """A source whose first attempts must be dropped."""

    def __init__(self, drops):
        self.drops = drops
        self.keys = []

    def collect(self, seed):
        self.keys.append((seed.entropy, *seed.spawn_key))
        return None if len(self.keys) <= self.drops else {"ok": np.zeros(1)}


def test_a_dropped_episode_is_replaced_by_the_next_attempt_of_the_same_episode():
    source = Drops(2)
    assert "ok" in collect_episode(source, 7, 1, 5)
    assert source.keys == [(7, 1, 5, 0), (7, 1, 5, 1), (7, 1, 5, 2)]


def test_an_episode_that_is_always_dropped_is_an_error():
    with pytest.raises(RuntimeError, match="episode 5 had to be dropped"):
        collect_episode(Drops(10**9), 7, 1, 5)


def test_a_recipe_of_no_family_is_named():
    recipe = dataclasses.replace(find_recipe("scene-play-v0"), env="kitchen-v0")
    with pytest.raises(BadInput, match="kitchen-v0"):
        open_source(recipe)


# --- with the simulator ---------------------------------------------------------------------------


FAMILIES = [
    "cube-single-play-v0",
    "cube-double-noisy-v0",
    "scene-play-v0",
    "scene-noisy-v0",
    "puzzle-3x3-play-v0",
    "puzzle-3x3-noisy-v0",
    "pointmaze-teleport-navigate-v0",
    "pointmaze-medium-stitch-v0",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_an_episode_is_whole_and_does_not_depend_on_those_before(name):
    recipe = dataclasses.replace(find_recipe(name), steps=100)
    source = open_source(recipe)
    episode = collect_episode(source, 3, 0, 1)

    assert tuple(episode) == recipe.keys
    assert {key: str(array.dtype) for key, array in episode.items()} == {
        "observations": "float32",
        "actions": "float32",
        "terminals": "bool",
        "qpos": "float32",
        "qvel": "float32",
        **({"button_states": "int64"} if recipe.has_buttons else {}),
    }
    assert {len(array) for array in episode.values()} == {100}
    assert np.flatnonzero(episode["terminals"]).tolist() == [99]
    assert np.abs(episode["actions"]).max() <= 1
    assert all(np.isfinite(array).all() for array in episode.values())
    # Row t is one state: the observation starts with the joint positions of qpos.
    if not name.startswith("pointmaze-"):
        np.testing.assert_array_equal(episode["observations"][:, :6], episode["qpos"][:, :6])

    collect_episode(source, 3, 0, 2)
    collect_episode(source, 4, 1, 1)
    np.random.seed(99)  # noqa: NPY002 - what the process drew before must not matter
    again = collect_episode(source, 3, 0, 1)
    fresh = collect_episode(open_source(recipe), 3, 0, 1)
    for key in recipe.keys:
        assert episode[key].dtype == again[key].dtype == fresh[key].dtype
        np.testing.assert_array_equal(episode[key], again[key])
        np.testing.assert_array_equal(episode[key], fresh[key])


@pytest.mark.slow
def test_episodes_of_other_indices_splits_and_seeds_differ():
    source = open_source(dataclasses.replace(find_recipe("pointmaze-medium-navigate-v0"), steps=3))
    first = collect_episode(source, 0, 0, 0)["observations"]
    for seed, split, episode in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2**63 - 1, 0, 0)]:
        assert not np.array_equal(first, collect_episode(source, seed, split, episode))
