import re
import signal

import numpy as np
import pytest
from evaluating import MAZE, FakeWorkers, make_policy
from PIL import Image

from sorl_fast.act.policy_file import load, save
from sorl_fast.cli import main
from sorl_fast.config import EvalConfig
from sorl_fast.errors import BadInput, Stopped
from sorl_fast.film import command, gl
from sorl_fast.film.command import choose, film
from sorl_fast.film.render import taken
from sorl_fast.film.settings import FilmConfig
from sorl_fast.film.strip import STRIP, read_strip
from sorl_fast.simulate.evaluate import evaluate


@pytest.mark.parametrize(
    ("outcomes", "count", "expected"),
    [
        ("1101011", 4, [0, 2, 1, 4]),
        ("1101011", 3, [0, 2, 1]),
        ("1111", 3, [0, 1, 2]),
        ("0000", 3, [0, 1, 2]),
        ("0010", 4, [2, 0, 1, 3]),
        ("01", 1, [1]),
    ],
)
def test_successes_and_failures_are_chosen_in_turn(outcomes, count, expected):
    assert choose([c == "1" for c in outcomes], count) == expected


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    save(folder / "policy.safetensors", make_policy(MAZE, 2, 2))
    return folder


@pytest.fixture
def rendered(monkeypatch):
    """Episodes in closed form, without a simulator, and pictures without a library; `fates` are wrong."""
    told, fates = [], {}

    def fake(worker, items, **how):
        for item in items:
            told.append(item | {"how": how})
            M, N, seed, e, rule = item["task"]
            count = len(taken(5 + e, item["every"]))
            np.save(item["out"], np.full((count, item["width"], item["width"], 3), 9, np.uint8))
            success = (len(str(M)) * N + seed + e * len(rule)) % 3 == 0
            yield {"status": "ok", "success": success, "length": 5 + e} | fates.get(e, {})

    monkeypatch.setattr(command, "Evaluator", FakeWorkers)
    monkeypatch.setattr(command, "way_to_render", lambda: "egl")
    monkeypatch.setattr(command, "run", fake)
    fake.told, fake.fates = told, fates
    return fake


def test_a_film_and_its_strip_are_written(run_folder, rendered, capsys):
    words = [
        "--steps",
        "4",
        "--candidates",
        "2",
        "--rule",
        "medoid",
        "--every",
        "2",
        "--width",
        "96",
    ]
    assert main(["film", str(run_folder), *words]) == 0
    said = capsys.readouterr().out
    with Image.open(run_folder / "film.gif") as found:
        assert found.n_frames == max(len(taken(i["task"][3] + 5, 2)) for i in rendered.told)
    assert [i["task"][:3] for i in rendered.told] == [[4, 2, 0]] * 4
    assert {i["task"][4] for i in rendered.told} == {"medoid:1/2"}
    assert rendered.told[0]["how"]["environment"] == {"MUJOCO_GL": "egl"}
    assert "M = 4, N = 2, medoid:1/2, a picture every 2 steps, 10 a second; seed 0" in said
    assert said.count("success at step") == said.count("failure: ") == 2
    _, caption = read_strip(run_folder, load(run_folder / "policy.safetensors").digest)
    assert re.match(r"Some of \d+ episodes with M = ", caption)
    assert not [p for p in run_folder.iterdir() if p.suffix == ".part"]


def test_episodes_that_an_evaluation_has_are_not_run_again(run_folder, rendered, monkeypatch):
    film(run_folder / "policy.safetensors", run_folder, None, FilmConfig(among=6, width=96))
    ran = []

    def none_left(self, policy, backend, tasks, kept, progress):
        ran.extend(tasks)

    monkeypatch.setattr(FakeWorkers, "_run_all", none_left)
    film(run_folder / "policy.safetensors", run_folder, None, FilmConfig(among=6, width=96))
    assert ran == []


