"""The report's pictures and what is said below them."""

import json
import math
import re
from pathlib import Path

import pytest
from reported import CUBE, RULED, UNEVEN, evaluation, make_run, row, ruled_settings

from sorl_fast.report import figures
from sorl_fast.report.figures import draw_learning
from sorl_fast.report.runs import Run, Setting, cells_of, learning_curves, load_run


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


def test_the_scaling_picture_has_a_line_a_rule():
    settings = ruled_settings()
    figure = figures.draw_scaling(settings)
    sequential, parallel = figure.axes

    def lines(ax):
        """Label, style and points of each line with intervals, places before they were set apart."""
        found = []
        for container in ax.containers:
            line = container.lines[0]
            x = [2.0 ** round(math.log2(x)) for x in line.get_xdata()]
            style = (
                container.get_label(),
                line.get_linestyle(),
                line.get_markerfacecolor() == "white",
            )
            y = [round(float(y), 1) for y in line.get_ydata()]
            found.append((*style, list(zip(x, y, strict=True))))
        return found

    assert lines(sequential) == [  # M is an axis of equal steps, of argmax alone
        ("N = 1", "-", False, [(1, 10), (4, 20)]),
        ("N = 8", "-", False, [(2, 18), (4, 70)]),
    ]
    assert [text.get_text() for text in sequential.get_xticklabels()] == ["1", "2", "4"]
    assert lines(parallel) == [  # each begins where there is nothing to choose
        ("M = 1", "-", False, [(1, 10)]),
        ("M = 1", "--", True, [(1, 10), (8, 16)]),
        ("M = 2", "-", False, [(8, 18)]),
        (f"M = {UNEVEN}", "-", False, [(1, 40)]),
        (f"M = {UNEVEN}", "--", True, [(1, 40), (8, 90)]),
        ("M = 4", "-", False, [(1, 20), (8, 70)]),
        ("M = 4", "--", True, [(1, 20), (8, 80)]),
        ("M = 4", ":", True, [(1, 20), (8, 60)]),
    ]
    (own, other) = (ax.get_legend() for ax in figure.axes)  # each panel names its own series
    assert [text.get_text() for text in own.get_texts()] == ["N = 1", "N = 8"]
    legend = dict(zip((t.get_text() for t in other.get_texts()), other.legend_handles, strict=True))
    assert list(legend) == [
        *("M = 1", "M = 2", f"M = {UNEVEN}", "M = 4"),
        *("argmax", "medoid:1/2", "soft:1"),
    ]
    styles = [legend[name].get_linestyle() for name in ("argmax", "medoid:1/2", "soft:1")]
    assert styles == ["-", "--", ":"]
    figure.draw_without_rendering()
    for ax in figure.axes:
        box = ax.get_legend().get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 < ax.xaxis.get_tightbbox().y0
    for ax in figure.axes:
        for container in ax.containers:
            for x in container.lines[0].get_xdata():
                assert abs(x / 2.0 ** round(math.log2(x)) - 1) < 0.06
    caption = caption_of("scaling", settings)
    assert "a rule takes one. The paper's is argmax" in caption
    assert "medoid:1/2, soft:1" in caption


def test_without_other_rules_none_is_named():
    settings = ruled_settings()
    plain = [Setting(CUBE, settings[0].runs, tuple(c for c in settings[0].cells if c.is_plain))]
    figure = figures.draw_scaling(plain)
    assert "argmax" not in [t.get_text() for ax in figure.axes for t in ax.get_legend().get_texts()]
    assert "rule" not in caption_of("scaling", plain)


def test_learning_curves_are_of_equal_steps_and_argmax(tmp_path):
    run = make_run(tmp_path / "run", steps=2000)
    own = row(UNEVEN, 8, 45, rule="medoid:1/2")
    evals = [{"step": 500} | evaluation(RULED), {"step": 1000} | evaluation([own])]
    (run / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))
    setting = Setting("", (load_run(run),), ())
    curves = learning_curves(setting)
    assert {step: [c.way[:2] for c in cells] for step, cells in curves.items()} == {
        500: [(1, 1), (2, 8), (4, 1), (4, 8)]
    }
    (ax,) = draw_learning([setting]).axes
    assert [line.get_label() for line in ax.lines] == ["M = 1", "M = 4"]
    (run / "eval.jsonl").write_text(json.dumps(evals[1]) + "\n")
    assert draw_learning([Setting("", (load_run(run),), ())]) is None


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


@pytest.mark.parametrize(
    ("method", "agent", "normalised"),
    [
        ("sorl", {}, True),
        ("fql", {"normalize_q_loss": False}, False),
        ("fql", {"normalize_q_loss": True}, True),
    ],
)
def test_the_losses_caption_says_what_is_normalised_and_what_grows(method, agent, normalised):
    config = {"train": {"env": CUBE}, "method": method, "agent": agent}
    log = [{"step": 1, "q_loss": -1.0, "val_critic_loss": 2.0}]
    caption = caption_of(
        "losses", [Setting(CUBE, (Run(Path("r"), config, log, [], None, True),), ())]
    )
    assert ("is divided by its own mean |Q|" in caption) == normalised
    assert "on validation data it grows as they themselves grow" in caption


def test_learning_curves_keep_only_what_most_seeds_have(tmp_path):
    runs = [make_run(tmp_path / str(seed), seed=seed, steps=3000) for seed in (0, 1)]
    lines = (runs[1] / "eval.jsonl").read_text().splitlines()
    (runs[1] / "eval.jsonl").write_text("\n".join(lines[:2]) + "\n")
    setting = Setting("", tuple(load_run(run) for run in runs), ())
    curves = learning_curves(setting)
    assert list(curves) == [500, 1000]
    assert all(cell.seeds == 2 for cells in curves.values() for cell in cells)
    assert draw_learning([setting]) is not None
