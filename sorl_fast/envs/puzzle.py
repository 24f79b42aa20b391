"""puzzle: an arm presses buttons, each of which switches its neighbours too."""

from typing import Any

from .family import Family
from .manipulation import ManipulationSimulator, ManipulationSource, recipes


class PuzzleSource(ManipulationSource):
    """Buttons are pressed with the gripper closed."""

    p_random = 0.2

    def play_oracles(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the oracle that follows plans."""
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle

        return {"button": ButtonPlanOracle(gripper_always_closed=True, **settings)}

    def noisy_oracles(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the closed-loop oracle."""
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle

        return {"button": ButtonMarkovOracle(gripper_always_closed=True, **settings)}


FAMILY = Family(
    name="puzzle",
    data_from="oracle",
    simulator=ManipulationSimulator,
    recipes=recipes("puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6", has_buttons=True),
    open_source=PuzzleSource,
    collectable="puzzle-{3x3,4x4,4x5,4x6}-{play,noisy}-v0",
)
