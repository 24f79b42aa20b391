"""The native operations against the float64 definition: values, gradients, registration, bits."""

import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import some_fast
from networks import agree, double, flat, layers, normal

from sorl_fast import ops
from sorl_fast.errors import BadInput
from sorl_fast.layout import Layout
from sorl_fast.ops import reference

native = pytest.importorskip("sorl_fast.ops.native")
_native = native._native

from tolerances import FLOAT32, NATIVE_BF16  # noqa: E402

LANES = [(p, isa) for p in ("fp32", "bf16") for isa in _native.train_isas(p)]
BOUND = {"fp32": FLOAT32, "bf16": NATIVE_BF16}


@pytest.fixture(autouse=True)
def poison():
    """Fill lent memory with NaN bytes: whoever reads what nobody wrote is found out."""
    _native.lease_fill(0xFF)
    yield
    _native.lease_fill(-1)
    os.environ.pop("SORL_CPU_ISA", None)
    ops.configure()


@pytest.fixture(params=LANES, ids=lambda lane: "-".join(lane))
def lane(request, monkeypatch):
    precision, isa = request.param
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    return precision


def bound_of(precision, plain, exact):
    """The bound, or more where a network magnifies rounding, as PyTorch's own float32 shows.

    bf16 keeps 16 bits less than float32.
    """
    own = max(
        float((x.detach() - y.detach()).abs().max() / y.detach().abs().max().clamp_min(1e-30))
        for x, y in zip(plain, exact, strict=True)
    )
    return max(BOUND[precision], own * (4 if precision == "fp32" else 2**15))


def compare(fast, slow, net, inputs, precision):
    """Value and all gradients of fast(net, *inputs) against slow in float64."""

    def solved(function, net, inputs):
        value = function(net, *inputs)
        leaves = [*flat(net), *(i for i in inputs if i.requires_grad)]
        grad = normal(*value.shape, seed=3).to(value)
        return [value, *torch.autograd.grad(value, leaves, grad)]

    exact = solved(slow, double(net), [double(i) for i in inputs])
    bound = bound_of(precision, solved(slow, net, inputs), exact)
    agree(solved(fast, net, inputs), exact, bound)


SHAPES = [
    # B, O, A, H, depth
    (1, 1, 1, 8, 1),
    (7, 28, 5, 64, 2),
    (257, 69, 21, 33, 3),
    (33, 28, 5, 512, 4),
    (31, 40, 5, 48, 5),
    (33, 28, 5, 544, 2),
]
SHAPE_IDS = ["tiny", "B7", "B257-O69-A21-H33", "H512", "depth5", "H544"]


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_velocity(lane, shape):
    B, O, A, H, depth = shape
    t, log2 = torch.arange(B) % 8 / 8, (torch.arange(B) % 4).float()
    inputs = normal(B, O).requires_grad_(), normal(B, A, seed=8).requires_grad_()
    compare(
        lambda net, x, z: native.velocity(net, x, z, t, log2, lane),
        lambda net, x, z: reference.velocity(net, x, z, t.to(x), log2.to(x)),
        *(layers(O, A, H, depth), inputs, lane),
    )


@pytest.mark.parametrize("M", some_fast([1, 2, 4, 8], 4), ids=lambda m: f"M{m}")
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_rollout(lane, shape, M):
    B, O, A, H, depth = shape
    # small noise: an action at the clip's edge may fall on either side of it, and its gradient with it
    inputs = normal(B, O).requires_grad_(), normal(B, A, seed=8, scale=0.1).requires_grad_()
    net = layers(O, A, H, depth)
    with torch.no_grad():
        for x in net[-1]:
            x *= 0.2
    compare(
        lambda net, x, z: native.rollout(net, x, z, M, lane),
        lambda net, x, z: reference.rollout(net, x, z, M),
        *(net, inputs, lane),
    )


@pytest.mark.parametrize("log2_steps", [0.0, 2.5])
def test_rollout_of_an_actor_that_is_fed_another_step_size(lane, log2_steps):
    inputs = normal(33, 28).requires_grad_(), normal(33, 5, seed=8, scale=0.1).requires_grad_()
    net = layers(28, 5, 64, 3, last=0.2)
    compare(
        lambda net, x, z: native.rollout(net, x, z, 10, lane, log2_steps),
        lambda net, x, z: reference.rollout(net, x, z, 10, log2_steps),
        *(net, inputs, lane),
    )


