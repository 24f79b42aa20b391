"""The exported graph against the numpy Sampler: schedules, rules, forms, what is not finite, any batch."""

import dataclasses

import numpy as np
import pytest
from forms import FORMS, form_policy
from policies import make_policy

from sorl_fast import Sampler
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.philox import normals, uniforms
from sorl_fast.act.session import Status, rest
from sorl_fast.action_map import ActionMap
from sorl_fast.export.check import CALL, SEED, check, inputs_of, make_case
from sorl_fast.export.onnx import onnx_model
from sorl_fast.export.runtimes import RUNTIMES

onnx = pytest.importorskip("onnx")
RULES = [
    *("argmax", "medoid", "medoid:1", "medoid:1/4", "nearest", "nearest:1", "nearest:2/3"),
    *("better", "better:1", "better:1/5", "soft", "soft:1/4", "soft:3", "centre"),
]
runtimes = pytest.mark.parametrize("name", RUNTIMES)
FLOAT32 = 1e-5


def form_steps(form):
    return FORMS[form].steps[-1]


def run_of(name, policy, way):
    pytest.importorskip(name)
    return RUNTIMES[name](onnx_model(policy, way))


def policy_with(**more):
    """A policy that uses everything that a shortcut policy may have."""
    bounds = {"action_low": np.array([-1.0, -0.25]), "action_high": np.array([0.5, 1.0])}
    return make_policy(normalise=True, **bounds | more)


def same(name, policy, way, batches=(1, 2, 3), damage=None):
    """The graph's actions are the Sampler's, each of a fresh one, for each size of a batch."""
    run = run_of(name, policy, way)
    for batch in batches:
        case = make_case(policy, way, batch)
        obs, noise = case.obs.copy(), case.noise.copy()
        obs[~np.isfinite(obs)] = 0.0
        noise[~np.isfinite(noise)] = 0.5
        if damage is not None:
            damage(obs, noise)
        inputs = inputs_of(policy, way, case._replace(obs=obs, noise=noise))
        actions, good = run(inputs)
        key = {"seed": SEED, "call": CALL} if way.rule.draws else {}
        how = {"rule": way.rule, "noise": noise, "return_info": True}
        wanted, info = Sampler(policy, "numpy").act(obs, way.steps, way.candidates, **how | key)
        assert good.dtype == bool
        assert actions.dtype == np.float32
        np.testing.assert_array_equal(good, info.status & Status.HELD == 0)
        np.testing.assert_allclose(actions, wanted, rtol=0, atol=FLOAT32)
    return actions, good


@runtimes
@pytest.mark.parametrize("rule", RULES)
def test_rules(name, rule):
    for q_agg in ("mean", "min") if name == "onnxruntime" else ("min",):
        same(name, policy_with(q_agg=q_agg), PolicyChoice(steps=2, candidates=7, rule=rule))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_rules_choose_among_the_good(rule, left):
    def damage(obs, noise):
        noise[:, left::2, 1] = np.nan
        noise[:, left + 1 :: 2, 0] = np.inf

    way = PolicyChoice(steps=2, candidates=6, rule=rule)
    _, good = same("onnxruntime", policy_with(), way, damage=damage)
    assert good.all() == (left > 0)


@runtimes
@pytest.mark.parametrize("steps", [1, 8, 3, 16, "1/2,1/4,1/4", "0.7,0.3"])
def test_schedules(name, steps):
    same(name, policy_with(), PolicyChoice(steps=steps, candidates=3))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(form):
    policy = form_policy(form, normalise=True)
    for N in (1, 4):
        for steps in form.steps:
            same("onnxruntime", policy, PolicyChoice(steps=steps, candidates=N))


@pytest.mark.parametrize("form", ["euler", "tanh noisy", "diffusion", "residual"])
def test_forms_in_openvino(form):
    policy = form_policy(FORMS[form])
    way = PolicyChoice(steps=form_steps(form), candidates=3)
    same("openvino", policy, way, batches=(2,))


@runtimes
@pytest.mark.parametrize("N", [1, 3])
def test_units(name, N):
    units = ActionMap((-2.5, 0.1), (0.7, 3.3))
    policy = policy_with(action_map=units)
    actions, _ = same(name, policy, PolicyChoice(steps=4, candidates=N))
    low, high = policy.bounds
    assert ((actions >= low) & (actions <= high)).all()


def test_chunks():
    """A graph's row is a chunk's actions one after another."""
    policy, way = (
        policy_with(chunk=2, action_low=-np.ones(2), action_high=np.full(2, 0.5)),
        PolicyChoice(steps=2, candidates=3, rule="medoid"),
    )
    run = run_of("onnxruntime", policy, way)
    assert check(policy, way, run, "onnxruntime") < FLOAT32
    case = make_case(policy, way, 2)
    actions, _ = run(inputs_of(policy, way, case))
    noise = case.noise
    wanted = Sampler(policy, "numpy").act(case.obs, 2, 3, rule="medoid", noise=noise)
    assert wanted.shape == (2, 2, 1)
    np.testing.assert_allclose(actions.reshape(2, 2, 1), wanted, rtol=0, atol=FLOAT32)


def test_a_policy_without_critics_chooses_the_centre():
    policy = form_policy(FORMS["euler"], E=0)
    same("onnxruntime", policy, PolicyChoice(steps=3, candidates=4, rule="centre"))


