"""Files become minibatches; every way a file can be wrong has its own error."""

import numpy as np
import pytest
import torch
from conftest import own_arrays

from sorl_fast.data.dataset import (
    ACTION_LIMIT,
    FIELDS,
    TransitionData,
    _following_actions,
    load_data,
)
from sorl_fast.errors import BadInput

ENV = "cube-single-play-singletask-task2-v0"


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_own_data_with_terminals_take_the_next_row(tmp_path):
    arrays = own_arrays(T=100)
    arrays["masks"][49] = 0  # task done there: kept; the other end (row 99) has no successor
    pair = load_data("mine", write(tmp_path / "a.npz", **arrays))
    data = pair.train.transitions
    assert len(pair.train) == 99
    assert pair.val is None
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in data[:5])
    assert data.next_actions is None
    obs = torch.from_numpy(arrays["observations"])
    assert torch.equal(data.observations, obs[:99])
    assert torch.equal(data.next_observations[:49], obs[1:50])
    assert torch.equal(data.next_observations[49], obs[49])
    assert data.masks.sum() == 98


def test_own_data_with_next_observations_are_taken_as_they_are(tmp_path):
    arrays = own_arrays(T=10)
    del arrays["terminals"]
    arrays["next_observations"] = arrays["observations"] * 2
    pair = load_data("mine", write(tmp_path / "a.npz", **arrays))
    assert len(pair.train) == 10
    assert torch.equal(
        pair.train.transitions.next_observations, pair.train.transitions.observations * 2
    )


SUCCESS, TIMEOUT, LAST = 29, 59, 99  # trajectories of own_arrays(T=100) as `ended` ends them


def ended(**fields):
    """A task done in row 29, time out in row 59, the recording over in row 99; `fields` say which."""
    arrays = own_arrays(T=100)
    del arrays["terminals"]
    arrays["masks"][SUCCESS] = 0
    for name, rows in fields.items():
        arrays[name] = np.isin(np.arange(100), rows)
    return arrays


