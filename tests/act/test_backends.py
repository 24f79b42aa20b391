"""Which backend acts, what it wants, and what a robot imports."""

import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from acting import POLICY, observations
from tolerances import FLOAT32

from sorl_fast import BadInput, Sampler
from sorl_fast.act import policy_file

NAN, INF = float("nan"), float("inf")


def test_load(tmp_path):
    policy_file.save(tmp_path / "p.safetensors", POLICY)
    sampler = Sampler.load(tmp_path / "p.safetensors", backend="torch", precision="fp32", threads=2)
    assert sampler.backend == "torch"
    np.testing.assert_allclose(
        sampler.act(np.zeros(3), 4, 2, seed=0),
        Sampler(POLICY).act(np.zeros(3), 4, 2, seed=0),
        rtol=0,
        atol=FLOAT32,
    )


@pytest.mark.parametrize(
    ("argument", "variable", "chosen"),
    [
        *((None, None, "native"), (None, "", "native"), (None, "torch", "torch")),
        *(("numpy", "torch", "numpy"), ("torch", None, "torch")),
    ],
)
def test_backend_is_the_argument_or_the_variable_or_native(argument, variable, chosen, monkeypatch):
    if variable is not None:
        monkeypatch.setenv("SORL_BACKEND", variable)
    assert Sampler(POLICY, backend=argument).backend == chosen


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("jax", "the environment variable SORL_BACKEND is 'jax', but must be one of numpy, native"),
        ("triton", "backend is 'triton', but torch finds no GPU on this machine: choose backend"),
    ],
)
def test_the_variable_raises_if_what_it_names_is_not_there(variable, message, monkeypatch):
    monkeypatch.setattr("sorl_fast.ops.triton.INTERPRETED", False)
    monkeypatch.setenv("SORL_BACKEND", variable)
    with pytest.raises(BadInput, match=re.escape(message)):
        Sampler(POLICY)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backend": "cuda"}, "backend is 'cuda', but must be one of numpy, native, torch, triton"),
        (
            {"precision": "fp64"},
            "precision is 'fp64', but must be one of fp32, bf16, int8, tf32, fp16",
        ),
        (
            {"backend": "native", "precision": "fp16"},
            "precision is 'fp16', but the native backend has fp32, bf16, int8 only",
        ),
        (
            {"backend": "numpy", "precision": "bf16"},
            "precision is 'bf16', but the numpy backend has fp32 only",
        ),
        ({"threads": 0}, "threads is 0, but must be an integer from 1"),
        ({"threads": 1.0}, "threads is 1.0"),
    ],
    ids=str,
)
def test_wrong_backend_precision_or_threads(kwargs, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        Sampler(POLICY, **kwargs)


def test_without_the_native_module_numpy_acts_and_native_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "sorl_fast._native", None)
    assert Sampler(POLICY).backend == "numpy"
    with pytest.raises(BadInput, match="no working native module"):
        Sampler(POLICY, backend="native")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_backend_without_torch_says_how_to_get_it(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        BadInput,
        match=rf"'{backend}', but torch is not installed: run `pip install sorl-fast\[train\]`",
    ):
        Sampler(POLICY, backend=backend)


def test_samplers_share_a_policy_between_threads():
    obs = observations(20)
    expected = [Sampler(POLICY).act(o, 4, 3, seed=i) for i, o in enumerate(obs)]
    wrong = []

    def act():
        sampler = Sampler(POLICY)
        for i, o in enumerate(obs):
            if (sampler.act(o, 4, 3, seed=i) != expected[i]).any():
                wrong.append(i)

    threads = [threading.Thread(target=act) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- a robot's import

ROBOT = """
import sys
before = set(sys.modules)
import sorl_fast.act.sampler
from sorl_fast import Policy, Sampler
policy = sorl_fast.act.sampler.policy_file.load(sys.argv[1])
Sampler(policy).act([0.0] * 3, steps=8, candidates=4, return_info=True)
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(names - sys.stdlib_module_names))
"""


def test_acting_imports_numpy_and_safetensors_only(tmp_path):
    policy_file.save(tmp_path / "p.safetensors", POLICY)
    out = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", ROBOT, str(tmp_path / "p.safetensors")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    assert set(out.stdout.split()) <= {"numpy", "safetensors", "sorl_fast"}, out.stdout
