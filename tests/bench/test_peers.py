"""Every contender computes the definition, at odd shapes, with a normaliser and with q_agg min."""

import dataclasses

import numpy as np
import pytest
import torch
from sorl_fast.bench import harness, peers, shapes
from sorl_fast.bench.peers import OnnxRuntime, OpenVino, SorlFast, Torch
from sorl_fast.bench.shapes import Cell

from sorl_fast.errors import BadInput

CELLS = [Cell(1, 1, 1, 3, 2), Cell(1, 8, 5, 3, 2), Cell(7, 4, 1, 3, 2), Cell(3, 2, 4, 3, 2)]


@pytest.fixture(scope="module")
def policy():
    """A policy that uses everything that a policy may have."""
    return dataclasses.replace(
        shapes.make_policy(3, 2, hidden=32),
        q_agg="min",
        action_low=np.array([-1.0, -0.25]),
        action_high=np.array([0.5, 1.0]),
        obs_mean=np.array([0.5, -1.0, 0.0]),
        obs_std=np.array([2.0, 0.5, 1.0]),
    )


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def error_of(contender, policy, cell):
    obs, noise = shapes.make_inputs(cell)
    running = contender.prepare(cell, policy, obs, noise)
    expected = harness.truth(policy, obs, noise, cell.steps)
    error = harness.check(contender, running, expected)
    # inputs are read at each call, not baked in
    obs += 1
    assert harness.check(contender, running, harness.truth(policy, obs, noise, cell.steps)) >= 0
    return error


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch(policy, cell, precision, torch_threads):
    error = error_of(Torch(precision, 1), policy, cell)
    assert error < (1e-5 if precision == "fp32" else 0.05)


def test_torch_sets_its_threads_before_a_block(policy, torch_threads):
    obs, noise = shapes.make_inputs(CELLS[0])
    one, two = (Torch("fp32", t).prepare(CELLS[0], policy, obs, noise) for t in (1, 2))
    one.settle()
    assert torch.get_num_threads() == 1
    two.settle()
    assert torch.get_num_threads() == 2


@pytest.mark.slow  # compiles C++
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_torch_compile(policy, torch_threads):
    assert error_of(Torch("fp32", 1, compiled=True), policy, CELLS[1]) < 1e-5


@pytest.mark.slow  # imports the compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_torch_compile_takes_any_number_of_cells(policy, torch_threads, monkeypatch):
    compile_with_inductor = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **how: compile_with_inductor(model, backend="eager", **how)
    )
    for B in range(1, 11):  # 8 shapes of one code object are the most that it compiles
        assert error_of(Torch("fp32", 1, compiled=True), policy, Cell(B, 1, 1, 3, 2)) < 1e-5


def test_onnxruntime(policy):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    for cell in CELLS:
        assert error_of(OnnxRuntime(1), policy, cell) < 1e-5


@pytest.mark.slow
def test_openvino(policy):
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    for cell in CELLS:
        assert error_of(OpenVino("fp32", 1), policy, cell) < 1e-5
        assert error_of(OpenVino("bf16", 1), policy, cell) < 0.05


@pytest.mark.parametrize("precision", shapes.PRECISIONS)
def test_sorl_fast(policy, precision):
    pytest.importorskip("sorl_fast._native")
    for cell in CELLS:
        contender = SorlFast(precision, 1, "scalar")
        assert error_of(contender, policy, cell) < (1e-5 if precision == "fp32" else 0.05)
        running = contender.prepare(cell, policy, *shapes.make_inputs(cell))
        assert running.isa == "scalar"
        assert len(running.cpp(3)) == 3


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(BadInput, match=r"openvino needs openvino.*sorl-fast\[peers\].*--peers"):
        peers.make_peers(["torch-eager", "openvino"])


def test_an_unknown_peer_is_named():
    with pytest.raises(BadInput, match="peer is 'jax', but must be one of torch-eager"):
        peers.make_peers(["jax"])


def test_peers_come_at_their_precisions_and_threads(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: name)
    found = [(p.name, p.precision, p.threads) for p in peers.make_peers(peers.PEERS)]
    both = [("fp32", 1), ("fp32", 2), ("bf16", 1), ("bf16", 2)]
    assert found == [
        *(("torch-eager", *way) for way in both),
        *(("torch-compile", *way) for way in both[:2]),
        *(("onnxruntime", *way) for way in both[:2]),
        *(("openvino", *way) for way in both),
    ]
