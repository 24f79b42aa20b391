"""Every format's rows arrive with its own meaning of ends, rewards and next states; the rest is refused."""

import importlib.util
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import own_arrays

from sorl_fast import BadInput, cli
from sorl_fast.config import ImportConfig
from sorl_fast.data.dataset import load_data
from sorl_fast.importing import run_import, text_of
from sorl_fast.importing.episode import Episode, rows_of


def load_sources():
    path = Path(__file__).parent / "sources.py"
    spec = importlib.util.spec_from_file_location("sources_to_import", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


S = load_sources()
NAN = float("nan")


def imported(source, tmp_path, **options):
    """Return the written arrays and what was found."""
    out = tmp_path / "out" / "my.npz"
    found = run_import(str(source), ImportConfig(out=str(out), **options))
    assert json.loads(out.with_suffix(".json").read_text()) == found
    with np.load(out, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert {x.dtype for x in arrays.values()} == {np.dtype(np.float32)}
    return arrays, found


def refused(says, source, tmp_path, **options):
    with pytest.raises(BadInput, match=re.escape(says)):
        imported(source, tmp_path, **options)
    assert not (tmp_path / "out").exists()  # nothing is half-written


def check_next(arrays, lengths):
    """Rows count up by one: so must the next observations, inside every episode."""
    np.testing.assert_allclose(arrays["next_observations"], arrays["observations"] + 1)
    np.testing.assert_array_equal(np.flatnonzero(arrays["terminals"]), np.cumsum(lengths) - 1)


# --- the common form


def episode(T=4, more=1, **fields):
    rows = S.numbers(T + more, 3)
    own = {"rewards": np.arange(T), "success": None, "done": np.zeros(T, bool)}
    return Episode(**{"name": "e", "observations": rows, "actions": S.numbers(T, 2)} | own | fields)


def test_a_last_step_without_its_next_state_is_kept_only_where_the_task_ended():
    ended = np.array([False, False, False, True])
    for more, done, kept in (
        (1, ended * False, 4),
        (0, ended * False, 3),
        (0, ended, 4),
        (1, ended, 4),
    ):
        arrays, found = rows_of([episode(more=more, done=done)], "recorded")
        assert len(arrays["actions"]) == kept == found["rows"]
        assert arrays["terminals"].tolist() == [0] * (kept - 1) + [1]
        assert arrays["masks"].tolist() == [1, 1, 1, 1 - float(done[-1])][:kept]
        assert found["last steps left out, their next observation not being known"] == 4 - kept
        if kept == 4 and not more:  # its next state is never read: its own
            np.testing.assert_array_equal(
                arrays["next_observations"][-1], arrays["observations"][-1]
            )


def test_rewards_of_success():
    success = np.array([False, True, False, True])
    arrays, _ = rows_of([episode(success=success)], "success")
    assert arrays["rewards"].tolist() == [-1, 0, -1, 0]
    assert arrays["masks"].tolist() == [1, 0, 1, 0]
    arrays, _ = rows_of([episode(), episode(more=0)], "success-at-end")
    assert arrays["rewards"].tolist() == [-1, -1, -1, 0] * 2
    assert arrays["masks"].tolist() == [1, 1, 1, 0] * 2


@pytest.mark.parametrize(
    ("fields", "kind", "says"),
    [
        ({"rewards": None}, "recorded", "has no rewards. Add --reward success where"),
        ({}, "success", "records no success. Add --reward success-at-end"),
        (
            {"more": 2},
            "recorded",
            "e has 6 observations for 4 actions, but must have as many, or one more",
        ),
        ({"more": -1}, "recorded", "e has 3 observations for 4 actions"),
        ({"rewards": np.zeros(3)}, "recorded", "e has 3 rewards, but must have 4"),
        (
            {"rewards": np.array([0, 1, NAN, 0])},
            "recorded",
            "rewards is not finite as float32 in row 2",
        ),
        (
            {"actions": np.full((4, 2), 1e39)},
            "recorded",
            "actions is not finite as float32 in row 0",
        ),
        (
            {"actions": np.array(list("abcd"))},
            "recorded",
            "actions has dtype <U1, but must be real numbers",
        ),
        (
            {"actions": np.zeros((4, 2, 2))},
            "recorded",
            "actions has shape [4, 2, 2], but must have 2 axes",
        ),
        ({"success": np.array([0, 2, 0, 0])}, "success", "success must be 0 or 1, but has 2"),
        ({"T": 1, "more": 0}, "recorded", "there is no whole step in it"),
        ({"next_observations": S.numbers(4, 2)}, "recorded", "next observations have shape [4, 2]"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else None,
)
def test_what_no_episode_may_be_is_refused(fields, kind, says):
    with pytest.raises(BadInput, match=re.escape(says)):
        rows_of([episode(**fields)], kind)


# --- Minari


def test_minari(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    episodes = [
        S.minari_episode(5),
        S.minari_episode(4, 100, terminated=True, truncated=False),
        S.minari_episode(3, 200, truncated=False),
    ]
    path = S.write_minari(tmp_path / "datasets", episodes, monkeypatch)
    for source in (path, path / "data", "toy/own-v0"):
        arrays, found = imported(source, tmp_path, force=True)
        check_next(arrays, [5, 4, 3])
        assert np.flatnonzero(arrays["masks"] == 0).tolist() == [8]
        np.testing.assert_allclose(arrays["rewards"][5:9], [100, 100.01, 100.02, 100.03], rtol=1e-6)
        assert found["format"] == "minari"
        rows = found["training"]
        assert rows["episodes ended by the task"] == rows["episodes ended by time"] == 1
        assert rows["episodes whose end nothing marks"] == 1
        assert rows["episodes with the last step's next observation"] == 3
        assert rows["action high"] == pytest.approx([202, 203.1], abs=1.1)


@pytest.mark.slow
def test_what_minaris_own_recorder_writes(tmp_path, monkeypatch):
    """An episode that ends, one that time cuts off, and a tail that was being recorded."""
    pytest.importorskip("h5py")
    pytest.importorskip("jax")  # which Minari's recorder needs
    minari = pytest.importorskip("minari")
    import gymnasium

    class Count(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1000, 1000, (3,), np.float64)
        action_space = gymnasium.spaces.Box(-1000, 1000, (2,), np.float64)

        def reset(self, *, seed=None, options=None):
            self.at, self.end = 0, options["end"]
            return self._seen(), {"success": False}

        def step(self, action):
            self.at += 1
            done = self.at == self.end
            return self._seen(), self.at / 8, done, self.at == 5, {"success": done}

        def _seen(self):
            return self.at + np.arange(3) / 10

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with warnings.catch_warnings():  # of an author that nobody named
        warnings.simplefilter("ignore")
        recorder = minari.DataCollector(Count(), record_infos=True)
        for end, steps in ((4, 4), (9, 5), (9, 2)):
            recorder.reset(seed=0, options={"end": end, "minari_autoseed": False})
            for t in range(steps):
                recorder.step(np.array([t, -t], np.float64))
        recorder.create_dataset("toy/recorded-v0")
        recorder._tmp_dir.cleanup()  # which it leaves to the collector
    arrays, found = imported("toy/recorded-v0", tmp_path)
    check_next(arrays, [4, 5, 2])
    np.testing.assert_allclose(arrays["rewards"] * 8, [1, 2, 3, 4, 1, 2, 3, 4, 5, 1, 2])
    np.testing.assert_array_equal(arrays["actions"][:, 0], [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1])
    assert np.flatnonzero(arrays["masks"] == 0).tolist() == [3]
    assert found["training"]["episodes ended by time"] == 2  # the recorder marks the tail so
    arrays, _ = imported("toy/recorded-v0", tmp_path, reward="success", force=True)
    assert arrays["rewards"].tolist() == [-1, -1, -1, 0] + [-1] * 7


def test_minaris_arrow_and_its_long_episodes(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    pytest.importorskip("pyarrow")
    short = S.write_minari(
        tmp_path / "a", [S.minari_episode(5), S.minari_episode(4, 50)], monkeypatch, "arrow"
    )
    arrays, _ = imported(short, tmp_path)
    check_next(arrays, [5, 4])
    (tmp_path / "out" / "my.npz").unlink()
    long = S.write_minari(
        tmp_path / "b", [S.minari_episode(40_000), S.minari_episode(4)], monkeypatch, "arrow"
    )
    with pytest.raises(
        BadInput, match="has 32767 steps as Minari reads it, but its metadata say 40000"
    ):
        imported(long, tmp_path, force=True)


def test_minaris_success_is_that_behind_the_reset(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    success = [False, False, False, True, False, False]  # T + 1: the first of the reset
    path = S.write_minari(tmp_path / "d", [S.minari_episode(5, success=success)], monkeypatch)
    arrays, _ = imported(path, tmp_path, reward="success")
    assert arrays["rewards"].tolist() == [-1, -1, 0, -1, -1]


def test_minaris_observations_in_parts_must_be_named(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    from gymnasium.spaces import Box, Dict

    fields = S.minari_episode(5)
    x = fields["observations"]
    fields["observations"] = {"goal": x[:, :1], "state": x[:, 1:]}
    box = {n: Box(-np.inf, np.inf, (k,), np.float64) for n, k in (("goal", 1), ("state", 2))}
    path = S.write_minari(tmp_path / "d", [fields], monkeypatch, spaces=Dict(box))
    refused("has the parts of an observation goal (1), state (2). Name those", path, tmp_path)
    refused("observation 'speed' of", path, tmp_path, observations=("speed",))
    arrays, found = imported(path, tmp_path, observations=("state", "goal"))
    np.testing.assert_allclose(arrays["observations"], x[:-1, [1, 2, 0]], rtol=1e-6)
    assert found["observations"] == ["state", "goal"]


def test_a_minari_data_set_that_is_not_here_is_told_how_to_fetch(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    refused("Fetch it with `minari download D4RL/door/human-v2`", "D4RL/door/human-v2", tmp_path)
    refused("is no file or folder, and no name of a Minari data set", "no such/file!", tmp_path)
    refused("is no file or folder, and no name of a Minari data set", "some-name", tmp_path)


def test_a_damaged_minari_data_set_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    path = S.write_minari(tmp_path / "d", [S.minari_episode(5)], monkeypatch)
    file = path / "data" / "main_data.hdf5"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    refused("Minari does not read", path, tmp_path)
    (path / "data" / "metadata.json").write_text("{")
    refused("Minari does not read", path, tmp_path)


# --- LeRobot


def test_lerobot(tmp_path):
    pytest.importorskip("pyarrow")
    path = S.write_lerobot(
        tmp_path / "d",
        [5, 4],
        **{
            "next.reward": np.arange(9, dtype=np.float32),
            "next.done": np.isin(np.arange(9), (4, 8)),
            "next.success": np.arange(9) == 8,
        },
    )
    arrays, found = imported(path, tmp_path)
    # the first has no state behind its last frame, and did not succeed: that step is left out
    np.testing.assert_allclose(arrays["observations"][:, 0], [0, 1, 2, 3, 5, 6, 7, 8])
    np.testing.assert_allclose(arrays["rewards"], [0, 1, 2, 3, 5, 6, 7, 8])
    assert arrays["masks"].tolist() == [1] * 7 + [0]
    assert arrays["terminals"].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    np.testing.assert_allclose(arrays["next_observations"][:3, 0], [1, 2, 3])
    assert found["frames a second"] == 10
    assert found["training"]["episodes ended by time"] == 1
    for kind in ("success", "success-at-end"):
        arrays, _ = imported(path, tmp_path, reward=kind, force=True)
        assert arrays["rewards"][-1] == 0


def test_lerobot_of_a_teleoperator_has_no_rewards(tmp_path):
    pytest.importorskip("pyarrow")
    path = S.write_lerobot(tmp_path / "d", [5, 4])
    refused("has no rewards. Add --reward success where the source records success", path, tmp_path)
    refused("records no success. Add --reward success-at-end", path, tmp_path, reward="success")
    arrays, found = imported(path, tmp_path, reward="success-at-end")
    assert arrays["rewards"].tolist() == [-1, -1, -1, -1, 0, -1, -1, -1, 0]
    assert found["training"]["episodes ended by the task"] == 2


def test_lerobots_done_alone_must_be_explained(tmp_path):
    pytest.importorskip("pyarrow")
    columns = {"next.reward": np.zeros(9, np.float32), "next.done": np.isin(np.arange(9), (4, 8))}
    path = S.write_lerobot(tmp_path / "d", [5, 4], **columns)
    refused("Add --dones task or --dones end", path, tmp_path)
    assert (imported(path, tmp_path, dones="task")[0]["masks"] == 0).sum() == 2
    arrays, found = imported(path, tmp_path, dones="end", force=True)
    assert (arrays["masks"] == 1).all()
    assert found["training"]["episodes ended by time"] == 2


@pytest.mark.parametrize("gap", ["drop", "late"])
def test_lerobot_is_split_at_gaps(tmp_path, gap):
    pytest.importorskip("pyarrow")
    where = {"drop": {"drop": (3,)}, "late": {"late": (4,)}}[gap]
    path = S.write_lerobot(
        tmp_path / "d", [8], **where, **{"next.reward": np.arange(8, dtype=np.float32)}
    )
    arrays, found = imported(path, tmp_path)
    kept = {"drop": [0, 1, 4, 5, 6], "late": [0, 1, 2, 4, 5, 6]}[gap]
    np.testing.assert_allclose(arrays["rewards"], kept)
    np.testing.assert_allclose(arrays["next_observations"], arrays["observations"] + 1)
    assert found["gaps in frames or time stamps, where an episode is split"] == 1
    assert found["training"]["episodes"] == 2
    assert found["training"]["episodes whose end nothing marks"] == 2


def test_a_wrong_lerobot_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    reward = {"next.reward": np.zeros(9, np.float32)}
    old = S.write_lerobot(tmp_path / "old", [9], version="v2.1", **reward)
    refused("is a LeRobotDataset v2.1, but must be v3: convert it", old, tmp_path)
    half = S.write_lerobot(tmp_path / "half", [9], frames=20, **reward)
    refused("has 9 frames, but meta/info.json says 20. Download it whole", half, tmp_path)
    cut = S.write_lerobot(tmp_path / "cut", [9], **reward)
    file = cut / "data" / "chunk-000" / "file-001.parquet"
    file.write_bytes(file.read_bytes()[:100])
    refused("file-001.parquet cannot be read", cut, tmp_path)
    (cut / "meta" / "info.json").write_text('{"codebase_version": "v3.0", "features": 3}')
    refused("features is 3, but must be an object", cut, tmp_path)
    (cut / "meta" / "info.json").write_text("{")
    refused("info.json cannot be read", cut, tmp_path)
    bare = S.write_lerobot(tmp_path / "bare", [9], fps=0.5, **reward)
    for path in (bare / "data" / "chunk-000").iterdir():
        path.unlink()
    refused("has no data/*/*.parquet", bare, tmp_path)


# --- robomimic


@pytest.mark.parametrize("next_obs", [True, False], ids=["next_obs", "obs"])
@pytest.mark.parametrize("done_mode", [0, 1, 2])
def test_robomimic(tmp_path, done_mode, next_obs):
    pytest.importorskip("h5py")
    path = S.write_robomimic(
        tmp_path / "d.hdf5", [6] * 11, done_mode=done_mode, solved=(1, 10), next_obs=next_obs
    )
    arrays, found = imported(path, tmp_path, observations=("eef", "gripper"))
    done = arrays["masks"] == 0
    # a demonstration that did not succeed was only cut off, whatever its dones say
    np.testing.assert_array_equal(
        done, (arrays["rewards"] > 0) & ((done_mode != 1) | (arrays["terminals"] > 0))
    )
    assert set(arrays["observations"][done][:, 0].astype(int) // 100) == {1, 10}
    assert found["environment"] == "Toy"
    rows = found["training"]
    dropped = rows["last steps left out, their next observation not being known"]
    assert dropped == (0 if next_obs else 9)
    assert rows["rows"] == 66 - dropped
    inside = ~done | next_obs
    np.testing.assert_allclose(
        arrays["next_observations"][inside][:, 2], arrays["observations"][inside][:, 2] + 1
    )


def test_robomimics_own_validation_demonstrations_and_ours(tmp_path):
    pytest.importorskip("h5py")
    path = S.write_robomimic(tmp_path / "d.hdf5", [4, 4, 4], valid=(1,), solved=(0,))
    options = {"observations": ("eef",), "force": True}
    _, found = imported(path, tmp_path, **options)
    assert (found["training"]["rows"], found["validation"]["rows"]) == (8, 4)
    with np.load(tmp_path / "out" / "my-val.npz") as val:
        assert val["actions"][0, 0] == 100
    _, found = imported(path, tmp_path, val_episodes=2, **options)
    assert (found["training"]["rows"], found["validation"]["rows"]) == (4, 8)
    plain = S.write_robomimic(tmp_path / "e.hdf5", [4, 4, 4])
    imported(plain, tmp_path, **options)
    assert not (tmp_path / "out" / "my-val.npz").exists()
    (tmp_path / "out" / "my.npz").unlink()
    with pytest.raises(BadInput, match="val_episodes is 3, but must be below 3"):
        imported(plain, tmp_path, val_episodes=3, **options)


def test_robomimics_dense_rewards_do_not_tell_what_dones_mean(tmp_path):
    pytest.importorskip("h5py")
    path = S.write_robomimic(tmp_path / "d.hdf5", [4, 4], rewards=0.25)
    key = {"observations": ("eef",)}
    refused("Add --dones task or --dones end", path, tmp_path, **key)
    refused("records no success", path, tmp_path, reward="success", **key)
    assert (imported(path, tmp_path, dones="task", **key)[0]["masks"] == 0).sum() == 2


def test_a_wrong_robomimic_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = S.write_robomimic(tmp_path / "d.hdf5", [4, 4])
    refused("has the parts of an observation eef (2), gripper (1). Name those", path, tmp_path)
    camera = {"observations": ("eef", "camera")}
    refused("'camera' of", path, tmp_path, **camera)
    key = {"observations": ("eef",)}
    with h5py.File(path, "a") as file:
        file["data/demo_1"].attrs["num_samples"] = 9
    refused("demo_1 has 4 actions, but num_samples says 9: it is damaged", path, tmp_path, **key)
    with h5py.File(path, "a") as file:
        file["data/demo_1"].attrs["num_samples"] = 4
        del file["data/demo_1/obs"]
    refused(
        "demo_1 has no obs. Make it with robomimic's dataset_states_to_obs.py",
        path,
        tmp_path,
        **key,
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused("cannot be read as HDF5", path, tmp_path, **key)


# --- D4RL


@pytest.mark.parametrize("tail", [0, 3])
def test_d4rl(tmp_path, tail):
    pytest.importorskip("h5py")
    path = S.write_d4rl(tmp_path / "d.hdf5", [5, 4, 6], terminal=(1,), tail=tail)
    arrays, found = imported(path, tmp_path)
    # behind a timeout the next episode begins: that row has no next state of its own
    kept = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, *[15, 16][: max(tail - 1, 0)]]
    np.testing.assert_allclose(arrays["rewards"], np.array(kept) / 100, rtol=1e-6)
    assert np.flatnonzero(arrays["masks"] == 0).tolist() == [7]
    going = arrays["masks"] == 1
    np.testing.assert_allclose(
        arrays["next_observations"][going], arrays["observations"][going] + 1
    )
    assert found["episodes' ends"] == "terminals and timeouts"
    assert found["training"]["episodes whose end nothing marks"] == (tail > 0)


def test_d4rls_row_with_both_flags_is_the_tasks_end(tmp_path):
    pytest.importorskip("h5py")
    path = S.write_d4rl(tmp_path / "d.hdf5", [5, 4], terminal=(0, 1), timeouts=False)
    import h5py

    with h5py.File(path, "a") as file:
        file["timeouts"] = file["terminals"][()]
        file.move("rewards", "flat")
        file["rewards"] = file["flat"][()][:, None]  # [T, 1], as some files have it
    arrays, found = imported(path, tmp_path)
    assert np.flatnonzero(arrays["masks"] == 0).tolist() == [4, 8]
    assert found["rows with terminal and timeout, taken as the task's end"] == 2


def test_d4rl_without_timeouts(tmp_path):
    pytest.importorskip("h5py")
    path = S.write_d4rl(tmp_path / "d.hdf5", [5, 3, 5], terminal=(1,), timeouts=False)
    refused("has no timeouts, so nothing says where time ended an episode", path, tmp_path)
    arrays, found = imported(path, tmp_path, episode_limit=5)
    np.testing.assert_allclose(
        arrays["rewards"] * 100, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11], rtol=1e-6
    )
    assert found["training"]["episodes ended by time"] == 2
    other = S.write_d4rl(
        tmp_path / "e.hdf5", [5, 3, 5], terminal=(1,), timeouts=False, next_obs=True
    )
    arrays, found = imported(other, tmp_path, force=True)
    check_next(arrays, [5, 3, 5])
    assert found["episodes' ends"] == "terminals, and where the next row is another state"


def test_a_wrong_d4rl_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = S.write_d4rl(tmp_path / "d.hdf5", [5, 4])
    refused("leave --observations out", path, tmp_path, observations=("x",))
    refused("records no success", path, tmp_path, reward="success")
    with h5py.File(path, "a") as file:
        del file["actions"]
        file["actions"] = np.zeros((4, 2))
    refused("actions has 4 rows, observations have 9: it is damaged", path, tmp_path)
    with h5py.File(path, "a") as file:
        del file["rewards"]
    refused("has no rewards. D4RL's files have", path, tmp_path)


# --- the command


def test_what_it_writes_is_what_training_loads(tmp_path, capsys):
    pytest.importorskip("h5py")
    path = S.write_d4rl(tmp_path / "d.hdf5", [5, 4, 6], terminal=(1,))
    out = tmp_path / "my.npz"
    assert cli.main(["import", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "training, rows: 13" in said
    assert "training, rows where the task is done: 1" in said
    assert f"--data {out} --action-range data" in said
    pair = load_data("mine", out, action_range="data", next_actions=True)
    assert len(pair.train) == 13
    assert pair.train.transitions.masks.sum() == 12
    bytes_before = out.read_bytes()
    assert cli.main(["import", str(path), "--out", str(out)]) == 2
    assert "is there already: choose another --out, or add --force" in capsys.readouterr().err
    assert cli.main(["import", str(path), "--out", str(out), "--force"]) == 0
    assert out.read_bytes() == bytes_before


def test_what_is_nothing_of_all_that_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    refused("is none of minari, lerobot, robomimic, d4rl", tmp_path / "notes.txt", tmp_path)
    np.savez(tmp_path / "own.npz", **own_arrays(T=10))
    refused("is none of minari, lerobot, robomimic, d4rl", tmp_path / "own.npz", tmp_path)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "e.hdf5", "w") as file:
        file["x"] = 3
    refused("is none of", tmp_path / "e.hdf5", tmp_path)
    refused("has no data/demo_0", tmp_path / "e.hdf5", tmp_path, format="robomimic")
    refused("has no observations", tmp_path / "e.hdf5", tmp_path, format="d4rl")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out": "my.txt"}, "out is 'my.txt', but must be the path of an .npz file"),
        (
            {"format": "zarr"},
            "format is 'zarr', but must be one of minari, lerobot, robomimic, d4rl",
        ),
        (
            {"reward": "dense"},
            "reward is 'dense', but must be one of recorded, success, success-at-end",
        ),
        ({"dones": "no"}, "dones is 'no', but must be one of auto, task, end"),
        ({"episode_limit": 0}, "episode_limit is 0, but must be an integer of at least 1"),
        ({"val_episodes": -1}, "val_episodes is -1, but must be an integer of at least 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_setting_is_refused(options, says):
    with pytest.raises(BadInput, match=re.escape(says)):
        ImportConfig(**{"out": "my.npz"} | options)


@pytest.mark.parametrize(("module", "write"), [("h5py", "d4rl"), ("pyarrow", "lerobot")])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, module, write):
    pytest.importorskip(module)
    if write == "d4rl":
        path = S.write_d4rl(tmp_path / "d.hdf5", [5])
    else:
        path = S.write_lerobot(tmp_path / "d", [5])
    monkeypatch.setitem(__import__("sys").modules, module, None)
    refused("pip install 'sorl-fast[import]'", path, tmp_path)


def test_text_is_short():
    found = {"source": "x", "training": {"action low": [-0.5], "action high": [0.5], "rows": 3}}
    assert text_of(found, ImportConfig(out="a.npz")).splitlines()[-1] == (
        "Written: a.npz. Train: sorl-fast train --env NAME --data a.npz ..."
    )
