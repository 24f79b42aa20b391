"""The registered kernels, interpreted: values and gradients, what is kept, and torch's own checks."""

import contextlib
import functools

import pytest
import torch
from networks import agree, double, flat, normal
from networks import layers as make_layers
from tolerances import CHAIN_HALF, FLOAT32
from torch._subclasses.fake_tensor import FakeTensorMode

from sorl_fast.ops import Parameters, reference, registered, triton

# tf32 is fp32 in the interpreter; bf16 is for the tests of the kernels, which repair it
BOUND = {"fp32": FLOAT32, "tf32": FLOAT32, "fp16": CHAIN_HALF["fp16"]}


@pytest.fixture(autouse=True)
def poison():
    """Uninitialised memory is NaN: whoever reads what nobody wrote is found out."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


layers = functools.partial(make_layers, last=0.2)


def compare(fast, slow, net, inputs, precision):
    x = fast(net, *inputs)
    exact_net, exact = double(net), [double(i) for i in inputs]
    y = slow(exact_net, *exact)
    agree([x], [y], BOUND[precision])
    grad = normal(*x.shape, seed=3)
    got = torch.autograd.grad(x, [*flat(net), *inputs], grad)
    agree(got, torch.autograd.grad(y, [*flat(exact_net), *exact], grad.double()), BOUND[precision])


def obs_and_act(B, O=5, A=3):
    # small noise: an action at the clip's edge may fall on either side of it, and its gradient with it
    return normal(B, O).requires_grad_(), normal(B, A, seed=8, scale=0.1).requires_grad_()


each = pytest.mark.parametrize("precision", list(BOUND))


@each
def test_velocity(precision):
    t, log2 = torch.arange(7) % 8 / 8, (torch.arange(7) % 4).float()
    compare(
        lambda net, x, z: triton.velocity(net, x, z, t, log2, precision),
        lambda net, x, z: reference.velocity(net, x, z, t.double(), log2.double()),
        *(layers(), obs_and_act(7), precision),
    )


@each
@pytest.mark.parametrize("M", [1, 4], ids=lambda m: f"M{m}")
def test_rollout(precision, M):
    compare(
        lambda net, x, z: triton.rollout(net, x, z, M, precision),
        lambda net, x, z: reference.rollout(net, x, z, M),
        *(layers(), obs_and_act(18), precision),
    )


@each
def test_rollout_of_an_actor_that_is_fed_another_step_size(precision):
    compare(
        lambda net, x, z: triton.rollout(net, x, z, 3, precision, 0.0),
        lambda net, x, z: reference.rollout(net, x, z, 3, 0.0),
        *(layers(last=0.2), obs_and_act(18), precision),
    )


def test_a_column_that_is_fed_zero_has_a_gradient_of_exactly_zero():
    actor, critic, x, z, zero = layers(), layers(E=2), normal(4, 5), normal(4, 3), torch.zeros(4)
    outputs = {
        8: (actor, triton.velocity(actor, x, z, zero, zero, "fp32")),  # t and log2(1/h)
        9: (actor, triton.rollout(actor, x, z, 3, "fp32", 0.0)),  # log2(1/h) alone
        -1: (critic, triton.critic_ensemble(critic, x, z, 0, "fp32")),  # k
        5: (actor, triton.velocity(actor, x, torch.zeros(4, 3), zero, zero, "fp32")),  # z too
    }
    for first, (net, y) in outputs.items():
        (grad,) = torch.autograd.grad(y.square().sum(), net[0][0])
        assert (grad[..., first:, :] == 0).all()
        assert (grad[..., : first % grad.shape[-2], :] != 0).any()


@each
def test_a_critic_without_action(precision):
    compare(
        lambda net, x: triton.critic_ensemble(net, x, x[:, :0], 0, precision),
        lambda net, x: reference.critic_ensemble(net, x, x[:, :0], 0),
        *(layers(A=0, E=1), obs_and_act(17)[:1], precision),
    )


@each
def test_critic_ensemble(precision):
    compare(
        lambda net, x, a: triton.critic_ensemble(net, x, a, 4, precision),
        lambda net, x, a: reference.critic_ensemble(net, x, a, 4),
        *(layers(E=2), obs_and_act(17), precision),
    )


def test_inputs_may_be_laid_out_anyhow():
    net, critic = layers(), layers(E=2)
    x, z = normal(5, 18).T, normal(3, 18, seed=8, scale=0.1).T
    t = torch.full((1,), 0.5).expand(18)
    with torch.no_grad():
        pairs = [
            (triton.velocity, reference.velocity, (net, x, z, t, t)),
            (triton.rollout, reference.rollout, (net, x, z, 2)),
            (triton.critic_ensemble, reference.critic_ensemble, (critic, x, z, 2)),
        ]
        for fast, slow, args in pairs:
            agree([fast(*args, "fp32")], [slow(*args).double()], FLOAT32)
    x.requires_grad_()
    out = triton.rollout(net, x, z, 2, "fp32")
    got = torch.autograd.grad(out, x, out.detach().T.contiguous().T)
    out = reference.rollout(net, x, z, 2)
    agree(got, torch.autograd.grad(out, x, out.detach().double().float()), 2 * FLOAT32)


def test_no_rows():
    actor, critic = layers(), layers(E=2)
    x, z = normal(0, 5).requires_grad_(), normal(0, 3).requires_grad_()
    t = torch.zeros(0)
    for out in (
        triton.velocity(actor, x, z, t, t, "fp32"),
        triton.rollout(actor, x, z, 2, "fp32"),
        triton.critic_ensemble(critic, x, z, 2, "fp32"),
    ):
        assert out.numel() == 0
        net = critic if out.shape[0] == 2 else actor
        grads = torch.autograd.grad(out.sum(), [x, z, *flat(net)])
        assert all((g == 0).all() for g in grads)


@contextlib.contextmanager
def asked(monkeypatch, kernels):
    """Record what the kernels' backward is asked for."""
    seen = []
    backward = kernels.backward
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "backward", lambda *a, **k: seen.append(k) or backward(*a, **k))
        yield seen


