"""Walking robots: episodes of 1000 and 2000 steps, which are told of, and kept when an evaluation stops."""

import pytest
from policies import make_policy

from sorl_fast.act.policy_file import save
from sorl_fast.progress import Shown
from sorl_fast.simulate.evaluate import Evaluator


class Told(Shown):
    """Notes the steps, and breaks off when an episode is done."""

    def __init__(self, breaks=False):
        self.steps, self.breaks = [], breaks

    def __call__(self, done, total):
        if self.breaks and done:
            raise KeyboardInterrupt

    def more_steps(self, steps):
        self.steps.append(steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "O", "A", "limit"),
    [
        ("antmaze-giant-navigate-singletask-task1-v0", 29, 8, 1000),
        ("humanoidmaze-medium-navigate-singletask-task1-v0", 69, 21, 2000),
    ],
    ids=["ant", "humanoid"],
)
def test_a_stopped_evaluation_goes_on_after_its_last_episode(tmp_path, env, O, A, limit):
    policy, record = tmp_path / "policy.safetensors", tmp_path / "record"
    save(policy, make_policy(O=O, A=A, H=8, env=env))
    grid = (policy, (1,), (1,), 2, 0)
    with Evaluator(env, workers=1) as evaluator:
        first, second = Told(breaks=True), Told()
        with pytest.raises(KeyboardInterrupt):
            evaluator.run(*grid, progress=first, record=record)
        result = evaluator.run(*grid, progress=second, record=record)
    assert first.steps == second.steps == [limit]
    (row,) = result["rows"]
    assert (row["episodes"], row["episode_length"]) == (2, limit)
