"""The benchmark of denormal numbers: its inputs are denormal, its check and its exit code work."""

import json

import numpy as np
import pytest

pytest.importorskip("sorl_fast._native")

from sorl_fast.bench import denormals, harness, shapes

CELL = shapes.Cell(1, 2, 3, 4, 2)


def test_the_inputs_are_denormal():
    smallest = np.finfo(np.float32).smallest_normal
    w, b = denormals.denormal_weights(shapes.make_policy(4, 2, hidden=16)).actor[1]
    for numbers in (w, b, denormals.TINY):
        assert 0 < np.abs(numbers).max() < smallest


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_compares_three_kinds_of_call(precision):
    row = denormals.measure(shapes.make_policy(4, 2, hidden=16), precision, CELL, 0.005)
    assert row["precision"] == precision
    assert min(row["p50_us"], row["observation_ratio"], row["weights_ratio"]) > 0


def test_a_wrong_action_is_not_timed(monkeypatch):
    monkeypatch.setattr(denormals, "TINY", np.float32(0.5))  # an observation that does matter
    with pytest.raises(harness.Disagreement, match="does not act as zero"):
        denormals.measure(shapes.make_policy(4, 2, hidden=16), "fp32", CELL, 0.005)


@pytest.mark.parametrize(("ratio", "code"), [(1.05, 0), (1.2, 1)])
def test_a_broken_promise_is_the_exit_code(monkeypatch, tmp_path, ratio, code):
    row = {"precision": "fp32", "p50_us": 1.0, "observation_ratio": 1.0, "weights_ratio": ratio}
    monkeypatch.setattr(denormals, "measure", lambda *_: dict(row))
    assert denormals.run(["--json", str(tmp_path / "d.json")]) == code
    assert json.loads((tmp_path / "d.json").read_text())["rows"][0]["weights_ratio"] == ratio


def test_seconds_out_of_bounds_are_named():
    with pytest.raises(denormals.BadInput, match=r"seconds is 0\.0, but must be in"):
        denormals.run(["--seconds", "0"])
