import itertools
import json

import numpy as np
import pytest
from forms import FORMS, form_policy
from hypothesis import given
from hypothesis import strategies as st
from policies import make_policy

from sorl_fast import cli
from sorl_fast import recommend as module
from sorl_fast.act import policy_file, timing
from sorl_fast.act.sampler import Sampler
from sorl_fast.errors import BadInput
from sorl_fast.recommend import (
    Option,
    Rate,
    Recommendation,
    by_success,
    choose,
    compare,
    not_worse,
    recommend,
    text,
)


@pytest.fixture(autouse=True)
def few_calls(monkeypatch):
    """What is tested is what becomes of the times: `act/test_timing.py` tests the clock."""
    monkeypatch.setattr(timing, "LEAST_CALLS", 5)
    monkeypatch.setattr(timing, "WARM_UP", 1)


def rate(M=1, N=1, success=0.5, half=0.1):
    return Rate(M, N, success, max(0.0, success - half), min(1.0, success + half))


def option(M=1, N=1, success=0.5, p99=100.0, precision="fp32", threads=1, half=0.1):
    return Option(rate(M, N, success, half), precision, threads, 0.9 * p99, p99)


def row(M, N, success):
    n = 50
    return {
        **{"steps": M, "candidates": N, "episodes": n, "successes": round(n * success)},
        **{"success": success, "ci_low": max(0, success - 0.1), "ci_high": min(1, success + 0.1)},
    }


@pytest.fixture
def run_folder(tmp_path):
    """A run's folder with a small policy and an evaluation of four cells."""
    policy_file.save(tmp_path / "policy.safetensors", make_policy(m_disc=4))
    rows = [row(M, N, 0.2 * M) for M in (1, 4) for N in (1, 2)]
    write_evaluation(tmp_path, {"env": "toy-v0", "rows": rows})
    return tmp_path


def write_evaluation(folder, values):
    (folder / "evaluation.json").write_text(json.dumps(values))


OPTIONS = [
    option(1, 1, 0.3, 50.0),
    option(4, 1, 0.6, 200.0),
    option(4, 1, 0.6, 120.0, "bf16"),
    option(8, 8, 0.9, 900.0),
    option(8, 8, 0.9, 400.0, "bf16", threads=2),
]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        pytest.param(49.9, None, id="nothing fits"),
        pytest.param(50.0, 0, id="the bound itself fits"),
        pytest.param(130.0, 2, id="only bf16 fits"),
        pytest.param(300.0, 2, id="equal success: lower p99"),
        pytest.param(500.0, 4, id="highest success of those that fit"),
        pytest.param(5000.0, 4, id="all fit"),
    ],
)
def test_choose(budget, expected):
    choice = choose(OPTIONS, budget)
    assert choice == (None if expected is None else OPTIONS[expected])


def test_a_deadline_takes_the_ways_by_success(run_folder):
    """Of equal ones the cheaper comes first; a sampler takes them."""
    rows = [row(1, 1, 0.2), row(4, 8, 0.9), row(4, 2, 0.9), row("1/2,1/4,1/4", 1, 0.95)]
    write_evaluation(run_folder, {"env": "toy-v0", "rows": rows})
    ways = by_success(run_folder)
    shown = [(way.steps.key, way.candidates) for way in ways]
    assert shown == [("1/2,1/4,1/4", 1), (4, 2), (4, 8), (1, 1)]
    assert [
        p.way for p in Sampler.load(run_folder / "policy.safetensors").prepare_deadline(ways)
    ] == ways


def test_choose_looks_at_p99_not_at_the_median():
    spiky = Option(rate(success=0.9), "fp32", 1, p50_us=10.0, p99_us=600.0)
    steady = Option(rate(success=0.4), "fp32", 1, p50_us=90.0, p99_us=100.0)
    assert choose([spiky, steady], 500.0) is steady


def test_choose_of_nothing():
    assert choose([], 500.0) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 10), st.floats(1, 1000)), min_size=1, max_size=12, unique=True
    ),
    st.floats(1, 1000),
)
def test_no_option_that_fits_beats_the_choice(values, budget):
    options = [option(1, i + 1, s / 10, p99) for i, (s, p99) in enumerate(values)]
    choice = choose(options, budget)
    fitting = [o for o in options if o.p99_us <= budget]
    assert (choice is None) == (not fitting)
    for other in fitting:
        assert (other.rate.success, -other.p99_us) <= (choice.rate.success, -choice.p99_us)


