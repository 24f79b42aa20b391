"""Slots, the local engine, the table; and whole sweeps as processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import agent, assert_same_run, config

from sorl_fast import cli
from sorl_fast.learn.algorithms.bc import BcConfig
from sorl_fast.learn.train import train
from sorl_fast.sweep import job as job_module
from sorl_fast.sweep import local
from sorl_fast.sweep.command import _alone
from sorl_fast.sweep.job import Outcome, last_words, run_job
from sorl_fast.sweep.local import Event, LocalEngine, Slot, slots_of
from sorl_fast.sweep.plan import Job
from sorl_fast.sweep.settings import SweepConfig
from sorl_fast.sweep.table import Table


def sweep(**changes):
    base = {"methods": ("bc",), "envs": ("mine",), "data": "d.npz", "out": "o"}
    return SweepConfig(**(base | changes))


@pytest.mark.parametrize(
    ("changes", "jobs", "gpus", "cores", "expected"),
    [
        ({}, 100, (), 4, [(1, {i}, None) for i in range(4)]),
        ({}, 2, (), 4, [(2, {0, 1}, None), (2, {2, 3}, None)]),
        ({}, 1, (), 32, [(8, set(range(8)), None)]),
        ({"threads": 3}, 9, (), 7, [(3, {0, 1, 2}, None), (3, {3, 4, 5}, None)]),
        ({"jobs": 1}, 9, (), 2, [(2, {0, 1}, None)]),
        (
            {"jobs": 3, "threads": 2},
            9,
            (),
            4,
            [(2, None, None)] * 3,
        ),  # more than there is: unpinned
        ({"threads": 8}, 9, (), 4, [(8, None, None)]),
        ({}, 9, ("0", "1"), 8, [(4, {0, 1, 2, 3}, "0"), (4, {4, 5, 6, 7}, "1")]),
        ({"jobs_per_gpu": 2}, 9, ("3",), 2, [(1, {0}, "3"), (1, {1}, "3")]),
    ],
)
def test_slots(changes, jobs, gpus, cores, expected):
    found = slots_of(sweep(**changes), jobs, gpus, range(cores))
    assert [(s.cores, None if s.pinned is None else {*s.pinned}, s.gpu) for s in found] == expected


def a_job(folder, name="mine/bc/seed0", **train_changes):
    values = {"env": "mine", "data": "d.npz", "out": str(folder), "eval_every": 0} | train_changes
    return Job(name, "bc", "mine", str(folder), values, {}, ())


def jobs_of(tmp_path, n):
    return [a_job(tmp_path / str(i), f"mine/bc/seed{i}") for i in range(n)]


def test_the_engine_does_every_job_once_and_goes_on_after_a_failure(tmp_path, monkeypatch):
    seen = []

    def fake(job, **settings):
        seen.append((job.name, settings["cores"], settings["env"]))
        if job.name.endswith("1"):
            raise RuntimeError("a fault of ours")
        return Outcome(job.name, 3 if job.name.endswith("2") else 0)

    monkeypatch.setattr(local, "run_job", fake)
    jobs = jobs_of(tmp_path, 5)
    with LocalEngine([Slot(1, None, None), Slot(1, None, "7")]) as engine:
        assert engine.room == "2 at a time, 1 core each, on GPU 7"
        events = [event for event in engine.run(jobs, 5.0) if event is not None]
    assert sorted(name for name, *_ in seen) == [job.name for job in jobs]
    ended = {event.name: event.outcome for event in events if event.outcome is not None}
    assert {name[-1]: outcome.code for name, outcome in ended.items()} == {
        **dict.fromkeys("034", 0), "1": 1, "2": 3
    }  # fmt: skip
    assert "a fault of ours" in ended["mine/bc/seed1"].why
    assert sum(event.outcome is None for event in events) == 5


def test_a_killed_engine_waits_for_its_children_to_be_gone(tmp_path, monkeypatch):
    ended = []

    def fake(job, *, kill, **_):
        while not kill():
            time.sleep(0.01)
        ended.append(job.name)
        return Outcome(job.name, -9)

    monkeypatch.setattr(local, "run_job", fake)
    with LocalEngine([Slot(1, None, None)]) as engine:
        for event in engine.run(jobs_of(tmp_path, 3), 5.0):
            if event == Event("mine/bc/seed0", None):
                engine.kill()
                assert ended == ["mine/bc/seed0"]
    assert ended == ["mine/bc/seed0"]


def test_a_stopped_engine_begins_no_other_job(tmp_path, monkeypatch):
    def fake(job, *, stop, **_):
        while not stop():
            time.sleep(0.01)
        return Outcome(job.name, 75, stopped=True)

    monkeypatch.setattr(local, "run_job", fake)
    found = []
    with LocalEngine([Slot(1, None, None)]) as engine:
        for event in engine.run(jobs_of(tmp_path, 3), 5.0):
            found.append(event)
            if event == Event("mine/bc/seed0", None):
                engine.stop()
    assert [event.outcome.stopped for event in found if event and event.outcome] == [True]


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Let a job's one command be a script; what it writes is the job's log."""
    monkeypatch.setattr(job_module, "steps_left", lambda job: [0] if not done else [])
    done = []

    def become(text):
        real = subprocess.Popen

        def popen(command, **settings):
            assert command[1:4] == ["-m", "sorl_fast.sweep.child", str(os.getpid())]
            return real([sys.executable, "-c", text], **settings)

        monkeypatch.setattr(job_module.subprocess, "Popen", popen)
        return done

    return become


