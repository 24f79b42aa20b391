"""Graphs in bf16 and int8: against the native runtime's own rounding, in plain numpy."""

import dataclasses

import numpy as np
import pytest
from forms import FORMS, form_policy
from native import int8_twin
from native.test_trained import ACTION, GOLDEN
from native.twin import make_policy

from sorl_fast import Sampler
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.policy_file import load
from sorl_fast.export import check
from sorl_fast.export.graph import Graph
from sorl_fast.export.networks import network
from sorl_fast.export.onnx import onnx_model
from sorl_fast.export.runtimes import ABLE, RUNTIMES

onnx = pytest.importorskip("onnx")
PAIRS = [(name, p) for p in ("bf16", "int8") for name in ABLE[p]]
SLOW = {("openvino", "tanh noisy"), ("openvino", "diffusion")}  # seconds a graph
# in float32 a value may round to the next byte
INT8 = 2e-3


def run_of(name, policy, way, precision):
    pytest.importorskip(name)
    return RUNTIMES[name](onnx_model(policy, way, "input", precision))


@pytest.fixture(scope="module")
def trained():
    with np.load(GOLDEN / "trained_observations.npz", allow_pickle=False) as file:
        return load(GOLDEN / "trained_policy.safetensors"), file["observations"][::4]


@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_a_trained_policy(name, precision, trained):
    """As the native runtime's, within its bounds."""
    policy, obs = trained
    run = run_of(name, policy, PolicyChoice(steps=4), precision)
    noise = np.random.default_rng(0).standard_normal((len(obs), 1, 5), np.float32)
    actions, good = run({"obs": obs, "noise": noise})
    wanted = Sampler(policy, "numpy").act(obs, 4, 1, noise=noise)
    assert good.all()
    error = np.abs(actions - wanted).max()
    assert 1e-5 < error <= ACTION[precision]


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("H", [64, 40])
def test_int8_rounds_as_its_twin(name, H):
    policy = make_policy(H=H, normalise=True)
    rng = np.random.default_rng(1)
    obs = rng.standard_normal((20, 28)).astype("f4") * policy.obs_std + policy.obs_mean
    noise = rng.standard_normal((20, 1, 5), np.float32)
    actions, _ = run_of(name, policy, PolicyChoice(steps=2), "int8")({"obs": obs, "noise": noise})
    wanted, _ = int8_twin.sample(policy, obs, noise[:, 0], 2, "avx2", len(obs))
    exact = Sampler(policy, "numpy").act(obs, 2, 1, noise=noise)
    np.testing.assert_allclose(actions, wanted, rtol=0, atol=INT8)
    assert np.abs(actions - exact).max() > INT8  # and not as float32


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_int8_critic_rounds_as_its_twin(name):
    pytest.importorskip(name)
    policy = make_policy(E=1)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((30, 34)).astype("f4")
    x[:, -1] = 2
    g = Graph()
    q = network(g, "q", [[a[0] for a in layer] for layer in policy.critic], "x", precision="int8")
    g.node("Identity", q, output="actions")
    g.node("Greater", q, g.number(0.0), output="good")
    ports = [("actions", "FLOAT", ["B", 1]), ("good", "BOOL", ["B", 1])]
    made, _ = RUNTIMES[name](g.model([("x", "FLOAT", ["B", 34])], ports, {}))({"x": x})
    critic = [[a.astype("f8") for a in layer] for layer in policy.critic]
    wanted = int8_twin.value(critic, x[:, :28], x[:, 28:33], 2, int8_twin.Format())[0]
    np.testing.assert_allclose(made[:, 0], wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


def test_bf16_rounds_the_weights():
    """Where a runtime multiplies in float32 (a processor without bf16) only they are rounded."""
    policy = make_policy()

    def rounded(layers):
        halves = [(w.view(np.uint32) + 0x8000) & 0xFFFF0000 for w, *_ in layers]
        parts = zip(halves, layers, strict=True)
        return tuple((h.view(np.float32), *layer[1:]) for h, layer in parts)

    near = dataclasses.replace(policy, actor=rounded(policy.actor), critic=rounded(policy.critic))
    rng = np.random.default_rng(1)
    obs, noise = (
        rng.standard_normal((9, 28), np.float32),
        rng.standard_normal((9, 1, 5), np.float32),
    )
    inputs = {"obs": obs, "noise": noise}
    actions, _ = run_of("openvino", policy, PolicyChoice(steps=2), "bf16")(inputs)
    wanted = Sampler(near, "numpy").act(obs, 2, 1, noise=noise)
    assert np.abs(actions - wanted).max() <= 2.5e-2
    model = onnx.load_from_string(onnx_model(policy, PolicyChoice(steps=2), "input", "bf16"))
    kinds = {n.name: n.data_type for n in model.graph.initializer if n.name.endswith("/w")}
    assert set(kinds.values()) == {onnx.TensorProto.BFLOAT16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "form"),
    [
        pytest.param(*pair, form, marks=pytest.mark.slow if (pair[0], form) in SLOW else ())
        for pair in PAIRS
        for form in ("euler", "tanh noisy", "diffusion")
    ],
)
def test_choice_and_forms(name, precision, form):
    policy, steps = form_policy(FORMS[form]), FORMS[form].steps[-1]
    for rule in ("argmax", "medoid"):
        way = PolicyChoice(steps=steps, candidates=4, rule=rule)
        run = run_of(name, policy, way, precision)
        assert check.check(policy, way, run, name, "input", precision) < 0.1


@pytest.mark.parametrize(("name", "precision"), PAIRS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_told(name, precision, bad):
    policy = make_policy()
    run = run_of(name, policy, PolicyChoice(steps=1, candidates=2), precision)
    obs, noise = np.zeros((3, 28), np.float32), np.zeros((3, 2, 5), np.float32)
    obs[0, 1] = noise[2, :, 3] = bad
    _, good = run({"obs": obs, "noise": noise})
    assert good.tolist() == [False, True, False]


@pytest.mark.parametrize("name", RUNTIMES)
def test_int8_that_overflows_is_told(name):
    """A hidden layer's infinity is not rounded to a byte and forgotten."""
    policy = make_policy(H=32)
    first, (w, b), *more = policy.actor
    huge = (first[0], np.full_like(first[1], 3e38))
    policy = dataclasses.replace(policy, actor=(huge, (np.full_like(w, 3e38), b), *more))
    run = run_of(name, policy, PolicyChoice(steps=1), "int8")
    inputs = {"obs": np.zeros((2, 28), np.float32), "noise": np.zeros((2, 1, 5), np.float32)}
    _, good = run(inputs)
    assert not good.any()


def test_a_wrong_graph_in_8_bits_is_refused():
    policy, way = make_policy(), PolicyChoice(steps=1)
    *first, (w, b) = policy.actor
    other = dataclasses.replace(policy, actor=(*first, (w, b + 0.5)))
    run = run_of("onnxruntime", other, way, "int8")
    with pytest.raises(check.BadInput, match=r"above 0\.1"):
        check.check(policy, way, run, "wrong", "input", "int8")
