"""The report: what it reads, what it refuses, what it shows."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from policies import make_policy
from reported import CUBE, evaluation, row

from sorl_fast.act import policy_file
from sorl_fast.config import TrainConfig
from sorl_fast.errors import BadInput
from sorl_fast.learn.algorithms.sorl import SorlConfig
from sorl_fast.report import figures, page, terminal_table, write_report
from sorl_fast.report.figures import draw_learning
from sorl_fast.report.runs import (
    Run,
    Setting,
    cells_of,
    learning_curves,
    load_run,
)
from sorl_fast.simulate.evaluate import wilson

PICTURES = ["learning.png", "losses.png", "pareto.png", "scaling.png"]


def skill(M: int, N: int, progress: float) -> float:
    """A plausible success: more with training, with steps and, less, with candidates."""
    return 0.9 * progress * (1 - 0.75 / M) * (1 - 0.35 / N) + 0.02


def make_run(
    folder: Path,
    seed: int = 0,
    steps: int = 60_000,
    env: str = CUBE,
    grid: tuple[tuple[int, ...], tuple[int, ...]] = ((1, 2, 4, 8), (1, 4, 8)),
    episodes: int = 50,
    log: bool = True,
    periodic: bool = True,
    final: bool = True,
    level: float = 1.0,
    precision: str = "fp32",
    **agent,
) -> Path:
    """Write a run folder with made-up but plausible figures."""
    rng = np.random.default_rng([seed, int(10 * level)])
    folder.mkdir(parents=True)
    config = {
        "sorl_fast": "0.1.0",
        "agent": SorlConfig(**({"q_coef": 10.0, "hidden": 256, "depth": 3} | agent)).to_dict(),
        "train": TrainConfig(
            env=env, data="data", out=str(folder), steps=steps, seed=seed, precision=precision
        ).to_dict(),
        "versions": {"python": "3.11.2", "torch": "2.9.0", "numpy": "2.2.0", "ogbench": "1.2.1"},
        "commands": [
            f"sorl-fast train --env {env} --data data --steps {steps} --seed {seed} --out run",
            f"sorl-fast train --env {env} --out run --resume",
        ],
        "command": f"sorl-fast train --env {env} --out run --resume",
        "data": {"path": "data", "sha256": "ab" * 32, "transitions": 250_000, "episodes": 250},
    }
    (folder / "config.json").write_text(json.dumps(config))

    def write_lines(name: str, lines: list[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    lines = []
    for step in range(500, steps + 1, 500):
        fade = 0.12 * (2 - level) + math.exp(-step / 6000)
        noise = rng.normal(1, 0.05, 4)
        lines.append(
            {
                "step": step,
                "seconds": step * 0.038,
                "updates_per_second": 26.3 * noise[0],
                "critic_loss": 0.9 * (0.25 + step / steps) * noise[1],
                "actor_loss": 3 * fade,
                "fm_loss": fade * noise[2],
                "sc_loss": 0.2 * fade * noise[3],
                "q_loss": -0.97 * noise[0] if step > 3000 else 0.5 * noise[1],
                "q_mean": -60 * step / steps,
            }
        )
        if step % 5000 == 0:
            losses = {"fm_loss": 1.25 * fade, "sc_loss": 0.22 * fade, "critic_loss": 0.8}
            lines.append({"step": step} | {f"val_{k}": v for k, v in losses.items()})
    if log:
        write_lines("log.jsonl", lines)

    def rows_at(progress: float, all_steps: tuple[int, ...], all_candidates: tuple[int, ...]):
        return [
            row(M, N, int(rng.binomial(episodes, level * skill(M, N, progress))), episodes)
            for M in all_steps
            for N in all_candidates
        ]

    if periodic:
        evals = [
            {"step": step} | evaluation(rows_at(step / steps, grid[0], (1,)), env=env)
            for step in range(steps // 6, steps + 1, steps // 6)
        ]
        write_lines("eval.jsonl", evals)
    if final:
        result = evaluation(
            rows_at(1.0, *grid), env=env, command="sorl-fast eval run --episodes 50"
        )
        (folder / "evaluation.json").write_text(json.dumps(result))
    return folder


class Page(HTMLParser):
    """What a browser would fetch, and the text that it would show."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self.open == [], "unclosed elements"

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


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


