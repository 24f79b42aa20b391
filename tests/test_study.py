"""The report of a sweep's folder: what it aggregates, what it leaves out, what it shows."""

import json
import re
import shutil

import numpy as np
import pytest
from policies import make_policy
from reported import Page, evaluation, make_run, row

from sorl_fast import cli
from sorl_fast.act import policy_file
from sorl_fast.errors import BadInput
from sorl_fast.learn.algorithms.fql import FqlConfig
from sorl_fast.report import study_page, write_study
from sorl_fast.report.study import (
    aggregates,
    beside,
    curve_of,
    is_study,
    lanes,
    load_study,
    per_task,
    plain_way,
    pooled,
    scores_of,
)
from sorl_fast.simulate.evaluate import wilson

METHODS = {"sorl": 1.0, "sorl-sc_every=2": 0.8, "fql": 0.5}


def env(task, family="cube-single-play"):
    return f"{family}-singletask-task{task}-v0"


def make_study(folder, tasks=(1, 2), seeds=(0, 1), int8=True):
    for i, (method, level) in enumerate(METHODS.items()):
        for task in tasks:
            for seed in seeds:
                run = folder / f"cube-single-play-task{task}" / method / f"seed{seed}"
                changes = {"sc_every": 2} if "sc_every" in method else {}
                grid = ((1, 2, 4), (1, 4)) if method != "fql" else ((1,), (1,))
                make_run(run, seed + 10 * task, 2000, env(task), grid, level=level, **changes)
                config = json.loads((run / "config.json").read_text())
                config["train"]["seed"] = seed
                if method == "fql":
                    config |= {"method": "fql", "agent": FqlConfig(alpha=300.0).to_dict()}
                (run / "config.json").write_text(json.dumps(config))
                policy = make_policy(salt=i)
                policy_file.save(run / "policy.safetensors", policy)
                found = json.loads((run / "evaluation.json").read_text())
                found |= {"policy": policy.digest, "precision": "fp32"}
                (run / "evaluation.json").write_text(json.dumps(found))
                if int8:
                    (run / "evaluation-int8.json").write_text(
                        json.dumps(found | {"precision": "int8"})
                    )
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of three methods, two tasks and two seeds; read only."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    said = []
    path = write_study(study, out, versus="fql", seconds=0.0, say=said.append)
    return path, said[0]


def successes(study, method, M, N=1):
    """task -> seeds' success in a cell, read from the files by hand."""
    found = {}
    for path in sorted(study.glob(f"*/{method}/*/evaluation.json")):
        rows = json.loads(path.read_text())["rows"]
        (value,) = (r["success"] for r in rows if (r["steps"], r["candidates"]) == (M, N))
        found.setdefault(path.parts[-4], []).append(value)
    return found


def test_a_score_is_the_plain_cell_s(study):
    loaded = load_study(study)
    assert loaded.methods == sorted(METHODS)
    assert loaded.families == ["cube-single-play"]
    assert loaded.missing == ()
    by_hand = successes(study, "sorl", 4)
    found = scores_of(loaded.of("sorl"))
    assert [*found.values()] == [*by_hand.values()]
    assert plain_way([row(8, 4, 1), row(2, 4, 1), row("1/2,1/4,1/4", 1, 1)])[:2] == (8, 4)
    assert plain_way([row(8, 4, 1, rule="medoid")]) is None


def test_aggregates_are_of_those_scores(study):
    lines = {line.method: line for line in aggregates(load_study(study), None, "fql")}
    assert lines.keys() == METHODS.keys()
    for method, M in (("sorl", 4), ("sorl-sc_every=2", 4), ("fql", 1)):
        x = np.array([*successes(study, method, M).values()])
        line = lines[method]
        assert (line.tasks, line.runs) == (2, 4)
        assert line.mean[0] == pytest.approx(x.mean())
        assert line.iqm[0] == pytest.approx(np.sort(x.ravel())[1:3].mean())
        assert line.mean[1][0] <= line.mean[0] <= line.mean[1][1]
    x, y = (np.array([*successes(study, m, M).values()]) for m, M in (("sorl", 4), ("fql", 1)))
    wins = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    assert lines["sorl"].improvement[0] == pytest.approx(wins.mean())
    assert lines["fql"].improvement is None


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory):
    """A study of two methods, one task, two seeds and 3 episodes each, which all fail."""
    folder = tmp_path_factory.mktemp("agreeing")
    for method in ("a", "b"):
        for seed in (0, 1):
            run = folder / "cube-single-play-task1" / method / f"seed{seed}"
            make_run(run, seed, 2000, env(1), ((1, 2), (1,)), episodes=3, level=0.0)
    return folder


