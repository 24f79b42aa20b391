"""The plugin inside LeRobot: found, loaded, acting tick by tick on a data set that LeRobot wrote."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from lerobot.utils.control_utils import predict_action
from lerobot.utils.import_utils import register_third_party_plugins

from sorl_fast import BadInput, Sampler
from sorl_fast.act.policy_file import Policy, save
from sorl_fast.layout import Layout

O, A = 4, 2


def make(chunk=1, O=O, A=A, critic=True):
    """A policy with weights as a training starts from; A numbers a tick."""
    rng = np.random.default_rng(0)

    def weights(i, letter, shape):
        if letter == "w":
            limit = np.sqrt(6 / sum(shape[-2:]))
            return rng.uniform(-limit, limit, shape).astype("f4")
        return rng.normal(float(letter == "g"), 0.1, shape).astype("f4")

    wide, E = chunk * A, 2 if critic else 0
    return Policy(
        obs_dim=O,
        act_dim=wide,
        hidden=16,
        depth=2,
        ensemble=E,
        chunk=chunk,
        m_disc=8,
        m_btt=8,
        q_agg="mean",
        env="robot",
        config={},
        obs_mean=None,
        obs_std=None,
        action_low=np.full(wide, -1, "f4"),
        action_high=np.full(wide, 1, "f4"),
        actor=tuple(Layout.actor(O, wide, 16, 2).build(weights)),
        critic=tuple(Layout.critic(O, wide, 16, 2, E).build(weights)) if critic else (),
    )


@pytest.fixture(scope="module")
def sorl():
    register_third_party_plugins()
    return get_policy_class("sorl")


@pytest.fixture(params=[1, 3])
def saved(request, tmp_path):
    save(tmp_path / "policy.safetensors", make(request.param))
    return tmp_path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two episodes of ten frames, written by LeRobot itself."""
    root = tmp_path_factory.mktemp("data") / "robot"
    names = {"observation.state": O, "action": A}
    features = {
        name: {"dtype": "float32", "shape": (n,), "names": [f"{i}" for i in range(n)]}
        for name, n in names.items()
    }
    written = LeRobotDataset.create("sorl/robot", 10, features, root=root, use_videos=False)
    rng = np.random.default_rng(1)
    for _ in range(2):
        for _ in range(10):
            frame = {name: rng.standard_normal(n).astype("f4") for name, n in names.items()}
            written.add_frame(frame | {"task": "reach"})
        written.save_episode()
    written.finalize()
    return LeRobotDataset("sorl/robot", root=root)


def test_the_name_is_found(sorl):
    assert "sorl" in PreTrainedConfig.get_known_choices()
    assert sorl.name == "sorl"


def test_it_acts_as_a_sampler_on_a_data_set(sorl, saved, data):
    """A DataLoader's frames through LeRobot's processors: a chunk's actions, tick by tick."""
    policy = sorl.from_pretrained(saved / "policy.safetensors")
    policy.config.seed = 5
    before, after = make_pre_post_processors(policy.config)
    sampler = Sampler.load(saved / "policy.safetensors")
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    policy.reset()
    for tick, batch in enumerate(loader):
        action = after(policy.select_action(before(batch)))
        obs = batch["observation.state"].numpy()
        if len(obs) < 3:
            break
        wanted = sampler.replay(obs, seed=5, call=tick)
        assert action.shape == (3, A)
        np.testing.assert_array_equal(action.numpy(), wanted)
    assert tick == 6


def test_a_robots_loop(sorl, saved, data):
    """`predict_action`, which lerobot-record calls, of one observation as numpy."""
    policy = sorl.from_pretrained(saved / "policy.safetensors")
    before, after = make_pre_post_processors(policy.config)
    observation = {"observation.state": data[3]["observation.state"].numpy()}
    device = torch.device("cpu")
    action = predict_action(observation, policy, device, before, after, False, "reach", "robot")
    assert action.shape[-1] == A
    assert torch.isfinite(action).all()


def test_a_chunk(sorl, saved):
    policy = sorl.from_pretrained(saved / "policy.safetensors")
    obs = torch.zeros(2, O)
    noise = torch.randn(2, 1, policy.policy.act_dim)
    chunk = policy.predict_action_chunk({"observation.state": obs}, noise=noise)
    h = policy.policy.chunk
    assert chunk.shape == (2, h, A)
    assert policy.config.action_delta_indices == list(range(h))
    wanted = Sampler(policy.policy).act(obs.numpy(), noise=noise.numpy())
    np.testing.assert_array_equal(chunk.numpy(), wanted.reshape(2, h, A))


