"""With the real teacher: an expert's file acts as sbx's network, and a training goes on from its arrays."""

import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("sbx", reason="the extra `expert` (sbx-rl) is not installed")

from sorl_fast.act.policy_file import dumps, load, loads
from sorl_fast.act.sampler import Sampler
from sorl_fast.config import ExpertConfig
from sorl_fast.envs.bodies import ANT, BODIES, open_online
from sorl_fast.expert.agent import AGREES, Agent
from sorl_fast.expert.measure import measure
from sorl_fast.expert.train import train_expert

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of jax in its users
]
SMALL = dict(hidden=8, critic_hidden=8, depth=1, capacity=2000)


@pytest.mark.parametrize("body", BODIES.values(), ids=lambda body: body.name)
def test_an_expert_of_every_body_learns_and_acts_as_its_file(body):
    agent = Agent(body, open_online(body), 0, **SMALL)
    agent.learn(136)  # 100 at random, and one block of updates
    assert agent.steps == 136 if body.update_every == 1 else agent.steps == 160
    policy = loads(dumps(agent.policy({"of": "a test"})))
    assert (policy.obs_dim, policy.act_dim) == (body.obs_dim, body.act_dim)
    obs = agent.some_observations(50)
    assert obs.shape == (50, body.obs_dim)
    theirs = agent.act(obs)
    np.testing.assert_allclose(Sampler(policy).act(obs, seed=3), theirs, rtol=0, atol=AGREES)
    assert np.ptp(theirs) > 1e-3


def test_a_network_that_is_not_the_files_is_never_written(monkeypatch):
    agent = Agent(ANT, open_online(ANT), 0, **SMALL)
    agent.learn(104)
    monkeypatch.setattr(agent, "act", lambda obs: np.zeros((len(obs), 8), np.float32))
    with pytest.raises(RuntimeError, match="from sbx's, but must be within 1e-05"):
        agent.policy({})


def test_a_training_goes_on_from_its_arrays():
    first = Agent(ANT, open_online(ANT), 0, **SMALL)
    first.learn(120)
    state = {name: array.copy() for name, array in first.state().items()}
    second = Agent(ANT, open_online(ANT), 1, **SMALL)
    second.restore(state, 1)
    obs = first.some_observations(10)
    np.testing.assert_array_equal(first.act(obs), second.act(obs))
    assert second.steps == 120
    for name, array in second.state().items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)
    second.learn(16)
    assert second.steps == 136
    assert len(second.state()["buffer/rewards"]) == 136
    assert not np.array_equal(second.act(obs), first.act(obs))


def test_the_whole_command_and_a_measure_that_is_the_same_again(tmp_path):
    config = ExpertConfig(
        env="ant", out=str(tmp_path / "ant"), steps=112, eval_episodes=1, hidden=8, depth=1
    )
    report = train_expert(config, progress=False)
    policy = load(report.path)
    np.random.seed(0)  # noqa: NPY002
    drawn = np.random.get_state()[1].copy()  # noqa: NPY002
    again = measure(policy, ANT, 1, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], drawn)  # noqa: NPY002
    assert again.to_dict().items() <= report.measure.items()
    assert again.length == 1000 or again.mean < 0  # it may fall
    assert again.speed == pytest.approx(10 * again.mean / again.length, abs=1e-6)