@pytest.mark.parametrize(
    "fields",
    [
        {"terminals": [SUCCESS, TIMEOUT, LAST]},
        {"terminals": [SUCCESS], "timeouts": [TIMEOUT, LAST]},
        {"terminals": [SUCCESS], "truncations": [TIMEOUT, LAST]},
        {"terminals": [SUCCESS, TIMEOUT], "timeouts": [TIMEOUT]},
        {"terminations": [SUCCESS], "truncations": [TIMEOUT]},
        {"terminals": [SUCCESS], "timeouts": [TIMEOUT], "truncations": [TIMEOUT]},
        {"timeouts": [TIMEOUT]},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_whatever_ends_a_trajectory_the_next_one_gives_no_next_observation(
    tmp_path, fields, capsys
):
    arrays = ended(**fields)
    data = load_data("mine", write(tmp_path / "a.npz", **arrays)).train.transitions
    obs = torch.from_numpy(arrays["observations"])
    kept = [t for t in range(100) if t not in (TIMEOUT, LAST)]  # no x' there, but mask 1
    assert torch.equal(data.observations, obs[kept])
    assert data.masks.tolist() == [float(t != SUCCESS) for t in kept]  # a time limit leaves 1
    goes_on = data.masks == 1
    assert torch.equal(data.next_observations[goes_on], obs[[t + 1 for t in kept if t != SUCCESS]])
    assert capsys.readouterr().err == ""


def test_next_observations_that_are_given_need_no_ends(tmp_path):
    arrays = ended(terminals=[SUCCESS], timeouts=[TIMEOUT])
    arrays["next_observations"] = arrays["observations"] * 2
    data = load_data("mine", write(tmp_path / "a.npz", **arrays)).train.transitions
    assert torch.equal(data.next_observations, data.observations * 2)
    assert len(data.rewards) == 100


@pytest.mark.parametrize(
    "fields",
    [{"terminals": [29]}, {"terminals": [29], "timeouts": [59]}, {"next_observations": []}],
)
def test_masks_are_never_guessed(tmp_path, fields):
    arrays = ended(**fields)
    del arrays["masks"]
    with pytest.raises(BadInput, match=r"no field 'masks'. D4RL's are 1 - terminals\."):
        load_data("mine", write(tmp_path / "a.npz", **arrays))


def test_masks_the_wrong_way_round_are_spoken_of_once(own_file, capsys):
    load_data("mine", own_file)
    assert capsys.readouterr().err == ""
    for path in (own_file, own_file.with_name("mine-val.npz")):
        arrays = dict(np.load(path))
        write(path, **arrays | {"masks": arrays["terminals"]})
    load_data("mine", own_file)
    err = capsys.readouterr().err
    assert err.count("masks are 0") == 1
    assert "100% of the rows" in err  # those with mask 1 are ends, and left out
    assert "masks = 1 - done" in err


def test_data_without_an_end_are_said_to_be_one_trajectory(tmp_path, capsys):
    path = write(tmp_path / "a.npz", **ended(terminals=[], timeouts=[]))
    assert len(load_data("mine", path).train) == 99
    assert "terminals and timeouts end no trajectory before the last row" in capsys.readouterr().err


def test_the_next_action_is_the_following_row_of_the_trajectory(tmp_path):
    arrays = own_arrays(T=100)
    arrays["masks"][49] = 0  # task done there: kept; the other end (row 99) is no transition
    file = write(tmp_path / "a.npz", **arrays)
    data = load_data("mine", file, next_actions=True).train
    actions, following = data.transitions.actions, data.transitions.next_actions
    assert len(data) == 99
    assert torch.equal(following[:49], actions[1:50])
    assert torch.equal(following[50:98], actions[51:99])
    # row 98 is followed by row 99, which is no transition itself
    assert torch.equal(following[98], torch.from_numpy(arrays["actions"][99]))
    assert torch.equal(following[49], actions[49])  # never read: its mask is 0
    assert load_data("mine", file).train.digest() == data.digest()
    taken = data.take(torch.tensor([98, 3]))
    assert torch.equal(taken.next_actions, following[[98, 3]])


def test_with_next_observations_a_trajectorys_last_action_stands_in_for_the_next(tmp_path):
    arrays = own_arrays(T=10)
    arrays["terminals"] = np.arange(10) % 5 == 4
    arrays["next_observations"] = arrays["observations"] * 2
    arrays["actions"][6] = 1
    data = load_data("mine", write(tmp_path / "a.npz", **arrays), next_actions=True).train
    x = data.transitions
    assert len(data) == 10
    assert torch.equal(x.next_actions, x.actions[[1, 2, 3, 4, 4, 6, 7, 8, 9, 9]])
    assert (x.next_actions[5] == np.float32(ACTION_LIMIT)).all()


def test_data_in_no_order_have_no_next_action(tmp_path):
    arrays = own_arrays(T=10)
    del arrays["terminals"]
    file = write(tmp_path / "a.npz", **arrays, next_observations=arrays["observations"])
    with pytest.raises(
        BadInput, match=r"a\.npz has no terminals, so nobody knows .* Add terminals"
    ):
        load_data("mine", file, next_actions=True)


def test_the_next_action_in_ogbenchs_files_is_that_of_the_row_behind(tmp_path):
    rng = np.random.default_rng(0)
    arrays = ogbench_arrays(actions=rng.uniform(-1, 1, (12, 5)).astype(np.float32))
    following = _following_actions(write(tmp_path / "a.npz", **arrays))
    # rows 5 and 11 end the episodes: no transitions, but their actions follow rows 4 and 10
    assert np.array_equal(following, arrays["actions"][[1, 2, 3, 4, 5, 7, 8, 9, 10, 11]])


def test_other_fields_of_own_data_are_nobodys_business(tmp_path):
    arrays = own_arrays(T=20) | {"robot": np.array("arm"), "notes": np.array(["a", "b"])}
    assert len(load_data("mine", write(tmp_path / "a.npz", **arrays)).train) == 19


def test_a_validation_file_beside_it_is_found(own_file):
    pair = load_data("mine", own_file)
    assert pair.val is not None
    assert (len(pair.train), len(pair.val)) == (294, 98)


def test_actions_are_clipped_inside_the_bounds(tmp_path):
    arrays = own_arrays(T=10)
    arrays["actions"][:] = 1.0
    pair = load_data("mine", write(tmp_path / "a.npz", **arrays))
    assert (pair.train.transitions.actions == np.float32(ACTION_LIMIT)).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32], ids=lambda d: d.__name__)
def test_any_real_dtype_becomes_contiguous_float32(tmp_path, dtype):
    arrays = own_arrays(T=10)
    arrays["observations"] = np.asfortranarray(arrays["observations"].astype(dtype))
    pair = load_data("mine", write(tmp_path / "a.npz", **arrays))
    obs = pair.train.transitions.observations
    assert obs.dtype == torch.float32
    assert obs.is_contiguous()


