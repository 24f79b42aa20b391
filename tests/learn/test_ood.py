"""What train makes of the data's observations: a threshold that is kept, and perturbations that pass it."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import own_arrays
from runs import agent, assert_same_run, config

from sorl_fast import BadInput, Sampler, cli
from sorl_fast.act import policy_file
from sorl_fast.act.sampler import Status
from sorl_fast.data.dataset import DataPair, TransitionData, load_data
from sorl_fast.learn.ood import halves, ood_test, said, whitening
from sorl_fast.learn.train import train

O = 6
FAR = Status.OUT_OF_DISTRIBUTION
MIX = np.tril(np.random.default_rng(9).normal(size=(O, O)))


def observations(rows, seed):
    """Correlated components of different units; the last one never varies."""
    x = np.random.default_rng(seed).normal(size=(rows, O)) @ MIX.T * 10.0 ** np.arange(-3, 3) + 5
    x[:, -1] = 0.25
    return x.astype(np.float32)


def arrays(rows, seed):
    return own_arrays(T=rows, seed=seed) | {"observations": observations(rows, seed)}


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "mine.npz", **arrays(4000, 0))
    np.savez(folder / "mine-val.npz", **arrays(6000, 1))
    return folder / "mine.npz"


def rate_of(test, x):
    return test.beyond(x.astype(np.float32)).mean()


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_clean_observations_pass_and_perturbed_ones_do_not(mine, rate):
    test = ood_test(load_data("mine", mine), rate)
    x = observations(8000, 2)
    scale = x.std(0)
    rng = np.random.default_rng(3)
    assert test.rate == rate
    assert abs(test.measured - rate) < 0.4 * rate
    assert abs(rate_of(test, x) - rate) < 0.4 * rate
    noise = rng.standard_normal(x.shape) * scale
    rates = [rate_of(test, x + s * noise) for s in (0.1, 0.3, 1.0)]
    assert rate < rates[0] < rates[1] < rates[2]
    assert rates[2] > 0.7
    mixed = np.where(rng.random(x.shape) < 0.5, x, x[rng.permutation(len(x))])
    assert rate_of(test, mixed) > 0.3
    for i in range(O):
        moved = x.copy()
        moved[:, i] += 8 * scale[i] if scale[i] > 0 else 1e-2
        assert rate_of(test, moved) > 0.9, i


def test_it_is_the_distance_of_the_covariance():
    x = observations(3000, 4)[:, :-1].astype(np.float64)
    mean, whiten = whitening(torch.from_numpy(x.copy()))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12)
    assert (np.triu(whiten, 1) == 0).all()
    covariance = np.cov(x.T, bias=True)
    noise = np.maximum(0.01 * x.std(0), 1e-6 * np.maximum(np.abs(x).max(0), np.median(x.std(0))))
    expected = np.linalg.inv(covariance + np.diag(noise**2))
    np.testing.assert_allclose(whiten.T @ whiten, expected, rtol=1e-6)
    # of the data themselves the mean square is the dimension, less what the noise takes
    square = (((x - mean) @ whiten.T) ** 2).sum(1)
    assert 0.9 * x.shape[1] < square.mean() < x.shape[1]


# And by how much of its largest value, or of 1, the last component is moved.
ODD = {
    "constant": (lambda x: np.concatenate([x, np.full((len(x), 1), 7.0)], 1), 1e-4),
    "zero": (lambda x: np.concatenate([x, np.zeros((len(x), 1))], 1), 1e-4),
    "twice": (lambda x: np.concatenate([x, x[:, :1]], 1), 0.1),
    "sum": (lambda x: np.concatenate([x, x[:, :1] + 3 * x[:, 1:2]], 1), 0.1),
    "all constant": (lambda x: np.full_like(x, 3.0), 1e-4),
    "huge": (lambda x: x * 1e30, 10),
    "tiny": (lambda x: x * 1e-30, 1e-28),
    "one row": (lambda x: x[:1], 1e-4),
}


@pytest.mark.parametrize(("make", "move"), ODD.values(), ids=ODD)
def test_what_never_varied_or_follows_from_others_is_seen_to_move(make, move):
    def of(seed, rows=2000):
        x = np.random.default_rng(seed).normal(size=(rows, 3))
        return make(x + np.array([0, 5, -5])).astype(np.float32)

    train_x = of(0)
    val = of(1) if len(train_x) > 1 else np.repeat(train_x, 2000, 0)
    test = ood_test(DataPair(*(transitions(y, y) for y in (train_x, val))), 0.01)
    assert np.isfinite(test.whiten).all()
    x = of(2) if len(train_x) > 1 else val
    assert rate_of(test, x) < 0.03
    moved = x.copy()
    moved[:, -1] += move * max(1, np.abs(train_x[:, -1]).max())
    assert rate_of(test, moved) > 0.95


def transitions(x, following):
    T = len(x)
    rest = {"actions": np.zeros((T, 1)), "rewards": np.zeros(T), "masks": np.ones(T)}
    return TransitionData(rest | {"observations": x, "next_observations": following}, "x")


# Rows of episodes, and where the second half begins.
HALVES = {
    "many": ([49] * 120, 2940),
    "odd": ([49] * 121, 2940),
    "two": ([40, 60], 40),
    "one": ([100], 50),
    "one and a little": ([5, 95], 50),
    "none": ([1] * 9, 4),
    "uneven": ([10, 20, 30, 3, 40], 60),
}


@pytest.mark.parametrize(("lengths", "expected"), HALVES.values(), ids=HALVES)
def test_the_halves_of_the_validation_data_share_no_episode(lengths, expected):
    x = observations(sum(lengths) + len(lengths), 1)
    ends = np.cumsum(np.array(lengths) + 1) - 1
    keep = ~np.isin(np.arange(len(x)), ends)
    assert halves(transitions(x[keep], np.roll(x, -1, 0)[keep])) == expected


def test_the_halves_of_chunks_share_no_episode(mine):
    for h in (2, 7):  # of chunks, which overlap
        chunks = load_data("mine", mine, chunk=h).val
        cut, T = halves(chunks, h), len(chunks)
        obs, following = chunks.transitions.observations, chunks.transitions.next_observations
        assert abs(cut - T // 2) <= 50
        assert not (following[cut - h] == obs[cut]).all()
        assert (following[cut - h - 1] == obs[cut - 1]).all()


def test_validation_data_that_overflow_make_a_threshold_all_the_same():
    x, val = observations(2000, 0), observations(2000, 1)
    val[::2] = 3e38 * np.sign(val[::2])
    test = ood_test(DataPair(transitions(x, x), transitions(val, val)), 0.01)
    assert test.threshold == np.finfo(np.float32).max
    assert rate_of(test, val) == 0.5


def test_what_measures_the_rate_has_no_part_in_the_threshold():
    x, val = observations(2000, 0), observations(2000, 1)
    tests = []
    for far in (0, 1e6):
        val[1000:] += far
        tests.append(ood_test(DataPair(transitions(x, x), transitions(val, val)), 0.01))
    assert tests[0].threshold == tests[1].threshold
    assert tests[0].threshold in tests[0].squares(val[:1000])
    assert tests[0].measured < 0.03
    assert tests[1].measured == 1


def test_a_normaliser_changes_nothing(mine):
    plain, normalised = (
        ood_test(load_data("mine", mine, normalize_obs=n), 0.01) for n in (False, True)
    )
    x = observations(2000, 5)
    a, b = plain.squares(x), normalised.squares(x)
    np.testing.assert_allclose(a, b, rtol=1e-3)
    np.testing.assert_allclose(plain.threshold, normalised.threshold, rtol=1e-3)


@pytest.mark.slow
def test_a_training_writes_it_and_says_it(mine, tmp_path, capsys):
    a = agent(normalize_obs=True)
    result = train(a, config(mine, tmp_path / "whole"), progress=False)
    policy = policy_file.load(result.policy)
    told = f"out-of-distribution bit: its threshold flags {policy.ood.measured:.2%} of held-out"
    assert told in capsys.readouterr().err
    train(a, config(mine, tmp_path / "parts", steps=7), progress=False)
    train(a, config(mine, tmp_path / "parts"), resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")

    x = observations(4000, 6)
    far = x + np.random.default_rng(7).normal(size=x.shape) * x.std(0)
    sampler = Sampler(policy)
    clean, perturbed = (
        np.mean(sampler.act(y, return_info=True)[1].status & FAR > 0) for y in (x, far)
    )
    assert clean < 0.02
    assert perturbed > 0.7

    off = train(a, config(mine, tmp_path / "off", ood_rate=0.0), progress=False)
    assert policy_file.load(off.policy).ood is None
    assert "out of distribution" not in capsys.readouterr().err.splitlines()[-1]
    for one in (policy, policy_file.load(off.policy)):  # it changes nothing else
        data = policy_file.dumps(dataclasses.replace(one, ood=None))
        assert data == (tmp_path / "off" / "policy.safetensors").read_bytes()


def test_without_enough_validation_data_nothing_is_written_and_that_is_said(
    own_file, tmp_path, capsys
):
    run = tmp_path / "few"
    result = train(agent(), config(own_file, run, steps=1, val_every=0), progress=False)
    assert (
        "no observation will be marked, for 98 validation observations" in capsys.readouterr().err
    )
    assert policy_file.load(result.policy).ood is None
    (own_file.parent / "mine-val.npz").unlink()
    result = train(
        agent(), config(own_file, tmp_path / "none", steps=1, val_every=0), progress=False
    )
    assert (
        "no observation will be marked, for there are no validation data" in capsys.readouterr().err
    )
    assert policy_file.load(result.policy).ood is None
    assert said(None, 0.5, load_data("mine", own_file)).endswith("no validation data")


def test_chunks_have_it_too(mine, tmp_path):
    result = train(agent(), config(mine, tmp_path / "run", steps=1, chunk=3), progress=False)
    policy = policy_file.load(result.policy)
    assert policy.chunk == 3
    assert abs(policy.ood.measured - 0.01) < 0.01
    assert policy.config == agent().to_dict()


@pytest.mark.parametrize("rate", [-0.1, 1, 2, float("nan"), "x"])
def test_a_rate_that_is_none_is_refused(rate, tmp_path):
    with pytest.raises(BadInput, match="ood_rate"):
        config(tmp_path / "mine.npz", tmp_path / "run", ood_rate=rate)


def test_the_command_line_has_it(mine, tmp_path, capsys):
    argv = [
        "train",
        "--env",
        "mine",
        "--data",
        str(mine),
        "--q-coef",
        "1",
        "--hidden",
        "8",
        "--steps",
        "1",
    ]
    argv += ["--eval-every", "0", "--val-every", "0", "--no-progress", "--ood-rate", "0.05"]
    assert cli.main([*argv, "--out", str(tmp_path / "run")]) == 0
    assert "(asked for: 5.00%)" in capsys.readouterr().err
    assert policy_file.load(tmp_path / "run" / "policy.safetensors").ood.rate == 0.05
