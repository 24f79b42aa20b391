from pathlib import Path

import pytest
from evaluating import CUBE, MAZE, make_policy

from sorl_fast.act.policy_file import save


@pytest.fixture
def maze_policy(tmp_path: Path) -> Path:
    save(tmp_path / "maze.safetensors", make_policy(MAZE, 2, 2))
    return tmp_path / "maze.safetensors"


@pytest.fixture
def cube_policy(tmp_path: Path) -> Path:
    save(tmp_path / "cube.safetensors", make_policy(CUBE, 28, 5))
    return tmp_path / "cube.safetensors"