def test_sampling_is_seeded_uniform_and_keeps_rows_together(own_file):
    data = load_data("mine", own_file).train
    batches = [data.sample(4096, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*(b[:5] for b in batches), strict=True))
    rows = {tuple(o.tolist()): i for i, o in enumerate(data.transitions.observations)}
    index = torch.tensor([rows[tuple(o.tolist())] for o in batches[0].observations])
    for name, x in zip(FIELDS, batches[0][:5], strict=True):
        assert torch.equal(x, getattr(data.transitions, name)[index]), name
    counts = torch.bincount(index, minlength=len(data))
    assert counts.min() > 0
    assert counts.max() < 45


def test_the_normaliser_standardises_both_ends_with_the_training_moments(own_file, tmp_path):
    arrays = own_arrays()
    arrays["observations"][:, 2] = 7.0  # never varies
    write(own_file, **arrays)
    plain, normal = load_data("mine", own_file), load_data("mine", own_file, normalize_obs=True)
    assert plain.obs_mean is None
    x = normal.train.transitions
    np.testing.assert_allclose(x.observations.mean(0), 0, atol=1e-5)
    varying = [0, 1, 3]
    np.testing.assert_allclose(x.observations.std(0, correction=0)[varying], 1, rtol=1e-4)
    assert normal.obs_std[2] == 1
    for name in ("observations", "next_observations"):
        for part in ("train", "val"):
            raw = getattr(getattr(plain, part).transitions, name)
            done = getattr(getattr(normal, part).transitions, name)
            torch.testing.assert_close(done, (raw - normal.obs_mean) / normal.obs_std)


def test_what_does_not_vary_keeps_its_scale_and_is_named(own_file, capsys):
    arrays = own_arrays(O=7)
    obs = arrays["observations"] = arrays["observations"].astype(np.float64)
    noise = obs[:, 1].copy()
    obs[:, 1] = 7.0  # constant
    obs[:, 2] = 1e-12 * noise  # a locked joint in a simulator
    obs[:, 3] = 1e6 + 0.06 * noise  # what float32 leaves of a constant: steps of 1/16
    obs[:, 4] = 1e6 + 10 * noise  # a real signal on a large offset
    obs[:, 5] = 2e-3 * noise  # a real signal in a large unit
    for path in (own_file, own_file.with_name("mine-val.npz")):
        write(path, **arrays)
    normal = load_data("mine", own_file, normalize_obs=True)
    assert normal.obs_std[[1, 2, 3]].tolist() == [1, 1, 1]
    np.testing.assert_allclose(normal.obs_std[[4, 5]], [10, 2e-3], rtol=0.2)
    err = capsys.readouterr().err
    assert (
        err.count("--normalize-obs keeps the scale of observations 1, 2, 3 (counted from 0)") == 1
    )
    load_data("mine", own_file)
    assert capsys.readouterr().err == ""


def test_a_normaliser_that_is_given_is_used(own_file, capsys):
    plain = load_data("mine", own_file).train.transitions.observations
    given = torch.full((4,), 2.0), torch.full((4,), 3.0)
    pair = load_data("mine", own_file, normalize_obs=True, normaliser=given)
    torch.testing.assert_close(pair.train.transitions.observations, (plain - 2) / 3)
    assert torch.equal(pair.obs_mean, given[0])
    assert torch.equal(pair.obs_std, given[1])


def test_the_digest_tells_data_apart(own_file, tmp_path):
    first = load_data("mine", own_file).train.digest()
    assert load_data("mine", own_file).train.digest() == first
    arrays = own_arrays()
    arrays["rewards"][3] = 0
    assert load_data("mine", write(tmp_path / "b.npz", **arrays)).train.digest() != first


def changed(**changes):
    def make(tmp_path):
        arrays = own_arrays(T=20)
        for name, change in changes.items():
            if change is None:
                del arrays[name]
            else:
                arrays[name] = change(arrays.get(name))
        return write(tmp_path / "bad.npz", **arrays)

    return make


