"""antsoccer: a four-legged robot dribbles a ball to a goal."""

from .family import Family, Preset, Result

FAMILY = Family(
    name="antsoccer",
    data_from="expert",
    presets=(
        Preset(
            name="antsoccer-arena-navigate",
            obs_dim=42,
            act_dim=8,
            episode_limit=1000,
            methods={"sorl": {"q_coef": 500, "gamma": 0.995, "q_agg": "mean"}},
            paper={"sorl": Result(69, 2), "fql": Result(60)},
        ),
    ),
)