def test_reset_begins_anew(sorl, saved):
    policy = sorl.from_pretrained(saved)  # a run's folder
    policy.config.seed = 1
    obs = {"observation.state": torch.zeros(1, O)}
    first = [policy.select_action(obs) for _ in range(4)]
    policy.reset()
    assert all(torch.equal(policy.select_action(obs), action) for action in first)
    assert not torch.equal(first[0], first[-1])


def test_it_is_saved_as_lerobot_loads_it(sorl, saved, data):
    folder = saved / "made"
    command = [sys.executable, "-m", "lerobot_policy_sorl", saved / "policy.safetensors", folder]
    subprocess.run(command, check=True)
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--candidates=4", "--seed=3"])
    config.pretrained_path = folder
    policy = make_policy(config, ds_meta=data.meta)
    before, after = make_pre_post_processors(
        config, folder, preprocessor_overrides={"device_processor": {"device": "cpu"}}
    )
    obs = data[0]["observation.state"]
    action = after(policy.select_action(before({"observation.state": obs})))
    wanted = Sampler(policy.policy).replay(obs.numpy()[None], candidates=4, seed=3, call=0)
    np.testing.assert_array_equal(action.numpy(), wanted)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)


def test_another_robots_data_are_refused(sorl, tmp_path, data):
    for more, message in (({"O": 5}, "trained on 5"), ({"A": 3}, "this policy returns 3")):
        policy = make(**more)
        folder = tmp_path / message.split()[-1]
        folder.mkdir()
        save(folder / "policy.safetensors", policy)
        config = sorl.config_class(pretrained_path=folder)
        with pytest.raises(BadInput, match=message):
            make_policy(config, ds_meta=data.meta)


def test_a_policy_that_lerobot_should_train_is_refused(sorl, data):
    with pytest.raises(BadInput, match="not trained by LeRobot"):
        make_policy(sorl.config_class(), ds_meta=data.meta)


def test_what_is_no_policy_is_refused(sorl, tmp_path):
    (tmp_path / "foreign.safetensors").write_bytes(b"\0" * 64)
    for path, message in (
        (tmp_path / "foreign.safetensors", "must be"),
        (tmp_path, "has neither"),
        (tmp_path / "none.safetensors", "does not exist"),
    ):
        with pytest.raises(BadInput, match=message):
            sorl.from_pretrained(path)
    command = [sys.executable, "-m", "lerobot_policy_sorl", tmp_path, tmp_path / "made"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "has neither" in done.stderr) == (2, True)
    assert [p.name for p in tmp_path.iterdir()] == ["foreign.safetensors"]


def test_a_missing_or_wider_feature_is_named(sorl, saved):
    policy = sorl.from_pretrained(saved)
    with pytest.raises(BadInput, match=r"has no observation\.state, only observation\.position"):
        policy.select_action({"observation.position": torch.zeros(1, O)})
    with pytest.raises(BadInput, match="obs has the shape"):
        policy.select_action({"observation.state": torch.zeros(1, O + 1)})


def test_parts_are_joined(sorl, saved):
    kinds = {"observation.state": 3, "observation.environment_state": 1}
    features = {k: PolicyFeature(FeatureType.STATE, (n,)) for k, n in kinds.items()}
    config = sorl.config_class(input_features=features, observations=list(kinds), seed=2)
    policy = sorl.from_pretrained(saved, config=config)
    obs = torch.randn(1, O)
    parts = {"observation.state": obs[:, :3], "observation.environment_state": obs[:, 3:]}
    wanted = Sampler(policy.policy).replay(obs.numpy(), seed=2, call=0)
    np.testing.assert_array_equal(policy.select_action(parts).numpy(), wanted)
    with pytest.raises(BadInput, match="how many of each is not said"):
        sorl.from_pretrained(saved, config=sorl.config_class(observations=list(kinds)))


def test_the_file_that_lerobot_wrote_is_imported_and_trained_on(sorl, data, tmp_path):
    """From LeRobot's data set to a policy in LeRobot, by sorl-fast's own commands."""
    command = [sys.executable, "-m", "sorl_fast.cli"]
    out = tmp_path / "robot.npz"
    subprocess.run(
        [*command, "import", data.root, "--out", out, "--reward", "success-at-end"], check=True
    )
    train = ["train", "--env", "robot", "--data", out, "--action-range", "data", "--q-coef", "1"]
    small = ["--hidden", "16", "--depth", "2", "--steps", "4", "--batch-size", "8"]
    run = tmp_path / "run"
    done = subprocess.run([*command, *train, *small, "--out", run], capture_output=True, text=True)
    if "is not installed" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    policy = sorl.from_pretrained(run)
    action = policy.select_action({"observation.state": data[0]["observation.state"]})
    low, high = policy.policy.bounds
    assert ((action.numpy() >= low) & (action.numpy() <= high)).all()
