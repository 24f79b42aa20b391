"""Transitions of chunks against a plain loop, at trajectories' ends too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sorl_fast.data.chunks import ENDS, chunk_transitions
from sorl_fast.data.dataset import ACTION_LIMIT, check_files, load_data
from sorl_fast.errors import BadInput

O, A = 3, 2


def transitions(lengths, seed=0, done=0.2):
    """Return transitions of trajectories of these lengths; a part `done` of the rows ends the task."""
    rng = np.random.default_rng(seed)
    T = sum(lengths)
    ends = np.zeros(T, bool)
    ends[np.cumsum(lengths) - 1] = True
    return {
        "observations": rng.normal(size=(T, O)).astype(np.float32),
        "actions": rng.uniform(-0.9, 0.9, (T, A)).astype(np.float32),
        "rewards": rng.normal(size=T).astype(np.float32),
        "next_observations": rng.normal(size=(T, O)).astype(np.float32),
        "masks": (rng.random(T) >= done).astype(np.float32),
        "next_actions": rng.uniform(-0.9, 0.9, (T, A)).astype(np.float32),
        ENDS: ends,
    }


def plain(x, h, discount):
    """Return the chunks row by row: the definition."""
    rows = []
    for t in range(len(x["rewards"])):
        actions, following, reward, mask, i = [], [], 0.0, 1.0, t
        complete = True
        for n in range(h):
            actions.append(x["actions"][i])
            if complete and mask:
                reward += discount**n * float(x["rewards"][i])
                mask = float(x["masks"][i])
            if n + 1 < h and x[ENDS][i]:
                complete = False
            elif n + 1 < h:
                i += 1
        j = i
        for _ in range(h):
            following.append(x["next_actions"][j])
            j += not x[ENDS][j]
        if complete or mask == 0:
            flat = np.concatenate(actions), np.concatenate(following)
            rows.append(
                (x["observations"][t], flat[0], reward, x["next_observations"][i], mask, flat[1])
            )
    names = ("observations", "actions", "rewards", "next_observations", "masks", "next_actions")
    return {
        name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.2, 0.6]),
)
@settings(max_examples=150, deadline=None)
def test_chunks_are_those_of_a_plain_loop(lengths, h, seed, done):
    x = transitions(lengths, seed, done)
    if max(lengths) < h and x["masks"].all():
        with pytest.raises(BadInput, match=f"no trajectory of {h} transitions, the longest has"):
            chunk_transitions(x, h, 0.9, "data")
        return
    expected = plain(x, h, 0.9)
    got = chunk_transitions(x, h, 0.9, "data")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_a_tail_is_kept_only_where_the_task_is_done_in_it():
    x = transitions([4, 4], done=0)
    x["masks"][7] = 0  # the first trajectory is cut off by time, the second reaches its goal
    got = chunk_transitions(x, 3, 0.5, "data")
    starts = [0, 1, 4, 5, 6, 7]
    np.testing.assert_array_equal(got["observations"], x["observations"][starts])
    np.testing.assert_array_equal(got["masks"], [1, 1, 1, 0, 0, 0])
    r = x["rewards"].astype(np.float64)
    np.testing.assert_allclose(
        got["rewards"][-3:], [r[5] + r[6] / 2 + r[7] / 4, r[6] + r[7] / 2, r[7]]
    )
    np.testing.assert_array_equal(
        got["actions"][-1], [*x["actions"][7]] * 3
    )  # the last one stands in
    np.testing.assert_array_equal(
        got["actions"][-2], [*x["actions"][6], *x["actions"][7], *x["actions"][7]]
    )


def test_rewards_behind_the_tasks_end_are_left_out():
    x = transitions([6], done=0)
    x["masks"][2] = 0
    got = chunk_transitions(x, 3, 0.5, "data")
    r = x["rewards"].astype(np.float64)
    np.testing.assert_allclose(
        got["rewards"],
        [r[0] + r[1] / 2 + r[2] / 4, r[1] + r[2] / 2, r[2], r[3] + r[4] / 2 + r[5] / 4],
    )
    np.testing.assert_array_equal(got["masks"], [0, 0, 0, 1])
    # what the robot did is an example of acting all the same
    np.testing.assert_array_equal(got["actions"][2], x["actions"][2:5].ravel())


def own_file(path, lengths, *, next_observations, **more):
    x = transitions(lengths, done=0) | more
    x["terminals"] = x.pop(ENDS).astype(np.float32)
    del x["next_actions"]
    if not next_observations:
        del x["next_observations"]
    np.savez(path, **x)
    return x


@pytest.mark.parametrize("given_next", [True, False])
def test_a_users_file_gives_chunks(tmp_path, given_next):
    x = own_file(tmp_path / "mine.npz", [5, 6], next_observations=given_next)
    own_file(tmp_path / "mine-val.npz", [4], next_observations=given_next)
    pair = load_data("mine", tmp_path / "mine.npz", chunk=3, discount=0.9, next_actions=True)
    # without next observations a trajectory cut off by time loses its last row
    starts = [0, 1, 2, 5, 6, 7, 8] if given_next else [0, 1, 5, 6, 7]
    batch = pair.train.transitions
    np.testing.assert_array_equal(batch.observations, x["observations"][starts])
    expected = np.stack([x["actions"][t : t + 3].ravel() for t in starts])
    np.testing.assert_array_equal(batch.actions, np.clip(expected, -ACTION_LIMIT, ACTION_LIMIT))
    r = x["rewards"].astype(np.float64)
    np.testing.assert_allclose(
        batch.rewards, [r[t] + 0.9 * r[t + 1] + 0.81 * r[t + 2] for t in starts], rtol=1e-6
    )
    if not given_next:
        np.testing.assert_array_equal(
            batch.next_observations, x["observations"][[t + 3 for t in starts]]
        )
    # the next chunk begins where this one ends; the last action stands for those that are missing
    last = [4, 4, 4, 10, 10, 10, 10] if given_next else [4, 4, 10, 10, 10]
    following = [
        [min(t + 3 + i, end) for i in range(3)] for t, end in zip(starts, last, strict=True)
    ]
    np.testing.assert_array_equal(
        batch.next_actions, [x["actions"][rows].ravel() for rows in following]
    )
    assert pair.train.act_dim == 3 * A
    assert len(pair.val) == (2 if given_next else 1)


def test_the_range_of_the_data_is_that_of_single_actions(tmp_path):
    x = own_file(
        tmp_path / "mine.npz",
        [5, 6],
        next_observations=True,
        actions=transitions([11])["actions"] * 7,
    )
    pair = load_data("mine", tmp_path / "mine.npz", chunk=2, action_range="data")
    np.testing.assert_array_equal(pair.action_map.low, x["actions"].min(0))
    np.testing.assert_allclose(
        pair.action_map.repeated(2).to_units(pair.train.transitions.actions.numpy()),
        [x["actions"][t : t + 2].ravel() for t in (0, 1, 2, 3, 5, 6, 7, 8, 9)],
        atol=1e-3,
    )


def test_what_has_no_chunks_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    own_file(path, [5, 6], next_observations=True)
    load = {"chunk": 7}
    with pytest.raises(
        BadInput, match=r"mine.npz has no trajectory of 7 .* the longest has 6: --chunk 7"
    ):
        load_data("mine", path, **load)
    with pytest.raises(BadInput, match=r"the longest has 6"):
        check_files("mine", path, **load)
    check_files("mine", path, chunk=6)
    x = dict(np.load(path))
    del x["terminals"]
    np.savez(path, **x)
    with pytest.raises(
        BadInput, match=r"no terminals, .* --chunk learns these.* or choose --chunk 1"
    ):
        load_data("mine", path, chunk=2)
    load_data("mine", path, chunk=1)
