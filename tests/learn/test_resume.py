"""A resumed run: logs of an uninterrupted one, from anywhere, also where an older version began it."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from conftest import own_arrays, some_fast
from runs import agent, assert_same_run, config, final_state

from sorl_fast import Sampler, cli
from sorl_fast.act import policy_file
from sorl_fast.data.dataset import TransitionData
from sorl_fast.errors import BadInput
from sorl_fast.learn import train as train_module
from sorl_fast.learn.train import train


def without_time(text):
    times = ("seconds", "updates_per_second")
    return [{k: v for k, v in json.loads(x).items() if k not in times} for x in text.splitlines()]


def logs(run):
    """The lines of log.jsonl and the rows of log.csv, without what a clock has put there."""
    with (run / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row["seconds"], row["updates_per_second"]
    return without_time((run / "log.jsonl").read_text()), rows


def killed(run, checkpoint):
    """Leave of a run what a kill leaves if its last checkpoint is the given one."""
    for folder in (run / "checkpoints").iterdir():
        if folder.name != f"{checkpoint:09d}":
            shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", some_fast([7, 15, 30, 33], 15, 33))
def test_logs_of_a_resumed_run_are_those_of_an_uninterrupted_one(own_file, tmp_path, stop_at):
    train(agent(), config(own_file, tmp_path / "whole"), progress=False)
    run = tmp_path / "parts"
    train(agent(), config(own_file, run, steps=stop_at), progress=False)
    killed(run, stop_at - stop_at % 15 or stop_at)
    train(agent(), config(own_file, run), resume=True, progress=False)
    assert logs(run) == logs(tmp_path / "whole")
    assert len(logs(run)[0]) == 6


@pytest.mark.slow
def test_a_checkpoint_of_an_older_version_resumes(own_file, tmp_path, monkeypatch):
    real = train_module.save_checkpoint

    def older(root, step, tensors, info, keep):
        tensors = {k: v for k, v in tensors.items() if k != "log/window"}
        return real(root, step, tensors, info, keep)

    train(agent(), config(own_file, tmp_path / "whole"), progress=False)
    monkeypatch.setattr(train_module, "save_checkpoint", older)
    train(agent(), config(own_file, tmp_path / "parts", steps=15), progress=False)
    monkeypatch.undo()
    train(agent(), config(own_file, tmp_path / "parts"), resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    whole, parts = logs(tmp_path / "whole")[0], logs(tmp_path / "parts")[0]
    assert [x["step"] for x in parts] == [x["step"] for x in whole]
    assert [x for x in parts if x["step"] != 20] == [x for x in whole if x["step"] != 20]


def older_moments(data):
    """Mean and scale as versions took them that divided whatever hardly varied by 1e-3."""
    x = data.transitions.observations.double()
    return x.mean(0).float(), x.std(0, correction=0).clamp(min=1e-3).float(), []


def test_a_run_with_the_scale_of_an_older_version_resumes(own_file, tmp_path, monkeypatch, capsys):
    arrays = own_arrays()
    arrays["observations"][:, 1] *= 5e-4
    arrays["observations"][:, 2] = 7.0
    np.savez(own_file, **arrays)
    a, run = agent(normalize_obs=True), tmp_path / "run"
    monkeypatch.setattr(TransitionData, "moments", older_moments)
    train(a, config(own_file, run, steps=15), progress=False)
    monkeypatch.undo()
    train(a, config(own_file, run), resume=True, progress=False)
    policy = policy_file.load(run / "policy.safetensors")
    assert policy.obs_std[1] == np.float32(1e-3)  # the weights rely on it
    assert policy.obs_std[2] == 1  # the weights have seen 0 there, whatever the scale
    assert "keeps the scale of observations 2 (counted" in capsys.readouterr().err
    (run / "policy.safetensors").unlink()
    with pytest.raises(BadInput, match="are not those that"):
        train(a, config(own_file, run), resume=True, progress=False)


def mean_moves(run, observations):
    """Mean change of an action by +0.1 in one column, for each column."""
    sampler = Sampler.load(run / "policy.safetensors", backend="numpy")
    actions = sampler.act(observations, steps=4, seed=3)
    others = (observations + 0.1 * row for row in np.eye(observations.shape[1], dtype=np.float32))
    return np.array([np.abs(sampler.act(x, steps=4, seed=3) - actions).mean() for x in others])


@pytest.mark.slow
def test_an_observation_that_was_constant_moves_an_action_about_as_others_do(
    own_file, tmp_path, monkeypatch
):
    arrays = own_arrays()
    arrays["observations"][:, 2] = 7.0
    np.savez(own_file, **arrays)
    for name in ("now", "older"):
        train(agent(normalize_obs=True), config(own_file, tmp_path / name), progress=False)
        moves = mean_moves(tmp_path / name, arrays["observations"][:50])
        ratio = moves[2] / np.delete(moves, 2).mean()
        assert ratio < 10 if name == "now" else ratio > 10, ratio
        monkeypatch.setattr(TransitionData, "moments", older_moments)


@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
def test_resume_from_another_working_directory(own_file, tmp_path, monkeypatch, older):
    flags = ["train", "--env", "mine", "--data", own_file.name, "--q-coef", "1", "--hidden", "8"]
    flags += ["--depth", "1", "--threads", "1", "--batch-size", "16", "--out", "runs/mine"]
    monkeypatch.chdir(tmp_path)
    assert cli.main([*flags, "--steps", "9"]) == 0
    file = tmp_path / "runs" / "mine" / "config.json"
    info = json.loads(file.read_text())
    paths = info["train"]["data"], info["train"]["out"], info["data"]["path"]
    assert paths == (str(own_file), str(tmp_path / "runs" / "mine"), str(own_file))
    if older:  # as versions wrote it that kept the paths as they were given
        info["train"] |= {"data": own_file.name, "out": "runs/mine"}
        file.write_text(json.dumps(info))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["train", "--out", "../runs/mine", "--steps", "20", "--resume"]) == 0
    assert final_state(tmp_path / "runs" / "mine").step == 20
    assert json.loads(file.read_text())["train"]["data"] == str(own_file)


def steps_shown(accumulator, folder, name):
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


@pytest.mark.slow
def test_tensorboard_shows_each_step_of_a_resumed_run_once(own_file, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    run, done = tmp_path / "run", []

    def noted(name, real):
        return lambda *args: (done.append(name), real(*args))[1]

    monkeypatch.setattr(writer, "flush", noted("flush", writer.flush))
    monkeypatch.setattr(
        train_module, "save_checkpoint", noted("save", train_module.save_checkpoint)
    )
    every = {"tensorboard": True, "keep_checkpoints": 9}
    train(agent(), config(own_file, run, steps=35, **every), progress=False)
    assert done[:6] == ["flush", "save"] * 3  # a kill right after it loses no event of before it
    killed(run, 15)
    (file,) = (run / "tensorboard").iterdir()
    os.truncate(file, file.stat().st_size - 3)  # a kill may tear the last one
    train(agent(), config(own_file, run, **every), resume=True, progress=False)
    assert steps_shown(accumulator, run / "tensorboard", "critic_loss") == [10, 20, 30, 40]
    assert steps_shown(accumulator, run / "tensorboard", "val_critic_loss") == [20, 40]


def test_a_field_that_config_json_leaves_out_at_its_default_may_not_change(own_file, tmp_path):
    run = tmp_path / "run"
    train(agent(), config(own_file, run, steps=15), progress=False)
    assert "sc_every" not in json.loads((run / "config.json").read_text())["agent"]
    for every, said in ((1, None), (2, "sc_every was 1 in .*, but is 2 now")):
        changed, longer = agent(sc_every=every), config(own_file, run, steps=16)
        if said is None:
            train(changed, longer, resume=True, progress=False)
        else:
            with pytest.raises(BadInput, match=said):
                train(changed, longer, resume=True, progress=False)
