"""Collecting with the simulator, in processes of their own."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from collecting import Simulator, config, load

from sorl_fast.data import collect as module
from sorl_fast.data.collect import run_recipe
from sorl_fast.envs import find_recipe, open_source
from sorl_fast.envs.recipe import Recipe, collect_episode
from sorl_fast.errors import BadInput

MAZE = "pointmaze-medium-navigate-v0"


def small(name, steps):
    return dataclasses.replace(find_recipe(name), steps=steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps", "workers"),
    [("cube-single-play-v0", 30, (2,)), (MAZE, 50, (1, 2))],
    ids=["cube", "maze"],
)
def test_the_arrays_do_not_depend_on_workers_or_order(tmp_path, name, steps, workers):
    recipe = small(name, steps)
    source = open_source(recipe)
    backwards = [collect_episode(source, 3, 0, e) for e in reversed(range(5))][::-1]
    val = collect_episode(source, 3, 1, 0)
    for count in workers:
        settings = config(tmp_path / str(count), env=name, episodes=5, seed=3, workers=count)
        report = run_recipe(settings, recipe, progress=False)
        for path, episodes in [(report.train_path, backwards), (report.val_path, [val])]:
            arrays = load(path)
            for key in recipe.keys:
                expected = np.concatenate([episode[key] for episode in episodes])
                assert arrays[key].dtype == expected.dtype
                np.testing.assert_array_equal(arrays[key], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("cube-single-play-v0", "cube-single-play-singletask-task2-v0"),
        ("scene-play-v0", "scene-play-singletask-task1-v0"),
        (MAZE, "pointmaze-medium-navigate-singletask-task1-v0"),
    ],
)
def test_ogbench_reads_the_files(tmp_path, monkeypatch, name, task):
    recipe = small(name, 40)
    monkeypatch.setattr(module, "_run", Simulator(open_source(recipe)))
    report = run_recipe(config(tmp_path, env=name, episodes=2), recipe, progress=False)
    import ogbench

    env, train, val = ogbench.make_env_and_datasets(task, dataset_dir=str(tmp_path))
    ours = load(report.train_path)
    inner = ~ours["terminals"]
    assert (len(train["rewards"]), len(val["rewards"])) == (2 * 39, 39)
    np.testing.assert_array_equal(train["observations"], ours["observations"][inner])
    np.testing.assert_array_equal(train["actions"], ours["actions"][inner])
    np.testing.assert_array_equal(
        train["next_observations"], ours["observations"][np.roll(inner, 1)]
    )
    assert np.flatnonzero(train["terminals"]).tolist() == [38, 77]

    qpos, env = ours["qpos"][inner], env.unwrapped
    if name == MAZE:
        satisfied = (np.linalg.norm(qpos - env.cur_goal_xy, axis=1) <= env._goal_tol)[:, None]
    else:
        goal = env._data.mocap_pos[0]
        satisfied = (np.linalg.norm(qpos[:, 14:17] - goal, axis=1) <= 0.04)[:, None]
    if name == "scene-play-v0":
        buttons = ours["button_states"][inner] == env._target_button_states
        drawer = np.abs(qpos[:, [23]] - env._target_drawer_pos) <= 0.04
        window = np.abs(qpos[:, [24]] - env._target_window_pos) <= 0.04
        satisfied = np.concatenate([satisfied, buttons, drawer, window], axis=1)
    np.testing.assert_array_equal(train["rewards"], satisfied.sum(axis=1) - satisfied.shape[1])
    np.testing.assert_array_equal(train["masks"], 1 - satisfied.all(axis=1))


@pytest.mark.slow
def test_a_worker_that_fails_says_why(tmp_path):
    broken = Recipe("cube-no-such-thing-v0", "cube-no-such-thing-v0", "play", 3)
    with pytest.raises(RuntimeError, match=r"(?s)collecting process failed.*no-such-thing"):
        run_recipe(config(tmp_path), broken, progress=False)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_that_cannot_write_is_bad_input(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))  # as a disk that is full
    try:
        with pytest.raises(BadInput, match=r"cannot write .*\.npz: File too large"):
            run_recipe(config(tmp_path, env=MAZE), small(MAZE, 2000), progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == [f".{MAZE}.collect"]
    assert not list((tmp_path / f".{MAZE}.collect").glob("*.npz"))


# the one that is killed may still be starting when the other has written an episode
KILLED = r"was killed by SIGKILL (in _Job|before its first episode).*are kept"


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_and_not_a_wait(tmp_path):
    def kill_one():
        while not list(tmp_path.glob(".*/train-*.npz")):
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    with pytest.raises(RuntimeError, match=KILLED):
        run_recipe(config(tmp_path, env=MAZE, episodes=5000), small(MAZE, 400), progress=False)
    thread.join()
    assert not multiprocessing.active_children()


SCRIPT = """
import dataclasses, sys
from sorl_fast.config import CollectConfig
from sorl_fast.data.collect import run_recipe
from sorl_fast.envs import find_recipe
from sorl_fast.errors import Stopped

if __name__ == "__main__":
    name, out = sys.argv[1:]
    recipe = dataclasses.replace(find_recipe(name), steps=600)
    try:
        report = run_recipe(CollectConfig(env=name, out=out, episodes=40, workers=2), recipe)
    except Stopped as err:
        print(err, file=sys.stderr)
        raise SystemExit(75)
    print("resumed", report.resumed_episodes)
"""


def children(pid):
    """The processes that `pid` started, and their children."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *children(child)]
    return found


@pytest.mark.slow
def test_signals_lose_at_most_the_episodes_in_hand(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    out = tmp_path / "out"
    hidden = out / f".{MAZE}.collect"

    def start():
        command = [sys.executable, script, MAZE, out]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    # Ctrl-C reaches the whole group; SIGTERM often only the parent; SIGKILL leaves orphans.
    kept = 0
    for send, signum in [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM), (os.kill, 9)]:
        process = start()
        while len(list(hidden.glob("*.npz"))) < kept + 3:
            assert process.poll() is None
            time.sleep(0.002)
        family = children(process.pid)
        assert len(family) >= 2
        send(process.pid, signum)
        _, err = process.communicate(timeout=200)
        if signum == 9:
            assert process.returncode == -9
        else:
            assert process.returncode == 75
            assert "same command again" in err
        assert "Traceback" not in err
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in family):
            assert time.monotonic() < deadline, "a process outlived its parent"
            time.sleep(0.01)
        assert not list(out.glob("*.npz"))
        kept = len(list(hidden.glob("*.npz")))
    process = start()
    stdout, err = process.communicate(timeout=200)
    assert stdout == f"resumed {kept}\n"
    assert f"{kept} of them are there from an interrupted run" in err
    assert " of 26,400 steps after " in err
    assert sorted(p.name for p in out.iterdir()) == [f"{MAZE}-val.npz", f"{MAZE}.npz"]
    arrays = load(out / f"{MAZE}.npz")
    source = open_source(small(MAZE, 600))
    for e in (0, 7, 39):
        episode = collect_episode(source, 0, 0, e)
        np.testing.assert_array_equal(
            arrays["observations"][e * 600 : (e + 1) * 600], episode["observations"]
        )


@pytest.mark.slow
def test_a_finished_file_says_what_it_is(tmp_path):
    report = run_recipe(config(tmp_path, env=MAZE, episodes=1), small(MAZE, 3), progress=False)
    with zipfile.ZipFile(report.val_path) as archive:
        about = json.loads(archive.comment)
    assert about["dataset"] == MAZE
    assert about["split"] == "val"
    assert set(about["versions"]) == {"ogbench", "mujoco", "numpy"}