def test_not_worse_names_cheaper_cells_with_overlapping_intervals_once():
    choice = option(8, 8, 0.9, 400.0)
    near_fast = option(4, 1, 0.75, 100.0, "bf16")
    near = option(4, 1, 0.75, 200.0)
    far = option(1, 1, 0.3, 50.0)
    dearer = option(8, 16, 0.88, 500.0)
    same_cell = Option(choice.rate, "bf16", 1, 1.0, 2.0)
    assert not_worse([choice, near, near_fast, far, dearer, same_cell], choice) == [near_fast]


def paired(M, outcomes, seed=0):
    """A cell of these outcomes, with an interval that overlaps every other's."""
    return Rate(M, 1, outcomes.count("1") / len(outcomes), 0.0, 1.0, outcomes=outcomes, seed=seed)


@pytest.mark.parametrize(
    ("other", "seed", "differ", "how"),
    [
        # 7 won and none lost: p = 2 / 2^7 = 0.0156
        pytest.param("1" * 17 + "0" * 8, 0, True, "the same 25 episodes: p = 0.016", id="7 to 0"),
        # 5 to 0: p = 2 / 2^5 = 0.0625
        pytest.param("1" * 19 + "0" * 6, 0, False, "the same 25 episodes: p = 0.062", id="5 to 0"),
        pytest.param(
            "1" * 17 + "0" * 8, 1, False, "the 95% intervals overlap", id="other episodes"
        ),
        pytest.param("1" * 17, 0, False, "the same 17 episodes: p = 1", id="as many as both have"),
    ],
)
def test_cells_of_the_same_episodes_are_told_apart_by_the_paired_test(other, seed, differ, how):
    best, rate = paired(5, "1" * 24 + "0"), paired(2, other, seed)
    found = compare(rate, best)
    assert found.differ == differ
    assert how in found.how
    choice = Option(best, "fp32", 1, 20.0, 40.0)
    cheaper = Option(rate, "fp32", 1, 10.0, 20.0)
    assert not_worse([choice, cheaper], choice) == ([] if differ else [cheaper])
    said = text(Recommendation("cube", (cheaper, choice), 500.0, choice))
    assert (f"Not told apart by this evaluation ({found.how}), and cheaper" in said) != differ


def test_the_outcomes_are_read_from_the_evaluation(run_folder):
    rows = [row(1, 1, 0.68) | {"outcomes": "10"}, row(4, 1, 0.96)]
    write_evaluation(run_folder, {"env": "toy-v0", "seed": 3, "rows": rows})
    policy = policy_file.load(run_folder / "policy.safetensors")
    first, second = module.read_evaluation(run_folder / "evaluation.json", policy).rates
    assert (first.outcomes, first.seed, second.outcomes) == ("10", 3, "")


def test_text_names_the_choice_and_the_overlap():
    options = (option(1, 1, 0.75, 100.0), option(8, 8, 0.9, 400.0, "bf16", 2))
    out = text(Recommendation("cube", options, 500.0, options[1]))
    assert "Within 500 us at p99 the best is M = 8, N = 8, bf16, 2 threads: success 90.0%" in out
    assert "cheaper: M = 1, N = 1, fp32, 1 thread" in out
    assert "evaluated in fp32; that bf16 succeeds as often is assumed" in out
    assert "sorl-fast eval RUN --precision bf16" in out
    known = options[1]._replace(evaluated="bf16")
    assert "assumed" not in text(Recommendation("cube", (options[0], known), 500.0, known))
    assert "<-- this one" in out
    assert "too slow" not in out
    ruled = options[1]._replace(rate=options[1].rate._replace(rule="medoid:1/2"))
    out = text(Recommendation("cube", (ruled,), 500.0, ruled))
    assert "sorl-fast eval RUN --precision bf16 --rules medoid:1/2, with" in out


