"""`train --go-on`: one command that starts a run, goes on with it, and finds it done."""

import json

import pytest
from runs import agent, assert_same_run, config

from sorl_fast import cli
from sorl_fast.errors import BadInput
from sorl_fast.learn.run_folder import RunFolder
from sorl_fast.learn.train import train


def go_on(run, own_file, a=None, **changes):
    return train(a or agent(), config(own_file, run, **changes), resume=None, progress=False)


@pytest.mark.slow
def test_it_starts_goes_on_and_finds_it_done(own_file, tmp_path):
    train(agent(), config(own_file, tmp_path / "whole"), progress=False)
    run = tmp_path / "parts"
    for steps in (7, 40, 40):
        assert go_on(run, own_file, steps=steps).step == steps
    assert_same_run(tmp_path / "whole", run)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert [json.loads(x)["step"] for x in logs[0]] == [json.loads(x)["step"] for x in logs[1]]


@pytest.mark.parametrize(
    ("a", "changes", "says"),
    [
        (agent(hidden=9), {}, "hidden was 8 in .*, but is 9 now"),
        (agent(), {"seed": 5}, "seed was 0 in .*, but is 5 now"),
    ],
    ids=["hidden", "seed"],
)
def test_a_changed_setting_is_refused(own_file, tmp_path, a, changes, says):
    go_on(tmp_path / "run", own_file, steps=3)
    with pytest.raises(BadInput, match=says):
        go_on(tmp_path / "run", own_file, a, **changes)


def stopped_early(run):
    """Leave what a run leaves that is killed after its policy, but before its first checkpoint."""
    (run / "checkpoints").rename(run / "checkpoints.part")
    (run / "checkpoints.part" / "000000003").rename(run / "checkpoints.part" / ".000000003.x.part")
    (run / "checkpoints.part").rename(run / "checkpoints")


@pytest.mark.slow
def test_a_run_that_stopped_before_its_first_checkpoint_starts_anew(own_file, tmp_path, capsys):
    train(agent(), config(own_file, tmp_path / "whole"), progress=False)
    run = tmp_path / "run"
    go_on(run, own_file, agent(hidden=9), steps=3)  # whatever it was: nothing of it is left
    stopped_early(run)
    go_on(run, own_file)
    assert "was stopped before its first checkpoint: it starts anew" in capsys.readouterr().err
    assert_same_run(tmp_path / "whole", run)


@pytest.mark.parametrize("config_too", [False, True])
def test_a_folder_of_something_else_is_left_as_it_is(own_file, tmp_path, config_too):
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.tex").write_text("mine")
    if config_too:
        (run / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="exists and is not empty"):
        go_on(run, own_file)
    assert (run / "thesis.tex").read_text() == "mine"


def test_a_run_that_another_process_holds_is_not_cleared(own_file, tmp_path, monkeypatch):
    monkeypatch.setattr("sorl_fast.learn.train.LOCK_SECONDS", 0.1)
    run = tmp_path / "run"
    go_on(run, own_file, steps=3)
    stopped_early(run)
    with RunFolder(run, ()) as other:
        other.lock()
        with pytest.raises(BadInput, match="another process is training"):
            go_on(run, own_file)
    assert (run / "config.json").is_file()


def test_the_flag(own_file, tmp_path, capsys):
    argv = ["train", "--env", "mine", "--data", str(own_file), "--out", str(tmp_path / "run")]
    argv += ["--q-coef", "1", "--hidden", "8", "--depth=1", "--steps", "2", "--no-progress"]
    assert cli.main([*argv, "--go-on"]) == 0
    assert cli.main([*argv, "--go-on"]) == 0
    # unlike --resume, what is not on the command line is the default
    shorter = [word for word in argv if word != "--depth=1"]
    assert cli.main([*shorter, "--go-on"]) == 2
    assert "depth was 1" in capsys.readouterr().err
    assert cli.main([*argv, "--go-on", "--resume"]) == 2
    assert "--resume and --go-on were both given" in capsys.readouterr().err
