"""Families are found by name; presets equal the paper's table; what cannot be collected is refused."""

import subprocess
import sys

import pytest

from sorl_fast.envs import (
    FAMILIES,
    PRESETS,
    RECIPES,
    bodies,
    dataset_name,
    find_family,
    find_preset,
    find_recipe,
    how_to_collect,
)
from sorl_fast.envs.bodies import BODIES
from sorl_fast.errors import BadInput
from sorl_fast.learn.algorithms import METHODS, find_method, method_config

TABLE = """
antmaze-large-navigate 500 .99 min 29 8 1000 89 2 79
antmaze-giant-navigate 500 .995 min 29 8 1000 9 6 9
humanoidmaze-medium-navigate 100 .995 mean 69 21 2000 64 4 58
humanoidmaze-large-navigate 500 .995 mean 69 21 2000 5 2 4
antsoccer-arena-navigate 500 .995 mean 42 8 1000 69 2 60
cube-single-play 10 .99 mean 28 5 200 97 1 96
cube-double-play 50 .99 mean 37 5 500 25 3 29
scene-play 100 .99 mean 40 5 750 57 2 56
""".strip().splitlines()


@pytest.mark.parametrize("line", TABLE, ids=lambda x: x.split()[0])
def test_presets_are_the_papers(line):
    family, q_coef, gamma, q_agg, *numbers = line.split()
    preset = PRESETS[family]
    assert preset.name == family
    paper = preset.paper
    assert paper["fql"].std is None
    assert [
        *(preset.obs_dim, preset.act_dim, preset.episode_limit),
        *(*paper["sorl"], paper["fql"].success),
    ] == [*map(float, numbers)]
    assert len(preset.tasks) == 5
    for task in preset.tasks:
        agent = method_config("sorl", task, {})
        assert (agent.q_coef, agent.gamma, agent.q_agg) == (float(q_coef), float(gamma), q_agg)
        assert (agent.m_disc, agent.m_btt, agent.hidden, agent.depth) == (8, 8, 512, 4)
        assert dataset_name(task) == preset.dataset


def test_a_preset_sets_fields_of_methods_that_there_are():
    for preset in PRESETS.values():
        for method, settings in preset.methods.items():
            assert method in METHODS
            assert method_config(method, preset.tasks[0], {}).method == method
            assert settings.keys() <= find_method(method).Config.__dataclass_fields__.keys()
        assert preset.settings("a method of tomorrow") == {}


def test_a_preset_is_not_changed_by_who_reads_it():
    preset = PRESETS["scene-play"]
    preset.settings("sorl")["q_coef"] = 0
    assert preset.settings("sorl")["q_coef"] == 100


@pytest.mark.parametrize(
    "env", ["my-robot", "cube-single-play-v0", "puzzle-3x3-play-singletask-v0"]
)
def test_an_environment_without_preset_needs_q_coef(env):
    assert find_preset(env) is None
    with pytest.raises(BadInput, match="--q-coef"):
        method_config("sorl", env, {})
    assert method_config("sorl", env, dict(q_coef=3.0)).q_coef == 3.0


def test_a_family_is_named_after_its_environments():
    for family in FAMILIES.values():
        names = [p.name for p in family.presets] + [r.env for r in family.recipes]
        assert names
        assert all(find_family(name) is family for name in names)
        assert bool(family.recipes) == (family.open_source is not None) == bool(family.collectable)
        assert family.recipes
        experts = {bool(recipe.bodies) for recipe in family.recipes}
        assert experts == {family.data_from == "expert"}
    assert find_family("visual-antmaze-giant-navigate-v0") is FAMILIES["antmaze"]
    assert find_family("my-robot") is None
    assert find_family("cubes-v0") is None


