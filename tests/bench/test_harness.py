"""What is checked before it is timed, and how it is timed."""

import gc
import itertools

import numpy as np
import pytest
from sorl_fast.bench import harness, shapes
from sorl_fast.bench.harness import Disagreement, Figures, Running, Truth, max_abs_error
from sorl_fast.bench.shapes import Cell

from sorl_fast.act.reference import best_of_n

CELL = Cell(6, 4, 8, 3, 2)


@pytest.fixture(scope="module")
def policy():
    return shapes.make_policy(3, 2, hidden=32)


class Numpy:
    """The definition as a contender, or a mutant of it."""

    name, threads = "numpy", 1

    def __init__(self, precision="fp32", mutate=None, wrong_steps=None):
        self.precision = precision
        self.mutate = mutate or (lambda actions: actions)
        self.wrong_steps = wrong_steps

    def prepare(self, cell, policy, obs, noise):
        def call():
            steps = self.wrong_steps or cell.steps
            return self.mutate(best_of_n(policy, obs, noise, steps).action)

        return Running(call, lambda actions: actions)


def checked(contender, policy, cell=CELL):
    obs, noise = shapes.make_inputs(cell)
    running = contender.prepare(cell, policy, obs, noise)
    return harness.check(contender, running, harness.truth(policy, obs, noise, cell.steps))


@pytest.mark.parametrize("candidates", [1, 8])
def test_the_definition_passes(policy, candidates):
    assert checked(Numpy(), policy, CELL._replace(candidates=candidates)) < 1e-5


def nudge(by):
    def mutate(actions):
        actions = actions.copy()
        actions[-1, -1] += by
        return actions

    return mutate


