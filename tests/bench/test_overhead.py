"""The benchmark of Python's overhead: three ways timed, a broken promise is the exit code."""

import json

import pytest

pytest.importorskip("sorl_fast._native")

from sorl_fast.bench import overhead

from sorl_fast.errors import BadInput


def test_three_ways_are_timed(monkeypatch):
    monkeypatch.setattr(overhead, "CALLS", 3)
    figures = overhead.measure(2)
    assert set(figures) == {"c++", *overhead.PROMISES}
    assert min(figures.values()) > 0


@pytest.mark.parametrize(
    ("act_into", "act", "code", "words"),
    [
        (2.9, 5.9, 0, "kept"),
        (3.1, 5.0, 1, "act_into    3.10 us,  2.10 us beyond"),
        (2.0, 6.1, 1, "BROKEN"),
    ],
)
def test_a_broken_promise_is_the_exit_code(
    monkeypatch, tmp_path, capsys, act_into, act, code, words
):
    monkeypatch.setattr(
        overhead, "measure", lambda _: {"c++": 1.0, "act_into": act_into, "act": act}
    )
    assert overhead.run(["--json", str(tmp_path / "o.json")]) == code
    assert words in capsys.readouterr().out
    assert json.loads((tmp_path / "o.json").read_text())["microseconds"]["act"] == act


def test_no_blocks_are_refused():
    with pytest.raises(BadInput, match=r"blocks is 0, but must be in \[1, 10000\]"):
        overhead.run(["--blocks", "0"])
