"""The arithmetic of the machine's limits, with made-up rates."""

import pytest
from sorl_fast.bench import shapes
from sorl_fast.bench.limits import PASSES, Limits, Rates
from sorl_fast.bench.shapes import Cell, Lane

SMALL = Cell(1, 4, 1, 3, 2)
LARGE = Cell(1000, 4, 8, 3, 2)


@pytest.fixture(scope="module")
def policy():
    return shapes.make_policy(3, 2, hidden=8)


def make(lanes, policy, flop=1e9, read=1e9):
    asked = {"flop": [], "read": []}

    def flop_rate(precision, threads):
        asked["flop"].append((precision, threads))
        return flop * threads * (4 if precision == "bf16" else 1)

    def read_rate(size, threads):
        asked["read"].append((size, threads))
        return read * threads

    return Limits(lanes, {(3, 2): policy}, Rates(flop_rate, read_rate)), asked


def test_a_small_call_is_bound_by_its_weights(policy):
    lane = Lane(SMALL, "fp32", 1)
    limits, _ = make([lane], policy, flop=1e15)
    assert limits.seconds(lane) == 4 * shapes.weights_read(SMALL, policy) / 1e9


def test_a_large_call_is_bound_by_its_arithmetic(policy):
    lane = Lane(LARGE, "bf16", 2)
    limits, _ = make([lane], policy)
    assert limits.seconds(lane) == shapes.flop(LARGE, policy) / 8e9


def test_bf16_weights_are_half_as_many_bytes(policy):
    lanes = [Lane(SMALL, p, 1) for p in ("fp32", "bf16")]
    limits, _ = make(lanes, policy, flop=1e15)
    assert limits.seconds(lanes[0]) == 2 * limits.seconds(lanes[1])


def test_bandwidth_is_measured_at_the_working_set_of_a_thread(policy):
    lanes = [Lane(SMALL, p, t) for p in ("fp32", "bf16") for t in (1, 2)]
    lanes.append(Lane(SMALL._replace(steps=1), "fp32", 1))  # the same weights
    _, asked = make(lanes, policy)
    held = shapes.weights_held(SMALL, policy)
    assert asked["read"] == [(4 * held, 1), (2 * held, 2), (2 * held, 1), (held, 2)] * PASSES
    assert asked["flop"] == [(p, t) for p in ("fp32", "bf16") for t in (1, 2)] * PASSES


def test_a_disturbed_measurement_does_not_count(policy):
    lane = Lane(LARGE, "fp32", 1)
    flops, reads = iter([1e9, 3e9, 2e9]), iter([6e9, 5e9, 4e9])
    limits = Limits([lane], {(3, 2): policy}, Rates(lambda *_: next(flops), lambda *_: next(reads)))
    values = limits.to_dict()
    assert values["gflops"][0]["gflops"] == 3.0
    assert values["read"][0]["gb_per_s"] == 6.0


def test_fraction(policy):
    lane = Lane(LARGE, "fp32", 1)
    limits, _ = make([lane], policy)
    best_us = 1e6 * shapes.flop(LARGE, policy) / 1e9
    assert limits.fraction(lane, best_us) == pytest.approx(1.0)
    assert limits.fraction(lane, 4 * best_us) == pytest.approx(0.25)


def test_to_dict(policy):
    limits, _ = make([Lane(SMALL, "fp32", 2)], policy, flop=3e9, read=5e9)
    size = 2 * shapes.weights_held(SMALL, policy)
    assert limits.to_dict() == {
        "gflops": [{"precision": "fp32", "threads": 2, "gflops": 6.0}],
        "read": [{"bytes_per_thread": size, "threads": 2, "gb_per_s": 10.0}],
    }