def test_only_what_is_needed_is_computed(monkeypatch):
    x, a = normal(3, 5), normal(3, 3).requires_grad_()
    critic = layers(E=2)
    frozen = [tuple(p.detach() for p in layer) for layer in critic]
    with asked(monkeypatch, triton.critic_kernels) as seen:
        q = triton.critic_ensemble(frozen, x, a, 1, "fp32")
        torch.autograd.grad(q.sum(), a)
        q = triton.critic_ensemble(critic, x, a.detach(), 1, "fp32")
        torch.autograd.grad(q.sum(), flat(critic))
    only_act = {"weights": False, "to_obs": False, "to_act": True}
    only_weights = {"weights": True, "to_obs": False, "to_act": False}
    assert seen == [only_act, only_weights]


def test_nothing_is_kept_where_no_gradient_is_needed(monkeypatch):
    kept = []
    forward = triton.actor_kernels.rollout
    monkeypatch.setattr(
        triton.actor_kernels,
        "rollout",
        lambda *a, save, **k: kept.append(save) or forward(*a, save=save, **k),
    )
    net, x, z = layers(), normal(3, 5), normal(3, 3)
    triton.rollout(net, x, z, 1, "fp32")
    with torch.no_grad():
        triton.rollout(net, x, z, 1, "fp32")
    triton.rollout([tuple(p.detach() for p in layer) for layer in net], x, z, 1, "fp32")
    assert kept == [True, False, False]


def test_a_forward_that_kept_nothing_says_so():
    net = layers()
    params, *packed = registered.arguments_of(net, normal(3, 5), 3, False, "fp32")
    out, *_ = torch.ops.sorl_fast.triton_rollout(
        params, *packed, normal(3, 5), normal(3, 3), 1, 0.0, "fp32", False
    )
    with pytest.raises(RuntimeError, match="save=False"):
        out.sum().backward()


