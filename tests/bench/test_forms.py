"""The race of the other forms: what is raced, and that every contender computes the definition."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forms import FORMS as ALL
from forms import form_policy
from sorl_fast.bench import forms, harness, sampler, shapes
from sorl_fast.bench.peers import OnnxRuntime, OpenVino, SorlFast, Torch, onnx_model
from sorl_fast.bench.shapes import Cell

from sorl_fast.act.form import Diffusion, Direct, Euler, Tanh
from sorl_fast.export.program import program_of
from sorl_fast.learn.algorithms import METHODS, find_method
from sorl_fast.learn.method import Export

# as tests/forms.py has them: one step or several, noise read, added, clipped or absent
FORMS = {name: form for name, form in ALL.items() if name != "residual"}
every = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
SIZES = ((1, 1), (1, 5), (3, 4))  # B, N


def cells(form):
    return [Cell(B, form.steps[-1], N, 3, 2, form.kind) for B, N in SIZES]


def policy_of(form):
    bounds = {"action_low": np.array([-1.0, -0.25]), "action_high": np.array([0.5, 1.0])}
    return form_policy(form, H=32, depth=shapes.DEPTH, normalise=True, **bounds)


def error_of(contender, form, few=False):
    worst, policy = 0.0, policy_of(form)
    for cell in cells(form)[-1 if few else 0 :]:
        obs, noise = shapes.make_inputs(cell, policy.draws)
        running = contender.prepare(cell, policy, obs, noise)
        for _ in range(2):  # inputs are read at each call, not baked in
            expected = harness.truth(policy, obs, noise, cell.steps)
            worst = max(worst, harness.check(contender, running, expected))
            obs += 1
    return worst


@every
def test_the_definition_is_the_sampler(form):
    """`truth` and `Sampler` say the same of a form, its own temperature included."""
    from sorl_fast import Sampler

    policy = policy_of(form)
    for cell in cells(form):
        obs, noise = shapes.make_inputs(cell, policy.draws)
        expected = harness.truth(policy, obs, noise, cell.steps)
        actions = Sampler(policy, "numpy").act(obs, cell.steps, cell.candidates, noise=noise)
        assert harness.judge("numpy", np.asarray(actions), expected, "fp32") < 1e-5


@every
def test_torch(form):
    before = torch.get_num_threads()
    try:
        assert error_of(Torch("fp32", 1), form) < 1e-5
        assert error_of(Torch("bf16", 1), form) < 0.05
    finally:
        torch.set_num_threads(before)


@every
def test_onnxruntime(form):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert error_of(OnnxRuntime(1), form) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euler", "direct reading", "tanh noisy", "diffusion"])
def test_openvino(name):  # seconds a graph
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    assert error_of(OpenVino("fp32", 1), ALL[name], few=True) < 1e-5


@every
def test_sorl_fast(form):
    pytest.importorskip("sorl_fast._native")
    for precision in shapes.PRECISIONS:
        error = error_of(SorlFast(precision, 1, "scalar"), form)
        assert error < (1e-5 if precision == "fp32" else 0.05)


def changed(form, **fields):
    return type(form)(**{k: v for k, v in form.to_json().items() if k != "kind"} | fields)


MUTATIONS = {
    "direct noisy": {"noise_clip": 0.3},
    "tanh noisy": {"temperature": 1.1},
    "diffusion": {"noise_scales": (0.5, 0.0, 0.2, 0.0, 0.0)},
}


class Mutant(Torch):
    """PyTorch, of a form of which one number is another."""

    def prepare(self, cell, policy, obs, noise):
        wrong = changed(policy.form, **MUTATIONS[self.of])
        return super().prepare(cell, dataclasses.replace(policy, form=wrong), obs, noise)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_form_is_refused(name):
    mutant = Mutant("fp32", 1)
    object.__setattr__(mutant, "of", name)
    with pytest.raises(harness.Disagreement):
        error_of(mutant, ALL[name])


def test_a_graph_reads_only_what_the_form_reads():
    """An actor that reads no noise is evaluated once an observation, and nothing unread is an input."""
    onnx = pytest.importorskip("onnx")

    def graph(form, N):
        model = onnx.load_from_string(onnx_model(policy_of(form), Cell(3, form.steps[-1], N, 3, 2)))
        inputs = [port.name for port in model.graph.input]
        sizes = {w.name: tuple(w.dims) for w in model.graph.initializer}
        return inputs, sizes["actor/0/w"][0], [node.op_type for node in model.graph.node]

    inputs, width, nodes = graph(ALL["tanh"], 1)
    assert (inputs, width) == (["obs"], 3)
    assert "Expand" not in nodes
    inputs, width, _ = graph(ALL["tanh noisy"], 4)
    assert (inputs, width) == (["obs", "draw0"], 3)
    assert graph(ALL["direct reading"], 4)[:2] == (["obs", "draw0"], 5)
    # z_0, and the noise of the steps that add any
    assert graph(ALL["diffusion"], 4)[:2] == (["obs", "draw0", "draw1", "draw2"], 7)
    assert program_of(policy_of(ALL["diffusion"]), 5).draws == (0, 1, 3)


def test_an_actor_that_reads_no_noise_counts_once():
    quiet, reading = (shapes.make_policy(3, 2, 8, form=ALL[n]) for n in ("tanh", "tanh reading"))
    hidden, cell = 3 * 8 * 8, Cell(7, 1, 5, 3, 2)
    critics = 2 * (3 * 8 + 5 * (2 * 8 + hidden + 8))
    assert shapes.flop(cell, quiet) == 2 * 7 * (3 * 8 + hidden + 8 * 2 + critics)
    assert shapes.flop(cell, reading) == 2 * 7 * (3 * 8 + 5 * (2 * 8 + hidden + 8 * 2) + critics)
    assert shapes.weights_again(cell, quiet) == hidden + 8 * 2
    assert shapes.weights_again(cell, reading) == 2 * 8 + hidden + 8 * 2


def test_the_forms_are_the_methods():
    """What is raced is what some method exports by its defaults, tanh with its noise turned on."""
    exported = {}
    for name in METHODS:
        method = find_method(name)
        fields = dataclasses.fields(method.Config)
        given = {f.name: 0.5 for f in fields if f.default is dataclasses.MISSING}
        small = {"hidden": 8, "depth": 2, "score": "mlp"}
        given |= {f.name: small[f.name] for f in fields if f.name in small}
        made = method(method.Config(**given))
        random = torch.Generator().manual_seed(0)
        networks = {k: spec.make(random) for k, spec in made.networks(3, 2).items()}
        trained = SimpleNamespace(networks=networks, targets=networks)
        policy = made.export(trained, Export(3, 2, "toy", None, None))
        exported[name] = policy.form
    raced = {name: forms.make_form(name) for name in forms.NAMES}
    assert forms.make_form("shortcut") is exported["sorl"] is None
    assert raced["euler"] == exported["ifql"] == Euler(counts=(10,))
    assert raced["direct"] == exported["fql"] == Direct(reads_noise=True)
    assert raced["diffusion"] == exported["idql"]
    assert isinstance(raced["diffusion"], Diffusion)
    assert changed(raced["tanh"], temperature=0.0) == exported["rebrac"]
    assert isinstance(raced["tanh"], Tanh)


def test_lanes_of_a_form():
    for name in forms.NAMES:
        form = forms.make_form(name)
        found = shapes.form_cells(name, form)
        assert {cell.steps for cell in found} == set(form.steps)
        assert [(c.batch, c.candidates) for c in found] == [(1, 1), (1, 8), (1, 32), (256, 1)]
        assert {c.network for c in found} == {(28, 5, name)}
    assert str(Cell(1, 10, 8, form="euler")) == "B=1 M=10 N=8 euler"
    assert shapes.parse_cell("2,10,1", "euler", (10,)) == Cell(2, 10, 1, form="euler")


@pytest.mark.slow  # measures the machine's limits
def test_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(harness, "PAUSE", 0.0)
    monkeypatch.setattr(shapes, "form_cells", lambda name, form: cells(form)[:1])
    whole = shapes.make_policy
    monkeypatch.setattr(shapes, "make_policy", lambda O, A, form: whole(O, A, 32, form=form))
    path = tmp_path / "forms.json"
    argv = ["--form", "all", "--quick", "--seconds", "0.005", "--cold-calls", "1"]
    sampler.run([*argv, "--peers", "onnxruntime", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert {(r["form"], r["contender"]) for r in rows} >= {
        (name, who) for name in forms.NAMES for who in ("sorl-fast", "onnxruntime")
    }
    assert "sorl-fast is the fastest in" in capsys.readouterr().out
