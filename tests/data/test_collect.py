import contextlib
import dataclasses
import errno
import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sorl_fast.config import CollectConfig
from sorl_fast.data import collect as module
from sorl_fast.data.collect import collect, run_recipe
from sorl_fast.envs import find_recipe, open_source
from sorl_fast.envs.recipe import DTYPES, Recipe, collect_episode
from sorl_fast.errors import BadInput, Stopped

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

    def __call__(self, jobs, config, recipe, stop, *, progress, done):
        for job in jobs:
            if self.break_after is not None and len(self.collected) >= self.break_after:
                raise Stopped("broken off")
            episode = collect_episode(self.source, config.seed, job.split, job.episode)
            module._write_shard(job.path, episode)
            self.collected.append((job.split, job.episode))


@pytest.fixture
def simulator(monkeypatch):
    fake = Simulator(FakeSource())
    monkeypatch.setattr(module, "_run", fake)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # thousands of them; no power cut is tested
    return fake


def config(out, **changes):
    return CollectConfig(**({"env": NAME, "out": str(out), "episodes": 12} | changes))


def tiny(out, **changes):
    return run_recipe(config(out, **changes), TINY, progress=False)


def load(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize(("episodes", "val"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2)])
def test_the_files(tmp_path, simulator, episodes, val):
    report = tiny(tmp_path / "new" / "folder", episodes=episodes)
    assert (report.episodes, report.val_episodes) == (episodes, val)
    assert report.steps == (episodes + val) * TINY.steps
    assert not report.already_done
    assert report.resumed_episodes == 0
    assert report.train_path == tmp_path / "new" / "folder" / "scene-play-v0.npz"
    assert report.val_path == tmp_path / "new" / "folder" / "scene-play-v0-val.npz"
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "scene-play-v0-val.npz",
        "scene-play-v0.npz",
    ]
    for split, (path, count) in enumerate([(report.train_path, episodes), (report.val_path, val)]):
        arrays = load(path)
        assert list(arrays) == list(DTYPES)
        for key, dtype in DTYPES.items():
            parts = [collect_episode(FakeSource(), 0, split, e)[key] for e in range(count)]
            assert arrays[key].dtype == dtype
            np.testing.assert_array_equal(arrays[key], np.concatenate(parts))


def test_a_data_set_without_buttons_has_no_button_states(tmp_path, simulator):
    recipe = dataclasses.replace(find_recipe("cube-single-play-v0"), steps=TINY.steps)
    settings = config(tmp_path, env=recipe.dataset, episodes=1)
    report = run_recipe(settings, recipe, progress=False)
    assert list(load(report.train_path)) == [key for key in DTYPES if key != "button_states"]


def test_equal_collections_are_equal_files(tmp_path, simulator):
    one, two = tiny(tmp_path / "one"), tiny(tmp_path / "two")
    assert one.train_path.read_bytes() == two.train_path.read_bytes()
    assert one.val_path.read_bytes() == two.val_path.read_bytes()


def test_a_finished_collection_is_left_alone(tmp_path, simulator):
    first = tiny(tmp_path)
    before = first.train_path.stat().st_mtime_ns, first.train_path.stat().st_ino
    again = tiny(tmp_path)
    assert again.already_done
    assert (again.steps, again.episodes, again.val_episodes) == (0, 12, 1)
    assert (again.train_path.stat().st_mtime_ns, again.train_path.stat().st_ino) == before


def test_newer_libraries_do_not_make_a_finished_collection_another(
    tmp_path, simulator, monkeypatch
):
    tiny(tmp_path)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "99")
    assert tiny(tmp_path).already_done


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"seed": 1}, "seed 0 and not 1"), ({"episodes": 20}, "episodes")],
    ids=["seed", "episodes"],
)
def test_a_file_of_other_arguments_is_replaced_only_by_force(tmp_path, simulator, changes, says):
    before = tiny(tmp_path).train_path.read_bytes()
    with pytest.raises(BadInput, match=f"(?s){says}.*--force"):
        tiny(tmp_path, **changes)
    assert (tmp_path / f"{NAME}.npz").read_bytes() == before
    assert not (tmp_path / HIDDEN).exists()
    tiny(tmp_path, **changes, force=True)
    tiny(tmp_path / "new", **changes)
    for name in (f"{NAME}.npz", f"{NAME}-val.npz"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


def test_force_collects_again_what_is_finished(tmp_path, simulator):
    tiny(tmp_path)
    report = tiny(tmp_path, force=True)
    assert not report.already_done
    assert len(simulator.collected) == 2 * 13


@pytest.mark.parametrize("split", ["", "-val"])
@pytest.mark.parametrize("kind", ["npz", "text", "empty", "comment", "list"])
def test_a_file_that_is_not_ours_is_not_overwritten(tmp_path, simulator, split, kind):
    path = tmp_path / f"{NAME}{split}.npz"
    if kind in ("npz", "comment", "list"):
        np.savez(path, observations=np.zeros(3))
        with zipfile.ZipFile(path, "a") as archive:
            archive.comment = {"npz": b"", "comment": b'{"seed": 0}', "list": b"[1]"}[kind]
    else:
        path.write_text("hello" if kind == "text" else "")
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"not made by this command.*--force"):
        tiny(tmp_path)
    assert path.read_bytes() == before
    assert not simulator.collected
    tiny(tmp_path, force=True)
    assert len(load(path)["actions"]) == (1 if split else 12) * TINY.steps


