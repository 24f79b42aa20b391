"""One update composes the losses in the stated order, with the stated optimiser."""

import copy

import numpy as np
import pytest
import torch

from sorl_fast.batch import Batch
from sorl_fast.errors import BadInput
from sorl_fast.learn.algorithms import sorl
from sorl_fast.learn.algorithms.sorl import Sorl, SorlConfig
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.method import Export
from sorl_fast.learn.noise import GeneratorNoise

O, A, B = 4, 2, 9


class Source:
    """Noise and step counts from one generator."""

    def __init__(self, method, random):
        self._method, self._random, self._number = method, random, 0
        self._noise = GeneratorNoise(method.plan(A), A, random)

    def draw(self):
        self._number += 1
        return self._noise.draw(), self._method.choose(self._random, self._number)


def setup(seed=0, **changes):
    c = SorlConfig(**({"q_coef": 3.0, "hidden": 8, "depth": 2, "batch_size": B} | changes))
    g = torch.Generator().manual_seed(seed)
    learner = Learner(Sorl(c), O, A, g)
    batch = Batch(
        torch.randn(B, O, generator=g),
        torch.rand(B, A, generator=g) * 2 - 1,
        torch.randn(B, generator=g),
        torch.randn(B, O, generator=g),
        torch.ones(B),
    )
    return c, learner, batch, Source(learner.method, g)


def clipped_adam(params, grads, state, lr, clip):
    """One step of torch's Adam on clipped gradients."""
    norm = torch.cat([g.flatten() for g in grads]).norm()
    for p, g in zip(params, grads, strict=True):
        p.grad = g * min(1.0, clip / float(norm))
    state.setdefault("adam", torch.optim.Adam(params, lr=lr)).step()


def test_two_updates_equal_the_losses_composed_by_hand():
    c, learner, batch, source = setup()
    twin = copy.deepcopy(learner)
    actor, critic = twin.networks["actor"], twin.networks["critic"]
    target_actor, target_critic = twin.targets["actor"], twin.targets["critic"]
    states = {}, {}
    for _ in range(2):
        n, k = source.draw()
        learner.update(batch, n, k)

        y = sorl.td_target(actor, target_critic, batch, k.td, n["td_noise"], c)
        td = sorl.td_loss(critic, batch, k.td, y)
        params = list(critic.tensors().values())
        clipped_adam(params, torch.autograd.grad(td, params), states[0], c.critic_lr, c.clip_norm)

        terms = [sorl.flow_matching(batch, n["fm_t"], n["fm_noise"], c)]
        sc_inputs = n["sc_log2_steps"], n["sc_t"], n["sc_noise"]
        terms += [sorl.self_consistency(target_actor, batch, *sc_inputs, c)]
        fm, sc = (sorl.regression_losses(actor, batch.observations, [term])[0] for term in terms)
        q, _ = sorl.q_loss(actor, critic, batch, k.q, n["q_noise"])
        params = list(actor.tensors().values())
        loss = 10 * fm + 10 * sc + 3 * q
        clipped_adam(params, torch.autograd.grad(loss, params), states[1], c.actor_lr, c.clip_norm)

        with torch.no_grad():
            for net, target in ((actor, target_actor), (critic, target_critic)):
                for p, t in zip(net.parameters(), target.parameters(), strict=True):
                    t.copy_((1 - c.tau) * t + c.tau * p)
    for name, x in learner.state().items():
        if "adam" not in name:
            torch.testing.assert_close(x, twin.state()[name], rtol=1e-5, atol=1e-7, msg=name)


def test_targets_start_as_copies_and_follow_by_tau():
    _, learner, batch, source = setup(tau=0.25)
    before = learner.targets["actor"].tensors()["1/w"].clone()
    assert torch.equal(before, learner.networks["actor"].tensors()["1/w"])
    learner.update(batch, *source.draw())
    after = learner.networks["actor"].tensors()["1/w"].detach()
    torch.testing.assert_close(
        learner.targets["actor"].tensors()["1/w"], 0.75 * before + 0.25 * after
    )


def test_the_td_loss_leaves_the_actor_alone():
    _, learner, batch, source = setup(fm_coef=0.0, sc_coef=0.0, q_coef=0.0)
    before = {k: x.clone() for k, x in learner.networks["actor"].tensors().items()}
    learner.update(batch, *source.draw())
    for k, x in learner.networks["actor"].tensors().items():
        assert torch.equal(x, before[k]), k


@pytest.mark.parametrize(
    "changes",
    [
        dict(m_disc=1, m_btt=1),
        dict(m_btt=1),
        dict(ensemble=10, q_agg="min"),
        dict(depth=1, hidden=3),
    ],
    ids=["M_disc1", "M_btt1", "E10-min", "depth1"],
)
def test_free_sizes(changes):
    _, learner, batch, source = setup(**changes)
    metrics = learner.update(batch, *source.draw())
    assert metrics.shape == (len(Sorl.metrics),)
    assert metrics.isfinite().all()


def test_equal_seeds_give_equal_bits():
    states = []
    for _ in range(2):
        _, learner, batch, source = setup(seed=5)
        for _ in range(3):
            learner.update(batch, *source.draw())
        states.append(learner.state())
    assert all(torch.equal(x, states[1][k]) for k, x in states[0].items())


def test_state_goes_round_and_another_shape_is_refused():
    _, learner, batch, source = setup()
    learner.update(batch, *source.draw())
    saved = {k: x.clone() for k, x in learner.state().items()}
    _, fresh, _, _ = setup(seed=1)
    fresh.load_state(saved, 1)
    assert all(torch.equal(x, saved[k]) for k, x in fresh.state().items())
    assert fresh.optimisers["actor"].steps == 1
    with pytest.raises(BadInput, match="no tensor 'actor/0/w'"):
        fresh.load_state({k: v for k, v in saved.items() if k != "actor/0/w"}, 1)
    with pytest.raises(BadInput, match=r"'critic/0/b' has shape \(1,\)"):
        fresh.load_state(saved | {"critic/0/b": torch.zeros(1)}, 1)


def test_validation_losses_change_nothing():
    _, learner, batch, source = setup()
    before = {k: x.clone() for k, x in learner.state().items()}
    values = learner.losses(batch, *source.draw())
    assert set(values) <= set(Sorl.metrics)
    assert all(torch.equal(x, before[k]) for k, x in learner.state().items())


@pytest.mark.parametrize("ema", [False, True])
def test_the_policy_is_the_actor_just_updated_or_its_ema(ema):
    """Which one changes nothing else of a training; the critics are the online ones in both."""
    c, learner, batch, source = setup(ema_actor=ema)
    _, other, *_ = setup(ema_actor=not ema)
    for _ in range(3):
        n, k = source.draw()
        assert torch.equal(learner.update(batch, n, k), other.update(batch, n, k))
    policy = learner.method.export(learner, Export(O, A, "e", None, None))
    actors = learner.targets if ema else learner.networks
    for got, expected in (
        (policy.actor, actors["actor"].arrays()),
        (policy.critic, learner.networks["critic"].arrays()),
    ):
        for one, two in zip(got, expected, strict=True):
            for x, y in zip(one, two, strict=True):
                np.testing.assert_array_equal(x, y)
    assert (
        np.abs(policy.actor[0][0] - learner.networks["actor"].arrays()[0][0]).max() > 0 or not ema
    )
    assert ("ema_actor" in c.to_dict()) == ema  # as files of before it say nothing
