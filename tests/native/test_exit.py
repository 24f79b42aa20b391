"""A process ends as it should while daemon threads are inside the native module."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")

ROOT = Path(__file__).parents[2]

ACTING = """
from native.twin import make_policy
from sorl_fast import Sampler
from sorl_fast.act.backends.native import make_model
policy = make_policy(H=32)
obs, out = np.zeros((8, 28), "f4"), np.zeros((8, 5), "f4")
make = lambda: Sampler(policy, backend="native", threads={threads})
one, two, three = make(), make(), make()
"""
TRAINING = """
isa = _native.train_isas("fp32")[-1]
net = _native.TrainNet(
    obs=4, act=2, extra=2, hidden=32, depth=2, out=2, members=1, norm=False, precision="fp32", isa=isa
)
_native.set_train_threads({threads})
shapes = [(8, 32), (32,), (32, 32), (32,), (32, 2), (2,)]
lists = [[np.zeros(s, "f4") for s in shapes] for _ in range(5)]
params, grads, first, second, targets = ([x.ctypes.data for x in part] for part in lists)
x, z, out = (np.zeros((64, n), "f4") for n in (4, 2, 2))
saved = np.zeros(net.saved_bytes(64, 4), "u1")
at = [a.ctypes.data for a in (x, z, out, saved)]
sizes = [int(np.prod(s)) for s in shapes]
rest = first, second, targets, sizes, 1, 1e-3, 0.9, 0.999, 1e-8, 1.0, 5e-3, False
net.ready(params, True, True)
net.forward(64, 4, True, at[0], at[1], 0, 0, 0.0, 2.0, at[2], at[3])
program = _native.TrainProgram()
program.forward(net, params, 64, 4, True, at[0], at[1], 0, 0, 0.0, 2.0, at[2], at[3])
program.backward(net, params, 64, 4, True, at[2], at[3], grads, 0, 0)
"""
# One daemon thread repeats each of the calls until the process ends.
SCRIPT = """
import threading, time
import numpy as np
from sorl_fast import _bench, _native
{setup}
def repeat(call):
    while True:
        call()
for call in ({calls}):
    call()
    threading.Thread(target=repeat, args=(call,), daemon=True).start()
time.sleep({wait})
"""
CALLS = {
    "acting": (
        ACTING,
        "lambda: one.act(obs, 4), lambda: two.act_into(obs, out, 4), "
        "lambda: _bench.time(three._session._session, obs, 4, 1, 3)",
    ),
    "making": (ACTING, 'lambda: make_model(_native, policy, "bf16"), make'),
    "measuring": (
        ACTING,
        "lambda: _bench.burn(20), "
        'lambda: _bench.flop_rate("fp32", threads={threads}, seconds=1e-4)',
    ),
    "training": (
        TRAINING,
        "lambda: (net.changed(), net.ready(params, True, True)), "
        "lambda: net.forward(64, 4, True, at[0], at[1], 0, 0, 0.0, 2.0, at[2], at[3]), "
        "lambda: net.backward(64, 4, True, at[2], at[3], grads, 0, 0), "
        "lambda: _native.adam(isa, params, [grads], *rest), "
        "program.run",
    ),
}


def test_nothing_else_lets_go_of_the_interpreter_lock():
    # a destructor that takes the lock back ends the process at exit: csrc/without_gil.hpp
    for source in (ROOT / "csrc").rglob("*.?pp"):
        if source.name != "without_gil.hpp":
            assert not re.search("gil_scoped|PyEval_", source.read_text()), source


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("setup", "calls"), CALLS.values(), ids=CALLS)
def test_a_daemon_thread_does_not_break_the_exit(setup, calls, threads):
    if setup == TRAINING and not _native.train_isas("fp32"):
        pytest.skip("no training operations on this machine")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    for attempt in (0, 1, 3, 7, 13, 19):  # milliseconds: somewhere within each call
        filled = {"setup": setup, "calls": calls, "wait": "0.001 * {attempt}"}
        script = SCRIPT.format(**filled).format(threads=threads, attempt=attempt)
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, ""), attempt
