"""pointmaze: a point is pushed through a maze."""

from .family import Family
from .mazes import MazeSource, recipes

FAMILY = Family(
    name="pointmaze",
    data_from="oracle",
    recipes=recipes(
        "pointmaze",
        {
            size: {"navigate": 2001 if size == "giant" else 1001, "stitch": 201}
            for size in ("medium", "large", "giant", "teleport")
        },
        noise=0.5,
        episodes={"navigate": 1000, "stitch": 1000},
    ),
    open_source=MazeSource,
    collectable="pointmaze-{medium,large,giant,teleport}-{navigate,stitch}-v0",
)
