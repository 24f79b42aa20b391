"""sorl-fast's policies in LeRobot: `--policy.type sorl`, once this package is installed."""

from .configuration_sorl import SorlConfig
from .modeling_sorl import SorlPolicy
from .processor_sorl import make_sorl_pre_post_processors

__all__ = ["SorlConfig", "SorlPolicy", "make_sorl_pre_post_processors"]