def rounded(actions):
    return (actions.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


MUTANTS = {
    "one action of one row off": Numpy(mutate=nudge(3e-4)),
    "bf16 called fp32": Numpy(mutate=rounded),
    "a NaN": Numpy(mutate=nudge(np.nan)),
    "zeros": Numpy("bf16", mutate=np.zeros_like),
    "rows in another order": Numpy("bf16", mutate=lambda actions: actions[::-1]),
    "a row short": Numpy("bf16", mutate=lambda actions: actions[1:]),
    "half of the steps": Numpy("bf16", wrong_steps=2),
    "twice the steps": Numpy("bf16", wrong_steps=8),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_is_refused(policy, mutant):
    with pytest.raises(Disagreement, match=f"numpy \\({mutant.precision}, 1 threads"):
        checked(mutant, policy)


def test_another_candidate_than_the_best_is_refused(policy):
    cell = CELL
    obs, noise = shapes.make_inputs(cell)
    expected = harness.truth(policy, obs, noise, cell.steps)
    worst = expected.actions[np.arange(cell.batch), expected.q.argmin(1)]
    contender = Numpy("bf16")
    with pytest.raises(Disagreement):
        harness.check(contender, Running(lambda: worst, lambda a: a), expected)


def test_a_near_tie_may_pick_the_other_candidate():
    actions = np.array([[[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]]])
    expected = Truth(actions, np.array([[2.0, 1.9995, 1.0]]))
    for n, error in ((0, 0.0), (1, 0.0), (2, 0.5)):
        assert max_abs_error(actions[:, n], expected, 1e-3) == error
    assert max_abs_error(actions[:, 1], expected, 1e-4) == 1.0


def test_max_abs_error_is_over_rows_and_components():
    expected = Truth(np.zeros((3, 1, 2)), np.zeros((3, 1)))
    actions = np.array([[0.1, 0.0], [0.0, -0.4], [0.2, 0.3]])
    assert max_abs_error(actions, expected, 0.0) == 0.4
    actions[0, 0] = np.nan
    assert max_abs_error(actions, expected, 0.0) == np.inf


def test_truth_agrees_with_the_definitions_choice(policy):
    obs, noise = shapes.make_inputs(CELL)
    expected = harness.truth(policy, obs, noise, CELL.steps)
    choice = best_of_n(policy, obs, noise, CELL.steps, dtype=np.float64)
    np.testing.assert_array_equal(expected.q.argmax(1), choice.candidate)
    won = expected.actions[np.arange(CELL.batch), choice.candidate]
    np.testing.assert_allclose(won, choice.action, atol=1e-12)


def test_figures_never_understate():
    seconds = np.arange(1, 1001) * 1e-6
    rng = np.random.default_rng(0)
    assert Figures.of(rng.permutation(seconds)) == pytest.approx((501.0, 991.0, 1000.0, 1000.0))
    assert Figures.of(np.array([2e-6])) == pytest.approx((2.0,) * 4)
    with_peak = np.array([1e-6] * 99 + [1e-3])
    assert Figures.of(with_peak) == pytest.approx((1.0, 1000.0, 1000.0, 1000.0))


def test_time_calls_leaves_warm_up_and_between_out():
    log = []
    times = harness.time_calls(
        lambda: log.append("call"), 0.0, lambda: log.append("between"), least=3, warm_up=1
    )
    assert log == ["call", *["between", "call"] * 3]
    assert len(times) == 3
    assert (times >= 0).all()


@pytest.mark.parametrize(("least", "calls"), [(1, 1), (2, 2)])
def test_a_long_call_is_not_made_twice_to_warm_up(monkeypatch, least, calls):
    monkeypatch.setattr(harness, "LONG", 0.0)
    log = []
    times = harness.time_calls(lambda: log.append("call"), 1e-9, least=least)
    assert len(times) == len(log) == calls


def test_a_long_call_on_cold_caches_is_warmed_up(monkeypatch):
    monkeypatch.setattr(harness, "LONG", 0.0)
    log = []
    harness.time_calls(lambda: log.append("call"), 0.0, lambda: log.append("between"))
    assert log == ["call", "between", "call"]


def test_time_calls_without_collector():
    states = []
    harness.time_calls(lambda: states.append(gc.isenabled()), 0.0, least=2, warm_up=1)
    assert states == [False] * 3
    assert gc.isenabled()


def test_time_calls_most():
    assert len(harness.time_calls(lambda: None, 10.0, most=7)) == 7


def test_interleave_takes_turns_and_starts_each_round_with_another(monkeypatch):
    monkeypatch.setattr(harness, "PAUSE", 0.0)
    log = []

    def runner(name):
        return Running(
            lambda: log.append(name), lambda _: None, settle=lambda: log.append(f"settle {name}")
        )

    times = harness.interleave(
        [runner("a"), runner("b"), runner("c")], 0.0, rounds=3, least=2, most=2
    )
    assert [len(t) for t in times] == [6, 6, 6]
    blocks = [name.removeprefix("settle ") for name in log if name.startswith("settle")]
    assert blocks == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    for settle, rest in itertools.groupby(log, key=lambda name: name.startswith("settle")):
        if not settle:
            assert len(set(rest)) == 1


def test_time_cpp_warms_up_and_asks_for_as_many_calls_as_fit(monkeypatch):
    monkeypatch.setattr(harness, "PAUSE", 0.0)
    asked = []

    def cpp(calls):
        asked.append(calls)
        return [1e-6] * calls

    times = harness.time_cpp(Running(None, None, cpp=cpp), 1.0, p50=1e-3, rounds=2)
    assert asked == [harness.WARM_UP, 500] * 2
    assert len(times) == 1000


def test_time_cpp_does_not_warm_up_long_calls(monkeypatch):
    monkeypatch.setattr(harness, "PAUSE", 0.0)
    asked = []
    running = Running(None, None, cpp=lambda calls: asked.append(calls) or [1.0] * calls)
    harness.time_cpp(running, 0.3, p50=1.0, rounds=2)
    assert asked == [1, 1]


def test_the_evictor_lets_the_thread_go_where_it_was():
    import os

    before = os.sched_getaffinity(0)
    harness.CacheEvictor(l2_bytes=4096)()
    assert os.sched_getaffinity(0) == before


def test_machine():
    found = harness.machine({"fp32": ("scalar",)}, ("numpy", "no-such-package"))
    assert found["versions"]["numpy"] == np.__version__
    assert "no-such-package" not in found["versions"]
    assert found["isas"] == {"fp32": ["scalar"]}
    assert found["cores"] >= 1


def test_the_headline_says_where_and_how_idle():
    machine = harness.machine({"fp32": ["avx2"]}, ["numpy"]) | {"load": 0.1}
    text = harness.headline(machine)
    assert machine["cpu"] in text
    assert f"commit {machine['commit']}" in text
    assert "BUSY" not in text
    assert "BUSY" in harness.headline(machine | {"load": 0.5})
