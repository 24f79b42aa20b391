"""Small data and runs that several tests share."""

import os
from pathlib import Path

import numpy as np
import pytest

# read when a kernel is defined: the kernels' tests run on the CPU, in Triton's interpreter
os.environ.setdefault("TRITON_INTERPRET", "1")
# read when torch is imported: tests run on every core already, and a thread of OpenMP that spins while it
# waits takes the core from the one that it waits for
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser):
    parser.addoption(
        "--ends",
        action="store_true",
        help="of each test's parameters only the first and the last: make check",
    )


@pytest.hookimpl(trylast=True)  # after -m has taken the slow ones out
def pytest_collection_modifyitems(config, items):
    if not config.getoption("ends"):
        return
    ends = {}
    for item in items:
        ends.setdefault(item.nodeid.partition("[")[0], [item, item])[1] = item
    kept = {item for pair in ends.values() for item in pair}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def some_fast(values, *fast):
    """Return the values as parameters, all slow but those in `fast`: more of the same for `make test`."""
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]


def own_arrays(T=300, O=4, A=2, seed=0):
    """Transitions of a user's own, episodes of 50 rows."""
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(size=(T, O)).astype(np.float32),
        "actions": np.tanh(rng.normal(size=(T, A))).astype(np.float32),
        "rewards": -np.ones(T, np.float32),
        "masks": np.ones(T, np.float32),
        "terminals": np.arange(T) % 50 == 49,
    }


@pytest.fixture
def own_file(tmp_path) -> Path:
    """An npz of own transitions with a validation file beside it."""
    np.savez(tmp_path / "mine.npz", **own_arrays())
    np.savez(tmp_path / "mine-val.npz", **own_arrays(T=100, seed=1))
    return tmp_path / "mine.npz"
