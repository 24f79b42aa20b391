"""Out of distribution: a status bit of observations, on every backend, and the file that says it."""

import dataclasses

import numpy as np
import pytest
from acting import every
from policies import make_policy
from policy_bytes import POLICY, check_same, refused, seal_any, unpack

from sorl_fast import BadInput, Sampler
from sorl_fast.act.ood import OodTest
from sorl_fast.act.policy_file import describe, dumps, loads
from sorl_fast.act.sampler import Status
from sorl_fast.action_map import ActionMap

FAR = int(Status.OUT_OF_DISTRIBUTION)
BAND = 1e-4  # relative: d^2 so near to the threshold may fall on either side by rounding


def ood_of(O, threshold=None, seed=0):
    """Return a test of observations of correlated components, which marks about a half."""
    rng = np.random.default_rng((seed, O))
    mixed = np.tril(0.3 * rng.standard_normal((O, O)) / np.sqrt(O)) + np.diag(
        rng.uniform(0.5, 2, O)
    )
    mean = rng.uniform(-3, 3, O)
    numbers = {"mean": mean, "whiten": np.linalg.inv(mixed), "rate": 0.01, "measured": 0.0125}
    return OodTest(**numbers, threshold=float(O) if threshold is None else threshold), mixed


def like_it(test, mixed, rows, seed=1):
    z = np.random.default_rng((seed, rows)).standard_normal((rows, test.dim))
    return (test.mean + z @ mixed.T).astype(np.float32)


def twin(test, x):
    """Return d^2 [B] in float64, a term at a time."""
    m, W = test.mean.astype(np.float64), test.whiten.astype(np.float64)
    return np.array(
        [sum((W[i] @ (row - m)) ** 2 for i in range(test.dim)) for row in x.astype(float)]
    )


def bits(sampler, x, M=1, N=1, **more):
    status = sampler.act(x, M, N, seed=3, return_info=True, **more)[1].status
    return np.asarray(status).astype(int) & FAR


@every
@pytest.mark.parametrize("O", [1, 17, 69, 376])
def test_the_bit_is_that_of_a_plain_twin(backend, O):
    test, mixed = ood_of(O)
    sampler = Sampler(make_policy(O=O, normalise=True, ood=test), backend)
    x = like_it(test, mixed, 300)
    square = twin(test, x)
    clear = np.abs(square / test.threshold - 1) > BAND
    expected = np.where(square > test.threshold, FAR, 0)
    assert clear.mean() > 0.95
    assert 0.1 < (expected > 0).mean() < 0.9
    for B in (300, 7, 1, 0):
        for N in (1, 3):
            got = bits(sampler, x[:B], 1, N)
            np.testing.assert_array_equal(got[clear[:B]], expected[:B][clear[:B]])
    assert [int(bits(sampler, row)) for row in x[:7]] == bits(sampler, x[:7]).tolist()


@every
def test_the_action_is_what_it_is_without(backend):
    test, mixed = ood_of(3)
    with_it, without = (Sampler(make_policy(ood=t), backend) for t in (test, None))
    x = like_it(test, mixed, 40)
    x[5, 1] = np.nan
    for N in (1, 4):
        (a, i), (b, j) = (s.act(x, 2, N, seed=5, return_info=True) for s in (with_it, without))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(i.candidate, j.candidate)
        np.testing.assert_array_equal(i.q, j.q)
        np.testing.assert_array_equal(np.asarray(i.status) & ~np.uint32(FAR), j.status)
        assert 0 < (np.asarray(i.status) & FAR > 0).sum() < 39
        for sampler in (with_it, without):
            sampler.reset()
        calls = [sampler.act(x, 2, N, seed=6) for sampler in (with_it, without)]  # no status
        np.testing.assert_array_equal(*calls)


