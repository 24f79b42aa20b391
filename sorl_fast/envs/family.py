"""What a family of environments is: its presets, its simulator, and where its data come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .recipe import EpisodeSource, Recipe
from .simulator import Simulator, Timing


class Result(NamedTuple):
    """A method's success in the paper: mean over the five tasks and eight seeds, in %."""

    success: float
    std: float | None = None  # over the seeds; None: not kept here

    @property
    def words(self) -> str:
        """`97 ± 1%`, or `96%` where no deviation was published."""
        std = "" if self.std is None else f" ± {self.std:g}"
        return f"{self.success:g}{std}%"


def published(
    bc: float, iql: float, rebrac: float, idql: float, fql: float, sorl: tuple[float, float]
) -> dict[str, Result]:
    """Return a line of the results' table of arXiv 2505.22866, by the method's name, in its order."""
    found = {"bc": bc, "iql": iql, "rebrac": rebrac, "idql": idql, "fql": fql}
    return {name: Result(success) for name, success in found.items()} | {"sorl": Result(*sorl)}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The setting of five tasks that share a data set, and what the paper found in them.

    Attributes
    ----------
    name
        The first part of the tasks' names, such as cube-single-play.
    obs_dim, act_dim
        O and A.
    episode_limit
        Steps after which an episode is cut off.
    methods
        By the method's name on the command line, the fields of its config that are set for this
        environment; the others keep their defaults. SORL's are its paper's. FQL's are its README's. Those
        of IQL and ReBRAC are that README's for humanoidmaze-medium only; the others are notes on the
        paper's appendix, and what is marked unconfirmed is a recollection. IDQL's number of candidates was
        not found: its default is one of the three that its authors tried.
    paper
        By the method's name, the figures of arXiv 2505.22866.
    """

    name: str
    obs_dim: int
    act_dim: int
    episode_limit: int
    methods: Mapping[str, Mapping[str, Any]]
    paper: Mapping[str, Result]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The five single-task environments."""
        return tuple(f"{self.name}-singletask-task{i}-v0" for i in range(1, 6))

    @property
    def dataset(self) -> str:
        """The OGBench data set that all five tasks are relabelled from."""
        return f"{self.name}-v0"

    def settings(self, method: str) -> dict[str, Any]:
        """Return the fields of a method's config that are set for this environment."""
        return dict(self.methods.get(method, {}))


@dataclass(frozen=True, kw_only=True)
class Family:
    """Environments that differ in size and task only.

    Attributes
    ----------
    name
        The first word of its environments' names.
    data_from
        oracle: ogbench's package has the oracles of its `recipes`. expert: these are the doings of trained
        policies, of the package or trained by `sorl-fast expert`, unless OGBench's files are downloaded.
    presets
        Those of its environments that have a setting; any other's must be given.
    simulator
        How an environment is made: of its name and the timing of success.
    recipes, open_source
        Its data sets that can be made here, and the maker of a recipe's episodes: called with the recipe
        and an actor for each of its `bodies`.
    collectable
        The recipes' names in short, for an error's text.
    """

    name: str
    data_from: Literal["oracle", "expert"]
    presets: tuple[Preset, ...] = ()
    simulator: Callable[[str, Timing], Simulator] = field(default=Simulator)
    recipes: tuple[Recipe, ...] = ()
    open_source: Callable[..., EpisodeSource] | None = None
    collectable: str = ""
