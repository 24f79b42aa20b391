"""Policies of action chunks: h actions a call, replayed one a tick, held and refused sensibly."""

import dataclasses
import json

import numpy as np
import pytest
from acting import every, observations
from policies import make_policy

from sorl_fast import BadInput, Sampler
from sorl_fast.act.policy_file import dumps, loads
from sorl_fast.act.sampler import Status
from sorl_fast.action_map import ActionMap

H, A = 3, 2  # of a chunk
FLAT = make_policy(A=H * A)
CHUNKED = dataclasses.replace(FLAT, chunk=H)
NAN = [np.nan] * 3


def act_flat(sampler, *args, **more):
    """Act, and return the numbers of the chunks as one vector each."""
    action = sampler.act(*args, **more)
    return np.asarray(action).reshape(*action.shape[:-2], H * A)


@every
@pytest.mark.parametrize("N", [1, 3], ids=lambda n: f"N{n}")
def test_a_call_returns_what_it_returns_without_chunks_cut_into_h_actions(backend, N):
    flat, chunked = Sampler(FLAT, backend), Sampler(CHUNKED, backend)
    for obs in (observations(1)[0], observations(4), observations(0)):
        expected = flat.act(obs, 4, N, seed=5, call=2)
        got, info = chunked.act(obs, 4, N, seed=5, call=2, return_info=True)
        assert got.shape == (*np.shape(obs)[:-1], H, A)
        np.testing.assert_array_equal(np.asarray(got).reshape(expected.shape), expected)
        assert np.shape(info.status) == np.shape(obs)[:-1]
        np.testing.assert_array_equal(act_flat(chunked, obs, 4, N, seed=5, call=2), expected)


@every
def test_a_tensor_of_observations_gives_tensors_of_chunks(backend):
    torch = pytest.importorskip("torch")
    if backend not in ("torch", "triton"):
        pytest.skip("gives arrays")
    sampler = Sampler(CHUNKED, backend)
    got = sampler.act(torch.zeros(4, 3), seed=1)
    assert isinstance(got, torch.Tensor)
    assert got.shape == (4, H, A)
    tick, info = sampler.replay(torch.zeros(4, 3), seed=1, return_info=True)
    assert torch.equal(tick, got[:, 0])
    tick, info = sampler.replay(None, return_info=True)
    assert torch.equal(tick, got[:, 1])
    assert info.status.tolist() == [int(Status.REPLAYED)] * 4


@every
def test_a_held_row_gets_the_last_action_of_the_last_good_chunk_h_times(backend):
    sampler = Sampler(CHUNKED, backend)
    assert act_flat(sampler, NAN).tolist() == [0.0] * (H * A)
    good = sampler.act(observations(3), 2, seed=1)
    held, info = sampler.act([NAN, observations(1)[0], NAN], 2, seed=2, return_info=True)
    for b in (0, 2):
        assert int(info.status[b]) == Status.NONFINITE_OBS | Status.HELD
        np.testing.assert_array_equal(held[b], [good[-1, -1]] * H)
    later = sampler.act(NAN, seed=3)
    np.testing.assert_array_equal(later, [held[1, -1]] * H)
    np.testing.assert_array_equal(sampler.act(NAN, seed=4), later)  # holding changes nothing
    sampler.reset()
    assert not sampler.act(NAN, seed=5).any()


@every
def test_ticks_replay_a_call_and_say_so(backend):
    sampler, twin = Sampler(CHUNKED, backend), Sampler(CHUNKED, backend)
    obs = observations(8)
    for t in range(8):
        action, info = sampler.replay(obs[t], 2, 2, seed=3, call=t, return_info=True)
        if t % H == 0:
            chunk, first = twin.act(obs[t], 2, 2, seed=3, call=t, return_info=True)
            assert info == first
        else:
            assert info == first._replace(status=Status.REPLAYED)
        np.testing.assert_array_equal(action, chunk[t % H])
        assert isinstance(info.status, Status)
        action[:] = 77  # the caller's to change
    sampler.reset()  # in the middle of a chunk
    action, info = sampler.replay(obs[0], 2, 2, seed=3, call=9, return_info=True)
    np.testing.assert_array_equal(action, twin.act(obs[0], 2, 2, seed=3, call=9)[0])
    assert not info.status & Status.REPLAYED


@every
def test_ticks_of_a_batch_replay_together(backend):
    sampler, twin = Sampler(CHUNKED, backend), Sampler(CHUNKED, backend)
    chunk = twin.act(observations(4), seed=3)
    for t in range(H):
        action, info = sampler.replay(observations(4), seed=3, return_info=True)
        np.testing.assert_array_equal(action, chunk[:, t])
        assert info.status.dtype == np.uint32
        assert (info.status & int(Status.REPLAYED) != 0).all() == (t > 0)


@every
def test_a_held_tick_holds_what_was_done_last_and_the_next_one_calls_again(backend):
    sampler, twin = Sampler(CHUNKED, backend), Sampler(CHUNKED, backend)
    obs = observations(9)
    done = [sampler.replay(obs[t], seed=1, call=t) for t in range(H)]
    for t in (3, 4):
        action, info = sampler.replay(NAN, seed=1, call=t, return_info=True)
        np.testing.assert_array_equal(action, done[-1])
        assert info.status == Status.NONFINITE_OBS | Status.HELD
    chunk = twin.act(obs[5], seed=1, call=5)
    for t in (5, 6, 7):
        # a bad observation in between is not looked at
        action = sampler.replay(obs[5] if t == 5 else NAN, seed=1, call=t)
        np.testing.assert_array_equal(action, chunk[t - 5])


