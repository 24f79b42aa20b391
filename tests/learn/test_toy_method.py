"""A method is one file: a toy one trains, resumes, evaluates and is reported like any other."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from learn import toy_method

from sorl_fast import Sampler, cli, ops
from sorl_fast.errors import BadInput
from sorl_fast.learn import algorithms
from sorl_fast.learn.algorithms import find_method, method_config
from sorl_fast.learn.checkpoint import load_latest


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(algorithms.METHODS, "toy", ("toy", "Toy"))
    monkeypatch.setitem(sys.modules, "sorl_fast.learn.algorithms.toy", toy_method)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    ops.configure()


def train(own_file, out, *more):
    argv = ["train", "--method", "toy", "--env", "mine", "--data", str(own_file), "--out", str(out)]
    return cli.main([*argv, "--log-every", "5", "--val-every", "10", "--threads", "1", *more])


def test_it_is_short():
    assert len(Path(toy_method.__file__).read_text().splitlines()) < 60


def test_it_trains_resumes_acts_and_is_reported(own_file, tmp_path, capsys):
    assert train(own_file, tmp_path / "whole", "--steps", "20", "--width", "12") == 0
    assert train(own_file, tmp_path / "parts", "--steps", "9", "--width", "12") == 0
    assert train(own_file, tmp_path / "parts", "--steps", "20", "--resume") == 0
    whole, parts = (load_latest(tmp_path / n / "checkpoints").tensors for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert "actor_adam/first/0/w" in whole
    for name, x in whole.items():
        assert np.array_equal(x, parts[name]), name
    sampler = Sampler.load(tmp_path / "whole" / "policy.safetensors")
    assert sampler.act(np.zeros(4, np.float32), seed=1).shape == (2,)
    assert cli.main(["report", str(tmp_path / "whole"), "--out", str(tmp_path / "report")]) == 0
    assert "Flow matching" not in capsys.readouterr().err
    assert (tmp_path / "report" / "figures" / "losses.png").is_file()


def test_its_flags_are_its_own(own_file, tmp_path, capsys):
    assert train(own_file, tmp_path / "run", "--q-coef", "3") == 2
    says = capsys.readouterr().err
    assert "--q-coef is a flag of sorl; toy has --width" in says
    with pytest.raises(SystemExit):
        train(own_file, tmp_path / "run", "--nonsense", "3")
    assert "--nonsense" in capsys.readouterr().err


def test_another_method_does_not_go_on_with_its_run(own_file, tmp_path, capsys):
    assert train(own_file, tmp_path / "run", "--steps", "3") == 0
    argv = ["train", "--env", "mine", "--data", str(own_file), "--out", str(tmp_path / "run")]
    assert cli.main([*argv, "--method", "sorl", "--q-coef", "1", "--resume"]) == 2
    assert "was trained by 'toy'. Leave --method out" in capsys.readouterr().err
    assert cli.main([*argv, "--steps", "5", "--resume"]) == 0


def test_an_unknown_method_is_named():
    with pytest.raises(BadInput, match=r"method is 'nonsense', but must be one of sorl, .*toy"):
        find_method("nonsense")
    assert method_config("toy", "mine", {"width": 3}).width == 3


@pytest.mark.slow
def test_it_is_evaluated_in_the_simulator(tmp_path):
    env = "cube-single-play-singletask-task2-v0"
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(60, 28)).astype(np.float32),
        "actions": np.tanh(rng.normal(size=(60, 5))).astype(np.float32),
        "rewards": -np.ones(60, np.float32),
        "masks": np.ones(60, np.float32),
        "terminals": np.arange(60) % 30 == 29,
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    assert (
        train(
            tmp_path / "mine.npz",
            tmp_path / "run",
            "--steps",
            "3",
            "--env",
            env,
            "--eval-every",
            "0",
        )
        == 0
    )
    grid = ["--steps", "1", "--candidates", "1", "--episodes", "1", "--workers", "1"]
    assert cli.main(["eval", str(tmp_path / "run"), *grid]) == 0
    assert (tmp_path / "run" / "evaluation.json").is_file()
