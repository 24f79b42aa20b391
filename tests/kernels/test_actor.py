"""The actor's kernels against the definition in float64, forward and backward."""

import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import flat, normal_layers, packed
from sorl_fast.kernels import actor
from sorl_fast.kernels.tiles import Tile
from tolerances import FLOAT32, KERNEL, ON_GPU

from sorl_fast.act import philox
from sorl_fast.layout import Layout
from sorl_fast.ops import reference

from .place import generator, here

# slow: in all longer than the everyday loop has
pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.slow]


class Shape(NamedTuple):
    B: int
    O: int
    A: int
    M: int
    L: int = 2
    H: int = 64


class Case:
    """An actor with inputs whose rollout keeps away from -1 and 1, where a rounding error could
    decide whether the clip passes a gradient on.
    """

    def __init__(self, shape, seed=0):
        self.shape = shape
        B, O, A, _, L, H = shape
        g = generator(seed)

        def normal(*size, scale=1.0):
            return scale * torch.randn(*size, generator=g)

        self.layout = Layout.actor(O, A, H, L)
        self.params = flat(normal_layers(self.layout, normal, w=1.4, b=0.2, last=(0.1, 0.1)))
        self.obs = normal(B, O)
        outside = torch.rand(B, A, generator=g) < 0.4
        self.noise = normal(B, A, scale=0.03) + torch.where(outside, 2.0, 0.3)
        self.noise *= normal(B, A).sign()
        self.t = torch.rand(B, generator=g)
        self.log2_steps = torch.randint(0, 4, (B,), generator=g).float()
        self.grad = normal(B, A)

    def net(self, precision="fp32"):
        return packed([self.params], self.layout, precision)

    def run(self, of_rollout, precision="fp32", *, save=True, tile=None, **options):
        if of_rollout:
            rest = (self.noise, self.shape.M)
            return actor.rollout(
                self.net(precision), self.obs, *rest, save=save, tile=tile, **options
            )
        rest = (self.noise, self.t, self.log2_steps)
        return actor.velocity(self.net(precision), self.obs, *rest, save=save, tile=tile)

    def gradients(self, of_rollout, precision="fp32", *, saved=None, tile=None, **options):
        saved = self.run(of_rollout, precision, tile=tile)[1] if saved is None else saved
        steps = self.shape.M if of_rollout else 1
        wanted = dict(weights=True, to_obs=True, to_act=True) | options
        rest = dict(rollout=of_rollout, tile=tile) | wanted
        return actor.backward(self.net(precision), self.obs, saved, self.grad, steps, **rest)

    def expected(self, of_rollout, clip=True):
        """The value, and the gradients of parameters, observations and noise, in float64."""
        leaves = [x.double().requires_grad_() for x in (*self.params, self.obs, self.noise)]
        *params, obs, noise = leaves
        layers = list(zip(params[::2], params[1::2], strict=True))
        if of_rollout:
            function = reference.rollout if clip else reference.denoise
            value = function(layers, obs, noise, self.shape.M)
        else:
            value = reference.velocity(
                layers, obs, noise, self.t.double(), self.log2_steps.double()
            )
        return value.detach(), torch.autograd.grad(value, leaves, self.grad.double())


def error(x, expected):
    assert x.shape == expected.shape
    assert x.dtype == torch.float32
    return float((x - expected).abs().amax() / expected.abs().amax().clamp_min(1e-30))


