"""`train --eval-rules`: the last evaluation's choice is in the policy file, the log and the terminal."""

import json
from dataclasses import replace

import pytest
from runs import agent, config

from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.policy_file import dumps, load
from sorl_fast.config import TrainConfig
from sorl_fast.errors import BadInput
from sorl_fast.learn import train as train_module
from sorl_fast.learn.train import train
from sorl_fast.simulate.episodes import Episode
from sorl_fast.simulate.evaluate import _row, grid


class FakeEvaluator:
    """Cells whose even episodes succeed by `good`, and whose odd ones never do."""

    good: dict = {}  # noqa: RUF012 - rule and M -> successes of the even episodes

    def __init__(self, env, **_):
        self.env = env

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def check(self, policy):
        pass

    def run(self, path, steps, candidates, episodes, seed, progress=None, rules=()):
        assert load(path).choice is None  # each is evaluated as it was trained
        rows = []
        for cell in grid(steps, candidates, rules):
            k = self.good.get((cell.steps, cell.rule if cell.candidates > 1 else "one"), 0)
            wins = [e % 2 == 0 and e // 2 < k for e in range(episodes)]
            rows.append(_row(cell, [Episode(win, 9, -1.0, 0.5) for win in wins]))
        return {"env": self.env, "rows": rows}


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(train_module, "Evaluator", FakeEvaluator)
    monkeypatch.setattr(
        FakeEvaluator,
        "good",
        {(4, "one"): 5, (4, "argmax"): 1, (4, "medoid:1/2"): 9, ("1/2,1/4,1/4", "one"): 6},
    )


def evaluated(own_file, out, **more):
    grid = {"eval_steps": (4, "1/2,1/4,1/4"), "eval_candidates": (1, 8), "eval_episodes": 20}
    return config(own_file, out, eval_every=20, **(grid | more))


@pytest.mark.slow
def test_the_last_evaluation_chooses(own_file, tmp_path, capsys):
    run = evaluated(own_file, tmp_path / "run", eval_rules=("argmax", "medoid"))
    result = train(agent(), run, progress=False)
    chosen = PolicyChoice(steps=4, candidates=8, rule="medoid")
    assert load(tmp_path / "run" / "policy.safetensors").choice == chosen
    lines = [json.loads(x) for x in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40]
    assert "choice" not in lines[0]
    assert lines[1]["choice"] == chosen.to_json() | {"seen": [9, 10], "told": [0, 10]}
    assert result.evaluation == lines[1]
    said = capsys.readouterr().err
    assert "M=4 N=8 medoid:1/2 45%" in said
    assert "keeps M = 4, N = 8, medoid:1/2: chosen by 9 of 10, and 0 of the other 10" in said
    train(agent(), config(own_file, tmp_path / "without"), progress=False)
    kept, plain = (load(tmp_path / name / "policy.safetensors") for name in ("run", "without"))
    assert dumps(replace(kept, choice=None)) == dumps(plain)


def test_a_finished_run_gives_its_policy_again_with_its_choice(own_file, tmp_path):
    run = evaluated(own_file, tmp_path / "run", eval_rules=("argmax", "medoid"))
    file = train(agent(), run, progress=False).policy
    whole = file.read_bytes()
    file.unlink()
    train(agent(), run, resume=True, progress=False)
    assert file.read_bytes() == whole


def test_without_an_evaluation_nothing_is_chosen(own_file, tmp_path):
    run = replace(evaluated(own_file, tmp_path / "run"), eval_every=0)
    assert train(agent(), run, progress=False).evaluation is None
    assert load(tmp_path / "run" / "policy.safetensors").choice is None


def test_the_defaults_are_not_written_as_a_choice(own_file, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeEvaluator, "good", {(1, "one"): 9})
    run = evaluated(own_file, tmp_path / "run", eval_rules=("argmax",), eval_steps=(1, 4))
    assert train(agent(), run, progress=False).evaluation["choice"]["steps"] == 1
    assert load(tmp_path / "run" / "policy.safetensors").choice is None


def test_a_run_that_goes_on_chooses_again(own_file, tmp_path):
    first = evaluated(own_file, tmp_path / "run", steps=20, eval_rules=("medoid",))
    train(agent(), first, progress=False)
    assert load(tmp_path / "run" / "policy.safetensors").choice is not None
    more = evaluated(own_file, tmp_path / "run", steps=30, eval_rules=("medoid",))
    result = train(agent(), more, resume=True, progress=False)
    assert result.evaluation["step"] == 30  # no multiple of 20, but the end
    assert "choice" in result.evaluation
    again = evaluated(own_file, tmp_path / "run", steps=40, eval_rules=("medoid",))
    assert "choice" in train(agent(), again, resume=True, progress=False).evaluation


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"eval_rules": ("best",)}, "rules is 'best', but must be one of argmax"),
        ({"eval_rules": ("medoid", "medoid:1/2")}, "twice"),
        ({"eval_steps": ("1/2,1/4",)}, "eval_steps is 0.5,0.25, which sums to 0.75"),
        ({"eval_steps": (2, "1/2,1/2")}, "twice"),
        ({"eval_candidates": (1, 4097)}, "eval_candidates is 4097, but must be at most 4096"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_made(
    own_file, tmp_path, changes, says
):
    with pytest.raises(BadInput, match=says):
        train(agent(), evaluated(own_file, tmp_path / "run", **changes), progress=False)
    assert not (tmp_path / "run").exists()


def test_the_config_goes_round():
    made = TrainConfig(
        env="e", data="d", out="o", eval_steps=(4, "1/2,1/4,1/4"), eval_rules=("medoid",)
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    plain = TrainConfig(env="e", data="d", out="o")
    assert TrainConfig.from_dict(json.loads(json.dumps(plain.to_dict()))) == plain


@pytest.mark.slow
def test_a_training_without_an_evaluation_says_how_its_policy_acts(own_file, tmp_path):
    said = str(train(agent(), config(own_file, tmp_path / "run")))
    assert "acts: with 1 Euler step and one candidate, unless a call says more (steps=" in said
    assert "acts" not in str(train(agent(), evaluated(own_file, tmp_path / "evaluated")))
