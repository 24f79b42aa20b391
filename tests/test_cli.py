"""Arguments reach configs; bad input ends with exit code 2 and a message, never a traceback."""

import argparse
import dataclasses
import json
import os
import pwd
import signal
import subprocess
import sys

import policies
import pytest

from sorl_fast import __version__, cli
from sorl_fast.act.policy_file import save
from sorl_fast.config import CollectConfig, EvalConfig, ExpertConfig, TrainConfig
from sorl_fast.diagnose.arguments import DiagnoseConfig
from sorl_fast.envs import similar_task
from sorl_fast.flags import given, make, path_argument
from sorl_fast.learn.algorithms import METHODS, find_method
from sorl_fast.learn.algorithms.sorl import SorlConfig


@pytest.mark.parametrize(
    ("command", "configs"),
    [
        (["train"], (TrainConfig, SorlConfig)),
        (["collect"], (CollectConfig,)),
        (["expert"], (ExpertConfig,)),
        (["eval", "RUN"], (EvalConfig,)),
        (["diagnose", "RUN"], (DiagnoseConfig,)),
    ],
    ids=["train", "collect", "expert", "eval", "diagnose"],
)
def test_every_field_is_a_flag(command, configs):
    parser = cli.make_parser("sorl")
    for config in configs:
        for field in dataclasses.fields(config):
            flag = "--" + field.name.replace("_", "-")
            choices = {"q_agg": ["min"], "success_timing": ["pre"], "precision": ["bf16"]}
            value = choices.get(field.name, ["3"])
            if isinstance(field.default, bool):
                value = []
            args = parser.parse_args([*command, flag, *value])
            assert field.name in given(args, config)
    assert given(parser.parse_args(command), configs[0]) == {}


def test_lists_become_tuples():
    argv = ["eval", "R", "--steps", "4", "1/2,1/4,1/4", "--rules", "argmax", "medoid:1/4"]
    config = make(EvalConfig, given(cli.make_parser().parse_args(argv), EvalConfig))
    assert config.steps == (4, "1/2,1/4,1/4")
    assert config.rules == ("argmax", "medoid:1/4")
    args = cli.make_parser().parse_args(["eval", "R", "--steps", "1", "8", "--candidates", "4"])
    assert given(args, EvalConfig) == {"steps": (1, 8), "candidates": (4,)}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["train", "--env", "x", "--data", "d", "--out", "o"], "--q-coef"),
        (["train", "--env", "cube-single-play-singletask-v0", "--out", "o"], "--data is missing"),
        (["collect", "--env", "cube-single-play-v0"], "--out is missing"),
        (["eval", "/nowhere"], "no run folder or policy file /nowhere"),
        (["inspect", "/nowhere"], "no run folder or policy file /nowhere"),
        (["report", "/nowhere"], "/nowhere"),
        (["diagnose", "/nowhere"], "RUN is /nowhere, which is not there"),
        (["diagnose", "/nowhere", "--samples", "1"], "samples is 1, but must be an integer from 2"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else None,
)
def test_bad_input_exits_with_2_and_a_message(argv, says, capsys):
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


def test_an_empty_folder_is_not_a_run(tmp_path, capsys):
    assert cli.main(["eval", str(tmp_path)]) == 2
    assert "no policy.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env", "meant"),
    [
        ("cube-single-play-task2", "cube-single-play-singletask-task2-v0"),
        ("cube-single-play-v0", "cube-single-play-singletask-task1-v0"),
        ("cube-single-task3", "cube-single-play-singletask-task3-v0"),
        ("scene-task4", "scene-play-singletask-task4-v0"),
        ("cube-sngle-play-singletask-task5-v0", "cube-single-play-singletask-task5-v0"),
        ("cube-double-play-singeltask-task2-v0", "cube-double-play-singletask-task2-v0"),
        ("Pointmaze-Medium-Navigate-task1", "pointmaze-medium-navigate-singletask-task1-v0"),
        ("antmaze-medium-navigate-singletask-v0", None),  # known, though without a preset
        ("my-robot", None),
        ("ant", None),
    ],
)
def test_a_mistyped_environment_is_answered_with_the_one_meant(env, meant, capsys):
    assert similar_task(env) == meant
    argv = ["train", "--env", env, "--data", "d.npz", "--out", "o"]
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    asked = ", so q_coef" if meant is None else f": did you mean {meant}? If not, q_coef"
    assert f"environment {env!r} has no preset{asked} must be given: add --q-coef" in err
    # of one's own data any name is right
    assert cli.main([*argv, "--q-coef", "10"]) == 2
    assert "no data file d.npz" in capsys.readouterr().err