@pytest.mark.parametrize(("split", "count"), [("", 12), ("-val", 1)])
def test_a_missing_file_is_collected_and_the_other_left(tmp_path, simulator, split, count):
    whole = tiny(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    (tmp_path / "half" / f"{NAME}{split}.npz").unlink()
    simulator.collected.clear()
    report = tiny(tmp_path / "half")
    assert len(simulator.collected) == count
    assert report.train_path.read_bytes() == whole.train_path.read_bytes()
    assert report.val_path.read_bytes() == whole.val_path.read_bytes()


def test_an_interrupted_collection_goes_on(tmp_path, simulator):
    simulator.break_after = 5
    with pytest.raises(Stopped):
        tiny(tmp_path / "a")
    assert [p.name for p in (tmp_path / "a").iterdir()] == [HIDDEN]
    simulator.break_after = None
    report = tiny(tmp_path / "a")
    assert report.resumed_episodes == 5
    assert report.steps == 8 * TINY.steps
    assert len(simulator.collected) == len(set(simulator.collected)) == 13
    straight = tiny(tmp_path / "b")
    assert report.train_path.read_bytes() == straight.train_path.read_bytes()


def test_what_is_resumed_is_said(tmp_path, simulator, capsys):
    simulator.break_after = 5
    with pytest.raises(Stopped):
        run_recipe(config(tmp_path), TINY)
    simulator.break_after = None
    run_recipe(config(tmp_path), TINY)
    assert "5 of them are there from an interrupted run, 8 to go" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "short", "key"])
def test_a_damaged_episode_is_collected_again(tmp_path, simulator, damage):
    simulator.break_after = 5
    with pytest.raises(Stopped):
        tiny(tmp_path / "a")
    simulator.break_after = None
    shard = tmp_path / "a" / HIDDEN / "train-000002.npz"
    data = bytearray(shard.read_bytes())
    if damage == "bit":
        data[data.index(load(shard)["qpos"].tobytes()) + 5] ^= 1
    shard.write_bytes({"cut": data[:-40], "bit": data, "empty": b""}.get(damage, data))
    if damage == "short":
        np.savez(shard, **{key: array[1:] for key, array in load(shard).items()})
    if damage == "key":
        np.savez(shard, observations=np.zeros(TINY.steps))
    report = tiny(tmp_path / "a")
    assert report.resumed_episodes == 4
    assert simulator.collected.count((0, 2)) == 2
    assert report.train_path.read_bytes() == tiny(tmp_path / "b").train_path.read_bytes()


@pytest.mark.parametrize("episodes", [3, 30])
def test_another_number_of_episodes_reuses_those_there(tmp_path, simulator, episodes):
    simulator.break_after = 5
    with pytest.raises(Stopped):
        tiny(tmp_path / "a")
    simulator.break_after = None
    report = tiny(tmp_path / "a", episodes=episodes)
    assert report.resumed_episodes == min(episodes, 5)
    straight = tiny(tmp_path / "b", episodes=episodes)
    assert report.train_path.read_bytes() == straight.train_path.read_bytes()
    assert report.val_path.read_bytes() == straight.val_path.read_bytes()


@pytest.mark.parametrize("what", ["seed", "versions", "recipe"])
def test_episodes_of_another_collection_are_discarded_only_by_force(
    tmp_path, simulator, monkeypatch, what
):
    simulator.break_after = 5
    with pytest.raises(Stopped):
        tiny(tmp_path)
    simulator.break_after = None
    changes = {"seed": 1} if what == "seed" else {}
    if what == "versions":
        monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "99")
    if what == "recipe":
        monkeypatch.setattr(module, "RECIPE_VERSION", 99)
    with pytest.raises(BadInput, match=f"interrupted collection of another {what}.*--force"):
        tiny(tmp_path, **changes)
    assert len(list((tmp_path / HIDDEN).glob("*.npz"))) == 5
    assert tiny(tmp_path, **changes, force=True).resumed_episodes == 0


class Killed(BaseException):
    """Stands in for SIGKILL: nothing in the package catches it."""


