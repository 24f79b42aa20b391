"""antsoccer: a four-legged robot dribbles a ball to a goal."""

from .family import Family, Preset, published

FAMILY = Family(
    name="antsoccer",
    data_from="expert",
    presets=(
        Preset(
            name="antsoccer-arena-navigate",
            obs_dim=42,
            act_dim=8,
            episode_limit=1000,
            methods={
                "sorl": {"q_coef": 500, "gamma": 0.995, "q_agg": "mean"},
                "fql": {"alpha": 10, "q_agg": "mean", "gamma": 0.995},
                "iql": {"alpha": 1, "gamma": 0.995},  # unconfirmed
                "ifql": {"num_samples": 64, "gamma": 0.995},  # unconfirmed
                "rebrac": {
                    "alpha_actor": 0.01,
                    "alpha_critic": 0.01,
                    "gamma": 0.995,
                },  # unconfirmed
                "idql": {"expectile": 0.7, "gamma": 0.995},
            },
            paper=published(1, 8, 0, 12, 60, (69, 2)),
        ),
    ),
)
