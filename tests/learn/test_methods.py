"""What every method promises the trainer: exact resume, captured updates, divergence, SIGTERM, noise."""

import importlib
import itertools
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import own_arrays, some_fast
from learn.test_capture import TapeRecorder

from sorl_fast import ops
from sorl_fast.config import TrainConfig
from sorl_fast.data.dataset import TransitionData
from sorl_fast.errors import BadInput, Diverged, Stopped
from sorl_fast.learn import train as train_module
from sorl_fast.learn.algorithms import METHODS, find_method, method_config, method_of
from sorl_fast.learn.capture import CapturedUpdates
from sorl_fast.learn.checkpoint import load_latest
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.noise import GeneratorNoise, KeyedNoise, Normal
from sorl_fast.learn.train import train

SMALL = {
    "sorl": {"q_coef": 1.0, "hidden": 8, "depth": 2, "m_disc": 4, "m_btt": 2},
    "fql": {"alpha": 10.0, "hidden": 8, "depth": 2, "flow_steps": 3},
    "idql": {"residual_hidden": 8, "residual_frequencies": 4, "residual_blocks": 2},
}
CASES = {name: (name, {}) for name in METHODS}
CASES |= {
    "iql-ddpgbc": ("iql", {"actor_loss": "ddpgbc"}),
    "fql-options": ("fql", {"q_agg": "min", "normalize_q_loss": True}),
    "rebrac-3": ("rebrac", {"actor_freq": 3}),
    "sorl-every": ("sorl", {"sc_every": 2, "sc_part": 0.5}),
    "sorl-coin": ("sorl", {"sc_coin": 0.5}),
    "idql-mlp": ("idql", {"score": "mlp", "hidden": 8, "depth": 2}),
}


@pytest.fixture(params=CASES)
def agent(request):
    name, options = CASES[request.param]
    small = SMALL.get(name, {"hidden": 8, "depth": 2})
    return method_config(name, "mine", {"batch_size": 16} | small | options)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    ops.configure()


def backends():
    yield "torch"
    try:
        from sorl_fast.ops import native
    except ImportError:
        return
    if native.isas("fp32"):
        yield "native"


def lanes():
    """Backends and precisions that this machine can train with."""
    for backend in backends():
        yield backend, "fp32"
        if backend == "native" and importlib.import_module("sorl_fast.ops.native").isas("bf16"):
            yield backend, "bf16"


# the lane that trains by default is enough for the everyday loop: `test_train.py` has SORL's in all
LANES = [*lanes()]
DEFAULT = ("native", "fp32") if ("native", "fp32") in LANES else LANES[0]


@pytest.fixture(params=some_fast(LANES, DEFAULT), ids=lambda lane: "-".join(lane))
def precision(request, monkeypatch):
    backend, precision = request.param
    monkeypatch.setenv("SORL_OPS", backend)
    return precision


@pytest.fixture(params=[*backends()])
def backend(request, monkeypatch):
    monkeypatch.setenv("SORL_OPS", request.param)
    return request.param


def config(own_file, out, **changes):
    base = {"steps": 12, "log_every": 4, "val_every": 6, "eval_every": 0, "checkpoint_every": 5}
    values = base | {"env": "mine", "data": str(own_file), "out": str(out), "threads": 1}
    return TrainConfig(**values | changes)


def tensors(run):
    return load_latest(run / "checkpoints").tensors


def assert_equal_runs(a, b):
    x, y = tensors(a), tensors(b)
    assert x.keys() == y.keys()
    for name in x:
        assert np.array_equal(x[name], y[name]), name


def make_data(T=50, O=5, A=3):
    arrays = own_arrays(T=T, O=O, A=A)
    arrays["next_observations"] = arrays["observations"][::-1].copy()
    arrays["next_actions"] = arrays["actions"][::-1].copy()
    arrays["masks"][::7] = 0
    return TransitionData(arrays, "mine")


# ---- the loop


def test_resume_is_bit_for_bit(own_file, tmp_path, agent, precision):
    def run(name, **changes):
        return config(own_file, tmp_path / name, precision=precision, log_every=1, **changes)

    train(agent, run("whole"), progress=False)
    train(agent, run("parts", steps=6), progress=False)
    result = train(agent, run("parts"), resume=True, progress=False)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    method = method_of(agent)
    assert set(result.last) == {"step", "seconds", "updates_per_second", *method.metrics}
    assert np.isfinite([*result.last.values()]).all()
    logs = []
    for name in ("whole", "parts"):
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        timed = ("seconds", "updates_per_second")
        logs.append([{k: v for k, v in line.items() if k not in timed} for line in lines])
    assert logs[0] == logs[1]
    assert len([line for line in logs[0] if f"val_{method.val_metrics[-1]}" in line]) == 2