def test_text_says_when_nothing_fits():
    options = (option(1, 1, 0.3, 50.0), option(8, 8, 0.9, 400.0))
    out = text(Recommendation("cube", options, 20.0, None))
    assert "Nothing fits 20 us: the fastest is M = 1, N = 1, fp32, 1 thread with p99 = 50.0" in out
    assert out.count("too slow") == 4  # among all, and on the front


def test_recommend_joins_every_cell_with_its_time(run_folder):
    seen = []
    result = recommend(
        run_folder,
        1e9,
        precisions=["fp32"],
        threads=[1],
        seconds=0.0,
        backend="numpy",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [o.rate[:2] for o in result.options] == [*itertools.product((1, 4), (1, 2))]
    assert all(0 < o.p50_us <= o.p99_us for o in result.options)
    assert result.choice.rate.success == 0.8
    assert result.choice.p99_us == min(o.p99_us for o in result.options if o.rate.steps == 4)
    assert result.env == "toy-v0"
    assert text(result).startswith("Success in toy-v0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "candidates", "rule", "call"),
    [
        (4, 1, "argmax", "act(obs, steps=4, candidates=1)"),
        (4, 2, "medoid:1/2", 'act(obs, steps=4, candidates=2, rule="medoid:1/2")'),
        ("1/2,1/4,1/4", 2, "argmax", 'steps="1/2,1/4,1/4", candidates=2, rule="argmax")'),
    ],
)
def test_the_last_line_acts_as_recommended(run_folder, capsys, steps, candidates, rule, call):
    pytest.importorskip("sorl_fast._native")
    rows = [row(steps, candidates, 0.9) | {"rule": rule}]
    write_evaluation(run_folder, {"env": "toy-v0", "rows": rows})
    policy = policy_file.load(run_folder / "policy.safetensors")
    obs = np.linspace(-1, 1, policy.obs_dim, dtype=np.float32)
    assert cli.main(["recommend", str(run_folder), "--budget-us", "1e9", "--no-progress"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert call in line
    made = []

    class Spy(Sampler):
        def __init__(self, policy, backend, precision, threads):
            made.append((backend, precision, threads))
            super().__init__(policy, backend, precision, threads)

        def act(self, obs, *args, **more):
            return super().act(obs, *args, seed=3, call=0, **more)

    action = eval(line, {"Sampler": Spy, "obs": obs})
    ((backend, precision, threads),) = made
    assert backend is None  # the default is what was timed
    same = Sampler(policy, backend, precision, threads)
    wanted = same.act(obs, steps, candidates, rule=rule, seed=3, call=0)
    np.testing.assert_array_equal(action, wanted)
    assert f'precision="{precision}", threads={threads}' in line


def test_the_line_names_a_backend_that_is_not_native():
    numpy = option()._replace(backend="numpy", file='a "b"/p.safetensors')
    assert numpy.python.startswith('Sampler.load("a \\"b\\"/p.safetensors", backend="numpy", prec')


@pytest.mark.slow
def test_nothing_that_fits_exits_with_1(run_folder, capsys):
    pytest.importorskip("sorl_fast._native")
    assert cli.main(["recommend", str(run_folder), "--budget-us", "1e-3", "--no-progress"]) == 1
    out = capsys.readouterr().out
    assert "Nothing fits 0.001 us" in out
    assert "Sampler" not in out


def test_times_of_a_busy_machine_are_called_so():
    busy = [Option(rate(M), "fp32", 1, 10.0, p99) for M, p99 in ((1, 20.0), (2, 500.0), (4, 600.0))]
    said = text(Recommendation("cube", tuple(busy), 1e9, busy[2]))
    assert (
        "p99 is 50 times p50 in the median of the 3 options, and over 10 times in 2 of them" in said
    )
    assert "repeat it when the machine is idle" in said
    idle = [o._replace(p99_us=100.0) for o in busy]
    assert "idle" not in text(Recommendation("cube", tuple(idle), 1e9, idle[2]))


def test_recommend_takes_a_policy_file_and_another_evaluation(run_folder, tmp_path):
    other = tmp_path / "other.json"
    values = {"env": "toy-v0", "precision": "bf16", "rows": [row(2, 1, 0.5)]}
    other.write_text(json.dumps(values))
    result = recommend(
        *(run_folder / "policy.safetensors", 1e9),
        evaluation=other,
        precisions=["fp32"],
        threads=[1],
        seconds=0.0,
        backend="numpy",
    )
    assert [o.rate[:2] for o in result.options] == [(2, 1)]
    assert [o.evaluated for o in result.options] == ["bf16"]


def test_each_precision_has_its_own_success_where_it_was_evaluated(run_folder):
    pytest.importorskip("sorl_fast._native")
    values = {"env": "toy-v0", "precision": "int8", "rows": [row(1, 1, 0.1)]}
    (run_folder / "evaluation-int8.json").write_text(json.dumps(values))
    result = recommend(run_folder, 1e9, precisions=["fp32", "int8"], threads=[1], seconds=0.0)
    found = {(*o.rate[:2], o.precision): (o.rate.success, o.evaluated) for o in result.options}
    assert found[1, 1, "int8"] == (0.1, "int8")
    assert found[1, 1, "fp32"] == (0.2, "fp32")
    assert found[4, 2, "int8"] == (0.8, "fp32")
    # another environment's says nothing
    values["env"] = "other-v0"
    (run_folder / "evaluation-int8.json").write_text(json.dumps(values))
    result = recommend(run_folder, 1e9, precisions=["int8"], threads=[1], seconds=0.0)
    assert {o.evaluated for o in result.options} == {"fp32"}


def test_results_of_an_earlier_policy_are_not_mixed_in(run_folder):
    pytest.importorskip("sorl_fast._native")
    policy = policy_file.load(run_folder / "policy.safetensors")
    mine, other = policy_file.digest(policy), policy_file.digest(make_policy(m_disc=4, salt=1))
    values = {"env": "toy-v0", "policy": other, "rows": [row(1, 1, 0.9)]}
    write_evaluation(run_folder, values)
    with pytest.raises(BadInput, match=r"evaluation.json is of another policy.*sorl-fast eval RUN"):
        recommend(run_folder, 1e9, precisions=["fp32"], threads=[1], seconds=0.0)
    write_evaluation(run_folder, values | {"policy": mine, "rows": [row(1, 1, 0.2)]})
    for of, success in ((other, 0.2), (mine, 0.9)):
        beside = values | {"precision": "int8", "policy": of}
        (run_folder / "evaluation-int8.json").write_text(json.dumps(beside))
        result = recommend(run_folder, 1e9, precisions=["int8"], threads=[1], seconds=0.0)
        assert [o.rate.success for o in result.options] == [success]


def test_cells_of_any_grid_and_count_are_read(run_folder):
    rows = [row(1, 1, 0.2), row(4, 2, 0.8) | {"episodes": 3}, row(2, 32, 0.5)]
    write_evaluation(run_folder, {"env": "toy-v0", "rows": rows})
    options = recommend(
        run_folder, 1e9, precisions=["fp32"], threads=[1], seconds=0.0, backend="numpy"
    ).options
    assert [o.rate[:2] for o in options] == [(1, 1), (2, 32), (4, 2)]


def test_arguments_in_the_wrong_order_are_named(run_folder):
    with pytest.raises(BadInput, match=r"budget_us is .*Python: recommend\(run, budget_us\)"):
        recommend(500, run_folder)


def test_a_precision_that_is_not_there_is_left_out_and_named(run_folder):
    result = recommend(run_folder, 1e9, threads=[1], seconds=0.0, backend="numpy")
    assert {o.precision for o in result.options} == {"fp32"}
    assert set(result.left_out) == {"bf16", "int8"}
    assert "Left out: int8: precision is 'int8', but the numpy backend has fp32 only" in text(
        result
    )
    with pytest.raises(BadInput, match="the numpy backend has fp32 only"):
        recommend(run_folder, 1e9, precisions=["bf16"], threads=[1], backend="numpy")
    with pytest.raises(BadInput, match="name one"):
        recommend(run_folder, 1e9, precisions=[], threads=[1], backend="numpy")


def test_an_instruction_set_that_int8_has_not_leaves_the_others(run_folder, monkeypatch):
    native = pytest.importorskip("sorl_fast._native")
    wanted = next((isa for isa in native.isas("fp32") if isa not in native.isas("int8")), None)
    if wanted is None:
        pytest.skip("every instruction set of fp32 has int8 here")
    monkeypatch.setenv("SORL_CPU_ISA", wanted)
    result = recommend(run_folder, 1e9, threads=[1], seconds=0.0)
    assert {o.precision for o in result.options} == {"fp32", "bf16"}
    assert wanted in result.left_out["int8"]


def test_threads_above_the_cores_are_left_out(run_folder, monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: 1)
    result = recommend(
        run_folder, 1e9, precisions=["fp32"], threads=[1, 2], seconds=0.0, backend="numpy"
    )
    assert {o.threads for o in result.options} == {1}
    with pytest.raises(BadInput, match="this process may use 1 cores only"):
        recommend(run_folder, 1e9, threads=[2], backend="numpy")


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_budget(run_folder, budget):
    with pytest.raises(BadInput, match=r"budget_us is .*above 0. Set --budget-us"):
        recommend(run_folder, budget, backend="numpy")


def test_without_the_native_module(run_folder, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"no native module.*build it with g"):
        recommend(run_folder, 500.0)


def test_no_policy(tmp_path):
    with pytest.raises(BadInput, match=r"policy\.safetensors is not a file"):
        recommend(tmp_path, 500.0, backend="numpy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "no evaluation .*sorl-fast eval RUN", id="missing"),
        pytest.param("{", "is not JSON", id="not JSON"),
        pytest.param("[]", "has no rows", id="not an object"),
        pytest.param('{"rows": []}', "has no rows", id="no rows"),
        pytest.param(
            '{"precision": null, "rows": [{"steps": 1, "candidates": 1, "success": 0, "ci_low": 0, '
            '"ci_high": 0}]}',
            "precision is None, but must be one of fp32",
            id="precision",
        ),
        pytest.param('{"rows": [3]}', "row 0: the row is 3, but must be an object", id="row"),
    ],
)
def test_bad_evaluation(run_folder, content, message):
    path = run_folder / "evaluation.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInput, match=message):
        recommend(run_folder, 500.0, backend="numpy")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("steps", v) for v in (9, 16, True, "1", "1/2", None)),
        *(("rule", v) for v in ("best", 3, None)),
        *(("candidates", v) for v in (0, 1.5, None)),
        *(("success", v) for v in (-0.1, 1.1, "1", None)),
        *(("ci_low", v) for v in (-0.1, None)),
        *(("ci_high", v) for v in (2, None)),
        *(("outcomes", v) for v in ("012", 1, None)),
    ],
)
def test_bad_row(run_folder, name, value):
    write_evaluation(run_folder, {"env": "toy-v0", "rows": [row(1, 1, 0.5) | {name: value}]})
    with pytest.raises(BadInput, match=f"row 0: {name} is .*must be"):
        recommend(run_folder, 500.0, backend="numpy")


