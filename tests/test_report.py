"""The report: what it reads, what it refuses, what it shows."""

import json
import math
import re
from pathlib import Path

import pytest
from policies import make_policy
from reported import CUBE, RULED, UNEVEN, Page, evaluation, make_run, row, ruled_settings

from sorl_fast.act import policy_file
from sorl_fast.errors import BadInput
from sorl_fast.learn.algorithms.fql import FqlConfig
from sorl_fast.report import page, terminal_table, write_report
from sorl_fast.report.runs import (
    cells_of,
    group_settings,
    load_run,
)
from sorl_fast.simulate.evaluate import wilson

PICTURES = ["learning.png", "losses.png", "pareto.png", "scaling.png"]


@pytest.fixture(scope="module")
def one_run(tmp_path_factory) -> tuple[Path, Path]:
    """A run and its report; read only."""
    run = make_run(tmp_path_factory.mktemp("report") / "run")
    return run, write_report([run])


def test_one_run_gives_a_page_and_its_pictures(one_run):
    run, page = one_run
    assert page == run / "report.html"
    assert sorted(p.name for p in (run / "figures").iterdir()) == PICTURES
    for picture in (run / "figures").iterdir():
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 300_000


def test_the_page_fetches_nothing(one_run):
    page = Page(one_run[1])
    assert len(page.links) == len(PICTURES)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    source = re.sub(r"base64,[A-Za-z0-9+/=]+", "", one_run[1].read_text())
    for word in ("http:", "https:", "url(", "@import", "<script"):
        assert word not in source


def test_the_page_says_what_a_reader_must_know(one_run):
    text = Page(one_run[1]).text
    for words in (
        CUBE,
        "success_timing=post",
        "Wilson's 95% intervals",
        "1 training seed, 50 episodes a cell",
        "other data, one task",
        "averages 5 tasks and 8 seeds",
        "97 ± 1%",
        "96%",
        "Not yet measured on a GPU",
        "250,000 transitions, 250 episodes",
        f"sorl-fast train --env {CUBE} --data data --steps 60000 --seed 0 --out run",
        f"sorl-fast train --env {CUBE} --out run --resume",
        "sorl-fast eval run --episodes 50",
        "torch 2.9.0",
        "mujoco 3.3.0",
        "q_coef",
    ):
        assert words in text, words
    assert "estimate" not in text
    assert text.count("--resume") == 1


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take most of a report's time; some tests look at its words alone."""
    monkeypatch.setattr(page, "PICTURES", ())


def test_an_evaluation_older_than_the_run_is_said_so(tmp_path, no_pictures):
    run = make_run(tmp_path / "run", steps=2000)
    result = json.loads((run / "evaluation.json").read_text())
    for step, said in ((1500, True), (2000, False)):
        (run / "evaluation.json").write_text(json.dumps({"step": step} | result))
        text = Page(write_report([run])).text
        assert ("was evaluated after 1,500 updates and trained on since" in text) == said
        assert "(numpy fp32, seed" in text


@pytest.mark.slow
def test_an_evaluation_of_an_earlier_policy_is_said_so(tmp_path, no_pictures):
    """The policy's digest says it better than counts of updates do, where both are there."""
    run = make_run(tmp_path / "run", steps=2000)
    policy_file.save(run / "policy.safetensors", make_policy())
    mine, other = (policy_file.digest(make_policy(salt=salt)) for salt in (0, 1))
    result = json.loads((run / "evaluation.json").read_text())
    for policy, step, words in (
        (mine, 1500, None),
        (other, 2000, "was evaluated after 2,000 updates and trained on since"),
        (other, None, "was evaluated and trained on since"),
        (None, 1500, "was evaluated after 1,500 updates and trained on since"),
    ):
        values = {"step": step, "policy": policy} | result
        (run / "evaluation.json").write_text(json.dumps(values))
        text = Page(write_report([run])).text
        assert ("trained on since" in text) == (words is not None)
        assert words is None or words in text
    (run / "policy.safetensors").write_bytes(b"damaged")  # a report is of what was recorded
    assert "after 1,500 updates" in Page(write_report([run])).text