def test_divergence_is_named_and_keeps_the_last_checkpoint(own_file, tmp_path, agent):
    arrays = own_arrays()
    arrays["observations"][:3] = 3e38  # finite, but no product of them is
    np.savez(own_file, **arrays)
    setting = config(own_file, tmp_path / "run", steps=2000, checkpoint_every=1, log_every=0)
    method = method_of(agent)
    with pytest.raises(Diverged, match=r"became (nan|inf|-inf) at update \d+") as err:
        train(agent, setting, progress=False)
    assert method.remedy in str(err.value)


def test_sigterm_saves(own_file, tmp_path, agent, monkeypatch):
    made = itertools.count(1)
    cls = train_module._PlainUpdates
    make = cls.make

    def make_and_stop(updates):
        make(updates)
        if next(made) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cls, "make", make_and_stop)
    with pytest.raises(Stopped, match="all is saved"):
        train(agent, config(own_file, tmp_path / "parts"), progress=False)
    monkeypatch.setattr(cls, "make", make)
    assert load_latest(tmp_path / "parts" / "checkpoints").step == 3
    train(agent, config(own_file, tmp_path / "parts"), resume=True, progress=False)
    train(agent, config(own_file, tmp_path / "whole"), progress=False)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


# ---- updates


def test_captured_updates_equal_plain_ones(agent, monkeypatch):
    monkeypatch.setenv("SORL_OPS", "torch")
    data, seed, count = make_data(), 3, 9
    learner, other = (
        Learner(method_of(agent), 5, 3, torch.Generator().manual_seed(seed)) for _ in range(2)
    )
    recorder = TapeRecorder()
    host = torch.Generator().manual_seed(1)
    updates = CapturedUpdates(learner, data, seed, host, count, recorder)
    for _ in range(count):
        updates.make()
    other.count_on_device()
    host, plan, expected = torch.Generator().manual_seed(1), other.method.plan(3), []
    choices = set()
    for number in range(1, count + 1):
        choice = other.method.choose(host, number)
        key = torch.tensor([seed - 2**63, number, 0])
        index, noise = KeyedNoise(plan, agent.batch_size, 3, len(data), key).draw()
        expected.append(other.update(data.take(index), noise, choice))
        choices.add(choice)
    np.testing.assert_array_equal(updates.look(), torch.stack(expected).numpy())
    for (name, x), y in zip(learner.state().items(), other.state().values(), strict=True):
        assert torch.equal(x, y), name
    assert recorder.records == len(choices)
    assert recorder.replays == count - len(choices)