def caption_of(name: str, settings: list[Setting]) -> str:
    return next(p.caption for p in figures.PICTURES if p.name == name)(settings)


@pytest.mark.parametrize(
    ("places", "sequential", "parallel"),
    [
        ([(1, 1), (1, 4), (2, 1), (2, 4)], True, True),
        ([(1, 1), (2, 1)], True, False),
        ([(4, 1), (4, 8)], False, True),
        ([(1, 1), (2, 4), (2, 8)], False, True),
        ([(1, 1), (2, 4)], False, False),  # no line has two points
    ],
    ids=["grid", "one N", "one M", "sparse", "two points apart"],
)
def test_the_scaling_picture_speaks_of_the_panels_that_are_there(places, sequential, parallel):
    cells = cells_of([evaluation([row(M, N, 5) for M, N in places])])
    runs = (Run(Path("run"), {"train": {"env": CUBE}}, [], [], None, True),)
    settings = [Setting(CUBE, runs, cells)]
    caption = caption_of("scaling", settings)
    assert ("Sequential scaling" in caption) == sequential
    assert ("Parallel scaling" in caption) == parallel
    assert not re.search("left|right", caption, re.IGNORECASE)
    figure = figures.draw_scaling(settings)
    assert (figure is not None) == (sequential or parallel)
    if figure is not None:
        titles = [ax.get_title(loc="left") for ax in figure.axes]
        assert titles == ["sequential scaling"] * sequential + ["parallel scaling"] * parallel


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["fm_loss", "val_fm_loss"], "On training minibatches and on the validation file."),
        (["fm_loss"], "On training minibatches."),
        (["val_fm_loss"], "On the validation file."),
    ],
    ids=["both", "training", "validation"],
)
def test_the_losses_picture_speaks_of_the_losses_that_are_there(keys, says):
    log = [{"step": step} | dict.fromkeys(keys, 1.0) for step in (1, 2)]
    config = {"train": {"env": CUBE}}
    settings = [Setting(CUBE, (Run(Path("run"), config, log, [], None, True),), ())]
    assert caption_of("losses", settings) == says
    legend = [text.get_text() for text in figures.draw_losses(settings).legends[0].get_texts()]
    words = {"training": "fm_loss" in keys, "validation": "val_fm_loss" in keys}
    assert legend == [word for word, there in words.items() if there]


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


def remove(name: str):
    return lambda run: (run / name).unlink()


def write(name: str, text: str):
    return lambda run: (run / name).write_text(text)


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
        (write("evaluation.json", '{"rows": [7]}'), ["evaluation.json", "no number 'steps'"]),
        (empty_all, ["nothing to report", "log.jsonl", "sorl-fast eval", "sorl-fast train"]),
    ],
    ids=[
        *("no config", "empty config", "half config", "list", "no train"),
        *("bad line", "no step", "no rows", "empty evaluation", "half row", "no row", "nothing"),
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


def test_learning_curves_keep_only_what_most_seeds_have(tmp_path):
    runs = [make_run(tmp_path / str(seed), seed=seed, steps=3000) for seed in (0, 1)]
    lines = (runs[1] / "eval.jsonl").read_text().splitlines()
    (runs[1] / "eval.jsonl").write_text("\n".join(lines[:2]) + "\n")
    setting = Setting("", tuple(load_run(run) for run in runs), ())
    curves = learning_curves(setting)
    assert list(curves) == [500, 1000]
    assert all(cell.seeds == 2 for cells in curves.values() for cell in cells)
    assert draw_learning([setting]) is not None


def test_the_terminal_table():
    rows = [row(1, 1, 6, rate=7200.4), row(1, 8, 10, rate=9.64), row(4, 1, 50, rate=1800)]
    assert terminal_table(evaluation(rows)).splitlines() == [
        f"{CUBE}: success [95% interval] and actions per second of the policy alone",
        "50 episodes a cell, success_timing=post",
        "                         N = 1                N = 8",
        "M = 1      12% [6, 24] 7,200/s   20% [11, 33] 9.6/s",
        "M = 4   100% [93, 100] 1,800/s                    -",
    ]
