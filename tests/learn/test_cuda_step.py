"""One whole update as a GPU would be given it, without a GPU.

A tensor of the meta device has a shape and no numbers, so whatever would wait for a GPU's numbers
raises; `ops` is told to take it for a GPU's. (Fake tensors of a CUDA device would do as well, but where
torch is built without CUDA its autograd refuses them.)
"""

import numpy as np
import pytest
import torch
from conftest import own_arrays, some_fast
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sorl_fast import ops
from sorl_fast.data.dataset import TransitionData
from sorl_fast.learn.algorithms.sorl import Sorl, SorlConfig, Steps
from sorl_fast.learn.capture import CapturedUpdates
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.train import CHECK_EVERY
from sorl_fast.ops import packed, table

TOLERANCE = 1e-5  # relative: a few updates through kernels in float32 against plain PyTorch


class Watch(TorchDispatchMode):
    """Notes every operation, and those in which numbers pass between host and device."""

    def __init__(self):
        super().__init__()
        self.seen, self.crossings = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if torch.is_tensor(x)]
        devices = {x.device.type for x in tensors}
        self.seen.append(str(func))
        if len(devices) > 1:
            self.crossings.append(str(func))
        return out


class RunOnly:
    """A recorder that can't record: every update runs as it is written."""

    def run(self, function):
        return function()

    def record(self, function):
        return function


@pytest.fixture(params=["reference", "chain", "kernels"])
def way(request, monkeypatch):
    """Take meta tensors for a GPU's, in each way that a GPU may compute."""
    monkeypatch.delenv("SORL_OPS", raising=False)
    monkeypatch.setattr(ops, "_on_gpu", lambda device: device.type == "meta")
    if request.param == "chain":
        monkeypatch.setitem(ops._precision, "cuda", "bf16")
    if request.param == "kernels":
        module = ops._load_triton()
        monkeypatch.setattr(ops, "_triton", lambda device: module)
        monkeypatch.setattr(packed, "_place", lambda params: None)  # all meta tensors lie at 0

        def choice(operation, *_, **__):
            # noise has no operation of torch's: its kernels want memory
            return "reference" if operation in ("normals", "words") else "fused"

        monkeypatch.setattr(table, "choice", choice)
    return request.param


def updates_of(device, **changes):
    """Return captured updates with everything on the device, and the learner."""
    config = SorlConfig(q_coef=1.0, hidden=64, depth=2, batch_size=6, m_disc=4, m_btt=2, **changes)
    arrays = own_arrays()
    arrays["next_observations"] = arrays["observations"]
    data = TransitionData(arrays, "mine", device)
    host = torch.Generator().manual_seed(0)
    learner = Learner(Sorl(config), data.obs_dim, data.act_dim, host, device)
    return CapturedUpdates(learner, data, 0, host, CHECK_EVERY, RunOnly()), learner


@pytest.mark.slow
@pytest.mark.parametrize("q_agg", some_fast(["mean", "min"], "min"))
def test_no_operation_of_an_update_asks_for_data_on_the_host(way, q_agg):
    updates, _ = updates_of("meta", q_agg=q_agg)
    for pair in [(1, 1), (2, 1), (1, 2)]:
        with Watch() as watch:
            updates._update(Steps(*pair))
        assert watch.crossings == []
        assert len(watch.seen) > 50
        kernels = {name for name in watch.seen if "triton" in name}
        assert len(kernels) == (6 if way == "kernels" else 0), kernels


def test_a_read_on_the_host_would_be_found_out(way, monkeypatch):
    plain = Learner.update

    def reads(self, batch, noise, choice):
        metrics = plain(self, batch, noise, choice)
        return metrics if float(metrics[0]) > 0 else -metrics

    monkeypatch.setattr(Learner, "update", reads)
    updates, _ = updates_of("meta")
    with pytest.raises(RuntimeError, match="meta tensors"):
        updates._update(Steps(1, 1))


def test_numbers_from_the_host_would_be_found_out():
    with Watch() as watch:
        torch.ones(3).to("meta")
        torch.empty(3, device="meta").copy_(torch.ones(3))
    assert len(watch.crossings) == 2


@pytest.mark.slow
def test_updates_through_kernels_equal_plain_ones(monkeypatch):
    """The whole of it, noise and optimiser included, interpreted."""
    results = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("SORL_OPS", backend)
        updates, learner = updates_of("cpu", q_agg="min")
        for _ in range(3):
            updates.make()
        metrics = dict(enumerate(updates.look().T))
        results.append(metrics | {name: x.numpy() for name, x in learner.state().items()})
    plain, kernels = results
    for name, x in plain.items():
        bound = TOLERANCE * max(1e-3, np.abs(x).max())
        np.testing.assert_allclose(kernels[name], x, rtol=0, atol=bound, err_msg=str(name))