@every
def test_what_is_not_finite_is_not_judged_and_what_is_huge_is_far(backend):
    test, mixed = ood_of(4, threshold=1e6)
    sampler = Sampler(make_policy(O=4, ood=test), backend)
    x = like_it(test, mixed, 6)
    for i, value in enumerate((np.nan, np.inf, -np.inf, 1e30, 3e38)):
        x[i, i % 4] = value
    status = np.asarray(sampler.act(x, 1, seed=1, return_info=True)[1].status).astype(int)
    assert status[:3].tolist() == [Status.NONFINITE_OBS | Status.HELD] * 3
    assert (status[3:5] & FAR).tolist() == [FAR, FAR]
    assert not status[5] & FAR
    x[:] = 3e38  # of which squares overflow as well
    assert (bits(sampler, x) == FAR).all()
    # infinities of both signs, whose sum is no number where products are not fused
    whiten = np.tril([[100, 0, 0, 0], [100, -100, 0, 0], [100, -100, 50, 0], [100, -100, 50, -50]])
    test = dataclasses.replace(test, whiten=whiten)
    sampler = Sampler(make_policy(O=4, ood=test), backend)
    for rows in (x, x[:1]):
        assert (bits(sampler, rows) == FAR).all()


@every
def test_one_observation_and_a_chunk_have_it_too(backend):
    test, _ = ood_of(3)
    sampler = Sampler(make_policy(A=4, chunk=2, ood=test), backend)
    near, far = test.mean, test.mean + 100
    assert not sampler.act(near, return_info=True)[1].status & FAR
    assert isinstance(sampler.act(far, return_info=True)[1].status, Status)
    for x, expected in ((far, FAR), (near, 0)):
        sampler.reset()
        assert int(sampler.replay(x, return_info=True)[1].status) & FAR == expected
        assert sampler.replay(None, return_info=True)[1].status == Status.REPLAYED


def test_natively_the_bits_are_the_same_on_any_threads_and_instruction_set(monkeypatch):
    native = pytest.importorskip("sorl_fast._native")
    test, mixed = ood_of(69)
    policy = make_policy(O=69, H=32, ood=test)
    x = like_it(test, mixed, 300)
    # where rounding decides, it decides alike
    near = dataclasses.replace(test, threshold=float(test.squares(x[:1])[0]))
    for judged in (test, near):
        policy = dataclasses.replace(policy, ood=judged)
        found = []
        for precision in ("fp32", "bf16", "int8"):
            for isa in native.isas(precision):
                monkeypatch.setenv("SORL_CPU_ISA", isa)
                for threads in (1, 2, 3):
                    sampler = Sampler(policy, "native", precision, threads)
                    # together, apart, and with observations whose candidates are of two blocks
                    for B, N in ((300, 1), (3, 5), (5, 40), (1, 300)):
                        found.append((B, bits(sampler, x[:B], 2, N)))
        whole = found[0][1]
        for B, got in found:
            np.testing.assert_array_equal(got, whole[:B])


def test_a_deadline_keeps_it():
    pytest.importorskip("sorl_fast._native")
    test, _ = ood_of(3)
    sampler = Sampler(make_policy(ood=test), "native")
    sampler.prepare_deadline()
    for x, expected in ((test.mean, 0), (test.mean + 100, FAR)):
        for budget in (1e9, 0.0):  # whole, and cut at once
            _, info = sampler.act(x.astype(np.float32), deadline_us=budget, return_info=True)
            assert int(info.status) & FAR == expected
            assert bool(info.status & Status.CUT_SHORT) == (budget == 0)


def test_act_into_writes_it():
    pytest.importorskip("sorl_fast._native")
    test, mixed = ood_of(3)
    sampler = Sampler(make_policy(ood=test), "native")
    x, out, status = like_it(test, mixed, 9), np.empty((9, 2), np.float32), np.zeros(9, np.uint32)
    sampler.act_into(x, out, 1, seed=3, status=status)
    np.testing.assert_array_equal(status & FAR, bits(sampler, x))
    sampler.act_into(x, out, 1, seed=3)  # nobody reads it


