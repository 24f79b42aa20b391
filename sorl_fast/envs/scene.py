"""scene: an arm moves a cube, a drawer and a window, and presses the buttons that lock them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .family import Family, Preset, published
from .manipulation import ManipulationSimulator, ManipulationSource, recipes


class SceneSource(ManipulationSource):
    """Four oracles, one a kind of target; an episode in which the cube gets lost is dropped."""

    def play_oracles(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the oracles that follow plans."""
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

        return {
            "cube": CubePlanOracle(**settings),
            "button": ButtonPlanOracle(**settings),
            "drawer": DrawerPlanOracle(**settings),
            "window": WindowPlanOracle(**settings),
        }

    def noisy_oracles(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the closed-loop oracles."""
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

        return {
            # ogbench 1.2 sets max_step back to 200 in reset, for OGBench's own data too.
            "cube": CubeMarkovOracle(max_step=100, **settings),
            "button": ButtonMarkovOracle(**settings),
            "drawer": DrawerMarkovOracle(**settings),
            "window": WindowMarkovOracle(**settings),
        }

    def is_spoilt(self, qpos: NDArray[np.float64]) -> bool:
        """Whether the cube got lost."""
        return cube_left_view(qpos)


def cube_left_view(qpos: NDArray[np.floating[Any]]) -> bool:
    """Return whether the cube of a scene episode was ever out of sight and not in the drawer.

    Parameters
    ----------
    qpos
        [T, nq]; the cube's x, y, z in metres are columns 14 to 16.
    """
    y, z = qpos[:, 15], qpos[:, 16]
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return bool(np.any(y >= 0.29) or np.any((y <= -0.3) & ~in_drawer))


FAMILY = Family(
    name="scene",
    data_from="oracle",
    presets=(
        Preset(
            name="scene-play",
            obs_dim=40,
            act_dim=5,
            episode_limit=750,
            methods={
                "sorl": {"q_coef": 100, "gamma": 0.99, "q_agg": "mean"},
                "fql": {"alpha": 300, "q_agg": "mean", "gamma": 0.99},
                "iql": {"alpha": 10, "gamma": 0.99},
                "ifql": {"num_samples": 32, "gamma": 0.99},  # unconfirmed
                "rebrac": {"alpha_actor": 0.1, "alpha_critic": 0.01, "gamma": 0.99},
                "idql": {"expectile": 0.7, "gamma": 0.99},
            },
            paper=published(5, 28, 41, 46, 56, (57, 2)),
        ),
    ),
    simulator=ManipulationSimulator,
    recipes=recipes("scene", has_buttons=True),
    open_source=SceneSource,
    collectable="scene-{play,noisy}-v0",
)