@pytest.mark.usefixtures("no_pictures")
def test_rows_of_different_counts_and_all_commands_are_shown(tmp_path):
    run = make_run(tmp_path / "run", steps=2000)
    rows = [row(1, 1, 5, 50), row(4, 8, 2, 3)]
    result = evaluation(rows, command="sorl-fast eval b", commands=["sorl-fast eval a", "also b"])
    (run / "evaluation.json").write_text(json.dumps(result))
    text = Page(write_report([run])).text
    for words in (
        "3 to 50 episodes a cell",
        "sorl-fast eval a",
        "also b",
        "fewer than 50 episodes",
    ):
        assert words in text, words
    assert "3 to 50 episodes a cell" in terminal_table(result)


def test_a_cell_is_its_steps_candidates_and_rule():
    cells = cells_of([evaluation(RULED), evaluation([row(4, 8, 42, rule="medoid:1/2")])])
    assert [(*cell.way, cell.seeds) for cell in cells] == [
        (1, 1, "argmax", 1),
        (1, 8, "medoid:1/2", 1),
        (2, 8, "argmax", 1),
        (UNEVEN, 1, "argmax", 1),
        (UNEVEN, 8, "medoid:1/2", 1),
        (4, 1, "argmax", 1),
        (4, 8, "argmax", 1),
        (4, 8, "medoid:1/2", 2),
        (4, 8, "soft:1", 1),
    ]
    assert cells[7].success == pytest.approx((40 + 42) / 100)
    (setting,) = ruled_settings()
    assert setting.cell(4, 8).success == 35 / 50
    assert setting.cell(4, 8, "soft:1").success == 30 / 50
    assert setting.cell(1, 8) is None


@pytest.mark.usefixtures("no_pictures")
def test_the_page_shows_rules_and_schedules(tmp_path):
    run = make_run(tmp_path / "run", steps=2000, periodic=False)
    (run / "evaluation.json").write_text(json.dumps(evaluation(RULED)))
    text = Page(write_report([run])).text
    table = text[text.index("Success in %") : text.index("The Pareto front")]
    assert "N = 1 N = 8 argmax N = 8 medoid:1/2 N = 8 soft:1" in table
    assert f"M = {UNEVEN} 40% [28, 54] - 90% [79, 96] -" in table
    assert "M = 4 20% [11, 33] 70% [56, 81] 80% [67, 89] 60% [46, 72]" in table
    assert "The paper's is argmax, the best of N by the critic's Q" in text
    assert "or the sizes of unequal ones" in text
    every = text[text.index("Every cell") :]
    assert "M N rule success" in every
    assert f"{UNEVEN} 8 medoid:1/2 90% [79, 96] 1 50" in every
    beside = text[text.index("Beside the paper") : text.index("Every cell")]
    assert "1 1 10% [" in beside
    assert "4 1 20% [" in beside
    assert UNEVEN not in beside
    assert "medoid" not in beside
    # and of argmax and equal steps alone, no rule is named
    (run / "evaluation.json").write_text(json.dumps(evaluation([row(1, 1, 5), row(4, 8, 35)])))
    text = Page(write_report([run])).text.partition(" Commands ")[0]
    for words in ("a rule takes", "argmax", "unequal", "medoid"):
        assert words not in text, words
    # a policy's own way alone has no place beside the paper
    (run / "evaluation.json").write_text(json.dumps(evaluation(RULED[:1])))
    assert "Beside the paper" not in Page(write_report([run])).text