def test_killed_at_any_step_leaves_whole_files_and_goes_on(tmp_path, simulator, monkeypatch):
    straight = tiny(tmp_path / "straight", episodes=1)
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "rmdir")}
    left = {"calls": 0}

    def step(name):
        def call(*args, **kwargs):
            left["calls"] -= 1
            if left["calls"] == 0:
                raise Killed
            return real[name](*args, **kwargs)

        return call

    for name in real:
        monkeypatch.setattr(os, name, step(name))
    kills = 0
    while True:
        out = tmp_path / f"{kills}"
        left["calls"] = kills + 1
        try:
            tiny(out, episodes=1)
        except Killed:
            kills += 1
        else:
            break
        finally:
            left["calls"] = 0
        for path in out.glob("*.npz"):  # what has its final name is whole
            assert path.read_bytes() == (straight.train_path.parent / path.name).read_bytes()
        tiny(out, episodes=1)
        assert sorted(p.name for p in out.iterdir()) == [f"{NAME}-val.npz", f"{NAME}.npz"]
        assert (out / f"{NAME}.npz").read_bytes() == straight.train_path.read_bytes()
        assert (out / f"{NAME}-val.npz").read_bytes() == straight.val_path.read_bytes()
    assert kills > 15


def test_what_was_being_written_at_a_kill_is_removed(tmp_path, simulator):
    simulator.break_after = 5
    with pytest.raises(Stopped):
        tiny(tmp_path)
    simulator.break_after = None
    shard = tmp_path / HIDDEN / ".train-000005.npz.0123abcd.part"
    other = tmp_path / ".mine.npz.0123abcd.part"
    parts = [tmp_path / f".{NAME}{split}.npz.0123abcd.part" for split in ("", "-val")]
    for path in (shard, other, *parts):
        path.write_text("half")
    simulator.break_after = 5
    with pytest.raises(Stopped):
        tiny(tmp_path)
    assert not shard.exists()
    assert [path.exists() for path in (*parts, other)] == [False, False, True]


@pytest.mark.parametrize("split", [f"{NAME}-val.npz", f"{NAME}.npz"])
def test_a_full_disk_while_writing_the_data_set(tmp_path, simulator, monkeypatch, split):
    real = zipfile.ZipFile.open

    def full(self, name, mode="r", **kwargs):
        if mode == "w" and split in str(getattr(self.fp, "name", "")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, name, mode, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", full)
        with pytest.raises(BadInput, match=f"cannot write .*{split}: No space left on device"):
            tiny(tmp_path)
    assert not (tmp_path / split).exists()
    assert [p for p in tmp_path.iterdir() if p.name.endswith(".part")] == []
    assert tiny(tmp_path).resumed_episodes == (13 if "val" in split else 12)


@pytest.mark.parametrize("where", ["", "below"])
def test_out_is_a_file(tmp_path, simulator, where):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(BadInput, match="--out"):
        tiny(path / where)
    assert path.read_text() == "mine"


def test_out_is_read_only(tmp_path, simulator):
    if os.geteuid() == 0:
        out = Path("/proc/collected")  # where even root may make nothing
    else:
        out = tmp_path / "locked"
        out.mkdir(mode=0o500)
    with pytest.raises(BadInput, match=r"cannot write into .*may write to"):
        tiny(out)
    assert not simulator.collected


def test_two_collections_into_one_folder(tmp_path, simulator):
    (tmp_path / HIDDEN).mkdir()
    with (tmp_path / HIDDEN / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="another process is collecting"):
            tiny(tmp_path)
    assert not tiny(tmp_path).already_done


def test_a_file_system_without_locks(tmp_path, simulator, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(RuntimeWarning, match="No locks available"):
        assert not tiny(tmp_path).already_done


def test_without_ogbench(tmp_path, monkeypatch):
    def version(name):
        raise module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "version", version)
    with pytest.raises(BadInput, match=r"needs ogbench.*pip install 'sorl-fast\[train\]'"):
        tiny(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_cannot_be_collected_changes_nothing(tmp_path):
    with pytest.raises(BadInput, match="cannot be collected"):
        collect(config(tmp_path, env="antmaze-large-navigate-v0"))
    assert list(tmp_path.iterdir()) == []


def test_a_request_to_stop_ends_the_writing_too(tmp_path, simulator, monkeypatch):
    real = module._write_array

    def stop_meanwhile(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_array", stop_meanwhile)
        with pytest.raises(Stopped, match="same command again"):
            tiny(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [HIDDEN]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert tiny(tmp_path).resumed_episodes == 13


# --- with the simulator, in processes of their own ------------------------------------------------

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


@pytest.mark.slow
def test_a_worker_that_dies_is_an_error_and_not_a_wait(tmp_path):
    def kill_one():
        while not list(tmp_path.glob(".*/train-*.npz")):
            time.sleep(0.01)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    with pytest.raises(RuntimeError, match=r"was killed by SIGKILL in _Job.*are kept"):
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