def with_nan(x):
    x = x.copy()
    x[3] = np.nan
    return x


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (changed(observations=None), "no field 'observations'"),
        (changed(masks=None), "no field 'masks'"),
        (changed(terminals=None), "neither next_observations nor terminals"),
        (changed(observations=with_nan), "observations is not finite as float32 in row 3"),
        (changed(rewards=with_nan), "rewards is not finite as float32 in row 3"),
        (changed(actions=lambda a: a * 3), r"actions reach 2\.\d+, but must lie in \[-1, 1\]"),
        (changed(masks=lambda m: m * 0.5), "masks must be 0"),
        (changed(rewards=lambda r: r[:-1]), "rewards"),
        (changed(terminals=lambda t: t[:-2]), r"terminals \(18,\)"),
        (changed(timeouts=lambda _: np.zeros(3)), r"timeouts \(3,\) must have shape \(20,\)"),
        (changed(terminals=lambda t: t * np.nan), "terminals must be 0 or 1"),
        (changed(truncations=lambda _: np.arange(20)), "truncations must be 0 or 1"),
        (changed(actions=lambda a: a[:, 0]), r"actions \(19,\)"),
        (changed(actions=lambda a: a[:, :0]), "A at least 1"),
        (changed(observations=lambda o: o.astype(complex)), "complex128"),
        (changed(observations=lambda _: np.float64(1)), "observations is a single value"),
        (changed(actions=lambda a: a.astype(str)), "actions has dtype <U"),
        (
            changed(rewards=lambda r: r + np.float64(1e39)),
            "rewards is not finite as float32 in row 0",
        ),
        (
            changed(next_observations=lambda _: np.zeros((20, 9))),
            r"next_observations has shape \(20, 9\)",
        ),
    ],
)
def test_each_fault_of_an_own_file_is_named(make, says, tmp_path):
    with pytest.raises(BadInput, match=says) as err:
        load_data("mine", make(tmp_path))
    assert "bad.npz" in str(err.value)


def test_an_empty_file_is_named(tmp_path):
    empty = {k: v[:0] for k, v in own_arrays().items()}
    with pytest.raises(BadInput, match="is empty"):
        load_data("mine", write(tmp_path / "empty.npz", **empty))


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (
            "cube-triple-play-singletask-v0",
            "Make it with `sorl-fast collect --env cube-triple-play-v0",
        ),
        ("antmaze-giant-navigate-singletask-v0", "collect --env antmaze-giant-navigate-v0"),
        ("antmaze-medium-navigate-singletask-v0", "or let ogbench download"),  # has no preset
        (
            "humanoidmaze-medium-navigate-singletask-v0",
            "expert --env humanoid .*; sorl-fast collect",
        ),
        (
            "cube-sngle-play-singletask-task2-v0",
            "Did you mean cube-single-play-singletask-task2-v0",
        ),
        ("cube-single-play-v0", "did you mean cube-single-play-singletask-task1-v0"),
        ("my-robot", "sorl-fast envs --tasks` lists them. Or give --data a .npz of your own"),
        ("antmaze-ultra-navigate-singletask-v0", r"npz\. Let ogbench download it with --download"),
    ],
)
def test_a_missing_data_set_is_collected_or_downloaded(tmp_path, env, says):
    with pytest.raises(BadInput, match=says):
        load_data(env, tmp_path)


def test_files_that_are_not_there_or_not_npz(tmp_path):
    with pytest.raises(BadInput, match=r"no data file .*none\.npz"):
        load_data("mine", tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(BadInput, match=r"text\.npz cannot be read"):
        load_data("mine", tmp_path / "text.npz")
    np.savez(tmp_path / "good.npz", **own_arrays())
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"torn\.npz cannot be read"):
        load_data("mine", tmp_path / "torn.npz")


def test_python_objects_are_never_loaded(tmp_path):
    arrays = own_arrays(T=10) | {"observations": np.array([{"a": 1}] * 10, dtype=object)}
    with pytest.raises(BadInput, match="Python objects, which are never loaded"):
        load_data("mine", write(tmp_path / "object.npz", **arrays))


def test_validation_data_of_another_size_are_refused(own_file):
    write(own_file.with_name("mine-val.npz"), **own_arrays(O=5))
    with pytest.raises(BadInput, match="O = 5"):
        load_data("mine", own_file)


def ogbench_arrays(T=12, **changes):
    arrays = {
        "observations": np.zeros((T, 28), np.float32),
        "actions": np.zeros((T, 5), np.float32),
        "terminals": np.arange(T) % 6 == 5,
        "qpos": np.zeros((T, 21), np.float32),
        "qvel": np.zeros((T, 20), np.float32),
    }
    return {k: v for k, v in (arrays | changes).items() if v is not None}


def test_missing_ogbench_files_say_how_to_make_them(tmp_path):
    with pytest.raises(BadInput, match="sorl-fast collect --env cube-single-play-v0 --out"):
        load_data(ENV, tmp_path)
    with pytest.raises(BadInput, match="--download"):
        load_data("antmaze-large-navigate-singletask-v0", tmp_path)
    write(tmp_path / "cube-single-play-v0.npz", **ogbench_arrays())
    with pytest.raises(BadInput, match=r"cube-single-play-v0-val\.npz"):
        load_data(ENV, tmp_path)