MORE = {
    "alone": {},
    "units": {"action_map": ActionMap(low=(-2, -2), high=(3, 3))},
    "chunk": {"A": 4, "chunk": 2},
}


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_a_file_of_format_6_says_it(more):
    policy = make_policy(ood=ood_of(3)[0], **more)
    data = dumps(policy)
    back = loads(data)
    check_same(policy, back)
    np.testing.assert_array_equal(back.ood.mean, policy.ood.mean)
    np.testing.assert_array_equal(back.ood.whiten, policy.ood.whiten)
    assert back.ood.to_json() == policy.ood.to_json()
    header, meta, _ = unpack(data)
    assert meta["format"] == 6
    assert meta["ood"] == {"threshold": 3.0, "rate": 0.01, "measured": 0.0125}
    assert header["ood/whiten"]["shape"] == [3, 3]
    assert describe(policy)["ood"]["threshold"] == 3.0
    plain = dataclasses.replace(policy, ood=None)
    assert unpack(dumps(plain))[1]["format"] < 6
    assert unpack(dumps(POLICY))[1]["format"] == 1


def test_bad_ones_are_refused_by_name():
    header, meta, body = unpack(dumps(make_policy(ood=ood_of(3)[0])))
    good = meta["ood"]

    def file(**changes):
        return seal_any(header, meta | changes, body)

    for name, values, bound in (
        (
            "threshold",
            (0, -1.0, 1e-60, 3.5e38, "1", None, True),
            "a number above 0, finite in float32",
        ),
        ("rate", (0, 1, -0.5, 2, None), "a number above 0 and below 1"),
        ("measured", (-0.1, 1.5, "0", None), "a number from 0 to 1"),
    ):
        for value in values:
            text = refused(file(ood=good | {name: value}), f"ood {name} is {value!r}")
            assert bound in text
    refused(file(ood=None), "ood is None, but must be an object with threshold, rate, measured")
    refused(file(ood={"threshold": 1}), "an object with threshold, rate, measured")
    refused(file(ood=good | {"more": 1}), "an object with threshold, rate, measured")
    refused(file(format=5), "ood is {")
    refused(seal_any(header, {k: v for k, v in meta.items() if k != "ood"}, body), "ood is missing")
    entry = header["ood/mean"]
    for changed, message in (
        (entry | {"shape": [4]}, "ood/mean shape is [4], but must be [3]"),
        (entry | {"dtype": "F64"}, "ood/mean dtype is 'F64', but must be F32"),
    ):
        refused(seal_any(header | {"ood/mean": changed}, meta, body), message)
    rest = {k: v for k, v in header.items() if k != "ood/whiten"}
    refused(seal_any(rest, meta, body), "tensors is 17, but must be 18")
    begin, _ = header["ood/whiten"]["data_offsets"]
    for bad in (np.nan, np.inf):
        changed = body[:begin] + np.float32(bad).tobytes() + body[begin + 4 :]
        refused(seal_any(header, meta, changed), f"ood/whiten[0, 0] is {bad}, but must be finite")


def test_arguments_are_checked():
    good = {"mean": np.zeros(3), "whiten": np.eye(3), "threshold": 1.0, "rate": 0.1, "measured": 0}
    for changes, message in (
        ({"whiten": np.eye(4)}, r"ood/whiten shape is \[4, 4\], but must be \[3, 3\]"),
        ({"mean": np.zeros((1, 3))}, r"ood/mean shape is \[1, 3\]"),
        ({"mean": [0, np.nan, 0]}, r"ood/mean\[1\] is nan, but must be finite"),
        ({"threshold": np.float32(2)}, "ood threshold is"),
        ({"threshold": float("nan")}, "ood threshold is nan"),
        ({"rate": 0.0}, "ood rate is 0.0"),
        ({"measured": 1.1}, "ood measured is 1.1"),
    ):
        with pytest.raises(BadInput, match=message):
            OodTest(**good | changes)
    with pytest.raises(BadInput, match="ood is of 3 observations, but must be of obs_dim = 5"):
        make_policy(O=5, ood=OodTest(**good))
    with pytest.raises(BadInput, match="ood is 3, but must be None, or an OodTest"):
        make_policy(ood=3)
    with pytest.raises(ValueError, match="read-only"):
        OodTest(**good).whiten[0, 0] = 2
