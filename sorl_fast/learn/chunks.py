"""What learning over action chunks changes of a method and of its policy: the discount, and the file.

A method sees transitions whose action is a whole chunk (`data.chunks`), and knows of nothing else.

Shape letters: A action, h actions of a chunk.
"""

from dataclasses import fields, replace
from typing import Any, cast

from ..act.policy_file import Policy
from ..action_map import ActionMap
from ..config import MethodConfig


def discount_of(agent: MethodConfig) -> float:
    """Return a method's discount of a single step, its field `gamma`; 1 for one that sums no rewards."""
    return float(getattr(agent, "gamma", 1.0))


def over_chunks(agent: MethodConfig, length: int) -> MethodConfig:
    """Return the method's settings for transitions of h steps: the backup's discount is gamma^h."""
    if length == 1 or "gamma" not in {f.name for f in fields(cast(Any, agent))}:
        return agent
    changed: MethodConfig = replace(cast(Any, agent), gamma=discount_of(agent) ** length)
    return changed


def units_of_chunks(units: ActionMap | None, length: int) -> ActionMap | None:
    """Return the map of h actions of A components by that of one."""
    return None if units is None else units.repeated(length)


def chunked(policy: Policy, length: int, agent: MethodConfig) -> Policy:
    """Return a policy that says how many actions it returns, with the settings that were given."""
    return policy if length == 1 else replace(policy, chunk=length, config=agent.to_dict())
