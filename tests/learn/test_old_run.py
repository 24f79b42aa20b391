"""A run of an older version is read, shown and gone on with, as that version would have."""

import hashlib
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import OTHER_MACHINE

from sorl_fast import cli
from sorl_fast.act.policy_file import Policy, load
from sorl_fast.act.sampler import Sampler

OLD = Path(__file__).parent.parent / "golden" / "old_run"
# Of final.safetensors, and of the machine that it was computed on.
DIGEST = "36e0907ca5e8c54e030f7920ce7fbc2610077a23afdca59b1896cde7a32c523e"
MACHINE = ("4f117b52f3db60a0", "2.13.0+cpu")


def this_machine() -> tuple[str, str]:
    """What decides how products round: the processor, as far as it says, and torch's version."""
    about = []
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = [next((x for x in lines if x.startswith(n)), "") for n in ("model name", "flags")]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16], torch.__version__


def arrays(policy: Policy) -> list[np.ndarray]:
    layers = [array for layer in (*policy.actor, *policy.critic) for array in layer]
    return [*layers, policy.obs_mean, policy.obs_std]


@pytest.fixture
def continued(tmp_path, monkeypatch):
    """The old run after its last 30 updates by today's code."""
    for name in ("SORL_BACKEND", "SORL_OPS"):
        monkeypatch.setenv(name, "torch")
    run = tmp_path / "run"
    shutil.copytree(OLD / "run", run)
    data = str(OLD / "mine.npz")
    argv = ["train", "--resume", "--out", str(run), "--data", data, "--steps", "60"]
    assert cli.main([*argv, "--no-progress"]) == 0
    return run


def test_an_old_run_goes_on_as_it_would_have(continued):
    """Bit for bit on a machine like that which recorded it; elsewhere within rounding."""
    then, now = load(OLD / "final.safetensors"), load(continued / "policy.safetensors")
    for old, new in zip(arrays(then), arrays(now), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=OTHER_MACHINE)
    assert then.config == now.config
    if this_machine() == MACHINE:
        assert hashlib.sha256((continued / "policy.safetensors").read_bytes()).hexdigest() == DIGEST
    lines = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (OLD / "final.jsonl", continued / "log.jsonl")
    ]
    for old, new in zip(*lines, strict=True):
        for clock in ("seconds", "updates_per_second"):
            old.pop(clock, None), new.pop(clock, None)
        assert new == pytest.approx(old, rel=1e-4)


def test_an_old_runs_policy_acts(monkeypatch):
    policy = OLD / "run" / "policy.safetensors"
    action = Sampler.load(policy, backend="numpy").act(np.ones(4, np.float32), 4, 2, seed=1)
    assert action.shape == (2,)
    assert np.isfinite(action).all()
    assert cli.main(["inspect", str(OLD / "run")]) == 0


@pytest.mark.slow
def test_an_old_run_is_reported(tmp_path):
    assert cli.main(["report", str(OLD / "run"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists()