def test_a_column_that_is_fed_zero_has_a_gradient_of_exactly_zero(lane):
    actor, critic = layers(6, 3, 33, 2, last=0.2), layers(6, 3, 33, 2, E=2)
    x, z, zero = normal(40, 6), normal(40, 3, scale=0.1), torch.zeros(40)
    outputs = {
        9: (actor, native.velocity(actor, x, z, zero, zero, lane)),  # t and log2(1/h)
        10: (actor, native.rollout(actor, x, z, 10, lane, 0.0)),  # log2(1/h) alone
        -1: (critic, native.critic_ensemble(critic, x, z, 0, lane)),  # k
        6: (actor, native.velocity(actor, x, torch.zeros(40, 3), zero, zero, lane)),  # z too
    }
    for first, (net, y) in outputs.items():
        (grad,) = torch.autograd.grad(y.square().sum(), net[0][0])
        assert (grad[..., first:, :] == 0).all()
        assert (grad[..., : first % grad.shape[-2], :] != 0).any()


@pytest.mark.parametrize("E", [1, 3], ids=lambda e: f"E{e}")
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_a_critic_without_action(lane, shape, E):
    B, O, _, H, depth = shape
    compare(
        lambda net, x: native.critic_ensemble(net, x, x[:, :0], 0, lane),
        lambda net, x: reference.critic_ensemble(net, x, x[:, :0], 0),
        *(layers(O, 0, H, depth, E=E), (normal(B, O).requires_grad_(),), lane),
    )


def test_rollout_stops_the_gradient_of_clipped_actions(lane):
    net, noise = layers(3, 2, 32, 1), torch.tensor([[9.0, 0.0], [-9.0, 0.1]], requires_grad=True)
    a = native.rollout(net, normal(2, 3, scale=0.1), noise, 2, lane)
    assert a[0, 0] == 1
    assert a[1, 0] == -1
    (g,) = torch.autograd.grad(a[:, 0].sum(), noise)
    assert (g == 0).all()


@pytest.mark.parametrize("E", some_fast([1, 2, 10], 1, 2), ids=lambda e: f"E{e}")
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_critic_ensemble(lane, shape, E):
    B, O, A, H, depth = shape
    inputs = normal(B, O).requires_grad_(), normal(B, A, seed=8).requires_grad_()
    compare(
        lambda net, x, a: native.critic_ensemble(net, x, a, 4, lane),
        lambda net, x, a: reference.critic_ensemble(net, x, a, 4),
        *(layers(O, A, H, depth, E=E), inputs, lane),
    )


@pytest.mark.parametrize("k", some_fast([1, 8], 8), ids=lambda k: f"k{k}")
@pytest.mark.parametrize("E", some_fast([1, 2, 10], 2), ids=lambda e: f"E{e}")
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_critic_gives_the_actions_gradient_alone(lane, shape, E, k):
    B, O, A, H, depth = shape
    net, obs, actions = layers(O, A, H, depth, E=E), normal(B, O), normal(B, A).requires_grad_()
    frozen = [tuple(x.detach() for x in layer) for layer in net]

    def gradient(function, net, obs, actions):
        return torch.autograd.grad(function(net, obs, actions, k).mean(), actions)

    plain = gradient(reference.critic_ensemble, frozen, obs, actions)
    exact = gradient(reference.critic_ensemble, double(frozen), obs.double(), double(actions))
    got = gradient(lambda *a: native.critic_ensemble(*a, lane), frozen, obs, actions)
    bound = bound_of(lane, plain, exact)
    if lane.startswith("bf16"):  # what rounding the weights alone does; one number's own may be 0
        rounded = [tuple(x.bfloat16().double() for x in layer) for layer in frozen]
        moved = gradient(reference.critic_ensemble, rounded, obs.double(), double(actions))
        bound = max(bound, 4 * float((moved[0] - exact[0]).abs().max() / exact[0].abs().max()))
    agree(got, exact, bound)


