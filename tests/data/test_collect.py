"""Collecting a data set: its files, interruptions, and what is refused."""

import dataclasses
import errno
import fcntl
import os
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
from collecting import HIDDEN, NAME, TINY, FakeSource, Simulator, config, load, tiny

from sorl_fast.data import collect as module
from sorl_fast.data.collect import collect, run_recipe
from sorl_fast.envs import find_recipe
from sorl_fast.envs.recipe import DTYPES, collect_episode
from sorl_fast.errors import BadInput, Stopped


@pytest.fixture
def simulator(monkeypatch):
    fake = Simulator(FakeSource())
    monkeypatch.setattr(module, "_run", fake)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # thousands of them; no power cut is tested
    return fake


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
    with pytest.raises(BadInput, match="no data set that can be collected"):
        collect(config(tmp_path, env="antmaze-giant-explore-v0"))
    assert list(tmp_path.iterdir()) == []


def test_a_request_to_stop_ends_the_writing_too(tmp_path, simulator, monkeypatch):
    real = module._write_array

    def stop_meanwhile(*args):
        signal.raise_signal(signal.SIGTERM)  # in this thread, at once
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_array", stop_meanwhile)
        with pytest.raises(Stopped, match="same command again"):
            tiny(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [HIDDEN]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert tiny(tmp_path).resumed_episodes == 13
