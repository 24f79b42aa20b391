"""An update on the native backend does what is needed, once."""

from types import SimpleNamespace

import pytest
from learn.algorithms.test_sorl_update import B, setup

from sorl_fast import ops

native = pytest.importorskip("sorl_fast.ops.native")

NAMES = {False: "actor", True: "critic"}


@pytest.fixture
def done(monkeypatch):
    """Return a list to which every pass of csrc adds what it did."""
    log = []

    class Counted:
        def __init__(self, **sizes):
            self.real, self.name = real.TrainNet(**sizes), NAMES[sizes["norm"]]

        def pack(self, addresses, forward, backward):
            log.append(("pack", self.name, forward, backward))
            self.real.pack(addresses, forward, backward)

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
