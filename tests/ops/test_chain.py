"""The chain of PyTorch's products against the float64 definition: values, gradients, small gradients."""

import pytest
import torch
from conftest import some_fast
from networks import agree, double, flat, layers, normal
from tolerances import CHAIN_HALF, FLOAT32

from sorl_fast.ops import chain, reference

BOUND = {"fp32": FLOAT32, "tf32": FLOAT32, **CHAIN_HALF}  # the CPU has no tf32
SHAPES = [
    # B, O, A, H, depth
    (1, 1, 1, 8, 1),
    (7, 28, 5, 64, 2),
    (33, 69, 21, 24, 3),
]


def compare(fast, slow, net, inputs, precision, scale=1.0):
    x = fast(net, *inputs)
    exact_net, exact = double(net), [double(i) for i in inputs]
    y = slow(exact_net, *exact)
    agree([x], [y], BOUND[precision])
    grad = normal(*x.shape, seed=3, scale=scale)
    got = torch.autograd.grad(x, [*flat(net), *inputs], grad)
    agree(got, torch.autograd.grad(y, [*flat(exact_net), *exact], grad.double()), BOUND[precision])


each = pytest.mark.parametrize("precision", list(BOUND))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["tiny", "B7", "B33-O69-A21"])


@each
@shapes
def test_velocity(precision, shape):
    B, O, A, H, depth = shape
    t, log2 = torch.arange(B) % 8 / 8, (torch.arange(B) % 4).float()
    inputs = normal(B, O).requires_grad_(), normal(B, A, seed=8).requires_grad_()
    compare(
        lambda net, x, z: chain.velocity(net, x, z, t, log2, precision),
        lambda net, x, z: reference.velocity(net, x, z, t.double(), log2.double()),
        *(layers(O, A, H, depth), inputs, precision),
    )


@each
def test_rollout_of_an_actor_that_is_fed_another_step_size(precision):
    inputs = normal(7, 5).requires_grad_(), normal(7, 3, seed=8, scale=0.1).requires_grad_()
    compare(
        lambda net, x, z: chain.rollout(net, x, z, 3, precision, 0.0),
        lambda net, x, z: reference.rollout(net, x, z, 3, 0.0),
        *(layers(last=0.2), inputs, precision),
    )


@each
def test_a_critic_without_action(precision):
    compare(
        lambda net, x: chain.critic_ensemble(net, x, x[:, :0], 0, precision),
        lambda net, x: reference.critic_ensemble(net, x, x[:, :0], 0),
        *(layers(A=0, E=1), (normal(7, 5).requires_grad_(),), precision),
    )


@each
@pytest.mark.parametrize("M", some_fast([1, 2, 8], 2), ids=lambda m: f"M{m}")
@shapes
def test_rollout(precision, shape, M):
    B, O, A, H, depth = shape
    # small noise: an action at the clip's edge may fall on either side of it, and its gradient with it
    inputs = normal(B, O).requires_grad_(), normal(B, A, seed=8, scale=0.1).requires_grad_()
    net = layers(O, A, H, depth)
    with torch.no_grad():
        for x in net[-1]:
            x *= 0.2
    compare(
        lambda net, x, z: chain.rollout(net, x, z, M, precision),
        lambda net, x, z: reference.rollout(net, x, z, M),
        *(net, inputs, precision),
    )


@each
@pytest.mark.parametrize("E", [1, 2, 3], ids=lambda e: f"E{e}")
@shapes
def test_critic_ensemble(precision, shape, E):
    B, O, A, H, depth = shape
    inputs = normal(B, O).requires_grad_(), normal(B, A, seed=8).requires_grad_()
    compare(
        lambda net, x, a: chain.critic_ensemble(net, x, a, 4, precision),
        lambda net, x, a: reference.critic_ensemble(net, x, a, 4),
        *(layers(O, A, H, depth, E=E), inputs, precision),
    )


@pytest.mark.parametrize("scale", [1e-9, 1e-30], ids=str)
def test_gradients_too_small_for_fp16_survive_it(scale):
    inputs = normal(7, 5).requires_grad_(), normal(7, 3, seed=8).requires_grad_()
    compare(
        lambda net, x, a: chain.critic_ensemble(net, x, a, 4, "fp16"),
        lambda net, x, a: reference.critic_ensemble(net, x, a, 4),
        *(layers(5, 3, 16, 2, E=2), inputs, "fp16", scale),
    )


@pytest.mark.parametrize("M", [1, 8], ids=lambda m: f"M{m}")
def test_weight_gradients_are_summed_in_float32_over_rows_and_steps(M):
    net = layers(3, 2, 16, 1)
    out = chain.rollout(net, normal(40, 3), normal(40, 2, seed=8), M, "bf16")
    for g in torch.autograd.grad(out, flat(net), normal(40, 2, seed=3)):
        assert g.dtype == torch.float32
        assert not torch.equal(g, g.bfloat16().float())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_best_of_n_agrees_with_the_definition(precision):
    actor, critic = layers(5, 3, 16, 2), layers(5, 3, 16, 2, E=2)
    obs, noise = normal(6, 5), normal(6, 4, 3, seed=8)
    args = obs, noise, 2, "min", -torch.ones(3), torch.tensor([0.5, 1.0, 2.0])
    with torch.no_grad():
        action, index, q, flags = chain.best_of_n(actor, critic, *args, precision)
        expected = reference.best_of_n(actor, critic, *args)
    if precision == "fp32":
        assert torch.equal(index, expected.candidate)
        assert torch.equal(flags, expected.status)
        agree([action, q], [expected[0].double(), expected[2].double()], FLOAT32)
    else:
        agree([q], [expected[2].double()], 3 * CHAIN_HALF["bf16"])  # a near tie may go another way
        assert (action <= args[-1]).all()


@pytest.mark.parametrize("user", ["ieee", "tf32"])
def test_the_users_choice_of_tf32_is_neither_followed_nor_changed(user, monkeypatch):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    seen = []
    product = chain.float_product
    monkeypatch.setattr(
        chain, "float_product", lambda *a: seen.append(matmul.fp32_precision) or product(*a)
    )
    try:
        matmul.fp32_precision = user
        for precision, setting in (("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
            seen.clear()
            net = layers(3, 2, 8, 1)
            out = chain.rollout(net, normal(4, 3), normal(4, 2), 1, precision)
            torch.autograd.grad(out.sum(), flat(net))
            assert set(seen) == {setting}
            assert matmul.fp32_precision == user
    finally:
        matmul.fp32_precision = before
