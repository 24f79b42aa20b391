"""The best-of-N kernel against the float64 definition, and what it says of a row."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import flat, normal_layers, packed
from sorl_fast.kernels import best_of_n as kernels
from sorl_fast.kernels.best_of_n import (
    CANDIDATE_REJECTED,
    CLIPPED,
    NONFINITE_OBS,
    NONFINITE_RESULT,
)
from sorl_fast.kernels.tiles import Tile

from sorl_fast.act import philox
from sorl_fast.layout import Layout
from sorl_fast.ops import reference

from .place import generator, here

# slow: in all longer than the everyday loop has
pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.slow]

ACTIONS = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}  # absolute
VALUES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2}  # relative to the largest


class Problem(NamedTuple):
    actor: list
    critic: list
    obs: torch.Tensor
    noise: torch.Tensor
    steps: int
    q_agg: str
    low: torch.Tensor
    high: torch.Tensor

    def run(self, precision="fp32", noise=None, **more):
        O = self.obs.shape[1]
        nets = [
            packed(layers, Layout.of_obs(flat(layers), O, norm), precision)
            for layers, norm in ((self.actor, False), (self.critic, True))
        ]
        noise = self.noise if noise is None else noise
        rest = (self.noise.shape[1], self.steps, self.q_agg, self.low, self.high)
        found = kernels.best_of_n(*nets, self.obs, noise, *rest, **more)
        assert [x.dtype for x in found] == [torch.float32, torch.int64, torch.float32, torch.int32]
        return found


def problem(E=2, O=5, A=3, H=64, actor_H=64, L=2, B=4, N=4, M=2, q_agg="mean", seed=0):
    g = generator(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    actor = normal_layers(Layout.actor(O, A, actor_H, L), normal)
    critic = normal_layers(Layout.critic(O, A, H, L, E), normal, last=(1.0, 1.0))
    noise = here(philox.normals(seed, B, N, A, 3, 2))  # that of key_of(seed)
    low, high = -0.5 - normal(A).abs(), 0.5 + normal(A).abs()
    return Problem(actor, critic, normal(B, O), noise, M, q_agg, low, high)


def key_of(seed=0):
    return torch.tensor([seed, 3, 2])


class Truth(NamedTuple):
    z: torch.Tensor  # [B, N, A], before the clip
    actions: torch.Tensor  # [B, N, A]
    q: torch.Tensor  # [B, N]


def truth(p):
    """Return every candidate's action and Q in float64."""
    B, N, A = p.noise.shape
    actor, critic = ([tuple(x.double() for x in y) for y in z] for z in (p.actor, p.critic))
    rows = p.obs.double().repeat_interleave(N, 0)
    z = reference.denoise(actor, rows, p.noise.double().view(B * N, A), p.steps)
    actions = z.clamp(p.low.double(), p.high.double())
    q = reference.aggregate(reference.critic_ensemble(critic, rows, actions, p.steps), p.q_agg)
    return Truth(z.view(B, N, A), actions.view(B, N, A), q.view(B, N))


def check(p, precision="fp32", noise=None, tile=None):
    t = truth(p)
    action, index, q, flags = p.run(precision, noise, tile=tile)
    row = torch.arange(len(p.obs))
    assert float((action - t.actions[row, index]).abs().max()) < ACTIONS[precision]
    slack = VALUES[precision] * float(t.q.abs().max())
    assert float((q - t.q[row, index]).abs().max()) < slack
    assert float((t.q.amax(1) - t.q[row, index]).max()) < 2 * slack  # the best, or a near tie
    if precision == "fp32":
        clipped = (t.z != t.actions)[row, index].any(1)
        assert flags.tolist() == torch.where(clipped, CLIPPED, 0).tolist()


