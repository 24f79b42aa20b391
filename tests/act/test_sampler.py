"""The Sampler: what it computes, shapes in and out, seeds, and every wrong argument named."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from acting import BACKENDS, POLICY, every, observations
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import golden_policy, make_policy
from tolerances import FLOAT32, GOLDEN, SPLIT

from sorl_fast import BadInput, Sampler
from sorl_fast.act.philox import normals
from sorl_fast.act.reference import best_of_n
from sorl_fast.act.sampler import Info, Status

NAN, INF = float("nan"), float("inf")


# --- what it computes


@every
@pytest.mark.parametrize("k", [1, 2, 4, 8], ids=lambda k: f"M{k}")
@pytest.mark.parametrize("n", [1, 8], ids=lambda n: f"N{n}")
def test_authors_samples(backend, k, n):
    policy, samples = golden_policy()
    obs, noise, action = (samples[f"sample/k{k}_n{n}/{x}"] for x in ("obs", "noise", "action"))
    out = Sampler(policy, backend=backend).act(obs, steps=k, candidates=n, noise=noise)
    assert out.dtype == np.float32
    assert np.abs(out - action).max() <= GOLDEN * np.abs(action).max()


@every
@settings(deadline=None, max_examples=60)
@given(
    O=st.integers(1, 7),
    A=st.integers(1, 6),
    H=st.sampled_from([1, 11, 17]),
    depth=st.integers(1, 3),
    E=st.integers(1, 3),
    B=st.integers(0, 6),
    N=st.integers(1, 5),
    m=st.integers(0, 3),
    q_agg=st.sampled_from(["mean", "min"]),
    normalise=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    call=st.integers(0, 2**33),
    row_offset=st.integers(0, 2**32 - 6),
)
def test_agrees_with_the_float64_definition(
    backend, O, A, H, depth, E, B, N, m, q_agg, normalise, seed, call, row_offset
):
    policy = make_policy(O, A, H, depth, E, q_agg=q_agg, normalise=normalise, salt=seed % 1000)
    obs = observations(B, O, seed)
    action, info = Sampler(policy, backend=backend).act(
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


# steps, candidates: the action of seed 2024 for one observation; these may never change
FROZEN = {
    (1, 1): [-0.8661119, 1.0000000, 1.0000000, -0.8214603, 0.7579321],
    (2, 4): [-0.8402692, 1.0000000, -0.3145023, 1.0000000, 1.0000000],
    (8, 1): [-1.0000000, 1.0000000, 1.0000000, -0.6045676, 0.6924019],
    (8, 16): [-1.0000000, 0.1768215, -1.0000000, 0.7429003, 0.1315951],
}


@every
@pytest.mark.parametrize("cell", [(1, 1), (2, 4), (8, 1), (8, 16)], ids=lambda c: f"M{c[0]}N{c[1]}")
def test_a_stated_seed_gives_the_same_action_for_ever(backend, cell):
    policy = make_policy(O=4, A=5, H=16, depth=3, normalise=True)
    action = Sampler(policy, backend=backend).act([0.5, -0.25, 1.0, 2.0], *cell, seed=2024, call=7)
    np.testing.assert_allclose(action, FROZEN[cell], rtol=0, atol=FLOAT32)


@every
def test_the_same_call_gives_the_same_bits(backend):
    sampler, other = Sampler(POLICY, backend=backend), Sampler(POLICY, backend=backend)
    obs = observations(5)
    first = sampler.act(obs, 4, 3, seed=9)
    sampler.act(obs[::-1], 2, 2, seed=1)
    for again in (sampler.act(obs, 4, 3, seed=9), other.act(obs.copy(), 4, 3, seed=9, call=0)):
        np.testing.assert_array_equal(again, first)


@every
def test_seed_and_call_change_the_action(backend):
    sampler = Sampler(POLICY, backend=backend)
    base = sampler.act(observations(1)[0], seed=5)
    for other in (
        {"seed": 6},
        {"seed": 5, "call": 1},
        {"seed": 5 + 2**32},
        {"seed": 5, "row_offset": 1},
    ):
        assert (sampler.act(observations(1)[0], **other) != base).any()
    np.testing.assert_array_equal(sampler.act(observations(1)[0], seed=5, call=2**32), base)


def test_without_a_seed_every_call_and_every_sampler_differs():
    free = make_policy(action_low=[-99, -99], action_high=[99, 99])  # a clip may make two equal
    one, two = Sampler(free), Sampler(free)
    obs = observations(1)[0]
    actions = [s.act(obs).tobytes() for s in (one, one, two, one, two)]
    assert len(set(actions)) == 5


@every
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_batch_may_be_split_with_row_offset(backend, cut):
    sampler = Sampler(POLICY, backend=backend)
    obs = observations(7)
    whole = sampler.act(obs, 8, 4, seed=3, call=2, row_offset=10)
    parts = [
        sampler.act(obs[:cut], 8, 4, seed=3, call=2, row_offset=10),
        sampler.act(obs[cut:], 8, 4, seed=3, call=2, row_offset=10 + cut),
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=SPLIT)
    one = sampler.act(obs[cut], 8, 4, seed=3, call=2, row_offset=10 + cut)
    np.testing.assert_allclose(one, whole[cut], rtol=0, atol=SPLIT)


@every
@pytest.mark.parametrize("N", [1, 4], ids=lambda n: f"N{n}")
def test_asking_for_info_leaves_the_action_as_it_is(backend, N):
    sampler = Sampler(POLICY, backend=backend)
    obs = observations(4)
    action, info = sampler.act(obs, 2, N, seed=1, return_info=True)
    np.testing.assert_array_equal(sampler.act(obs, 2, N, seed=1), action)
    assert np.isfinite(info.q).all()


@every
def test_info_of_one_observation_is_plain_numbers(backend):
    sampler = Sampler(POLICY, backend=backend)
    action, info = sampler.act(observations(1)[0], 2, 3, seed=1, return_info=True)
    assert action.shape == (2,)
    assert isinstance(info, Info)
    assert [type(x) for x in info] == [int, float, Status]


@every
def test_bounds_clip(backend):
    policy = make_policy(action_low=[-0.25, 0.5], action_high=[0.125, 1000.0])
    action, info = Sampler(policy, backend=backend).act(
        np.zeros((50, 3)), 1, noise=20 * normals(0, 50, 1, 2), return_info=True
    )
    assert action[:, 0].min() == -0.25
    assert action[:, 0].max() == 0.125
    assert action[:, 1].min() == 0.5
    at_bound = (action <= policy.action_low).any(1) | (action >= policy.action_high).any(1)
    np.testing.assert_array_equal(info.status == Status.CLIPPED, at_bound)


# --- arguments


@every
def test_accepts_any_real_numbers_lists_and_strided_views(backend):
    sampler = Sampler(POLICY, backend=backend)
    base = np.array([[1, -2, 3], [0, 2, -1]])
    expected = sampler.act(base.astype(np.float32), seed=1)
    for dtype in ("float64", "float16", "int8", "int64", ">f4", "longdouble"):
        np.testing.assert_array_equal(sampler.act(base.astype(dtype), seed=1), expected)
    np.testing.assert_array_equal(sampler.act(base.tolist(), seed=1), expected)
    wide = np.zeros((4, 6), np.float32)
    wide[::2, ::-2] = base
    np.testing.assert_array_equal(sampler.act(wide[::2, ::-2], seed=1), expected)
    fortran = np.asfortranarray(base, np.float32)
    fortran.flags.writeable = False
    np.testing.assert_array_equal(sampler.act(fortran, seed=1), expected)


@every
@pytest.mark.parametrize("N", [1, 4], ids=lambda n: f"N{n}")
def test_an_empty_batch_gives_an_empty_batch(backend, N):
    sampler = Sampler(POLICY, backend=backend)
    good = sampler.act(observations(1)[0], seed=0)
    action, info = sampler.act(np.zeros((0, 3)), 8, N, seed=1, return_info=True)
    assert action.shape == (0, 2)
    assert [x.shape for x in info] == [(0,)] * 3
    np.testing.assert_array_equal(sampler.act([NAN] * 3), good)
    assert sampler.act(np.zeros((0, 3)), 1, N, noise=np.zeros((0, N, 2))).shape == (0, 2)


BAD_CALLS = {
    "obs too short": ({"obs": [0.0, 1.0]}, "obs has the shape [2], but must be [3] or [B, 3]"),
    "obs empty": ({"obs": []}, "obs has the shape [0]"),
    "obs scalar": ({"obs": 1.0}, "obs has the shape []"),
    "obs 3-D": ({"obs": np.zeros((2, 2, 3))}, "obs has the shape [2, 2, 3]"),
    "obs transposed": ({"obs": np.zeros((3, 2))}, "obs has the shape [3, 2]"),
    "obs bool": ({"obs": [True, False, True]}, "obs has the dtype bool"),
    "obs complex": ({"obs": [1j, 0, 0]}, "obs has the dtype complex128"),
    "obs text": ({"obs": ["1", "2", "3"]}, "obs has the dtype str"),
    "obs object": ({"obs": [None, 1, 2]}, "obs has the dtype object"),
    "obs None": ({"obs": None}, "obs has the dtype object"),
    "obs ragged": ({"obs": [[1, 2, 3], [1, 2]]}, "obs cannot be read as an array of numbers"),
    "steps=17": (
        {"steps": 17},
        "steps is 17, but this policy was trained for 1, 2, 4, 8 Euler steps",
    ),
    "steps=32": ({"steps": 32}, "give one to 16 steps, or train with a larger --m-disc"),
    "steps=2^31": ({"steps": 2**31}, "steps is 2147483648, but must be an integer from 1 to 2048"),
    "steps=0": ({"steps": 0}, "steps is 0, but must be an integer from 1"),
    "steps=2.0": ({"steps": 2.0}, "steps is 2.0, but must be an integer from 1"),
    "steps=True": ({"steps": True}, "steps is True"),
    "candidates=0": ({"candidates": 0}, "candidates is 0, but must be an integer from 1"),
    "candidates=-1": ({"candidates": -1}, "candidates is -1"),
    "seed=-1": ({"seed": -1}, "seed is -1, but must be an integer from 0 to 18446744073709551615"),
    "seed=2^64": ({"seed": 2**64}, "seed is 18446744073709551616"),
    "seed=1.5": ({"seed": 1.5}, "seed is 1.5"),
    "call=-1": ({"seed": 0, "call": -1}, "call is -1"),
    "call=False": ({"seed": 0, "call": False}, "call is False"),
    "call=0.0": ({"seed": 0, "call": 0.0}, "call is 0.0"),
    "call alone": ({"call": 3}, "call is 3 without a seed: give seed= too, or neither"),
    "row_offset=-1": ({"row_offset": -1}, "row_offset is -1"),
    "row_offset=2^32": ({"row_offset": 2**32}, "row_offset is 4294967296"),
    "row_offset=2^64 - 1": ({"row_offset": 2**64 - 1}, "row_offset is 18446744073709551615"),
    "noise and seed": ({"noise": np.zeros((1, 2)), "seed": 0}, "noise is given together with"),
    "noise and call": ({"noise": np.zeros((1, 2)), "call": 0}, "noise is given together with"),
    "noise [A]": ({"noise": np.zeros(2)}, "noise has the shape [2], but must be [1, 2]"),
    "noise [B, N, A]": ({"noise": np.zeros((1, 1, 2))}, "noise has the shape [1, 1, 2]"),
    "noise N": ({"noise": np.zeros((2, 2))}, "must be [1, 2]: candidates, action components"),
    "noise bool": ({"noise": np.zeros((1, 2), bool)}, "noise has the dtype bool"),
    "noise batch": (
        {"obs": np.zeros((4, 3)), "noise": np.zeros((1, 2))},
        "noise has the shape [1, 2], but must be [4, 1, 2]: observations, candidates",
    ),
}


@every
@pytest.mark.parametrize("dtype", ["f8", "f4"])  # float32 takes the native backend's shorter way
@pytest.mark.parametrize(("kwargs", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_arguments_are_named(backend, dtype, kwargs, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        Sampler(POLICY, backend=backend).act(**({"obs": np.zeros(3, dtype)} | kwargs))


@every
def test_a_copy_is_refused_with_the_way_to_go(backend):
    sampler = Sampler(POLICY, backend=backend)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="send its policy, or the file's path"):
            attempt(sampler)
    twin = Sampler(pickle.loads(pickle.dumps(sampler.policy)), backend=backend)
    np.testing.assert_array_equal(twin.act(np.zeros(3), seed=1), sampler.act(np.zeros(3), seed=1))


def test_numpy_integers_are_integers():
    sampler = Sampler(POLICY)
    expected = sampler.act(np.zeros(3), 4, 2, seed=2**63 + 1, call=3, row_offset=4)
    given_as = sampler.act(
        np.zeros(3),
        *(np.int64(4), np.uint8(2)),
        seed=np.uint64(2**63 + 1),
        call=np.int32(3),
        row_offset=np.int16(4),
    )
    np.testing.assert_array_equal(given_as, expected)


@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_the_last_row_number_is_two_to_the_32_less_one(dtype):
    sampler = Sampler(POLICY)
    assert sampler.act(np.zeros((2, 3), dtype), seed=0, row_offset=2**32 - 2).shape == (2, 2)
    with pytest.raises(BadInput, match="row_offset is 4294967295"):
        sampler.act(np.zeros((2, 3), dtype), seed=0, row_offset=2**32 - 1)


# --- tensors


@pytest.mark.parametrize("N", [1, 4], ids=lambda n: f"N{n}")
def test_a_tensor_gives_tensors(N):
    sampler = Sampler(POLICY, backend="torch")
    obs = observations(5)
    expected, numbers = sampler.act(obs, 4, N, seed=1, return_info=True)
    x = torch.from_numpy(obs).requires_grad_()
    action, info = sampler.act(x, 4, N, seed=1, return_info=True)
    assert isinstance(action, torch.Tensor)
    assert action.device == x.device
    assert not action.requires_grad
    assert [part.dtype for part in (action, *info)] == [
        *(torch.float32, torch.int64, torch.float32, torch.int32),
    ]
    np.testing.assert_array_equal(action.numpy(), expected)
    for tensor, array in zip(info, numbers, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
    one, info = sampler.act(x[0], 4, N, seed=1, return_info=True)
    assert one.shape == (2,)
    assert [part.shape for part in info] == [()] * 3


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.int32, torch.uint8], ids=str
)
def test_any_real_tensor_is_taken(dtype):
    sampler = Sampler(POLICY, backend="torch")
    expected = sampler.act([1.0, 2.0, 3.0], seed=1)
    out = sampler.act(torch.tensor([1, 2, 3], dtype=dtype), seed=1)
    np.testing.assert_array_equal(out.numpy(), expected)


def test_noise_may_be_a_tensor():
    sampler = Sampler(POLICY, backend="torch")
    noise = normals(0, 2, 3, 2)
    expected = sampler.act(observations(2), 2, 3, noise=noise)
    out = sampler.act(observations(2), 2, 3, noise=torch.from_numpy(noise))
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=str)
def test_a_tensor_of_another_dtype_is_refused(dtype):
    with pytest.raises(BadInput, match=f"obs has the dtype {dtype}"):
        Sampler(POLICY, backend="torch").act(torch.zeros(3, dtype=dtype))


def test_the_numpy_backend_reads_a_tensor_as_an_array_or_says_what_to_do():
    sampler = Sampler(POLICY, backend="numpy")
    out = sampler.act(torch.zeros(3), seed=0)
    assert isinstance(out, np.ndarray)
    with pytest.raises(BadInput, match="needs backend='torch' or 'triton'"):
        sampler.act(torch.zeros(3, requires_grad=True), seed=0)


def test_torch_threads_and_random_state_are_left_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    numpy_state = repr(np.random.get_state())  # noqa: NPY002
    for backend in BACKENDS:
        Sampler(POLICY, backend=backend, threads=1).act(np.zeros((3, 3)), 4, 4)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002
