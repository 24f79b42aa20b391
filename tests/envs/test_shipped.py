"""The package's own experts: small, whole, and as good as their files say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sorl_fast.act.policy_file import load
from sorl_fast.data.experts import actor_of, find_experts
from sorl_fast.envs import find_recipe, open_source
from sorl_fast.envs.bodies import ANT, SHIPPED
from sorl_fast.envs.recipe import collect_episode
from sorl_fast.expert.measure import measure


def test_the_ants_is_there_and_small_and_says_how_it_was_made():
    files = list(SHIPPED.iterdir())
    assert files == [ANT.shipped]
    assert ANT.shipped.stat().st_size < 1_000_000
    (policy,) = find_experts(find_recipe("antmaze-giant-stitch-v0"), [])
    config = load(ANT.shipped).config
    assert policy.config == config
    assert config["command"].startswith("sorl-fast expert --env ant --steps ")
    assert config["expert"] == "ant"
    assert config["history"][-1]["steps"] == config["steps"]
    assert config["metres_a_second"] > 1.5


def test_the_documents_figures_are_the_files():
    config = load(ANT.shipped).config
    text = (Path(__file__).parents[2] / "docs" / "experts.md").read_text()
    assert config["command"].replace("FILE", "ant.safetensors") in text
    for row in config["history"]:
        figures = (row["return"], row["length"], row["metres_a_second"])
        assert f"| {row['steps']:,} | {' | '.join(map(str, figures))} |" in text


@pytest.mark.slow
def test_the_ant_walks_as_fast_as_its_file_says():
    policy = load(ANT.shipped)
    found = measure(policy, ANT, 3, seed=5)
    assert found.speed > 0.4 * policy.config["metres_a_second"]  # of three of many directions


@pytest.mark.slow
def test_the_ant_reaches_way_points_in_a_maze_though_its_actions_are_noisy():
    recipe = dataclasses.replace(find_recipe("antmaze-medium-navigate-v0"), steps=301)
    source = open_source(recipe, [actor_of(policy) for policy in find_experts(recipe, [])])
    episode = collect_episode(source, 0, 0, 0)
    assert source.waypoints >= 5
    assert np.ptp(episode["observations"][:, :2], axis=0).max() > 8