@runtimes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_gives_the_action_at_rest(name, bad):
    def damage(obs, noise):
        obs[0, 1] = bad
        noise[-1, :, 1] = bad

    units = ActionMap((0.5, 0.1), (0.7, 3.3))
    for policy in (policy_with(action_map=units), form_policy(FORMS["tanh noisy"])):
        for N in (1, 3):
            way = PolicyChoice(steps=1, candidates=N)
            actions, good = same(name, policy, way, damage=damage)
            assert good.tolist() == [False, True, False]
            np.testing.assert_array_equal(actions[0], rest(policy))


@runtimes
@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_a_candidate_whose_q_overflows_is_rejected(name, q_agg):
    policy = policy_with(q_agg=q_agg, critic_out=3e38)
    _, good = same(name, policy, PolicyChoice(steps=1, candidates=3))
    assert good.all() == (q_agg == "min")  # 3e38 + 3e38


@runtimes
@pytest.mark.parametrize("form", ["diffusion", "tanh reading", "direct noisy"])
def test_what_overflows_is_not_clipped_into_an_action(name, form):
    policy = form_policy(FORMS[form])
    *first, (w, b), (last, out) = policy.actor
    huge = (np.full_like(last, 3e38), out)
    policy = dataclasses.replace(policy, actor=(*first, (w, b + 100), huge))
    _, good = same(name, policy, PolicyChoice(steps=form_steps(form), candidates=2))
    assert not good.any()


def test_of_two_neither_is_nearer():
    """Rounding must not decide: the first of the two, by a part of one."""
    way = PolicyChoice(steps=1, candidates=2, rule="nearest:1/2")
    same("onnxruntime", policy_with(), way, batches=(100,))


def test_the_draw_is_the_counters():
    """With u of `philox.uniforms` the graph draws what a Sampler of that seed draws."""
    wide = np.full(2, 50.0)  # no two candidates are clipped to the same
    policy = policy_with(action_low=-wide, action_high=wide)
    way = PolicyChoice(steps=1, candidates=8, rule="better:1")
    case = make_case(policy, way, 4)
    run, drawn = run_of("onnxruntime", policy, way), set()
    for u in np.arange(8) / 8:
        inputs = inputs_of(policy, way, case._replace(u=np.full(4, u, np.float32)))
        drawn.add(run(inputs)[0][0].tobytes())
    assert len(drawn) == 8
    assert set(inputs_of(policy, way, case)) == {"obs", "noise", "u"}
    np.testing.assert_array_equal(case.u, uniforms(SEED, 4, CALL))


@pytest.mark.parametrize("form", [None, "diffusion"])
def test_with_a_seeds_noise_it_acts_as_a_sampler_with_that_seed(form):
    policy = policy_with() if form is None else form_policy(FORMS[form])
    steps = 4 if form is None else form_steps(form)
    way = PolicyChoice(steps=steps, candidates=3, rule="soft")
    obs = np.random.default_rng(0).standard_normal((4, 3), np.float32)
    drawn = [normals(11, 4, 3, 2, draw=draw) for draw in range(policy.draws)]
    noise = drawn[0] if len(drawn) == 1 else np.stack(drawn, axis=2)
    u = uniforms(11, 4).astype(np.float32)
    actions, _ = run_of("onnxruntime", policy, way)({"obs": obs, "noise": noise, "u": u})
    wanted = Sampler(policy).act(obs, steps, 3, rule="soft", seed=11)
    np.testing.assert_allclose(actions, wanted, rtol=0, atol=FLOAT32)


def test_better_counts_exactly():
    """floor(u size) where the product in float32 rounds up to the next whole number."""
    policy, way = policy_with(), PolicyChoice(steps=1, candidates=6, rule="better:1")
    case = make_case(policy, way, 1)
    u = np.full(1, (5 * 2**24 - 2) // 6 / 2**24, np.float32)
    assert (u[0] * np.float32(6), float(u[0]) * 6 < 5) == (5, True)
    inputs = inputs_of(policy, way, case._replace(u=u))
    actions, _ = run_of("onnxruntime", policy, way)(inputs)
    alone = Sampler(policy, "numpy").act(case.obs, 1, 1, noise=case.noise[:, 4:5])
    np.testing.assert_allclose(actions, alone, rtol=0, atol=FLOAT32)


def test_ports():
    def ports(policy, **way):
        model = onnx.load_from_string(onnx_model(policy, PolicyChoice(**way)))
        shape = lambda p: [d.dim_param or d.dim_value for d in p.type.tensor_type.shape.dim]  # noqa: E731
        assert (model.opset_import[0].version, model.ir_version) == (20, 9)
        assert onnx.helper.find_min_ir_version_for(model.opset_import) == 9
        return [{p.name: shape(p) for p in ps} for ps in (model.graph.input, model.graph.output)]

    inputs, outputs = ports(policy_with(), steps=2, candidates=4, rule="soft")
    assert inputs == {"obs": ["B", 3], "noise": ["B", 4, 2], "u": ["B"]}
    assert outputs == {"actions": ["B", 2], "good": ["B"]}
    assert ports(form_policy(FORMS["diffusion"]), steps=5)[0] == {
        "obs": ["B", 3],
        "noise": ["B", 1, 4, 2],
    }
    assert ports(form_policy(FORMS["tanh"]), steps=1)[0] == {"obs": ["B", 3]}


def test_a_model_says_what_it_is():
    policy = policy_with()
    model = onnx.load_from_string(onnx_model(policy, PolicyChoice(steps=2, candidates=4)))
    notes = {p.key: p.value for p in model.metadata_props}
    assert notes["policy sha256"] == policy.digest
    assert notes["acts"] == "M = 2, N = 4, argmax"
