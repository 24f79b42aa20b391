"""How a policy acts inside LeRobot. What it is stands in its own file."""

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.utils.constants import ACTION, OBS_STATE

from sorl_fast import BadInput


@PreTrainedConfig.register_subclass("sorl")
@dataclass
class SorlConfig(PreTrainedConfig):
    """Ways to act, as `Sampler.load` and `Sampler.act` take them; None: the policy's own.

    Parameters
    ----------
    observations
        Features that are joined to the policy's observation, in this order.
    backend, precision, threads
        What computes an action.
    steps, candidates, rule
        How it does.
    seed
        The same seed gives the same actions, call by call, from each `reset` on; None: other noise each
        time.
    chunk_size
        Actions that one call returns; the policy's own, filled in when it is loaded.
    """

    observations: list[str] = field(default_factory=lambda: [OBS_STATE])
    backend: str | None = None
    precision: str = "fp32"
    threads: int = 1
    steps: str | None = None
    candidates: int | None = None
    rule: str | None = None
    seed: int | None = None
    chunk_size: int = 1
    # the policy normalises by itself, and returns actions in the robot's units
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(
            ("STATE", "ENV", "ACTION", "VISUAL"), NormalizationMode.IDENTITY
        )
    )
    device: str | None = "cpu"

    @property
    def observation_delta_indices(self) -> None:
        """Of the observation the present one is read alone."""

    @property
    def action_delta_indices(self) -> list[int]:
        """The ticks that a call's actions are for."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """Rewards are not read."""

    def get_optimizer_preset(self):
        """Refuse: nothing is trained here."""
        raise BadInput(UNTRAINED)

    def get_scheduler_preset(self):
        """Refuse: nothing is trained here."""
        raise BadInput(UNTRAINED)

    def validate_features(self) -> None:
        """Refuse features that the policy cannot read: images, or names that are not there."""
        for name in self.observations:
            feature = (self.input_features or {}).get(name)
            if feature is None:
                known = ", ".join(self.input_features or {}) or "none"
                raise BadInput(
                    f"the policy reads {name}, but the features are {known}: set policy.observations"
                )
            if feature.type is FeatureType.VISUAL or len(feature.shape) != 1:
                raise BadInput(
                    f"{name} has the shape {list(feature.shape)}, but the policy reads vectors: set "
                    "policy.observations"
                )
        if ACTION not in (self.output_features or {}):
            raise BadInput(f"there is no feature {ACTION}, which is what the policy returns")


UNTRAINED = (
    "a sorl policy is not trained by LeRobot: `sorl-fast import` the data set, `sorl-fast train`, then "
    "give the policy's folder as policy.path"
)
