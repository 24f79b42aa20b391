"""This build against another: real children, of this interpreter and of others made to misbehave."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sorl_fast.bench import against, harness, sampler, shapes
from sorl_fast.bench.shapes import Cell, Lane

from sorl_fast.errors import BadInput

CELLS = (Cell(1, 2, 3, 3, 2), Cell(2, 4, 1, 3, 2))
LANES = [Lane(cell, "fp32", 1) for cell in CELLS]
QUICK = ["--quick", "--seconds", "0.02", "--rounds", "2"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two small lanes instead of --quick's, without pauses."""
    policy = shapes.make_policy(3, 2, hidden=8)
    monkeypatch.setattr(shapes, "make_policy", lambda O, A, form: policy)
    monkeypatch.setattr(shapes, "QUICK", tuple(LANES))
    monkeypatch.setattr(against, "PAUSE", 0.0)


@pytest.fixture
def other(tmp_path):
    """Make an interpreter whose sorl_fast is this one after `change`, lines of Python."""

    def make(change=""):
        folder = tmp_path / "other"
        folder.mkdir()
        code = f"import os, signal, time\nfrom sorl_fast.act.sampler import Sampler\n{change}\n"
        (folder / "sitecustomize.py").write_text(code)
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        return str(python)

    return make


def before_act_into(*lines):
    """Lines of Python that run before each `act_into`, which sees its `steps`."""
    return "\n".join(
        [
            "right = Sampler.act_into",
            "def act_into(self, obs, out, steps=1, candidates=1, **more):",
            *(f"    {line}" for line in lines),
            "    return right(self, obs, out, steps, candidates, **more)",
            "Sampler.act_into = act_into",
        ]
    )


def run(python, tmp_path, *more):
    path = tmp_path / "found.json"
    code = sampler.run([*QUICK, "--against", python, "--json", str(path), *more])
    return code, json.loads(path.read_text())


@pytest.mark.slow
def test_the_same_build_twice(other, tmp_path, capsys):
    code, found = run(other(), tmp_path)
    assert code == 0
    assert [row["interface"] for row in found["rows"]] == ["act_into"] * 2
    for row, lane in zip(found["rows"], LANES, strict=True):
        assert sampler.in_lane(row, lane)
        assert row["same_answer"] is True
        assert 0 <= row["this_error"] == row["other_error"] < 1e-5
        assert row["this_p50_us"] > 0 < row["other_p50_us"]
        low, high = row["ratio_quartiles"]
        assert low <= row["ratio"] <= high
        assert row["rounds"] == 2
    assert found["verdict"]["worst"]["ratio"] == max(row["ratio"] for row in found["rows"])
    assert found["builds"]["this"].keys() >= {"sorl_fast", "python", "numpy", "torch", "commit"}
    assert found["error"] is None
    said = capsys.readouterr().out
    assert "both are the same" in said
    assert "no lane slower by more than 3%: " in said
    assert "(2 lanes, 0 left out)" in said


@pytest.mark.slow
def test_a_slower_build_is_seen_from_both_sides(other, tmp_path, monkeypatch, capsys):
    slow = other(before_act_into("time.sleep(0.003)"))
    code, found = run(slow, tmp_path)
    assert code == 0  # a measurement
    assert found["verdict"]["no_lane_slower"] is True
    assert all(row["ratio"] < 0.5 for row in found["rows"])
    assert "more than 3%: true" in capsys.readouterr().out
    fast = sys.executable
    monkeypatch.setattr(sys, "executable", slow)
    code, found = run(fast, tmp_path)
    assert code == 0
    assert found["verdict"]["no_lane_slower"] is False
    assert all(row["ratio"] > 2 for row in found["rows"])
    said = capsys.readouterr().out
    assert "more than 3%: false" in said
    assert said.count("SLOWER") == 2


@pytest.mark.slow
def test_a_build_that_disagrees_is_not_timed(other, tmp_path, capsys):
    wrong = other(
        "right = Sampler.act\n"
        "Sampler.act = lambda self, obs, *a, **k: right(self, obs, *a, **k) + 1e-3 * (len(obs) == 2)"
    )
    code, found = run(wrong, tmp_path)
    assert code == 1
    assert len(found["rows"]) == 1  # what was measured before is kept
    assert "the other build: an action is 0.001" in found["error"]
    assert "the other build: an action is 0.001" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("steps == 4 and os._exit(7)", "the other build ended with code 7"),
        ("steps == 4 and os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
    ],
)
def test_a_build_that_dies_in_the_middle(other, tmp_path, line, says):
    code, found = run(other(before_act_into(line)), tmp_path)
    assert code == 1
    assert [sampler.in_lane(row, LANES[0]) for row in found["rows"]] == [True]
    assert says in found["error"]
    assert str(CELLS[1]) in found["error"]


