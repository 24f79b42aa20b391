"""Own data in a robot's units become [-1, 1], and what is beyond the range that was named is refused."""

import re

import numpy as np
import pytest
import torch
from conftest import own_arrays

from sorl_fast.action_map import ActionMap
from sorl_fast.data.actions import action_map_of, unit_actions
from sorl_fast.data.dataset import ACTION_LIMIT, load_data
from sorl_fast.errors import BadInput

UNITS = ActionMap([-2.0, 10.0], [2.0, 11.0])


def in_units(**options):
    """`own_arrays` with actions of UNITS, every component's bounds among them."""
    arrays = own_arrays(**options)
    arrays["actions"][:2] = [[-1, -1], [1, 1]]
    plain = arrays["actions"].copy()
    arrays["actions"] = UNITS.to_units(plain.astype(np.float64))
    return arrays, plain


def write(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("text", ["data", "-2,2:10,11"])
def test_the_data_are_mapped(tmp_path, text):
    arrays, plain = in_units(T=100)
    pair = load_data(
        "mine", write(tmp_path / "a.npz", arrays), action_range=text, next_actions=True
    )
    np.testing.assert_allclose(pair.action_map.low, UNITS.low, rtol=1e-7)
    np.testing.assert_allclose(pair.action_map.high, UNITS.high, rtol=1e-7)
    data = pair.train.transitions
    rows = np.flatnonzero(arrays["terminals"] == 0)
    expected = np.clip(plain, -ACTION_LIMIT, ACTION_LIMIT)
    np.testing.assert_allclose(data.actions, expected[rows], atol=1e-6)
    np.testing.assert_allclose(data.next_actions, expected[rows + 1], atol=1e-6)
    assert data.actions.dtype == torch.float32


def test_a_range_for_all_components_may_be_wider_than_the_data(tmp_path):
    arrays, plain = in_units(T=100)
    pair = load_data("mine", write(tmp_path / "a.npz", arrays), action_range="-20,20")
    np.testing.assert_array_equal(pair.action_map.high, [20, 20])
    rows = np.flatnonzero(arrays["terminals"] == 0)
    np.testing.assert_allclose(pair.train.transitions.actions[:, 0], plain[rows, 0] / 10, atol=1e-6)


def test_without_a_range_nothing_is_mapped_and_the_error_names_it(tmp_path, own_file):
    assert load_data("mine", own_file).action_map is None
    arrays, _ = in_units(T=100)
    with pytest.raises(
        BadInput, match=r"actions reach 11, but must lie in \[-1, 1\].*--action-range data"
    ):
        load_data("mine", write(tmp_path / "a.npz", arrays))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-2,2:10,10.5", "is 11 in component 1, but the action range is from 10 to 10.5 there"),
        ("-2,1:10,11", "the action of row 1 is 2 in component 0"),
        ("-2,2:10,11:0,1", "names 3 pairs LOW,HIGH, but the actions of"),
    ],
)
def test_a_range_that_does_not_hold_the_data_is_refused(tmp_path, text, says):
    arrays, _ = in_units(T=100)
    with pytest.raises(BadInput, match=re.escape(says)):
        load_data("mine", write(tmp_path / "a.npz", arrays), action_range=text)


def test_a_constant_component_is_mapped_to_0(tmp_path):
    arrays, _ = in_units(T=100)
    arrays["actions"][:, 1] = 0.3
    pair = load_data("mine", write(tmp_path / "a.npz", arrays), action_range="data")
    assert (pair.train.transitions.actions[:, 1] == 0).all()
    assert pair.action_map.low[1] == pair.action_map.high[1] == np.float32(0.3)


def test_validation_data_beyond_the_training_datas_range_are_clipped_and_said(tmp_path, capsys):
    arrays, _ = in_units(T=100)
    path = write(tmp_path / "a.npz", arrays)
    beyond, _ = in_units(T=100, seed=3)
    beyond["actions"][7, 0] = 2.5
    write(tmp_path / "a-val.npz", beyond)
    pair = load_data("mine", path, action_range="data")
    assert pair.val.transitions.actions[7, 0] == np.float32(ACTION_LIMIT)
    said = capsys.readouterr().err
    assert "the action of row 7 is 2.5 in component 0, beyond the training data's -2 to 2" in said
    assert "in 1 of 98 rows, is clipped" in said
    with pytest.raises(BadInput, match=r"\(validation\): the action of row 7 is 2.5"):
        load_data("mine", path, action_range="-2,2:10,11")


def test_data_that_have_no_range_are_told(tmp_path):
    with pytest.raises(
        BadInput, match=r"a.npz: the actions have no range that can be mapped: action_map high"
    ):
        action_map_of("data", np.array([[0.0], [1e-40]]), "a.npz")
    arrays, _ = in_units(T=100)
    arrays["actions"][3, 1] = np.nan
    with pytest.raises(BadInput, match="actions is not finite as float32 in row 3"):
        load_data("mine", write(tmp_path / "a.npz", arrays), action_range="data")


def test_ogbenchs_data_take_no_range(tmp_path):
    with pytest.raises(
        BadInput, match=r"action_range is 'data', but OGBench's actions are in \[-1, 1\]"
    ):
        load_data("cube-single-play-singletask-task2-v0", tmp_path, action_range="data")


def test_what_is_at_the_bound_by_rounding_is_taken():
    arrays = {"actions": np.array([[2.0000001, 10.5]])}
    assert unit_actions(arrays, UNITS, "a.npz")["actions"][0, 0] == pytest.approx(1)