@every
def test_without_chunks_every_tick_is_a_call(backend):
    sampler, twin = Sampler(FLAT, backend), Sampler(FLAT, backend)
    for t, obs in enumerate(observations(3)):
        action, info = sampler.replay(obs, seed=1, call=t, return_info=True)
        expected, first = twin.act(obs, seed=1, call=t, return_info=True)
        np.testing.assert_array_equal(action, expected)
        assert info == first or np.isnan(info.q)
    assert not info.status & Status.REPLAYED


def test_the_samplers_own_noise_counts_calls_not_ticks():
    sampler = Sampler(CHUNKED, "numpy")
    chunks = np.array([sampler.replay(observations(1)[0]) for _ in range(2 * H)])
    assert (chunks[:H] != chunks[H:]).any()
    assert sampler._calls == 2


def test_the_callers_own_memory_is_written_tick_by_tick():
    sampler, twin = Sampler(CHUNKED, "native"), Sampler(CHUNKED, "native")
    out, status, obs = np.empty(A, np.float32), np.zeros(1, np.uint32), observations(8)
    for t in range(8):
        sampler.replay_into(obs[t], out, 2, seed=3, call=t, status=status)
        if t % H == 0:
            chunk = twin.act(obs[t], 2, seed=3, call=t)
        np.testing.assert_array_equal(out, chunk[t % H])
        assert bool(status[0] & Status.REPLAYED) == (t % H > 0)
    sampler.reset()
    sampler.replay_into(np.float32(NAN), out, 2, seed=3, status=status)
    assert not out.any()
    assert status[0] == Status.NONFINITE_OBS | Status.HELD
    sampler.replay_into(obs[0], out, 2, seed=3, call=8)
    np.testing.assert_array_equal(out, twin.act(obs[0], 2, seed=3, call=8)[0])
    whole = np.empty((4, H, A), np.float32)
    sampler.act_into(observations(4), whole, 2, seed=3, call=9)
    np.testing.assert_array_equal(whole, twin.act(observations(4), 2, seed=3, call=9))
    sampler.act_into(obs[0], whole[0], 2, seed=3, call=9)
    np.testing.assert_array_equal(whole[0], twin.act(obs[0], 2, seed=3, call=9))


def test_memory_of_another_shape_is_refused_by_its_own():
    sampler = Sampler(CHUNKED, "native")
    obs = observations(1)[0]
    for out in (
        np.empty(A, np.float32),
        np.empty(H * A, np.float32),
        np.empty((A, H), np.float32),
        None,
    ):
        with pytest.raises(BadInput, match=r"out has the shape .* must be \[3, 2\] or \[B, 3, 2\]"):
            sampler.act_into(obs, out)
    with pytest.raises(BadInput, match="not C-contiguous"):
        sampler.act_into(obs, np.empty((A, H), np.float32).T)
    with pytest.raises(BadInput, match=r"out must be .* of the shape \[2\]"):
        sampler.replay_into(obs, np.empty((H, A), np.float32))
    with pytest.raises(BadInput, match="needs the native backend"):
        Sampler(CHUNKED, "numpy").replay_into(obs, np.empty(A, np.float32))


def test_a_policy_with_chunks_is_of_format_5_and_goes_through_its_file():
    units = ActionMap(np.full(H * A, -3.0), np.full(H * A, 2.0))
    for more in ({}, {"action_map": units}):
        policy = dataclasses.replace(CHUNKED, **more)
        data = dumps(policy)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        values = json.loads(header["__metadata__"]["sorl_fast"])
        assert values["format"] == 5
        assert list(values)[-6:] == ["form", "choice", "action_map", "chunk", "config", "sha256"]
        assert values["chunk"] == H
        assert (values["action_map"] is None) == (not more)
        again = loads(data)
        assert (again.chunk, again.act_dim, again.action_shape) == (H, H * A, (H, A))
        assert dumps(again) == data
        assert again.form is None
        assert again.choice is None
    assert FLAT.action_shape == (H * A,)
    assert dumps(dataclasses.replace(CHUNKED, chunk=1)) == dumps(FLAT)


@pytest.mark.parametrize("name", ["action_low", "action_high"])
def test_the_actions_of_a_chunk_have_one_range(name):
    """A held action takes another's place: it would be out of that one's bounds."""
    ends = getattr(CHUNKED, name).copy()
    ends[3] *= 0.5
    with pytest.raises(BadInput, match=rf"^{name}\[3\] is .* one range"):
        dataclasses.replace(CHUNKED, **{name: ends})


def test_the_actions_of_a_chunk_have_one_range_in_a_robots_units():
    low = np.full(H * A, -2.0, np.float32)
    low[5] = -1
    with pytest.raises(
        BadInput, match=r"^action_map low\[5\] is -1.0, but must be .*low\[3\] = -2.0"
    ):
        dataclasses.replace(CHUNKED, action_map=ActionMap(low, np.full(H * A, 3.0, np.float32)))


@pytest.mark.parametrize("chunk", [0, -1, 4, 12, 2.0, True, None, "3"], ids=repr)
def test_a_chunk_that_does_not_divide_the_actions_is_refused(chunk):
    with pytest.raises(BadInput, match=r"^chunk is .* from 1 that divides act_dim = 6"):
        dataclasses.replace(FLAT, chunk=chunk)
