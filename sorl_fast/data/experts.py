"""The experts of a recipe: files found, checked, and made to act."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..act.form import Direct
from ..act.policy_file import Policy, load
from ..act.sampler import Sampler
from ..envs.bodies import Body
from ..envs.mazes import Actor
from ..envs.recipe import Recipe
from ..errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def find_experts(recipe: Recipe, files: Sequence[str]) -> tuple[Policy, ...]:
    """Return the experts of `recipe.bodies`, in their order: of `files`, or else the package's own.

    Parameters
    ----------
    recipe
        What is to be collected.
    files
        Policy files, in any order; each names the environment of its body as its `env`.

    Raises
    ------
    BadInput
        A file is no policy, or that of no body which the recipe has, or is given for a body twice; its
        numbers of observations or actions, or its form, are not such a body's expert's; a body has no
        expert here.
    """
    found: dict[str, Policy] = {}
    for file in files:
        policy = load(file)
        body = next((body for body in recipe.bodies if body.online == policy.env), None)
        if body is None:
            raise BadInput(
                f"expert {file} is of env {policy.env!r}, but {recipe.dataset} takes "
                f"{_needed(recipe)}. Leave --expert out, or give another file"
            )
        _check(file, policy, body)
        if body.name in found:
            raise BadInput(
                f"expert {file} is a second one of {body.name}, but {recipe.dataset} takes one. Leave one "
                "out"
            )
        found[body.name] = policy
    for body in recipe.bodies:
        if body.name not in found:
            if not body.shipped.is_file():
                raise BadInput(
                    f"{recipe.dataset} needs an expert of {body.name} ({body.obs_dim} observations, "
                    f"{body.act_dim} actions), which the package has not. Train one with "
                    f"`{body.command}` and add --expert {body.name}.safetensors, or get OGBench's data "
                    "with `sorl-fast train --download`"
                )
            found[body.name] = load(body.shipped)
    return tuple(found[body.name] for body in recipe.bodies)


def _needed(recipe: Recipe) -> str:
    if not recipe.bodies:
        return "no expert"
    return " and ".join(f"one of env {body.online!r}" for body in recipe.bodies)


def _check(file: str, policy: Policy, body: Body) -> None:
    for name, value, bound in (
        ("obs_dim", policy.obs_dim, body.obs_dim),
        ("act_dim", policy.act_dim, body.act_dim),
    ):
        if value != bound:
            raise BadInput(
                f"expert {file} has {name} = {value}, but an expert of {body.name} has {bound}. Train one "
                f"with `{body.command}`"
            )
    form = policy.form
    if not isinstance(form, Direct) or form.reads_noise:
        kind = "shortcut" if form is None else form.name
        noise = ", which reads noise" if isinstance(form, Direct) else ""
        raise BadInput(
            f"expert {file} is of form {kind}{noise}, but must be of form tanh or direct that reads none: "
            f"an expert acts without chance. Train one with `{body.command}`"
        )


def actor_of(policy: Policy) -> Actor:
    """Return what acts for an expert: its action without noise, of one observation."""
    sampler = Sampler(policy)
    temperature = 0.0 if policy.temperature else None  # none is the fast way

    def act(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        action: NDArray[np.float32] = sampler.act(obs, seed=0, temperature=temperature)
        return action

    return act