def test_seeds_that_agree_by_chance_have_an_interval_of_their_episodes(agreeing):
    loaded = load_study(agreeing)
    low, high = wilson(0, 6)
    for line in aggregates(loaded, None, "a"):
        assert line.mean == line.iqm == (0.0, (low, high))
    assert line.improvement == (0.5, wilson(1, 2))  # two runs of each: two pairs, a tie a half
    members = loaded.of("a")
    cell = pooled(members, "f", [m.run.evaluation for m in members]).cells[0]
    assert (cell.success, cell.low, cell.high) == (0.0, low, high)
    (line, _) = beside(loaded)
    assert line.ours == f"0.0% [0.0, {100 * high:.1f}]"
    for draw, n in ((study_page.draw_curves, 6), (study_page.draw_profiles, 2)):
        (ax,) = draw(loaded).axes
        edges = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert (edges.min(), edges.max()) == pytest.approx((0, 100 * wilson(0, n)[1]))


@pytest.mark.slow
def test_the_page_warns_of_few_episodes_and_says_its_one_rule(agreeing, tmp_path):
    said = []
    text = Page(write_study(agreeing, tmp_path, seconds=0.0, say=said.append)).text
    assert "Cells have fewer than 50 episodes" in text
    assert "No interval on this page is narrower than Wilson's over all episodes pooled" in text
    assert "0.0 [0.0, 39.0]" in text
    assert "0.0 [0.0, 39.0]" in said[0]
    assert "[0.0, 0.0]" not in text + said[0]


@pytest.mark.usefixtures("few_pictures")
def test_tasks_of_different_numbers_of_episodes_say_theirs(agreeing, tmp_path):
    make_run(
        tmp_path / "s" / "cube-single-play-task1" / "c" / "seed0",
        0,
        2000,
        env(1),
        episodes=5,
        level=0.0,
    )
    shutil.copytree(agreeing, tmp_path / "s", dirs_exist_ok=True)
    text = Page(write_study(tmp_path / "s", seconds=0.0)).text
    assert "0% [0, 39] n=6, 2 seeds" in text
    assert "0% [0, 43] n=5, 1 seed" in text
    assert "n=6" not in Page(write_study(agreeing, tmp_path / "out", seconds=0.0)).text


def test_tasks_seeds_and_curves(study):
    loaded = load_study(study)
    table = dict(per_task(loaded))
    assert [*table] == [env(1), env(2)]
    assert [cell.seeds for cell in table[env(1)]] == [2, 2, 2]
    curve = curve_of(loaded.of("sorl"))
    assert len(curve) > 3
    assert all(
        {task: len(s) for task, s in c.items()} == {env(1): 2, env(2): 2} for c in curve.values()
    )


def test_a_pooled_cell_is_the_mean_over_tasks_and_seeds(study):
    loaded = load_study(study)
    members = loaded.of("sorl")
    setting = pooled(members, "cube-single-play", [m.run.evaluation for m in members])
    cell = setting.cell(2, 4)
    assert cell.success == pytest.approx(np.mean([*successes(study, "sorl", 2, 4).values()]))
    assert cell.low <= cell.success <= cell.high
    assert (cell.seeds, cell.episodes) == (2, 4 * 50)
    assert setting.env == "cube-single-play, 2 tasks"
    assert setting.seeds == 2


def test_the_page(page):
    path, said = page
    shown = Page(path)
    assert all(link.startswith("data:image/png;base64,") for link in shown.links)
    source = re.sub(r"base64,[A-Za-z0-9+/=]+", "", path.read_text())
    for word in ("http:", "https:", "url(", "@import", "<script"):
        assert word not in source
    for words in (
        "12 runs of 3 methods in cube-single-play",
        "stratified bootstrap",
        "probability of improvement over fql",
        env(2),
        "2 seeds",
        "97 ± 1%",
        "2,000 updates, not 1,000,000; 2 seeds, not 8; task 1, 2, not all 5; data of 250,000 transitions",
        "Speeds measured on",
        "precision",
        "sorl-fast train --env",
    ):
        assert words in shown.text, words
    assert "has no interval" not in shown.text
    assert "fewer than 50 episodes" not in shown.text
    pictures = sorted(p.name for p in (path.parent / "figures").iterdir())
    assert pictures == [
        f"study-{name}.png"
        for name in (
            *("aggregates", "curves", "profiles", "scaling-cube-single-play"),
            *("speed-cube-single-play-fp32", "speed-cube-single-play-int8"),
        )
    ]
    assert len(shown.links) == len(pictures)
    assert "sorl-sc_every=2" in said
    assert "better than fql" in said


