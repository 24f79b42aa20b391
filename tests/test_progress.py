"""A bar where somebody watches, in a log few lines, and nothing where nobody wants it."""

import sys

import pytest

from sorl_fast import progress as module
from sorl_fast.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for `clock.append`: seconds to go on."""
    seconds = []
    monkeypatch.setattr(module.time, "monotonic", lambda: float(sum(seconds)))
    return seconds


def test_a_log_gets_a_line_now_and_then(clock, capfd):
    with progress(" episodes", name="cube") as show:
        show(2, 1500)
        for done in range(3, 1501):
            clock.append(0.125)
            show(done, 1500)
            show(done, 1500)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "cube: 482 of 1,500 episodes after 60 s",
        "cube: 962 of 1,500 episodes after 120 s",
        "cube: 1,442 of 1,500 episodes after 180 s",
        "cube: 1,500 of 1,500 episodes after 187 s",
    ]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress(" episodes", name="cube") as show:
        show(4, 10)
        show(10, 10)
    err = capsys.readouterr().err
    assert "\r" in err
    assert "10/10" in err
    assert "cube" in err


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_shown_to_who_wants_nothing(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress(" episodes", shown=False) as show:
        show(0, 1)
        show(1, 1)
    assert capsys.readouterr().err == ""


def test_a_process_may_have_no_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    with progress(" episodes") as show:
        show(0, 1)
        show(1, 1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_steps_are_shown_as_a_rate(terminal, clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress(" episodes", name="ant") as show:
        show(0, 2)
        clock.append(10)
        show.more_steps(1000)
        show.more_steps(2000)
        show(2, 2)
    err = capsys.readouterr().err
    assert "300 steps a second" in err
    assert terminal or err == "ant: 2 of 2 episodes after 10 s, 300 steps a second\n"
