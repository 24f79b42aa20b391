"""antmaze: a four-legged robot walks through a maze."""

from .family import Family, Preset, published

FAMILY = Family(
    name="antmaze",
    data_from="expert",
    presets=(
        Preset(
            name="antmaze-large-navigate",
            obs_dim=29,
            act_dim=8,
            episode_limit=1000,
            methods={
                "sorl": {"q_coef": 500, "gamma": 0.99, "q_agg": "min"},
                "fql": {"alpha": 10, "q_agg": "min", "gamma": 0.99},
                "iql": {"alpha": 10, "gamma": 0.99},
                "ifql": {"num_samples": 32, "gamma": 0.99},
                "rebrac": {"alpha_actor": 0.003, "alpha_critic": 0.01, "gamma": 0.99},
                "idql": {"expectile": 0.9, "gamma": 0.99},
            },
            paper=published(11, 53, 81, 21, 79, (89, 2)),
        ),
        Preset(
            name="antmaze-giant-navigate",
            obs_dim=29,
            act_dim=8,
            episode_limit=1000,
            methods={
                "sorl": {"q_coef": 500, "gamma": 0.995, "q_agg": "min"},
                "fql": {"alpha": 10, "q_agg": "min", "gamma": 0.995},
                "iql": {"alpha": 10, "gamma": 0.995},
                "ifql": {"num_samples": 32, "gamma": 0.995},  # unconfirmed
                "rebrac": {"alpha_actor": 0.003, "alpha_critic": 0.01, "gamma": 0.995},
                "idql": {"expectile": 0.9, "gamma": 0.995},
            },
            paper=published(0, 4, 26, 0, 9, (9, 6)),
        ),
    ),
)
