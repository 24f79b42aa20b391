"""Evaluations of policies with chunks: all actions of a chunk are done, and calls are counted apart."""

import json

import numpy as np
import pytest
from evaluating import MAZE, FakeWorkers, make_policy

from sorl_fast import BadInput, Sampler
from sorl_fast import recommend as advice
from sorl_fast.act import policy_file, timing
from sorl_fast.act.policy_file import Policy, loads, save
from sorl_fast.report.table import terminal_table
from sorl_fast.simulate import evaluate as module
from sorl_fast.simulate.episodes import Episode, Record, Task
from sorl_fast.simulate.evaluate import rollout

H, A = 3, 2


def chunked(env=MAZE, chunk=H) -> Policy:
    policy = make_policy(env, 4, H * A)
    fields = {name: getattr(policy, name) for name in policy.__dataclass_fields__}
    return Policy(**(fields | {"chunk": chunk}))


class Course:
    """Seven steps, observations in closed form; `done` keeps the actions, `blind` has no observation."""

    act_dim = A

    def __init__(self, blind=()):
        self.done, self.blind = [], blind

    def _seen(self):
        t = len(self.done)
        return np.full(4, np.nan if t in self.blind else 0.1 * t, np.float32)

    def reset(self, seed, episode):
        self.done.clear()
        return self._seen()

    def step(self, action):
        self.done.append(np.array(action))
        return self._seen(), -1.0, len(self.done) == 5, len(self.done) == 7


def test_all_actions_of_a_chunk_are_done_before_the_next_call():
    course, sampler = Course(), Sampler(chunked(), "numpy")
    episode = rollout(course, sampler, 2, 1, 9, 4)
    assert (episode.success, episode.length, episode.calls, episode.returned) == (True, 7, 3, -7)
    for start in (0, 3, 6):
        obs = np.full(4, 0.1 * start, np.float32)
        chunk = Sampler(chunked(), "numpy").act(obs, 2, seed=9, call=start, row_offset=4)
        np.testing.assert_array_equal(course.done[start : start + H], chunk[: 7 - start])
    sampler.reset()
    again = rollout(course, sampler, 2, 1, 9, 4)
    assert again[:3] == episode[:3]


def test_a_call_that_holds_is_made_again_a_step_later():
    course = Course(blind=(3, 4))
    episode = rollout(course, Sampler(chunked(), "numpy"), 2, 1, 9, 4)
    assert episode.calls == 4  # at 0, 3, 4 and 5
    np.testing.assert_array_equal(course.done[3], course.done[2])
    np.testing.assert_array_equal(course.done[4], course.done[2])
    assert (course.done[5] != course.done[2]).any()


def test_without_chunks_no_calls_are_told():
    policy = make_policy(MAZE, 4, A)
    episode = rollout(Course(), Sampler(policy, "numpy"), 2, 1, 9, 4)
    assert episode.calls == 0
    assert "calls" not in episode.to_json()


def test_the_dimensions_are_those_of_one_action():
    module.check_dims("env", Course(), chunked())
    with pytest.raises(
        BadInput, match=r"4 observations to 3 actions, but env has .* and 2 actions"
    ):
        module.check_dims("env", Course(), chunked(chunk=2))


def test_a_record_keeps_the_calls(tmp_path):
    context = dict.fromkeys(("policy", "env", "success_timing", "seed", "backend", "isa"), "x")
    context |= {"precision": "fp32", "versions": {}, "seed": 3}
    done = {
        Task(1, 1, 3, e): Episode(True, 7, -7.0, 0.5, calls) for e, calls in enumerate((3, 7, 0))
    }
    with Record(tmp_path / "record", context) as record:
        for task, episode in done.items():
            record.add(task, episode)
    assert Record(tmp_path / "record", context).done == done
    lines = (tmp_path / "record").read_text().splitlines()
    assert [json.loads(line).get("calls") for line in lines] == [3, 7, None]
    spoiled = [json.dumps(json.loads(lines[0]) | {"calls": n}) for n in (8, -1, 2.0, "3")]
    (tmp_path / "record").write_text("\n".join(spoiled) + "\n")
    assert Record(tmp_path / "record", context).done == {}


class Workers(FakeWorkers):
    """Episodes of 7 steps, 0.5 s in the policy."""

    def _run_all(self, policy, backend, tasks, kept, progress):
        for task in tasks:
            calls = 3 if loads(policy.file_bytes).chunk > 1 else 0
            kept.add(task, Episode(True, 7, -7.0, 0.5, calls))


@pytest.fixture
def evaluated(tmp_path):
    save(tmp_path / "policy.safetensors", chunked())
    with Workers(MAZE) as evaluator:
        result = evaluator.run(tmp_path / "policy.safetensors", (1, 2), (1,), 4, 0)
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    return tmp_path, result


def test_an_evaluation_counts_calls_and_actions_apart(evaluated):
    _, result = evaluated
    for row in result["rows"]:
        assert (row["chunk"], row["calls"], row["calls_per_second"]) == (H, 3, 6)
        assert (row["episode_length"], row["actions_per_second"]) == (7, 14)
    text = terminal_table(result)
    assert "actions (calls) per second" in text
    assert "14 (6.0)/s" in text


def test_an_evaluation_without_chunks_says_nothing_of_calls(tmp_path):
    save(tmp_path / "plain.safetensors", make_policy(MAZE, 4, A))
    with Workers(MAZE) as evaluator:
        result = evaluator.run(tmp_path / "plain.safetensors", (1,), (1,), 2, 0)
    assert not {"chunk", "calls", "calls_per_second"} & result["rows"][0].keys()
    assert "calls" not in terminal_table(result)


def test_recommend_has_a_budget_of_a_call_and_shows_both_rates(evaluated, monkeypatch):
    monkeypatch.setattr(timing, "LEAST_CALLS", 5)
    monkeypatch.setattr(timing, "WARM_UP", 1)
    monkeypatch.setattr(advice, "act_time", lambda *args, **more: timing.ActTime(250.0, 400.0))
    folder, _ = evaluated
    result = advice.recommend(folder, 500, precisions=("fp32",), threads=(1,), seconds=0)
    assert {option.chunk for option in result.options} == {H}
    assert result.choice.actions_per_second == 12_000
    text = advice.text(result)
    assert "of a call, which returns a chunk of h actions" in text
    assert "p99 400.0 us a call, of 3 actions." in text
    header, line = text.splitlines()[1:3]
    assert header.split()[-2:] == ["actions/s", "calls/s"]
    assert line.split()[8:10] == ["12,000", "4,000"]
    assert policy_file.load(folder / "policy.safetensors").chunk == H