@pytest.mark.parametrize("isa", native.isas("fp32"))
def test_the_deepest_network(isa, monkeypatch):
    """In float32: in bf16 little is left of a gradient behind sixteen random layers."""
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    shape = (5, 4, 2, 32, native.MAX_DEPTH)
    test_velocity("fp32", shape)
    test_rollout("fp32", shape, 4)
    test_critic_ensemble("fp32", shape, 2)
    test_critic_gives_the_actions_gradient_alone("fp32", shape, 2, 8)


def test_a_forward_that_nobody_differentiates_gives_the_same_bits(lane):
    net, x, z = layers(28, 5, 64, 2), normal(40, 28), normal(40, 5)
    kept = native.rollout(net, x, z, 4, lane)
    with torch.no_grad():
        assert torch.equal(native.rollout(net, x, z, 4, lane), kept)


@pytest.mark.parametrize("E", [0, 3], ids=["actor", "critic"])
def test_threads_do_not_change_a_bit(lane, E):
    net, x, z = layers(28, 5, 64, 3, E=E), normal(300, 28), normal(300, 5).requires_grad_()
    found = []
    for threads in (1, 2, 3):
        ops.configure(precision=lane, threads=threads)
        op = native.critic_ensemble if E else native.rollout
        y = op(net, x, z, 2, lane)
        found.append([y, *torch.autograd.grad(y.square().sum(), [*flat(net), z])])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_changed_weights_are_packed_again(lane):
    net, x, z = ops.Parameters(layers(4, 2, 32, 2)), normal(3, 4), normal(3, 2)
    before = native.rollout(net, x, z, 2, lane)
    with torch.no_grad():
        net[1][0].mul_(2)
    after = native.rollout(net, x, z, 2, lane)
    assert not torch.equal(before, after)
    agree([after], [reference.rollout(double(net), x.double(), z.double(), 2)], BOUND[lane])


def test_a_write_that_torch_does_not_count_is_seen_after_forget():
    net, x, z = ops.Parameters(layers(4, 2, 32, 2)), normal(3, 4), normal(3, 2)
    before = ops.rollout(net, x, z, 2)
    net[1][0].data.mul_(2)
    assert torch.equal(ops.rollout(net, x, z, 2), before)
    ops.forget()
    after = ops.rollout(net, x, z, 2)
    assert not torch.equal(before, after)
    agree([after], [reference.rollout(double(net), x.double(), z.double(), 2)], FLOAT32)


def test_shapes_that_csrc_would_read_beyond_are_refused():
    net, x, z, t = layers(4, 2, 32, 2), normal(3, 4), normal(3, 2), torch.zeros(3)
    ops.velocity(net, x, z, t, t)
    for inputs in ((x, z, t[:1], t), (x, z, t, t[:2]), (x, normal(5, 2), t, t), (x, z[:0], t, t)):
        with pytest.raises(BadInput, match="must all have the same rows"):
            ops.velocity(net, *inputs)
    for columns in (3, 5):
        with pytest.raises(BadInput, match=r"layer 0 has the shape \[8, 32\]"):
            ops.velocity(net, normal(3, columns), z, t, t)
    for inputs in ((x[0], z, t, t), (x, z[:, 0], t, t), (x, z, t[:, None], t)):
        with pytest.raises(BadInput, match="must all have the same rows"):
            ops.velocity(net, *inputs)
    net[1] = (net[1][0][:, :31].contiguous(), net[1][1])
    with pytest.raises(
        BadInput, match=r"layer 1 has the shape \[32, 31\], but must have \[32, 32\]"
    ):
        ops.velocity(net, x, z, t, t)


@pytest.mark.parametrize("E", [0, 2])
def test_a_last_layer_of_another_width_is_refused(E):
    # csrc would write as many numbers as the layer is wide
    net, x, z = layers(4, 2, 32, 2, E=E), normal(3, 4), normal(3, 2)
    wide = [p.repeat(*[1] * (p.ndim - 1), 3).contiguous() for p in net[-1]]
    call = ops.critic_ensemble if E else ops.rollout
    with pytest.raises(BadInput, match=r"layer 2 has the shape .*, but must have .* actions of 2"):
        call([*net[:-1], wide], x, z, 2)