@pytest.mark.slow
def test_a_build_that_hangs_is_ended(other, tmp_path, monkeypatch):
    monkeypatch.setattr(against, "REPLY_SECONDS", 8.0)
    code, found = run(other(before_act_into("steps == 4 and time.sleep(99)")), tmp_path)
    assert code == 1
    assert "the other build did not answer within 8 s" in found["error"]


@pytest.mark.slow
def test_an_older_build_is_asked_in_a_way_that_it_has(other, tmp_path):
    code, found = run(other("del Sampler.act_into"), tmp_path)
    assert code == 0
    assert [row["interface"] for row in found["rows"]] == ["act", "act"]


REFUSE = """
from sorl_fast.errors import BadInput
right = Sampler.__init__
def init(self, policy, backend=None, precision="fp32", threads=1):
    if precision == "int8":
        raise BadInput("precision is 'int8', which is unknown")
    right(self, policy, backend, precision, threads)
Sampler.__init__ = init
"""


@pytest.mark.slow
def test_a_lane_that_only_one_build_has_is_left_out(other, tmp_path, monkeypatch, capsys):
    int8 = LANES[0]._replace(precision="int8")
    monkeypatch.setattr(shapes, "QUICK", (LANES[0], int8))
    python = other(REFUSE)
    code, found = run(python, tmp_path)
    assert code == 0
    assert len(found["rows"]) == 1
    (left,) = found["left_out"]
    assert left["precision"] == "int8"
    assert "the other build has no act_into: BadInput: precision is 'int8'" in left["why"]
    assert "1 lanes, 1 left out" in capsys.readouterr().out
    monkeypatch.setattr(shapes, "QUICK", (int8,))
    with pytest.raises(
        BadInput, match=r"no lane that both builds have: .*'int8', which is unknown"
    ):
        run(python, tmp_path)


def test_no_interpreter(tmp_path):
    with pytest.raises(
        BadInput, match=r"against is '/no/python', but the other build does not start"
    ):
        run("/no/python", tmp_path)


def test_an_interpreter_without_the_package(other, tmp_path):
    says = "does not start: .* ended with code 1: ModuleNotFoundError: .*sorl_fast"
    with pytest.raises(BadInput, match=says):
        run(other("import sys\nsys.modules['sorl_fast'] = None"), tmp_path)


def test_a_search_path_of_this_interpreter_is_not_the_other_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("SORL_BACKEND", "torch")
    with contextlib.ExitStack() as stack:
        builds, about = against.open_builds(sys.executable, stack)
        env = [
            Path(f"/proc/{build._process.pid}/environ").read_text().split("\0") for build in builds
        ]
    assert ["PYTHONPATH=/elsewhere" in e for e in env] == [True, False]
    assert ["SORL_BACKEND=native" in e for e in env] == [True, True]
    assert about[0]["file"] == about[1]["file"]


@pytest.mark.parametrize(
    "more", [["--peers", "onnxruntime"], ["--png", "x.png"], ["--cold-calls", "0"]]
)
def test_peers_have_no_part_in_it(more):
    with pytest.raises(BadInput, match="--against races no peers"):
        sampler.run([*QUICK, "--against", sys.executable, *more])


class Recorder:
    """Stands for a build; answers with times of its own."""

    def __init__(self, name, log, ns):
        self.name, self.log, self.ns = name, log, ns

    def ask(self, do, **request):
        self.log.append((self.name, do, request.get("warm_up"), request.get("calls")))
        return {"ns": [self.ns] * request["calls"]} if do == "time" else {"answer": 0}


def test_rounds_are_interleaved_and_prepare_anew():
    log = []
    builds = [Recorder("this", log, 1e6), Recorder("other", log, 2e6)]
    found = against.take_turns(builds, {"interface": "act"}, block=0.03, rounds=4)
    blocks = [(name, do) for name, do, *_ in log]
    timed = [name for name, do in blocks[4:] if do == "time"]
    assert timed == ["this", "other", "other", "this"] * 2
    assert blocks[4:] == [(name, do) for name in timed for do in ("prepare", "time")]
    assert {entry[2:] for entry in log[4:] if entry[1] == "time"} == {(3, 15)}  # equal work
    assert found.ratio == 0.5
    assert found.p50_us == (1e3, 2e3)
    assert (found.rounds, found.calls) == (4, 15)


