"""Experts: found, checked, and data that they make: the same bytes for any number of workers."""

import dataclasses
import json
import zipfile

import numpy as np
import policies
import pytest
from collecting import Simulator, config, load
from experts import make_expert, save_expert

from sorl_fast import cli
from sorl_fast.act.form import Direct
from sorl_fast.act.policy_file import load as load_policy
from sorl_fast.act.policy_file import save
from sorl_fast.act.sampler import Sampler
from sorl_fast.data import collect as module
from sorl_fast.data.collect import run_recipe
from sorl_fast.data.experts import actor_of, find_experts
from sorl_fast.envs import bodies, find_preset, find_recipe, open_source
from sorl_fast.envs.bodies import ANT, ANTBALL, BODIES, HUMANOID
from sorl_fast.envs.recipe import collect_episode
from sorl_fast.errors import BadInput

SOCCER = find_recipe("antsoccer-arena-navigate-v0")
MAZE = find_recipe("antmaze-medium-navigate-v0")


def test_files_are_found_by_body_in_any_order(tmp_path):
    files = [save_expert(tmp_path, body) for body in (ANTBALL, ANT)]
    found = find_experts(SOCCER, files)
    assert [policy.env for policy in found] == [ANT.online, ANTBALL.online]


def test_the_packages_own_walks_where_none_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(bodies, "SHIPPED", tmp_path)
    save(ANT.shipped, make_expert(ANT, seed=1))
    (own,) = find_experts(MAZE, [])
    assert own.digest == make_expert(ANT, seed=1).digest
    given = tmp_path / "mine"
    save(given, make_expert(ANT, seed=2))
    assert find_experts(MAZE, [str(given)])[0].digest != own.digest
    ball = save_expert(tmp_path / "more", ANTBALL)
    assert find_experts(SOCCER, [ball])[0].digest == own.digest
    assert find_experts(find_recipe("cube-single-play-v0"), []) == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"obs_dim": 27}, r"obs_dim = 27, but an expert of ant has 29. Train .*--env ant"),
        ({"act_dim": 21}, "act_dim = 21, but an expert of ant has 8"),
        (
            {"env": "online-humanoid-v0"},
            "env 'online-humanoid-v0', but .* takes one of env 'online-ant",
        ),
        ({"env": ""}, "is of env ''"),
        (
            {"form": Direct(reads_noise=True)},
            "form direct, which reads noise, but must be of form tanh",
        ),
    ],
    ids=["observations", "actions", "env", "no-env", "noise"],
)
def test_an_expert_of_another_kind_is_refused_by_name(tmp_path, changes, says):
    path = tmp_path / "expert.safetensors"
    save(path, make_expert(ANT, **changes))
    with pytest.raises(BadInput, match=says) as error:
        find_experts(MAZE, [str(path)])
    assert str(path) in str(error.value)


def test_a_shortcut_policy_is_no_expert(tmp_path):
    path = tmp_path / "policy.safetensors"
    save(path, dataclasses.replace(policies.make_policy(O=29, A=8, H=8), env=ANT.online))
    with pytest.raises(BadInput, match="form shortcut, but must be of form tanh or direct"):
        find_experts(MAZE, [str(path)])


def test_what_is_too_much_missing_or_damaged_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(bodies, "SHIPPED", tmp_path / "none")
    ant = save_expert(tmp_path, ANT)
    with pytest.raises(BadInput, match="is a second one of ant"):
        find_experts(MAZE, [ant, ant])
    with pytest.raises(BadInput, match=r"cube-single-play-v0 takes no expert. Leave --expert out"):
        find_experts(find_recipe("cube-single-play-v0"), [ant])
    with pytest.raises(BadInput, match=r"an expert of antball \(42 .*--steps 12000000 .*--expert"):
        find_experts(SOCCER, [ant])
    with pytest.raises(BadInput, match="not a file that exists"):
        find_experts(MAZE, [str(tmp_path / "nowhere")])
    (tmp_path / "torn").write_bytes(b"x" * 100)
    with pytest.raises(BadInput, match="torn"):
        find_experts(MAZE, [str(tmp_path / "torn")])


def test_an_actor_adds_no_noise():
    policy = make_expert(ANT, form=Direct(reads_noise=False, temperature=1.0))
    obs = np.linspace(-1, 1, 29, dtype=np.float32)
    expected = Sampler(policy).act(obs, seed=7, temperature=0.0)
    np.testing.assert_array_equal(actor_of(policy)(obs), expected)


# --- with the simulator ---------------------------------------------------------------------------


def source_of(recipe):
    return open_source(recipe, [actor_of(make_expert(body)) for body in recipe.bodies])


def files_of(recipe, folder):
    return tuple(save_expert(folder, body) for body in recipe.bodies)


