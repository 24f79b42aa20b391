"""Evaluation: intervals, grids, errors, and episodes that depend on their seed alone."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evaluating import CUBE, MAZE, FakeWorkers, Stop, make_policy
from forms import FORMS, form_policy
from hypothesis import given
from hypothesis import strategies as st

from sorl_fast.act.policy_file import digest, load, save
from sorl_fast.act.schedule import schedule_of
from sorl_fast.config import EvalConfig
from sorl_fast.errors import BadInput
from sorl_fast.simulate import evaluate as module
from sorl_fast.simulate.evaluate import (
    Evaluator,
    check_cells,
    default_cells,
    evaluate,
    rollout,
    wilson,
)


# Newcombe, Statistics in Medicine 17 (1998) 857-872, Table I, method 3
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_agrees_with_published_values(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(n=st.integers(1, 5000), data=st.data())
def test_wilson_holds_the_estimate_and_is_symmetric(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert low < high
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(BadInput, match=f"{successes} successes of {n}"):
        wilson(successes, n)


class FakeSimulator:
    """Five steps; success at the third only."""

    def reset(self, seed, episode):
        self.t = 0
        self.actions = []
        return np.zeros(3, np.float32)

    def step(self, action):
        self.t += 1
        self.actions.append(action)
        return np.full(3, self.t, np.float32), -1.0, self.t == 3, self.t == 5


class FakeSampler:
    calls_next, policy = True, SimpleNamespace(chunk=1)

    def __init__(self):
        self.calls = []

    def replay(self, obs, steps, candidates, **noise):
        self.calls.append((obs[0], steps, candidates, noise))
        return np.zeros(2, np.float32)


def test_rollout_keys_the_noise_by_step_and_episode_and_sees_every_success():
    sampler = FakeSampler()
    episode = rollout(FakeSimulator(), sampler, 4, 8, seed=11, episode=6)
    assert episode[:3] == (True, 5, -5.0)
    assert episode.act_seconds > 0
    key = {"rule": "argmax", "seed": 11, "row_offset": 6}
    assert sampler.calls == [(t, 4, 8, key | {"call": t}) for t in range(5)]
    rollout(FakeSimulator(), sampler, "1/2,1/4,1/4", 8, 11, 6, "medoid:1/2")
    assert sampler.calls[-1][1:3] == (schedule_of("1/2,1/4,1/4"), 8)
    assert sampler.calls[-1][3]["rule"] == "medoid:1/2"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": (1, 9)}, ["steps is 9", "maze.safetensors", "1, 2, 4", "at most 8"]),
        ({"steps": ("1/2,1/4",)}, ["steps is 0.5,0.25", "sums to 0.75"]),
        ({"steps": ("two",)}, ["steps is 'two'", "sizes that sum to 1"]),
        ({"steps": (2, 2)}, ["steps [2, 2]", "twice"]),
        ({"steps": (2, "1/2,1/2")}, ["steps [2, 2]", "twice"]),
        ({"rules": ("best",)}, ["rules is 'best'", "argmax, medoid"]),
        ({"rules": ("medoid", "medoid:2/4")}, ["medoid:1/2", "twice"]),
        ({"rules": ()}, ["rules is ()", "one or more names"]),
        ({"steps": ()}, ["steps is ()", "at least 1"]),
        ({"candidates": (0,)}, ["candidates is 0,", "at least 1"]),
        ({"episodes": 0}, ["episodes is 0", "at least 1"]),
        ({"seed": -1}, ["seed is -1", "2^63"]),
        ({"seed": 2**63}, ["seed is 9223372036854775808", "2^63"]),
        ({"policy_path": "nowhere.safetensors"}, ["nowhere.safetensors"]),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_bad_grids_are_named_before_any_process_starts(maze_policy, change, words):
    grid = {
        "policy_path": maze_policy,
        "steps": (1,),
        "candidates": (1,),
        "episodes": 1,
        "seed": 0,
    }
    started = []
    with Evaluator(MAZE) as evaluator, pytest.raises(BadInput) as err:
        evaluator.run(**(grid | change), progress=lambda done, total: started.append(done))
    assert not started
    assert all(word in str(err.value) for word in words), str(err.value)


@pytest.mark.parametrize(
    ("name", "E", "asked", "cells"),
    [
        ("direct reading", 2, (None, None), ((1,), (1, 4, 8))),
        ("direct", 0, (None, None), ((1,), (1,))),
        ("euler", 2, (None, (2,)), ((3, 10), (2,))),
        ("residual", 2, ((5,), None), ((5,), (1, 4, 8))),
    ],
)
def test_an_evaluation_left_to_the_policy_has_cells_that_it_can_act_in(name, E, asked, cells):
    policy = form_policy(FORMS[name], E=E)
    found = default_cells(policy, *asked)
    assert tuple(map(tuple, found)) == cells
    check_cells(policy, "it", *found)


def test_a_shortcut_policy_is_evaluated_at_those_of_1_2_4_8_that_it_has(maze_policy):
    steps, candidates = default_cells(load(maze_policy), None, None)
    assert [*steps] == [1, 2, 4]
    assert [*candidates] == [1, 4, 8]


def test_candidates_without_a_critic_are_named(tmp_path):
    save(tmp_path / "bc.safetensors", form_policy(FORMS["direct"], E=0, env=MAZE))
    with pytest.raises(BadInput, match=r"candidates has 4, but .*bc.safetensors has no critic"):
        Evaluator(MAZE).run(tmp_path / "bc.safetensors", (1,), (1, 4), 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["direct reading", "residual"])
def test_a_policy_of_another_form_is_evaluated_in_the_simulator(name, tmp_path):
    path = tmp_path / "p.safetensors"
    save(path, form_policy(FORMS[name], O=2, A=2, env=MAZE))
    config = EvalConfig(candidates=(1, 2), episodes=1, workers=1)
    result = evaluate(path, config)
    assert result["backend"] == ("native" if name == "direct reading" else "numpy")
    M = 1 if name == "direct reading" else 5
    assert [(r["steps"], r["candidates"]) for r in result["rows"]] == [(M, 1), (M, 2)]
    assert all(r["episode_length"] > 0 for r in result["rows"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env": "my-robot"}, ["'my-robot'", "your own"]),
        ({"env": "cube-single-play-v0"}, ["'cube-single-play-v0'", "single-task"]),
        ({"env": f"visual-{CUBE}"}, ["'visual-cube", "images", "Leave visual- out"]),
        ({"env": MAZE, "workers": 0}, ["workers is 0", "at least 1"]),
        ({"env": MAZE, "success_timing": "late"}, ["success_timing is 'late'", "post or pre"]),
    ],
    ids=["own robot", "goal-conditioned", "images", "no workers", "timing"],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(BadInput) as err:
        Evaluator(**settings)
    assert all(word in str(err.value) for word in words), str(err.value)


def test_an_unknown_backend_is_named(maze_policy):
    with Evaluator(MAZE, backend="abacus") as evaluator, pytest.raises(BadInput, match="abacus"):
        evaluator.run(maze_policy, (1,), (1,), 1, 0)
    assert multiprocessing.active_children() == []


def test_an_unknown_precision_is_named(maze_policy):
    with Evaluator(MAZE, precision="int9") as evaluator, pytest.raises(BadInput, match="int9"):
        evaluator.run(maze_policy, (1,), (1,), 1, 0)


def test_a_worker_acts_in_the_precision_asked_for(monkeypatch, maze_policy):
    opened, made, checked, forgot = [], [], [], []
    sampler = SimpleNamespace(reset=lambda: forgot.append(True))
    monkeypatch.setattr(module, "open_simulator", lambda *how: opened.append(how) or "simulator")
    monkeypatch.setattr(module, "check_dims", lambda *_: checked.append(True))
    monkeypatch.setattr(
        module, "Sampler", lambda policy, *how: made.append((digest(policy), *how)) or sampler
    )
    monkeypatch.setattr(module, "rollout", lambda *what: what)
    player = module._Player(MAZE, "post", "int8")
    data = maze_policy.read_bytes(), "native"
    for _ in range(2):
        player.prepare(data)
        for task in (module.Task(1, 2, 3, 0), module.Task(1, 2, 3, 1)):
            assert player.do(task) == ("simulator", sampler, *task)
    assert opened == [(MAZE, "post")]
    assert made == [(digest(load(maze_policy)), "native", "int8")] * 2
    assert len(checked) == 2  # each policy, not the first alone
    assert len(forgot) == 4  # nothing passes from episode to episode


def test_a_worker_gets_a_policy_once_as_bytes(monkeypatch, maze_policy):
    sent = []

    class FakePool:
        def __init__(self, make, *args, workers):
            pass

        def run(self, tasks, shared):
            sent.append(shared)
            yield None
            for task in tasks:
                yield task, module.Episode(True, 1, 0.0, 0.1)

        def close(self):
            pass

    monkeypatch.setattr(module, "Pool", FakePool)
    Evaluator(MAZE).run(maze_policy, (1, 2), (1,), 3, 0)
    assert sent == [(maze_policy.read_bytes(), "native")]


@pytest.mark.parametrize("package", ["ogbench", "gymnasium", "mujoco"])
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, package):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(BadInput, match=rf"package {package} .*pip install 'sorl-fast\[train\]'"):
        Evaluator(MAZE)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(maze_policy, tmp_path):
    grid = ((1, 4), (1, 2), 5, 11)
    whole = FakeWorkers(MAZE).run(maze_policy, *grid)
    record = tmp_path / "record"
    interrupted = FakeWorkers(MAZE)
    for stop in (3, 0, 7):
        interrupted.stop = stop
        with pytest.raises(Stop):
            interrupted.run(maze_policy, *grid, record=record)
    last = FakeWorkers(MAZE)
    assert last.run(maze_policy, *grid, record=record) == whole
    assert len(last.ran) == 20 - 10
    # all of it is there by now, also for a smaller grid; more episodes run only those missing
    assert last.run(maze_policy, *grid, record=record) == whole
    assert last.ran == []
    assert last.run(maze_policy, (4,), (2,), 5, 11, record=record)["rows"] == whole["rows"][-1:]
    assert last.ran == []
    more = last.run(maze_policy, (4,), (2, 4), 6, 11, record=record)
    assert [r["episodes"] for r in more["rows"]] == [6, 6]
    assert last.ran == [(4, 2, 11, 5, "argmax"), *((4, 4, 11, e, "argmax") for e in range(6))]
    last.run(maze_policy, *grid, record=record, fresh=True)
    assert len(last.ran) == 20


def test_another_policy_or_way_of_acting_runs_anew(maze_policy, tmp_path, monkeypatch):
    grid = (maze_policy, (1,), (1,), 2, 0)
    first = FakeWorkers(MAZE, backend="numpy")
    result = first.run(*grid, record=tmp_path / "record")
    assert result["policy"] == digest(load(maze_policy))
    assert (result["backend"], result["isa"]) == ("numpy", "")
    monkeypatch.setattr(module, "package_versions", lambda _: {"mujoco": "0.0"})
    first.run(*grid, record=tmp_path / "record")
    assert len(first.ran) == 2  # another version of the simulator
    first.run(*grid, record=tmp_path / "record")
    assert first.ran == []
    other = FakeWorkers(MAZE, "pre", backend="numpy")
    other.run(*grid, record=tmp_path / "record")
    assert len(other.ran) == 2
    save(maze_policy, make_policy(MAZE, 2, 2, m_disc=8))  # trained on
    first.run(*grid, record=tmp_path / "record")
    assert len(first.ran) == 2


def test_the_instruction_set_is_stated_and_sets_episodes_apart(maze_policy, tmp_path, monkeypatch):
    native = pytest.importorskip("sorl_fast._native")
    evaluator = FakeWorkers(MAZE, backend="native")
    for isa in native.isas("fp32"):
        monkeypatch.setenv("SORL_CPU_ISA", isa)
        result = evaluator.run(maze_policy, (1,), (1,), 2, 0, record=tmp_path / "record")
        assert (result["backend"], result["isa"]) == ("native", isa)
        assert len(evaluator.ran) == 2


def test_arguments_in_the_wrong_order_are_named(maze_policy):
    with pytest.raises(BadInput, match=r"config is a PosixPath.*evaluate\(policy_path, config\)"):
        evaluate(EvalConfig(), maze_policy)
    with pytest.raises(BadInput, match=r"path is a Policy, but must be the path"):
        evaluate(load(maze_policy), EvalConfig())


def without_speed(result: dict) -> dict:
    rows = [{k: v for k, v in r.items() if k != "actions_per_second"} for r in result["rows"]]
    return result | {"rows": rows}


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_workers(cube_policy):
    grid = (cube_policy, (1, 4), (1, 3), 2, 21)
    ticks = []
    with Evaluator(CUBE, workers=2) as two:
        first = two.run(*grid, progress=lambda done, total: ticks.append((done, total)))
        again = two.run(*grid)
    config = EvalConfig(steps=(1, 4), candidates=(1, 3), episodes=2, seed=21, workers=1)
    one = evaluate(cube_policy, config)
    assert without_speed(first) == without_speed(again) == without_speed(one)
    assert json.loads(json.dumps(one)) == one
    assert ticks[0] == (0, 8)
    assert ticks[-1] == (8, 8)
    assert [(r["steps"], r["candidates"]) for r in one["rows"]] == [(1, 1), (1, 3), (4, 1), (4, 3)]
    assert one["env"] == CUBE
    assert one["success_timing"] == "post"
    assert {"sorl_fast", "numpy", "ogbench", "mujoco"} <= set(one["versions"])
    for row in one["rows"]:
        assert set(row) == {
            *("steps", "candidates", "episodes", "successes", "success", "ci_low", "ci_high"),
            *("episode_length", "actions_per_second", "returns", "outcomes"),
        }
        assert row["success"] == row["successes"] / 2
        assert row["episode_length"] <= 200
        assert row["actions_per_second"] > 0
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_an_evaluator_that_nobody_closes_lets_the_program_end(maze_policy):
    code = (
        "import sys\nfrom sorl_fast.simulate.evaluate import Evaluator\n"
        "if __name__ == '__main__':\n"
        f"    evaluator = Evaluator({MAZE!r}, workers=1)\n"
        "    evaluator.run(sys.argv[1], (1,), (1,), 1, 0)\n"
        "    print('ran')\n"
    )
    script = maze_policy.with_name("script.py")
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(maze_policy)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran\n"


@pytest.mark.slow
def test_a_policy_of_another_size_is_refused(maze_policy):
    with Evaluator(CUBE) as evaluator, pytest.raises(BadInput) as err:
        evaluator.run(maze_policy, (1,), (1,), 1, 0)
    assert "2 observations to 2 actions" in str(err.value)
    assert "[28] and 5 actions" in str(err.value)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_another_policy_is_checked_as_the_first_was(maze_policy, cube_policy):
    with Evaluator(MAZE, workers=1) as evaluator:
        evaluator.check(load(maze_policy))
        (worker,) = multiprocessing.active_children()
        evaluator.run(maze_policy, (1,), (1,), 1, 0)
        assert multiprocessing.active_children() == [worker]  # the one that was asked goes on
        with pytest.raises(BadInput, match="28 observations to 5 actions"):
            evaluator.run(cube_policy, (1,), (1,), 1, 0)
        with pytest.raises(BadInput, match="28 observations to 5 actions"):
            evaluator.check(load(cube_policy))
        assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_an_environment_that_ogbench_lacks_is_named(maze_policy):
    name = "cube-nonuple-play-singletask-v0"
    with (
        Evaluator(name) as evaluator,
        pytest.raises(BadInput, match=f"no environment for '{name}'"),
    ):
        evaluator.run(maze_policy, (1,), (1,), 1, 0)


@pytest.mark.slow
def test_a_simulator_that_cannot_be_imported_is_named(maze_policy, tmp_path, monkeypatch):
    (tmp_path / "ogbench.py").write_text("raise ImportError('libGL.so.1 is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with Evaluator(MAZE) as evaluator, pytest.raises(BadInput, match=r"libGL.*pip install"):
        evaluator.run(maze_policy, (1,), (1,), 1, 0)


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_the_next_run_works(maze_policy):
    def kill(done: int, total: int) -> None:
        if done >= 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    with Evaluator(MAZE, workers=2) as evaluator:
        with pytest.raises(BadInput, match=r"killed by SIGKILL.*fewer --workers"):
            evaluator.run(maze_policy, (1,), (1,), 8, 0, progress=kill)
        assert multiprocessing.active_children() == []
        result = evaluator.run(maze_policy, (1,), (1,), 2, 0)
        for child in multiprocessing.active_children():  # between two evaluations
            child.kill()
            child.join()
        assert without_speed(evaluator.run(maze_policy, (1,), (1,), 2, 0)) == without_speed(result)


@pytest.mark.slow
def test_what_progress_raises_ends_the_evaluation(maze_policy):
    class EnoughError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done:
            raise EnoughError

    with Evaluator(MAZE) as evaluator, pytest.raises(EnoughError):
        evaluator.run(maze_policy, (1, 2, 4), (1,), 50, 0, progress=stop)
    assert multiprocessing.active_children() == []


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # a zombie waits for an absent reaper only


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sig", "whole_group"),
    [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGKILL, False)],
    ids=["ctrl-c", "terminate", "kill"],
)
def test_no_worker_outlives_the_parent(maze_policy, tmp_path, sig, whole_group):
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, signal, sys
        from sorl_fast.simulate.evaluate import Evaluator

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        told = []

        def tell(done, total):
            if done and not told:  # two may be done at once
                told.append(True)
                print(*(c.pid for c in multiprocessing.active_children()), flush=True)

        if __name__ == "__main__":
            with Evaluator({MAZE!r}) as evaluator:
                evaluator.run({str(maze_policy)!r}, (1, 2, 4), (1,), 1000, 0, progress=tell)
        """)
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        (os.killpg if whole_group else os.kill)(parent.pid, sig)
        _, stderr = parent.communicate(timeout=60)
        assert parent.returncode == -sig
        if sig == signal.SIGINT:
            assert stderr.count("Traceback") == 1, stderr  # the parent's own
        assert "Process SpawnProcess" not in stderr
        deadline = time.monotonic() + 60
        while any(is_running(pid) for pid in workers):
            assert time.monotonic() < deadline, "a worker is still there"
            time.sleep(0.1)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        parent.stderr.close()