def run_at(folder):
    folder.mkdir(parents=True)
    (folder / "policy.safetensors").touch()


def test_a_run_that_is_not_there_is_answered_with_what_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", "run/s1"]) == 2
    says = "no run folder or policy file run/s1. `sorl-fast train --out run/s1` makes one"
    assert says in capsys.readouterr().err
    for name in ("s1", "s2"):
        run_at(tmp_path / "runs" / name)
    assert cli.main(["eval", "run/s1"]) == 2
    assert "policy file run/s1. Did you mean runs/s1?" in capsys.readouterr().err
    for there in ("other", "runs/other"):
        assert cli.main(["inspect", there]) == 2
        assert f"policy file {there}. There are runs/s1, runs/s2" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["eval"], ["inspect"], ["recommend", "--budget-us", "500"]])
def test_a_sweeps_folder_is_answered_with_its_runs(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    for seed in range(8):
        run_at(tmp_path / f"study/toy/sorl/seed{seed}")
        (tmp_path / f"study/toy/sorl/seed{seed}/config.json").touch()
    assert cli.main([command[0], "study", *command[1:]]) == 2
    err = capsys.readouterr().err
    assert (
        "study is a sweep's folder, not a run's. Give one of its runs: study/toy/sorl/seed0" in err
    )
    assert err.endswith("study/toy/sorl/seed5 and 2 more\n")


def test_values_of_a_list_are_shown_as_they_were_written(capsys):
    assert cli.main(["eval", "RUN", "--steps", "4", "0"]) == 2
    err = capsys.readouterr().err
    assert "steps is 4 0, but must be one or more integers of at least 1, or step sizes" in err


def test_the_help_of_eval_says_which_steps_there_are():
    (field,) = [f for f in dataclasses.fields(EvalConfig) if f.name == "steps"]
    assert (
        "from 1 to twice the finest grid that the policy was trained for" in field.metadata["help"]
    )


def test_an_evaluation_in_another_precision_replaces_none(tmp_path, monkeypatch, capsys):
    """The fp32 evaluation of a run is hours of work: another precision's stands beside it."""
    row = {"steps": 1, "candidates": 1, "episodes": 1, "successes": 0, "success": 0.0}
    row |= {"ci_low": 0.0, "ci_high": 0.8, "actions_per_second": 1.0}
    row |= {"episode_length": 1.0, "returns": 0.0}

    def evaluate(policy, config, **_):
        return {"env": "e", "success_timing": "post", "precision": config.precision, "rows": [row]}

    monkeypatch.setattr("sorl_fast.simulate.evaluate.evaluate", evaluate)
    (tmp_path / "policy.safetensors").touch()
    for precision in ("fp32", "int8"):
        assert cli.main(["eval", str(tmp_path), "--precision", precision]) == 0
    for name, precision in (("evaluation", "fp32"), ("evaluation-int8", "int8")):
        assert json.loads((tmp_path / f"{name}.json").read_text())["precision"] == precision


def test_an_evaluation_in_another_environment_replaces_none(tmp_path, monkeypatch):
    row = {"steps": 1, "candidates": 1, "episodes": 1, "successes": 0, "success": 0.0}
    row |= {"ci_low": 0.0, "ci_high": 0.8, "actions_per_second": 1.0}
    row |= {"episode_length": 1.0, "returns": 0.0}

    def evaluate(policy, config, *, env, **_):
        # the training beside it goes on
        (tmp_path / "checkpoints" / "000000200").mkdir()
        return {"env": env, "success_timing": "post", "precision": config.precision, "rows": [row]}

    monkeypatch.setattr("sorl_fast.simulate.evaluate.evaluate", evaluate)
    policy = policies.make_policy(H=8)
    save(tmp_path / "policy.safetensors", policy)
    (tmp_path / "checkpoints" / "000000100").mkdir(parents=True)
    assert cli.main(["eval", str(tmp_path), "--env", "other-singletask-task1-v0"]) == 0
    assert not (tmp_path / "evaluation.json").exists()
    found = json.loads((tmp_path / "evaluation-other-singletask-task1-v0.json").read_text())
    assert found["env"] == "other-singletask-task1-v0"
    assert found["step"] == 100  # of the policy that was evaluated
    (tmp_path / "checkpoints" / "000000200").rmdir()
    assert cli.main(["eval", str(tmp_path), "--env", policy.env]) == 0
    assert (tmp_path / "evaluation.json").exists()


@pytest.fixture
def evaluated(monkeypatch):
    """Let `eval` answer at once: each cell asked for, all of whose episodes fail."""
    asked = {}

    def evaluate(policy, config, **more):
        asked.update(more)
        n = config.episodes
        row = {"episodes": n, "successes": 0, "success": 0.0, "ci_low": 0.0, "ci_high": 0.8}
        row |= {"episode_length": 1.0, "actions_per_second": 1.0, "returns": 0.0}
        cells = [
            {"steps": M, "candidates": N} | row
            for M in config.steps or (1,)
            for N in config.candidates or (1,)
        ]
        context = {
            **{"policy": "ab", "env": "e", "success_timing": "post", "seed": config.seed},
            **{"backend": "native", "isa": "avx2", "precision": config.precision, "versions": {}},
        }
        return context | {"rows": cells}

    monkeypatch.setattr("sorl_fast.simulate.evaluate.evaluate", evaluate)
    return asked


@pytest.mark.parametrize("bare", [False, True], ids=["run folder", "policy file"])
def test_a_small_evaluation_adds_to_the_big_one(tmp_path, evaluated, capsys, bare):
    policy = tmp_path / "policy.safetensors"
    policy.touch()
    file = tmp_path / ("result.json" if bare else "evaluation.json")
    argv = ["eval", str(policy), "--json", str(file)] if bare else ["eval", str(tmp_path)]

    def found():
        rows = json.loads(file.read_text())["rows"]
        return {(row["steps"], row["candidates"]): row["episodes"] for row in rows}

    big = ["--steps", "1", "8", "--candidates", "4", "--episodes", "50"]
    assert cli.main([*argv, *big]) == 0
    assert evaluated["record"] == file.with_suffix(".episodes.jsonl")
    assert cli.main([*argv, "--steps", "1", "2", "--candidates", "4", "--episodes", "3"]) == 0
    assert found() == {(1, 4): 50, (2, 4): 3, (8, 4): 50}
    assert "3 to 50 episodes a cell" in capsys.readouterr().out
    assert not evaluated["fresh"]
    assert cli.main([*argv, "--steps", "1", "--candidates", "1", "--seed", "1"]) == 0
    assert found() == {(1, 1): 50}
    aside = file.with_stem(f"{file.stem}-kept-1")
    assert f"which is now {aside}" in capsys.readouterr().err
    assert len(json.loads(aside.read_text())["rows"]) == 3
    fresh = ["--steps", "2", "--candidates", "1", "--seed", "1", "--fresh"]
    assert cli.main([*argv, *fresh]) == 0
    assert evaluated["fresh"]
    assert found() == {(2, 1): 50}


def test_a_copy_of_a_runs_evaluation_is_the_same(tmp_path, evaluated):
    (tmp_path / "policy.safetensors").touch()
    copy = tmp_path / "copy.json"
    for steps in ("1", "4"):
        assert cli.main(["eval", str(tmp_path), "--steps", steps, "--json", str(copy)]) == 0
        assert copy.read_bytes() == (tmp_path / "evaluation.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("copy.json", "evaluation.json", "policy.safetensors"),
    ]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_a_stopped_evaluation_says_how_to_go_on(tmp_path, monkeypatch, capsys, request, sig):
    def evaluate(policy, config, *, progress, **_):
        progress(0, 2)
        progress.more_steps(1)
        signal.raise_signal(sig)  # in this thread, at once
        progress(1, 2)
        raise AssertionError("it went on")

    monkeypatch.setattr("sorl_fast.simulate.evaluate.evaluate", evaluate)
    # a shell ignores Ctrl-C for what it starts in the background, and so would these tests there
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, ignored))
    before = signal.getsignal(signal.SIGTERM)
    policy = tmp_path / "policy.safetensors"
    policy.touch()
    assert cli.main(["eval", str(tmp_path)]) == 75
    err = capsys.readouterr().err
    assert f"finished episodes are kept in {tmp_path}/evaluation.episodes.jsonl" in err
    assert "the same command again" in err
    assert signal.getsignal(signal.SIGTERM) == before
    if sig == signal.SIGINT:
        assert cli.main(["eval", str(policy)]) == 130  # nothing is kept of a bare policy file
    assert [p.name for p in tmp_path.iterdir()] == ["policy.safetensors"]


