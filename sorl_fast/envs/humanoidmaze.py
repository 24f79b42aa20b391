"""humanoidmaze: a two-legged robot walks through a maze."""

from .family import Family, Preset, Result

FAMILY = Family(
    name="humanoidmaze",
    data_from="expert",
    presets=(
        Preset(
            name="humanoidmaze-medium-navigate",
            obs_dim=69,
            act_dim=21,
            episode_limit=2000,
            methods={"sorl": {"q_coef": 100, "gamma": 0.995, "q_agg": "mean"}},
            paper={"sorl": Result(64, 4), "fql": Result(58)},
        ),
        Preset(
            name="humanoidmaze-large-navigate",
            obs_dim=69,
            act_dim=21,
            episode_limit=2000,
            methods={"sorl": {"q_coef": 500, "gamma": 0.995, "q_agg": "mean"}},
            paper={"sorl": Result(5, 2), "fql": Result(4)},
        ),
    ),
)
