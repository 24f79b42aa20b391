import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sorl_fast.envs.maze import Maze


@st.composite
def mazes(draw):
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    inside = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    walls = np.ones((rows + 2, columns + 2), dtype=int)
    walls[1:-1, 1:-1] = np.reshape(inside, (rows, columns))
    walls[1, 1] = 0
    return walls


@given(mazes(), st.data())
def test_next_cell_leads_to_the_goal_in_as_many_steps_as_cells_at_says(walls, data):
    maze = Maze(walls)
    start = data.draw(st.sampled_from(maze.cells))
    goal = data.draw(st.sampled_from(maze.cells))
    far = [n for n in range(len(maze.cells)) if goal in maze.cells_at(start, n)]
    cell = start
    for left in range(far[0] if far else 3, 0, -1):
        after = maze.next_cell(cell, goal)
        assert walls[after] == 0
        if far:
            assert sum(abs(a - b) for a, b in zip(after, cell, strict=True)) == 1
            assert goal in maze.cells_at(after, left - 1)
        else:
            assert after == start
        cell = after
    assert (cell == goal) == bool(far)
    assert maze.next_cell(goal, goal) == goal


def test_corridors_are_no_goals():
    walls = np.array(
        [
            [1, 1, 1, 1, 1],
            [1, 0, 0, 0, 1],
            [1, 0, 1, 1, 1],
            [1, 0, 1, 0, 1],
            [1, 1, 1, 1, 1],
        ]
    )
    assert Maze(walls).junctions == ((1, 1), (1, 3), (3, 1), (3, 3))
