"""The native sampler on a trained policy and observations that it met: errors, and what they change.

`golden/trained_policy.safetensors` (128 x 3) and `golden/trained_observations.npz` (every third
observation of four episodes with 4 Euler steps) come from

    sorl-fast collect --env cube-single-play-v0 --episodes 250 --seed 0 --out data
    sorl-fast train --env cube-single-play-singletask-task2-v0 --data data --out small \\
      --hidden 128 --depth 3 --steps 32044 --seed 0
    python tests/record_observations.py small/policy.safetensors golden/trained_observations.npz

Q values are tens there, of untrained policies about 1.
"""

from pathlib import Path

import numpy as np
import pytest
from native.twin import errors

from sorl_fast.act import policy_file
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.sampler import Sampler

_native = pytest.importorskip("sorl_fast._native", reason="the extension is not built")

GOLDEN = Path(__file__).parent.parent / "golden"
# Largest error of an action component, absolute, and of a Q, relative to the largest.
ACTION = {"fp32": 1e-5, "bf16": 2.5e-2, "int8": 6e-2}
Q = {"fp32": 1e-5, "bf16": 2e-2, "int8": 2e-2}
# The chosen candidate's Q may be below the best one's by this part of the best's magnitude.
REGRET = {"fp32": 1e-5, "bf16": 1e-2, "int8": 1e-2}
# How many of the chosen candidates are float64's. Of 32 some are nearly as good as the best, and rounding
# may prefer them: what that costs is bounded above.
SAME = {"fp32": 1.0, "bf16": 0.8, "int8": 0.7}

PATHS = [(p, isa) for p in ("fp32", "bf16", "int8") for isa in _native.isas(p)]


@pytest.fixture(scope="module")
def policy():
    return policy_file.load(GOLDEN / "trained_policy.safetensors")


@pytest.fixture(scope="module")
def observations():
    with np.load(GOLDEN / "trained_observations.npz", allow_pickle=False) as file:
        return file["observations"]


def test_the_policy_is_trained(policy, observations):
    noise = np.random.default_rng(0).normal(size=(len(observations), 1, 5)).astype("f4")
    q = np.abs(best_of_n(policy, observations, noise, 4).q)
    assert len(observations) > 200
    assert q.max() > 10


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "isa"), PATHS)
@pytest.mark.parametrize(("M", "N"), [(1, 8), (2, 32), (4, 1), (8, 8)])
def test_errors_stay_within_their_bounds(monkeypatch, policy, observations, precision, isa, M, N):
    monkeypatch.setenv("SORL_CPU_ISA", isa)
    ours = Sampler(policy, "native", precision)
    observations = observations[:: 8 if isa == "scalar" else 2]
    noise = np.random.default_rng(M).normal(size=(len(observations), N, 5)).astype("f4")
    action, info = ours.act(observations, M, N, noise=noise, return_info=True)
    exact = best_of_n(policy, observations, noise, M, dtype=np.float64)
    error = errors(policy, observations, noise, M, action, info)
    largest = np.abs(exact.q).max()
    assert error.action <= ACTION[precision]
    assert error.q <= Q[precision] * largest
    assert error.relative_regret <= REGRET[precision]
    assert (info.candidate == exact.candidate).mean() >= SAME[precision]
