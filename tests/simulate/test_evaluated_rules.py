"""Rules and schedules as cells of an evaluation: the same episodes, paired tests, records and files."""

import json
import math
from dataclasses import replace

import pytest
from evaluating import MAZE, FakeWorkers
from hypothesis import given
from hypothesis import strategies as st

from sorl_fast import cli
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.policy_file import load, save
from sorl_fast.config import EvalConfig
from sorl_fast.errors import BadInput
from sorl_fast.report import terminal_table
from sorl_fast.simulate import evaluate as module
from sorl_fast.simulate.episodes import Cell, Episode, Record, Task, cell_of, keep_evaluation
from sorl_fast.simulate.evaluate import evaluate
from sorl_fast.simulate.paired import sign_test

RULES = ("argmax", "medoid", "nearest:1/2")


def test_rules_are_cells_of_the_same_episodes(maze_policy, tmp_path):
    grid = ((4, "1/2,1/4,1/4"), (1, 4), 6, 11)
    record = tmp_path / "record"
    plain = FakeWorkers(MAZE, backend="numpy").run(maze_policy, *grid, record=record)
    fake = FakeWorkers(MAZE, backend="numpy")
    result = fake.run(maze_policy, *grid, record=record, rules=RULES)
    cells = [(r["steps"], r["candidates"], r.get("rule")) for r in result["rows"]]
    assert cells == [
        (M, N, rule)
        for M in (4, "1/2,1/4,1/4")
        for N, rule in ((1, None), (4, None), (4, "medoid:1/2"), (4, "nearest:1/2"))
    ]
    assert {task[4] for task in fake.ran} == {"medoid:1/2", "nearest:1/2"}  # argmax is there
    assert [task[2:4] for task in fake.ran] == [(11, e) for e in range(6)] * 4
    assert [r for r in result["rows"] if "rule" not in r] == plain["rows"]
    for row in result["rows"]:
        assert row["outcomes"].count("1") == row["successes"]
        assert len(row["outcomes"]) == 6
    again = FakeWorkers(MAZE, backend="numpy")
    assert again.run(maze_policy, *grid, record=record, rules=RULES) == result
    assert again.ran == []


@pytest.mark.parametrize(
    ("rules", "steps", "backend"),
    [
        (("argmax",), (1, 4), "native"),
        (("medoid",), (1, 4), "native"),
        (("argmax",), (3,), "native"),
        (("argmax",), ("1/2,1/4,1/4",), "native"),
    ],
    ids=["argmax", "rule", "M", "sizes"],
)
def test_one_backend_acts_in_all_cells(rules, steps, backend, maze_policy):
    fake = FakeWorkers(MAZE)
    assert fake.run(maze_policy, steps, (1, 2), 1, 0, rules=rules)["backend"] == backend
    assert fake.acted == backend
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SORL_BACKEND", "torch")
        assert fake.run(maze_policy, steps, (1, 2), 1, 0, rules=rules)["backend"] == "torch"


