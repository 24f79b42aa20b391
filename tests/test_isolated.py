"""Whoever crashes or hangs is named, the others are done, and nothing stays behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sorl_fast import isolated

WORKER = "isolated_workers:work"


def run(*things, **more):
    items = [{"n": n, **(x if isinstance(x, dict) else {"do": x})} for n, x in enumerate(things)]
    return list(isolated.run(WORKER, items, **more))


def statuses(outcomes):
    return [outcome["status"] for outcome in outcomes]


def gone(pid):
    """Whether a process is there no more, or only as a name in the table."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_items_that_go_well_share_a_child():
    outcomes = run("ok", "ok", "ok")
    assert statuses(outcomes) == ["ok"] * 3
    assert [outcome["n"] for outcome in outcomes] == [0, 1, 2]
    assert len({outcome["pid"] for outcome in outcomes}) == 1
    assert outcomes[0]["pid"] != os.getpid()
    assert gone(outcomes[0]["pid"])


@pytest.mark.parametrize(
    ("what", "status", "says"),
    [
        ("raise", "failed", "ValueError: two lines"),
        ("disagree", "disagrees", "numbers"),
        ("exit", "crashed", "ended with code 3 (last words) at: item 1"),
        ({"do": "exit", "code": 0}, "crashed", "ended with code 0"),
        ({"do": "signal", "name": "SIGSEGV"}, "crashed", "killed by SIGSEGV at: item 1"),
        ({"do": "signal", "name": "SIGKILL"}, "crashed", "killed by SIGKILL"),
        ({"do": "signal", "name": "SIGABRT"}, "crashed", "killed by SIGABRT"),
    ],
    ids=["raise", "disagree", "exit", "exit-0", "SIGSEGV", "SIGKILL", "SIGABRT"],
)
def test_one_bad_item_is_blamed_and_the_others_are_done(what, status, says):
    before, bad, after = run("ok", what, "ok")
    assert (before["status"], bad["status"], after["status"]) == ("ok", status, "ok")
    assert says in bad["reason"]
    assert before["pid"] != after["pid"]  # who met trouble does nothing more


def test_a_harmless_failure_costs_no_child():
    before, bad, after = run("ok", "harmless", "ok")
    assert bad["status"] == "failed"
    assert before["pid"] == after["pid"]


@pytest.mark.slow
def test_a_hang_is_ended():
    start = time.monotonic()
    outcomes = run("hang", "ok", silence=1.0)
    assert statuses(outcomes) == ["hung", "ok"]
    assert outcomes[0]["reason"] == "said nothing for 1 s at: item 0"
    assert time.monotonic() - start < 40


@pytest.mark.slow
def test_what_a_hanging_child_started_ends_with_it():
    (outcome,) = run("hang with a child", silence=1.5)
    assert outcome["status"] == "hung"
    pid = int(outcome["reason"].split()[-1])
    for _ in range(100):
        if gone(pid):
            break
        time.sleep(0.05)
    assert gone(pid)


@pytest.mark.slow
def test_who_says_that_it_is_alive_is_not_hung():
    assert statuses(run("slow", silence=1.2)) == ["ok"]


def test_what_is_not_there_blames_nobody():
    outcomes = run("ok", "unavailable", "ok")
    assert statuses(outcomes) == ["ok", "unchecked", "unchecked"]
    assert outcomes[2]["reason"] == "no device"


def test_a_worker_that_cannot_be_imported_blames_nobody():
    outcomes = list(isolated.run("no_such_module:work", [{}, {}]))
    assert statuses(outcomes) == ["unchecked"] * 2
    assert "No module named 'no_such_module'" in outcomes[0]["reason"]


def test_an_interpreter_that_cannot_be_started_blames_nobody(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    outcomes = run("ok")
    assert statuses(outcomes) == ["unchecked"]
    assert "no child process could be started" in outcomes[0]["reason"]


def test_a_child_that_is_never_ready_blames_nobody():
    outcomes = run("ok", start=0.001)
    assert statuses(outcomes) == ["unchecked"]
    assert "not ready after 0.001 s" in outcomes[0]["reason"]


def test_the_environment_reaches_the_child():
    (outcome,) = run("environment", environment={"SORL_TEST_WORD": "here"})
    assert outcome["value"] == "here"


def test_a_caller_that_stops_early_leaves_no_child():
    outcomes = isolated.run(WORKER, [{"n": 0, "do": "ok"}, {"n": 1, "do": "hang"}])
    pid = next(outcomes)["pid"]
    outcomes.close()
    assert gone(pid)


def test_a_parent_that_is_killed_leaves_no_child():
    code = (
        "from sorl_fast import isolated\n"
        f"outcomes = isolated.run({WORKER!r}, [{{'n': 0, 'do': 'ok'}}, {{'n': 1, 'do': 'hang'}}])\n"
        "print(next(outcomes)['pid'], flush=True)\n"
        "next(outcomes)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment
    ) as parent:
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    for _ in range(100):
        if gone(pid):
            break
        time.sleep(0.05)
    assert gone(pid)


def test_no_core_file_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run({"do": "signal", "name": "SIGSEGV"})
    assert list(tmp_path.iterdir()) == []


def test_no_items_start_nothing():
    assert run() == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with code 0"),
        (3, "ended with code 3"),
        (-9, "was killed by SIGKILL"),
        (-40, "was killed by signal 40"),  # a real-time signal has no name
    ],
)
def test_how_a_process_ended_is_said(code, words):
    assert isolated.how_it_ended(code) == words
