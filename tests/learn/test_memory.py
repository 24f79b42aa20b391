"""Training takes less than a gigabyte beside its data set."""

import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sorl_fast._native", reason="the extension is not built")

T, O, A = 50_000, 28, 5
# getrusage's maximum would be that of the process that started this one, if that is larger
TRAIN = """
import sys
from sorl_fast.cli import main
code = main(sys.argv[1:])
print(open("/proc/self/status").read())
sys.exit(code)
"""


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
    argv = ["train", "--env", "mine", "--q-coef", "1", "--data", str(tmp_path / "own.npz")]
    argv += ["--out", str(tmp_path / "run"), "--steps", "12", "--log-every", "4"]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *argv, "--precision", precision],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    most = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout)[1])
    assert most < 2**30 + sum(x.nbytes for x in arrays.values())
