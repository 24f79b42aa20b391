"""antmaze: a four-legged robot walks through a maze."""

from .family import Family, Preset, Result

FAMILY = Family(
    name="antmaze",
    data_from="expert",
    presets=(
        Preset(
            name="antmaze-large-navigate",
            obs_dim=29,
            act_dim=8,
            episode_limit=1000,
            methods={"sorl": {"q_coef": 500, "gamma": 0.99, "q_agg": "min"}},
            paper={"sorl": Result(89, 2), "fql": Result(79)},
        ),
        Preset(
            name="antmaze-giant-navigate",
            obs_dim=29,
            act_dim=8,
            episode_limit=1000,
            methods={"sorl": {"q_coef": 500, "gamma": 0.995, "q_agg": "min"}},
            paper={"sorl": Result(9, 6), "fql": Result(9)},
        ),
    ),
)
