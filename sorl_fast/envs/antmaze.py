"""antmaze: a four-legged robot walks through a maze."""

from .bodies import ANT
from .family import Family, Preset, published
from .mazes import MazeSource, recipes

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
    recipes=recipes(
        "antmaze",
        {
            "medium": {"navigate": 1001, "stitch": 201, "explore": 501},
            "large": {"navigate": 1001, "stitch": 201, "explore": 501},
            "giant": {"navigate": 2001, "stitch": 201},
            "teleport": {"navigate": 1001, "stitch": 201, "explore": 501},
        },
        noise=0.2,
        episodes={"navigate": 1000, "giant-navigate": 500, "stitch": 5000, "explore": 10_000},
        bodies=(ANT,),
    ),
    open_source=MazeSource,
    collectable="antmaze-{medium,large,giant,teleport}-{navigate,stitch}-v0, "
    "antmaze-{medium,large,teleport}-explore-v0",
)
