"""The triton backend where its kernel runs, interpreted; its graphs, with a recorder that stands in."""

import re
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import make_policy
from tolerances import CHAIN_HALF, FLOAT32, SPLIT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sorl_fast import BadInput, Sampler, ops
from sorl_fast.act.backends.triton import KEPT, TritonSession, _Place
from sorl_fast.act.philox import normals
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.session import NoiseKey, Status
from sorl_fast.ops import triton_sampling as kernels

H = 64
POLICY = make_policy(H=H)
NARROW = make_policy(H=8)  # computed by PyTorch's products: the interpreter takes its time

pytestmark = pytest.mark.filterwarnings(  # numpy's, which does the interpreter's sums
    "ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning"
)
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def ran(monkeypatch):
    """What each call of the kernel was given."""
    monkeypatch.setitem(
        globals(), "POLICY", make_policy(H=H)
    )  # not yet packed, to be called as it was
    calls = []
    real = kernels.best_of_n_of
    monkeypatch.setattr(
        kernels, "best_of_n_of", lambda *a, **k: calls.append((a, k)) or real(*a, **k)
    )
    return calls


def observations(rows, O=3, seed=0):
    return normals(seed, rows, 1, O, call=99)[:, 0]


def sampler(policy=None, precision="fp32"):
    return Sampler(policy or POLICY, backend="triton", precision=precision)


