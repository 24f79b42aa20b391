"""The training benchmark: its arithmetic, its check, its rows."""

import json
import statistics
from dataclasses import replace

import pytest
import torch

bench = pytest.importorskip("sorl_fast.bench.train")

from sorl_fast.errors import BadInput  # noqa: E402


def test_a_contender_that_computes_something_else_is_not_timed():
    expected = torch.tensor([1.0, 2.0, 100.0, 0.0, -1.0, 0.5, 3.0, 4.0])
    right, wrong, broken = expected * 1.00001, expected.clone(), expected.clone()
    wrong[2] *= 1.01
    broken[4] = torch.nan
    assert bench.check(right, expected, bench.EAGER) < 1e-4
    for metrics in (wrong, broken):
        with pytest.raises(bench.Disagreement, match=r"fm_loss|q_loss"):
            bench.check(metrics, expected, bench.EAGER)


@pytest.mark.slow
def test_rows_hold_what_readers_need(monkeypatch):
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    setting = bench.make_setting(16, hidden=16, depth=2)
    contenders = [c for c in bench.CONTENDERS if c.precision == "fp32" and not c.compiled]
    rows = bench._race(contenders, setting, 1, 1, {"fp32": 1e11})
    assert [r["contender"] for r in rows] == ["torch-eager", "sorl-fast"]
    for row in rows:
        assert row.keys() >= {"precision", "threads", "batch", "ms_per_update", "limit_fraction"}
        assert row["ms_by_k"].keys() == {"1", "2", "4", "8"}
        assert row["ms_per_update"] == pytest.approx(statistics.mean(row["ms_by_k"].values()))
        assert row["ms_by_phase"].keys() == set(bench.PHASES)
    result = {
        "machine": bench.machine({"fp32": ["avx2"], "bf16": []}, []),
        "limits_gflops": {"fp32": 100.0},
        "rows": rows,
    }
    json.dumps(result)
    text = bench.table(result)
    assert text.count("sorl-fast") == 2  # its row, and what self-consistency takes of it
    assert text.count("self-consistency takes") == 2
    assert bench.closing(result).count("no A") == 2


@pytest.mark.slow
def test_a_row_beyond_the_limit_fails_the_benchmark_and_is_named(monkeypatch, capsys, tmp_path):
    row = {
        "method": "sorl",
        "settings": {},
        "gflop": 14.7,
        "weights_error": 0.0,
        "contender": "sorl-fast",
        "precision": "bf16",
        "threads": 1,
        "batch": 256,
        "ms_per_update": 10.0,
        "ms_by_k": {str(k): 1.0 for k in bench.STEPS},
        "limit_fraction": 1.04,
        "ms_by_phase": dict.fromkeys(bench.PHASES, 1.0),
        "max_error": 0.0,
    }
    rows = [{**row, "contender": "torch-eager"}, row]
    monkeypatch.setattr(bench, "_race", lambda *_: [dict(r) for r in rows])
    path = tmp_path / "train.json"
    argv = ["--quick", "--threads", "1", "--json", str(path)]
    assert bench.run(argv) == 0
    row["limit_fraction"] = 1.17
    assert bench.run(argv) == 1
    assert json.loads(path.read_text())["rows"] == rows  # what was measured is kept
    said = capsys.readouterr().err
    assert "sorl, batch 256, bf16, 1T: sorl-fast, 10.00 ms, is 117% of the machine's limit" in said
    assert "torch-eager" not in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("method", bench.JOBS)
def test_compiled_losses_are_differentiated(method, monkeypatch):
    """With all of torch.compile but the machine code."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call: compile_(call, backend="aot_eager"))
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    setting = bench.make_setting(4, hidden=8, depth=1, method=method)
    compiled = next(c for c in bench.CONTENDERS if c.compiled)
    runners = [bench.Runner(c, setting, 1) for c in (bench.EAGER, compiled)]
    results = []
    for runner in runners:
        with runner.settled():
            results.append(runner.update([*runner.turns][-1]))
            if method == "sorl":
                runner.phases(2)
    torch._dynamo.reset()
    bench.check(results[1], results[0], compiled, setting.learner().method.metrics)


@pytest.mark.parametrize(
    "settings", [{}, {"q_agg": "min", "normalize_q_loss": True, "flow_steps": 3}]
)
def test_jax_updates_as_fql_does(settings, monkeypatch):
    pytest.importorskip("jax", reason="the experts' extra is not installed")
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    setting = bench.make_setting(16, hidden=16, depth=2, method="fql")
    setting = setting._replace(config=replace(setting.config, **settings))
    jax = bench.Contender("jax", "fp32", "jax")
    runners = [bench.Runner(c, setting, 1) for c in (bench.EAGER, jax)]
    start = {name: x.clone() for name, x in setting.learner().state().items()}
    (_, found) = bench._agreed(runners, start)
    assert found["max_error"] < 1e-5
    assert found["weights_error"] < 1e-3


def test_jax_races_fql_on_all_cores_only():
    cores = bench.available_cores()
    assert not bench.raced("sorl", cores) and not bench.raced("fql", cores + 1)


def test_what_consistency_adds_is_the_difference_of_medians(monkeypatch):
    """A clock that each update with the loss advances by k + 5, and one without by k."""
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    runner = bench.Runner(bench.EAGER, bench.make_setting(4, hidden=8, depth=1), 1)
    now = [0.0]

    def update(batch, noise, steps):
        now[0] += steps.q + 5 * steps.sc

    monkeypatch.setattr(runner.learner, "update", update)
    assert bench.consistency(runner, 2, clock=lambda: now[0]) == 5
    row = {"contender": "x", "precision": "fp32", "batch": 4, "ms_per_update": 40.0}
    assert bench.shares([row]) == []
    (line,) = bench.shares([row | {"ms_consistency": 10.0}])
    assert line == "x fp32, batch 4: self-consistency takes 10.0 of 40.0 ms, 25%"


def test_the_backend_is_put_back(monkeypatch):
    monkeypatch.delenv("SORL_OPS", raising=False)
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    runner = bench.Runner(bench.EAGER, bench.make_setting(4, hidden=8, depth=1), 1)
    with runner.settled():
        assert bench.os.environ["SORL_OPS"] == "torch"
    assert "SORL_OPS" not in bench.os.environ


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--threads", "0"], r"threads is 0, but must be in \[1, 8\]"),
        (["--threads", "9"], "threads is 9"),
        (["--rounds", "-1"], "rounds is -1, but must be in"),
        (["--batch", "256", "0"], "batch is 0, but must be in"),
        (["--against", "python", "--method", "iql"], "method is 'iql', but must be sorl"),
    ],
)
def test_bad_arguments(argv, says):
    with pytest.raises(BadInput, match=says):
        bench.run(argv)
