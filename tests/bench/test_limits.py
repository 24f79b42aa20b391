"""The arithmetic of the machine's limits, with made-up rates; what the native module measures them on."""

import itertools
import math

import pytest
from sorl_fast.bench import shapes
from sorl_fast.bench.limits import MOST, PASSES, Limits, Rates, native_rates, refuse_beyond
from sorl_fast.bench.shapes import Cell, Lane

from sorl_fast import _bench

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

    return Limits(lanes, {SMALL.network: policy}, Rates(flop_rate, read_rate)), asked


def test_a_small_call_is_bound_by_its_weights(policy):
    lane = Lane(SMALL, "fp32", 1)
    limits, _ = make([lane], policy, flop=1e15)
    weights = shapes.weights_held(SMALL, policy) + 3 * shapes.weights_again(SMALL, policy)
    assert limits.seconds(lane) == pytest.approx(4 * weights / 1e9)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("threads", [1, 2])
def test_all_weights_pass_once_at_their_rate_and_the_actor_again_at_its_own(
    policy, precision, threads
):
    cell, width = Cell(1, 8, 3, 3, 2), {"fp32": 4, "bf16": 2, "int8": 1}[precision]
    held, again = (f(cell, policy) * width for f in (shapes.weights_held, shapes.weights_again))
    rates = {held // threads: 1e9, again // threads: 5e9}  # a thread's share fits a nearer cache
    lane = Lane(cell, precision, threads)
    limits = Limits(
        [lane], {SMALL.network: policy}, Rates(lambda *_: 1e15, lambda size, t: t * rates[size])
    )
    assert limits.seconds(lane) == pytest.approx((held / 1e9 + 7 * again / 5e9) / threads)


def missed(order, cache):
    """Return how many of the last half of accesses miss, whoever replaces with all foresight (Belady)."""
    later, following = {}, [math.inf] * len(order)
    for at in reversed(range(len(order))):
        following[at] = later.get(order[at], math.inf)
        later[order[at]] = at
    here, misses = {}, 0  # block -> its next use
    for at, block in enumerate(order):
        if block not in here:
            misses += 2 * at >= len(order)
        here[block] = following[at]
        if len(here) > cache:  # which may be the new one: it passes by
            del here[max(here, key=here.get)]
    return misses


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("candidates", [1, 2])
@pytest.mark.parametrize("cache", [5, 16, 23, 40, 80])
def test_no_order_of_reading_and_no_cache_beats_the_limit(policy, steps, candidates, cache):
    """The actor and the critics cut into blocks; a pass of the measurement finds a cacheful of them."""
    cell, near, far = Cell(1, steps, candidates, 3, 2), 1.0, 7.0  # seconds a block
    again = shapes.weights_again(cell, policy)
    actor = 16
    size = again / actor  # weights of a block
    critics = (shapes.weights_held(cell, policy) - again) / size  # and the observation's part

    def rate(share, threads):
        blocks = share / size
        found = min(cache, blocks)
        return share / (found * near + (blocks - found) * far)

    lane = Lane(cell, "int8", 1)
    limits = Limits([lane], {SMALL.network: policy}, Rates(lambda *_: 1e15, rate))
    forth, others = list(range(actor)), [-1 - i for i in range(math.ceil(critics))]
    for turn_actor, turn_others in itertools.product((False, True), repeat=2):
        order, calls = [], 8
        for call in range(2 * calls):
            for step in range(steps):
                order += forth[::-1] if turn_actor and (call * steps + step) % 2 else forth
            order += others[::-1] if turn_others and call % 2 else others
        misses = missed(order, cache)
        took = (misses * far + (len(order) / 2 - misses) * near) / calls
        assert limits.seconds(lane) <= took * (1 + 1e-9)
    # and it is no idle bound: with two turning, the best order comes near it
    assert limits.seconds(lane) >= 0.7 * took


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
    lanes.append(Lane(SMALL._replace(steps=1), "fp32", 1))  # the same weights, once
    _, asked = make(lanes, policy)
    held, again = shapes.weights_held(SMALL, policy), shapes.weights_again(SMALL, policy)
    shares = [(4 * held, 1), (4 * again, 1), (2 * held, 2), (2 * again, 2)]  # fp32
    shares += [(2 * held, 1), (2 * again, 1), (held, 2), (again, 2)]  # bf16
    assert asked["read"] == shares * PASSES
    assert asked["flop"] == [(p, t) for p in ("fp32", "bf16") for t in (1, 2)] * PASSES


def test_a_disturbed_measurement_does_not_count(policy):
    lane = Lane(LARGE, "fp32", 1)
    flops, reads = iter([1e9, 3e9, 2e9]), iter([6e9, 4e9, 5e9, 5e9, 4e9, 3e9])
    limits = Limits(
        [lane], {SMALL.network: policy}, Rates(lambda *_: next(flops), lambda *_: next(reads))
    )
    values = limits.to_dict()
    assert values["gflops"][0]["gflops"] == 3.0
    assert {r["gb_per_s"] for r in values["read"]} == {5.0, 6.0}


def test_fraction(policy):
    lane = Lane(LARGE, "fp32", 1)
    limits, _ = make([lane], policy)
    best_us = 1e6 * shapes.flop(LARGE, policy) / 1e9
    assert limits.fraction(lane, best_us) == pytest.approx(1.0)
    assert limits.fraction(lane, 4 * best_us) == pytest.approx(0.25)


def test_to_dict(policy):
    limits, _ = make([Lane(SMALL, "fp32", 2)], policy, flop=3e9, read=5e9)
    sizes = (2 * f(SMALL, policy) for f in (shapes.weights_again, shapes.weights_held))
    assert limits.to_dict() == {
        "gflops": [{"precision": "fp32", "threads": 2, "gflops": 6.0}],
        "read": [{"bytes_per_thread": s, "threads": 2, "gb_per_s": 10.0} for s in sizes],
    }


def test_a_rate_is_the_best_of_all_instruction_sets_that_would_do():
    class Native:
        isas = {"fp32": ["old", "new"], "bf16": ["tiles"], "int8": ["bytes"]}.get
        read_rate = None

        @staticmethod
        def flop_rate(precision, isa, threads, seconds):
            rates = {"old": 2, "new": 1, "tiles": 9, "bytes": 4}
            assert isa in Native.isas(precision)
            return threads * rates[isa]

    rates = native_rates(Native)
    assert [rates.flop(p, 2) for p in shapes.PRECISIONS] == [4, 18, 18]


def test_what_is_beyond_a_limit_fails(capsys):
    rows = [{"name": name, "limit_fraction": f} for name, f in (("a", 1.0), ("b", MOST))]
    assert refuse_beyond("x", rows, lambda row: row["name"]) == 0
    assert capsys.readouterr().err == ""
    rows += [{"name": name, "limit_fraction": f} for name, f in (("c", 1.46), ("d", math.nan))]
    assert refuse_beyond("x", rows, lambda row: row["name"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "sorl-bench x: c, is 146% of the machine's limit"
    assert said[1].startswith("sorl-bench x: d, is nan")
    assert "nothing can be above 105%" in said[2]


@pytest.mark.parametrize("precision", shapes.PRECISIONS)
def test_every_instruction_set_has_a_rate(precision):
    """Of what they multiply, csrc/tests/test_burn.cpp says more."""
    for isa in _bench.isas(precision):
        assert 1e8 < _bench.flop_rate(precision, isa=isa, seconds=1e-3) < math.inf, isa


def test_reading_has_a_rate():
    for size in (1, 5000, 3_000_000):  # rounded to whole blocks
        assert 1e8 < _bench.read_rate(size, threads=2, seconds=1e-3) < math.inf