@pytest.mark.parametrize(
    ("O", "A", "B"), [(1, 1, 1), (7, 5, 33), pytest.param(69, 21, 5, marks=pytest.mark.slow)]
)
def test_updates_are_finite_at_any_size_and_move_everything(agent, backend, O, A, B):
    agent = replace(agent, batch_size=B)
    data, method = make_data(T=40, O=O, A=A), method_of(agent)
    learner = Learner(method, O, A, torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(0)
    noise = GeneratorNoise(method.plan(A), A, random)
    before = {name: x.clone() for name, x in learner.state().items()}
    for number in range(1, 7):  # an actor that learns at every third must move a target
        batch, choice = data.sample(B, random), method.choose(random, number)
        metrics = learner.update(batch, noise.draw(), choice)
        assert metrics.shape == (len(method.metrics),)
        assert metrics.isfinite().all()
        found = learner.losses(batch, noise.draw(), choice)
        assert tuple(found) == method.val_metrics
        assert all(x.isfinite() and not x.requires_grad for x in found.values())
    after = learner.state()
    assert all(x.isfinite().all() for x in after.values())
    for network in (*learner.networks, *(f"target_{name}" for name in learner.targets)):
        names = [name for name in after if name.startswith(f"{network}/")]
        assert any(not torch.equal(before[name], after[name]) for name in names), network


def zero_rows(w):
    """Which rows of a first layer's weights [(E,) in, H] are 0, of all members."""
    return (w == 0).all(-1).reshape(-1, w.shape[-2]).all(0)


def test_unused_inputs_stay_exactly_zero(agent, backend):
    method, data = method_of(agent), make_data()
    learner = Learner(method, 5, 3, torch.Generator().manual_seed(0))
    expected = {
        "bc": {"actor": 5},
        "iql": {"value": 1, "critic": 1, "actor": 5},
        "ifql": {"value": 1, "critic": 1, "actor": 1},
        "rebrac": {"actor": 5, "critic": 1},
        "fql": {"critic": 1, "flow": 1, "actor": 2},
        "idql": {"actor": 1, "critic": 1, "value": 1},
    }.get(agent.method, {})
    if getattr(agent, "score", "mlp") == "residual":
        expected = {}
    unused = {name: zero_rows(learner.networks[name].layers()[0][0]) for name in expected}
    random = torch.Generator().manual_seed(0)
    noise = GeneratorNoise(method.plan(3), 3, random)
    for number in range(1, 5):
        choice = method.choose(random, number)
        learner.update(data.sample(16, random), noise.draw(), choice)
    for name, count in expected.items():
        rows = unused[name]
        assert rows.sum() == count
        state = learner.state()
        for key in (f"{name}/0/w", f"{name}_adam/first/0/w", f"{name}_adam/second/0/w"):
            assert (state[key][..., rows, :] == 0).all(), key
            assert (state[key][..., ~rows, :] != 0).any(), key


def test_backends_agree(agent):
    if [*backends()] != ["torch", "native"]:
        pytest.skip("no native operations")
    data, found = make_data(), []
    for name in ("torch", "native"):
        os.environ["SORL_OPS"] = name
        try:
            method = method_of(agent)
            learner = Learner(method, 5, 3, torch.Generator().manual_seed(0))
            random = torch.Generator().manual_seed(0)
            noise = GeneratorNoise(method.plan(3), 3, random)
            choices = (method.choose(torch.Generator().manual_seed(1), n) for n in (1, 2, 3, 4))
            metrics = [
                learner.update(data.sample(16, random), noise.draw(), choice) for choice in choices
            ]
        finally:
            del os.environ["SORL_OPS"]
        found.append(torch.stack(metrics))
    torch.testing.assert_close(found[1], found[0], rtol=2e-3, atol=2e-4)


# ---- noise


def test_both_sources_draw_the_plan(agent):
    plan, B, A = method_of(agent).plan(2), agent.batch_size, 2
    by_generator = GeneratorNoise(plan, A, torch.Generator().manual_seed(0)).draw()
    index, by_key = KeyedNoise(plan, B, A, 100, torch.tensor([1, 1, 0])).draw()
    assert index.shape == (B,)
    assert by_generator.keys() == by_key.keys() == plan.keys()
    for name, draw in plan.items():
        x, y = by_generator[name], by_key[name]
        assert (x.shape, x.dtype) == (y.shape, torch.float32), name
        assert y.dtype == torch.float32, name
        if isinstance(draw, Normal):
            assert x.shape == (draw.rows, A)
        else:
            assert min(x.min(), y.min()) >= 0 if x.numel() else True


def test_the_keyed_time_of_a_diffusion_covers_its_steps():
    method = method_of(method_config("idql", "mine", {"batch_size": 2000}))
    _, noise = KeyedNoise(method.plan(2), 2000, 2, 100, torch.tensor([1, 1, 0])).draw()
    assert set((noise["t"] * 5).round().tolist()) == {0, 1, 2, 3, 4}
    assert abs(float((noise["dropout"] >= 0.1).float().mean()) - 0.9) < 0.01


# ---- what each method says of itself


@pytest.mark.parametrize("name", METHODS)
def test_it_describes_itself(name):
    method = find_method(name)
    assert method.Config.method == name
    assert set(method.plots) <= set(method.metrics)
    assert set(method.shown.values()) <= set(method.metrics)
    assert set(method.val_metrics) <= set(method.metrics)
    assert method.remedy.startswith("Lower --")


BAD = {
    "hidden": 0, "depth": 1.5, "lr": 0.0, "gamma": 1.0, "tau": 0.0, "expectile": 1.0, "alpha": -1.0,
    "batch_size": 0, "flow_steps": 0, "num_samples": 0, "actor_freq": 0, "alpha_actor": float("nan"),
    "alpha_critic": -1.0, "actor_noise": -0.1, "actor_noise_clip": -1.0, "dropout": 1.0, "q_agg": "max",
    "actor_loss": "sac", "score": "unet", "decay_steps": 0, "extra_steps": -1, "weight_decay": -1.0,
    "actor_tau": 2.0, "diffusion_steps": 0, "ensemble": 0, "residual_blocks": 0, "adam_b1": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sorl"])
def test_a_setting_out_of_its_bounds_is_named(name):
    fields = find_method(name).Config.__dataclass_fields__
    wrong = {field: value for field, value in BAD.items() if field in fields}
    assert len(wrong) >= 5
    for field, value in wrong.items():
        with pytest.raises(BadInput, match=rf"^{field} is .*, but must be"):
            method_config(name, "mine", SMALL.get(name, {}) | {field: value})


def test_data_in_no_order_cannot_train_rebrac(tmp_path):
    arrays = own_arrays(T=20)
    del arrays["terminals"]
    np.savez(tmp_path / "own.npz", **arrays, next_observations=arrays["observations"])
    agent = method_config("rebrac", "mine", {})
    with pytest.raises(BadInput, match="nobody knows which action follows which"):
        train(agent, config(tmp_path / "own.npz", tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_method_that_cannot_act_yet_is_not_evaluated(own_file, tmp_path):
    agent = method_config("bc", "mine", {"hidden": 8, "depth": 1})
    with pytest.raises(BadInput):
        train(agent, config(own_file, tmp_path / "run", eval_every=5), progress=False)
