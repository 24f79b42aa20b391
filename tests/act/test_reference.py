"""The numpy definition: the authors' figures, its float64 twin, and the rules of choosing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import golden_policy, make_policy
from tolerances import FLOAT32, GOLDEN

from sorl_fast.act import reference
from sorl_fast.act.philox import normals
from sorl_fast.act.reference import best_of_n
from sorl_fast.status import Status

GOLDEN_POLICY, SAMPLES = golden_policy()

POLICIES = st.builds(
    make_policy,
    O=st.integers(1, 9),
    A=st.integers(1, 6),
    # with 2 to 10 units all may nearly agree, and LayerNorm then magnifies rounding up to 1000 times
    H=st.sampled_from([1, 11, 12, 16, 17, 33]),
    depth=st.integers(1, 4),
    E=st.integers(1, 3),
    m_disc=st.sampled_from([1, 2, 4, 8]),
    q_agg=st.sampled_from(["mean", "min"]),
    salt=st.integers(0, 1000),
    normalise=st.booleans(),
)


def observations(policy, rows, seed=0):
    return 2 * normals(seed, rows, 1, policy.obs_dim, call=99)[:, 0]


@pytest.mark.parametrize("k", [1, 2, 4, 8], ids=lambda k: f"M{k}")
@pytest.mark.parametrize("n", [1, 8], ids=lambda n: f"N{n}")
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_authors_samples(k, n, dtype):
    obs, noise, action = (SAMPLES[f"sample/k{k}_n{n}/{x}"] for x in ("obs", "noise", "action"))
    choice = best_of_n(GOLDEN_POLICY, obs[None], noise[None], k, dtype=dtype)
    assert choice.action.dtype == choice.q.dtype == dtype
    assert np.abs(choice.action[0] - action).max() <= GOLDEN * np.abs(action).max()
    assert choice.status[0] in (0, Status.CLIPPED)


def scalar_actor(policy, x, z, t, log2_steps):
    """One row, one number at a time."""
    h = [*map(float, x), *map(float, z), t, log2_steps]
    for i, (w, b) in enumerate(policy.actor):
        h = [sum(h[j] * float(w[j, o]) for j in range(len(h))) + float(b[o]) for o in range(len(b))]
        if i < policy.depth:
            h = [gelu(v) for v in h]
    return h


def scalar_critic(policy, e, x, a, k):
    h = [*map(float, x), *map(float, a), float(k)]
    for i, (w, b, *norm) in enumerate(policy.critic):
        w, b = w[e], b[e]
        h = [sum(h[j] * float(w[j, o]) for j in range(len(h))) + float(b[o]) for o in range(len(b))]
        if i < policy.depth:
            h = [gelu(v) for v in h]
            mean = sum(h) / len(h)
            root = math.sqrt(sum((v - mean) ** 2 for v in h) / len(h) + 1e-6)
            gain, shift = (part[e].tolist() for part in norm)
            h = [(v - mean) / root * g + c for v, g, c in zip(h, gain, shift, strict=True)]
    return h[0]


def gelu(v):
    return v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


@pytest.mark.parametrize("q_agg", ["mean", "min"])
@pytest.mark.parametrize("steps", [1, 4], ids=lambda m: f"M{m}")
def test_equals_the_formulas_written_out_in_scalars(steps, q_agg):
    policy = make_policy(O=3, A=2, H=5, depth=2, E=3, q_agg=q_agg)
    obs, noise = observations(policy, 2), normals(1, 2, 3, 2)
    choice = best_of_n(policy, obs, noise, steps, dtype=np.float64)
    for b in range(2):
        scored = []
        for n in range(3):
            z = [float(v) for v in noise[b, n]]
            for i in range(steps):
                v = scalar_actor(policy, obs[b], z, i / steps, math.log2(steps))
                z = [zj + vj / steps for zj, vj in zip(z, v, strict=True)]
            a = [min(max(v, -1.0), 1.0) for v in z]
            q = [scalar_critic(policy, e, obs[b], a, steps) for e in range(3)]
            scored.append((sum(q) / 3 if q_agg == "mean" else min(q), -n, a))
        q, n, a = max(scored)
        np.testing.assert_allclose(choice.action[b], a, rtol=0, atol=1e-12)
        assert choice.candidate[b] == -n
        assert abs(choice.q[b] - q) < 1e-12


def near_tie(policy, obs, noise, steps):
    """Whether the two best candidates of some row are too close for float32 to rank."""
    x = obs.astype(np.float64)
    if policy.obs_mean is not None:
        x = (x - policy.obs_mean) / policy.obs_std
    rows = np.repeat(x, noise.shape[1], axis=0)
    z = noise.reshape(len(rows), -1).astype(np.float64)
    actor, critic = (
        [[a.astype(np.float64) for a in layer] for layer in layers]
        for layers in (policy.actor, policy.critic)
    )
    actions = reference.rollout(actor, rows, z, steps)
    q = reference.aggregate(reference.critic_values(critic, rows, actions, steps), policy.q_agg)
    best = np.sort(q.reshape(noise.shape[:2]), axis=1)
    return (best[:, -1] - best[:, -2] < 1e-4).any()


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    policy=POLICIES,
    B=st.integers(1, 7),
    N=st.integers(1, 9),
    m=st.integers(0, 3),
    seed=st.integers(0, 2**64 - 1),
)
def test_float32_agrees_with_its_float64_twin(policy, B, N, m, seed):
    steps = policy.train_steps[min(m, len(policy.train_steps) - 1)]
    obs, noise = observations(policy, B, seed), normals(seed, B, N, policy.act_dim)
    single = best_of_n(policy, obs, noise, steps)
    double = best_of_n(policy, obs, noise, steps, dtype=np.float64)
    assert single.action.dtype == single.q.dtype == np.float32
    assert double.action.dtype == double.q.dtype == np.float64
    if N > 1 and near_tie(policy, obs, noise, steps):
        return
    np.testing.assert_array_equal(single.candidate, double.candidate)
    np.testing.assert_allclose(single.action, double.action, rtol=0, atol=FLOAT32)
    scale = max(1, np.abs(double.q).max())
    np.testing.assert_allclose(single.q, double.q, rtol=0, atol=FLOAT32 * scale)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 2), (29, 8, 33, 3), (69, 21, 64, 4)], ids=str
)
def test_every_step_agrees_with_its_float64_twin(shape):
    O, A, H, depth = shape
    policy = make_policy(O, A, H, depth)
    double = [[a.astype(np.float64) for a in layer] for layer in policy.actor]
    obs, z = observations(policy, 5), normals(3, 5, 1, A)[:, 0]
    for i in range(8):
        step = reference.actor_velocity(policy.actor, obs, z, i / 8, 3)
        twin = reference.actor_velocity(
            double, obs.astype(np.float64), z.astype(np.float64), i / 8, 3
        )
        assert step.dtype == np.float32
        np.testing.assert_allclose(step, twin, rtol=0, atol=FLOAT32)
        z = z + step / 8


def test_ties_go_to_the_smallest_index():
    policy = make_policy(critic_out=0.25)
    choice = best_of_n(policy, observations(policy, 4), normals(0, 4, 6, 2), 2)
    assert choice.candidate.tolist() == [0] * 4
    assert choice.q.tolist() == [0.25] * 4


@pytest.mark.parametrize(("q_agg", "q"), [("mean", 0.5), ("min", -1.0)])
def test_aggregate(q_agg, q):
    policy = make_policy(critic_out=[[-1.0], [2.0]], q_agg=q_agg)
    assert best_of_n(policy, observations(policy, 1), normals(0, 1, 2, 2), 1).q[0] == q


def test_bounds_clip_and_do_not_rescale():
    policy = make_policy(A=3, action_low=[-0.5, -5, -0.1], action_high=[0.25, 5, 3])
    free = make_policy(A=3, action_low=[-50] * 3, action_high=[50] * 3)
    obs, noise = observations(policy, 20), normals(0, 20, 1, 3)
    clipped, raw = (best_of_n(p, obs, noise, 4) for p in (policy, free))
    np.testing.assert_array_equal(
        clipped.action, np.clip(raw.action, policy.action_low, policy.action_high)
    )
    changed = (clipped.action != raw.action).any(1)
    assert changed.any()
    assert not changed.all()
    np.testing.assert_array_equal(clipped.status, np.where(changed, Status.CLIPPED, 0))


def test_critic_sees_the_clipped_action_and_k_is_the_steps():
    policy = make_policy(action_low=[-0.01] * 2, action_high=[0.01] * 2)
    obs, noise = observations(policy, 3), 9 * np.abs(normals(0, 3, 1, 2))
    choice = best_of_n(policy, obs, noise, 8)
    q = reference.critic_values(policy.critic, obs, choice.action, 8).mean(0)
    np.testing.assert_array_equal(choice.q, q)
    other = reference.critic_values(policy.critic, obs, choice.action, 4).mean(0)
    assert (other != q).all()


def test_normaliser_is_applied_once():
    policy = make_policy(normalise=True)
    plain = make_policy()
    obs, noise = observations(policy, 3), normals(0, 3, 4, 2)
    a = best_of_n(policy, obs, noise, 4)
    b = best_of_n(plain, (obs - policy.obs_mean) / policy.obs_std, noise, 4)
    np.testing.assert_array_equal(a.action, b.action)
    np.testing.assert_array_equal(a.q, b.q)


def test_candidate_n_of_row_b_starts_from_its_own_noise():
    policy = make_policy()
    obs, noise = observations(policy, 5), normals(0, 5, 4, 2)
    choice = best_of_n(policy, obs, noise, 2)
    for b in range(5):
        alone = best_of_n(policy, obs[b : b + 1], noise[b : b + 1, choice.candidate[b]][:, None], 2)
        np.testing.assert_allclose(alone.action[0], choice.action[b], rtol=0, atol=FLOAT32)
        every = [
            best_of_n(policy, obs[b : b + 1], noise[b : b + 1, n : n + 1], 2).q for n in range(4)
        ]
        assert np.argmax(every) == choice.candidate[b]


def test_inputs_are_left_alone():
    policy = make_policy(normalise=True)
    obs, noise = observations(policy, 3), normals(0, 3, 4, 2)
    before = obs.copy(), noise.copy()
    obs.flags.writeable = noise.flags.writeable = False
    best_of_n(policy, obs, noise, 4)
    np.testing.assert_array_equal(obs, before[0])
    np.testing.assert_array_equal(noise, before[1])


@pytest.mark.parametrize("N", [1, 3], ids=lambda n: f"N{n}")
def test_empty_batch(N):
    choice = best_of_n(
        make_policy(), np.zeros((0, 3), np.float32), np.zeros((0, N, 2), np.float32), 4
    )
    assert [part.shape for part in choice] == [(0, 2), (0,), (0,), (0,)]


def test_gelu_and_layer_norm_by_hand():
    x = np.array([[-2.0, 0.0, 1.0, 3.0]])
    expected = [gelu(v) for v in x[0]]
    np.testing.assert_allclose(reference.gelu(x)[0], expected, rtol=0, atol=1e-15)
    y = reference.layer_norm(x, np.full(4, 2.0), np.full(4, 0.5))
    spread = math.sqrt(np.var(x) + 1e-6)
    np.testing.assert_allclose(y[0], 2 * (x[0] - 0.5) / spread + 0.5, rtol=0, atol=1e-14)
    flat = reference.layer_norm(np.full((1, 4), 7.0), np.ones(4), np.zeros(4))
    assert (flat == 0).all()  # a variance of 0 is no division by 0
