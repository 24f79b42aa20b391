"""The benchmark of choosing: the ways agree with their twin before they are timed, and take turns."""

import json

import numpy as np
import pytest

pytest.importorskip("sorl_fast._native")

from native.twin import make_policy
from sorl_fast.bench import choosing, harness

from sorl_fast import Sampler
from sorl_fast.errors import BadInput


@pytest.fixture
def small(monkeypatch):
    policy = make_policy(O=28, A=5, H=16, depth=2)
    monkeypatch.setattr(choosing.shapes, "make_policy", lambda *sizes: policy)
    monkeypatch.setattr(choosing, "BLOCK", 1e-4)
    return policy


def test_every_rule_and_a_schedule_are_timed(small, tmp_path, capsys):
    assert (
        choosing.run(["--blocks", "2", "--threads", "2", "--json", str(tmp_path / "c.json")]) == 0
    )
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert len(rows) == 3 * (len(choosing.BY_RULE) + len(choosing.BY_STEPS))
    assert all(row["us"] > 0 and row["low"] <= row["ratio"] <= row["high"] for row in rows)
    assert said.count("choosing takes at most") == 3
    assert "M = 8, N = 32, medoid" in said and "M = 1/2,1/4,1/4, N = 1 makes" in said


def test_a_wrong_action_is_told(small):
    obs = np.zeros(28, np.float32)
    other = Sampler(make_policy(O=28, A=5, H=16, depth=2, seed=1), "numpy")
    with pytest.raises(harness.Disagreement, match="M = 1/2,1/4,1/4, N = 1, fp32: the action"):
        choosing.agree(Sampler(small, "native"), other, obs, choosing.BY_STEPS[1:], "fp32")
    with pytest.raises(harness.Disagreement, match="N = 32, argmax, fp32: the action is off by"):
        choosing.agree(Sampler(small, "native"), other, obs, choosing.BY_RULE[:1], "fp32")


def test_a_single_block_is_refused():
    with pytest.raises(BadInput, match=r"blocks is 1, but must be in \[2, 10000\]"):
        choosing.run(["--blocks", "1"])


def test_threads_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match="threads"):
        choosing.run(["--blocks", "2", "--threads", "0"])
