"""humanoidmaze: a two-legged robot walks through a maze."""

from .bodies import HUMANOID
from .family import Family, Preset, published
from .mazes import MazeSource, recipes

FAMILY = Family(
    name="humanoidmaze",
    data_from="expert",
    presets=(
        Preset(
            name="humanoidmaze-medium-navigate",
            obs_dim=69,
            act_dim=21,
            episode_limit=2000,
            methods={
                "sorl": {"q_coef": 100, "gamma": 0.995, "q_agg": "mean"},
                "fql": {"alpha": 30, "q_agg": "mean", "gamma": 0.995},
                "iql": {"alpha": 10, "gamma": 0.995},
                "ifql": {"num_samples": 32, "gamma": 0.995},
                "rebrac": {"alpha_actor": 0.01, "alpha_critic": 0.01, "gamma": 0.995},
                "idql": {"expectile": 0.7, "gamma": 0.995},
            },
            paper=published(2, 33, 22, 1, 58, (64, 4)),
        ),
        Preset(
            name="humanoidmaze-large-navigate",
            obs_dim=69,
            act_dim=21,
            episode_limit=2000,
            methods={
                "sorl": {"q_coef": 500, "gamma": 0.995, "q_agg": "mean"},
                "fql": {"alpha": 30, "q_agg": "mean", "gamma": 0.995},
                "iql": {"alpha": 10, "gamma": 0.995},
                "ifql": {"num_samples": 32, "gamma": 0.995},  # unconfirmed
                "rebrac": {"alpha_actor": 0.01, "alpha_critic": 0.01, "gamma": 0.995},
                "idql": {"expectile": 0.7, "gamma": 0.995},
            },
            paper=published(1, 2, 2, 1, 4, (5, 2)),
        ),
    ),
    recipes=recipes(
        "humanoidmaze",
        {
            "medium": {"navigate": 2001, "stitch": 401},
            "large": {"navigate": 2001, "stitch": 401},
            "giant": {"navigate": 4001, "stitch": 401},
        },
        noise=0.2,
        episodes={"navigate": 1000, "stitch": 5000, "giant-stitch": 10_000},
        bodies=(HUMANOID,),
    ),
    open_source=MazeSource,
    collectable="humanoidmaze-{medium,large,giant}-{navigate,stitch}-v0",
)
