"""Small data sets in other people's formats, as their own writers or documentation lay them out."""

import json
import warnings

import numpy as np

O, A = 3, 2


def numbers(T, n, seed=0):
    """Return [T, n] numbers that say where they came from: row r, column c is seed + r + c / 10."""
    return (seed + np.arange(T)[:, None] + np.arange(n) / 10).astype(np.float64)


def write_minari(folder, episodes, monkeypatch, data_format="hdf5", spaces=None, name="toy/own-v0"):
    """Write `EpisodeBuffer`s by Minari itself; each episode a dict of its fields."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    box = gymnasium.spaces.Box(-np.inf, np.inf, (O,), np.float64)
    actions = gymnasium.spaces.Box(-np.inf, np.inf, (A,), np.float64)
    buffers = [EpisodeBuffer(id=i, **fields) for i, fields in enumerate(episodes)]
    with warnings.catch_warnings():  # of an author that nobody named
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(
            name,
            buffers,
            observation_space=spaces or box,
            action_space=actions,
            data_format=data_format,
        )
    return folder / name


def minari_episode(T, seed=0, terminated=False, truncated=True, success=None):
    """Return an episode's fields: T + 1 observations."""
    flags = np.zeros((2, T), bool)
    flags[0, -1], flags[1, -1] = terminated, truncated
    infos = None if success is None else {"success": success}
    return {
        "observations": numbers(T + 1, O, seed),
        "actions": numbers(T, A, seed),
        "rewards": [*(seed + np.arange(T) / 100)],
        "terminations": [*flags[0]],
        "truncations": [*flags[1]],
        "infos": infos,
    }


def write_lerobot(
    folder, lengths, *, fps=10, drop=(), late=(), version="v3.0", frames=None, files=2, **columns
):
    """Write a LeRobotDataset v3 with pyarrow: states and actions, episodes over `files` files.

    `drop`: rows that are missing. `late`: rows from which on an episode's time stamps are 1 s later.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.concatenate([np.arange(n) for n in lengths])
    time = frame / fps
    for row in late:
        time[(np.arange(rows) >= row) & (episode == episode[row])] += 1
    table = {
        "observation.state": pa.array([*numbers(rows, O)], pa.list_(pa.float32())),
        "action": pa.array([*numbers(rows, A)], pa.list_(pa.float32(), A)),
        "timestamp": pa.array(time.astype(np.float32)),
        "frame_index": pa.array(frame),
        "episode_index": pa.array(episode),
        "index": pa.array(np.arange(rows)),
        "task_index": pa.array(np.zeros(rows, np.int64)),
    }
    shapes = {"observation.state": O, "action": A}
    for name, values in columns.items():
        table[name] = pa.array(values)
    features = {
        name: {"dtype": "float32", "shape": [shapes.get(name, 1)], "names": None} for name in table
    }
    features["observation.images.top"] = {"dtype": "video", "shape": [4, 4, 3], "names": None}
    keep = np.setdiff1d(np.arange(rows), drop)
    table = pa.table(table).take(keep)
    data = folder / "data" / "chunk-000"
    data.mkdir(parents=True)
    for i, part in enumerate(np.array_split(np.arange(len(keep)), files)):
        pq.write_table(table.take(part), data / f"file-{i:03d}.parquet")
    (folder / "meta").mkdir()
    info = {
        "codebase_version": version,
        "robot_type": "toy",
        "fps": fps,
        "total_frames": len(keep) if frames is None else frames,
        "total_episodes": len(lengths),
        "features": features,
    }
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


def write_robomimic(
    path, lengths, *, done_mode=2, solved=(), next_obs=True, rewards=None, valid=()
):
    """Write a file as dataset_states_to_obs.py does: `solved` demonstrations reach success 2 rows early."""
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Toy", "env_type": 1, "env_kwargs": {}})
        data.attrs["total"] = sum(lengths)
        for i, T in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            demo.attrs["num_samples"] = T
            demo["actions"] = numbers(T, A, 100 * i)
            demo["states"] = np.zeros((T, 5))
            success = (np.arange(T) >= T - 2) & (i in solved)
            dones = (success & (done_mode in (0, 2))) | ((np.arange(T) == T - 1) & (done_mode > 0))
            demo["rewards"] = success.astype(float) if rewards is None else np.full(T, rewards)
            demo["dones"] = dones.astype(np.int64)
            x = numbers(T + 1, O, 100 * i)
            for group, part in (("obs", x[:-1]), ("next_obs", x[1:])):
                if group == "obs" or next_obs:
                    demo[f"{group}/eef"], demo[f"{group}/gripper"] = part[:, :2], part[:, 2:]
                    demo[f"{group}/camera"] = np.zeros((T, 4, 4, 3), np.uint8)
        if valid:
            file["mask/valid"] = np.array([f"demo_{i}" for i in valid], dtype="S8")
    return path


def write_d4rl(path, lengths, *, terminal=(), timeouts=True, next_obs=False, tail=0, **more):
    """Write a flat file: `terminal` episodes end by the task, others by time; `tail` rows by nothing."""
    import h5py

    rows = sum(lengths) + tail
    lasts = np.cumsum(lengths) - 1
    ended = np.isin(np.arange(len(lengths)), terminal)
    arrays = {
        "observations": numbers(rows, O),
        "actions": numbers(rows, A),
        "rewards": np.arange(rows) / 100,
        "terminals": np.isin(np.arange(rows), lasts[ended]),
    }
    if timeouts:
        arrays["timeouts"] = np.isin(np.arange(rows), lasts[~ended])
    if next_obs:
        arrays["next_observations"] = numbers(rows, O) + 1
        arrays["observations"] += np.repeat(1000 * np.arange(len(lengths)), lengths)[:, None]
        arrays["next_observations"] += np.repeat(1000 * np.arange(len(lengths)), lengths)[:, None]
    with h5py.File(path, "w") as file:
        for name, x in (arrays | more).items():
            file[name] = x
    return path
