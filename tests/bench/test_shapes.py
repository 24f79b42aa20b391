"""The cells that are raced, and the work that each cannot avoid."""

import numpy as np
import pytest
from sorl_fast.bench import shapes
from sorl_fast.bench.shapes import Cell, Lane

# batch, steps, candidates, precision, threads, floor: the table of what the sampler must reach
TABLE = [
    (1, 8, 1, "bf16", 1, 2.0),
    (1, 8, 1, "fp32", 2, 1.7),
    (1, 8, 8, "bf16", 1, 2.0),
    (1, 8, 8, "bf16", 2, 3.0),
    (1, 8, 16, "bf16", 1, 2.0),
    (1, 8, 16, "bf16", 2, 3.0),
    (1, 8, 32, "bf16", 1, 2.2),
    (1, 8, 32, "bf16", 2, 3.5),
    (256, 4, 8, "bf16", 2, 1.8),
    (4096, 4, 1, "bf16", 2, 1.8),
]


def test_quick_is_the_table_and_its_cells_in_int8():
    quick = [(*lane.cell[:3], lane.precision, lane.threads) for lane in shapes.QUICK]
    assert quick[: len(TABLE)] == [row[:5] for row in TABLE]
    assert [shapes.floor(lane) for lane in shapes.FLOORS] == [row[5] for row in TABLE]
    assert quick[len(TABLE) :] == [(*row[:3], "int8", row[4]) for row in TABLE]
    assert {lane.cell.network for lane in shapes.QUICK} == {(28, 5, "shortcut")}


def test_grid():
    plain = [cell[:3] for cell in shapes.GRID if cell.network == (28, 5, "shortcut")]
    assert len(plain) == len(set(plain)) == 2 * 3 * 4 + 3 * 2
    for B, M, N in plain:
        assert B in (1, 256, 4096)
        assert M in (1, 4, 8)
        assert N in (1, 8, 16, 32)
        assert N <= 8 or B <= 256
    wide = [cell for cell in shapes.GRID if cell.network == (69, 21, "shortcut")]
    assert len(wide) == 3
    assert len(shapes.GRID) == len(plain) + len(wide)
    assert set(shapes.QUICK) <= set(shapes.FULL)
    assert len(shapes.FULL) == 6 * len(shapes.GRID)


def test_every_other_lane_must_be_faster_than_every_peer():
    assert shapes.floor(Lane(Cell(1, 1, 1), "fp32", 1)) == 1.0


def test_cell_text():
    assert str(Cell(1, 8, 16)) == "B=1 M=8 N=16"
    assert str(Cell(1, 8, 16, 69, 21)) == "B=1 M=8 N=16 O=69"


@pytest.fixture(scope="module")
def policy():
    return shapes.make_policy(3, 2, hidden=8)


def test_flop_counts_the_observation_once_and_the_critics_only_for_a_choice(policy):
    # D = 4: three layers of 8 x 8 after the first
    hidden = 3 * 8 * 8
    actor = 2 * 8 + hidden + 8 * 2
    critic = 2 * 8 + hidden + 8
    assert shapes.flop(Cell(1, 1, 1, 3, 2), policy) == 2 * (3 * 8 + actor)
    assert shapes.flop(Cell(1, 4, 1, 3, 2), policy) == 2 * (3 * 8 + 4 * actor)
    both = 3 * 8 + 4 * 5 * actor + 2 * (3 * 8 + 5 * critic)
    assert shapes.flop(Cell(7, 4, 5, 3, 2), policy) == 2 * 7 * both


def test_weights_held_and_those_that_a_step_reads_again(policy):
    hidden = 3 * 8 * 8
    actor = 2 * 8 + hidden + 8 * 2
    critics = 2 * (3 * 8 + 2 * 8 + hidden + 8)
    for batch in (1, 7):  # not the rows
        assert shapes.weights_again(Cell(batch, 4, 9, 3, 2), policy) == actor
        assert shapes.weights_held(Cell(batch, 4, 9, 3, 2), policy) == 3 * 8 + actor + critics
        assert shapes.weights_held(Cell(batch, 4, 1, 3, 2), policy) == 3 * 8 + actor


def test_policy_and_inputs_are_the_same_for_everyone():
    one, two = (shapes.make_policy(3, 2, hidden=8) for _ in range(2))
    for a, b in zip(one.actor + one.critic, two.actor + two.critic, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    cell = Cell(3, 4, 5, 3, 2)
    for x, y in zip(shapes.make_inputs(cell), shapes.make_inputs(cell), strict=True):
        np.testing.assert_array_equal(x, y)
    obs, noise = shapes.make_inputs(cell)
    assert (obs.shape, noise.shape) == ((3, 3), (3, 5, 2))
    assert obs.dtype == noise.dtype == np.float32
    assert not np.array_equal(obs, shapes.make_inputs(cell._replace(steps=8))[0])