@pytest.mark.slow
def test_the_same_runs_give_the_same_bytes(one_run, tmp_path):
    again = write_report([one_run[0]], tmp_path)
    assert again.read_bytes() == one_run[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "pictures", "words"),
    [
        (
            {"final": False},
            PICTURES,
            "the last periodic evaluation, after 3,000 updates, stands in",
        ),
        ({"log": False}, [p for p in PICTURES if p != "losses.png"], "has no log lines"),
        ({"periodic": False, "final": False}, ["losses.png"], "has not been evaluated"),
        (
            {"grid": ((4,), (1,)), "log": False, "periodic": False, "episodes": 10},
            ["pareto.png"],
            "fewer than 50 episodes",
        ),
        ({"grid": ((1, 4), (2,))}, PICTURES, "M = 4"),
        ({"level": 0.0}, PICTURES, "0% [0, 7]"),
        ({"env": "my-robot"}, PICTURES, "my-robot"),
        ({"env": "puzzle-3x3-play-singletask-v0"}, PICTURES, "puzzle-3x3"),
    ],
    ids=[
        "no final",
        "no log",
        "no evaluation",
        "one cell",
        "one N",
        "all fail",
        "robot",
        "unlisted",
    ],
)
def test_reports_of_less(tmp_path, settings, pictures, words):
    run = make_run(tmp_path / "run", **({"steps": 3000} | settings))
    stale = run / "figures" / "pareto.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier report")
    page = write_report([run])
    assert sorted(p.name for p in (run / "figures").iterdir()) == pictures
    assert words in Page(page).text
    if "env" in settings:
        assert "Beside the paper" not in Page(page).text


@pytest.mark.slow
def test_seeds_are_aggregated_and_settings_compared(tmp_path):
    runs = [
        make_run(tmp_path / f"{q}_{seed}", seed=seed, q_coef=q, steps=3000)
        for q in (10.0, 30.0)
        for seed in (0, 1)
    ]
    text = Page(write_report(runs, tmp_path / "out")).text
    assert sorted(p.name for p in (tmp_path / "out" / "figures").iterdir()) == PICTURES
    assert not (runs[0] / "report.html").exists()
    for words in (
        "4 runs, 2 settings",
        "q_coef 10.0",
        "q_coef 30.0",
        "2 training seeds, 100 episodes",
    ):
        assert words in text, words
    assert "95% t interval over seeds" in text


@pytest.mark.usefixtures("no_pictures")
def test_precisions_of_training_are_settings_of_their_own(tmp_path):
    fp32, bf16 = (make_run(tmp_path / p, steps=3000, precision=p) for p in ("fp32", "bf16"))
    older = json.loads((fp32 / "config.json").read_text())
    del older["train"]["precision"]  # not yet recorded: it was fp32
    (fp32 / "config.json").write_text(json.dumps(older))
    text = Page(write_report([fp32, bf16], tmp_path / "out")).text
    for words in ("2 runs, 2 settings", "precision fp32", "precision bf16"):
        assert words in text, words


@pytest.mark.usefixtures("no_pictures")
def test_settings_that_cannot_be_compared_are_said_so(tmp_path):
    cube = make_run(tmp_path / "cube", steps=3000)
    scene = make_run(tmp_path / "scene", steps=3000, env="scene-play-singletask-task1-v0")
    result = json.loads((scene / "evaluation.json").read_text())
    (scene / "evaluation.json").write_text(json.dumps(result | {"success_timing": "pre"}))
    text = Page(write_report([cube, scene])).text
    assert "in different environments" in text
    assert "at different times (post and pre)" in text


