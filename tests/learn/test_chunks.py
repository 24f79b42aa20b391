"""Trainings over chunks: every method, their discount, resume, and the policy that comes out."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import own_arrays
from runs import agent, assert_same_run, config

from sorl_fast import BadInput, Sampler
from sorl_fast.act.policy_file import load
from sorl_fast.config import TrainConfig
from sorl_fast.learn import train as train_module
from sorl_fast.learn.algorithms import METHODS, method_config
from sorl_fast.learn.algorithms.bc import BcConfig
from sorl_fast.learn.chunks import discount_of, over_chunks
from sorl_fast.learn.train import train

SMALL = {
    "sorl": {"q_coef": 1.0, "hidden": 8, "depth": 2, "m_disc": 4, "m_btt": 2},
    "fql": {"alpha": 10.0, "hidden": 8, "depth": 2, "flow_steps": 3},
    "idql": {"residual_hidden": 8, "residual_frequencies": 4, "residual_blocks": 2},
}
H = 3


@pytest.fixture
def ordered_file(tmp_path):
    """A user's file whose rows are in order, in trajectories of 8."""
    arrays = own_arrays()
    rows = len(arrays["rewards"])
    ends = np.zeros(rows, np.float32)
    ends[7::8] = ends[-1:] = 1
    np.savez(tmp_path / "ordered.npz", **(arrays | {"terminals": ends}))
    return tmp_path / "ordered.npz"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_chunks_and_says_so_in_the_file(name, ordered_file, tmp_path):
    small = SMALL.get(name, {"hidden": 8, "depth": 2})
    method = method_config(name, "mine", {"batch_size": 16} | small)
    settings = config(ordered_file, tmp_path / "run", steps=4, log_every=2, chunk=H, val_every=0)
    result = train(method, settings)
    policy = load(result.policy)
    A = own_arrays()["actions"].shape[1]
    assert (policy.chunk, policy.act_dim, policy.action_shape) == (H, H * A, (H, A))
    assert policy.config == method.to_dict()  # the discount of a step, as it was given
    actions = Sampler(policy).act(np.zeros((2, policy.obs_dim), np.float32), seed=0)
    assert actions.shape == (2, H, A)
    assert np.isfinite(actions).all()


def test_the_backup_discounts_h_steps_and_the_rewards_each_one(ordered_file, tmp_path, monkeypatch):
    seen = {}

    def data(*args, **more):
        seen.update(more)
        return load_data(*args, **more)

    load_data = train_module.load_data
    monkeypatch.setattr(train_module, "load_data", data)
    method_of = train_module.method_of
    monkeypatch.setattr(train_module, "method_of", lambda a: seen.update(agent=a) or method_of(a))
    train(agent(gamma=0.9), config(ordered_file, tmp_path / "run", steps=2, chunk=H))
    assert (seen["chunk"], seen["discount"]) == (H, 0.9)
    assert seen["agent"].gamma == 0.9**H
    assert dataclasses.replace(seen["agent"], gamma=0.9) == agent(gamma=0.9)


def test_a_method_without_a_discount_is_left_as_it_is():
    method = BcConfig()
    assert over_chunks(method, 5) is method
    assert discount_of(method) == 1
    assert over_chunks(agent(), 1) == agent()


@pytest.mark.slow
def test_a_run_over_chunks_resumes_to_the_same_bits_and_not_with_another_chunk(
    ordered_file, tmp_path
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(agent(), config(ordered_file, whole, chunk=H))
    train(agent(), config(ordered_file, parts, chunk=H, steps=15))
    for resume in (True, None):
        with pytest.raises(BadInput, match=r"chunk was 3 in .*parts, but is 1 now"):
            train(agent(), config(ordered_file, parts), resume=resume)
    train(agent(), config(ordered_file, parts, chunk=H), resume=None)
    assert_same_run(whole, parts)
    assert json.loads((parts / "config.json").read_text())["train"]["chunk"] == H


def test_a_robots_units_are_those_of_each_action(ordered_file, tmp_path):
    arrays = dict(np.load(ordered_file))
    arrays["actions"] = arrays["actions"] * 3 + 1
    np.savez(ordered_file, **arrays)
    result = train(
        agent(), config(ordered_file, tmp_path / "run", steps=2, chunk=H, action_range="data")
    )
    low, high = load(result.policy).bounds
    own = arrays["actions"][
        arrays["terminals"] == 0
    ]  # a last row that time cut off is no transition
    np.testing.assert_allclose(low, np.tile(own.min(0), H), rtol=1e-6)
    np.testing.assert_allclose(high, np.tile(own.max(0), H), rtol=1e-6)


@pytest.mark.parametrize("chunk", [0, -1, 1.5, None])
def test_a_chunk_that_is_no_count_is_named(chunk):
    with pytest.raises(BadInput, match=r"chunk is .* an integer of at least 1\. Set --chunk"):
        TrainConfig(env="mine", data="x.npz", out="y", chunk=chunk)


def test_the_config_goes_round():
    given = TrainConfig(env="mine", data="x.npz", out="y", chunk=4)
    assert TrainConfig.from_dict(given.to_dict()) == given
    older = given.to_dict()
    del older["chunk"]
    assert TrainConfig.from_dict(older).chunk == 1