def test_an_environment_of_images_is_refused(tmp_path):
    with pytest.raises(BadInput, match="images for observations"):
        load_data(f"visual-{ENV}", tmp_path)


def test_a_name_without_task_says_which_name_is_meant(tmp_path):
    with pytest.raises(BadInput, match="cube-single-play-singletask-task1-v0"):
        load_data("cube-single-play-v0", tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"qpos": None}, "no field 'qpos'"),
        ({"actions": np.full((12, 5), np.inf, np.float32)}, "actions is not finite in row 0"),
        ({"qvel": np.zeros((3, 20), np.float32)}, r"qvel has shape \(3, 20\)"),
        ({"terminals": np.zeros(12, bool)}, "terminals mark no episode's end"),
        ({"T": 0}, "is empty"),
    ],
    ids=["field", "inf", "shape", "terminals", "empty"],
)
def test_each_fault_of_an_ogbench_file_is_named(changes, says, tmp_path):
    name = tmp_path / "cube-single-play-v0.npz"
    write(name, **ogbench_arrays(**changes))
    write(tmp_path / "cube-single-play-v0-val.npz", **ogbench_arrays())
    with pytest.raises(BadInput, match=says) as err:
        load_data(ENV, tmp_path)
    assert str(name) in str(err.value)
    assert "sorl-fast collect --force" in str(err.value)


@pytest.mark.slow
def test_ogbench_files_are_relabelled_for_the_task(tmp_path):
    rng = np.random.default_rng(0)
    arrays = ogbench_arrays(observations=rng.normal(size=(12, 28)).astype(np.float32))
    arrays["actions"] = rng.uniform(-0.9, 0.9, (12, 5)).astype(np.float32)
    arrays["qpos"][3, 14:17] = (0.425, -0.1, 0.02)  # row 3: the cube lies on task 1's goal
    for name in ("cube-single-play-v0", "cube-single-play-v0-val"):
        write(tmp_path / f"{name}.npz", **arrays)
    pair = load_data("cube-single-play-singletask-task1-v0", tmp_path, next_actions=True)
    x = pair.train.transitions
    assert len(pair.train) == 10  # two episodes of six states
    assert x.rewards.tolist() == [-1, -1, -1, 0, -1] + [-1] * 5
    assert x.masks.tolist() == [1, 1, 1, 0, 1] + [1] * 5
    obs = torch.from_numpy(arrays["observations"])
    assert torch.equal(x.observations, torch.cat([obs[0:5], obs[6:11]]))
    assert torch.equal(x.next_observations, torch.cat([obs[1:6], obs[7:12]]))
    actions = torch.from_numpy(arrays["actions"])
    assert torch.equal(x.next_actions, torch.cat([actions[1:6], actions[7:12]]))


def test_transition_data_checks_shapes():
    with pytest.raises(BadInput, match="src"):
        TransitionData(own_arrays(T=5) | {"next_observations": np.zeros((4, 4), np.float32)}, "src")


@pytest.mark.slow
def test_only_download_asks_ogbench_for_files(tmp_path, monkeypatch):
    import ogbench.utils

    asked = []

    def fetch(names, folder):
        asked.extend(names)
        raise OSError("no route to host")

    monkeypatch.setattr(ogbench.utils, "download_datasets", fetch)
    with pytest.raises(BadInput, match="no data file"):
        load_data(ENV, tmp_path)
    assert asked == []
    with pytest.raises(BadInput, match="no route to host"):
        load_data(ENV, tmp_path, download=True)
    assert asked == ["cube-single-play-v0"]


@pytest.mark.slow
def test_a_name_that_ogbench_does_not_know(tmp_path):
    name = "cube-sextuple-play"
    for part in ("", "-val"):
        write(tmp_path / f"{name}-v0{part}.npz", **ogbench_arrays())
    with pytest.raises(BadInput, match="does not load"):
        load_data(f"{name}-singletask-task1-v0", tmp_path)


def test_a_way_to_render_that_mujoco_cannot_have_is_named(tmp_path, monkeypatch):
    import ogbench

    def fails(*_, **__):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setattr("sorl_fast.data.dataset._check_ogbench_file", lambda path: None)
    monkeypatch.setattr(ogbench, "make_env_and_datasets", fails)
    for name in ("cube-single-play-v0.npz", "cube-single-play-v0-val.npz"):
        (tmp_path / name).touch()
    arguments = ("cube-single-play-singletask-task1-v0", tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(BadInput, match=r"MUJOCO_GL=osmesa: .*set MUJOCO_GL=disable"):
        load_data(*arguments)
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(AttributeError):
        load_data(*arguments)
