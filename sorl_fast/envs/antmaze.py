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
            methods={
                "sorl": {"q_coef": 500, "q_agg": "min", "gamma": 0.99},
                "fql": {"alpha": 10, "q_agg": "min", "gamma": 0.99},
                "iql": {"alpha": 10, "gamma": 0.99},
                "ifql": {"num_samples": 32, "gamma": 0.99},
                "rebrac": {"alpha_actor": 0.003, "alpha_critic": 0.01, "gamma": 0.99},
                "idql": {"expectile": 0.9, "gamma": 0.99},
            },
            paper={"sorl": Result(89, 2), "fql": Result(79)},
        ),
        Preset(
            name="antmaze-giant-navigate",
            obs_dim=29,
            act_dim=8,
            episode_limit=1000,
            methods={
                "sorl": {"q_coef": 500, "q_agg": "min", "gamma": 0.995},
                "fql": {"alpha": 10, "q_agg": "min", "gamma": 0.995},
                "iql": {"alpha": 10, "gamma": 0.995},
                "ifql": {"num_samples": 32, "gamma": 0.995},  # unconfirmed
                "rebrac": {"alpha_actor": 0.003, "alpha_critic": 0.01, "gamma": 0.995},
                "idql": {"expectile": 0.9, "gamma": 0.995},
            },
            paper={"sorl": Result(9, 6), "fql": Result(9)},
        ),
    ),
)
