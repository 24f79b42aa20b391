"""Runs of several methods: one picture, one front, one recommendation."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import own_arrays
from reported import evaluation, row

from sorl_fast import cli
from sorl_fast.act import policy_file, timing
from sorl_fast.errors import BadInput
from sorl_fast.recommend import choose, recommend, text
from sorl_fast.report import page, speeds, write_report
from sorl_fast.report.pareto import draw_pareto, front_lines, front_of, front_text, points_of
from sorl_fast.report.runs import by_environment, group_settings, load_run, series_names

# method -> its flags, and its cells: (M, N) -> successes of 50
METHODS = {
    "sorl": (
        ("--q-coef", "1", "--m-disc", "4", "--m-btt", "4"),
        {(1, 1): 5, (2, 1): 30, (4, 4): 45},
    ),
    "bc": ((), {(1, 1): 10}),
    "ifql": ((), {(10, 1): 20, (10, 4): 40}),
}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer calls and the one picture: what is tested is what becomes of them."""
    monkeypatch.setattr(timing, "LEAST_CALLS", 5)
    monkeypatch.setattr(timing, "WARM_UP", 1)
    monkeypatch.setattr(page, "PICTURES", [p for p in page.PICTURES if p.name == "pareto"])


@pytest.fixture
def no_picture(few, monkeypatch):
    monkeypatch.setattr(page, "PICTURES", [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """A tiny run of each method with its evaluation, and a second seed of sorl's; read only."""
    folder = tmp_path_factory.mktemp("methods")
    np.savez(folder / "mine.npz", **own_arrays())
    runs = {}
    for name in (*METHODS, "sorl-1"):
        method, _, seed = name.partition("-")
        flags, cells = METHODS[method]
        argv = ["train", "--method", method, "--env", "mine", "--data", str(folder / "mine.npz")]
        argv += ["--out", str(folder / name), "--steps", "2", "--seed", seed or "0", "--val-every"]
        argv += [
            "0",
            "--batch-size",
            "8",
            "--log-every",
            "1",
            "--hidden",
            "8",
            "--depth",
            "2",
            "--threads",
            "1",
        ]
        assert cli.main([*argv, *flags]) == 0
        policy = policy_file.load(folder / name / "policy.safetensors")
        rows = [row(M, N, n + bool(seed)) for (M, N), n in cells.items()]
        evaluate(folder / name, rows, policy=policy.digest)
        runs[name] = folder / name
    return runs


def evaluate(run: Path, rows: list[dict], **more) -> None:
    values = evaluation(rows, **({"env": "mine"} | more))
    (run / "evaluation.json").write_text(json.dumps(values))


def settings_of(runs) -> list:
    return group_settings([load_run(run) for run in runs])


def with_rates(settings, rate):
    """Give each cell the speed that `rate(method, cell)` says."""
    return [
        speeds.dataclasses.replace(
            s,
            cells=tuple(c._replace(actions_per_second=rate(s.method, c)) for c in s.cells),
            timed_by="numpy" if s.method != "sorl" else "native",
        )
        for s in settings
    ]


RATES = {"sorl": 9000.0, "bc": 9000.0, "ifql": 2000.0}


@pytest.fixture
def settings(trained):
    return with_rates(
        settings_of(trained.values()),
        lambda method, cell: RATES[method] / (cell.steps * cell.candidates),
    )


def test_the_points_are_every_methods_cells_and_seeds_are_one_point(settings):
    points = points_of(settings)
    assert [(p.name, *p.cell[:3]) for p in points] == [
        *(("SORL", 1, 1, 2), ("SORL", 2, 1, 2), ("SORL", 4, 4, 2)),
        ("BC", 1, 1, 1),
        *(("IFQL", 10, 1, 1), ("IFQL", 10, 4, 1)),
    ]
    assert points[0].place == (9000.0, pytest.approx(100 * (5 + 6) / 2 / 50))
    # BC is as fast as SORL's first cell, and better; IFQL is slower and worse than SORL's last
    assert [(p.name, *p.cell[:2]) for p in front_of(points)] == [
        *(("BC", 1, 1), ("SORL", 2, 1), ("SORL", 4, 4)),
    ]


def test_a_cell_of_unknown_speed_or_success_is_no_point(settings):
    for bad in (math.nan, math.inf, 0.0):
        some = with_rates(settings, lambda method, cell, bad=bad: bad if method == "bc" else 5.0)
        assert {p.name for p in points_of(some)} == {"SORL", "IFQL"}
    assert draw_pareto(some) is not None
    nothing = with_rates(settings, lambda method, cell: math.nan)
    assert draw_pareto(nothing) is None
    assert draw_pareto([]) is None


def test_the_table_names_method_cell_speed_success_seeds_and_runs(settings, trained):
    head, *lines = front_lines(settings)
    assert head == ["method", "M", "N", "actions/s", "success", "95% interval", "seeds", "run"]
    both = f"{trained['sorl']}, {trained['sorl-1']}"
    interval = "11.2-33.0% n=50"  # SORL's two seeds have 100
    assert lines[0] == ["BC", "1", "1", "9,000", "20.0%", interval, "1", str(trained["bc"])]
    assert [line[:5] + line[6:] for line in lines[1:]] == [
        ["SORL", "2", "1", "4,500", "61.0%", "2", both],
        ["SORL", "4", "4", "562", "91.0%", "2", both],
    ]
    shown = front_text("mine", settings, "Speeds of a clock.").splitlines()
    assert shown[0].startswith("mine: the Pareto front")
    assert shown[1] == "Speeds of a clock."
    assert len(shown) == 2 + 1 + 3


def test_the_picture_shows_what_the_points_are(settings):
    figure = draw_pareto(settings)
    (ax,) = figure.axes
    drawn = {
        (round(x, 3), round(y, 3))
        for line in ax.lines
        if line.get_marker() not in ("None", "", None)
        for x, y in zip(*line.get_data(), strict=True)
    }
    assert drawn == {tuple(round(v, 3) for v in p.place) for p in points_of(settings)}
    filled = [
        line for line in ax.lines
        if line.get_marker() not in ("None", "") and line.get_markerfacecolor() != "white"
    ]  # fmt: skip
    on_front = {x for line in filled for x in line.get_xdata()}
    assert on_front == {p.place[0] for p in front_of(points_of(settings))}
    assert ax.get_xscale() == "log"
    legend = [words.get_text() for words in figure.legends[0].get_texts()]
    assert [re.sub(r"\s+", " ", words) for words in legend] == [
        *("SORL, 2 seeds, native", "BC, 1 seed, numpy", "IFQL, 1 seed, numpy"),
        "Pareto front (filled)",
    ]
    assert {words.get_text() for words in ax.texts} == {"1/1", "2/1", "4/4"}
    intervals = [c for c in ax.collections if len(c.get_segments()) == 1]
    assert len(intervals) == 6
    low, high = intervals[3].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx(points_of(settings)[3].cell.percent[1:])


def test_one_method_alone_has_all_its_cells_named(settings):
    (ax,) = draw_pareto(settings[2:]).axes
    assert {words.get_text() for words in ax.texts} == {"10/1", "10/4"}
    assert ax.get_xlabel().endswith("numpy")


def test_settings_of_one_method_are_told_apart_by_what_differs(trained, tmp_path):
    shutil.copytree(trained["bc"], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["agent"]["lr"] = 0.5
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    settings = settings_of([trained["bc"], tmp_path / "other", trained["sorl"]])
    names = series_names(settings)
    assert names[2] == "SORL"
    assert names[1] == "BC, lr 0.5"
    assert names[0].startswith("BC, lr ")


def report(runs, out, **more):
    said = []
    path = write_report([*runs], out, seconds=0.0, say=said.append, **more)
    return path, said


@pytest.mark.usefixtures("no_picture")
def test_a_report_times_every_cell_once(trained, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        speeds, "act_time", lambda sampler, M, N, seconds, rule: calls.append((M, N)) or time(M, N)
    )

    def time(M, N):
        return timing.ActTime(10.0 * M * N, 99.0 * M * N)

    seen = []
    path, said = report(trained.values(), tmp_path, progress=lambda *x: seen.append(x))
    assert len(calls) == 3 + 3 + 1 + 2  # seeds are timed each
    assert seen[-1] == (9, 9)
    assert len(said) == 1
    assert "Speeds measured on" in said[0]
    assert re.search(r"^SORL +1 +1 +100,000 ", said[0], re.MULTILINE) is None  # BC beats it
    assert re.search(r"^BC +1 +1 +100,000 +20.0%", said[0], re.MULTILINE)
    assert "The Pareto front" in path.read_text()
    assert (
        "no other cell of any method given is both faster and more successful" in path.read_text()
    )
    assert "Speeds measured on" in path.read_text()
    # what is stored is used, and what is new is timed
    del calls[:]
    _, again = report(trained.values(), tmp_path)
    assert (calls, again) == ([], said)
    store = json.loads((tmp_path / "speeds.json").read_text())
    assert {"cpu", "cores", "sorl_fast"} == store["machine"].keys()
    store["speeds"] = [s for s in store["speeds"] if s["steps"] != 10]
    (tmp_path / "speeds.json").write_text(json.dumps(store))
    report(trained.values(), tmp_path)
    assert calls == [(10, 1), (10, 4)]
    del calls[:]
    report(trained.values(), tmp_path, again=True)
    assert len(calls) == 9
    # another machine's: used whole, never mixed
    store = json.loads((tmp_path / "speeds.json").read_text())
    store["machine"]["cpu"] = "a robot's"
    (tmp_path / "speeds.json").write_text(json.dumps(store))
    del calls[:]
    _, said = report(trained.values(), tmp_path)
    assert calls == []
    assert "Speeds measured on a robot's" in said[0]
    store["speeds"].pop()
    (tmp_path / "speeds.json").write_text(json.dumps(store))
    _, said = report(trained.values(), tmp_path)
    assert len(calls) == 9
    assert "a robot's" not in said[0]


RULED = [  # of SORL, whose critic a rule may ask
    *(row(1, 1, 5), row(4, 4, 30), row(4, 4, 45, rule="medoid:1/2")),
    row("1/2,1/4,1/4", 4, 40, rule="soft:1"),
]


@pytest.mark.usefixtures("no_picture")
def test_rules_and_schedules_are_timed_and_stand_on_the_front(trained, tmp_path, monkeypatch):
    run = tmp_path / "sorl"
    shutil.copytree(trained["sorl"], run)
    evaluate(run, RULED[:2])
    report([run], tmp_path)  # what an older version stores: no rule is named
    store = json.loads((tmp_path / "speeds.json").read_text())
    assert all("rule" not in stored for stored in store["speeds"])
    evaluate(run, RULED)
    acted, calls = timing.act_time, []

    def time(sampler, M, N, seconds, rule):
        calls.append((M, N, rule))
        acted(sampler, M, N, seconds, rule=rule)  # the policy acts so
        return timing.ActTime(1e6 / rates[M, rule], 1e6)

    rates = {("1/2,1/4,1/4", "soft:1"): 9.0, (4, "medoid:1/2"): 5.0}
    monkeypatch.setattr(speeds, "act_time", time)
    _, said = report([run], tmp_path)
    assert calls == [("1/2,1/4,1/4", 4, "soft:1"), (4, 4, "medoid:1/2")] or calls == [
        (4, 4, "medoid:1/2"), ("1/2,1/4,1/4", 4, "soft:1"),
    ]  # fmt: skip
    store = json.loads((tmp_path / "speeds.json").read_text())
    assert [(s["steps"], s.get("rule")) for s in store["speeds"]][:2] == [(1, None), (4, None)]
    assert {s.get("rule") for s in store["speeds"][2:]} == {"medoid:1/2", "soft:1"}
    del calls[:]
    assert report([run], tmp_path)[1] == said
    assert calls == []
    head, *lines = said[0].splitlines()[2:]
    assert head.split()[:5] == ["method", "M", "N", "rule", "actions/s"]
    assert [line.split()[1:5] for line in lines[-2:]] == [
        ["1/2,1/4,1/4", "4", "soft:1", "9.0"],
        ["4", "4", "medoid:1/2", "5.0"],
    ]


def test_the_picture_names_rules_and_schedules(trained, tmp_path):
    run, other = tmp_path / "sorl", tmp_path / "other"
    shutil.copytree(trained["sorl"], run)
    shutil.copytree(trained["sorl-1"], other)
    evaluate(run, RULED)
    evaluate(other, RULED[:2])
    rates = {(1, 1): 90.0, (4, 4): 20.0, ("1/2,1/4,1/4", 4): 15.0}
    settings = with_rates(
        settings_of([run, other]),
        lambda _, cell: rates[cell.way[:2]] - 10 * ("medoid" in cell.rule),
    )
    (ax,) = draw_pareto(settings).axes
    assert {words.get_text() for words in ax.texts} == {
        *("1/1", "4/4", "4/4 medoid:1/2", "1/2,1/4,1/4/4 soft:1")
    }
    assert "labels M/N, steps/candidates rule" in " ".join(ax.get_title(loc="left").split())
    caption = next(p.caption for p in page.PICTURES)(settings)
    assert "Labels are M/N rule, steps, candidates and another rule than argmax" in caption
    both, one = f"{run}, {other}", str(run)
    assert [(line[1:4], line[-1]) for line in front_lines(settings)[1:]] == [
        (["1", "1", "argmax"], both),
        (["4", "4", "argmax"], both),
        (["1/2,1/4,1/4", "4", "soft:1"], one),  # the run that has this rule, not only these steps
        (["4", "4", "medoid:1/2"], one),
    ]


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": {}, "speeds": [{"p50_us": 0}]}'])
def test_a_damaged_store_is_measured_anew(trained, tmp_path, text):
    (tmp_path / "speeds.json").write_text(text)
    report([trained["bc"]], tmp_path)
    assert len(json.loads((tmp_path / "speeds.json").read_text())["speeds"]) == 1


@pytest.mark.usefixtures("no_picture")
def test_where_a_run_cannot_be_timed_no_run_is(trained, tmp_path):
    shutil.copytree(trained["bc"], tmp_path / "bc")
    (tmp_path / "bc" / "policy.safetensors").unlink()
    path, said = report([trained["sorl"], tmp_path / "bc"], tmp_path / "out")
    assert "Speeds as the evaluations met them" in said[0]
    assert "bc/policy.safetensors" in said[0]
    assert not (tmp_path / "out" / "speeds.json").exists()
    # the evaluation's own figures
    assert f"{row(1, 1, 10)['actions_per_second']:,.0f}" in said[0]
    assert path.exists()


@pytest.mark.slow
def test_environments_have_a_picture_each(trained, tmp_path):
    shutil.copytree(trained["bc"], tmp_path / "bc")
    config = json.loads((tmp_path / "bc" / "config.json").read_text())
    config["train"]["env"] = "other/place"
    (tmp_path / "bc" / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "pareto.png").write_bytes(b"of an earlier report")
    runs = [trained["sorl"], trained["ifql"], tmp_path / "bc"]
    assert {env: len(s) for env, s in by_environment(settings_of(runs)).items()} == {
        "mine": 2,
        "other/place": 1,
    }
    path, said = report(runs, out)
    found = sorted(p.name for p in (out / "figures").glob("pareto*"))
    assert found == ["pareto-mine.png", "pareto-other_place.png"]
    assert [words.partition(":")[0] for words in said] == ["mine", "other/place"]
    assert "BC" not in said[0].split("\n", 2)[2]
    assert "Success against speed: other/place" in path.read_text()


def test_a_run_without_an_evaluation_is_named_and_the_others_are_shown(trained, tmp_path):
    shutil.copytree(trained["bc"], tmp_path / "bc")
    (tmp_path / "bc" / "evaluation.json").unlink()
    path, said = report([trained["sorl"], tmp_path / "bc"], tmp_path / "out")
    assert "bc has not been evaluated" in path.read_text()
    assert "SORL" in said[0]
    (tmp_path / "out" / "report.html").unlink()
    path, said = report([tmp_path / "bc"], tmp_path / "out")
    assert said == []
    assert not (tmp_path / "out" / "figures" / "pareto.png").exists()


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_named(trained, tmp_path, seconds):
    with pytest.raises(BadInput, match=r"seconds is .*Set --seconds"):
        write_report([trained["bc"]], tmp_path, seconds=seconds)


@pytest.mark.slow
def test_the_commands_take_runs_of_several_methods(trained, tmp_path, capsys):
    runs = [str(run) for run in trained.values()]
    argv = ["report", *runs, "--out", str(tmp_path), "--seconds", "0", "--no-progress"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert said.startswith("mine: the Pareto front of speed and success over all methods given")
    assert said.splitlines()[-1] == str(tmp_path / "report.html")
    assert cli.main([*argv, "--again"]) == 0
    capsys.readouterr()
    argv = ["recommend", runs[1], "--budget-us", "0.001", "--no-progress"]
    assert cli.main(argv) == 1
    assert "Nothing fits 0.001 us: the fastest is M = 1, N = 1" in capsys.readouterr().out


QUICK = {"precisions": ["fp32"], "threads": [1], "seconds": 0.0}


def test_the_best_run_of_several_is_recommended(trained):
    pytest.importorskip("sorl_fast._native")
    runs = [str(run) for run in trained.values()]
    seen = []
    result = recommend(runs, 1e9, progress=lambda *x: seen.append(x), **QUICK)
    assert seen[-1] == (9, 9)
    assert [(o.method, o.run) for o in result.options[2:5]] == [
        ("sorl", runs[0]), ("bc", runs[1]), ("ifql", runs[2]),
    ]  # fmt: skip
    assert (result.choice.method, result.choice.run) == ("sorl", runs[3])  # the better seed
    assert result.choice.rate[:2] == (4, 4)
    assert {o.backend for o in result.options} == {"native"}
    said = text(result)
    assert f"the best is sorl of {runs[3]}: M = 4, N = 4, fp32, 1 thread: success 92.0%" in said
    head, front = said.split("The Pareto front: ")
    assert "Success in mine; times of this machine (" in head
    for option in result.options:
        assert (f"{option.run}" in front) or option not in result.front
    for budget in (*(o.p99_us for o in result.options), 1e9):
        assert choose(result.options, budget) in result.front


def test_left_out_precisions_name_their_methods(trained):
    runs = [trained["bc"], trained["ifql"]]
    options = {"precisions": ["fp32", "bf16"], "threads": [1], "seconds": 0.0, "backend": "numpy"}
    result = recommend(runs, 1e9, **options)
    assert list(result.left_out) == ["bf16 of bc, ifql"]


def test_runs_that_cannot_be_compared_are_refused(trained, tmp_path):
    bc = tmp_path / "bc"
    shutil.copytree(trained["bc"], bc)
    runs = [trained["ifql"], bc]
    evaluate(bc, [row(1, 1, 10)], env="other")
    with pytest.raises(
        BadInput, match=r"ifql was evaluated in mine, but .*bc in other: .*Ask once"
    ):
        recommend(runs, 1e9, **QUICK)
    evaluate(bc, [row(1, 1, 10)], success_timing="pre")
    with pytest.raises(BadInput, match=r"success_timing=post, but .*bc with pre: evaluate"):
        recommend(runs, 1e9, **QUICK)
    (bc / "evaluation.json").unlink()
    with pytest.raises(BadInput, match=r"no evaluation .*bc.evaluation\.json .*sorl-fast eval"):
        recommend(runs, 1e9, **QUICK)
    with pytest.raises(BadInput, match="ifql is given twice"):
        recommend([trained["ifql"]] * 2, 1e9, **QUICK)
    with pytest.raises(BadInput, match="there are 2 runs, each with its own"):
        recommend(runs, 1e9, evaluation="evaluation.json", **QUICK)
    with pytest.raises(BadInput, match="no run to recommend"):
        recommend([], 1e9, **QUICK)
