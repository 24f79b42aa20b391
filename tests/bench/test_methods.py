"""What `sorl-bench train` knows of each method: FLOP, agreement, losses compiled, floors."""

import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

methods = pytest.importorskip("sorl_fast.bench.methods")

from sorl_fast.bench import train  # noqa: E402

EAGER, NATIVE = (
    next(c for c in train.CONTENDERS if (c.name, c.precision) == (name, "fp32"))
    for name in ("torch-eager", "sorl-fast")
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(train, "PAUSE", 0.0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


GFLOP = {
    "sorl": 14.7,
    "fql": 12.0,
    "iql": 6.2,
    "ifql": 6.2,
    "idql": 6.2,
    "rebrac": 5.15,
    "bc": 1.24,
}


@pytest.mark.parametrize(("method", "gflop"), GFLOP.items())
def test_nominal_flop_at_the_papers_size(method, gflop):
    config = methods.make_setting(256, method=method).config
    assert methods.mean_flop(config) == pytest.approx(gflop * 1e9, rel=0.02)


@pytest.mark.parametrize("method", methods.JOBS)
def test_no_update_does_less_than_its_nominal_flop(method):
    """Else a part of the limit could be above 1; but for the first layer, whose inputs get no gradient."""
    setting = methods.make_setting(2, method=method)
    runner = train.Runner(EAGER, setting, 1)
    for label, turn in [*runner.turns.items()][:2]:
        with runner.settled(), FlopCounterMode(display=False) as counter:
            runner.update(label)
        nominal = methods.update_flop(2, turn, setting.config)
        assert 0.985 * nominal < counter.get_total_flops() <= nominal, label


@pytest.mark.parametrize("method", methods.JOBS)
def test_every_method_is_raced(method):
    setting = methods.make_setting(16, hidden=16, depth=2, method=method)
    rows = train._race([EAGER, NATIVE], setting, 1, 1, {"fp32": 1e12})
    assert [row["contender"] for row in rows] == ["torch-eager", "sorl-fast"]
    for row in rows:
        assert row["method"] == method
        assert row["max_error"] < 1e-4
        assert row["weights_error"] < methods.MOVED_BOUND["fp32"]
        assert row["limit_fraction"] == pytest.approx(row["gflop"] / row["ms_per_update"])
    result = {"limits_gflops": {"fp32": 1e3}, "rows": rows, "machine": {"isas": {}}}
    json.dumps(result)
    said = train.table(result)
    assert said.startswith(method)
    assert ("--score mlp" in said) == (method == "idql")
    assert ("loss=both" in said) == (method == "rebrac")


def test_bf16_alone_is_still_held_against_float32():
    setting = methods.make_setting(16, hidden=16, depth=2, method="bc")
    eager = next(c for c in train.CONTENDERS if c.autocast)
    (row,) = train._race([eager], setting, 1, 1, {"bf16": 1e12})
    assert row["weights_error"] > 1e-4


@pytest.mark.parametrize("method", methods.JOBS)
def test_losses_differentiated_at_once_make_the_same_step(method):
    """What is left of torch.compile's lane where nothing is compiled."""
    setting = methods.make_setting(16, hidden=16, depth=2, method=method)
    runners = [train.Runner(EAGER, setting, 1) for _ in range(2)]
    functions = []
    methods.compile_losses(runners[1].learner, lambda f: functions.append(f) or f)
    assert [f.__name__ for f in functions] == [*methods.JOBS[method].compiled]
    for label in runners[0].turns:
        for runner in runners:
            with runner.settled():
                runner.update(label)
    one, other = (runner.learner.state() for runner in runners)
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-6)


def test_weights_that_went_elsewhere_are_not_timed():
    start = {"actor/0/w": torch.zeros(100), "actor_adam/first/0/w": torch.zeros(3)}
    right = {"actor/0/w": torch.ones(100), "actor_adam/first/0/w": torch.ones(3)}
    near, far, broken = ({**right, "actor/0/w": right["actor/0/w"].clone()} for _ in range(3))
    near["actor/0/w"][3] += 1e-3
    far["actor/0/w"][3] += 1
    broken["actor/0/w"][3] = torch.nan
    near["actor_adam/first/0/w"] = torch.zeros(3)  # moments are no weights
    assert methods.moved_apart(near, right, start) == pytest.approx(1e-4, rel=1e-2)
    methods.check_moved("x", "fp32", methods.moved_apart(near, right, start))
    for state in (far, broken):
        with pytest.raises(methods.Disagreement, match="not timed"):
            methods.check_moved("x", "fp32", methods.moved_apart(state, right, start))


def test_a_wrong_native_operation_ends_the_race(monkeypatch):
    native = pytest.importorskip("sorl_fast.ops.native")
    right = native._native.adam
    monkeypatch.setattr(native._native, "adam", lambda *args: right(*args[:-7], 2e-3, *args[-6:]))
    setting = methods.make_setting(16, hidden=16, depth=2, method="bc")
    with pytest.raises(methods.Disagreement, match="the weights are"):
        train._race([EAGER, NATIVE], setting, 1, 1, {"fp32": 1e12})


def test_floors_are_judged_where_they_are_meant():
    row = {"method": "fql", "precision": "fp32", "batch": 256, "threads": 2}
    eager = {**row, "contender": "torch-eager", "ms_per_update": 70.0}

    def said(ms, **other):
        return train.floors(
            [eager, {**row, "contender": "sorl-fast", "ms_per_update": ms, **other}]
        )

    assert said(49.0) == ["fql fp32: 1.43 x eager, floor 1.4; 49.0 ms, floor 50: reached"]
    assert said(49.9)[0].endswith("reached")
    assert said(50.1)[0].endswith("SHORT")  # of both
    assert said(60.0, method="bc") == ["bc fp32: nan x eager, floor 1.3: SHORT"]
    assert said(49.0, threads=1) == said(49.0, batch=16) == said(49.0, method="sorl") == []
    jax = {**row, "contender": "jax", "ms_per_update": 80.0}
    ours = {**row, "contender": "sorl-fast", "ms_per_update": 49.0}
    (beside,) = train.floors([eager, jax, ours])
    assert beside.endswith("floor 50; 1.63 x JAX, floor 1.45: reached")
    (slow,) = train.floors([eager, {**jax, "ms_per_update": 70.0}, ours])
    assert slow.endswith("1.43 x JAX, floor 1.45: SHORT")
    bf16 = [{**x, "precision": "bf16"} for x in (eager, {**ours, "ms_per_update": 14.0})]
    assert train.floors(bf16) == ["fql bf16: 5.00 x eager, floor 2.5; 14.0 ms, floor 15: reached"]
    assert math.isnan(train._of([eager], {**row, "threads": 1}, "torch-eager"))
