"""The whole way through the real console script: collect, train, evaluate, report, inspect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sorl_fast import Sampler

ENV = "cube-single-play-singletask-task2-v0"


# Every process of the run, worker processes too, loads this before anything else.
NO_NETWORK = """
import socket

class Blocked(socket.socket):
    def __init__(self, family=socket.AF_INET, *args, **kwargs):
        if family in (-1, socket.AF_INET, socket.AF_INET6) and kwargs.get("fileno") is None:
            raise AssertionError("an internet socket was opened")
        super().__init__(family, *args, **kwargs)

socket.socket = Blocked
"""


def sorl(*words, cwd):
    (cwd / "blocked").mkdir(exist_ok=True)
    (cwd / "blocked" / "sitecustomize.py").write_text(NO_NETWORK)
    script = Path(sys.executable).parent / "sorl-fast"
    done = subprocess.run(
        [str(script), *map(str, words)],
        cwd=cwd,
        # nothing is rendered, so that a wrong way to do so does not matter
        env=os.environ | {"PYTHONPATH": str(cwd / "blocked"), "MUJOCO_GL": "no-such-library"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_collect_train_evaluate_report(tmp_path):
    sorl("collect", "--env", "cube-single-play-v0", "--episodes", 2, "--out", "data", cwd=tmp_path)
    sorl(
        *("train", "--env", ENV, "--data", "data", "--out", "run", "--steps", 50, "--hidden", 16),
        *("--depth", 2, "--log-every", 10, "--val-every", 25, "--checkpoint-every", 25),
        *("--eval-every", 50, "--eval-episodes", 1, "--eval-steps", 1, "--workers", 1),
        cwd=tmp_path,
    )
    grid = ("--steps", 1, 8, "--candidates", 1, 4, "--episodes", 1, "--workers", 1)
    table = sorl("eval", "run", *grid, "--json", "eval.json", cwd=tmp_path)
    assert "success" in table.lower()
    page = Path(tmp_path / sorl("report", "run", cwd=tmp_path).split()[-1])
    assert page.is_file()

    result = json.loads((tmp_path / "eval.json").read_text())
    assert result == json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (result["env"], result["success_timing"], result["step"]) == (ENV, "post", 50)
    assert [(r["steps"], r["candidates"]) for r in result["rows"]] == [
        (1, 1),
        (1, 4),
        (8, 1),
        (8, 4),
    ]
    keys = {"steps", "candidates", "episodes", "successes", "success", "ci_low", "ci_high"}
    keys |= {"episode_length", "actions_per_second", "returns"}
    assert all(keys <= r.keys() for r in result["rows"])
    assert json.loads((tmp_path / "run" / "eval.jsonl").read_text())["step"] == 50

    shown = json.loads(sorl("inspect", "run", cwd=tmp_path))
    assert (shown["obs_dim"], shown["act_dim"], shown["env"]) == (28, 5, ENV)
    action = Sampler.load(tmp_path / "run" / "policy.safetensors").act(np.zeros(28, np.float32), 8)
    assert action.shape == (5,)


def test_the_block_of_the_network_works(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "an internet socket was opened" in done.stderr