def test_a_policy_with_a_choice_is_evaluated_in_it_too(maze_policy, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Evaluator", FakeWorkers)
    choice = PolicyChoice(steps="1/2,1/4,1/4", candidates=16, rule="medoid")
    path = tmp_path / "chosen.safetensors"
    save(path, replace(load(maze_policy), choice=choice))

    def cells(**flags):
        rows = evaluate(path, EvalConfig(episodes=2, **flags))["rows"]
        return [(r["steps"], r["candidates"], r.get("rule", "argmax")) for r in rows]

    own = ("1/2,1/4,1/4", 16, "medoid:1/2")
    assert sorted({*cells()} - {own}, key=str) == sorted(
        ((M, N, "argmax") for M in (1, 2, 4) for N in (1, 4, 8)), key=str
    )
    assert own in cells()
    assert cells(candidates=(1,)) == [(1, 1, "argmax"), (2, 1, "argmax"), (4, 1, "argmax")]
    assert own in cells(candidates=(16,))
    assert own not in cells(rules=("argmax",))
    assert cells(rules=("medoid",), candidates=(16,), steps=("1/2,1/4,1/4",)) == [own]


@pytest.mark.slow
def test_rules_and_schedules_are_evaluated_in_the_simulator(maze_policy, tmp_path, capsys):
    out = tmp_path / "result.json"
    argv = ["eval", str(maze_policy), "--episodes", "2", "--json", str(out), "--no-progress"]
    argv += ["--steps", "5", "1/2,1/4,1/4", "--candidates", "1", "4"]
    assert cli.main([*argv, "--rules", "argmax", "soft"]) == 0
    result = json.loads(out.read_text())
    assert [cell_of(r) for r in result["rows"]] == [
        Cell(M, N, rule)
        for M in ("1/2,1/4,1/4", 5)
        for N, rule in ((1, "argmax"), (4, "argmax"), (4, "soft:1"))
    ]
    assert all(r["episodes"] == 2 and r["episode_length"] > 0 for r in result["rows"])
    assert len({(r["returns"], r["actions_per_second"]) for r in result["rows"]}) == 6
    assert "N = 4 soft:1" in capsys.readouterr().out
    assert cli.main([*argv, "--rules", "medoid"]) == 0  # added
    assert len(json.loads(out.read_text())["rows"]) == 8


# --- what stays on disk

CONTEXT = {
    **{"policy": "ab" * 32, "env": "maze", "success_timing": "post", "seed": 3},
    **{"backend": "numpy", "isa": "", "precision": "fp32", "versions": {"mujoco": "3.2"}},
}


def test_an_episode_of_a_rule_is_its_own(tmp_path):
    argmax, medoid = Task(4, 8, 3, 0), Task("1/2,1/4,1/4", 8, 3, 0, "medoid:1/2")
    episode = Episode(True, 7, -1.0, 0.25)
    with Record(tmp_path / "record", CONTEXT) as record:
        record.add(argmax, episode)
        record.add(medoid, episode)
    first, second = map(json.loads, (tmp_path / "record").read_text().splitlines())
    assert "rule" not in first  # as an older version writes and reads it
    assert second["rule"] == "medoid:1/2"
    assert Record(tmp_path / "record", CONTEXT).done == {argmax: episode, medoid: episode}


def row(steps, candidates, outcomes, **more):
    n, k = len(outcomes), outcomes.count("1")
    return {
        **{"steps": steps, "candidates": candidates, "episodes": n, "successes": k},
        **{"success": k / n, "ci_low": 0.0, "ci_high": 1.0, "outcomes": outcomes},
        **{"episode_length": 9.0, "actions_per_second": 1234.0, "returns": -1.0},
        **more,
    }


def test_rules_are_added_to_an_older_evaluation(tmp_path):
    path = tmp_path / "evaluation.json"
    old = [{k: v for k, v in row(4, N, "0110").items() if k != "outcomes"} for N in (1, 8)]
    keep_evaluation(path, CONTEXT | {"command": "old", "rows": old})
    new = [row("1/2,1/4,1/4", 1, "1111"), row(4, 8, "1111", rule="medoid:1/2"), row(4, 1, "0110")]
    merged, aside = keep_evaluation(path, CONTEXT | {"command": "new", "rows": new})
    assert aside is None
    assert [cell_of(r) for r in merged["rows"]] == [
        *(Cell("1/2,1/4,1/4", 1), Cell(4, 1), Cell(4, 8), Cell(4, 8, "medoid:1/2")),
    ]
    assert json.loads(path.read_text())["rows"] == merged["rows"]


@pytest.mark.parametrize("change", [{"steps": "4"}, {"steps": "x"}, {"rule": "best"}, {"rule": 3}])
def test_rows_that_name_no_cell_are_not_added_to(tmp_path, change):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(CONTEXT | {"rows": [row(4, 8, "01") | change]}))
    merged, _ = keep_evaluation(path, CONTEXT | {"command": "new", "rows": [row(1, 1, "01")]})
    assert [cell_of(r) for r in merged["rows"]] == [Cell(1, 1)]


# --- compared


def test_the_table_has_rules_side_by_side_and_paired_tests():
    rows = [
        row(4, 1, "1111100000"),
        row(4, 8, "0000011111"),
        row(4, 8, "1111111110", rule="medoid:1/2"),
        row("1/2,1/4,1/4", 8, "1111111111", rule="medoid:1/2"),
    ]
    text = terminal_table({"env": "maze", "success_timing": "post", "rows": rows})
    lines = text.splitlines()
    assert lines[2].split("   ")[-1].strip() == "N = 8 medoid:1/2"
    assert "N = 8 argmax" in lines[2]
    assert [line.strip().split("   ")[0] for line in lines[3:5]] == ["M = 1/2,1/4,1/4", "M = 4"]
    assert lines[5:] == [
        "Paired, in points of success:",
        "M = 4, N = 8, medoid:1/2: +40 against argmax (p = 0.22), +40 against N = 1 (p = 0.12)",
    ]


def test_a_table_of_argmax_alone_names_no_rule():
    rows = [row(4, 1, "10"), row(4, 8, "11")]
    text = terminal_table({"env": "maze", "success_timing": "post", "rows": rows})
    assert "argmax" not in text
    assert "Paired" not in text


def outcomes(only_a, only_b, both=3, neither=2):
    a = [True] * (only_a + both) + [False] * (only_b + neither)
    b = [False] * only_a + [True] * (both + only_b) + [False] * neither
    return a, b


@given(st.integers(0, 30), st.integers(0, 30))
def test_the_sign_test_counts_every_way_that_is_as_uneven(x, y):
    n, far = x + y, abs(x - y)
    ways = sum(math.comb(n, i) for i in range(n + 1) if abs(n - 2 * i) >= far)
    assert sign_test(*outcomes(x, y)) == pytest.approx(ways / 2**n, rel=1e-12)
    assert sign_test(*outcomes(x, y)) == sign_test(*outcomes(y, x))


def test_the_sign_test_needs_pairs():
    with pytest.raises(BadInput, match="2 and 1 episodes cannot be paired"):
        sign_test([True, False], [True])