@pytest.mark.usefixtures("no_pictures")
def test_a_method_of_one_setting_is_its_name_and_runs_are_told_apart(tmp_path):
    runs = [
        make_run(tmp_path / "sorl" / "seed0", steps=300, log=False, periodic=False),
        make_run(tmp_path / "wide" / "seed0", steps=300, hidden=512, log=False, periodic=False),
        make_run(tmp_path / "fql" / "seed0", steps=200, log=False, periodic=False),
        make_run(tmp_path / "fql" / "seed1", 1, steps=200, log=False, periodic=False),
    ]
    for run in runs[2:]:
        config = json.loads((run / "config.json").read_text())
        config |= {"method": "fql", "agent": FqlConfig(alpha=300.0).to_dict()}
        (run / "config.json").write_text(json.dumps(config))
    settings = group_settings([load_run(run) for run in runs])
    assert [s.label for s in settings] == ["SORL, hidden 256", "SORL, hidden 512", "FQL"]
    one_each = group_settings([load_run(run) for run in runs[1:3]])
    assert [s.label for s in one_each] == ["SORL", "FQL"]
    (alone,) = group_settings([load_run(runs[0])])
    assert alone.label == CUBE
    text = Page(write_report(runs, tmp_path / "out")).text
    paper = text[text.index("Beside the paper") : text.index("Every cell")]
    assert "setting the paper's M N ours seeds episodes our data" in paper  # its own method's first
    assert "SORL, hidden 512 97 ± 1% 1 1 " in paper
    assert "FQL 96% 1 1 " in paper
    assert (
        "method cube-single-play " in paper
    )  # the paper's methods in lines: a page has no more room
    assert "SORL 97 ± 1% " in paper
    for name in ("sorl/seed0", "wide/seed0", "fql/seed0", "seed1"):
        words = f" {name} has no log lines: no losses are shown for it. A `--log-every` above the"
        assert words in text, name
    assert "There is no film of sorl/seed0, wide/seed0, fql/seed0, seed1." in text
    assert "alpha" in text[text.index(" Settings ") :]  # which keeps everything


def test_settings_of_several_environments_have_theirs_in_their_names(tmp_path):
    cube = make_run(tmp_path / "a", steps=300, periodic=False)
    scene = make_run(tmp_path / "b", steps=300, env="scene", periodic=False)
    config = json.loads((scene / "config.json").read_text())
    config |= {"method": "fql", "agent": FqlConfig(alpha=300.0).to_dict()}
    (scene / "config.json").write_text(json.dumps(config))
    settings = group_settings([load_run(run) for run in (cube, scene)])
    assert [s.label for s in settings] == [f"SORL, env {CUBE}", "FQL, env scene"]


def test_one_seed_twice_is_refused(tmp_path):
    runs = [make_run(tmp_path / name, steps=3000) for name in ("a", "b")]
    with pytest.raises(BadInput, match=r"a and .*b are the same setting with the same seed \(0\)"):
        write_report(runs)


@pytest.mark.usefixtures("no_pictures")
def test_a_runs_texts_are_escaped(tmp_path):
    run = make_run(tmp_path / "run", steps=3000)
    config = json.loads((run / "config.json").read_text())
    config["commands"] = ["sorl-fast train --out '<script>alert(1)</script>'"]
    (run / "config.json").write_text(json.dumps(config))
    page = write_report([run])
    assert "<script>" not in page.read_text()
    assert "<script>alert(1)</script>" in Page(page).text


@pytest.mark.usefixtures("no_pictures")
def test_missing_extras_are_tolerated(tmp_path):
    run = make_run(tmp_path / "run", steps=3000)
    config = json.loads((run / "config.json").read_text())
    for key in ("versions", "command", "commands", "data", "sorl_fast"):
        del config[key]
    (run / "config.json").write_text(json.dumps(config))
    assert "not recorded" in Page(write_report([run])).text