def agree(xs, expected, tolerance):
    layers = range((len(xs) - 2) // 2)
    names = [*(f"{kind}{i}" for i in layers for kind in "wb"), "obs", "act"]
    errors = [error(x, y) for x, y in zip(xs, expected, strict=True)]
    bad = {name: e for name, e in zip(names, errors, strict=True) if not e <= tolerance}
    assert not bad, f"above {tolerance}: {bad}"


SHAPES = [
    Shape(B=5, O=28, A=5, M=2, L=4),
    Shape(B=33, O=69, A=21, M=1),
    Shape(B=1, O=2, A=1, M=8, L=1),
    Shape(B=16, O=28, A=1, M=1, L=3, H=128),
    Shape(B=17, O=2, A=21, M=2, L=1, H=192),
    Shape(B=18, O=69, A=5, M=8),
]
EVERY_PRECISION = [(shape, "fp32") for shape in SHAPES]
EVERY_PRECISION += [(SHAPES[0], "tf32"), (SHAPES[0], "fp16"), (SHAPES[5], "fp16")]
EVERY_PRECISION += [(SHAPES[0], "bf16"), (SHAPES[1], "bf16"), (SHAPES[5], "bf16")]


def case_id(value):
    if isinstance(value, Shape):
        return "-".join(f"{k}{v}" for k, v in value._asdict().items())
    return value


@pytest.mark.parametrize("of_rollout", [True, False], ids=["rollout", "velocity"])
@pytest.mark.parametrize(("shape", "precision"), EVERY_PRECISION, ids=case_id)
def test_values_and_gradients(shape, precision, of_rollout):
    case = Case(shape)
    value, gradients = case.expected(of_rollout)
    out, saved = case.run(of_rollout, precision)
    assert error(out, value) <= KERNEL[precision]
    agree(case.gradients(of_rollout, precision, saved=saved), gradients, KERNEL[precision])
    torch.testing.assert_close(case.run(of_rollout, precision, save=False)[0], out, rtol=0, atol=0)
    assert case.run(of_rollout, precision, save=False)[1] == []


@pytest.mark.parametrize(
    "tile",
    [Tile(16, 64, 32, 4, 2), Tile(32, 128, 32, 8, 1), Tile(64, 32, 128, 4, 3)],
    ids=lambda t: "x".join(map(str, t)),
)
@pytest.mark.parametrize("of_rollout", [True, False], ids=["rollout", "velocity"])
def test_any_tile(tile, of_rollout):
    case = Case(Shape(B=35, O=5, A=3, M=2, L=3, H=128))
    value, gradients = case.expected(of_rollout)
    assert error(case.run(of_rollout, tile=tile)[0], value) <= FLOAT32
    agree(case.gradients(of_rollout, tile=tile), gradients, FLOAT32)


def test_without_the_clip():
    case = Case(SHAPES[0])
    value, gradients = case.expected(True, clip=False)
    out, saved = case.run(True, clip=False)
    assert value.abs().amax() > 1.5
    assert error(out, value) <= FLOAT32
    agree(case.gradients(True, saved=saved, clip=False), gradients, FLOAT32)


def test_the_clip_passes_gradients_at_its_ends_and_no_further():
    case = Case(Shape(B=1, O=2, A=5, M=1))
    case.params[-2].zero_()
    case.params[-1].zero_()
    case.noise = torch.tensor([[-1.0, 1.0, -1.0001, 1.0001, 0.0]])
    case.grad = torch.ones(1, 5)
    assert case.run(True)[0][0].tolist() == [-1, 1, -1, 1, 0]
    assert case.gradients(True)[-1][0].tolist() == [1, 1, 0, 0, 1]


@pytest.mark.parametrize("of_rollout", [True, False], ids=["rollout", "velocity"])
@pytest.mark.parametrize(
    ("weights", "to_obs", "to_act"),
    [(False, False, True), (False, True, False), (False, True, True), (True, False, False)],
    ids=str,
)
def test_only_what_is_asked_for(of_rollout, weights, to_obs, to_act):
    case = Case(SHAPES[0])
    whole = case.gradients(of_rollout)
    asked = [weights] * (len(whole) - 2) + [to_obs, to_act]
    part = case.gradients(of_rollout, weights=weights, to_obs=to_obs, to_act=to_act)
    expected = [g for g, a in zip(whole, asked, strict=True) if a]
    torch.testing.assert_close(part, expected, rtol=0, atol=0)


@pytest.mark.parametrize("of_rollout", [True, False], ids=["rollout", "velocity"])
@pytest.mark.parametrize("rows_at_once", [7, 39])
def test_recomputed_in_chunks_of_rows(monkeypatch, of_rollout, rows_at_once):
    case = Case(Shape(B=40, O=28, A=5, M=2))
    kept = case.gradients(of_rollout)
    row = 2 * (2 if of_rollout else 1) * 64 * 4  # bytes of its pre-activations: L, M, H, float32
    monkeypatch.setattr(actor, "SAVED_BYTES", rows_at_once * row + row // 2)
    out, saved = case.run(of_rollout)
    assert saved[0].numel() == 0
    torch.testing.assert_close(out, case.run(of_rollout, save=False)[0], rtol=0, atol=0)
    again = case.gradients(of_rollout, saved=saved)
    agree(again, [g.double() for g in kept], FLOAT32)


@pytest.mark.parametrize("of_rollout", [True, False], ids=["rollout", "velocity"])
def test_no_rows(of_rollout):
    case = Case(Shape(B=0, O=3, A=2, M=2))
    assert case.run(of_rollout)[0].shape == (0, 2)
    *of_params, of_obs, of_act = case.gradients(of_rollout)
    for gradient, parameter in zip(of_params, case.params, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(parameter))
    assert (of_obs.shape, of_act.shape) == ((0, 3), (0, 2))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38], ids=str)
