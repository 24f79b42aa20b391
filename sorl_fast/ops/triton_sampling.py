"""The best of N by the kernels: registered with torch.library, without a gradient.

A network that stays as it is reaches it `prepare`d, one that is trained as its layers. Shape letters as
in `reference`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import best_of_n as kernels
from ..kernels.choose import Rule as KernelRule
from ..kernels.packing import Packed, pack
from ..layout import Layout
from .packed import sizes_of
from .reference import Best, Layers, flat
from .registered import arguments_of, net_of, register
from .rules import Rule
from .schedule import Schedule, infinite

# ---- what is registered


def _best_of_n(
    actor: Sequence[Tensor], actor_weights: Tensor, actor_vectors: Tensor, critic: Sequence[Tensor],
    critic_weights: Tensor | None, critic_vectors: Tensor | None, obs: Tensor, noise: Tensor,
    candidates: int, steps: int, q_agg: str, low: Tensor, high: Tensor, precision: str, want_q: bool,
    table: Tensor | None = None, temperature: Tensor | None = None, draws: int = 1,
    begins: bool = True, squash: bool = False, noise_clip: float | None = None,
    clip: float | None = None, k: int | None = None,
    rule: str = "argmax", up: int = 1, down: int = 1, w: Tensor | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    O, A = obs.shape[1], actor[-1].shape[-1]
    second = given = chosen = None
    if critic_weights is not None and critic_vectors is not None:
        second = net_of(critic, critic_weights, critic_vectors, O, A, True, precision)
    if table is not None and temperature is not None:
        clips = infinite(noise_clip), infinite(clip)
        given = kernels.Table(table, temperature, draws, begins, squash, *clips, k)
    if rule != "argmax" and w is not None:
        chosen = KernelRule(rule, up, down, w, key)
    return kernels.best_of_n(
        net_of(actor, actor_weights, actor_vectors, O, A, False, precision),
        second,
        *(obs.contiguous(), noise.contiguous(), candidates, steps, q_agg, low, high),
        want_q=want_q, table=given, rule=chosen,
    )  # fmt: skip


register(
    "triton_best_of_n",
    "(Tensor[] actor, Tensor actor_weights, Tensor actor_vectors, Tensor[] critic, "
    "Tensor? critic_weights, Tensor? critic_vectors, Tensor obs, Tensor noise, int candidates, "
    "int steps, str q_agg, Tensor low, Tensor high, str precision, bool want_q, "
    "Tensor? table=None, Tensor? temperature=None, int draws=1, bool begins=True, "
    "bool squash=False, float? noise_clip=None, float? clip=None, int? k=None, "
    'str rule="argmax", int up=1, int down=1, Tensor? w=None, Tensor? key=None) '
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _best_of_n,
)


@torch.library.register_fake("sorl_fast::triton_best_of_n")
def _(actor, actor_weights, actor_vectors, critic, critic_weights, critic_vectors, obs, *_, **__):  # type: ignore[no-untyped-def]
    B = len(obs)
    return (
        obs.new_empty((B, actor[-1].shape[-1])),
        obs.new_empty((B,), dtype=torch.int64),
        obs.new_empty((B,)),
        obs.new_empty((B,), dtype=torch.int32),
    )


# ---- the operation


class Prepared(NamedTuple):
    """A network's parameters, both tensors of their packed copy, and its precision."""

    params: list[Tensor]
    weights: Tensor
    vectors: Tensor
    precision: str


def pack_network(layers: Layers, obs: int, precision: str) -> Packed:
    """Pack parameters that will never change, O = `obs`, for the kernels themselves."""
    params = [x.detach() for x in flat(layers)]
    norm = layers[0][0].ndim == 3  # the ensemble axis tells a critic from an actor
    return pack(params, sizes_of(Layout.of_obs(params, obs, norm)), precision)


def prepare(layers: Layers, obs: int, precision: str) -> Prepared:
    """Pack parameters that will never change, O = `obs`; a recording may use them."""
    packed = pack_network(layers, obs, precision)
    params = [x.detach() for x in flat(layers)]
    return Prepared(params, packed.weights, packed.vectors, precision)


class Tabled(NamedTuple):
    """A schedule, and its steps on the device."""

    schedule: Schedule
    table: Tensor


def best_of_n_of(
    actor: Prepared,
    critic: Prepared | None,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    q_agg: str,
    low: Tensor | float,
    high: Tensor | float,
    *,
    candidates: int | None = None,
    want_q: bool = True,
    schedule: Tabled | None = None,
    temperature: Tensor | None = None,
    rule: Rule | None = None,
) -> Best:
    """Return what `reference.best_of_n` does, of prepared networks; no gradient. None: no critic.

    noise [B, N, (S,) A], or a key, int64 [3], of which kernels draw it: then with candidates=N.
    """
    A = actor.params[-1].shape[-1]
    N = noise.shape[1] if candidates is None else candidates
    bounds = [x if isinstance(x, Tensor) else obs.new_full((A,), x) for x in (low, high)]
    low, high = (x.to(obs).expand(A).contiguous() for x in bounds)
    scoring = ([], None, None) if critic is None else critic[:3]
    more: dict[str, Any] = {}
    if schedule is not None:
        steps_ = schedule.schedule
        more = dict(zip(("draws", *Schedule._fields[5:]), (steps_.draws, *steps_[5:]), strict=True))
        more |= {"table": schedule.table, "temperature": temperature}
    if rule is not None:
        up, down = rule.parameter
        more |= {
            "rule": rule.name,
            "up": up,
            "down": down,
            "w": rule.w.contiguous(),
            "key": rule.key,
        }
    return Best(
        *torch.ops.sorl_fast.triton_best_of_n(
            *(*actor[:3], *scoring, obs, noise, N, steps, q_agg, low, high),
            *(actor.precision, want_q),
            **more,
        )
    )


def best_of_n(
    actor: Layers,
    critic: Layers,
    obs: Tensor,
    noise: Tensor,
    steps: int,
    q_agg: str,
    low: Tensor | float,
    high: Tensor | float,
    precision: str,
    *,
    want_q: bool = True,
) -> Best:
    """Return what `reference.best_of_n` does, without a gradient."""
    A = actor[-1][0].shape[-1]
    first = Prepared(*arguments_of(actor, obs, A, False, precision), precision)
    second = Prepared(*arguments_of(critic, obs, A, True, precision), precision)
    return best_of_n_of(first, second, obs, noise, steps, q_agg, low, high, want_q=want_q)