def test_a_gradient_of_another_shape_is_refused():
    net, x, z = layers(4, 2, 32, 2), normal(3, 4), normal(3, 2)
    isa = native.choose_isa("fp32")
    _, saved = native._rollout(flat(net), x, z, 2, 1.0, "fp32", True)
    for shape in ((3, 1), (3, 3), (3,)):
        with pytest.raises(BadInput, match=r"gradient has the shape .*, but must be \[3, 2\]"):
            native._backward(
                *(torch.zeros(shape), flat(net), saved, False, True, 2, 2, "fp32", isa),
                *(True, True, True),
            )


@pytest.mark.parametrize("part", range(1, 6))
def test_the_optimiser_refuses_other_shapes_than_the_parameters(part):
    lists = [[normal(3, 4), normal(4)] for _ in range(6)]
    lists[part][0] = lists[part][0].T.contiguous()
    params, grads, more, *state = lists
    name = ("grads", "more_grads", "first", "second", "targets")[part - 1]
    with pytest.raises(BadInput, match=rf"{name} have the shapes \[\[4, 3\], \[4\]\]"):
        native._adam_ema_step(params, grads, more, *state, 1, *[0.1] * 6)


def test_no_rows_have_gradients_of_zero():
    net = layers(4, 2, 32, 2)
    x, z = (torch.empty(0, n, requires_grad=True) for n in (4, 2))
    y = native.rollout(net, x, z, 2, "fp32")
    grads = torch.autograd.grad(y.sum(), [*flat(net), x, z])
    assert all(not g.any() for g in grads)
    assert [g.shape for g in grads[-2:]] == [(0, 4), (0, 2)]


def test_threads_meet_at_a_networks_first_gradient():
    x, z = normal(64, 4), normal(64, 2)

    def gradients(net):
        return torch.autograd.grad(native.rollout(net, x, z, 4, "fp32").sum(), flat(net))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            net = ops.Parameters(layers(4, 2, 64, 3))
            found = list(pool.map(gradients, [net] * 4))
            assert all(torch.equal(a, b) for g in found for a, b in zip(g, found[0], strict=True))


def test_parameters_of_inference_mode_go_to_the_definition():
    with torch.inference_mode():
        net = [tuple(x.detach().clone() for x in layer) for layer in layers(4, 2, 32, 2)]
        x, z = normal(3, 4), normal(3, 2)
        assert torch.equal(ops.rollout(net, x, z, 2), reference.rollout(net, x, z, 2))


def test_the_optimiser_obeys_the_instruction_set_where_it_can(monkeypatch):
    asked = []
    monkeypatch.setattr(native, "_native", SimpleNamespace(**vars(_native)))
    monkeypatch.setattr(native._native, "adam", lambda isa, *_: asked.append(isa) or 1.0)
    p = [torch.zeros(3)]
    there = native.isas("fp32")
    for wanted, got in ((there[0], there[0]), ("", there[-1]), ("no fp32", there[-1])):
        monkeypatch.setenv("SORL_CPU_ISA", wanted)
        native._adam_ema_step(p, p, [], p, p, p, 1, *[0.1] * 6)
        assert asked.pop() == got