CASES = {
    "antmaze-medium-navigate-v0": (29, 15, 14),
    "antmaze-large-explore-v0": (29, 15, 14),
    "humanoidmaze-medium-stitch-v0": (69, 28, 27),
    "antsoccer-arena-navigate-v0": (42, 22, 20),
    "antsoccer-medium-stitch-v0": (42, 22, 20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_episode_is_whole_and_does_not_depend_on_those_before(name):
    recipe = dataclasses.replace(find_recipe(name), steps=25)
    source = source_of(recipe)
    episode = collect_episode(source, 3, 0, 1)
    shapes = {key: array.shape[1:] for key, array in episode.items() if key != "terminals"}
    sizes = CASES[name]
    acts = recipe.bodies[0].act_dim
    names = ("observations", "actions", "qpos", "qvel")
    widths = (sizes[0], acts, *sizes[1:])
    assert shapes == {key: (width,) for key, width in zip(names, widths, strict=True)}
    assert {str(array.dtype) for array in episode.values()} == {"float32", "bool"}
    assert np.flatnonzero(episode["terminals"]).tolist() == [24]
    assert np.abs(episode["actions"]).max() <= 1
    assert episode["actions"].std() > 0.05
    assert all(np.isfinite(array).all() for array in episode.values())
    np.testing.assert_array_equal(episode["observations"][:, :2], episode["qpos"][:, :2])
    collect_episode(source, 3, 0, 2)
    np.random.seed(99)  # noqa: NPY002 - what the process drew before must not matter
    again = collect_episode(source, 3, 0, 1)
    for key in recipe.keys:
        np.testing.assert_array_equal(episode[key], again[key])
    without = ("antmaze-large-explore-v0", "antsoccer-medium-stitch-v0")
    assert (source.waypoints is None) == (name in without)


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_workers_and_say_whose_doings_they_are(tmp_path):
    recipe = dataclasses.replace(find_recipe("antmaze-medium-stitch-v0"), steps=20)
    files = files_of(recipe, tmp_path)
    reports = []
    for workers in (1, 2):
        settings = config(
            tmp_path / str(workers), env=recipe.dataset, episodes=3, workers=workers, expert=files
        )
        reports.append(run_recipe(settings, recipe, progress=False))
    one, two = reports
    assert one.train_path.read_bytes() == two.train_path.read_bytes()
    assert one.val_path.read_bytes() == two.val_path.read_bytes()
    assert one.waypoints == two.waypoints is not None
    with zipfile.ZipFile(one.train_path) as archive:
        about = json.loads(archive.comment)
    assert about["experts"] == [make_expert(ANT).digest]
    assert about["versions"]["backend"]
    save(files[0], make_expert(ANT, seed=9))
    with pytest.raises(BadInput, match=r"made with experts .* --force"):
        run_recipe(settings, recipe, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("antmaze-large-navigate-v0", "antmaze-large-navigate-singletask-task1-v0"),
        ("humanoidmaze-medium-navigate-v0", "humanoidmaze-medium-navigate-singletask-task1-v0"),
        ("antsoccer-arena-navigate-v0", "antsoccer-arena-navigate-singletask-task4-v0"),
    ],
)
def test_ogbench_reads_the_files(tmp_path, monkeypatch, name, task):
    recipe = dataclasses.replace(find_recipe(name), steps=20)
    monkeypatch.setattr(module, "_run", Simulator(source_of(recipe)))
    settings = config(tmp_path, env=name, episodes=2, expert=files_of(recipe, tmp_path))
    report = run_recipe(settings, recipe, progress=False)
    import ogbench

    env, train, val = ogbench.make_env_and_datasets(task, dataset_dir=str(tmp_path))
    ours = load(report.train_path)
    inner = ~ours["terminals"]
    assert (len(train["rewards"]), len(val["rewards"])) == (2 * 19, 19)
    np.testing.assert_array_equal(train["observations"], ours["observations"][inner])
    xy = ours["qpos"][inner][:, 15:17] if "soccer" in name else ours["qpos"][inner][:, :2]
    there = np.linalg.norm(xy - env.unwrapped.cur_goal_xy, axis=1) <= env.unwrapped._goal_tol
    np.testing.assert_array_equal(train["rewards"], there.astype(float) - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["antmaze-giant-navigate", "humanoidmaze-large-navigate"])
def test_a_preset_trains_on_them(tmp_path, monkeypatch, name):
    recipe = dataclasses.replace(find_recipe(f"{name}-v0"), steps=20)
    monkeypatch.setattr(module, "_run", Simulator(source_of(recipe)))
    settings = config(tmp_path, env=recipe.dataset, episodes=2, expert=files_of(recipe, tmp_path))
    run_recipe(settings, recipe, progress=False)
    task, out = f"{name}-singletask-task1-v0", tmp_path / "run"
    argv = ["train", "--env", task, "--data", str(tmp_path), "--out", str(out), "--no-progress"]
    small = ["--steps", "2", "--hidden", "8", "--depth", "1", "--eval-every", "0"]
    assert cli.main([*argv, *small]) == 0
    policy = load_policy(out / "policy.safetensors")
    preset = find_preset(task)
    assert (policy.obs_dim, policy.act_dim) == (preset.obs_dim, preset.act_dim)
    assert policy.env == task


def test_every_body_has_a_maze():
    used = {
        b.name
        for r in (MAZE, SOCCER, find_recipe("humanoidmaze-medium-stitch-v0"))
        for b in r.bodies
    }
    assert used == set(BODIES)
    assert HUMANOID.obs_dim == 69
