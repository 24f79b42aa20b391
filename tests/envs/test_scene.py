import numpy as np
import pytest

from sorl_fast.envs.scene import cube_left_view


@pytest.mark.parametrize(
    ("y", "z", "left"),
    [
        (0.0, 0.02, False),
        (0.28, 0.02, False),
        (0.29, 0.02, True),
        (-0.29, 0.02, False),
        (-0.30, 0.02, True),
        (-0.30, 0.07, False),
        (-0.30, 0.09, True),
    ],
    ids=["middle", "right", "too far right", "left", "too far left", "in drawer", "above drawer"],
)
def test_cube_left_view(y, z, left):
    qpos = np.zeros((3, 25))
    qpos[1, 14:17] = 0.4, y, z
    assert cube_left_view(qpos) is left
