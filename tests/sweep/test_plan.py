"""From a command line to jobs: their names, commands and refusals."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from sorl_fast import cli
from sorl_fast.cli import make_parser
from sorl_fast.config import TrainConfig
from sorl_fast.errors import BadInput
from sorl_fast.flags import given, make
from sorl_fast.learn.algorithms import METHODS, method_config, method_of
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.method import Export
from sorl_fast.sweep.arguments import read
from sorl_fast.sweep.plan import Job, has_critics, make_jobs, short_name, variant_of
from sorl_fast.sweep.settings import OWN_OF_TRAINING, SweepConfig, numbers

STUDIES = Path(__file__).parents[2] / "docs" / "studies"
RESULTS = (STUDIES.parent / "results.md").read_text()
CUBE = "cube-single-play-singletask-task2-v0"
BASE = "--methods sorl bc --envs cube-single-play --data d --out /out"


def plan(text):
    args, rest = read(["sweep", *shlex.split(text)], make_parser())
    run = {k: v for k, v in given(args, TrainConfig).items() if k not in OWN_OF_TRAINING}
    return make_jobs(make(SweepConfig, given(args, SweepConfig)), run, rest)


def test_a_cell_a_method_an_environment_and_a_seed():
    jobs = plan(f"{BASE} --tasks 1-2 4 --seeds 0-1,5 --steps 7")
    assert len(jobs) == 3 * 2 * 3
    assert jobs[0].name == "cube-single-play-task1/sorl/seed0"
    assert jobs[-1].name == "cube-single-play-task4/bc/seed5"
    assert jobs[-1].folder == "/out/cube-single-play-task4/bc/seed5"
    assert jobs[-1].config.steps == 7
    assert jobs[-1].env == "cube-single-play-singletask-task4-v0"
    assert len(plan(BASE)) == 2 * 5
    assert (
        len(
            plan(
                f"{BASE} --envs cube-single-play scene-play-v0 {CUBE.replace('single-play', 'double-play')}"
            )
        )
        == 22
    )


def test_the_commands_are_those_that_a_user_would_give():
    (job,) = plan(f"--methods sorl --envs {CUBE} --data /d --out /out --steps 7 --hidden 16")
    folder = "/out/cube-single-play-task2/sorl/seed0"
    train, evaluate = (shlex.join(words) for words in job.commands())
    assert train == (
        f"train --method sorl --env {CUBE} --data /d --out {folder} --seed 0 --steps 7 --hidden 16 --go-on"
    )
    assert evaluate == f"eval {folder} --episodes 50"
    train, evaluate = (shlex.join(words) for words in job.commands(3))
    assert "--threads 3 --workers 3" in train
    assert evaluate.endswith("--workers 3")
    assert Job.from_json(job.to_json()) == job
    for words in job.commands(3):  # the command line that it is for reads it
        make_parser("sorl").parse_args(words)


def test_a_flag_goes_to_the_methods_that_have_it():
    jobs = plan(
        f"{BASE} --tasks 1 --methods sorl bc fql --q-coef 3 --hidden 16 --flow-steps 2 --no-normalize-obs"
    )
    found = {job.method: job.agent for job in jobs}
    assert found == {
        "sorl": {"q_coef": 3.0, "hidden": 16, "normalize_obs": False},
        "bc": {"hidden": 16, "normalize_obs": False},
        "fql": {"hidden": 16, "normalize_obs": False, "flow_steps": 2},
    }


def test_a_method_with_settings_of_its_own_is_a_column_of_its_own():
    jobs = plan(
        f"{BASE} --tasks 1 --methods sorl sorl:sc_every=2,hidden=32,normalize_obs=true --hidden 16"
    )
    assert [job.name.split("/")[1] for job in jobs] == [
        "sorl",
        "sorl-sc_every=2-hidden=32-normalize_obs=true",
    ]
    assert [job.agent for job in jobs] == [
        {"hidden": 16},
        {"hidden": 32, "sc_every": 2, "normalize_obs": True},
    ]
    assert {job.method_name for job in jobs} == {"sorl"}


def test_each_method_is_evaluated_with_what_it_has():
    lists = (
        "--eval-steps 2 8 1/2,1/4,1/4 --candidates 1 8 --rules argmax medoid --eval-candidates 4"
    )
    counts = "--episodes 3 --precisions fp32 int8"
    jobs = plan(f"{BASE} --tasks 1 --methods sorl bc iql {lists} {counts}")
    found = {job.method: [job.evaluation(i) for i in range(2)] for job in jobs}
    for method, (fp32, int8) in found.items():
        assert (fp32.precision, int8.precision) == ("fp32", "int8")
        assert fp32.episodes == int8.episodes == 3
        assert fp32.steps == ((2, 8, "1/2,1/4,1/4") if method == "sorl" else None)
        assert fp32.candidates == ((1,) if method == "bc" else (1, 8))
        assert fp32.rules == (None if method == "bc" else ("argmax", "medoid"))
    periodic = {job.method: job.config.eval_candidates for job in jobs}
    assert periodic == {"sorl": (4,), "bc": (1,), "iql": (4,)}
    assert [job.evaluations for job in plan(f"{BASE} --tasks 1 --no-evaluate")] == [(), ()]


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_with_critics_are_those_whose_policies_have_some(name):
    small = (
        {"hidden": 4, "depth": 1} if name != "idql" else {"score": "mlp", "hidden": 4, "depth": 1}
    )
    required = {"sorl": {"q_coef": 1.0}, "fql": {"alpha": 1.0}}.get(name, {})
    agent = method_config(name, "mine", small | required)
    method = method_of(agent)
    policy = method.export(
        Learner(method, 3, 2, torch.Generator()), Export(3, 2, "mine", None, None)
    )
    assert has_critics(agent) == bool(policy.critic)


def test_own_data_have_no_tasks_and_no_evaluation(own_file):
    (job,) = plan(f"--methods bc --envs my-robot --data {own_file} --out /out")
    assert (job.name, job.evaluations, job.config.eval_every) == ("my-robot/bc/seed0", (), 0)


def test_a_file_of_flags_and_a_command_line_that_wins(tmp_path, own_file):
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'methods = ["sorl", "bc"]\nenvs = ["mine"]\nseeds = "0-1"\ndata = "{own_file}"\nout = "/out"\n'
        "steps = 5\nq_coef = 2.5\nnormalize-obs = true\neval_every = 0\n"
    )
    jobs = plan(f"--file {file} --steps 6 --seeds 3")
    assert [job.name for job in jobs] == ["mine/sorl/seed3", "mine/bc/seed3"]
    assert jobs[0].config.steps == 6
    assert jobs[0].agent == {"q_coef": 2.5, "normalize_obs": True}
    file.write_text("[table]\nx = 1\n")
    with pytest.raises(BadInput, match=r"table in .* is \{'x': 1\}, but must be a number, text"):
        plan(f"--file {file}")
    file.write_text("steps = \n")
    with pytest.raises(BadInput, match="cannot be read"):
        plan(f"--file {file}")


def test_numbers():
    assert numbers("seeds", ("0-3", "7,9")) == (0, 1, 2, 3, 7, 9)
    for words in (("x",), ("1-",), ("-1",), ("3-1",), ("1", "0-2"), ("",), ("0-99999",), ("²",)):
        with pytest.raises(BadInput, match="seeds"):
            numbers("seeds", words)


def test_gpus_mean_cuda():
    assert {job.config.device for job in plan(f"{BASE} --gpus 1")} == {"cuda"}
    assert {job.config.device for job in plan(BASE)} == {"cpu"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--methods sorl nosuch", "method is 'nosuch', but must be one of"),
        ("--methods sorl sorl", "methods is .* has each once"),
        ("--methods sorl:hidden", "methods is 'sorl:hidden', but must be NAME or NAME:FIELD=VALUE"),
        ("--methods sorl:out=../x", "methods is 'sorl:out=../x'"),
        ("--methods sorl:alpha=3", "sorl has no field 'alpha'"),
        (
            "--methods sorl bc --alpha 3",
            "--alpha is a flag of iql, fql, but this sweep trains sorl, bc",
        ),
        ("--xyzzy 3", "--xyzzy is no flag of a sweep, a run or a method: see"),
        ("--task 2", "--task is no flag of a sweep, a run or a method: did you mean --tasks"),
        ("--tasks 6", "tasks is 6, but must be from 1 to 5"),
        (f"--envs {CUBE} --tasks 1", "names its task itself"),
        ("--envs nosuch", "q_coef must be given"),
        ("--seeds 0-x", "seeds has '0-x'"),
        ("--hidden 0", "hidden is 0, but must be"),
        ("--steps -1", "steps is -1"),
        ("--episodes 0", "episodes is 0"),
        ("--precisions", "expected at least one"),
        ("--engine moon", "invalid choice"),
    ],
)
def test_what_is_wrong_is_named(text, says, capsys):
    with pytest.raises((BadInput, SystemExit)) as err:
        plan(f"{BASE} {text}")
    said = str(err.value) + capsys.readouterr().err
    assert re.search(says, said), said


def test_short_names_are_names_of_folders():
    assert short_name(CUBE) == "cube-single-play-task2"
    assert short_name("my robot/arm") == "my_robot_arm"
    assert variant_of("bc").folder == "bc"


def test_the_list_is_a_line_a_run(tmp_path, own_file, capsys):
    argv = f"sweep --methods bc --envs mine --seeds 0-2 --data {own_file} --out {tmp_path}/s --list"
    assert cli.main(argv.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("sorl-fast train --method bc") for line in lines)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("data", ["nosuch.npz", "nosuch"])
def test_data_are_looked_at_before_anything_is_made(tmp_path, data, capsys):
    envs = "mine" if data.endswith("npz") else "cube-single-play"
    argv = f"sweep --methods bc --envs {envs} --data {tmp_path}/{data} --out {tmp_path}/s"
    assert cli.main(argv.split()) == 2
    assert "no data file" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_method_that_reads_the_next_action_needs_data_that_say_it(tmp_path, own_file, capsys):
    with np.load(own_file) as file:
        arrays = {name: file[name] for name in file.files if name != "terminals"}
    np.savez(own_file, **arrays, next_observations=arrays["observations"])
    argv = f"sweep --methods bc rebrac --envs mine --data {own_file} --out {tmp_path}/s"
    assert cli.main(argv.split()) == 2
    assert "has no terminals" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_of_the_documents_are_plans(file):
    jobs = plan(f"--file {file}")
    assert jobs
    assert all(
        f"sorl-fast sweep --file docs/studies/{file.name} --methods {job.method}`" in RESULTS
        for job in jobs
    )
    assert {job.evaluation(0).episodes for job in jobs} == {50}


def test_the_documents_name_no_other_study():
    assert {*re.findall(r"docs/studies/([a-z-]+)\.toml", RESULTS)} == {
        p.stem for p in STUDIES.glob("*.toml")
    }
