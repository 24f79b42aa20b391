"""Networks made ready for an implementation: what each answers, and that a sampler runs what is judged."""

import importlib

import pytest
import torch
from networks import agree, layers, normal
from policies import make_policy
from tolerances import FLOAT32

from sorl_fast import ops
from sorl_fast.act.backends.triton import TritonSession
from sorl_fast.act.session import NoiseKey
from sorl_fast.ops import reference, sampling, selfcheck
from sorl_fast.ops.implementations import GPU, NAMES, Network, Task, registered
from sorl_fast.status import Status

pytestmark = pytest.mark.filterwarnings(  # numpy's, which does the interpreter's sums
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
NAN = float("nan")


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv("SORL_OPS", raising=False)


@pytest.mark.parametrize("implementation", NAMES)
@pytest.mark.parametrize("N", [1, 3], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("want_q", [True, False], ids=["q", ""])
def test_every_implementation_returns_the_same(implementation, N, want_q):
    actor, critic = layers(5, 3, 64, 1), layers(5, 3, 64, 1, E=2)
    obs, noise = normal(5, 5), normal(5, N, 3, seed=8)
    obs[1, 2], noise[2], noise[3, 0, 0] = NAN, NAN, float("inf")
    rest = 2, "min", -0.5 * torch.ones(3), torch.tensor([0.25, 1.0, 2.0])
    with torch.no_grad():
        best = sampling.prepare(implementation, actor, critic, 5, "fp32").best_of_n(
            obs, noise, *rest, want_q=want_q
        )
        expected = reference.best_of_n(actor, critic, obs, noise, *rest, want_q=want_q)
    assert isinstance(best, reference.Best)
    assert [x.dtype for x in best] == [x.dtype for x in expected]
    assert torch.equal(best.status, expected.status)
    good = best.status & (Status.NONFINITE_OBS | Status.NONFINITE_RESULT) == 0
    assert good.tolist() == [True, False, False, N > 1, True]
    assert torch.equal(best.candidate[good], expected.candidate[good])
    agree([best.action[good]], [expected.action[good].double()], FLOAT32)
    if N > 1 or want_q:
        agree([best.q[good]], [expected.q[good].double()], 3 * FLOAT32)
        assert torch.equal(best.q.isneginf(), expected.q.isneginf())
    else:
        assert best.q.isnan().all()


def session():
    """Return a session of a policy of its own, for which nothing is packed yet."""
    return TritonSession(make_policy(H=64, depth=1), "fp32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("implementation", "module", "name"),
    [
        ("fused", "sorl_fast.ops.triton_sampling", "best_of_n_of"),
        ("chain", "sorl_fast.ops.chain", "best_of_n_of"),
        ("reference", "sorl_fast.ops.reference", "best_of_n"),
    ],
)
def test_what_is_judged_is_what_a_sampler_runs(implementation, module, name, monkeypatch):
    """One function spoiled is refused by the self-check, and shows in a sampler's actions."""
    call = normal(4, 3), NoiseKey(1, 0, 0)
    monkeypatch.setattr(ops, "sampling_implementation", lambda *a: implementation)
    before, _ = session().act(*call, 3, 2, True)
    item = {
        **{"operation": "best_of_n", "precision": "fp32", "network": list(Network(3, 2, 64, 1, 2))},
        **{
            "implementation": implementation,
            "device": "cpu",
            "form": "tiny",
            "registry": GPU,
            "seed": 0,
        },
    }
    assert selfcheck.examine_item(item, lambda text: None)["status"] == "ok"
    real = getattr(importlib.import_module(module), name)

    def spoiled(*args, **options):
        best = real(*args, **options)
        return best._replace(action=best.action * 1.01)

    monkeypatch.setattr(f"{module}.{name}", spoiled)
    assert selfcheck.examine_item(item, lambda text: None)["status"] == "disagrees"
    after, _ = session().act(*call, 3, 2, True)
    assert torch.equal(after, before * 1.01)


def test_what_is_timed_packs_nothing(monkeypatch):
    """A sampler packs once; a time with the packing in it would not choose the fastest."""
    packs = []
    real = sampling.prepare
    monkeypatch.setattr(sampling, "prepare", lambda *a: packs.append(a) or real(*a))
    implementation = registered(GPU)["best_of_n"]["chain"]
    task = Task("best_of_n", "fp32", Network(3, 2, 16, 1, 2))
    call, backward = selfcheck._timed_calls(implementation, task, 16, torch.device("cpu"))
    assert backward is None
    assert len(packs) == 1
    call()
    call()
    assert len(packs) == 1