# --- what it computes


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(
    O=st.integers(1, 7),
    A=st.integers(1, 6),
    depth=st.integers(1, 2),
    E=st.integers(1, 3),
    B=st.integers(0, 6),
    N=st.integers(1, 5),
    m=st.integers(0, 1),
    q_agg=st.sampled_from(["mean", "min"]),
    normalise=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    call=st.integers(0, 2**33),
    row_offset=st.integers(0, 2**32 - 6),
)
def test_agrees_with_the_float64_definition(
    O, A, depth, E, B, N, m, q_agg, normalise, seed, call, row_offset
):
    policy = make_policy(O, A, H, depth, E, q_agg=q_agg, normalise=normalise, salt=seed % 1000)
    obs = observations(B, O, seed)
    action, info = sampler(policy).act(
        obs, 2**m, N, seed=seed, call=call, row_offset=row_offset, return_info=True
    )
    noise = normals(seed, B, N, A, call, row_offset)
    twin = best_of_n(policy, obs, noise, 2**m, dtype=np.float64)
    assert action.shape == (B, A)
    assert (action.dtype, info.q.dtype, info.status.dtype, info.candidate.dtype) == (
        *("float32", "float32", "uint32", "int64"),
    )
    same = info.candidate == twin.candidate
    tolerance = 10 * FLOAT32 * np.maximum(1, np.abs(twin.q))  # of Q, whose LayerNorm magnifies
    assert (np.abs(info.q - twin.q) <= tolerance).all()  # a near tie may pick the other candidate
    np.testing.assert_allclose(action[same], twin.action[same], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("cell", [(1, 1), (2, 4)], ids=lambda c: f"M{c[0]}N{c[1]}")
def test_the_kernel_draws_numpys_noise(ran, cell):
    policy = make_policy(O=4, A=5, H=H, normalise=True)
    x = [0.5, -0.25, 1.0, 2.0]
    action = sampler(policy).act(x, *cell, seed=2**64 - 3, call=7, row_offset=2**32 - 2)
    expected = Sampler(policy, backend="numpy").act(
        x, *cell, seed=2**64 - 3, call=7, row_offset=2**32 - 2
    )
    np.testing.assert_allclose(action, expected, rtol=0, atol=FLOAT32)
    (_, _, _, key, *_), _ = ran[0]
    assert key.tolist() == [-3, 7, 2**32 - 2]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_precisions(ran, precision):
    obs, noise = observations(9), normals(1, 9, 1, 2)
    action, info = sampler(precision=precision).act(obs, 2, noise=noise, return_info=True)
    expected, exact = sampler().act(obs, 2, noise=noise, return_info=True)
    bound = CHAIN_HALF["fp16"]
    np.testing.assert_allclose(action, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(info.q, exact.q, rtol=0, atol=3 * bound * np.abs(exact.q).max())
    kind = torch.float16 if precision == "fp16" else torch.float32
    (actor, *_), options = ran[0]
    assert actor.weights.dtype == kind
    assert actor.precision == precision
    assert options["want_q"] is True


@pytest.mark.slow
def test_statuses_are_numpys():
    policy = make_policy(H=H, E=1)
    w, b = (np.zeros_like(part) for part in policy.critic[-1])
    w[0, 2, 0] = 3e38  # Q overflows for some candidates
    policy = make_policy(H=H, E=1, critic=(*policy.critic[:-1], (w, b)))
    obs, noise = observations(60), 3 * normals(4, 60, 3, 2)
    obs[::7, 0] = NAN
    noise[::5, 1] = INF
    noise[::9] = NAN
    obs[::11] = 3e38
    (a, one), (b, two) = (
        Sampler(policy, backend=name).act(obs, 2, 3, noise=noise, return_info=True)
        for name in ("numpy", "triton")
    )
    np.testing.assert_array_equal(one.status, two.status)
    np.testing.assert_array_equal(one.candidate, two.candidate)
    np.testing.assert_allclose(a, b, rtol=0, atol=FLOAT32)
    assert np.bitwise_or.reduce(one.status) == 31  # each bit was seen


def test_an_observation_that_only_normalising_makes_infinite_is_a_result_not_an_observation():
    policy = make_policy(H=H, normalise=True)
    policy = make_policy(H=H, obs_mean=policy.obs_mean, obs_std=np.full(3, 1e-3))
    obs = np.full((1, 3), 3e38)
    infos = [
        Sampler(policy, backend=name).act(obs, seed=1, return_info=True)[1]
        for name in ("numpy", "triton")
    ]
    assert infos[0].status == infos[1].status == Status.NONFINITE_RESULT | Status.HELD


def test_with_one_candidate_q_rejects_nothing():
    policy = make_policy(H=H, E=1)
    w, b = (np.zeros_like(part) for part in policy.critic[-1])
    w[0, 2, 0] = 3e38
    policy = make_policy(H=H, E=1, critic=(*policy.critic[:-1], (w, b)))
    obs, noise = observations(40), normals(4, 40, 1, 2)
    acting = sampler(policy)
    action, info = acting.act(obs, 1, noise=noise, return_info=True)
    assert not np.isfinite(info.q).all()
    assert (info.status & ~np.uint32(Status.CLIPPED) == 0).all()
    np.testing.assert_array_equal(action, acting.act(obs, 1, noise=noise))


@pytest.mark.slow
def test_rows_without_an_action_hold_the_last_good_one_from_before_the_call():
    acting = sampler()
    good = acting.act(observations(3), 2, 2, seed=1)
    obs = observations(4, seed=5)
    obs[0, 1], obs[3, 2] = NAN, -INF
    action, info = acting.act(obs, 2, 2, seed=2, return_info=True)
    held = Status.NONFINITE_OBS | Status.HELD
    assert [s & ~Status.CLIPPED for s in map(int, info.status)] == [held, 0, 0, held]
    np.testing.assert_array_equal(action[[0, 3]], good[[-1, -1]])  # not row 1 or 2 of this call
    np.testing.assert_array_equal(acting.act([INF] * 3), action[2])
    clean = sampler().act(observations(4, seed=5), 2, 2, seed=2)
    np.testing.assert_allclose(action[1:3], clean[1:3], rtol=0, atol=SPLIT)


@pytest.mark.slow
def test_tensors_in_tensors_out():
    acting = sampler()
    obs = observations(5)
    expected, numbers = acting.act(obs, 2, 3, seed=1, return_info=True)
    x = torch.from_numpy(obs).double().requires_grad_()
    action, info = acting.act(x, 2, 3, seed=1, return_info=True)
    assert action.device == x.device
    assert not action.requires_grad
    assert [part.dtype for part in (action, *info)] == [
        *(torch.float32, torch.int64, torch.float32, torch.int32),
    ]
    np.testing.assert_array_equal(action.numpy(), expected)
    for tensor, array in zip(info, numbers, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_without_info_a_lone_candidate_is_not_scored(ran):
    sampler().act(observations(2), seed=1)
    assert ran[0][1]["want_q"] is False


# --- how it computes


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fused", "chain", "reference"])
def test_every_way_gives_the_same(way, ran, monkeypatch):
    monkeypatch.setattr(ops, "sampling_implementation", lambda *a: way)
    policy = make_policy(H=H, normalise=True)
    obs = observations(4)
    obs[1, 1] = NAN
    action, info = sampler(policy).act(obs, 2, 3, seed=5, return_info=True)
    expected, exact = Sampler(policy, backend="numpy").act(obs, 2, 3, seed=5, return_info=True)
    np.testing.assert_allclose(action, expected, rtol=0, atol=FLOAT32)
    np.testing.assert_array_equal(info.status, exact.status)
    assert len(ran) == (way == "fused")


@pytest.mark.parametrize(
    ("policy", "precision", "way"),
    [
        (POLICY, "fp32", "reference"),
        (POLICY, "bf16", "reference"),
        (make_policy(H=48), "fp32", "chain"),
    ],
    ids=["reference", "bf16", "width"],
)
def test_on_a_gpu_the_table_is_asked(policy, precision, way, monkeypatch):
    asked = []
    monkeypatch.setattr(ops.table, "choice", lambda *a, **k: asked.append((a, k)) or "reference")
    layers = [
        [tuple(map(torch.from_numpy, map(np.array, layer))) for layer in net]
        for net in (policy.actor, policy.critic)
    ]
    device = torch.device("cuda", 1)
    assert ops.sampling_implementation(*layers, 12, precision, device) == way
    if policy.hidden % 64:
        assert not asked
        return
    (((operation, given, sizes, rows), more),) = asked
    assert (operation, given, rows, more) == ("best_of_n", precision, 12, {"device": device})
    assert (sizes.obs, sizes.act, sizes.hidden, sizes.members) == (3, 2, H, 2)


@pytest.mark.slow
def test_weights_are_packed_once(monkeypatch):
    packs = []
    pack = kernels.pack
    monkeypatch.setattr(kernels, "pack", lambda *a: packs.append(a) or pack(*a))
    policy = make_policy(H=H)
    for acting in (sampler(policy), sampler(policy)):
        for rows in (1, 3, 1):
            acting.act(observations(rows), seed=1)
    assert len(packs) == 2  # actor and critic


class Crossings(TorchDispatchMode):
    """Notes operations in which numbers pass between host and device."""

    def __init__(self):
        super().__init__()
        self.seen, self.crossings = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if torch.is_tensor(x)}
        self.seen += 1
        if len(devices) > 1:
            self.crossings.append(str(func))
        return out


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fused", "chain", "reference"])
@pytest.mark.parametrize("draw", [True, False], ids=["key", "noise"])
def test_a_call_never_waits_for_a_gpu(way, draw, monkeypatch):
    """Which a graph could not record. A tensor of the meta device has no numbers to wait for."""
    monkeypatch.setattr(ops, "sampling_implementation", lambda *a: way)
    session = TritonSession(make_policy(H=H, normalise=True), "fp32")
    session._device = torch.device("meta")
    obs, noise = (torch.empty(*s, device="meta") for s in ((4, 3), (4, 2, 2)))
    call = obs, NoiseKey(2**64 - 1, 0, 0) if draw else noise, 2, 4, True
    session.act(*call)  # copies the policy
    with Crossings() as watch:
        action, _ = session.act(*call)
    assert action.shape == (4, 2)
    assert action.is_meta
    assert watch.seen > 5
    assert not watch.crossings


class Recorder:
    """Runs a recording's function again at each replay, into the memory of the first."""

    def __init__(self, fails=False):
        self.ran, self.recorded, self.replayed, self.fails = 0, 0, 0, fails

    def run(self, function):
        self.ran += 1
        return function()

    def record(self, function):
        if self.fails:
            raise RuntimeError("capture failed")
        self.recorded += 1
        memory = []

        def replay():
            self.replayed += 1
            found = function()
            if not memory:
                memory.extend(found)
            for own, x in zip(memory, found, strict=True):
                own.copy_(x)
            return memory

        return replay


def recorded(policy=NARROW, recorder=None):
    """Return a session that records, and its recorder."""
    recorder = recorder or Recorder()
    return TritonSession(policy, "fp32", lambda device: recorder), recorder


def test_each_size_of_call_is_recorded_once_and_replayed():
    session, recorder = recorded()
    plain = TritonSession(NARROW, "fp32")
    obs = torch.from_numpy(observations(12))
    calls = [
        (obs[:3], NoiseKey(1, 0, 0), 2, 1, False),
        (obs[3:6], NoiseKey(1, 1, 0), 2, 1, False),
        (obs[6:9], NoiseKey(2**64 - 1, 5, 9), 2, 1, False),
        (obs[:3], torch.from_numpy(normals(3, 3, 2, 2)), 2, 1, False),
        (obs[:4], NoiseKey(1, 0, 0), 2, 1, False),
        (obs[:3], NoiseKey(1, 0, 0), 2, 2, False),
        (obs[:3], NoiseKey(1, 0, 0), 2, 1, True),
        (obs[9:], NoiseKey(1, 0, 0), 2, 1, False),
    ]
    results = [session.act(*call) for call in calls]
    assert (recorder.ran, recorder.recorded, recorder.replayed) == (5, 5, 3)
    for (action, info), call in zip(results, calls, strict=True):  # nothing was overwritten
        expected, exact = plain.act(*call)
        assert torch.equal(action, expected)
        assert torch.equal(info.candidate, exact.candidate)
        assert torch.equal(info.status, exact.status)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [POLICY, NARROW], ids=["fused", "chain"])
def test_replays_hold_and_pass_on_the_last_good_action(policy):
    session, _ = recorded(policy)
    obs = torch.from_numpy(observations(3, seed=5))
    bad = torch.full((3, 3), NAN)
    half = obs.clone()
    half[2, 0] = NAN
    key = NoiseKey(1, 0, 0)
    first, _ = session.act(obs, key, 2, 1, False)
    assert torch.equal(session.act(bad, key, 2, 1, False)[0], first[[2, 2, 2]])
    second, _ = session.act(half, key, 2, 1, False)
    assert torch.equal(second[2], first[2])
    assert torch.equal(session.act(bad, key, 2, 1, False)[0], second[[1, 1, 1]])


def test_the_first_run_of_a_size_counts_once():
    session, _ = recorded()
    good = torch.from_numpy(observations(2))
    rest, _ = session.act(torch.full((1, 3), NAN), NoiseKey(1, 0, 0), 1, 1, False)
    good[0, 0] = NAN
    action, _ = session.act(good, NoiseKey(1, 0, 0), 1, 1, False)
    assert torch.equal(action[0], rest[0])  # as it was before the call


def test_few_graphs_are_kept():
    session, recorder = recorded()
    for rows in range(KEPT + 2):
        session.act(torch.zeros(rows, 3), NoiseKey(1, 0, 0), 1, 1, False)
    session.act(torch.zeros(KEPT + 1, 3), NoiseKey(1, 0, 0), 1, 1, False)
    assert (recorder.recorded, recorder.replayed) == (KEPT + 2, 1)
    session.act(torch.zeros(0, 3), NoiseKey(1, 0, 0), 1, 1, False)
    assert recorder.recorded == KEPT + 3


def test_a_recording_that_fails_is_said_once_and_done_without():
    session, recorder = recorded(recorder=Recorder(fails=True))
    rest = torch.from_numpy(np.clip(np.zeros(2, np.float32), -1, 1))
    obs = torch.from_numpy(observations(2))
    obs[0, 0] = NAN
    with pytest.warns(RuntimeWarning, match="cannot be recorded as CUDA graphs.*capture failed"):
        action, _ = session.act(obs, NoiseKey(1, 0, 0), 1, 1, False)
    assert torch.equal(action[0], rest)  # the run that failed to be recorded left no trace
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = session.act(obs, NoiseKey(1, 0, 0), 1, 1, False)
    assert torch.equal(again[1], action[1])
    assert torch.equal(again[0], action[1])
    assert recorder.ran == 1


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no-graphs"])
def test_a_first_call_in_inference_mode_lets_others_follow(graphs):
    session = recorded()[0] if graphs else TritonSession(NARROW, "fp32")
    obs, key = torch.from_numpy(observations(2)), NoiseKey(1, 0, 0)
    with torch.inference_mode():
        first, _ = session.act(obs, key, 2, 1, False)
    again, _ = session.act(obs, key, 2, 1, False)
    assert torch.equal(again, first)
    with torch.inference_mode():
        assert torch.equal(session.act(obs.clone(), key, 2, 1, False)[0], first)


def test_a_users_graph_may_record_only_what_is_packed_already(monkeypatch):
    session = TritonSession(NARROW, "fp32")
    obs, key = torch.from_numpy(observations(2)), NoiseKey(1, 0, 0)
    monkeypatch.setattr(session, "_in_users_graph", lambda device: True)
    with pytest.raises(
        BadInput, match=r"first call of 2 rows, 3 candidates and steps 1 .* recording of a CUDA"
    ):
        session.act(obs, key, 3, 1, False)
    monkeypatch.undo()
    first, _ = session.act(obs, key, 3, 1, False)
    monkeypatch.setattr(session, "_in_users_graph", lambda device: True)
    assert torch.equal(session.act(obs, key, 3, 1, False)[0], first)
    # the reference packs nothing
    monkeypatch.setattr(ops, "sampling_implementation", lambda *_: "reference")
    plain, _ = TritonSession(NARROW, "fp32").act(obs, key, 3, 1, False)
    fresh = TritonSession(NARROW, "fp32")
    monkeypatch.setattr(fresh, "_in_users_graph", lambda device: True)
    assert torch.equal(fresh.act(obs, key, 3, 1, False)[0], plain)


def test_a_call_on_another_stream_waits_for_the_last():
    waits = []

    class Stream:
        def wait_stream(self, other):
            waits.append((self, other))

    place = _Place(torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.ones(2), None)
    one, two = Stream(), Stream()
    for stream in (one, one, two, two, one):
        place.follow(stream)
    assert waits == [(two, one), (one, two)]


# --- what may be missing


def test_without_triton(monkeypatch):
    monkeypatch.setattr(ops, "_triton_or_why", None)
    monkeypatch.setitem(sys.modules, "sorl_fast.ops.triton", None)
    with pytest.raises(BadInput, match=r"triton is not usable.*pip install sorl-fast\[gpu\]"):
        sampler()


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr("sorl_fast.ops.triton.INTERPRETED", False)
    message = "backend is 'triton', but torch finds no GPU on this machine: choose backend native"
    with pytest.raises(BadInput, match=re.escape(message)):
        sampler()
    monkeypatch.setenv("SORL_BACKEND", "triton")
    with pytest.raises(BadInput, match=re.escape(message)):
        Sampler(POLICY)
