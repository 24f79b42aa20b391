"""An update on the native backend does what is needed, once."""

from types import SimpleNamespace

import pytest
import torch
from learn.algorithms.test_sorl_update import B, setup

from sorl_fast import ops
from sorl_fast.batch import Batch
from sorl_fast.learn.algorithms.rebrac import Rebrac, RebracConfig
from sorl_fast.learn.learner import Learner

native = pytest.importorskip("sorl_fast.ops.native")

NAMES = {False: "actor", True: "critic"}


@pytest.fixture
def done(monkeypatch):
    """Return a list to which every pass of csrc adds what it did."""
    log = []

    class Counted:
        def __init__(self, **sizes):
            self.real, self.name = real.TrainNet(**sizes), NAMES[sizes["norm"]]

        def changed(self):
            self.real.changed()

        def ready(self, addresses, forward, backward):
            before = self.real.packed
            self.real.ready(addresses, forward, backward)
            if self.real.packed != before:
                passes = zip(before, self.real.packed, strict=True)
                log.append(("pack", self.name, *(x != y for x, y in passes)))

        def forward(self, rows, steps, *rest):
            log.append(("forward", self.name, rows, steps, "kept" if rest[-1] else "not kept"))
            self.real.forward(rows, steps, *rest)

        def backward(self, rows, steps, *rest):
            asked = zip(("weights", "obs", "act"), rest[-3:], strict=True)
            log.append(("backward", self.name, rows, steps, *(x for x, to in asked if to)))
            self.real.backward(rows, steps, *rest)

    real = native._native
    monkeypatch.delenv("SORL_OPS", raising=False)
    monkeypatch.setattr(native, "_native", SimpleNamespace(**vars(real) | {"TrainNet": Counted}))
    as_written = lambda learner, *given: learner.method.update(learner, *given)  # noqa: E731
    monkeypatch.setattr(Learner, "update", as_written)
    ops.forget()
    yield log
    ops.forget()


def test_an_update_does_nothing_twice_and_nothing_for_nobody(done):
    _, learner, batch, source = setup(hidden=32)
    for _ in range(3):  # the first finds out who is differentiated
        done.clear()
        noise, k = source.draw()
        learner.update(batch, noise, k)
    assert done == [
        # the target of TD: nothing is kept for a backward
        ("pack", "actor", True, True),
        ("forward", "actor", B, k.td, "not kept"),
        ("pack", "critic", True, False),  # the target critic
        ("forward", "critic", B, 1, "not kept"),
        # TD; the critic's weights are still those of the last update's Q loss
        ("forward", "critic", B, 1, "kept"),
        ("backward", "critic", B, 1, "weights"),
        # the target of self-consistency: two half steps
        ("pack", "actor", True, False),  # the target actor
        ("forward", "actor", B, 1, "not kept"),
        ("forward", "actor", B, 1, "not kept"),
        # flow matching and self-consistency in one pass
        ("forward", "actor", 2 * B, 1, "kept"),
        ("forward", "actor", B, k.q, "kept"),
        ("pack", "critic", True, True),  # the optimiser has changed it
        ("forward", "critic", B, 1, "kept"),
        ("backward", "actor", 2 * B, 1, "weights"),
        # the Q loss: the critic's weights have no gradient
        ("backward", "critic", B, 1, "act"),
        ("backward", "actor", B, k.q, "weights"),
    ]


def test_targets_that_stay_are_neither_written_nor_packed_again(done):
    method = Rebrac(RebracConfig(hidden=32, depth=2, batch_size=B))
    learner = Learner(method, 5, 3, torch.Generator().manual_seed(0))
    x, a, one = torch.randn(B, 5), torch.randn(B, 3).tanh(), torch.ones(B)
    batch, noise = Batch(x, a, -one, x.flip(0), one, a.flip(0)), {"td_noise": torch.randn(B, 3)}
    for both in (False, True, False, False):  # with an actor loss and EMAs, or without
        done.clear()
        targets = [p for target in learner.targets.values() for p in target.tensors().values()]
        before = [p.clone() for p in targets], [p._version for p in targets]
        learner.update(batch, noise, both)
        moved = [not torch.equal(p, q) for p, q in zip(targets, before[0], strict=True)]
        assert any(moved) == both
        assert ([p._version for p in targets] == before[1]) == (not both)
    assert done == [
        ("forward", "actor", B, 1, "not kept"),  # the targets
        ("forward", "critic", B, 1, "not kept"),
        ("pack", "critic", True, True),  # the optimiser has changed it
        ("forward", "critic", B, 1, "kept"),
        ("backward", "critic", B, 1, "weights"),
    ]
