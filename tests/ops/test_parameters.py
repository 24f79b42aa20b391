"""Packed copies of a network: who owns them, who shares them, and when they go."""

import copy
import gc
import weakref

import pytest
import torch
from networks import flat, layers, normal

from sorl_fast import ops
from sorl_fast.layout import Layout
from sorl_fast.learn.networks import CriticEnsemble, ShortcutActor, fresh_layers
from sorl_fast.ops import parameters

native = pytest.importorskip("sorl_fast.ops.native")

X, Z = normal(7, 4), normal(7, 2)


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    monkeypatch.delenv("SORL_OPS", raising=False)


@pytest.fixture
def packs(monkeypatch):
    """Return a list with an entry for each network that csrc was asked to pack."""
    found = []
    real = native._Packed

    class Counted(real):
        def __init__(self, *args):
            found.append(weakref.ref(self))
            super().__init__(*args)

    monkeypatch.setattr(native, "_Packed", Counted)
    return found


def actor():
    return ShortcutActor(fresh_layers(Layout.actor(4, 2, 32, 2), torch.Generator()))


@pytest.mark.slow
def test_copies_go_when_their_network_goes(packs):
    net = actor()
    owner = weakref.ref(net.layers().packings)
    before = net.sample(X, Z, 2).detach()
    assert torch.equal(net.sample(X, Z, 2), before)
    gc.collect()
    assert len(packs) == 1  # once for both, and
    assert packs[0]() is not None  # still there
    del net
    gc.collect()
    assert owner() is None
    assert packs[0]() is None


@pytest.mark.slow
def test_a_gradient_needs_no_network_any_more(packs):
    net = actor()
    params = flat(net.layers())
    loss = net.sample(X, Z, 2).sum()
    expected = torch.autograd.grad(loss, params, retain_graph=True)
    del net
    gc.collect()
    found = torch.autograd.grad(loss, params, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(packs) == 1
    del loss, found, expected
    gc.collect()
    assert packs[0]() is None


def test_a_list_of_layers_is_packed_at_every_call_and_keeps_nothing(packs):
    net = layers(4, 2, 32, 2)
    known = len(parameters._alive)
    loss = ops.rollout(net, X, Z, 2).sum()
    torch.autograd.grad(loss, flat(net))
    assert len(packs) == 1  # forward and backward
    ops.rollout(net, X, Z, 2)
    assert len(packs) == 2
    del loss
    gc.collect()
    assert [p() for p in packs] == [None, None]
    assert len(parameters._alive) == known


def test_an_operation_without_an_owner_packs_for_itself(packs):
    net = [x.detach() for x in flat(layers(4, 2, 32, 2))]
    for calls in (1, 2):
        torch.ops.sorl_fast.rollout(net, X, Z, 2, 1.0, "fp32", False)
        assert len(packs) == calls


def test_what_is_frozen_shares_its_copies_and_a_copied_network_does_not(packs):
    random = torch.Generator()
    critic = CriticEnsemble(fresh_layers(Layout.critic(4, 2, 32, 2, 2), random))
    value = critic(X, Z, 2)
    assert torch.equal(critic(X, Z, 2, frozen=True), value)
    assert len(packs) == 1
    twin = copy.deepcopy(critic)
    assert twin.layers()[0][0] is twin.tensors()["0/w"]
    assert twin.layers()[0][0] is not critic.layers()[0][0]
    with torch.no_grad():
        twin.layers()[-1][1].add_(1)
    torch.testing.assert_close(twin(X, Z, 2), value + 1)
    assert torch.equal(critic(X, Z, 2), value)
    assert len(packs) == 2


def test_parameters_that_are_replaced_are_packed_anew(packs):
    net = actor()
    other = actor()
    with torch.no_grad():
        other.layers()[-1][1].add_(0.5)
    expected = other.sample(X, Z, 1).detach()
    net.sample(X, Z, 1)
    net.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(net.sample(X, Z, 1), expected)
    net = actor()
    net.sample(X, Z, 1)
    net.layers()[-1][1].data = other.layers()[-1][1].data  # behind the module's back
    assert torch.equal(net.sample(X, Z, 1), expected)


def test_forget_forgets_of_every_network(packs):
    nets = actor(), actor()
    for net in nets:
        net.sample(X, Z, 1)
    ops.forget()
    gc.collect()
    assert [p() for p in packs] == [None, None]
    nets[0].sample(X, Z, 1)
    assert len(packs) == 3