def test_steps_beyond_the_schedules_that_a_shortcut_policy_takes(run_folder):
    write_evaluation(run_folder, {"env": "toy-v0", "rows": [row(2048, 1, 0.5)]})
    with pytest.raises(BadInput, match="steps is 2048, but must be M, or a schedule's name, of at"):
        recommend(run_folder, 500.0, backend="numpy")


def test_a_cell_twice(run_folder):
    write_evaluation(run_folder, {"env": "toy-v0", "rows": [row(1, 1, 0.5), row(1, 1, 0.6)]})
    with pytest.raises(BadInput, match="a cell of steps and candidates twice"):
        recommend(run_folder, 500.0, backend="numpy")


def test_a_form_that_native_does_not_run_is_timed_on_numpy(tmp_path):
    policy_file.save(tmp_path / "policy.safetensors", form_policy(FORMS["residual"]))
    write_evaluation(tmp_path, {"env": "toy-v0", "rows": [row(5, N, 0.2 * N) for N in (1, 4)]})
    result = recommend(tmp_path, 1e9, seconds=0.0)
    assert {o.backend for o in result.options} == {"numpy"}
    assert {(o.rate.steps, o.precision, o.threads) for o in result.options} == {(5, "fp32", 1)}
    assert "one action a call, numpy backend" in text(result)
    write_evaluation(tmp_path, {"env": "toy-v0", "rows": [row(1, 1, 0.5)]})
    with pytest.raises(BadInput, match="steps is 1, but must be one of 5"):
        recommend(tmp_path, 1e9, seconds=0.0)