def test_finding_an_environment_loads_no_simulator():
    code = (
        "import sys, sorl_fast.envs, sorl_fast.simulate.evaluate\n"
        "heavy = {'torch', 'triton', 'gymnasium', 'ogbench', 'mujoco', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_acting_loads_no_environment():
    code = (
        "import sys, sorl_fast.act.sampler, sorl_fast.act.policy_file\n"
        "found = [m for m in sys.modules if m.startswith(('sorl_fast.envs', 'sorl_fast.simulate'))]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SCENES = (
    *("cube-single", "cube-double", "cube-triple", "cube-quadruple", "scene"),
    *("puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6"),
)
SIZES = ("medium", "large", "giant", "teleport")


def test_the_data_sets_are_those_of_the_recipe():
    manipulation = {f"{s}-{k}-v0" for s in SCENES for k in ("play", "noisy")}
    kinds = ("navigate", "stitch")
    mazes = {f"{b}maze-{s}-{k}-v0" for b in ("point", "ant") for s in SIZES for k in kinds}
    mazes |= {f"antmaze-{s}-explore-v0" for s in SIZES if s != "giant"}
    mazes |= {f"humanoidmaze-{s}-{k}-v0" for s in SIZES[:3] for k in kinds}
    mazes |= {f"antsoccer-{s}-{k}-v0" for s in ("arena", "medium") for k in kinds}
    assert set(RECIPES) == manipulation | mazes


# OGBench's own: rows of an episode, training episodes, deviation of the action's noise
PUBLISHED = """
antmaze-medium-navigate 1001 1000 .2
antmaze-large-navigate 1001 1000 .2
antmaze-giant-navigate 2001 500 .2
antmaze-teleport-navigate 1001 1000 .2
antmaze-medium-stitch 201 5000 .2
antmaze-large-stitch 201 5000 .2
antmaze-giant-stitch 201 5000 .2
antmaze-medium-explore 501 10000 1
antmaze-large-explore 501 10000 1
humanoidmaze-medium-navigate 2001 1000 .2
humanoidmaze-giant-navigate 4001 1000 .2
humanoidmaze-large-stitch 401 5000 .2
humanoidmaze-giant-stitch 401 10000 .2
antsoccer-arena-navigate 1001 1000 .2
antsoccer-medium-navigate 1001 4000 .2
antsoccer-arena-stitch 201 5000 .2
antsoccer-medium-stitch 501 8000 .2
""".strip().splitlines()


@pytest.mark.parametrize("line", PUBLISHED, ids=lambda x: x.split()[0])
def test_an_experts_data_sets_are_as_big_as_the_published_ones(line):
    name, *numbers = line.split()
    recipe = find_recipe(f"{name}-v0")
    assert [recipe.steps, recipe.episodes, recipe.noise] == [*map(float, numbers)]


@pytest.mark.parametrize("body", BODIES.values(), ids=lambda body: body.name)
def test_a_body_that_the_package_cannot_move_is_trained_first(body, tmp_path, monkeypatch):
    monkeypatch.setattr(bodies, "SHIPPED", tmp_path)
    name = next(name for name, recipe in RECIPES.items() if recipe.bodies[-1:] == (body,))
    commands = how_to_collect(name, "data")
    steps = {"ant": 400_000, "antball": 12_000_000, "humanoid": 40_000_000}[body.name]
    assert f"expert --env {body.name} --steps {steps} --out {body.name}.safetensors" in commands
    assert f"collect --env {name} --out data --expert" in commands
    assert "--download" in commands
    for each in RECIPES[name].bodies:
        each.shipped.touch()
    assert how_to_collect(name, "data") == f"sorl-fast collect --env {name} --out data"


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("cube-single-play-v0", 1001),
        ("scene-noisy-v0", 1001),
        ("puzzle-4x6-play-v0", 1001),
        ("pointmaze-medium-navigate-v0", 1001),
        ("pointmaze-giant-navigate-v0", 2001),
        ("pointmaze-giant-stitch-v0", 201),
        ("pointmaze-teleport-stitch-v0", 201),
    ],
)
def test_episode_length(name, steps):
    assert find_recipe(name).steps == steps


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "cube-single-play-singletask-task2-v0",
            "Run `sorl-fast collect --env cube-single-play-v0",
        ),
        ("scene-play-singletask-v0", "Run `sorl-fast collect --env scene-play-v0"),
        ("antsoccer-arena-navigate-singletask-task1-v0", "--env antsoccer-arena-navigate-v0"),
        ("antmaze-giant-explore-v0", "antmaze-{medium,large,teleport}-explore-v0"),
        ("humanoidmaze-teleport-navigate-v0", "humanoidmaze-{medium,large,giant}"),
        ("cube-single-v0", "cube-{single,double"),
        ("cube-octuple-play-v0", "no data set that can be collected"),
        ("visual-cube-single-play-v0", "no data set that can be collected"),
        ("pointmaze-medium-play-v0", "pointmaze-{medium,large"),
    ],
)
def test_what_cannot_be_collected_is_refused_with_a_way_out(name, says):
    with pytest.raises(BadInput) as error:
        find_recipe(name)
    assert name in str(error.value)
    assert says in str(error.value)
