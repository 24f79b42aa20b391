"""What every method trains acts: the authors' own actions, and policies of the trainer."""

import json
from pathlib import Path

import golden
import golden_methods
import numpy as np
import pytest
import torch
from conftest import own_arrays, some_fast
from tolerances import FLOAT32, GOLDEN

from sorl_fast import Sampler, cli, ops
from sorl_fast.act import policy_file
from sorl_fast.act.form import Tanh
from sorl_fast.learn.algorithms import METHODS, find_method, method_config, method_of
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.method import Export

FOLDER = Path(__file__).parents[1] / "golden"
OTHERS = [name for name in METHODS if name != "sorl"]
FORMS = {
    "bc": ("direct", 1), "iql": ("direct", 1), "ifql": ("euler", 10), "rebrac": ("tanh", 1),
    "fql": ("direct", 1), "idql": ("residual diffusion", 5),
}  # fmt: skip
ABLE = pytest.mark.parametrize("backend", ["numpy", "torch"])


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.delenv("SORL_BACKEND", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    ops.configure()


# --- the authors' actions


def exported(method, monkeypatch):
    """Return the policy of a golden file's networks, and the file's arrays."""
    found = []
    made = golden_methods.File.__init__

    def keep(file, *args):
        made(file, *args)
        found.append(file)

    monkeypatch.setattr(golden_methods.File, "__init__", keep)
    arrays = golden_methods.Arrays(golden.read(FOLDER / f"{method}_small.npz")[1])
    golden_methods.CHECKS[method](arrays, lambda *args, **more: None)
    file = found[0]  # the others have other options
    about = Export(file.O, file.A, "golden", None, None)
    policy = file.learner.method.export(file.learner, about)
    # as a file, which is what acts
    policy = policy_file.loads(policy_file.dumps(policy))
    return policy, {k: v.numpy() for k, v in arrays.items() if k.startswith("sample/")}


def close(ours, theirs):
    assert np.abs(ours - theirs).max() <= GOLDEN * max(1.0, np.abs(theirs).max())


@ABLE
@pytest.mark.parametrize("method", ["bc", "iql", "rebrac"])
def test_the_authors_actions_with_and_without_noise(method, backend, monkeypatch):
    policy, figures = exported(method, monkeypatch)
    sampler = Sampler(policy, backend)
    obs, noise = figures["sample/obs"], figures["sample/noise"][:, None]
    close(sampler.act(obs, noise=noise), figures["sample/mode"])
    close(sampler.act(obs, noise=noise, temperature=1.0), figures["sample/action"])
    assert np.abs(figures["sample/mode"] - figures["sample/action"]).max() > 0.1


@ABLE
def test_the_authors_actions_of_fql(backend, monkeypatch):
    policy, figures = exported("fql", monkeypatch)
    obs, noise = figures["sample/obs"], figures["sample/noise"][:, None]
    close(Sampler(policy, backend).act(obs, noise=noise), figures["sample/action"])


@ABLE
@pytest.mark.parametrize("method", ["ifql", "idql"])
def test_the_authors_best_of_n(method, backend, monkeypatch):
    policy, figures = exported(method, monkeypatch)
    sampler = Sampler(policy, backend)
    groups = sorted({key.rsplit("/", 1)[0] for key in figures})
    assert len(groups) >= 5
    chosen = set()
    for group in groups:
        of = {k.rsplit("/", 1)[1]: v for k, v in figures.items() if k.startswith(f"{group}/")}
        noise = of["noise"] if method == "ifql" else np.concatenate([of["x"][None], of["z"]])
        if method == "idql":  # the last step's noise is never read, and so not asked for
            noise = noise[: policy.draws].swapaxes(0, 1)
        N = len(of["candidates"])
        action, info = sampler.act(of["obs"], None, N, noise=noise, return_info=True)
        close(action, of["action"])
        close(info.q, of["q"].max())
        assert info.candidate == of["q"].argmax()
        for n in range(N):
            close(sampler.act(of["obs"], noise=noise[n : n + 1]), of["candidates"][n])
        chosen.add(info.candidate)
    assert len(chosen) > 1


# --- policies of the trainer

SMALL = {
    "fql": ("--alpha", "10"),
    "idql": ("--residual-hidden", "8", "--residual-frequencies", "4"),
    "idql-mlp": ("--score", "mlp"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", some_fast([*OTHERS, "idql-mlp"], "bc", "idql"))
def test_what_it_trains_acts_on_numpy_and_torch(name, own_file, tmp_path, capsys):
    method, out = name.removesuffix("-mlp"), tmp_path / "run"
    argv = [
        "train",
        "--method",
        method,
        "--env",
        "mine",
        "--data",
        str(own_file),
        "--out",
        str(out),
    ]
    argv += [
        "--steps",
        "20",
        "--batch-size",
        "16",
        "--threads",
        "1",
        "--log-every",
        "10",
        "--no-progress",
    ]
    sizes = () if name == "idql" else ("--hidden", "8", "--depth", "2")
    assert cli.main([*argv, "--normalize-obs", *sizes, *SMALL.get(name, ())]) == 0
    policy = policy_file.load(out / "policy.safetensors")
    kind, M = ("diffusion", 5) if name == "idql-mlp" else FORMS[method]
    assert policy.form.name == kind
    assert policy.train_steps == (M,)
    assert policy.obs_mean is not None
    assert policy.config["batch_size"] == 16
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    N = 1 if method == "bc" else 4
    a, b = (
        Sampler(policy, backend).act(obs, candidates=N, seed=3) for backend in ("numpy", "torch")
    )
    np.testing.assert_allclose(a, b, rtol=0, atol=FLOAT32)
    assert np.isfinite(a).all()
    assert cli.main(["inspect", str(out)]) == 0
    assert f'"kind": "{policy.form.kind}"' in capsys.readouterr().out
    assert cli.main(["report", str(out), "--out", str(tmp_path / "report")]) == 0


@pytest.mark.parametrize("name", METHODS)
def test_config_and_policy_name_the_same_steps(name):
    small = {"hidden": 4, "depth": 1} | {"sorl": {"q_coef": 1.0}, "fql": {"alpha": 1.0}}.get(
        name, {}
    )
    config = method_config(name, "mine", small)
    learner = Learner(method_of(config), 3, 2, torch.Generator().manual_seed(0))
    policy = learner.method.export(learner, Export(3, 2, "e", None, None))
    assert policy.train_steps == config.train_steps
    assert (policy.critic == ()) == (name == "bc")


@pytest.mark.slow
def test_fql_and_ifql_are_evaluated_in_the_simulator(tmp_path, capsys):
    env, out = "cube-single-play-singletask-task2-v0", tmp_path / "run"
    np.savez(tmp_path / "mine.npz", **own_arrays(T=60, O=28, A=5))
    for method in ("fql", "ifql"):
        out = tmp_path / method
        argv = ["train", "--method", method, "--env", env, "--data", str(tmp_path / "mine.npz")]
        argv += [
            "--out",
            str(out),
            "--steps",
            "3",
            "--hidden",
            "8",
            "--depth",
            "2",
            "--workers",
            "1",
        ]
        every = ["--eval-every", "3", "--eval-episodes", "1"] if method == "ifql" else []
        assert cli.main([*argv, "--eval-every", "0", *every, "--threads", "1"]) == 0
        grid = ["--episodes", "1", "--workers", "1", "--candidates", "2"]
        assert cli.main(["eval", str(out), *grid]) == 0
        (row,) = json.loads((out / "evaluation.json").read_text())["rows"]
        assert (row["steps"], row["candidates"]) == (FORMS[method][1], 2)
    assert '"steps": 10' in (out / "eval.jsonl").read_text()
    runs = [str(tmp_path / method) for method in ("fql", "ifql")]
    assert cli.main(["report", *runs, "--out", str(tmp_path / "report")]) == 0
    assert cli.main(["recommend", runs[0], "--budget-us", "1e9", "--no-progress"]) == 0
    said = capsys.readouterr().out
    assert "the best is M = 1, N = " in said
    assert "numpy backend" not in said


def test_evaluations_that_the_policy_cannot_make_are_refused_before_training(
    own_file, tmp_path, capsys
):
    argv = ["train", "--method", "bc", "--env", "cube-single-play-singletask-task2-v0"]
    argv += [
        "--data",
        str(own_file),
        "--out",
        str(tmp_path / "run"),
        "--hidden",
        "8",
        "--depth",
        "2",
    ]
    assert cli.main([*argv, "--eval-candidates", "1", "4"]) == 2
    assert "candidates has 4, but the policy has no critic" in capsys.readouterr().err
    assert cli.main([*argv, "--eval-steps", "2"]) == 2
    assert "eval_steps is 2, but this policy will act with 1 " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_idql_acts_by_the_averages_and_the_target_critics():
    config = method_config("idql", "mine", {"extra_steps": 2})
    learner = Learner(method_of(config), 3, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for network in learner.networks.values():
            for x in network.parameters():
                x += 1
    policy = learner.method.export(learner, Export(3, 2, "e", None, None))
    for ours, network in ((policy.actor, "actor"), (policy.critic, "critic")):
        for a, b in zip(ours, learner.targets[network].arrays(), strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
    assert policy.form.times == (4, 3, 2, 1, 0, 0, 0)
    assert policy.train_steps == (7,)
    assert policy.draws == 5


def test_rebracs_noise_has_the_deviation_and_the_bound_of_training():
    config = method_config("rebrac", "mine", {"hidden": 4, "depth": 1, "actor_noise_clip": 0.25})
    learner = Learner(method_of(config), 3, 2, torch.Generator().manual_seed(0))
    policy = learner.method.export(learner, Export(3, 2, "e", None, None))
    assert policy.form == Tanh(reads_noise=False, noise_scale=0.2, noise_clip=0.25)


def test_rebracs_noise_with_a_bound_of_0_is_none():
    config = method_config("rebrac", "mine", {"hidden": 4, "depth": 1, "actor_noise_clip": 0.0})
    learner = Learner(method_of(config), 3, 2, torch.Generator().manual_seed(0))
    policy = learner.method.export(learner, Export(3, 2, "e", None, None))
    obs = np.ones((4, 3), np.float32)
    sampler = Sampler(policy)
    np.testing.assert_array_equal(
        sampler.act(obs, seed=1, temperature=5.0), sampler.act(obs, seed=1)
    )


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        ("ifql", "flow_steps", 1025),
        ("idql", "diffusion_steps", 256),
        ("idql", "residual_blocks", 65),
    ],
)
def test_what_a_policy_file_could_not_hold_is_refused_before_training(method, field, value):
    assert field in find_method(method).Config.__dataclass_fields__
    with pytest.raises(policy_file.BadInput, match=rf"{field} is {value}, but must be at most"):
        method_config(method, "mine", {field: value})
