"""cube: an arm picks, places and stacks one to four cubes."""

from typing import Any

from .family import Family, Preset, published
from .manipulation import ManipulationSimulator, ManipulationSource, recipes
from .recipe import Recipe

_P_STACK = {
    "cube-single-v0": (0.0, 0.0),
    "cube-double-v0": (0.0, 0.25),
    "cube-triple-v0": (0.05, 0.35),
    "cube-quadruple-v0": (0.1, 0.5),
}


class CubeSource(ManipulationSource):
    """Cubes are moved, and stacked the more often the more of them there are."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.p_stack = _P_STACK[recipe.env]

    def play_oracles(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the oracle that follows plans."""
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

        return {"cube": CubePlanOracle(**settings)}

    def noisy_oracles(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the closed-loop oracle."""
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        return {"cube": CubeMarkovOracle(**settings)}


FAMILY = Family(
    name="cube",
    data_from="oracle",
    presets=(
        Preset(
            name="cube-single-play",
            obs_dim=28,
            act_dim=5,
            episode_limit=200,
            methods={
                "sorl": {"q_coef": 10, "gamma": 0.99, "q_agg": "mean"},
                "fql": {"alpha": 300, "q_agg": "mean", "gamma": 0.99},
                "iql": {"alpha": 1, "gamma": 0.99},
                "ifql": {"num_samples": 32, "gamma": 0.99},  # unconfirmed
                "rebrac": {"alpha_actor": 1, "alpha_critic": 0, "gamma": 0.99},
                "idql": {"expectile": 0.7, "gamma": 0.99},
            },
            paper=published(5, 83, 91, 95, 96, (97, 1)),
        ),
        Preset(
            name="cube-double-play",
            obs_dim=37,
            act_dim=5,
            episode_limit=500,
            methods={
                "sorl": {"q_coef": 50, "gamma": 0.99, "q_agg": "mean"},
                "fql": {"alpha": 300, "q_agg": "mean", "gamma": 0.99},
                "iql": {"alpha": 0.3, "gamma": 0.99},
                "ifql": {"num_samples": 32, "gamma": 0.99},  # unconfirmed
                "rebrac": {"alpha_actor": 0.1, "alpha_critic": 0, "gamma": 0.99},
                "idql": {"expectile": 0.7, "gamma": 0.99},
            },
            paper=published(2, 7, 12, 15, 29, (25, 3)),
        ),
    ),
    simulator=ManipulationSimulator,
    recipes=recipes("cube-single", "cube-double", "cube-triple", "cube-quadruple"),
    open_source=CubeSource,
    collectable="cube-{single,double,triple,quadruple}-{play,noisy}-v0",
)
