"""The noise that a graph draws itself: words, normals, and the actions of a Sampler of that seed."""

import dataclasses

import numpy as np
import pytest
from forms import FORMS, form_policy
from policies import make_policy
from tolerances import PHILOX

from sorl_fast import Sampler
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.philox import normals, uniforms
from sorl_fast.export.graph import Graph
from sorl_fast.export.noise import draw_noise
from sorl_fast.export.onnx import onnx_model
from sorl_fast.export.runtimes import RUNTIMES

onnx = pytest.importorskip("onnx")
FLOAT32 = 1e-5
KEYS = [
    *((0, 0), (7, 5), (2**31, 2**31), (2**32 - 1, 2**32 - 1)),
    *((0xFEDCBA9876543210, 1), (2**64 - 1, 2**32 - 1)),
]


def key(seed, call):
    return {"seed": np.array([seed], "<u8").view("<u4"), "call": np.array([call], np.uint32)}


def drawing(N, A, draws, name):
    """A graph of the noise alone: actions are all draws and u side by side [B, D N A + 1]."""
    pytest.importorskip(name)
    g = Graph()
    parts, u = draw_noise(g, "obs", N, A, draws, True)
    flat = [g.node("Reshape", part, g.integers(-1, N * A)) for part in parts]
    g.node("Concat", *flat, u, output="actions", axis=1)
    g.node("Greater", u, g.number(-1.0), output="good")
    inputs = [("obs", "FLOAT", ["B", 1]), ("seed", "UINT32", [2]), ("call", "UINT32", [1])]
    outputs = [("actions", "FLOAT", ["B", len(parts) * N * A + 1]), ("good", "BOOL", ["B", 1])]
    return RUNTIMES[name](g.model(inputs, outputs, {}))


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize(("N", "A", "draws"), [(1, 1, [0]), (3, 4, [0]), (5, 6, [0, 2, 255])])
def test_numbers(name, N, A, draws):
    run = drawing(N, A, draws, name)
    for seed, call in KEYS:
        for B in (1, 3):
            made, _ = run({"obs": np.zeros((B, 1), np.float32)} | key(seed, call))
            parts = [normals(seed, B, N, A, call, draw=draw).reshape(B, -1) for draw in draws]
            np.testing.assert_allclose(made[:, :-1], np.concatenate(parts, 1), rtol=0, atol=PHILOX)
            np.testing.assert_array_equal(made[:, -1], uniforms(seed, B, call))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_many_numbers(name):
    """Rows are counted beyond 16 bits, and the normals' tails are met."""
    made, _ = drawing(1, 2, [0], name)({"obs": np.zeros((70_000, 1), np.float32)} | key(3, 1))
    wanted = normals(3, 70_000, 1, 2, 1).reshape(70_000, -1)
    np.testing.assert_allclose(made[:, :-1], wanted, rtol=0, atol=PHILOX)
    np.testing.assert_array_equal(made[:, -1], uniforms(3, 70_000, 1))


def acting(policy, way, name="onnxruntime"):
    pytest.importorskip(name)
    return RUNTIMES[name](onnx_model(policy, way, "philox"))


@pytest.mark.parametrize("rule", ["argmax", "soft", "better", "medoid"])
@pytest.mark.parametrize("seed", [11, 2**64 - 3])
def test_it_acts_as_a_sampler_of_that_seed(rule, seed):
    policy = make_policy(normalise=True)
    run = acting(policy, PolicyChoice(steps=4, candidates=5, rule=rule))
    obs = np.random.default_rng(0).standard_normal((4, 3), np.float32)
    for call in (0, 2**32 - 1):
        actions, good = run({"obs": obs} | key(seed, call))
        wanted = Sampler(policy).act(obs, 4, 5, rule=rule, seed=seed, call=call)
        np.testing.assert_allclose(actions, wanted, rtol=0, atol=FLOAT32)
        assert good.all()


@pytest.mark.parametrize("form", ["diffusion", "tanh noisy", "direct noisy"])
def test_forms_draw_what_they_read(form):
    policy, steps = form_policy(FORMS[form]), FORMS[form].steps[-1]
    run = acting(policy, PolicyChoice(steps=steps, candidates=3))
    obs = np.random.default_rng(0).standard_normal((2, 3), np.float32)
    actions, _ = run({"obs": obs} | key(5, 1))
    wanted = Sampler(policy).act(obs, steps, 3, seed=5, call=1)
    np.testing.assert_allclose(actions, wanted, rtol=0, atol=FLOAT32)


def test_ports():
    def inputs(policy, **way):
        model = onnx.load_from_string(onnx_model(policy, PolicyChoice(**way), "philox"))
        return [p.name for p in model.graph.input]

    assert inputs(make_policy(), steps=1) == ["obs", "seed", "call"]
    assert inputs(form_policy(FORMS["tanh"]), steps=1) == ["obs"]
    draws = dict(steps=1, candidates=2, rule="better")
    assert inputs(form_policy(FORMS["tanh"]), **draws) == ["obs", "seed", "call"]


def test_an_observation_that_is_not_finite_is_told():
    policy = make_policy()
    run = acting(dataclasses.replace(policy), PolicyChoice(steps=1, candidates=2))
    obs = np.zeros((3, 3), np.float32)
    obs[1, 2] = np.nan
    _, good = run({"obs": obs} | key(1, 1))
    assert good.tolist() == [True, False, True]