def test_a_bad_row_disturbs_no_other(precision, value):
    case = Case(SHAPES[0])
    out, saved = case.run(True, precision)
    of_act = case.gradients(True, precision, saved=saved)[-1]
    case.obs[2, 7] = value
    worse, saved = case.run(True, precision)
    others = [0, 1, 3, 4]
    assert torch.equal(worse[others], out[others])
    assert value == 3e38 or worse[2].isnan().all()
    gradients = case.gradients(True, precision, saved=saved, weights=False, to_obs=False)
    assert torch.equal(gradients[-1][others], of_act[others])


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 40), precision=st.sampled_from(["fp32", "bf16"]))
def test_a_row_does_not_depend_on_the_others(rows, precision):
    case = Case(Shape(B=40, O=5, A=3, M=2))
    whole = case.run(True, precision)[0]
    case.obs, case.noise = case.obs[40 - rows :], case.noise[40 - rows :]
    # the interpreter's products are NumPy's, which on some CPUs rounds a row by how many there are
    last_bit = 0 if ON_GPU else 1e-6 if precision == "fp32" else 1e-2
    got = case.run(True, precision)[0]
    torch.testing.assert_close(got, whole[40 - rows :], rtol=0, atol=last_bit)


@pytest.mark.parametrize(
    "key", [(0, 0, 0), (2**64 - 1, 7, 5), (12345, 2**32 - 1, 2**32 - 40)], ids=str
)
@pytest.mark.parametrize("A", [1, 5, 21])
def test_drawn_noise_is_that_of_every_backend(key, A):
    seed, call, offset = key
    case = Case(Shape(B=37, O=4, A=A, M=2))
    noise = philox.normals(seed, 37, 1, A, call=call, row_offset=offset)[:, 0]
    case.noise = torch.tensor([seed - (seed >> 63 << 64), call, offset])
    drawn, saved = case.run(True)
    np.testing.assert_array_equal(saved[1][0].numpy(force=True), noise)
    case.noise = here(noise)
    torch.testing.assert_close(drawn, case.run(True)[0], rtol=0, atol=0)


def test_drawn_noise_is_recomputed_from_too(monkeypatch):
    case = Case(Shape(B=9, O=4, A=3, M=2))
    case.noise = torch.tensor([3, 1, 0])
    kept = case.gradients(True)
    monkeypatch.setattr(actor, "SAVED_BYTES", 4096)
    agree(case.gradients(True), [g.double() for g in kept], FLOAT32)


@pytest.mark.parametrize("scale", [1e-7, 1e6])
def test_fp16_gradients_of_any_magnitude(scale):
    case = Case(SHAPES[0])
    case.grad *= scale
    agree(case.gradients(True, "fp16"), case.expected(True)[1], KERNEL["fp16"])
    case.grad.zero_()
    assert all((g == 0).all() for g in case.gradients(True, "fp16"))


def test_strided_and_offset_inputs():
    case = Case(SHAPES[0])
    out = case.run(True)[0]
    wide = torch.randn(5, 29)
    wide[:, 1:] = case.obs
    case.obs = wide[:, 1:]
    case.noise = case.noise.T.contiguous().T
    torch.testing.assert_close(case.run(True)[0], out, rtol=0, atol=0)


ORDER = """
import re
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sorl_fast.kernels import actor
from sorl_fast.kernels.packing import Sizes
from sorl_fast.kernels.tiles import Tile

for build in actor.aot(Sizes(5, 3, 2, 128, 3, 3, 1, False), "bf16", Tile(16, 64, 64, 4, 2)):
    names = build.kernel.arg_names
    types = {x: build.signature.get(x, "constexpr") for x in names}
    aligned = {(names.index(x),): [["tt.divisibility", 16]] for x in build.divisible}
    source = ASTSource(build.kernel, types, build.constexprs, aligned)
    code = compile(source, target=GPUTarget("cuda", 80, 32), options=build.options).asm["ttgir"]
    barriers = len(re.findall(r"ttg.barrier|gpu.barrier", code))
    print(build.name, barriers)
"""


@pytest.mark.slow
def test_barriers_survive_compilation(tmp_path):
    """Between the stores of a layer and the loads of the next, where Triton itself promises nothing."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", ORDER], capture_output=True, text=True, env=environment, check=True
    )
    found = {name: int(n) for name, n in (line.split() for line in run.stdout.splitlines())}
    # the shared first layer, layer 1, the loop over layers, the step's end; backward has not the first
    assert found == {name: 3 if "backward" in name else 4 for name in found}
    assert len(found) == 5