def test_a_parameter_changed_before_backward_is_found_out():
    net = layers()
    out = triton.rollout(net, normal(3, 5), normal(3, 3), 1, "fp32")
    with torch.no_grad():
        net[0][0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# --- torch's own checks


def check(op, args):
    torch.use_deterministic_algorithms(False)  # else opcheck compares poisoned with other poison
    torch.library.opcheck(op, args)


def packed(net, norm=False, precision="fp32"):
    return registered.arguments_of(net, torch.empty(1, 5), 3, norm, precision)


def test_on_a_gpu_that_is_only_imagined_nothing_asks_for_numbers():
    ops = torch.ops.sorl_fast
    # without autograd: torch's own engine asks for the stream of a device that is not there
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        actor, critic = (
            Parameters(tuple(torch.empty(s) for s in shapes) for shapes in net)
            for net in (
                [((10, 64), (64,)), ((64, 3), (3,))],
                [((2, 9, 64), *[(2, 64)] * 3), ((2, 64, 1), (2, 1))],
            )
        )
        x, z, t = torch.empty(6, 5), torch.empty(6, 3), torch.empty(6)
        assert triton.velocity(actor, x, z, t, t, "bf16").shape == (6, 3)
        assert triton.rollout(actor, x, z, 4, "bf16").shape == (6, 3)
        assert triton.critic_ensemble(critic, x, z, 4, "bf16").shape == (2, 6)
        best = triton.best_of_n(actor, critic, x, torch.empty(6, 4, 3), 2, "min", -1.0, 1.0, "bf16")
        assert [y.shape for y in best] == [(6, 3), (6,), (6,), (6,)]
        of_actor = registered.arguments_of(actor, x, 3, False, "bf16")
        _, *saved = ops.triton_rollout(*of_actor, x, z, 4, 2.0, "bf16", True)
        asked = "bf16", True, False, False
        grads = ops.triton_actor_backward(z, *of_actor, x, saved, 4, 2.0, True, *asked)
        of_critic = registered.arguments_of(critic, x, 3, True, "bf16")
        q, *saved = ops.triton_critic_ensemble(*of_critic, x, z, 4, "bf16", True)
        grads += ops.triton_critic_backward(q, *of_critic, x, z, saved, 4, *asked)
        for g, p in zip(grads, [*flat(actor), *flat(critic)], strict=True):
            assert (g.shape, g.device.type, g.dtype) == (p.shape, "cuda", torch.float32)
    assert not actor.packings.copies
    assert not critic.packings.copies


@pytest.mark.slow
@pytest.mark.parametrize("save", [True, False], ids=["save", "forward"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_registration_of_the_forwards(save, precision):
    actor, critic = packed(layers(depth=1)), packed(layers(depth=1, E=2), True)
    ops = torch.ops.sorl_fast
    x, z, t = normal(3, 5), normal(3, 3), normal(3)
    if save:
        x.requires_grad_(), z.requires_grad_()
    else:
        actor, critic = (([p.detach() for p in params], *rest) for params, *rest in (actor, critic))
    check(ops.triton_velocity.default, (*actor, x, z, t, t, "fp32", save))
    check(ops.triton_rollout.default, (*actor, x, z, 2, 1.0, "fp32", save))
    check(ops.triton_critic_ensemble.default, (*critic, x, z, 2, "fp32", save))


@pytest.mark.slow
def test_registration_of_the_backwards():
    ops = torch.ops.sorl_fast
    x, z = normal(3, 5), normal(3, 3)
    actor, critic = packed(layers(depth=2)), packed(layers(depth=2, E=2), True)
    _, *saved = ops.triton_rollout(*actor, x, z, 2, 1.0, "fp32", True)
    saved = [s.detach() for s in saved]
    args = [p.detach() for p in actor[0]], *actor[1:]
    check(
        ops.triton_actor_backward.default,
        (normal(3, 3), *args, x, saved, 2, 1.0, True, "fp32", True, True, True),
    )
    _, *saved = ops.triton_critic_ensemble(*critic, x, z, 2, "fp32", True)
    saved = [s.detach() for s in saved]
    args = [p.detach() for p in critic[0]], *critic[1:]
    check(
        ops.triton_critic_backward.default,
        (normal(2, 3), *args, x, z, saved, 2, "fp32", True, True, True),
    )


@pytest.mark.parametrize("N", [1, 5], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_best_of_n(precision, N):
    actor, critic = layers(), layers(E=2)
    obs, noise = normal(6, 5), normal(6, N, 3, seed=8, scale=0.3)
    noise[0, 0, 1] = noise[1, 0, 0] = torch.nan
    args = obs, noise, 2, "min", -0.5, torch.tensor([0.25, 1.0, 2.0])
    with torch.no_grad():
        expected = reference.best_of_n(double(actor), double(critic), *map(exactly, args))
        action, index, q, flags = triton.best_of_n(actor, critic, *args, precision)
    good = expected.q.isfinite()
    assert torch.equal(q[~good], torch.full_like(q[~good], -torch.inf))
    assert good.sum() == (6 if N > 1 else 4)
    agree([q[good]], [expected[2][good]], 3 * BOUND[precision])  # LayerNorm magnifies
    if precision == "fp32":  # else a near tie may go another way
        assert torch.equal(index, expected.candidate)
        assert torch.equal(flags, expected.status)
        agree([action[good]], [expected.action[good]], FLOAT32)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_best_of_one_has_the_definitions_q_where_it_overflows():
    actor, critic = layers(), layers(E=1)
    with torch.no_grad():
        critic[-1][0].zero_()[0, 2, 0] = 3e38
        obs, noise = normal(20, 5), normal(20, 1, 3, seed=8)
        args = actor, critic, obs, noise, 1, "mean", -1.0, 1.0
        got, expected = triton.best_of_n(*args, "fp32"), reference.best_of_n(*args)
    assert 0 < got.q.isfinite().sum() < 20
    assert torch.equal(got.q.isfinite(), expected.q.isfinite())
    assert torch.equal(got.status, expected.status)  # with one candidate Q rejects nothing


def exactly(x):
    return x.double() if isinstance(x, torch.Tensor) else x


@pytest.mark.slow
def test_registration_of_best_of_n():
    actor, critic = packed(layers(depth=1)), packed(layers(depth=1, E=2), True)
    actor, critic = (([p.detach() for p in ps], *rest) for ps, *rest in (actor, critic))
    low, high = -torch.ones(3), torch.ones(3)
    for noise, N in ((normal(2, 3, 3), 3), (torch.tensor([1, 2, 3]), 2)):
        args = *actor, *critic, normal(2, 5), noise, N, 2, "mean", low, high, "fp32", True
        check(torch.ops.sorl_fast.triton_best_of_n.default, args)


def state(count=2):
    shapes = [(3, 5), (7,)][:count]
    lists = [[normal(*s, seed=10 * i + j) for j, s in enumerate(shapes)] for i in range(5)]
    params, grads, first, second, targets = lists
    return params, grads, first, [s.square() for s in second], targets


RATES = {"lr": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1.0, "tau": 0.005}


@pytest.mark.parametrize("step", [3, torch.tensor(3)], ids=["int", "tensor"])
def test_adam_ema_step(step):
    ours, exact = state(), state()
    exact = [[x.double() for x in part] for part in exact]
    norm = triton.adam_ema_step(*ours, step, **RATES)
    expected = reference.adam_ema_step(*exact, 3, **RATES)
    agree([norm], [expected], FLOAT32)
    for i in (0, 2, 3, 4):
        agree(ours[i], exact[i], FLOAT32)
    assert all(x._version > 0 for i in (0, 2, 3, 4) for x in ours[i])


def test_registration_of_adam():
    params, grads, first, second, targets = state()
    args = params, grads, [], first, second, targets, torch.tensor(3), *RATES.values()
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(
        torch.ops.sorl_fast.triton_adam_ema_step.default,
        args,
        test_utils=("test_schema", "test_faketensor"),  # the kernel's table knows addresses
    )


def test_noise_is_that_of_the_definition():
    key = torch.tensor([-5, 7, 11])
    assert (
        float((triton.normals(key, 3, 2, 5) - reference.normals(key, 3, 2, 5)).abs().max()) < 1e-6
    )
    assert torch.equal(triton.words(key, 9), reference.words(key, 9))
