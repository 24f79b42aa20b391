"""The plain PyTorch operations: their gradients, their edges, and Adam against torch's own."""

import math

import numpy as np
import pytest
import torch
from networks import layers

from sorl_fast import ops
from sorl_fast.act import philox
from sorl_fast.ops import reference
from sorl_fast.ops.reference import denoise
from sorl_fast.status import Status


def actor_layers(O=3, A=2, H=5, depth=2, dtype=torch.float64):
    return layers(O, A, H, depth, dtype=dtype, grad=False)


def critic_layers(O=3, A=2, H=5, depth=2, E=2, dtype=torch.float64):
    return layers(O, A, H, depth, E=E, seed=1, dtype=dtype, grad=False)


def normal(*shape, seed=2, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("steps", [1, 2, 8], ids=lambda m: f"M{m}")
def test_rollout_gradcheck(steps):
    layers = [tuple(x.requires_grad_() for x in layer) for layer in actor_layers()]
    obs, noise = normal(4, 3).requires_grad_(), (0.2 * normal(4, 2, seed=3)).requires_grad_()
    flat = [x for layer in layers for x in layer]

    def f(obs, noise, *flat):
        actor = [flat[i : i + 2] for i in range(0, len(flat), 2)]
        # the clip has no derivative at its corners, so it is checked apart
        return denoise(actor, obs, noise, steps)

    assert torch.autograd.gradcheck(f, (obs, noise, *flat))


@pytest.mark.parametrize("steps", [1, 2, 8], ids=lambda m: f"M{m}")
def test_rollout_with_its_clip_gradcheck(steps):
    layers = actor_layers()
    obs, noise = normal(64, 3), normal(64, 2, seed=3)
    inside = (denoise(layers, obs, noise, steps).abs() - 1).abs().amin(-1) > 1e-3
    obs, noise = obs[inside][:6], noise[inside][:6].requires_grad_()
    actions = ops.rollout(layers, obs, noise, steps)
    assert actions.abs().max() <= 1
    assert torch.autograd.gradcheck(lambda n: ops.rollout(layers, obs, n, steps), (noise,))


def test_critic_gradcheck():
    layers = critic_layers(E=3)
    flat = [x.requires_grad_() for layer in layers for x in layer]
    obs, actions = normal(4, 3), normal(4, 2, seed=3).requires_grad_()

    def f(actions, *flat):
        parts = [flat[0:4], flat[4:8], flat[8:10]]
        return ops.critic_ensemble(parts, obs, actions, 4)

    assert torch.autograd.gradcheck(f, (actions, *flat))


@pytest.mark.parametrize("B", [0, 1, 13], ids=lambda b: f"B{b}")
@pytest.mark.parametrize(("O", "A"), [(1, 1), (69, 21)], ids=["O1-A1", "O69-A21"])
def test_shapes(B, O, A):
    actor, critic = actor_layers(O, A), critic_layers(O, A, E=10)
    obs, noise = normal(B, O), normal(B, 3, A)
    assert ops.rollout(actor, obs, noise[:, 0], 2).shape == (B, A)
    assert ops.critic_ensemble(critic, obs, noise[:, 0], 2).shape == (10, B)
    best = ops.best_of_n(actor, critic, obs, noise, 2)
    assert [x.shape for x in best] == [(B, A), (B,), (B,), (B,)]
    assert best.status.dtype == torch.int32


@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_best_of_n_equals_one_observation_at_a_time(q_agg):
    actor, critic = actor_layers(), critic_layers(E=3)
    obs, noise = normal(5, 3), normal(5, 7, 2)
    actions, index, q, _ = ops.best_of_n(actor, critic, obs, noise, 4, q_agg)
    for b in range(5):
        candidates = ops.rollout(actor, obs[b].expand(7, 3), noise[b], 4)
        values = ops.critic_ensemble(critic, obs[b].expand(7, 3), candidates, 4)
        values = values.mean(0) if q_agg == "mean" else values.amin(0)
        torch.testing.assert_close(values[index[b]], values.max())  # BLAS may break a near tie
        torch.testing.assert_close(actions[b], candidates[index[b]])
        torch.testing.assert_close(q[b], values.max())


def test_best_of_n_ties_go_to_the_smallest_index():
    critic = critic_layers()
    w, b = critic.pop()
    constant = [*critic, (torch.zeros_like(w), b)]
    _, index, *_ = ops.best_of_n(actor_layers(), constant, normal(3, 3), normal(3, 6, 2), 2)
    assert index.tolist() == [0, 0, 0]


def test_best_of_n_never_picks_a_candidate_that_is_not_finite():
    actor, critic = actor_layers(), critic_layers()
    noise = normal(2, 4, 2)
    noise[0, 0], noise[0, 3], noise[1, :3] = torch.nan, torch.inf, torch.nan
    actions, index, q, flags = ops.best_of_n(actor, critic, normal(2, 3), noise, 2)
    assert index[0] in (1, 2)
    assert index[1] == 3
    assert (flags & Status.CANDIDATE_REJECTED).all()
    assert actions.isfinite().all()
    assert q.isfinite().all()


def test_bounds_clip_and_do_not_rescale():
    actor, critic = actor_layers(), critic_layers()
    obs, noise = normal(20, 3), 3 * normal(20, 1, 2)
    low, high = torch.tensor([-0.1, -2.0]).double(), torch.tensor([0.2, 2.0]).double()
    actions, _, _, flags = ops.best_of_n(actor, critic, obs, noise, 2, "mean", low, high)
    free = denoise(actor, obs, noise[:, 0], 2)
    torch.testing.assert_close(actions, torch.maximum(torch.minimum(free, high), low))
    assert torch.equal(flags == Status.CLIPPED, (free != actions).any(1))


@pytest.mark.parametrize("clip_norm", [1e-2, 1e6], ids=["clipped", "free"])
def test_adam_ema_step_equals_torch(clip_norm):
    shapes = [(3, 4), (4,), (2, 3, 1)]
    params = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    theirs = [p.clone().requires_grad_() for p in params]
    targets = [p.clone() for p in params]
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    adam = torch.optim.Adam(theirs, lr=1e-2, betas=(0.9, 0.99), eps=1e-8)
    for step in range(1, 6):
        grads = [normal(*s, seed=10 * step + i) for i, s in enumerate(shapes)]
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g * min(1.0, clip_norm / norm)
        adam.step()
        expected = [0.9 * t + 0.1 * p.detach() for t, p in zip(targets, theirs, strict=True)]
        got = ops.adam_ema_step(
            *(params, grads, first, second, targets, step),
            lr=1e-2, b1=0.9, b2=0.99, eps=1e-8, clip_norm=clip_norm, tau=0.1,
        )  # fmt: skip
        assert float(got) == pytest.approx(norm)
        for mine, other in ((params, theirs), (targets, expected)):
            for x, y in zip(mine, other, strict=True):
                torch.testing.assert_close(x, y.detach(), rtol=1e-10, atol=1e-12)


def test_a_zero_gradient_leaves_the_parameters_finite():
    p, g, m, v, t = ([torch.zeros(3)] for _ in range(5))
    ops.adam_ema_step(p, g, m, v, t, 1, lr=0.1, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0, tau=0.1)
    assert p[0].isfinite().all()


@pytest.mark.parametrize("draw", [0, 1, 255])
def test_normals_of_a_later_draw_are_the_samplers(draw):
    key = torch.tensor([-3, 2**32 - 1, 7])
    expected = philox.normals(2**64 - 3, 4, 3, 6, 2**32 - 1, 7, draw)
    drawn = reference.normals(key, 4, 3, 6, draw + 1).numpy()
    np.testing.assert_array_equal(drawn[:, :, draw] if draw else drawn, expected)
