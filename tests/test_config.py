"""Every bound is checked by name; flags reach every field."""

import pytest

from sorl_fast.config import CollectConfig, EvalConfig, TrainConfig, euler_steps
from sorl_fast.envs import PRESETS
from sorl_fast.errors import BadInput
from sorl_fast.learn.algorithms import method_config
from sorl_fast.learn.algorithms.sorl import SorlConfig

# FQL alpha, IQL alpha, ReBRAC actor and critic, IFQL N, IDQL expectile
BASELINES = """
antmaze-large-navigate 10 10 .003 .01 32 .9
antmaze-giant-navigate 10 10 .003 .01 32 .9
humanoidmaze-medium-navigate 30 10 .01 .01 32 .7
humanoidmaze-large-navigate 30 10 .01 .01 32 .7
antsoccer-arena-navigate 10 1 .01 .01 64 .7
cube-single-play 300 1 1 0 32 .7
cube-double-play 300 .3 .1 0 32 .7
scene-play 300 10 .1 .01 32 .7
""".strip().splitlines()


@pytest.mark.parametrize("line", BASELINES, ids=lambda x: x.split()[0])
def test_presets_of_the_other_methods(line):
    family, *numbers = line.split()
    preset = PRESETS[family]
    for task in preset.tasks:
        names = ("bc", "fql", "iql", "rebrac", "ifql", "idql")
        bc, fql, iql, rebrac, ifql, idql = (method_config(name, task, {}) for name in names)
        found = (fql.alpha, iql.alpha, rebrac.alpha_actor, rebrac.alpha_critic)
        assert (*found, ifql.num_samples, idql.expectile) == tuple(map(float, numbers))
        sorl = method_config("sorl", task, {})
        assert fql.q_agg == sorl.q_agg
        assert all(c.gamma == sorl.gamma for c in (fql, iql, rebrac, ifql, idql))
        assert (bc.batch_size, idql.batch_size) == (256, 512)


def test_fql_needs_its_alpha_outside_the_table():
    with pytest.raises(BadInput, match=r"alpha must be given: add --alpha \(the paper used 10"):
        method_config("fql", "mine", {})


def test_defaults_are_the_algorithms_constants():
    a = method_config("sorl", "cube-single-play-singletask-v0", {})
    assert (a.fm_coef, a.sc_coef, a.tau, a.actor_lr, a.critic_lr) == (10, 10, 0.005, 1e-4, 1e-4)
    assert (a.adam_b1, a.adam_b2, a.adam_eps, a.clip_norm) == (0.9, 0.999, 1e-8, 1.0)
    assert (a.batch_size, a.ensemble, a.flow_eps) == (256, 2, 1e-5)
    assert not a.normalize_obs


def test_given_fields_win_over_the_preset():
    agent = method_config("sorl", "cube-double-play-singletask-task3-v0", dict(gamma=0.5, hidden=7))
    assert (agent.q_coef, agent.gamma, agent.hidden) == (50, 0.5, 7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("hidden", 0), ("depth", -1), ("ensemble", 0), ("batch_size", 0), ("m_disc", 6)),
        ("m_disc", 2048),
        *(("m_btt", 0), ("m_btt", 16), ("q_coef", -1.0), ("q_coef", float("nan")), ("gamma", 1.0)),
        *(("tau", 0.0), ("tau", 1.5), ("actor_lr", 0.0), ("critic_lr", float("inf"))),
        *(("clip_norm", 0.0), ("flow_eps", 1.0), ("q_agg", "max"), ("adam_b1", 1.0)),
        ("hidden", 2.5),
    ],
)
def test_a_value_out_of_bounds_is_named(field, value):
    with pytest.raises(BadInput) as err:
        method_config("sorl", "x", {"q_coef": 1.0} | {field: value})
    message = str(err.value)
    assert field in message
    assert repr(value) in message
    assert "must be" in message


@pytest.mark.parametrize(
    ("config", "changes", "field"),
    [
        (TrainConfig, {"steps": -1}, "steps"),
        (TrainConfig, {"eval_steps": ()}, "eval_steps"),
        (TrainConfig, {"out": ""}, "out"),
        (TrainConfig, {"seed": 2**63}, "seed"),
        (
            TrainConfig,
            {"precision": "fp16"},
            "precision is .fp16., but must be fp32 or bf16 on the CPU",
        ),
        (TrainConfig, {"precision": "fp8", "device": "cuda"}, "precision"),
        (CollectConfig, {"episodes": 0}, "episodes"),
        (CollectConfig, {"seed": -1}, "seed"),
    ],
)
def test_run_configs_name_what_is_wrong(config, changes, field):
    base = {"env": "e", "out": "o"} | ({"data": "d"} if config is TrainConfig else {})
    with pytest.raises(BadInput, match=field):
        config(**(base | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": (0,)},
        {"candidates": ()},
        {"episodes": 0},
        {"seed": 2**32},
        {"success_timing": "x"},
    ],
)
def test_eval_config_names_what_is_wrong(changes):
    with pytest.raises(BadInput, match=next(iter(changes))):
        EvalConfig(**changes)


def test_configs_go_round_and_unknown_fields_are_refused():
    agent = method_config("sorl", "x", dict(q_coef=2.0, m_btt=4))
    assert SorlConfig.from_dict(agent.to_dict()) == agent
    run = TrainConfig(env="e", data="d", out="o", eval_steps=(1, 8))
    assert TrainConfig.from_dict(run.to_dict() | {"eval_steps": [1, 8]}) == run
    with pytest.raises(BadInput, match="no field 'nonsense'"):
        SorlConfig.from_dict(agent.to_dict() | {"nonsense": 1})


def test_euler_steps():
    assert [euler_steps(m) for m in (1, 2, 8)] == [(1,), (1, 2), (1, 2, 4, 8)]
