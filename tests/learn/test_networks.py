"""Initial weights, shapes and names of the networks."""

import math

import pytest
import torch

from sorl_fast.config import AgentConfig
from sorl_fast.learn.networks import make_actor, make_critic


def test_weights_are_glorot_uniform_and_biases_zero():
    c = AgentConfig(q_coef=1.0, hidden=64, depth=3)
    g = torch.Generator().manual_seed(0)
    for network in (make_actor(28, 5, c, g), make_critic(28, 5, c, g)):
        for name, x in network.tensors().items():
            kind = name[-1]
            if kind == "w":
                bound = math.sqrt(6 / (x.shape[-2] + x.shape[-1]))
                assert 0.9 * bound < x.abs().max() <= bound
                assert abs(float(x.detach().mean())) < 0.1 * bound
            else:
                assert (x == (1 if kind == "g" else 0)).all()


def test_names_and_shapes_are_those_of_the_policy_file():
    c = AgentConfig(q_coef=1.0, hidden=4, depth=2, ensemble=3)
    g = torch.Generator().manual_seed(0)
    actor = {k: tuple(x.shape) for k, x in make_actor(7, 2, c, g).tensors().items()}
    assert actor == {
        **{"0/w": (11, 4), "0/b": (4,), "1/w": (4, 4), "1/b": (4,)},
        **{"2/w": (4, 2), "2/b": (2,)},
    }
    critic = {k: tuple(x.shape) for k, x in make_critic(7, 2, c, g).tensors().items()}
    hidden = {f"{i}/{n}": (3, 4) for i in (0, 1) for n in "bgc"}
    assert critic == {"0/w": (3, 10, 4), "1/w": (3, 4, 4), "2/w": (3, 4, 1), "2/b": (3, 1)} | hidden


def test_layers_follow_replaced_parameters():
    c = AgentConfig(q_coef=1.0, hidden=4, depth=2)
    actor, other = (make_actor(2, 1, c, torch.Generator().manual_seed(s)) for s in (0, 1))
    actor.load_state_dict(other.state_dict(), assign=True)
    assert actor.layers()[0][0] is actor.tensors()["0/w"]
    x, z, t = torch.ones(3, 2), torch.ones(3, 1), torch.zeros(3)
    assert torch.equal(actor(x, z, t, t), other(x, z, t, t))


@pytest.mark.parametrize("depth", [1, 5])
def test_layers_follow_a_change_of_dtype(depth):
    c = AgentConfig(q_coef=1.0, hidden=4, depth=depth)
    actor = make_actor(2, 1, c, torch.Generator()).double()
    assert all(x.dtype == torch.float64 for layer in actor.layers() for x in layer)
    assert actor.layers()[0][0] is actor.tensors()["0/w"]
