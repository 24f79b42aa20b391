"""Environments: a family a file, with its presets, its simulator, and where its data come from.

Everything is found by an environment's name. Nothing here imports a simulator before one is opened.
"""

import difflib
import re
from collections.abc import Sequence

from ..errors import BadInput
from . import antmaze, antsoccer, cube, humanoidmaze, pointmaze, puzzle, scene
from .family import Family, Preset
from .mazes import Actor
from .recipe import EpisodeSource, Recipe
from .simulator import Simulator, Timing

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (antmaze, humanoidmaze, antsoccer, cube, scene, puzzle, pointmaze)
}
PRESETS: dict[str, Preset] = {p.name: p for f in FAMILIES.values() for p in f.presets}
"""Every setting, by the name of its environment without task and version."""
RECIPES: dict[str, Recipe] = {r.dataset: r for f in FAMILIES.values() for r in f.recipes}
"""Every data set that can be collected here, by name."""

_SINGLETASK = re.compile(r"^(?P<name>.+)-singletask(-task[1-5])?-v0$")
# Two letters of twenty; OGBench has names that are not known here, which are less alike.
_ALIKE = 0.9
_TYPED = re.compile(r"(?P<stem>.+?)(-singletask)?(-task(?P<task>[1-5]))?(-v\d+)?")


def dataset_name(env: str) -> str:
    """Return the OGBench data set of an environment: its name without `-singletask[-taskK]`."""
    match = _SINGLETASK.match(env)
    return f"{match['name']}-v0" if match else env


def similar_task(env: str) -> str | None:
    """Return the single task that a mistyped or incomplete name may mean; None: none, or it is one.

    A data set's name, such as cube-single-play-v0, or its beginning means a task of it; of tasks of equal
    likeness the first.
    """
    stems = list(dict.fromkeys([*PRESETS, *(name.removesuffix("-v0") for name in RECIPES)]))
    match = _SINGLETASK.match(env)
    if match and match["name"] in stems:
        return None
    typed = _TYPED.fullmatch(env.lower())
    stem, task = (typed["stem"], typed["task"] or "1") if typed else (env, "1")
    begins = [name for name in stems if name == stem or name.startswith(f"{stem}-")]
    close = begins[:1] or difflib.get_close_matches(stem, stems, 1, _ALIKE)
    if close:
        return f"{close[0]}-singletask-task{task}-v0"
    tasks = [f"{name}-singletask-task{k}-v0" for name in stems for k in range(1, 6)]
    return next(iter(difflib.get_close_matches(env.lower(), tasks, 1, _ALIKE)), None)


def refuse_images(env: str) -> None:
    """Raise BadInput if `env`'s observations are images: making it without a display may abort."""
    if env.startswith("visual-"):
        raise BadInput(
            f"{env!r} has images for observations, but a policy here reads vectors. Leave visual- out"
        )


def find_family(env: str) -> Family | None:
    """Return the family that an environment's or data set's name begins with, or None."""
    return FAMILIES.get(env.removeprefix("visual-").partition("-")[0])


def find_preset(env: str) -> Preset | None:
    """Return the setting of `env`, a single task's name, or None if it has none."""
    match = _SINGLETASK.match(env)
    return PRESETS.get(match["name"]) if match else None


def find_recipe(env: str) -> Recipe:
    """Return the recipe of the data set `env`.

    Raises
    ------
    BadInput
        `env` names a task, or nothing that is known. The message says what can be collected and what
        to run.
    """
    if env in RECIPES:
        return RECIPES[env]
    dataset = dataset_name(env)
    if dataset in RECIPES:
        raise BadInput(
            f"{env} is one task of the data set {dataset}, which serves all its tasks. "
            f"Run `sorl-fast collect --env {dataset} ...`, then train with --env {env}"
        )
    names = [f.collectable for f in FAMILIES.values() if f.collectable]
    collectable = f"{', '.join(names[:-1])} and {names[-1]}"
    raise BadInput(f"{env!r} is no data set that can be collected. Choose --env from {collectable}")


def how_to_collect(dataset: str, out: str = "") -> str:
    """Return the commands that make a data set of RECIPES, in the order in which they are given.

    An expert that the package has not must be trained first, or OGBench's files downloaded.
    """
    collects = f"sorl-fast collect --env {dataset}" + (f" --out {out}" if out else "")
    missing = [body for body in RECIPES[dataset].bodies if not body.shipped.is_file()]
    if not missing:
        return collects
    files = " ".join(f"{body.name}.safetensors" for body in missing)
    trains = "; ".join(body.command for body in missing)
    return f"{trains}; {collects} --expert {files} (or sorl-fast train --download)"


def open_source(recipe: Recipe, actors: Sequence[Actor] = ()) -> EpisodeSource:
    """Make the simulator and the oracles of a recipe; takes seconds.

    `actors` are the experts of `recipe.bodies`, in their order.
    """
    family = find_family(recipe.env)
    if family is None or family.open_source is None:
        raise BadInput(f"no family of environments collects {recipe.env!r}")
    return family.open_source(recipe, *actors)


def open_simulator(env: str, success_timing: Timing = "post") -> Simulator:
    """Make the simulator of a single task.

    Raises
    ------
    BadInput
        The simulator is not installed, or has no environment of that name.
    """
    family = find_family(env)
    return (Simulator if family is None else family.simulator)(env, success_timing)