@pytest.mark.parametrize(
    ("text", "code", "stopped", "why"),
    [
        ("raise SystemExit(3)", 3, False, "diverged"),
        ("raise SystemExit(2)", 2, False, "bad input"),
        ("raise SystemExit(9)", 9, False, "exit code 9"),
        ("raise SystemExit(75)", 75, True, ""),
        ("import os; os.kill(os.getpid(), 9)", -9, False, "killed by SIGKILL: memory"),
        ("pass", 1, False, "its training ended well, but left nothing complete"),
    ],
)
def test_how_a_command_ends_is_how_its_job_does(tmp_path, child, text, code, stopped, why):
    child(f"print('last words', flush=True)\n{text}")
    job = a_job(tmp_path / "run")
    outcome = run_job(job, cores=2, stop=lambda: False)
    assert (outcome.code, outcome.stopped) == (code, stopped)
    assert outcome.why.startswith(why)
    assert last_words(job) == "last words"
    assert job.log.read_text().startswith("$ sorl-fast train --method bc")


def test_a_command_that_is_asked_to_stop_gets_sigterm_once(tmp_path, child):
    child(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    job = a_job(tmp_path / "run")
    outcome = run_job(job, cores=1, stop=lambda: last_words(job) == "ready")
    assert outcome == Outcome(job.name, 75, stopped=True)
    assert last_words(job) == "saved"


def test_a_command_may_be_killed(tmp_path, child):
    child("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)")
    outcome = run_job(a_job(tmp_path / "run"), cores=1, stop=lambda: False, kill=lambda: True)
    assert outcome.code == -signal.SIGKILL


def test_a_command_has_the_cores_and_variables_of_its_slot(tmp_path, child):
    child(
        "import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'],"
        " os.environ['CUDA_VISIBLE_DEVICES'], os.getsid(0) == os.getpid())"
    )
    job, before = a_job(tmp_path / "run"), os.sched_getaffinity(0)
    core = min(before)
    try:
        run_job(job, cores=1, stop=lambda: False, env={"CUDA_VISIBLE_DEVICES": "4"}, pinned={core})
    finally:
        os.sched_setaffinity(0, before)
    assert last_words(job) == f"[{core}] 1 4 True"


def test_the_table():
    now = [0.0]
    jobs = [
        Job(f"{env}/{m}/seed{s}", m, env, "/f", {}, {}, ())
        for env in ("mine", "yours")
        for m in ("sorl", "bc")
        for s in range(2)
    ]
    table = Table(jobs, ["mine/sorl/seed0"], shown=False, clock=lambda: now[0])
    table.begin("mine/sorl/seed1")
    table.begin("mine/bc/seed0")
    now[0] = 600.0
    table.end(Outcome("mine/sorl/seed1", 0))
    table.end(Outcome("mine/bc/seed0", 3, why="diverged"))
    table.begin("mine/bc/seed1")
    assert table.text().splitlines() == [
        "8 runs: 2 done, 1 running, 4 waiting, 1 failed; 10 min so far, about 45 min left",
        "       sorl                        bc",
        "mine    2/2  0/2, 1 running, 1 failed",
        "yours   0/2                       0/2",
    ]


# ---- whole sweeps


def command(own_file, out, *words):
    base = [sys.executable, "-m", "sorl_fast.cli", "sweep", "--envs", "mine", "--data", own_file]
    base += ["--out", out, "--hidden", 8, "--depth", 1, "--log-every", 10, *words]
    return [*map(str, base)]


def sweep_process(*args):
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_a_sweep_is_stopped_goes_on_and_equals_trainings_by_hand(own_file, tmp_path):
    """SIGTERM once a checkpoint is there: everything saves, and the same command ends the work."""
    words = ["--methods", "bc", "--seeds", "0-1", "--steps", 2000, "--checkpoint-every", 50]
    out = tmp_path / "s"
    with subprocess.Popen(
        command(own_file, out, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        # (a glob of ** would look into folders of a moment, and fail where one is gone by then)
        while not list(out.glob("mine/bc/seed*/checkpoints/0*")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 75, said
    assert "stopped; all is saved" in said
    done = sweep_process(own_file, out, *words)
    assert done.returncode == 0, done.stderr
    assert "2 runs are done" in done.stdout
    for seed in range(2):
        changes = {"steps": 2000, "checkpoint_every": 50, "seed": seed, "val_every": 5000}
        by_hand = config(own_file, tmp_path / f"hand{seed}", **changes)
        train(BcConfig(hidden=8, depth=1), by_hand, progress=False)
        assert_same_run(tmp_path / f"hand{seed}", out / "mine" / "bc" / f"seed{seed}")


def test_one_sweep_at_a_time_in_a_folder(own_file, tmp_path, capsys):
    argv = command(own_file, tmp_path / "s", "--methods", "bc")[3:]
    with _alone(tmp_path / "s"):
        assert cli.main(argv) == 2
    assert "another sweep is running in" in capsys.readouterr().err
    assert not (tmp_path / "s" / "mine").exists()


@pytest.mark.slow
def test_a_run_that_diverges_fails_and_the_others_go_on(own_file, tmp_path, capsys):
    out = tmp_path / "s"
    words = ["--methods", "bc:lr=1e30", "bc", "--steps", 30]
    done = sweep_process(own_file, out, *words)
    assert done.returncode == 1, done.stderr
    assert "mine/bc-lr=1e30/seed0 failed (diverged):" in done.stdout
    assert f"log: {out}/mine/bc-lr=1e30/seed0.log" in done.stdout
    assert "1 of 2 runs failed; the same command tries them again" in done.stdout
    assert (out / "mine" / "bc" / "seed0" / "policy.safetensors").is_file()
    argv = command(own_file, out, "--methods", "bc", "--steps", 30)[3:]
    assert cli.main(argv) == 0  # nothing left of that one: no child is started
    assert "1 run is done" in capsys.readouterr().out
    assert cli.main([*argv, "--lr", "0.1"]) == 2
    assert "lr was 0.0003 in" in capsys.readouterr().err
    assert cli.main([*argv, "--steps", "20"]) == 2
    assert "has made 30 updates, but --steps is 20" in capsys.readouterr().err


@pytest.mark.slow
def test_a_child_of_a_sweep_that_is_killed_saves_and_ends(own_file, tmp_path):
    run = tmp_path / "run"
    words = ["train", "--method", "bc", "--env", "mine", "--data", own_file, "--out", run]
    words += [
        "--hidden",
        8,
        "--depth",
        1,
        "--steps",
        1_000_000,
        "--checkpoint-every",
        100,
        "--threads",
        1,
    ]
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'sorl_fast.sweep.child', str(os.getpid()),"
        " *sys.argv[1:]])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    child = int(parent.stdout.readline())
    while not list(run.glob("checkpoints/0*")):
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_agents_of_these_tests_are_the_runs(own_file, tmp_path):
    """A sweep's run is a run: an older one that stands where a cell does is gone on with."""
    from sorl_fast.sweep.plan import check_kept
    from sorl_fast.sweep.state import is_trained, steps_left, updates_made

    run = tmp_path / "mine" / "sorl" / "seed0"
    train(agent(), config(own_file, run, steps=20, checkpoint_every=10), progress=False)
    values = {"env": "mine", "data": str(own_file), "out": str(run), "eval_every": 0}
    fields = {"q_coef": 1.0, "hidden": 8, "depth": 2, "batch_size": 16}
    for steps, left in ((20, []), (21, [0])):
        job = Job(
            "mine/sorl/seed0", "sorl", "mine", str(run), values | {"steps": steps}, fields, ()
        )
        check_kept(job)
        assert (updates_made(job), is_trained(job), steps_left(job)) == (20, not left, left)
