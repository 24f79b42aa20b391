"""A run's folder is the same one from any working directory."""

import json

import pytest

from sorl_fast.config import TrainConfig
from sorl_fast.learn.algorithms.sorl import SorlConfig
from sorl_fast.learn.run_folder import RunFolder


def made(folder, data, out):
    """Write config.json as it is in `folder`, with these paths in it."""
    folder.mkdir(parents=True, exist_ok=True)
    train = TrainConfig(env="mine", data=data, out=out).to_dict()
    info = {"agent": SorlConfig(q_coef=1.0).to_dict(), "train": train}
    (folder / "config.json").write_text(json.dumps(info))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with data, and the working directory elsewhere."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "my.npz").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def read(folder):
    _, train, _ = RunFolder(folder, ()).read_config()
    return train.data, train.out


@pytest.mark.parametrize("out", ["runs/mine", "./runs//mine/", "runs/other/../mine"])
@pytest.mark.parametrize("named", ["absolute", "relative"])
def test_data_of_a_run_with_relative_paths_are_found_from_elsewhere(project, out, named):
    run = project / "runs" / "mine"
    made(run, "my.npz", out)
    given = run if named == "absolute" else "../project/runs/mine"
    assert read(given) == (str(project / "my.npz"), str(run))


def test_a_run_made_in_the_working_directory_itself(project):
    made(project, "my.npz", ".")
    assert read(project)[0] == str(project / "my.npz")


def test_a_run_behind_a_symbolic_link(project):
    disk = project.parent / "disk"
    made(disk / "mine", "my.npz", "runs/mine")
    (project / "runs").symlink_to(disk)
    assert read(project / "runs" / "mine")[0] == str(project / "my.npz")


def test_where_nothing_tells_relative_data_are_those_of_the_working_directory(project):
    made(project / "moved", "my.npz", "runs/mine")
    assert read(project / "moved")[0] == str(project.parent / "elsewhere" / "my.npz")


def test_absolute_and_home_paths_stay(project, monkeypatch):
    made(project / "run", "/data/my.npz", str(project / "run"))
    assert read(project / "run") == ("/data/my.npz", str(project / "run"))
    monkeypatch.setenv("HOME", str(project))
    made(project / "run", "~/my.npz", "~/run")
    assert read("~/run") == (str(project / "my.npz"), str(project / "run"))
