"""The loop: exact resume, SIGTERM, divergence, logs, evaluation that leaves training alone."""

import csv
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import own_arrays, some_fast
from runs import agent, assert_same_run, config, final_state

from sorl_fast import cli, ops
from sorl_fast.act import policy_file
from sorl_fast.errors import BadInput, Diverged
from sorl_fast.learn import train as train_module
from sorl_fast.learn.run_folder import RunFolder
from sorl_fast.learn.train import train
from sorl_fast.simulate.evaluate import Evaluator


def lanes():
    """Backends and precisions that this machine can train with."""
    yield "torch", "fp32"
    try:
        from sorl_fast.ops.native import isas
    except ImportError:
        return
    for precision in ("fp32", "bf16"):
        if isas(precision):
            yield "native", precision


@pytest.fixture(params=list(lanes()), ids=lambda lane: "-".join(lane))
def precision(request, monkeypatch):
    backend, precision = request.param
    monkeypatch.setenv("SORL_OPS", backend)
    yield precision
    ops.configure()


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", some_fast([1, 15, 33], 33), ids=lambda k: f"after{k}")
def test_resume_is_bit_for_bit(own_file, tmp_path, stop_at, precision):
    def once(out, **changes):
        return config(own_file, tmp_path / out, precision=precision, threads=2, **changes)

    train(agent(), once("whole"), progress=False)
    train(agent(), once("parts", steps=stop_at), progress=False)
    train(agent(), once("parts"), resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    train(agent(), once("again"), progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "again")


def test_resume_in_another_precision_is_refused(own_file, tmp_path):
    train(agent(), config(own_file, tmp_path / "run", steps=5), progress=False)
    with pytest.raises(BadInput, match="precision was 'fp32'"):
        train(
            agent(),
            config(own_file, tmp_path / "run", precision="bf16"),
            resume=True,
            progress=False,
        )


@pytest.mark.slow
def test_resume_with_a_normaliser_is_bit_for_bit(own_file, tmp_path):
    a = agent(normalize_obs=True)
    train(a, config(own_file, tmp_path / "whole"), progress=False)
    train(a, config(own_file, tmp_path / "parts", steps=7), progress=False)
    train(a, config(own_file, tmp_path / "parts"), resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    policy = policy_file.load(tmp_path / "whole" / "policy.safetensors")
    obs = own_arrays()["observations"]
    keep = ~own_arrays()["terminals"]
    np.testing.assert_allclose(policy.obs_mean, obs[keep].mean(0), atol=1e-6)
    np.testing.assert_allclose(policy.obs_std, obs[keep].std(0), rtol=1e-5)


@pytest.mark.slow
def test_a_kill_after_the_last_checkpoint_costs_only_its_updates(own_file, tmp_path):
    train(agent(), config(own_file, tmp_path / "whole"), progress=False)
    run = tmp_path / "killed"
    train(agent(), config(own_file, run, steps=30), progress=False)
    # what a SIGKILL leaves: lines beyond the newest checkpoint, the last of them torn
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 35, "critic_loss": 1.0}\n{"step": 4')
    train(agent(), config(own_file, run), resume=True, progress=False)
    assert_same_run(tmp_path / "whole", run)
    steps = [json.loads(x)["step"] for x in (run / "log.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 20, 30, 40, 40]


def test_logs_hold_every_metric_and_csv_equals_jsonl(own_file, tmp_path):
    result = train(
        agent(), config(own_file, tmp_path / "run"), command="the command", progress=False
    )
    lines = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [10, 20, 20, 30, 40, 40]
    assert {"fm_loss", "critic_grad_norm", "updates_per_second"} <= lines[0].keys()
    assert {"val_fm_loss", "val_sc_loss", "val_critic_loss", "val_q_loss"} <= lines[2].keys()
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["fm_loss"]) for r in rows if r["fm_loss"]] == [
        x["fm_loss"] for x in lines if "fm_loss" in x
    ]
    info = json.loads((tmp_path / "run" / "config.json").read_text())
    assert info["agent"]["hidden"] == 8
    assert info["command"] == "the command"
    assert info["data"]["transitions"] == 294
    assert result.step == 40
    assert result.last["step"] == 40


def test_intervals_of_zero_are_off(own_file, tmp_path):
    off = dict(log_every=0, val_every=0, checkpoint_every=0, steps=12)
    train(agent(), config(own_file, tmp_path / "run", **off), progress=False)
    assert (tmp_path / "run" / "log.jsonl").read_text() == ""
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000012"]


def test_zero_updates_still_leave_a_policy(own_file, tmp_path):
    train(agent(), config(own_file, tmp_path / "run", steps=0), progress=False)
    assert policy_file.load(tmp_path / "run" / "policy.safetensors").obs_dim == 4


@pytest.mark.slow
def test_equal_runs_give_equal_files_and_other_seeds_do_not(own_file, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(agent(), config(own_file, tmp_path / name, seed=seed), progress=False)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    policies = [(tmp_path / n / "policy.safetensors").read_bytes() for n in "ac"]
    assert policies[0] != policies[1]


class FakeEvaluator:
    """Stands in for the simulators; disturbs every global random state as a careless one might."""

    calls: list = []  # noqa: RUF012

    def __init__(self, env, **_):
        self.env = env

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def check(self, policy):
        assert policy.train_steps

    def run(self, path, steps, candidates, episodes, seed, progress=None, rules=()):
        policy_file.load(path)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        torch.rand(5)
        self.calls.append((tuple(steps), tuple(candidates), episodes))
        if progress:
            progress(1, 1)
        row = {"steps": 1, "candidates": 1, "episodes": episodes, "successes": 1, "success": 0.5}
        return {"env": self.env, "rows": [row | {"outcomes": "1".ljust(episodes, "0")}]}


@pytest.mark.slow
def test_periodic_evaluation_leaves_the_training_alone(own_file, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "Evaluator", FakeEvaluator)
    monkeypatch.setattr(FakeEvaluator, "calls", [])
    train(agent(m_disc=4, m_btt=4), config(own_file, tmp_path / "without"), progress=False)
    with_eval = config(own_file, tmp_path / "with", eval_every=10, eval_episodes=3)
    result = train(agent(m_disc=4, m_btt=4), with_eval, progress=False)
    assert_same_run(tmp_path / "without", tmp_path / "with")
    assert FakeEvaluator.calls == [((1, 2, 4), (1,), 3)] * 4
    lines = (tmp_path / "with" / "eval.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [10, 20, 30, 40]
    assert result.evaluation["rows"][0]["success"] == 0.5


def test_arguments_in_the_wrong_order_are_named(own_file, tmp_path):
    with pytest.raises(BadInput, match=r"agent is a TrainConfig, .*train\(agent, config\)"):
        train(config(own_file, tmp_path / "run"), agent())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, r"'mine' cannot be simulated: .* --eval-every 0"),
        ({"eval_steps": (17, 32)}, r"eval_steps is 17 32, but .* 1, 2, 4, 8 Euler steps"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_anything_is_made(
    own_file, tmp_path, changes, says
):
    with pytest.raises(BadInput, match=says):
        train(agent(), config(own_file, tmp_path / "run", eval_every=40, **changes), progress=False)
    assert not (tmp_path / "run").exists()
    # one that is never due is nobody's business
    train(agent(), config(own_file, tmp_path / "run", eval_every=41, **changes), progress=False)


def test_a_policy_that_nothing_here_can_sample_is_refused_before_anything_is_made(
    own_file, tmp_path, monkeypatch
):
    def refuse(evaluator, policy):
        raise BadInput("SORL_CPU_ISA is 'amx', which samples in bf16 only")

    monkeypatch.setattr(Evaluator, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(Evaluator, "close", lambda _: None)
    monkeypatch.setattr(Evaluator, "check", refuse)
    with pytest.raises(BadInput, match="SORL_CPU_ISA is 'amx'"):
        train(agent(), config(own_file, tmp_path / "run", eval_every=40), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("nonsense-singletask-task1-v0", "no environment for 'nonsense-singletask-task1-v0'"),
        ("cube-single-play-singletask-task2-v0", r"maps 4 observations to 2 actions, but cube"),
    ],
    ids=["none", "another size"],
)
def test_an_environment_that_the_policy_does_not_fit_is_refused_before_anything_is_made(
    own_file, tmp_path, env, says
):
    run = config(own_file, tmp_path / "run", env=env, eval_every=40)
    with pytest.raises(BadInput, match=says):
        train(agent(), run, progress=False)
    assert not (tmp_path / "run").exists()
    assert multiprocessing.active_children() == []
    train(agent(), replace(run, eval_every=0), progress=False)  # then it is only a label
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(BadInput, match=says):
        train(agent(), replace(run, steps=80), resume=True, progress=False)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_run_that_stopped_before_its_first_checkpoint(own_file, tmp_path):
    run = tmp_path / "run"
    train(agent(), config(own_file, run), progress=False)
    with pytest.raises(BadInput, match=r"not empty\. Continue it with --resume, or choose"):
        train(agent(), config(own_file, run), progress=False)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(BadInput, match="before its first checkpoint: remove it, or choose"):
        train(agent(), config(own_file, run), progress=False)
    with pytest.raises(BadInput, match="nothing to resume"):
        train(agent(), config(own_file, run), resume=True, progress=False)
    (run / "config.json").unlink()
    with pytest.raises(BadInput, match=r"not empty\. Choose another folder"):
        train(agent(), config(own_file, run), progress=False)


@pytest.mark.slow
def test_an_evaluation_that_was_cut_short_is_made_up_for(own_file, tmp_path, monkeypatch):
    class Broken(FakeEvaluator):
        def run(self, *args, **kwargs):
            if len(self.calls) == 1:
                raise BadInput("a simulator process ended")
            return super().run(*args, **kwargs)

    monkeypatch.setattr(train_module, "Evaluator", Broken)
    monkeypatch.setattr(FakeEvaluator, "calls", [])
    often = config(own_file, tmp_path / "run", eval_every=10, checkpoint_every=10)
    with pytest.raises(BadInput, match="a simulator process ended"):
        train(agent(), often, progress=False)
    monkeypatch.setattr(train_module, "Evaluator", FakeEvaluator)
    train(agent(), often, resume=True, progress=False)
    lines = (tmp_path / "run" / "eval.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [10, 20, 30, 40]
    train(agent(), config(own_file, tmp_path / "whole", checkpoint_every=10), progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_an_evaluation_that_fails_loses_no_update(own_file, tmp_path, monkeypatch):
    class Broken(FakeEvaluator):
        def run(self, *args, **kwargs):
            raise BadInput("a simulator process ended")

    monkeypatch.setattr(train_module, "Evaluator", Broken)
    run = config(own_file, tmp_path / "run", eval_every=20, checkpoint_every=0)
    with pytest.raises(BadInput, match="a simulator process ended"):
        train(agent(), run, progress=False)
    assert final_state(tmp_path / "run").step == 20
    # it may be resumed without evaluations, also that one
    for more in ({"eval_every": 0}, {"eval_every": 1000}, {"steps": 5, "eval_every": 20}):
        train(agent(), replace(run, **more), resume=True, progress=False)
    assert final_state(tmp_path / "run").step == 40


@pytest.mark.slow
def test_one_training_at_a_time_in_a_folder(own_file, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "LOCK_SECONDS", 0.0)
    run = config(own_file, tmp_path / "run")
    train(agent(), run, progress=False)
    with RunFolder(tmp_path / "run", ()) as other:
        other.lock()
        with pytest.raises(BadInput, match="another process is training in"):
            train(agent(), run, resume=True, progress=False)
        monkeypatch.setattr(train_module, "LOCK_SECONDS", 30.0)
        threading.Timer(0.5, other.__exit__).start()
        train(agent(), run, resume=True, progress=False)  # waits
    with RunFolder(tmp_path / "new", ()) as other:
        (tmp_path / "new").mkdir()
        other.lock()
        with pytest.raises(BadInput, match="another process is training in"):
            train(agent(), config(own_file, tmp_path / "new"), progress=False)
    train(agent(), config(own_file, tmp_path / "new"), progress=False)


@pytest.mark.parametrize("resume", [False, True], ids=["new", "resumed"])
def test_a_mount_that_cannot_rename_folders_is_found_out_at_once(
    own_file, tmp_path, monkeypatch, resume
):
    run = config(own_file, tmp_path / "run")
    if resume:
        train(agent(), replace(run, steps=5), progress=False)
    before = sorted(tmp_path.rglob("*"))
    real = os.rename

    def no_folders(source, target):
        if Path(source).is_dir():
            raise OSError(errno.ENOTSUP, "Operation not supported")
        real(source, target)

    def update(*_):
        raise AssertionError("an update was made that could not be saved")

    monkeypatch.setattr(os, "rename", no_folders)
    monkeypatch.setattr(train_module._PlainUpdates, "make", update)
    with pytest.raises(BadInput, match="rename it: Operation not supported"):
        train(agent(), run, resume=resume, progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_system_without_locks_is_trained_on(own_file, tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    run = config(own_file, tmp_path / "run", steps=5)
    with pytest.warns(RuntimeWarning, match="Function not implemented"):
        train(agent(), run, progress=False)
    with pytest.warns(RuntimeWarning, match="Function not implemented"):
        train(agent(), replace(run, steps=10), resume=True, progress=False)


@pytest.mark.parametrize(("terminal", "shown"), [(False, True), (False, False), (True, True)])
def test_a_log_gets_a_line_a_log_interval_and_no_bar(
    own_file, tmp_path, monkeypatch, capsys, terminal, shown
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    train(agent(), config(own_file, tmp_path / "run"), progress=shown)
    err = capsys.readouterr().err
    if terminal:
        assert "\r" in err
        return
    said, *lines = err.splitlines()
    assert "\r" not in err
    assert said.startswith("out-of-distribution bit: ")  # is no progress, and said to all
    assert len(lines) == (5 if shown else 0)
    assert not shown or lines.pop(0).startswith("sorl: updates 1 to 40, ")
    for step, line in zip((10, 20, 30, 40), lines, strict=False):
        assert line.startswith(f"update {step} of 40: critic ")
        assert line.endswith(" updates/s")


@pytest.mark.slow
def test_a_nonfinite_loss_stops_and_names_the_culprit(own_file, tmp_path, monkeypatch):
    real = train_module.Learner.update

    def update(self, batch, noise, choice):
        metrics = real(self, batch, noise, choice)
        if self.optimisers["actor"].steps >= 33:
            metrics[3] = torch.nan  # sc_loss
        return metrics

    monkeypatch.setattr(train_module.Learner, "update", update)
    with pytest.raises(Diverged, match=r"sc_loss became nan at update 33; .*000000030\. Lower"):
        train(agent(), config(own_file, tmp_path / "run"), progress=False)
    assert final_state(tmp_path / "run").step == 30
    policy_file.load(tmp_path / "run" / "policy.safetensors")


def test_real_divergence_exits_with_3(tmp_path, capsys):
    arrays = own_arrays() | {"rewards": np.full(300, 3e38, np.float32)}
    np.savez(tmp_path / "big.npz", **arrays)
    argv = ["train", "--env", "mine", "--data", str(tmp_path / "big.npz"), "--q-coef", "1"]
    argv += ["--hidden", "8", "--steps", "20", "--eval-every", "0", "--out", str(tmp_path / "run")]
    assert cli.main(argv) == 3
    err = capsys.readouterr().err
    assert "critic_loss became inf at update 1" in err
    assert "no checkpoint yet" in err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"agent": {"hidden": 16}}, "hidden was 8"),
        ({"agent": {"critic_lr": 1.0}}, "critic_lr was 0.0001"),
        ({"seed": 9}, "seed was 0"),
        ({"env": "other"}, "env was 'mine'"),
        ({"data": "other"}, "not those that"),
    ],
    ids=["hidden", "critic_lr", "seed", "env", "data"],
)
def test_resume_refuses_another_experiment(own_file, tmp_path, changes, says):
    out = tmp_path / "run"
    train(agent(), config(own_file, out, steps=5), progress=False)
    other = agent(**changes.pop("agent", {}))
    if "data" in changes:
        np.savez(own_file.with_name("other.npz"), **own_arrays(seed=7))
        changes["data"] = str(own_file.with_name("other.npz"))
    before = (out / "config.json").read_bytes()
    with pytest.raises(BadInput, match=says):
        train(other, config(own_file, out, **changes), resume=True, progress=False)
    assert (out / "config.json").read_bytes() == before


def test_resume_from_the_command_line_needs_only_the_folder_and_the_total(own_file, tmp_path):
    flags = ["train", "--env", "mine", "--data", str(own_file), "--q-coef", "1", "--hidden", "8"]
    flags += ["--depth", "1", "--eval-every", "0", "--threads", "1", "--batch-size", "16"]
    assert cli.main([*flags, "--steps", "9", "--out", str(tmp_path / "parts")]) == 0
    again = ["train", "--out", str(tmp_path / "parts"), "--steps", "20", "--resume"]
    assert cli.main(again) == 0
    assert cli.main([*flags, "--steps", "20", "--out", str(tmp_path / "whole")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert cli.main([*again, "--hidden", "16"]) == 2


def test_a_folder_in_use_is_not_overwritten(own_file, tmp_path):
    train(agent(), config(own_file, tmp_path / "run", steps=2), progress=False)
    with pytest.raises(BadInput, match="--resume"):
        train(agent(), config(own_file, tmp_path / "run"), progress=False)


def test_resume_needs_a_run(own_file, tmp_path):
    with pytest.raises(BadInput, match=r"no .*config\.json"):
        train(agent(), config(own_file, tmp_path / "nothing"), resume=True, progress=False)


def test_an_unusable_device_is_named(own_file, tmp_path):
    with pytest.raises(BadInput, match="--device nonsense"):
        train(agent(), config(own_file, tmp_path / "run", device="nonsense"), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_a_clear_error_and_the_checkpoint_stays(own_file, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train(agent(), config(own_file, out, steps=15), progress=False)
    real = type(out).open

    def full(self, mode="r", *args, **kwargs):
        if self.name == "log.jsonl" and mode == "a":
            raise OSError(28, "No space left on device")
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(type(out), "open", full)
    with pytest.raises(BadInput, match=r"log\.jsonl: No space left on device\. .*--resume"):
        train(agent(), config(own_file, out), resume=True, progress=False)
    monkeypatch.undo()
    train(agent(), config(own_file, out), resume=True, progress=False)
    assert final_state(out).step == 40


@pytest.mark.slow
def test_tensorboard_events_are_written(own_file, tmp_path):
    pytest.importorskip("tensorboard")
    train(agent(), config(own_file, tmp_path / "run", tensorboard=True), progress=False)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


@pytest.mark.parametrize("fails", [False, True], ids=["well", "an exception"])
def test_a_training_leaves_the_process_as_it_was(own_file, tmp_path, precision, fails):
    torch.set_num_threads(2)
    ops.configure(threads=2)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run = config(own_file, tmp_path / "run", steps=5, threads=1, precision=precision)
    if fails:
        run = replace(run, data=str(tmp_path / "none.npz"))
        with pytest.raises(BadInput, match="no data file"):
            train(agent(), run, progress=False)
    else:
        train(agent(), run, progress=False)
    assert torch.get_num_threads() == 2
    assert ops._precision["cpu"] == "fp32"
    assert ops._threads == (2 if ops.backend() == "native" else 1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_sigterm_saves_within_10_seconds_and_resumes_exactly(own_file, tmp_path, number):
    def command(out, steps, *more):
        flags = {
            **{"--env": "mine", "--data": own_file, "--q-coef": 1, "--hidden": 8, "--depth": 1},
            **{"--batch-size": 16, "--eval-every": 0, "--log-every": 10, "--checkpoint-every": 0},
            **{"--threads": 1, "--steps": steps, "--out": out},
        }
        words = [str(w) for pair in flags.items() for w in pair]
        return [sys.executable, "-m", "sorl_fast.cli", "train", *words, *more]

    out = tmp_path / "run"
    child = subprocess.Popen(command(out, 10**9), stderr=subprocess.PIPE, text=True)
    log = out / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(number)
    _, err = child.communicate(timeout=10)
    assert child.returncode == 75, err
    assert "--resume" in err
    step = final_state(out).step
    assert step > 0
    subprocess.run(command(out, step + 25, "--resume"), check=True, capture_output=True)
    subprocess.run(command(tmp_path / "whole", step + 25), check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", out)
