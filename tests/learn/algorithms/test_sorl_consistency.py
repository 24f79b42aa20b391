"""What makes self-consistency cheaper: fewer rows, fewer updates, a coin; off unless asked for."""

import pytest
import torch
from learn.algorithms.test_sorl_update import A, B, setup

from sorl_fast.errors import BadInput
from sorl_fast.learn.algorithms import sorl
from sorl_fast.learn.algorithms.sorl import Sorl, SorlConfig, Steps, consistency_strata

METRICS = [*Sorl.metrics]
FM, SC = METRICS.index("fm_loss"), METRICS.index("sc_loss")


def by_hand(learner, batch, n, rows):
    """The two losses from their formulas, self-consistency on the first `rows` rows."""
    actor, target, c = learner.networks["actor"], learner.targets["actor"], learner.method.config
    obs, actions = batch.observations, batch.actions
    x_t = (1 - (1 - 1e-5) * n["fm_t"])[:, None] * n["fm_noise"] + n["fm_t"][:, None] * actions
    v = actor(obs, x_t, n["fm_t"], torch.full((B,), float(c.m_disc.bit_length() - 1)))
    fm = (v - (actions - (1 - 1e-5) * n["fm_noise"])).square().mean()
    t, log2, x0 = n["sc_t"], n["sc_log2_steps"], n["sc_noise"]
    assert len(t) == len(log2) == len(x0) == rows
    obs, actions = obs[:rows], actions[:rows]
    x_t = (1 - (1 - 1e-5) * t)[:, None] * x0 + t[:, None] * actions
    h = torch.exp2(-log2)
    v1 = target(obs, x_t, t, log2 + 1)
    v2 = target(obs, x_t + (h / 2)[:, None] * v1, t + h / 2, log2 + 1)
    return fm, (actor(obs, x_t, t, log2) - (v1 + v2) / 2).square().mean()


@pytest.mark.parametrize(("part", "rows"), [(1.0, B), (0.5, 5), (0.01, 1)])
def test_a_part_of_the_rows(part, rows):
    _, learner, batch, source = setup(sc_part=part)
    assert torch.equal(learner.method.plan(A)["sc_log2_steps"].value, consistency_strata(rows, 8))
    n, k = source.draw()
    fm, sc = by_hand(learner, batch, n, rows)
    metrics = learner.update(batch, n, k)
    torch.testing.assert_close(metrics[FM], fm)
    torch.testing.assert_close(metrics[SC], sc)


def test_every_second_update_and_the_last_value_in_between():
    c, learner, batch, source = setup(sc_every=2)
    last = torch.zeros(())
    for number in range(1, 7):
        n, k = source.draw()
        assert (k.fm, k.sc) == (True, number % 2 == 0)
        fm, sc = by_hand(learner, batch, n, B)
        metrics = learner.update(batch, n, k)
        last = sc if k.sc else last
        torch.testing.assert_close(metrics[FM], fm)
        torch.testing.assert_close(metrics[SC], last)
        q = c.q_coef * metrics[METRICS.index("q_loss")]
        whole = c.fm_coef * fm + c.sc_coef * sc * k.sc + q
        torch.testing.assert_close(metrics[METRICS.index("actor_loss")], whole)


@pytest.mark.parametrize("there", ["fm", "sc"])
def test_the_gradient_is_of_the_loss_that_there_is_alone(there):
    """With a coin: one update moves the actor as that loss and Q's together do."""
    c, learner, batch, source = setup(sc_coin=0.5)
    n, k = source.draw()
    k = k._replace(fm=there == "fm", sc=there == "sc")
    loss = dict(zip(("fm", "sc"), by_hand(learner, batch, n, B), strict=True))[there]
    grads = learner.optimisers["actor"].gradients(c.fm_coef * loss)[0]  # both coefficients are 10
    seen = []
    learner.optimisers["actor"].step = lambda regression, q: (
        seen.extend(torch.autograd.grad(regression, learner.optimisers["actor"].params))
        or torch.zeros(())
    )
    learner.update(batch, n, k)
    for got, expected in zip(seen, grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_the_coin_falls_as_often_as_it_says_and_one_loss_is_there_each_time():
    g = torch.Generator().manual_seed(0)
    method = Sorl(SorlConfig(q_coef=1.0, sc_coin=0.25))
    drawn = [method.choose(g, number) for number in range(1, 2001)]
    assert all(k.fm != k.sc for k in drawn)
    assert 0.2 < sum(k.sc for k in drawn) / len(drawn) < 0.3


def test_without_the_options_nothing_else_is_drawn_kept_or_written():
    c = SorlConfig(q_coef=1.0)
    assert not {"sc_part", "sc_every", "sc_coin", "ema_actor"} & c.to_dict().keys()
    assert SorlConfig.from_dict(c.to_dict()) == c
    other = SorlConfig(q_coef=1.0, sc_every=2)
    assert other.to_dict() == c.to_dict() | {"sc_every": 2}
    assert SorlConfig.from_dict(other.to_dict()) == other
    method, a, b = Sorl(c), *(torch.Generator().manual_seed(3) for _ in range(2))
    assert method.kept() == {}
    for number in range(20):
        k = method.choose(a, number)
        td, q = (int(torch.randint(4, (), generator=b)) for _ in range(2))
        assert k == Steps(2**td, 2**q, fm=True, sc=True)


def test_validation_has_both_losses_whatever_the_update_has():
    _, learner, batch, source = setup(sc_every=5)
    n, k = source.draw()
    assert not k.sc
    fm, sc = by_hand(learner, batch, n, B)
    values = learner.losses(batch, n, k)
    torch.testing.assert_close(values["fm_loss"], fm.detach())
    torch.testing.assert_close(values["sc_loss"], sc.detach())


def test_no_term_at_all_is_zero():
    _, learner, batch, _ = setup()
    none = sorl.Regression(batch.actions[:0], *[torch.zeros(0)] * 2, batch.actions[:0])
    (loss,) = sorl.regression_losses(learner.networks["actor"], batch.observations, [none])
    assert loss == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sc_part": 0.0}, r"sc_part is 0.0, but must be in \(0, 1\]"),
        ({"sc_part": float("nan")}, "sc_part is nan"),
        ({"sc_every": 0}, "sc_every is 0, but must be an integer of at least 1"),
        ({"sc_every": 1.5}, "sc_every is 1.5"),
        ({"sc_coin": 1.0}, r"sc_coin is 1.0, but must be in \[0, 1\)"),
        ({"sc_coin": 0.5, "sc_every": 2}, "sc_coin is 0.5, but must be 0 with another sc_every"),
        ({"sc_coin": 0.5, "m_disc": 1, "m_btt": 1}, "with an m_disc of 1"),
    ],
)
def test_bounds(changes, says):
    with pytest.raises(BadInput, match=says):
        SorlConfig(**({"q_coef": 1.0} | changes))
