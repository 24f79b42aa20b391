"""An expert's training: stopped, gone on with, refused where its files are others'. By a toy teacher."""

import json
import os
import signal
import sys
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import pytest
from experts import make_expert, save_expert

from sorl_fast import cli
from sorl_fast.act import policy_file
from sorl_fast.config import ExpertConfig
from sorl_fast.envs.bodies import ANT, HUMANOID
from sorl_fast.errors import BadInput, Stopped
from sorl_fast.expert import train as module
from sorl_fast.expert.agent import Agent as RealAgent
from sorl_fast.expert.measure import Measure
from sorl_fast.expert.train import train_expert

# the teacher is a toy, but an expert's file names the versions of the real one's packages
pytestmark = pytest.mark.skipif(
    find_spec("sbx") is None, reason="the extra `expert` (sbx-rl) is not installed"
)


class ToyAgent:
    """Counts steps; is asked to stop at one of them."""

    made: ClassVar = []
    stop_at: ClassVar = None

    def __init__(self, body, env, seed, *, hidden, critic_hidden, depth, capacity):
        self.body, self.steps, self.seed, self.capacity = body, 0, seed, capacity
        self.sizes = hidden, critic_hidden, depth
        self.restored = None
        self.made.append(self)

    def learn(self, steps):
        self.steps += -(-steps // 8) * 8
        if self.stop_at is not None and self.steps >= self.stop_at:
            ToyAgent.stop_at = None
            os.kill(os.getpid(), signal.SIGTERM)

    def state(self):
        return {"steps": np.array(self.steps), "buffer/rewards": np.zeros((self.steps, 1))}

    def restore(self, arrays, seed):
        self.steps = self.restored = int(arrays["steps"])

    def policy(self, config):
        return make_expert(self.body, seed=self.steps, config=config)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(module, "Agent", ToyAgent)
    monkeypatch.setattr(module, "open_online", lambda body: None)
    monkeypatch.setattr(ToyAgent, "made", [])
    monkeypatch.setattr(ToyAgent, "stop_at", None)

    def measured(policy, body, episodes, seed, check):
        check()
        return Measure(episodes, 12.344, 1.0, 1000.0, 0.1)

    monkeypatch.setattr(module, "measure", measured)


def config(tmp_path, **changes):
    fields = dict(env="ant", out=str(tmp_path / "ant.safetensors"), steps=200, checkpoint_every=80)
    return ExpertConfig(**(fields | changes))


def train(tmp_path, **changes):
    return train_expert(config(tmp_path, **changes), progress=False)


def test_the_file_says_how_it_was_made_and_how_good_it_is(tmp_path):
    report = train(tmp_path)
    assert (report.steps, report.already_done) == (200, False)
    policy = policy_file.load(report.path)
    assert policy.env == ANT.online
    kept = policy.config
    assert kept["command"] == "sorl-fast expert --env ant --steps 200 --seed 0 --out FILE"
    assert [row["steps"] for row in kept["history"]] == [80, 160, 200]
    assert (kept["return"], kept["metres_a_second"], kept["steps"]) == (12.34, 0.1, 200)
    assert set(kept["versions"]) >= {"ogbench", "mujoco"}
    assert str(tmp_path) not in json.dumps(kept)
    (agent,) = ToyAgent.made
    assert agent.sizes == (256, 256, 2)


def test_a_body_has_sizes_of_its_own_unless_told_otherwise(tmp_path):
    train(tmp_path, env="humanoid")
    assert ToyAgent.made[0].sizes == (HUMANOID.hidden, HUMANOID.critic_hidden, HUMANOID.depth)
    report = train(tmp_path / "small", hidden=4, depth=1)
    assert ToyAgent.made[1].sizes == (4, 4, 1)
    command = policy_file.load(report.path).config["command"]
    assert "--hidden 4 --depth 1 --out FILE" in command


@pytest.mark.parametrize("stop_at", [40, 80, 120])
def test_a_stop_loses_nothing_and_the_same_call_goes_on(tmp_path, stop_at):
    ToyAgent.stop_at = stop_at
    with pytest.raises(Stopped, match="same command again"):
        train(tmp_path)
    report = train(tmp_path)
    assert ToyAgent.made[-1].restored == stop_at
    assert report.steps == 200
    history = policy_file.load(report.path).config["history"]
    # what was not measured before the stop is measured later
    assert [row["steps"] for row in history] == [s for s in (80, 160, 200) if s != stop_at]


def test_a_stop_while_it_is_measured_keeps_the_steps(tmp_path, monkeypatch):
    def stopped(policy, body, episodes, seed, check):
        os.kill(os.getpid(), signal.SIGTERM)
        check()

    with monkeypatch.context() as patch:
        patch.setattr(module, "measure", stopped)
        with pytest.raises(Stopped):
            train(tmp_path)
    assert not (tmp_path / "ant.safetensors").exists()
    assert train(tmp_path).steps == 200
    assert ToyAgent.made[-1].restored == 80


def test_the_command_exits_75_and_goes_on(tmp_path, capsys):
    argv = [
        "expert",
        "--env",
        "ant",
        "--steps",
        "200",
        "--out",
        str(tmp_path / "a"),
        "--no-progress",
    ]
    ToyAgent.stop_at = 80
    assert cli.main(argv) == 75
    assert "kept in" in capsys.readouterr().err
    assert cli.main(argv) == 0
    assert "200 steps made. Expert: " in capsys.readouterr().out
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "had been made before; nothing was changed" in out
    assert "mean return 12.34 over 10 episodes, 0.1 m/s as directed" in out
    assert len(ToyAgent.made) == 2


def test_a_longer_training_goes_on_from_a_finished_one(tmp_path):
    train(tmp_path)
    assert train(tmp_path, steps=400).steps == 400
    assert ToyAgent.made[-1].restored == 200


def test_a_finished_file_needs_no_checkpoint(tmp_path):
    train(tmp_path)
    (tmp_path / "ant.safetensors.checkpoint").unlink()
    assert train(tmp_path).already_done
    with pytest.raises(BadInput, match=r"but not ant\.safetensors.checkpoint, from which"):
        train(tmp_path, steps=400)
    with pytest.raises(BadInput, match="Choose another --out"):
        train(tmp_path, seed=1)


def test_another_trainings_files_are_refused_and_kept(tmp_path):
    train(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(BadInput, match=r"seed 0 and not 1.*another --out"):
        train(tmp_path, seed=1)
    with pytest.raises(BadInput, match="expert 'ant' and not 'humanoid'"):
        train(tmp_path, env="humanoid")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    out = save_expert(tmp_path / "other", ANT)
    with pytest.raises(BadInput, match="is there already"):
        train(tmp_path, out=out)


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(tmp_path)
    path = tmp_path / "ant.safetensors.checkpoint"
    whole = path.read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(BadInput, match=r"checkpoint cannot be read .*Remove it"):
            train(tmp_path, steps=400)


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(BadInput, match="is a folder"):
        train(tmp_path, out=str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write into"):
        train(tmp_path, out=str(tmp_path / "file" / "ant"))


def test_left_out_steps_are_ogbenchs(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyAgent, "stop_at", 40)
    with pytest.raises(Stopped):
        train(tmp_path, env="antball", steps=None)
    assert ToyAgent.made[0].capacity == 1_000_000


def test_without_sbx(monkeypatch):
    for name in ("flax", "flax.linen", "sbx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput, match=r"needs sbx .*pip install 'sorl-fast\[expert\]'"):
        RealAgent(ANT, None, 0, hidden=4, critic_hidden=4, depth=1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"env": "spider"}, "env is 'spider', but must be one of ant, antball, humanoid"),
        ({"steps": 0}, "steps is 0, but must be an integer of at least 1"),
        ({"hidden": 0}, "hidden is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"seed": -1}, r"seed is -1, but must be in \[0, 2\^31\)"),
        ({"out": ""}, "out is ''"),
    ],
)
def test_bad_values_are_named(tmp_path, changes, says):
    with pytest.raises(BadInput, match=says):
        train(tmp_path, **changes)
