"""The pool: every task once, errors and deaths told, nothing outlives its block."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_workers import Toy

from sorl_fast.errors import BadInput
from sorl_fast.simulate.workers import Pool, WorkerDied, WorkerFailed, worker_environment


@pytest.fixture
def pool():
    with Pool(Toy, "toy", workers=2) as made:
        yield made
    assert multiprocessing.active_children() == []


def run(pool, tasks, shared=None):
    return [finished for finished in pool.run(tasks, shared) if finished is not None]


def test_nothing_to_do_starts_no_process(pool):
    assert list(pool.run([])) == [None]
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_every_task_is_done_once_by_processes_that_stay(pool):
    tasks = list(range(11))
    assert sorted(run(pool, tasks)) == [(n, n * n) for n in tasks]
    children = set(multiprocessing.active_children())
    assert len(children) == 2
    assert sorted(run(pool, tasks)) == [(n, n * n) for n in tasks]
    assert set(multiprocessing.active_children()) == children


@pytest.mark.slow
def test_no_more_processes_than_tasks_and_each_is_prepared_once_a_run(pool):
    pool.prepare("a policy")
    ((_, (pid, *rest)),) = run(pool, ["who"], "another")
    assert rest == ["toy", ["a policy", "another"], "1"]
    assert [child.pid for child in multiprocessing.active_children()] == [pid]


@pytest.mark.slow
def test_the_owner_is_told_while_it_waits(pool):
    assert list(pool.run(["wait"])).count(None) >= 2


@pytest.mark.slow
def test_what_a_worker_raises_is_raised(pool):
    with pytest.raises(BadInput, match=r"^a value, a bound, a remedy$"):
        run(pool, ["refuse"])
    with pytest.raises(BadInput, match="nothing to be had"):
        pool.prepare("refuse")
    with pytest.raises(BadInput, match="nothing to be had"):
        run(pool, [1], "refuse")
    with pytest.raises(WorkerFailed, match=r"(?s)Traceback.*ValueError: no such number"):
        run(pool, ["fail"])
    pool.close()
    assert run(pool, [3]) == [(3, 9)]  # another process, for the same pool


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "how"), [("die", "was killed by SIGKILL"), ("exit", "ended with code 3")]
)
def test_a_death_is_told_with_its_cause_and_task(pool, task, how):
    with pytest.raises(WorkerDied) as err:
        run(pool, [task])
    assert (err.value.how, err.value.task) == (how, task)
    assert run(pool, [3]) == [(3, 9)]  # the dead one is replaced


@pytest.mark.slow
def test_a_process_that_dies_idle_is_replaced(pool):
    run(pool, [1, 2, 3])
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    assert sorted(run(pool, [1, 2])) == [(1, 1), (2, 4)]


@pytest.mark.slow
def test_signals_are_the_parents(pool):
    assert run(pool, ["hear"]) == [("hear", "alive")]
    assert (
        signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    )  # the parent's own are as they were
    assert "OMP_PROC_BIND" not in os.environ or os.environ["OMP_PROC_BIND"] != "false"


@pytest.mark.slow
def test_no_worker_outlives_a_killed_parent(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
        "from sorl_fast.simulate.workers import Pool\n"
        "from toy_workers import Toy\n"
        "if __name__ == '__main__':\n"
        "    with Pool(Toy, 'toy', workers=1) as pool:\n"
        "        for finished in pool.run(['who', 'hang']):\n"
        "            if finished:\n"
        "                print(finished[1][0], flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while is_running(worker):
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_importing_a_simulator_starts_no_process():
    """One would outlive a worker that is killed meanwhile, and say so on the user's terminal."""
    with worker_environment():
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS_A_SIMULATOR], capture_output=True, text=True, timeout=120
        )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


IMPORTS_A_SIMULATOR = """
import sys
started = []
sys.addaudithook(lambda event, args: started.append(args[1]) if event == "subprocess.Popen" else None)
import gymnasium.envs.mujoco.mujoco_rendering
import ogbench
print(started)
"""
