"""Each statistic of a diagnosis on made-up data whose answer is known."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest

from sorl_fast.act.rules import scale_of
from sorl_fast.diagnose import candidates, errors, returns, standstills, wasserstein

W = scale_of(np.full(3, -1.0), np.full(3, 1.0))


@pytest.fixture
def rng():
    """The same numbers for every test, whichever ran before it."""
    return np.random.default_rng(0)


# ---- candidates


def test_a_constant_between_members_is_no_disagreement(rng):
    q = rng.normal(size=(1, 50, 16)) + np.array([0.0, 5.0])[:, None, None]
    found = candidates.spread(q, q.mean(0))
    assert found["disagreement"] == pytest.approx(0, abs=1e-12)
    assert found["member_correlation"] == pytest.approx(1)
    assert found["spread"] == pytest.approx(q[0].std(-1).mean())


def test_of_two_members_the_disagreement_is_the_deviation_of_half_their_difference(rng):
    q = rng.normal(size=(2, 40, 8))
    found = candidates.spread(q, q.mean(0))
    half = (q[0] - q[1]) / 2
    assert found["disagreement"] == pytest.approx(half.std(-1).mean())
    assert found["spread"] == pytest.approx(q.mean(0).std(-1).mean())
    assert found["ratio"] == pytest.approx(found["disagreement"] / found["spread"])
    assert abs(found["member_correlation"]) < 0.2


def test_one_member_and_no_spread(rng):
    one = candidates.spread(rng.normal(size=(1, 5, 4)), rng.normal(size=(5, 4)))
    assert (one["disagreement"], one["member_correlation"]) == (0, None)
    flat = candidates.spread(np.ones((2, 5, 4)), np.ones((5, 4)))
    assert (flat["spread"], flat["ratio"], flat["member_correlation"]) == (0, None, None)


def test_an_order_along_a_component_is_found_as_a_bias(rng):
    actions = rng.normal(0, 0.1, (200, 32, 3))
    score = -4 * actions[..., 1] + 0.2 * rng.normal(size=(200, 32))
    found = candidates.bias(actions, score)
    assert found["component"] == 1
    assert found["correlation"][1] < -0.8
    assert abs(found["correlation"][0]) < 0.1
    assert found["same_sign"][1] > 0.99
    assert found["shift"][1] < -0.1  # about two deviations
    assert found["common"] > 0.9


def test_an_order_that_follows_the_observation_is_none(rng):
    actions = rng.normal(0, 0.1, (400, 32, 3))
    sign = np.where(np.arange(400) % 2, 1, -1)[:, None]
    found = candidates.bias(actions, sign * actions[..., 1])
    assert abs(found["correlation"][1]) < 0.1
    assert found["common"] < 0.1
    assert found["same_sign"][1] == pytest.approx(0.5, abs=0.1)


def test_where_q_orders_nothing_there_is_no_bias(rng):
    assert candidates.bias(rng.normal(size=(5, 8, 3)), np.ones((5, 8))) == {"observations": 0}
    # a constant that rounding blurs is one
    blurred = 1e6 + 1e-9 * rng.normal(size=(5, 8))
    assert candidates.bias(rng.normal(size=(5, 8, 3)), blurred) == {"observations": 0}


def test_argmax_of_the_distance_is_an_outlier_and_the_medoid_is_not(rng):
    actions = rng.normal(0, 0.1, (100, 32, 3))
    away = np.linalg.norm(actions, axis=-1)
    found = candidates.centre(actions, away, W)
    assert found["candidates"] == [1, 2, 4, 8, 16, 32]
    far = found["distances"]["argmax"]
    assert far[0] == pytest.approx(1, abs=0.15)
    assert all(a < b for a, b in pairwise(far))
    assert far[-1] > 1.5
    assert found["rank"]["argmax"] > 0.9
    near = candidates.centre(actions, -away, W)
    assert near["distances"]["argmax"][-1] < 0.5
    assert near["rank"]["argmax"] < 0.1


def test_a_score_that_knows_nothing_chooses_like_chance(rng):
    found = candidates.centre(rng.normal(size=(2000, 8, 3)), rng.normal(size=(2000, 8)), W)
    assert found["distances"]["argmax"] == pytest.approx([1, 1, 1, 1], abs=0.05)
    assert found["rank"]["argmax"] == pytest.approx(0.5, abs=0.03)


def test_without_critics_the_centre_alone_chooses_and_sizes_need_no_power_of_two(rng):
    found = candidates.centre(rng.normal(size=(20, 6, 3)), np.empty((20, 0)), W)
    assert found["candidates"] == [1, 2, 4, 6]
    assert list(found["distances"]) == ["centre"]
    assert found["distances"]["centre"][-1] < 0.9
    same = candidates.centre(np.ones((3, 4, 3)), np.zeros((3, 4)), W)
    assert same["distances"]["argmax"] == [None, None, None]


def test_what_is_not_finite_is_told():
    actions, q = np.zeros((4, 3, 2)), np.zeros((2, 4, 3))
    actions[1, 2, 0], q[1, 3, 0] = np.nan, np.inf
    assert candidates.finite(actions, q).tolist() == [True, False, True, False]
    assert candidates.finite(actions, q[:0]).tolist() == [True, False, True, True]


# ---- returns


def test_the_return_of_a_window_is_the_discounted_sum(rng):
    r = rng.normal(size=7)
    found = returns.window_returns(r, True, 0.9, 3)
    plain = [sum(0.9**i * r[t + i] for i in range(3) if t + i < 7) for t in range(7)]
    assert found == pytest.approx(plain)
    # nobody knows what would have come after time ran out
    assert returns.window_returns(r, False, 0.9, 3) == pytest.approx(plain[:5])
    assert len(returns.window_returns(r, False, 0.9, 8)) == 0
    assert len(returns.window_returns(r, True, 0.9, 8)) == 7


def test_rank_correlation(rng):
    x = rng.normal(size=50)
    assert returns.rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert returns.rank_correlation(x, -(x**3)) == pytest.approx(-1)
    assert returns.rank_correlation(x, np.ones(50)) is None
    assert returns.rank_correlation([1, 2], [1, 2]) is None
    # ties share their mean rank: 1.5, 1.5, 3, 4 against 1, 2, 3, 4
    assert returns.rank_correlation([0, 0, 1, 2], [1, 2, 3, 4]) == pytest.approx(math.sqrt(0.9))


def test_among_candidates_ties_are_counted_and_the_best_gains(rng):
    q = rng.normal(size=(30, 8))
    came = 2 * q
    came[:10] = -7
    found = returns.among_candidates(q, came)
    assert (found["states"], found["tied"]) == (20, 10)
    assert found["correlation"] == pytest.approx(1)
    assert found["error"] == pytest.approx(0, abs=1e-9)
    gain = (came.max(1) - came.mean(1))[10:].sum() / 30
    assert found["gain"] == pytest.approx(gain)
    none = returns.among_candidates(np.empty((0, 8)), np.empty((0, 8)))
    assert (none["states"], none["correlation"], none["gain"]) == (0, None, None)


# ---- standstills


def test_a_standstill_is_found_where_it_is(rng):
    walk = rng.normal(size=(60, 4)).cumsum(0)
    walk[30:] = walk[30] + 1e-3 * rng.normal(size=(30, 4))
    scale = standstills.scale_of([walk])
    found = standstills.standing(walk, scale, 10)
    assert not found[:25].any()
    assert found[31:].all()
    for window in (10, 7):
        found = standstills.drift(walk, scale, window)
        half = window // 2
        plain = [
            (walk[t + window - half : t + window].mean(0) - walk[t : t + half].mean(0)) / scale
            for t in range(60 - window + 1)
        ]
        assert found == pytest.approx(np.sqrt(np.square(plain).mean(1)), abs=1e-9)


def test_what_trembles_or_treads_on_the_spot_stands_still(rng):
    far = np.linspace(0, 10, 400)[:, None] + np.zeros((400, 4))
    steps = np.arange(60)[:, None]
    tread = 2.0 * np.sin(steps * 2 * np.pi / 10 + np.arange(4))
    tremble = 2.0 * rng.normal(size=(400, 4))
    scale = standstills.scale_of([far, tread, tremble])
    assert not standstills.standing(far, scale, 50).any()
    assert standstills.standing(tread, scale, 40).all()  # halves of two whole periods
    assert standstills.drift(tremble, scale, 200).max() < 0.2


def test_episodes_that_never_move_stand_still_though_they_start_apart():
    episodes = [np.full((20, 3), float(i)) for i in range(5)]
    scale = standstills.scale_of(episodes)
    assert all(standstills.standing(x, scale, 5).all() for x in episodes)


def test_short_and_constant_episodes():
    assert len(standstills.drift(np.zeros((3, 2)), np.ones(2), 5)) == 0
    assert not standstills.standing(np.zeros((3, 2)), np.ones(2), 5).any()
    assert standstills.drift(np.zeros((6, 2)), np.zeros(2), 5).tolist() == [0, 0]


# ---- errors


def straight(target):
    """The field of a flow that leads every x_t to target(x) in a straight line at even speed."""

    def velocity(obs, z, t, log2_steps):
        return (target(obs) - z) / (1 - t)

    return velocity


def test_the_errors_of_a_straight_flow_are_0(rng):
    obs, x0 = rng.normal(size=(2, 40, 3)).astype(np.float32)
    actions = np.tanh(obs)
    field = straight(np.tanh)
    M = 8
    matching = errors.flow_matching(field, obs, actions, x0, [i / M for i in range(M)], 3.0)
    assert [e["t"] for e in matching] == [i / M for i in range(M)]
    assert {e["steps"] for e in matching} == {M}
    assert max(e["error"] for e in matching) < 1e-9
    consistency = errors.self_consistency(field, obs, actions, x0, M)
    assert [(e["steps"], e["t"]) for e in consistency] == [
        *((1, 0.0), (2, 0.0), (2, 0.5), (4, 0.0), (4, 0.25), (4, 0.5), (4, 0.75))
    ]
    assert max(e["error"] for e in consistency) < 1e-9


def test_the_errors_of_a_field_that_is_off_are_the_squares_of_how_far(rng):
    obs, x0 = rng.normal(size=(2, 40, 3)).astype(np.float32)
    off = straight(np.tanh)

    def field(obs, z, t, log2_steps):  # steps of 1 alone are wrong, by 0.5
        return off(obs, z, t, log2_steps) + (0.5 if log2_steps == 0 else 0.0)

    found = errors.self_consistency(field, obs, np.tanh(obs), x0, 4)
    assert found[0]["error"] == pytest.approx(0.25, rel=1e-4)
    assert max(e["error"] for e in found[1:]) < 1e-9
    assert found[0]["off"] == pytest.approx(0.5 * math.sqrt(3), rel=1e-4)
    (matching,) = errors.flow_matching(field, obs, np.tanh(obs), x0, [0.0], 0.0)
    assert (matching["steps"], matching["error"]) == (1, pytest.approx(0.25, rel=1e-4))


def test_the_flow_of_training_has_an_e_of_its_own(rng):
    obs, x0 = rng.normal(size=(2, 8, 3)).astype(np.float32)

    def field(obs, z, t, log2_steps):
        return np.tanh(obs) - 0.75 * x0

    found = errors.flow_matching(field, obs, np.tanh(obs), x0, [0.0, 0.5], 1.0, flow_eps=0.25)
    assert max(e["error"] for e in found) < 1e-12


def test_one_grid_has_no_self_consistency():
    assert errors.self_consistency(straight(np.tanh), *np.zeros((3, 4, 2)), 1) == []


# ---- 2-Wasserstein


def test_the_distance_of_shifted_points_is_the_shift(rng):
    x = rng.normal(size=(5, 16, 3))
    shift = np.array([0.3, -0.4, 1.2])
    shuffled = x[:, rng.permutation(16)] + shift
    assert wasserstein.wasserstein(x, shuffled) == pytest.approx(np.full(5, 1.3))
    assert wasserstein.wasserstein(x, x[:, ::-1]) == pytest.approx(np.zeros(5))


def test_the_assignment_is_the_best_of_all(rng):
    x, y = rng.normal(size=(2, 1, 5, 2))
    plain = min(np.square(x[0] - y[0, list(p)]).sum(-1).mean() for p in permutations(range(5)))
    assert wasserstein.wasserstein(x, y)[0] == pytest.approx(math.sqrt(plain))


def test_on_a_line_it_is_the_sorted_points(rng):
    x, y = rng.normal(size=(2, 3, 20, 1))
    plain = np.sqrt(np.square(np.sort(x, 1) - np.sort(y, 1)).mean((1, 2)))
    assert wasserstein.wasserstein(x, y) == pytest.approx(plain)


def test_neighbours_are_the_nearest_in_units_of_the_data(rng, monkeypatch):
    data = rng.normal(size=(100, 3)).astype(np.float32) * np.array([1, 100, 0], np.float32)
    obs = data[[7, 50]] + np.array(
        [0.01, 0.5, 9], np.float32
    )  # the constant component counts for nothing
    std = data.std(0)[:2]
    plain = np.sqrt((((obs[:, None, :2] - data[None, :, :2]) / std) ** 2).mean(-1))
    monkeypatch.setattr(wasserstein, "_ROWS", 13)  # in parts
    rows, far = wasserstein.neighbours(data, obs, 9)
    assert np.array_equal(rows, np.argsort(plain, 1)[:, :9])
    assert far == pytest.approx(np.sort(plain, 1)[:, :9], abs=2e-3)
    assert rows[:, 0].tolist() == [7, 50]