def test_a_folder_that_one_may_not_enter_is_named(monkeypatch, capsys):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.is_dir", refuse)
    assert cli.main(["eval", "/root/run"]) == 2
    assert "/root/run is not yours to read: choose another path" in capsys.readouterr().err


def test_envs_lists_settings_and_where_the_data_comes_from(capsys):
    assert cli.main(["envs", "--tasks"]) == 0
    out = capsys.readouterr().out
    assert "cube-single-play " in out
    assert "sorl-fast collect --env scene-play-v0" in out
    assert "--download" in out
    assert "antsoccer-arena-navigate-singletask-task5-v0" in out


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_the_package_imports_nothing_heavy():
    code = (
        "import sys, sorl_fast\nfrom sorl_fast import Sampler\nimport sorl_fast.cli\n"
        "heavy = {'torch', 'triton', 'gymnasium', 'ogbench', 'mujoco', 'matplotlib', 'sbx', 'jax'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_own_data_need_no_word_about_evaluation(own_file, tmp_path):
    run = tmp_path / "run"
    argv = ["train", "--env", "mine", "--data", str(own_file), "--q-coef", "1", "--hidden", "8"]
    assert cli.main([*argv, "--steps", "2", "--out", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["train"]["eval_every"] == 0
    assert cli.main([*argv, "--steps", "2", "--eval-every", "1", "--out", str(tmp_path / "b")]) == 2


def test_inspect_prints_the_policy(own_file, tmp_path, capsys):
    run = str(tmp_path / "run")
    train = ["train", "--env", "mine", "--data", str(own_file), "--q-coef", "1", "--hidden", "8"]
    assert cli.main([*train, "--steps", "2", "--eval-every", "0", "--out", run]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", run]) == 0
    assert '"hidden": 8' in capsys.readouterr().out


def path_flags(parser):
    """Every flag and argument that names a file or folder, with its command."""
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for command, sub in commands.choices.items():
        for action in sub._actions:
            if action.metavar in ("FILE", "DIR", "RUN", "OUT", "DATA", "SOURCE"):
                yield command, action


def test_a_home_folder_is_expanded_everywhere(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    flags = list(path_flags(cli.make_parser()))
    assert len(flags) == 24
    for command, action in flags:
        assert action.type("~/x") == "/home/me/x", (command, action.dest)


def test_a_home_folder_in_one_word_with_its_flag(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    args = cli.make_parser().parse_args(["report", "~/run", "--out=~/x"])
    assert (args.runs, args.out) == (["/home/me/run"], "/home/me/x")
    args = cli.make_parser().parse_args(["train", "--out=~/x", "--data=~root/d", "--env=~e"])
    assert (args.out, args.env) == ("/home/me/x", "~e")
    assert args.data == f"{pwd.getpwnam('root').pw_dir}/d"
    assert path_argument("") == ""
    assert path_argument("a/~b") == "a/~b"


def test_a_home_folder_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", "run", "--out=~nobody-of-this-name/x"])
    assert stopped.value.code == 2
    assert "write ./~nobody-of-this-name/x" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "collect",
        "expert",
        "train",
        "sweep",
        "eval RUN",
        "recommend RUN --budget-us 1",
        "doctor",
        "diagnose RUN",
    ],
)
def test_every_command_that_shows_progress_can_be_quiet(command):
    parser = cli.make_parser()
    assert parser.parse_args(command.split()).progress
    assert not parser.parse_args([*command.split(), "--no-progress"]).progress


def test_mujoco_is_told_that_nothing_is_rendered(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    seen = []
    monkeypatch.setattr(
        "sorl_fast.data.collect.collect",
        lambda *a, **k: seen.append(os.environ["MUJOCO_GL"]) or sys.exit(7),
    )
    with pytest.raises(SystemExit):
        cli.main(["collect", "--env", "cube-single-play-v0", "--out", "x"])
    assert seen == ["disable"]
    assert os.environ["MUJOCO_GL"] == "osmesa"


@pytest.mark.parametrize(
    ("method", "words", "says"),
    [
        ("fql", ["--q-coef", "3"], "--q-coef is a flag of sorl; fql has --"),
        ("fql", ["--q-coef=3"], "--q-coef is a flag of sorl; fql has --"),
        ("rebrac", ["--alpha", "3"], "--alpha is a flag of iql, fql; rebrac has --"),
        ("bc", ["--no-normalize-q-loss"], "--normalize-q-loss is a flag of fql; bc has --"),
        (None, ["--expectile", "0.9"], "--expectile is a flag of iql, ifql, idql; sorl has --"),
    ],
    ids=str,
)
def test_a_flag_of_another_method_is_named(method, words, says, capsys):
    argv = ["train", *(["--method", method] if method else []), "--env", "x", *words]
    assert cli.main(argv) == 2
    assert says in capsys.readouterr().err


def test_methods_lists_every_method_with_its_flags(capsys):
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    for name in METHODS:
        method = find_method(name)
        assert f"{name:8s} {method.title}" in out
        for field in dataclasses.fields(method.Config):
            assert "--" + field.name.replace("_", "-") in out
