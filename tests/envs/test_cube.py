import dataclasses

import numpy as np
import pytest

from sorl_fast.envs import find_recipe, open_source
from sorl_fast.envs.recipe import collect_episode


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cube-single-play-v0", "cube-single-noisy-v0"])
def test_the_oracle_moves_the_cube(name):
    source = open_source(dataclasses.replace(find_recipe(name), steps=150))
    xy = collect_episode(source, 0, 0, 0)["qpos"][:, 14:16]
    assert np.linalg.norm(xy - xy[0], axis=1).max() > 0.05
