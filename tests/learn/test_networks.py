"""Initial weights, shapes and names of the networks."""

import math

import pytest
import torch

from sorl_fast.layout import Layout
from sorl_fast.learn.networks import (
    CriticEnsemble,
    DirectActor,
    FlowActor,
    ShortcutActor,
    Value,
    fresh_layers,
)


def make_actor(O, A, H, depth, random):
    return ShortcutActor(fresh_layers(Layout.actor(O, A, H, depth), random))


def make_critic(O, A, H, depth, E, random):
    return CriticEnsemble(fresh_layers(Layout.critic(O, A, H, depth, E), random))


def test_weights_are_glorot_uniform_and_biases_zero():
    g = torch.Generator().manual_seed(0)
    for network in (make_actor(28, 5, 64, 3, g), make_critic(28, 5, 64, 3, 2, g)):
        for name, x in network.tensors().items():
            kind = name[-1]
            if kind == "w":
                bound = math.sqrt(6 / (x.shape[-2] + x.shape[-1]))
                assert 0.9 * bound < x.abs().max() <= bound
                assert abs(float(x.detach().mean())) < 0.1 * bound
            else:
                assert (x == (1 if kind == "g" else 0)).all()


def test_names_and_shapes_are_those_of_the_policy_file():
    g = torch.Generator().manual_seed(0)
    actor = {k: tuple(x.shape) for k, x in make_actor(7, 2, 4, 2, g).tensors().items()}
    assert actor == {
        **{"0/w": (11, 4), "0/b": (4,), "1/w": (4, 4), "1/b": (4,)},
        **{"2/w": (4, 2), "2/b": (2,)},
    }
    critic = {k: tuple(x.shape) for k, x in make_critic(7, 2, 4, 2, 3, g).tensors().items()}
    hidden = {f"{i}/{n}": (3, 4) for i in (0, 1) for n in "bgc"}
    assert critic == {"0/w": (3, 10, 4), "1/w": (3, 4, 4), "2/w": (3, 4, 1), "2/b": (3, 1)} | hidden


def test_layers_follow_replaced_parameters():
    actor, other = (make_actor(2, 1, 4, 2, torch.Generator().manual_seed(s)) for s in (0, 1))
    actor.load_state_dict(other.state_dict(), assign=True)
    assert actor.layers()[0][0] is actor.tensors()["0/w"]
    x, z, t = torch.ones(3, 2), torch.ones(3, 1), torch.zeros(3)
    assert torch.equal(actor(x, z, t, t), other(x, z, t, t))


@pytest.mark.parametrize("depth", [1, 5])
def test_layers_follow_a_change_of_dtype(depth):
    actor = make_actor(2, 1, 4, depth, torch.Generator()).double()
    assert all(x.dtype == torch.float64 for layer in actor.layers() for x in layer)
    assert actor.layers()[0][0] is actor.tensors()["0/w"]


def test_what_a_flow_a_direct_actor_and_a_value_feed_to_inputs_they_do_not_have():
    g = torch.Generator().manual_seed(0)
    actor = fresh_layers(Layout.actor(4, 2, 8, 2), g)  # every weight counts
    obs, z, t, zero = torch.randn(3, 4), torch.randn(3, 2), torch.rand(3), torch.zeros(3)
    shortcut, flow, direct = (kind(actor) for kind in (ShortcutActor, FlowActor, DirectActor))
    assert torch.equal(flow(obs, z, t), shortcut(obs, z, t, zero))
    x = z
    for i in range(10):
        x = x + shortcut(obs, x, torch.full((3,), i / 10), zero) / 10
    torch.testing.assert_close(flow.sample(obs, z, 10), x.clamp(-1, 1), rtol=0, atol=1e-5)
    assert torch.equal(direct(obs, z), shortcut(obs, z, zero, zero))
    assert torch.equal(direct(obs), shortcut(obs, 0 * z, zero, zero))
    value = fresh_layers(Layout.critic(4, 0, 8, 2, 1), g)
    q = CriticEnsemble(value)(obs, obs[:, :0], 0)
    assert torch.equal(Value(value)(obs), q[0])
    assert Value(value)(obs).shape == (3,)


def test_another_default_dtype_changes_nothing():
    """What csrc writes is float32: memory of float64 would hold two of its numbers in one."""
    random = torch.Generator().manual_seed(0)
    actor, critic = make_actor(5, 3, 8, 2, random), make_critic(5, 3, 8, 2, 2, random)
    obs, noise = torch.randn(4, 5, generator=random), torch.randn(4, 3, generator=random)
    noise.requires_grad_()
    params = [x.requires_grad_() for net in (actor, critic) for x in net.tensors().values()]

    def found():
        q = critic(obs, actor.sample(obs, noise, 2), 2)
        return [q, *torch.autograd.grad(q.square().sum(), [noise, *params])]

    expected = found()
    torch.set_default_dtype(torch.float64)
    try:
        got = found()
    finally:
        torch.set_default_dtype(torch.float32)
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == torch.float32 and torch.equal(x, y)