def test_the_front_is_over_precisions_and_each_lane_is_timed_once(page):
    path, _ = page
    speeds = json.loads((path.parent / "speeds.json").read_text())["speeds"]
    keys = {(s["policy"], s["precision"], s["steps"], s["candidates"]) for s in speeds}
    # of each method's policies one, in both precisions: 6 cells of each SORL, 1 of FQL
    assert len(speeds) == len(keys) == 2 * (6 + 6 + 1)


def test_backends_are_lanes(study):
    loaded = load_study(study)
    found = lanes(loaded, ("native", "numpy"))
    assert {(lane.precision, lane.backend) for lane in found} == {
        (precision, backend) for precision in ("fp32", "int8") for backend in ("native", "numpy")
    }
    assert all([s.label for s in settings] == sorted(METHODS) for settings in found.values())


@pytest.fixture
def few_pictures(monkeypatch):
    """Pictures take most of a page's time."""
    for name in ("draw_profiles", "draw_curves", "draw_aggregates", "draw_scaling"):
        monkeypatch.setattr(f"sorl_fast.report.study_page.{name}", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("few_pictures")
def test_a_lane_that_some_policy_cannot_act_in_is_left_out_and_said_so(study, tmp_path):
    path = write_study(study, tmp_path, backends=["numpy"], seconds=0.0)
    text = Page(path).text
    assert "cube-single-play-int8-numpy: no speeds, since not every method acts so here" in text
    assert (tmp_path / "figures" / "study-speed-cube-single-play-fp32-numpy.png").is_file()
    assert not (tmp_path / "figures" / "study-speed-cube-single-play-int8-numpy.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("few_pictures")
def test_what_is_not_there_is_said(tmp_path):
    study = make_study(tmp_path / "s", tasks=(1,), seeds=(0,), int8=False)
    run = study / "cube-single-play-task1" / "sorl" / "seed0"
    make_run(run.with_name("seed1"), 1, 2000, env(1), periodic=False, final=False)
    make_run(run.with_name("seed2"), 2, 2000, env(1), final=False)
    make_run(run.with_name("seed3"), 3, 2000, env(1), log=False, periodic=False, final=False)
    text = Page(write_study(study, seconds=0.0)).text
    assert "cube-single-play-task1/sorl/seed1 has not been evaluated" in text
    assert "sorl/seed2: its evaluation during the training, at 1,998 updates, stands in" in text
    assert "sorl/seed3 has logged nothing yet" in text
    assert "there is no interval" in text
    lines = {line.method: line for line in beside(load_study(study))}
    assert "1 seed, not 8" in lines["fql"].differs
    assert lines["fql"].published == "96%"


def test_refusals(study, tmp_path, capsys):
    with pytest.raises(BadInput, match="versus is 'bc', but must be one of fql, sorl"):
        write_study(study, tmp_path, versus="bc")
    run = next(study.glob("*/*/*"))
    assert cli.main(["report", str(study), str(run)]) == 2
    assert "was given with others. Give it alone" in capsys.readouterr().err
    assert cli.main(["report", str(run), "--versus", "fql"]) == 2
    assert "--versus and --backends are for a sweep's folder" in capsys.readouterr().err
    assert not is_study(run)
    assert not is_study(tmp_path)
    empty = tmp_path / "e" / "m" / "seed0"
    make_run(empty, log=False, periodic=False, final=False)
    with pytest.raises(BadInput, match="has no run to report on: e/m/seed0 has logged nothing"):
        load_study(tmp_path)
    make_run(tmp_path / "e" / "m" / "x" / "seed1")
    (study_copy := tmp_path / "d" / "e" / "m" / "seed0").mkdir(parents=True)
    (study_copy / "config.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be read"):
        load_study(tmp_path / "d")


def test_an_evaluation_that_was_moved_aside_is_no_lane(tmp_path):
    study = make_study(tmp_path / "s", tasks=(1,), seeds=(0,), int8=False)
    run = next(study.glob("*/sorl/*"))
    kept = evaluation([row(1, 1, 3)], env=env(1), precision="fp32")
    (run / "evaluation-kept-1.json").write_text(json.dumps(kept))
    other = evaluation([row(1, 1, 3)], env="e", precision="int8")
    (run / "evaluation-int8-e.json").write_text(json.dumps(other))
    assert {lane.precision for lane in lanes(load_study(study), ("",))} == {"fp32"}
