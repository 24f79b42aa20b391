"""Shortest paths in a maze of square cells."""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Cell = tuple[int, int]  # row, column


class Maze:
    """Shortest paths in a maze of square cells.

    Parameters
    ----------
    walls
        [rows, columns], 1 where there is a wall; the rim is all wall.
    """

    _STEPS = ((-1, 0), (0, -1), (1, 0), (0, 1))

    def __init__(self, walls: NDArray[np.integer[Any]]) -> None:
        self._free = np.asarray(walls) == 0
        self.cells: tuple[Cell, ...] = tuple((int(i), int(j)) for i, j in np.argwhere(self._free))
        # Corridors, free on two opposite sides only, are no goals.
        self.junctions: tuple[Cell, ...] = tuple(c for c in self.cells if not self._corridor(c))
        self._distances_to = functools.cache(self._search)

    def _corridor(self, cell: Cell) -> bool:
        i, j = cell
        up, left, down, right = (bool(self._free[i + di, j + dj]) for di, dj in self._STEPS)
        return up == down and left == right and up != left

    def _search(self, goal: Cell) -> dict[Cell, int]:
        distance = {goal: 0}
        queue = deque([goal])
        while queue:
            i, j = queue.popleft()
            for di, dj in self._STEPS:
                cell = (i + di, j + dj)
                if self._free[cell] and cell not in distance:
                    distance[cell] = distance[i, j] + 1
                    queue.append(cell)
        return distance

    def cells_at(self, start: Cell, steps: int) -> tuple[Cell, ...]:
        """Return the cells whose shortest path from `start` has `steps` steps."""
        return tuple(cell for cell, far in self._distances_to(start).items() if far == steps)

    def next_cell(self, start: Cell, goal: Cell) -> Cell:
        """Return the cell after `start` on a shortest path to `goal`; `start` if there is none."""
        distance = self._distances_to(goal)
        best = start
        if start in distance:
            for di, dj in self._STEPS:
                cell = (start[0] + di, start[1] + dj)
                if cell in distance and distance[cell] < distance[best]:
                    best = cell
        return best