def test_a_half_written_last_line_is_ignored(tmp_path):
    run = make_run(tmp_path / "run", steps=3000, final=False)
    before = load_run(run)
    for name in ("log.jsonl", "eval.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 3500, "fm_lo')
    assert load_run(run) == before


def test_validation_lines_join_the_training_line_and_a_repeated_step_wins(tmp_path):
    run = make_run(tmp_path / "run", steps=3000)
    lines = [
        {"step": 500, "fm_loss": 1.0},
        {"step": 1000, "fm_loss": 2.0},
        {"step": 500, "fm_loss": 3.0, "seconds": 1.0},
        {"step": 500, "val_fm_loss": 4.0},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_run(run).log == [
        {"step": 500, "fm_loss": 3.0, "seconds": 1.0, "val_fm_loss": 4.0},
        {"step": 1000, "fm_loss": 2.0},
    ]


def test_a_command_is_listed_once(tmp_path):
    run = make_run(tmp_path / "run", steps=300)
    result = json.loads((run / "evaluation.json").read_text())
    commands = ["sorl-fast eval run --no-progress", "sorl-fast eval run"]
    (run / "evaluation.json").write_text(json.dumps(result | {"commands": commands}))
    assert page.commands_of(load_run(run))[2:] == ["sorl-fast eval run"]


def remove(name: str):
    return lambda run: (run / name).unlink()


def write(name: str, text: str):
    return lambda run: (run / name).write_text(text)


def one_row(**change):
    return write("evaluation.json", json.dumps(evaluation([row(4, 8, 5) | change])))


def empty_all(run: Path) -> None:
    for name in ("log.jsonl", "eval.jsonl"):
        (run / name).write_text("")
    (run / "evaluation.json").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), ["config.json", "sorl-fast train"]),
        (write("config.json", ""), ["config.json", "cannot be read", "sorl-fast train"]),
        (write("config.json", '{"agent": {}'), ["config.json", "cannot be read"]),
        (write("config.json", "[]"), ["config.json has no agent.q_coef"]),
        (write("config.json", '{"agent": {"q_coef": 1, "m_disc": 8}}'), ["no train.env"]),
        (write("log.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n'), ["line 2 of", "log.jsonl"]),
        (write("log.jsonl", '{"steps": 1}\n'), ["line 1 of", "log.jsonl", "step"]),
        (
            write("eval.jsonl", '{"step": 1, "rows": []}\n'),
            ["eval.jsonl", "rows", "sorl-fast eval"],
        ),
        (write("evaluation.json", ""), ["evaluation.json", "sorl-fast eval"]),
        (write("evaluation.json", '{"rows": [{"steps": 1}]}'), ["no number 'candidates'"]),
        (write("evaluation.json", '{"rows": [7]}'), ["evaluation.json", "has no 'steps'"]),
        (one_row(steps="x"), ["evaluation.json", "steps of a row is 'x'", "sorl-fast eval"]),
        (one_row(steps=4.0), ["evaluation.json", "steps of a row is 4.0", "1/2,1/4,1/4"]),
        (one_row(steps="4"), ["evaluation.json", "steps of a row is '4'", "must be M"]),
        (one_row(rule="best"), ["evaluation.json", "rule is 'best'", "medoid", "sorl-fast eval"]),
        (one_row(rule=3), ["evaluation.json", "rule is 3", "sorl-fast eval"]),
        (empty_all, ["nothing to report", "log.jsonl", "sorl-fast eval", "sorl-fast train"]),
    ],
    ids=[
        *("no config", "empty config", "half config", "list", "no train"),
        *("bad line", "no step", "no rows", "empty evaluation", "half row", "no row"),
        *("no schedule", "a float", "M as text", "no rule", "a number as rule", "nothing"),
    ],
)
def test_a_damaged_run_is_named_with_its_remedy(tmp_path, damage, words):
    run = make_run(tmp_path / "run", steps=3000)
    damage(run)
    with pytest.raises(BadInput) as err:
        write_report([run])
    assert all(word in str(err.value) for word in words), str(err.value)
    assert not (run / "report.html").exists()


def test_no_folder_and_no_run_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"nowhere is not a run's folder.*sorl-fast train"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(BadInput, match="at least one"):
        write_report([])


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    run = make_run(tmp_path / "run", steps=3000)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"cannot write .*file"):
        write_report([run], tmp_path / "file")


