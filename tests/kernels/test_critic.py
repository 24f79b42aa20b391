"""The critic's kernels against the float64 definition, values and gradients."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import normal_layers, packed
from sorl_fast.kernels import critic
from sorl_fast.kernels.tiles import Tile
from tolerances import CRITIC_GRADIENTS as GRADIENTS
from tolerances import CRITIC_VALUES as VALUES

from sorl_fast.layout import LETTERS, Layout
from sorl_fast.ops import reference

from .place import generator

# slow: in all longer than the everyday loop has
pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.slow]


class Problem(NamedTuple):
    layers: list
    obs: torch.Tensor
    actions: torch.Tensor
    grad: torch.Tensor
    k: float

    @property
    def params(self):
        return [x for layer in self.layers for x in layer]

    def packed(self, precision="fp32"):
        return packed(self.layers, Layout.of_obs(self.params, self.obs.shape[1], True), precision)

    def forward(self, net, **more):
        return critic.critic_ensemble(net, self.obs, self.actions, self.k, **more)

    def backward(self, net, saved, weights=True, to_obs=True, to_act=True, tile=None):
        return critic.backward(
            *(net, self.obs, self.actions, self.k, saved, self.grad),
            weights=weights, to_obs=to_obs, to_act=to_act, tile=tile,
        )  # fmt: skip


def problem(E=2, O=5, A=3, H=64, L=2, B=7, k=4.0, seed=0):
    g = generator(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    layers = normal_layers(Layout.critic(O, A, H, L, E), normal, last=(1.0, 1.0))
    return Problem(layers, normal(B, O), normal(B, A), normal(E, B) / max(B, 1), k)


def truth(p):
    """Return Q and the gradients in float64."""
    params = [x.double().requires_grad_() for x in p.params]
    rest = iter(params)
    layers = [tuple(next(rest) for _ in layer) for layer in p.layers]
    obs, actions = p.obs.double().requires_grad_(), p.actions.double().requires_grad_()
    q = reference.critic_ensemble(layers, obs, actions, p.k)
    return q.detach(), torch.autograd.grad((q * p.grad).sum(), [*params, obs, actions])


def names(p):
    layers = len(p.layers)
    own = [f"{name}{i}" for i in range(layers - 1) for name in LETTERS]
    return [*own, "w last", "b last", "obs", "actions"]


def close(found, exact, bound, name="q"):
    assert found.dtype == torch.float32
    assert found.shape == exact.shape, name
    if exact.numel() == 0:
        return
    error = float((found - exact).abs().max() / exact.abs().max().clamp(min=1e-30))
    assert error < bound, name  # a NaN fails too


def check(p, precision="fp32", tile=None):
    q, gradients = truth(p)
    net = p.packed(precision)
    found, saved = p.forward(net, save=True, tile=tile)
    close(found, q, VALUES[precision])
    given_back = p.backward(net, saved, tile=tile)
    for name, x, exact in zip(names(p), given_back, gradients, strict=True):
        close(x, exact, GRADIENTS[precision], name)


SHAPES = {
    "A1-O2": dict(A=1, O=2, B=1),
    "A5-O28-ragged": dict(A=5, O=28, B=33),
    "A21-O69-deep": dict(A=21, O=69, B=17, L=4),
    "A70-O1": dict(A=70, O=1, B=3, L=1),
    "ten-members": dict(E=10, O=28, A=5, B=5),
    "one-member-wide": dict(E=1, H=128, B=16),
    "width-192": dict(H=192, O=69, A=21, B=2),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(shape):
    check(problem(**shape))


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
@pytest.mark.parametrize("shape", ["A5-O28-ragged", "A21-O69-deep"])
def test_values_and_gradients_in_other_precisions(precision, shape):
    check(problem(**SHAPES[shape]), precision)


TILES = [Tile(16, 64, 16, 4, 1), Tile(32, 32, 64, 8, 2), Tile(64, 16, 32, 1, 1)]


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.BM}x{t.BN}x{t.BK}")
def test_any_tile_serves(tile):
    check(problem(O=28, A=5, B=37, L=3), tile=tile)


@settings(max_examples=8, deadline=None)
@given(
    E=st.integers(1, 3), O=st.integers(1, 70), A=st.integers(1, 25), L=st.integers(1, 3),
    B=st.integers(0, 40), k=st.sampled_from([1.0, 2.0, 8.0]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_shape_serves(E, O, A, L, B, k, seed):
    check(problem(E, O, A, 64, L, B, k, seed))


def test_saving_changes_nothing():
    p = problem(B=21)
    net = p.packed("bf16")
    q, saved = p.forward(net)
    kept, (pre, stats) = p.forward(net, save=True)
    assert saved == []
    torch.testing.assert_close(q, kept, rtol=0, atol=0)
    assert (pre.shape, pre.dtype) == ((2, 2, 21, 64), torch.bfloat16)
    assert (stats.shape, stats.dtype) == ((2, 2, 21, 2), torch.float32)
    assert pre.isfinite().all()
    assert stats.isfinite().all()


@pytest.mark.parametrize(
    ("weights", "to_obs", "to_act"),
    [(False, False, True), (False, True, False), (True, False, False), (True, False, True)],
    ids=["act", "obs", "weights", "weights-act"],
)
def test_parts_of_the_backward_are_those_of_the_whole(monkeypatch, weights, to_obs, to_act):
    p = problem(B=9)
    net = p.packed()
    _, saved = p.forward(net, save=True)
    *of_params, of_obs, of_act = p.backward(net, saved)
    wanted = [*(of_params if weights else []), *([of_obs] * to_obs), *([of_act] * to_act)]
    launches = []
    launch = critic._launch

    def watched(*args, **more):
        launches.append(more)
        launch(*args, **more)

    monkeypatch.setattr(critic, "_launch", watched)
    found = p.backward(net, saved, weights, to_obs, to_act)
    for x, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, exact, rtol=0, atol=0)
    if not weights:
        assert all(launches[0][name].numel() == 0 for name in ("into", "lefts", "partial"))


def test_no_rows():
    p = problem(B=0)
    net = p.packed()
    q, saved = p.forward(net, save=True)
    assert q.shape == (2, 0)
    for x, like in zip(p.backward(net, saved), [*p.params, p.obs, p.actions], strict=True):
        assert x.shape == like.shape
        assert (x == 0).all()


@pytest.mark.parametrize(
    ("bad", "precision"),
    [(torch.nan, "fp32"), (torch.inf, "bf16"), (-torch.inf, "fp16"), (1e38, "fp32")],
)
def test_a_row_that_is_not_finite_disturbs_no_other(bad, precision):
    p = problem(B=18)
    net = p.packed(precision)
    q, saved = p.forward(net, save=True)
    of_obs, of_act = p.backward(net, saved, weights=False)
    p.obs[3, 1] = bad
    p.actions[17, 0] = bad
    found, saved = p.forward(net, save=True)
    of_obs_there, of_act_there = p.backward(net, saved, weights=False)
    others = torch.ones(18, dtype=torch.bool)
    others[[3, 17]] = False
    for x, clean in ((found.T, q.T), (of_obs_there, of_obs), (of_act_there, of_act)):
        torch.testing.assert_close(x[others], clean[others], rtol=0, atol=0)
    assert found[:, others].isfinite().all()
    assert not found[:, ~others].isfinite().any()


@pytest.mark.parametrize("size", [1e17, 1e25, 3e38])
def test_an_overflow_within_gives_what_pytorch_gives(size):
    """The variance of 1e25 overflows float32, which is a NaN; that of 1e17 does not."""
    p = problem(B=2, L=1)
    p.obs[0] = size
    q = reference.critic_ensemble(p.layers, p.obs, p.actions, p.k)
    found, _ = p.forward(p.packed())
    assert found[:, 0].isnan().all() == (size > 1e20)
    torch.testing.assert_close(found, q, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_member_without_gradient_learns_nothing():
    p = problem(E=3, B=11)
    p.grad[1] = 0.0
    net = p.packed()
    _, saved = p.forward(net, save=True)
    *of_params, of_obs, of_act = p.backward(net, saved)
    assert all((x[1] == 0).all() for x in of_params)
    _, exact = truth(p)
    close(of_obs, exact[-2], 1e-5)
    close(of_act, exact[-1], 1e-5)


def test_small_gradients_survive_fp16():
    p = problem(B=12)
    tiny = p._replace(grad=p.grad * 1e-7)
    net = p.packed("fp16")
    _, saved = p.forward(net, save=True)
    for name, x, exact in zip(names(p), tiny.backward(net, saved), truth(tiny)[1], strict=True):
        close(x, exact, GRADIENTS["fp16"], name)


def test_a_large_mean_does_not_cancel_in_the_variance():
    """With E[x^2] - E[x]^2 the error would be above 1e-2."""
    p = problem(B=6, L=1)
    w, b, g, c = p.layers[0]
    p.layers[0] = (w * 0.1, b + 100.0, g, c)
    found, _ = p.forward(p.packed())
    close(found, truth(p)[0], 5e-4)


def test_positions_keep_their_digits_in_bf16():
    """An observation of 50 in bf16 would be known to a quarter; the first layer takes 16 bits."""
    p = problem(O=2, B=8)
    p.obs.mul_(0.05).add_(50.0)
    p.layers[0][0][:, :2] *= 20.0
    p.layers[0][1].sub_(p.layers[0][0][:, :2].sum(1) * 50.0)
    p = p._replace(layers=[tuple(x.bfloat16().float() for x in layer) for layer in p.layers])
    found, _ = p.forward(p.packed("bf16"))
    close(found, truth(p)[0], VALUES["bf16"])