@pytest.mark.slow
def test_a_killed_eval_command_goes_on_where_it_stopped(maze_policy, tmp_path):
    """Killed, terminated and interrupted in turn, it ends with what an undisturbed one gives."""
    # a job in the background ignores Ctrl-C, and so would this one
    code = (
        "import signal, sys\nfrom sorl_fast.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\nsys.exit(main())\n"
    )
    file, record = tmp_path / "result.json", tmp_path / "result.episodes.jsonl"
    argv = ["eval", str(maze_policy), "--json", str(file), "--steps", "1", "4", "--candidates", "1"]
    argv = [sys.executable, "-c", code, *argv, "--episodes", "10"]

    def lines() -> int:
        return record.read_bytes().count(b"\n") if record.exists() else 0

    for sig, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75), (signal.SIGINT, 75)):
        before = lines()
        child = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while lines() <= before:
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            child.send_signal(sig)
            _, stderr = child.communicate(timeout=60)
        finally:
            child.kill()
            child.communicate()
        assert child.returncode == code, stderr
        assert "Traceback" not in stderr
        if sig != signal.SIGKILL:
            assert f"finished episodes are kept in {record}" in stderr
        assert before < lines() < 20
        assert not file.exists()
    subprocess.run(argv, check=True, capture_output=True)
    assert lines() == 20  # none was run twice
    with Evaluator(MAZE) as evaluator:
        whole = evaluator.run(maze_policy, (1, 4), (1,), 10, 0)
    found = json.loads(file.read_text())
    assert without_speed({k: found[k] for k in whole}) == without_speed(whole)