def test_a_long_call_is_not_made_to_warm_up():
    log = []
    against.take_turns(
        [Recorder(n, log, 2e9) for n in "ab"], {"interface": "act"}, block=0.1, rounds=1
    )
    assert [entry[1:] for entry in log] == [("time", 0, 1)] * 4


def test_the_ratio_is_that_of_rounds():
    """A slow minute of the machine falls on both."""
    this = [np.array([a, a, 9 * a]) for a in (1.1, 5.5, 1.1, 1.2)]
    other = [np.array([a, a, a]) for a in (1.0, 5.0, 1.0, 1.0)]
    found = against.compare(this, other)
    assert found.ratio == pytest.approx(1.1)
    assert found.quartiles == pytest.approx((1.1, 1.125))


def test_the_verdict():
    rows = [{"ratio": 1.0, "name": "a"}, {"ratio": 1.03, "name": "b"}]
    assert against.verdict(rows) == {"no_lane_slower": True, "worst": rows[1]}
    rows.append({"ratio": 1.031, "name": "c"})
    assert against.verdict(rows) == {"no_lane_slower": False, "worst": rows[2]}


def test_an_installed_package_is_not_of_the_tree_around_it(tmp_path):
    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True)

    for name in ("ours", "installed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    git("init", "--quiet")
    git("add", "ours")
    git("commit", "--quiet", "-m", "first")
    found = harness.commit(tmp_path / "ours")
    assert found is not None
    assert len(found) == 40
    assert harness.commit(tmp_path / "installed") is None


# ---- training

NO_LEARNER = "import sorl_fast.learn.learner as learner\ndel learner.Learner.load_state"


@pytest.mark.slow
@pytest.mark.parametrize(("change", "interface"), [("", "Learner.update"), (NO_LEARNER, "train")])
def test_training(other, tmp_path, monkeypatch, capsys, change, interface):
    train = pytest.importorskip("sorl_fast.bench.train")
    questions = train.questions
    monkeypatch.setattr(train, "PAUSE", 0.0)
    monkeypatch.setattr(train, "BLOCK", 0.001)
    monkeypatch.setattr(
        train, "questions", lambda batches, *rest: questions((16,), *rest, hidden=16, depth=2)
    )
    path = tmp_path / "found.json"
    code = train.run(
        ["--against", other(change), "--rounds", "2", "--threads", "1", "--json", str(path)]
    )
    found = json.loads(path.read_text())
    assert code == 0
    assert [(row["precision"], row["interface"]) for row in found["rows"]] == [
        ("fp32", interface),
        ("bf16", interface),
    ]
    for row in found["rows"]:
        assert row["this_error"] <= 0.05 >= row["other_error"]
        assert row["batch"] == 16
    assert "(2 lanes, 0 left out)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_that_disagrees(tmp_path):
    train = pytest.importorskip("sorl_fast.bench.train")
    question = next(train.questions((16,), 1, tmp_path, hidden=16, depth=2))
    with contextlib.ExitStack() as stack:
        builds, _ = against.open_builds(sys.executable, stack)
        interface, request = next(iter(question.requests.items()))
        answer = builds[0].ask("prepare", interface=interface, **request)["answer"]
    assert max(question.judge(interface, [answer, answer])) < 1e-4
    wrong = json.loads(json.dumps(answer))
    wrong["8"]["fm_loss"] *= 1.01
    with pytest.raises(harness.Disagreement, match=r"the other build .*fm_loss is 0\.01"):
        question.judge(interface, [answer, wrong])


def test_whole_trainings_must_be_alike():
    train = pytest.importorskip("sorl_fast.bench.train")
    log = {"fm_loss": 1.4, "critic_loss": 3.0}
    assert train.check_alike([log, log | {"critic_loss": 2.0}]) == [0.0, 0.0]
    for other in ({"fm_loss": 1.5}, {"critic_loss": np.nan}, {"critic_loss": 0.5}):
        with pytest.raises(harness.Disagreement, match=f"{next(iter(other))} of the first updates"):
            train.check_alike([log, log | other])
    with pytest.raises(harness.Disagreement):
        train.check_alike([log, {"critic_loss": 3.0}])


def test_the_child_loads_nothing_of_ours_before_it_is_asked():
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(against.SCRIPT)], capture_output=True, text=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "numpy" in loaded
    assert not loaded & {"sorl_fast", "torch"}