def test_weights_changed_between_forward_and_backward_are_refused(lane):
    net, x, z = layers(4, 2, 32, 2), normal(3, 4), normal(3, 2)
    y = native.rollout(net, x, z, 2, lane)
    with torch.no_grad():
        net[1][0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_nan_comes_out(lane):
    net, x, z = layers(4, 2, 32, 2), normal(3, 4), normal(3, 2)
    x[1, 2] = torch.nan
    y = native.rollout(net, x, z, 2, lane)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()
    q = native.critic_ensemble(layers(4, 2, 32, 2, E=2), x, z, 2, lane)
    assert q[:, 1].isnan().all()
    assert q[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("clip_norm", [1e-2, 1e6], ids=["clipped", "free"])
@pytest.mark.parametrize("parts", [1, 2], ids=["one-part", "two-parts"])
@pytest.mark.parametrize("isa", native.isas("fp32"))
def test_adam_ema_step(clip_norm, parts, isa, monkeypatch):
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    shapes = [(300, 70), (70,), (2, 33, 1), (1,)]
    params = [normal(*s, seed=i) for i, s in enumerate(shapes)]
    mine = [[x.clone() for x in params], *([torch.zeros(s) for s in shapes] for _ in range(2))]
    mine.append([x.clone() for x in params])
    exact = [[x.double() for x in group] for group in mine]
    rates = dict(lr=1e-2, b1=0.9, b2=0.999, eps=1e-8, clip_norm=clip_norm, tau=0.1)
    for step in range(1, 5):
        grads = [
            [normal(*s, seed=10 * step + i + p) for i, s in enumerate(shapes)] for p in range(parts)
        ]
        total = [sum(x.double() for x in g) for g in zip(*grads, strict=True)]
        p, m, v, target = mine
        more = grads[1] if parts == 2 else ()
        got = native.adam_ema_step(p, grads[0], m, v, target, step, **rates, more_grads=more)
        p, m, v, target = exact
        norm = reference.adam_ema_step(p, total, m, v, target, step, **rates)
        assert float(got) == pytest.approx(float(norm), rel=1e-6)
        for a, b in zip(mine, exact, strict=True):
            agree(a, b, 2e-6)


@pytest.mark.parametrize("targets", [True, False], ids=["ema", "no-target"])
@pytest.mark.parametrize("isa", native.isas("fp32"))
def test_adam_with_an_ema_of_before_the_step_or_none(targets, isa, monkeypatch):
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    shapes = [(300, 70), (70,), (1,)]
    mine = [[normal(*s, seed=i + k).abs() for i, s in enumerate(shapes)] for k in range(4)]
    exact = [[x.double() for x in group] for group in mine]
    grads = [normal(*s, seed=9) for s in shapes]
    rates = dict(lr=1e-1, b1=0.9, b2=0.999, eps=1e-8, clip_norm=math.inf, tau=0.3, ema_before=True)
    for step in (1, 2):
        for function, (p, m, v, target) in (
            (native.adam_ema_step, mine),
            (reference.adam_ema_step, exact),
        ):
            own = [g.to(p[0].dtype, copy=True) for g in grads]
            function(p, own, m, v, target if targets else [], step, **rates)
    for a, b in zip(mine, exact, strict=True):
        agree(a, b, 2e-6)


@pytest.mark.parametrize("function", [native.adam_ema_step, reference.adam_ema_step])
@pytest.mark.parametrize("size", [0.0, 1e30], ids=["zero", "beyond-float32"])
def test_without_a_clip_a_gradient_of_any_size_is_followed(function, size):
    p, g, m, v, target = ([torch.full((40,), x)] for x in (1.0, size, 0.5, 1.0, 0.0))
    rates = dict(lr=0.1, b1=0.5, b2=1.0 - 1e-9, eps=1e-8, clip_norm=math.inf, tau=0.5)
    function(p, g, m, v, target, 1, **rates)
    assert m[0][0] == pytest.approx(0.25 + size / 2)
    assert not m[0].isnan().any()


@pytest.mark.parametrize("clip_norm", [1.0, math.inf], ids=["clipped", "free"])
@pytest.mark.parametrize("function", [native.adam_ema_step, reference.adam_ema_step])
def test_a_norm_that_is_not_a_number_reaches_every_parameter(function, clip_norm):
    shapes = [(300, 70), (5,)]
    p, m, v, target, g = (
        [normal(*s, seed=i).abs() for i, s in enumerate(shapes)] for _ in range(5)
    )
    g[0][17, 3] = torch.nan
    rates = dict(lr=0.1, b1=0.9, b2=0.99, eps=1e-8, clip_norm=clip_norm, tau=0.1)
    assert function(p, g, m, v, target, 1, **rates).isnan()
    assert all(x.isnan().all() for x in (*p, *m, *v, *target))


@pytest.mark.parametrize("clip_norm", [1.0, math.inf], ids=["clipped", "free"])
@pytest.mark.parametrize("isa", native.isas("fp32"))
def test_threads_do_not_change_a_bit_of_the_optimiser(isa, clip_norm, monkeypatch):
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    rates = dict(lr=1e-2, b1=0.9, b2=0.999, eps=1e-8, clip_norm=clip_norm, tau=0.1)
    found = []
    for threads in (1, 2, 3):
        ops.configure(threads=threads)
        lists = [[normal(700, 300, seed=i).abs(), normal(7, seed=i).abs()] for i in range(5)]
        norm = native.adam_ema_step(*lists, 3, **rates)
        found.append([norm, *(x for group in lists for x in group)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_adam_tells_torch_that_it_wrote():
    lists = [[torch.ones(3)] for _ in range(5)]
    rates = dict(lr=0.1, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0, tau=0.1)
    versions = [x[0]._version for x in lists]
    native.adam_ema_step(*lists, 1, **rates)
    changed = [x[0]._version > v for x, v in zip(lists, versions, strict=True)]
    assert changed == [True, False, True, True, True]


def test_a_zero_gradient_leaves_the_parameters_finite():
    lists = [[torch.zeros(40)] for _ in range(5)]
    rates = dict(lr=0.1, b1=0.9, b2=0.99, eps=1e-8, clip_norm=1.0, tau=0.1)
    native.adam_ema_step(*lists, 1, **rates)
    assert lists[0][0].isfinite().all()


def opcheck_cases(precision="fp32"):
    actor, critic = flat(layers(4, 2, 32, 2)), flat(layers(4, 2, 32, 2, E=2))
    x, z = normal(5, 4), normal(5, 2, scale=0.1).requires_grad_()
    t, log2 = torch.zeros(5), torch.full((5,), 3.0)
    yield "velocity", (actor, x, z, t, log2, precision, True)
    yield "rollout", (actor, x, z, 2, 1.0, precision, True)
    yield "critic_ensemble", (critic, x, z, 2, precision, True)
    _, saved = torch.ops.sorl_fast.rollout(actor, x, z, 2, 1.0, precision, True)
    actor = [p.detach() for p in actor]
    isa = native.choose_isa(precision)
    tail = (actor, saved, False, True, 2, 2, precision, isa, True, True, True)
    yield "network_backward", (normal(5, 2), *tail)
    groups = [[torch.ones(3)] for _ in range(5)]
    params, grads, first, second, targets = groups
    rates = (torch.tensor(1), 1e-3, 0.9, 0.99, 1e-8, 1.0, 0.1)
    yield "adam_ema_step", (params, grads, [], first, second, targets, *rates)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
@pytest.mark.parametrize("precision", [p for p in ("fp32", "bf16") if native.isas(p)])
@pytest.mark.parametrize("name", [name for name, _ in opcheck_cases()])
def test_opcheck(name, precision):
    _native.lease_fill(0)  # the bytes kept for backward are compared too, padding and all
    arguments = dict(opcheck_cases(precision))[name]
    torch.library.opcheck(getattr(torch.ops.sorl_fast, name).default, arguments)


@pytest.mark.parametrize("norm", [False, True], ids=["actor", "critic"])
def test_both_sides_count_the_same_bytes(lane, norm):
    for B, O, A, H, depth in SHAPES:
        for steps in (1,) if norm else (1, 8):
            params = flat(layers(O, A, H, depth, E=3 if norm else 0))
            sizes = Layout.of(params, O, A, norm)
            isa = os.environ["SORL_CPU_ISA"]
            net = _native.TrainNet(**asdict(sizes), precision=lane, isa=isa)
            assert net.saved_bytes(B, steps) == native.saved_bytes(sizes, B, steps, lane, isa)


def test_a_gradient_is_of_the_instruction_set_of_its_forward(lane, monkeypatch):
    net, x, z = layers(28, 5, 64, 2), normal(5, 28), normal(5, 5)
    out = native.rollout(net, x, z, 2, lane)
    expected = torch.autograd.grad(out.sum(), flat(net), retain_graph=True)
    for isa in _native.train_isas(lane):
        monkeypatch.setenv("SORL_CPU_ISA", isa)
        for a, b in zip(
            torch.autograd.grad(out.sum(), flat(net), retain_graph=True), expected, strict=True
        ):
            assert torch.equal(a, b)


def test_bytes_of_another_layout_are_refused():
    if not {"avx512", "avx512_bf16"} <= set(native.isas("bf16")):
        pytest.skip("only one layout of bf16 here")
    net, x, z = flat(layers(4, 2, 32, 2)), normal(5, 4), normal(5, 2)
    with torch.no_grad():
        os.environ["SORL_CPU_ISA"] = "avx512"
        _, saved = torch.ops.sorl_fast.rollout(net, x, z, 2, 1.0, "bf16", True)
    tail = (net, saved, False, True, 2, 2, "bf16", "avx512_bf16", True, False, False)
    with pytest.raises(RuntimeError, match="it ran on another instruction set"):
        torch.ops.sorl_fast.network_backward(normal(5, 2), *tail)


def test_a_second_derivative_is_refused(lane):
    net, x = layers(4, 2, 32, 2), normal(5, 4)
    z = normal(5, 2).requires_grad_()
    (first,) = torch.autograd.grad(native.rollout(net, x, z, 2, lane).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(first.sum(), z)


@pytest.mark.parametrize("isa", _native.train_isas("bf16"))
def test_bf16_reads_weights_as_bf16(isa, monkeypatch):
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    # an actor: a critic's gains are multiplied into its weights before they are rounded
    rounded = [[p.detach() for p in layer] for layer in layers(28, 5, 64, 3)]
    for layer in rounded:
        layer[0] = layer[0].bfloat16().float()
    # less than half of bf16's last digit away
    near = [[layer[0] * (1 + 2.0**-11), *layer[1:]] for layer in rounded]
    x, z = normal(5, 28), normal(5, 5)
    one, other = (native.rollout(net, x, z, 2, "bf16") for net in (rounded, near))
    assert torch.equal(one, other)


def test_memory_is_used_again(lane):
    net, x, z = layers(28, 5, 64, 2), normal(256, 28), normal(256, 5)
    idle = []
    for _ in range(3):
        torch.autograd.grad(native.rollout(net, x, z, 4, lane).sum(), flat(net))
        idle.append(_native.lease_idle_bytes())
    assert idle[0] == idle[1] == idle[2]


EMULATED = """
import ctypes, os, sys
from sorl_fast import _native, ops
if sys.argv[2] == "emulated":
    assert ctypes.CDLL(sys.argv[1]).emulate_tiles() == 1
    _native._assume_tiles_for_test()
assert _native.train_isas("bf16")[-1] == "amx"
_native.lease_fill(0xFF)
from ops import test_native as t
for shape in [*t.SHAPES[:3], (9, 28, 5, 512, 4)]:
    t.test_velocity("bf16", shape)
    t.test_rollout("bf16", shape, 2)
    t.test_critic_ensemble("bf16", shape, 2)
    t.test_critic_gives_the_actions_gradient_alone("bf16", shape, 2, 8)
for M in (1, 4, 8):
    t.test_rollout("bf16", t.SHAPES[1], M)
t.test_critic_ensemble("bf16", t.SHAPES[1], 10)
for E in (0, 3):
    t.test_threads_do_not_change_a_bit("bf16", E)
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="AMX is of x86-64")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build the emulator")
def test_amx_emulated(tmp_path):
    """The tiles' object code itself, its instructions emulated where the machine has none."""
    tests = Path(__file__).parent.parent
    emulated = "amx" not in native.isas("bf16")
    if emulated and "amx_tile" in Path("/proc/cpuinfo").read_text():
        pytest.skip("the machine has tiles, but refuses them: nothing to emulate")
    library = tmp_path / "tile_emulator.so"
    command = ["g++", "-std=c++17", "-O2", "-mfma", "-fPIC", "-shared", "-o", library]
    subprocess.run([*command, tests / "native" / "tile_emulator.cpp"], check=True)
    if "avx512_vnni" not in _native.isas("int8"):
        pytest.skip("the code around the tiles needs AVX-512 and its VNNI")
    done = subprocess.run(
        [sys.executable, "-c", EMULATED, library, "emulated" if emulated else "real"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])},
        timeout=250,
    )
    assert done.stdout == "done\n", done.stderr