def test_seeds_have_the_wider_of_both_intervals():
    apart = cells_of([evaluation([row(4, 1, k)]) for k in (10, 25, 40)])[0]
    assert (apart.seeds, apart.episodes) == (3, 150)
    assert apart.success == pytest.approx(0.5)
    half = 4.303 * 0.3 / math.sqrt(3)  # t with 2 degrees of freedom, deviation 0.3
    assert (apart.low, apart.high) == pytest.approx((max(0, 0.5 - half), min(1, 0.5 + half)))
    agreeing = cells_of([evaluation([row(4, 1, 50)]) for _ in range(3)])[0]
    assert (agreeing.low, agreeing.high) == pytest.approx(wilson(150, 150))
    single = cells_of([evaluation([row(4, 1, 10)])])[0]
    assert (single.low, single.high) == wilson(10, 50)


def test_the_terminal_table():
    rows = [row(1, 1, 6, rate=7200.4), row(1, 8, 10, rate=9.64), row(4, 1, 50, rate=1800)]
    assert terminal_table(evaluation(rows)).splitlines() == [
        f"{CUBE}: success [95% interval] and actions per second of the policy alone",
        "50 episodes a cell, success_timing=post",
        "                         N = 1                N = 8",
        "M = 1      12% [6, 24] 7,200/s   20% [11, 33] 9.6/s",
        "M = 4   100% [93, 100] 1,800/s                    -",
    ]


def test_cells_of_different_numbers_of_episodes_say_theirs(tmp_path, no_pictures):
    rows = [
        row(4, 8, 2, episodes=5) | {"outcomes": "11000"},
        row(4, 8, 3, episodes=5, rule="medoid:1/2") | {"outcomes": "11100"},
        row(4, 1, 5, episodes=25) | {"outcomes": "1" * 5 + "0" * 20},
    ]
    lines = terminal_table(evaluation(rows)).splitlines()
    assert "40% [12, 77] n=5 " in lines[-3]
    assert "20% [9, 39] n=25 " in lines[-3]
    paired = "+20 against argmax (p = 1), -40 against N = 1 over the 5 common episodes (p = 0.5)"
    assert lines[-1] == f"M = 4, N = 8, medoid:1/2: {paired}"
    assert "n=" not in terminal_table(evaluation(rows[:2]))
    run = make_run(tmp_path / "run", steps=300, periodic=False)
    (run / "evaluation.json").write_text(json.dumps(evaluation(rows)))
    text = Page(write_report([run])).text
    assert "M = 4 20% [9, 39] n=25 40% [12, 77] n=5 60%" in text
    front = text[text.index("The Pareto front") : text.index("Every cell")]
    assert re.search(r"% n=5 ", front)
    (run / "evaluation.json").write_text(json.dumps(evaluation(rows[:2])))
    assert "n=5" not in Page(write_report([run])).text


def test_the_page_shows_a_diagnosis_or_its_command(tmp_path, no_pictures):
    runs = [make_run(tmp_path / name, seed, steps=3000) for seed, name in enumerate("ab")]
    page = write_report(runs).read_text()
    assert all(page.count(f"<code>sorl-fast diagnose {run}</code>") == 1 for run in runs)
    found = {"title": "Standstills", "says": ["9 of 20 <failed>."], "picture": "diagnose-x.png"}
    (runs[0] / "diagnose.json").write_text(json.dumps({"policy": "", "parts": [found]}))
    (runs[0] / "figures").mkdir(exist_ok=True)
    (runs[0] / "figures" / "diagnose-x.png").write_bytes(b"a picture")
    page = write_report(runs).read_text()
    assert f"sorl-fast diagnose {runs[0]}" not in page
    assert f"<code>sorl-fast diagnose {runs[1]}</code>" in page
    assert "<p>9 of 20 &lt;failed&gt;.</p>" in page
    assert 'alt="Standstills"' in page
    (runs[0] / "diagnose.json").write_text("{")
    before = (runs[0] / "report.html").read_bytes()
    with pytest.raises(BadInput, match=r"diagnose\.json cannot be read"):
        write_report(runs)
    assert (runs[0] / "report.html").read_bytes() == before