@pytest.mark.parametrize("fate", [{"success": None}, {"length": 1}])
def test_an_episode_that_went_otherwise_is_no_film(run_folder, rendered, fate):
    rendered.fates.update(dict.fromkeys(range(25), fate))
    with pytest.raises(BadInput, match=r"went otherwise than in its evaluation"):
        film(run_folder / "policy.safetensors", run_folder, None, FilmConfig(width=96))
    assert not (run_folder / "film.gif").exists()


def test_a_crash_is_said_and_nothing_written(run_folder, rendered):
    rendered.fates[0] = {"status": "crashed", "reason": "the process was killed by SIGSEGV"}
    with pytest.raises(BadInput, match=r"killed by SIGSEGV. Try another MUJOCO_GL"):
        film(run_folder / "policy.safetensors", run_folder, None, FilmConfig(width=96, among=4))
    assert not (run_folder / "film.gif").exists()
    assert not (run_folder / STRIP).exists()


def test_sigterm_ends_it_and_nothing_is_left(run_folder, rendered, monkeypatch, tmp_path):
    def stopped(*_, **__):
        signal.raise_signal(signal.SIGTERM)  # in this thread, at once
        yield from ()

    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path / "spare"))
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(command, "run", stopped)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="no film was written"):
        film(run_folder / "policy.safetensors", run_folder, None, FilmConfig(width=96))
    assert signal.getsignal(signal.SIGTERM) == before
    assert list((tmp_path / "spare").iterdir()) == []
    assert not (run_folder / "film.gif").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "film.avi"], "must end in .gif or .mp4"),
        (
            ["--episodes", "9", "--among", "8"],
            "episodes is 9, but must be at most among, which is 8",
        ),
        (["--fps", "0"], "fps is 0, but must be an integer from 1 to 50"),
        (["--width", "20"], "width is 20"),
        (["--steps", "3,3"], "steps"),
        (["--rule", "best"], "rule is 'best'"),
    ],
)
def test_bad_input_is_named(run_folder, capsys, words, said):
    assert main(["film", str(run_folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_policy_file_needs_an_out(run_folder, capsys):
    assert main(["film", str(run_folder / "policy.safetensors")]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_where_nothing_renders_a_line_says_what_to_install(monkeypatch):
    asked = []

    def broken(worker, items, environment):
        asked.append(environment["MUJOCO_GL"])
        yield {"status": "failed", "reason": "no library"}

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "run", broken)
    with pytest.raises(BadInput, match="apt install libegl1 libgl1-mesa-dri") as error:
        gl.way_to_render()
    assert asked == ["egl", "osmesa"]
    assert "\n" not in str(error.value)
    assert "egl: no library; osmesa: no library" in str(error.value)


@pytest.mark.slow
def test_a_library_that_is_not_there_is_told_from_one_that_is(monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.setenv("MUJOCO_GL", "nonesuch")
    with pytest.raises(BadInput, match="nonesuch: RuntimeError: invalid value"):
        gl.way_to_render()


@pytest.mark.slow
def test_the_episodes_filmed_are_those_of_the_evaluation(run_folder, tmp_path):
    pytest.importorskip("ogbench")
    try:
        gl.way_to_render()
    except BadInput as err:
        pytest.skip(str(err))
    policy = run_folder / "policy.safetensors"
    ways = EvalConfig(steps=(2,), candidates=(1,), episodes=2, workers=1)
    (row,) = evaluate(policy, ways)["rows"]
    config = FilmConfig(
        steps="2", candidates=1, episodes=2, among=2, every=400, width=96, workers=1
    )
    said = film(policy, None, tmp_path / "film.gif", config)
    for e, outcome in enumerate(row["outcomes"]):
        assert f"episode {e}: {'success' if outcome == '1' else 'failure'}" in said
    with Image.open(tmp_path / "film.gif") as found:
        assert found.n_frames == len(taken(1000, 400))
        picture = np.asarray(found.convert("RGB"))
    assert picture[60:140, 10:90].std() > 20  # a maze is seen
