"""A training on actions in a robot's units: its policy returns such, a resumed run is the same."""

import json

import numpy as np
import pytest
from conftest import own_arrays

from sorl_fast import Sampler, cli
from sorl_fast.act.policy_file import load
from sorl_fast.action_map import ActionMap
from sorl_fast.errors import BadInput
from sorl_fast.learn.run_folder import RunFolder
from sorl_fast.learn.train import train

UNITS = ActionMap([-2.5, 0.1], [0.7, 3.3])
SMALL = ["--hidden", "8", "--depth", "1", "--q-coef", "1", "--batch-size", "16", "--m-disc", "2"]
SMALL += ["--m-btt", "2", "--log-every", "5", "--val-every", "10", "--checkpoint-every", "10"]


@pytest.fixture
def units_file(tmp_path):
    """Data whose [-1, 1] are `own_file`'s exactly where rounding allows: bounds are powers of two apart."""
    arrays = own_arrays()
    arrays["actions"][:2] = [[-1, -1], [1, 1]]
    np.savez(tmp_path / "plain.npz", **arrays)
    arrays["actions"] = UNITS.to_units(arrays["actions"].astype(np.float64))
    np.savez(tmp_path / "units.npz", **arrays)
    return tmp_path / "units.npz"


def run(data, out, *more):
    command = ["train", "--env", "mine", "--data", str(data), "--out", str(out), "--no-progress"]
    return cli.main([*command, *SMALL, *more])


@pytest.mark.parametrize("text", ["data", "-2.5,0.7:0.1,3.3"])
def test_the_policy_returns_the_robots_units(units_file, tmp_path, text, capsys):
    assert run(units_file, tmp_path / "run", "--steps", "20", f"--action-range={text}") == 0
    policy = load(tmp_path / "run" / "policy.safetensors")
    np.testing.assert_allclose(policy.action_map.low, UNITS.low, rtol=1e-6)
    np.testing.assert_allclose(policy.action_map.high, UNITS.high, rtol=1e-6)
    action = Sampler(policy).act(np.zeros(4), 2, 4, seed=0)
    low, high = policy.bounds
    assert (low <= action).all()
    assert (action <= high).all()
    # it has learned in [-1, 1]: as it would have from data that are there, to rounding
    assert run(tmp_path / "plain.npz", tmp_path / "twin", "--steps", "20") == 0
    twin = load(tmp_path / "twin" / "policy.safetensors")
    assert twin.action_map is None
    for x, y in zip(policy.actor, twin.actor, strict=True):
        for u, v in zip(x, y, strict=True):
            np.testing.assert_allclose(u, v, rtol=0, atol=1e-3)
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "run")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["format"] == 4
    assert shown["action_map"]["high"] == policy.action_map.high.tolist()


def test_a_resumed_run_is_the_same_and_keeps_its_range(units_file, tmp_path):
    assert run(units_file, tmp_path / "whole", "--steps", "20", "--action-range", "data") == 0
    assert run(units_file, tmp_path / "parts", "--steps", "10", "--action-range", "data") == 0
    assert (
        cli.main(
            [
                "train",
                "--out",
                str(tmp_path / "parts"),
                "--steps",
                "20",
                "--resume",
                "--no-progress",
            ]
        )
        == 0
    )
    first, second = (
        (tmp_path / name / "policy.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert first == second
    agent, config, _ = RunFolder(tmp_path / "parts", ()).read_config()
    for other in (None, "-3,4"):
        with pytest.raises(BadInput, match="action_range was 'data'"):
            train(agent, replaced(config, other), resume=True, progress=False)


def replaced(config, action_range):
    return type(config).from_dict(config.to_dict() | {"action_range": action_range})


def test_a_wrong_range_is_said_before_anything_is_made(units_file, tmp_path, capsys):
    assert run(units_file, tmp_path / "run", "--action-range=2") == 2
    assert "action_range is '2', of which '2' is no LOW,HIGH" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run(units_file, tmp_path / "run") == 2
    assert "--action-range data" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
