"""Training takes less than a gigabyte beside its data set."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sorl_fast._native", reason="the extension is not built")

T, O, A = 50_000, 28, 5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_papers_network_trains_within_a_gigabyte(tmp_path, precision):
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.standard_normal((T, O), np.float32),
        "actions": np.tanh(rng.standard_normal((T, A), np.float32)),
        "rewards": -np.ones(T, np.float32),
        "masks": np.ones(T, np.float32),
        "next_observations": rng.standard_normal((T, O), np.float32),
    }
    np.savez(tmp_path / "own.npz", **arrays)
    command = [sys.executable, "-m", "sorl_fast.cli", "train", "--env", "mine", "--q-coef", "1"]
    command += ["--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "run")]
    command += ["--steps", "40", "--log-every", "10", "--precision", precision]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    data = sum(x.nbytes for x in arrays.values())
    assert usage.ru_maxrss * 1024 < 2**30 + data