SHAPES = {
    "A1-O2-N1-M1": dict(A=1, O=2, N=1, M=1, B=1),
    "A5-O28-N8-M2": dict(A=5, O=28, N=8, M=2, B=3, actor_H=128),
    "A21-O69-N32-M1-min": dict(A=21, O=69, N=32, M=1, B=2, q_agg="min", H=128),
    "A5-O28-N1-M8": dict(A=5, O=28, N=1, M=8, B=19),
    "ten-members-N3-min": dict(E=10, N=3, M=1, B=6, L=1, q_agg="min"),
    "one-member-N33": dict(E=1, N=33, M=1, B=1),
    "A70": dict(A=70, N=2, M=1, B=1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_best_candidate_wins(shape):
    check(problem(**shape))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("shape", ["A5-O28-N8-M2", "A21-O69-N32-M1-min"])
def test_the_best_candidate_wins_in_other_precisions(precision, shape):
    check(problem(**SHAPES[shape]), precision)


@pytest.mark.parametrize("shape", ["A5-O28-N8-M2", "A70", "one-member-N33"])
def test_noise_from_a_key_is_that_of_every_backend(shape):
    p = problem(**SHAPES[shape])
    for drawn, handed in zip(p.run(noise=key_of()), p.run(), strict=True):
        torch.testing.assert_close(drawn, handed, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "tile", [Tile(16, 32, 16, 4, 1), Tile(64, 64, 32, 8, 2)], ids=lambda t: f"{t.BM}x{t.BN}"
)
@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_any_division_of_the_work_serves(tile, at_once, monkeypatch):
    monkeypatch.setattr(kernels, "candidates_at_once", lambda *_: at_once)
    check(problem(B=5, N=5, M=1), tile=tile)


@settings(max_examples=6, deadline=None)
@given(
    E=st.integers(1, 3), O=st.integers(1, 70), A=st.integers(1, 25), B=st.integers(1, 9),
    N=st.integers(1, 20), M=st.sampled_from([1, 2, 4]), q_agg=st.sampled_from(["mean", "min"]),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_shape_serves(E, O, A, B, N, M, q_agg, seed):
    check(problem(E, O, A, B=B, N=N, M=M, q_agg=q_agg, L=1, seed=seed), noise=key_of(seed))


@settings(max_examples=100, deadline=None)
@given(B=st.integers(1, 5000), N=st.integers(1, 100), log2_rows=st.integers(4, 7))
def test_a_group_fills_a_tile_without_many_idle_rows(B, N, log2_rows):
    tile = Tile(1 << log2_rows, 64, 64, 4, 2)
    at_once = kernels.candidates_at_once(B, N, tile, 4)
    assert tile.BM % at_once == 0

    def rounds(at_once):
        groups = -(-B // (tile.BM // at_once))
        return -(-groups // 4) * -(-N // at_once)

    assert rounds(at_once) == min(rounds(1 << i) for i in range(log2_rows + 1))


@pytest.mark.parametrize("N", [3, 40], ids=["in-one-go", "in-several"])
def test_the_smallest_index_wins_a_tie(N):
    p = problem(B=2, N=N, M=1)
    p.noise[:] = p.noise[:, :1]
    p.critic[-1][0].zero_()  # equal whatever a row's products round to
    assert p.run(tile=Tile(16, 64, 64, 4, 1))[1].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_candidate_that_is_not_finite_never_wins(bad):
    p = problem(B=3, N=4, M=1)
    _, index, _, _ = p.run()
    p.noise[0, index[0], 0] = bad
    p.noise[1] = bad
    action, found, q, flags = p.run()
    left = p._replace(noise=p.noise.clone())
    left.noise[~left.noise.isfinite()] = 0.0
    t = truth(left)
    t.q[0, index[0]] = -torch.inf
    assert found[0] == t.q[0].argmax()
    assert found[2] == index[2]
    assert flags[0] & ~CLIPPED == CANDIDATE_REJECTED
    assert flags[1] == NONFINITE_RESULT
    assert flags[2] & ~CLIPPED == 0
    assert (found[1], q[1]) == (0, -torch.inf)
    assert action[[0, 2]].isfinite().all()
    assert q[[0, 2]].isfinite().all()


@pytest.mark.parametrize("N", [1, 2])
def test_the_clip_does_not_make_an_infinite_action_good(N):
    p = problem(B=2, N=N, M=1)
    p.actor[-1][1][0] = torch.inf
    assert p.run()[3].tolist() == [NONFINITE_RESULT, NONFINITE_RESULT]


def test_a_critic_without_an_answer_rejects_where_there_is_a_choice():
    p = problem(B=2, N=2, M=1, q_agg="min")
    p.critic[-1][1][1] = torch.nan  # one member suffices
    _, index, q, flags = p.run()
    assert flags.tolist() == [NONFINITE_RESULT, NONFINITE_RESULT]
    assert index.tolist() == [0, 0]
    single = p._replace(noise=p.noise[:, :1])
    _, index, q, flags = single.run()
    assert index.tolist() == [0, 0]
    assert q.isnan().all()
    assert (flags & ~CLIPPED == 0).all()


def test_one_candidate_needs_no_critic():
    p = problem(B=5, N=1)
    action, index, _, flags = p.run()
    for x in p.critic[0]:
        x.fill_(torch.nan)  # would show if it were used
    alone = p.run(want_q=False)
    torch.testing.assert_close(alone[0], action, rtol=0, atol=0)
    assert alone[1].tolist() == index.tolist() == [0] * 5
    assert alone[2].isnan().all()
    assert alone[3].tolist() == flags.tolist()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_observation_that_is_not_finite_is_told(bad):
    p = problem(O=40, B=4, N=3, M=1)  # more columns than a piece of an observation
    clean = p.run()
    p.obs[2, 39] = bad
    found = p.run()
    assert found[3][2] == NONFINITE_OBS
    others = [0, 1, 3]
    for x, y in zip(found, clean, strict=True):
        torch.testing.assert_close(x[others], y[others], rtol=0, atol=0)


def test_no_rows():
    p = problem(B=0)
    assert [x.shape for x in p.run()] == [(0, 3), (0,), (0,), (0,)]


def test_a_seed_of_64_bits():
    p = problem(B=2, N=2, M=1)
    seed = 2**64 - 7
    p = p._replace(noise=here(philox.normals(seed, 2, 2, 3, 3, 2)))
    key = here(np.array([seed, 3, 2], np.uint64).view(np.int64))
    check(p, noise=key)
