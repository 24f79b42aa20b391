"""The losses' own properties, beyond the golden figures."""

import pytest
import torch

from sorl_fast.batch import Batch
from sorl_fast.learn.algorithms import sorl
from sorl_fast.learn.algorithms.sorl import Sorl, SorlConfig, consistency_strata
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.noise import GeneratorNoise

O, A, B = 5, 3, 11


def config(**changes):
    return SorlConfig(**({"q_coef": 1.0, "hidden": 8, "depth": 2} | changes))


def make(c, seed=0):
    g = torch.Generator().manual_seed(seed)
    networks = Learner(Sorl(c), O, A, g).networks
    actor, critic = networks["actor"], networks["critic"]
    batch = Batch(
        torch.randn(B, O, generator=g),
        torch.rand(B, A, generator=g) * 2 - 1,
        torch.randn(B, generator=g),
        torch.randn(B, O, generator=g),
        (torch.arange(B) % 2).float(),
    )
    return actor, critic, batch, g


@pytest.mark.parametrize(
    ("batch_size", "m_disc", "counts"),
    [
        (256, 8, {2: 85, 1: 85, 0: 86}),
        (31, 8, {2: 10, 1: 10, 0: 11}),
        (5, 2, {0: 5}),
        (1, 8, {0: 1}),
        (6, 16, {3: 1, 2: 1, 1: 1, 0: 3}),
    ],
)
def test_strata_are_equal_and_the_rest_is_the_biggest_step(batch_size, m_disc, counts):
    strata = consistency_strata(batch_size, m_disc)
    assert {int(v): int((strata == v).sum()) for v in strata.unique()} == counts


@pytest.mark.parametrize("m_disc", [1, 2, 8, 64])
def test_drawn_times_lie_on_their_grids(m_disc):
    plan = Sorl(config(m_disc=m_disc, m_btt=1, batch_size=1000)).plan(A)
    noise = GeneratorNoise(plan, A, torch.Generator().manual_seed(3)).draw()
    assert set(noise["fm_t"].tolist()) == {i / m_disc for i in range(m_disc)}
    h, sc_t = torch.exp2(-noise["sc_log2_steps"]), noise["sc_t"]
    assert ((sc_t / h) % 1 == 0).all()
    assert (sc_t + h <= 1).all()
    assert len(sc_t) == (0 if m_disc == 1 else 1000)


def test_step_counts_are_drawn_apart_and_cover_m_btt():
    g = torch.Generator().manual_seed(0)
    drawn = [Sorl(config(m_btt=4)).choose(g, number) for number in range(1, 101)]
    assert {n.td for n in drawn} == {n.q for n in drawn} == {1, 2, 4}
    assert any(n.td != n.q for n in drawn)


def test_without_strata_the_consistency_loss_is_zero():
    c = config(m_disc=1, m_btt=1)
    actor, _, batch, _ = make(c)
    empty = torch.zeros(0)
    term = sorl.self_consistency(actor, batch, empty, empty, torch.zeros(0, A), c)
    other = sorl.flow_matching(batch, torch.zeros(B), torch.zeros(B, A), c)
    assert sorl.regression_losses(actor, batch.observations, [other, term])[1] == 0


def test_flow_matching_loss_by_hand():
    c = config()
    actor, _, batch, g = make(c)
    t, noise = torch.full((B,), 0.25), torch.randn(B, A, generator=g)
    x_t = (1 - (1 - 1e-5) * 0.25) * noise + 0.25 * batch.actions
    v = actor(batch.observations, x_t, t, torch.full((B,), 3.0))
    expected = ((v - (batch.actions - (1 - 1e-5) * noise)) ** 2).mean()
    term = sorl.flow_matching(batch, t, noise, c)
    (got,) = sorl.regression_losses(actor, batch.observations, [term])
    torch.testing.assert_close(got, expected)


def test_consistency_target_is_the_mean_of_two_half_steps_without_gradient():
    c = config()
    actor, _, batch, g = make(c)
    x, t, log2 = torch.randn(B, A, generator=g), torch.full((B,), 0.5), torch.ones(B)
    v1 = actor(batch.observations, x, t, log2 + 1)
    v2 = actor(batch.observations, x + 0.25 * v1, t + 0.25, log2 + 1)
    got = sorl.consistency_target(actor, batch.observations, x, t, log2)
    torch.testing.assert_close(got, (v1 + v2) / 2)
    assert not got.requires_grad


def test_q_loss_takes_the_mean_of_the_ensemble_whatever_q_agg_says():
    actor, critic, batch, g = make(config(q_agg="min", ensemble=3))
    noise = torch.randn(B, A, generator=g)
    loss, q = sorl.q_loss(actor, critic, batch, 2, noise)
    values = critic(batch.observations, actor.sample(batch.observations, noise, 2), 2)
    torch.testing.assert_close(q, values.mean(0))
    torch.testing.assert_close(loss, -q.mean() / q.abs().mean())


@pytest.mark.parametrize("q_agg", ["mean", "min"])
def test_td_target_by_hand(q_agg):
    c = config(q_agg=q_agg, gamma=0.9)
    actor, critic, batch, g = make(c)
    noise = torch.randn(B, A, generator=g)
    got = sorl.td_target(actor, critic, batch, 4, noise, c)
    q = critic(batch.next_observations, actor.sample(batch.next_observations, noise, 4), 4)
    q = q.mean(0) if q_agg == "mean" else q.min(0).values
    torch.testing.assert_close(got, batch.rewards + 0.9 * batch.masks * q)
    assert not got.requires_grad
    assert torch.equal(got[batch.masks == 0], batch.rewards[batch.masks == 0])
