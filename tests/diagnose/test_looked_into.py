"""Episodes that are looked into, with a simulator in closed form and, slow, with OGBench's."""

import json
from dataclasses import replace

import numpy as np
import pytest
from diagnosing import SMALL, policy_of, write_run
from evaluating import CUBE

from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.sampler import Sampler
from sorl_fast.diagnose import parts
from sorl_fast.diagnose.command import diagnose
from sorl_fast.diagnose.episodes import Branch, Branched, Played, Trace, branch, trace
from sorl_fast.diagnose.parts import still, visited
from sorl_fast.diagnose.subject import Branches, Subject
from sorl_fast.progress import Shown


class Line:
    """A point on a line that actions move; done beyond 1, cut off after 12 steps."""

    def reset(self, seed, episode):
        self.x, self.t = np.full(4, 0.1 * episode, np.float32), 0
        return self.x.copy()

    def step(self, action):
        self.x[:2] += action
        self.t += 1
        done = bool(self.x[0] > 1)
        return self.x.copy(), -1.0 - float(self.x[1]), done, done or self.t == 12


@pytest.fixture
def sampler():
    return Sampler(policy_of(), "numpy")


WAY = Played(2, 1, "argmax", 5, 3)


def test_a_trace_has_every_step_as_it_was_met(sampler):
    found = trace(Line(), sampler, WAY)
    assert found.observations.shape == (found.length, 4)
    assert found.observations[0] == pytest.approx(np.full(4, 0.3))
    moved = np.diff(found.observations[:, :2], axis=0)
    assert moved == pytest.approx(found.actions[:-1], abs=1e-6)
    again = sampler.act(found.observations[1], 2, 1, seed=5, call=1, row_offset=3)
    assert np.array_equal(again, found.actions[1])


@pytest.mark.parametrize("t", [0, 1, -1])
def test_a_branch_by_the_episodes_own_action_is_the_episode(sampler, t):
    found = trace(Line(), sampler, WAY)
    t %= found.length
    same = branch(Line(), sampler, Branch(WAY, found.actions[:t], found.actions[t]))
    assert np.array_equal(same.rewards, found.rewards[t:])
    assert (same.success, same.length) == (found.success, found.length)
    other = branch(Line(), sampler, Branch(WAY, found.actions[:t], -found.actions[t]))
    assert not np.array_equal(other.rewards[:1], found.rewards[t : t + 1])


def test_a_branch_that_succeeds_ends(sampler):
    far = np.array([2, 0], np.float32)
    found = branch(Line(), sampler, Branch(WAY, np.empty((0, 2), np.float32), far))
    assert (found.success, found.length, len(found.rewards)) == (True, 1, 1)


# ---- what is made of them


ONE, BEST = PolicyChoice(steps=2), PolicyChoice(steps=2, candidates=8)


def subject_of(traces, branches=None, policy=None):
    policy = policy or policy_of()
    return Subject(
        *(None, policy, "sorl", "toy", ONE.steps, SMALL, {}, None, None, traces, branches)
    )


def walk(seed, T=40, stops=None, success=False):
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(T, 4)).cumsum(0).astype(np.float32)
    if stops is not None:
        obs[stops:] = obs[stops]
    actions = rng.uniform(-1, 1, (T, 2)).astype(np.float32)
    return Trace(obs, actions, -np.ones(T), success, T)


def test_failures_that_stand_still_are_counted_by_the_way():
    traces = {
        ONE: (walk(0), walk(1, success=True), walk(2)),
        BEST: (walk(3, stops=20), walk(4, stops=25), walk(5, stops=10, success=True)),
    }
    figures = still(subject_of(traces))
    assert figures["window"] == 10
    assert [(w["episodes"], w["failed"], w["stood"]) for w in figures["ways"]] == [
        (3, 2, 0),
        (3, 2, 2),
    ]
    assert figures["ways"][1]["drift"] == pytest.approx([0, 0], abs=1e-9)
    assert figures["ways"][0]["part"] == 0


def test_a_critic_that_knows_the_return_orders_what_was_met(monkeypatch):
    traces = {ONE: (walk(0), walk(1, T=30, success=True))}
    subject = subject_of(traces)
    assert subject.gamma == 0.9

    def q(policy, obs, actions, steps):
        """Minus the steps until the end, of whichever episode these are; nothing where none succeeds."""
        T = len(obs)
        value = np.arange(T) - T if T == 30 else np.full(T, -50)
        return np.stack([value, value])[:, :, None].astype(np.float32)

    monkeypatch.setattr(parts, "values", q)
    (way,) = visited(subject)["ways"]
    assert way["steps"] == 31 + 30  # of the episode that was cut off without its last 9
    assert way["correlation"] > 0.6  # the returns tie until the end is within the window
    assert way["failed"] == 1
    assert way["q_at_failure"] == -50
    assert way["worth_at_failure"] == pytest.approx(-10)
    assert len(way["points"]) == 61


def test_candidates_of_one_state_are_ordered_by_what_each_came_to(monkeypatch):
    came = np.arange(16.0).reshape(2, 8)
    came[1] = 5
    branches = Branches(
        np.zeros((2, 4), np.float32),
        np.zeros((2, 8, 2), np.float32),
        tuple(Branched(np.array([r]), False, 1) for r in came.ravel()),
    )
    monkeypatch.setattr(parts, "values", lambda p, obs, a, s: -came[None])
    found = visited(subject_of({ONE: (walk(0),)}, branches))["tried"]
    assert (found["tried"], found["states"], found["tied"]) == (2, 1, 1)
    assert found["correlation"] == pytest.approx(-1)
    assert found["gain"] == pytest.approx(-3.5 / 2)


@pytest.mark.slow
def test_a_run_in_the_simulator_has_all_parts_and_the_same_for_any_workers(tmp_path):
    from sorl_fast.config import CollectConfig
    from sorl_fast.data.collect import collect

    collect(CollectConfig(env="cube-single-play-v0", out=str(tmp_path), episodes=1), progress=False)
    run = write_run(tmp_path / "run", policy_of(28, 5), tmp_path, env=CUBE)
    small = replace(SMALL, episodes=1)
    result = diagnose(run, small, Shown())
    assert [p["name"] for p in result["parts"] if "absent" in p] == []
    ways = next(p for p in result["parts"] if p["name"] == "standstills")["figures"]["ways"]
    assert [w["episodes"] for w in ways] == [1, 1]
    before = (run / "diagnose.json").read_bytes()
    diagnose(run, replace(small, workers=2), Shown())
    assert (run / "diagnose.json").read_bytes() == before
    assert json.loads(before)["settings"]["episodes"] == 1
