"""What the methods of FQL's repository (arXiv 2502.02538) share: settings, networks, Adam.

Their updates are alike too: one Adam step of all networks, every gradient taken at the parameters from
before it, and EMA targets that follow those as well, not the ones just stepped to.

Shape letters: O observation, A action, E critics.
"""

import math
from dataclasses import dataclass

from torch import Generator

from ...act.form import Form
from ...act.policy_file import Policy
from ...config import MethodConfig, check, option
from ...layout import Layout
from ..method import Export, NetworkSpec, Trained
from ..networks import CriticEnsemble, DirectActor, FlowActor, Network, Value, fresh_layers
from ..optimiser import AdamSettings

MEAN_SCALE = (
    0.01  # of the last layer's variance where the actor's output is a mean or goes through tanh
)


def check_whole(config: MethodConfig, *names: str) -> None:
    """Raise BadInput unless each field is an integer of at least 1."""
    for name in names:
        value = getattr(config, name)
        check(isinstance(value, int) and value >= 1, name, value, "an integer of at least 1")


def check_positive(config: MethodConfig, *names: str) -> None:
    """Raise BadInput unless each field is finite and above 0."""
    for name in names:
        value = getattr(config, name)
        check(math.isfinite(value) and value > 0, name, value, "finite and above 0")


def check_not_negative(config: MethodConfig, *names: str) -> None:
    """Raise BadInput unless each field is finite and at least 0."""
    for name in names:
        value = getattr(config, name)
        check(math.isfinite(value) and value >= 0, name, value, "finite and not negative")


def check_below_one(config: MethodConfig, *names: str) -> None:
    """Raise BadInput unless each field is in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        check(0 <= value < 1, name, value, "in [0, 1)")


def check_rate(config: MethodConfig, *names: str) -> None:
    """Raise BadInput unless each field is in (0, 1]."""
    for name in names:
        value = getattr(config, name)
        check(0 < value <= 1, name, value, "in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class ActorConfig(MethodConfig):
    """Settings of a method that trains an actor; the defaults are those of FQL's repository."""

    # fmt: off
    hidden: int = option(512, help="width H of every hidden layer")
    depth: int = option(4, help="number of hidden layers")
    lr: float = option(3e-4, help="Adam's learning rate, every network")
    adam_b1: float = option(0.9, help="Adam's first moment decay")
    adam_b2: float = option(0.999, help="Adam's second moment decay")
    adam_eps: float = option(1e-8, help="Adam's epsilon")
    batch_size: int = option(256, help="transitions a minibatch")
    normalize_obs: bool = option(False, help="standardise observations by the data set's mean and deviation; saved with the policy")
    # fmt: on

    def __post_init__(self) -> None:
        check_whole(self, "hidden", "depth", "batch_size")
        check_positive(self, "lr", "adam_eps")
        check_below_one(self, "adam_b1", "adam_b2")

    def adam(self, tau: float = 0.0) -> AdamSettings:
        """Return how a network is trained: no clip; a target follows it as it was before the step."""
        return AdamSettings(
            self.lr, tau, self.adam_b1, self.adam_b2, self.adam_eps, ema_before=True
        )


@dataclass(frozen=True, kw_only=True)
class CriticConfig(ActorConfig):
    """Settings of a method that trains critics as well."""

    # fmt: off
    ensemble: int = option(2, help="number E of critics")
    gamma: float = option(0.99, help="discount, in [0, 1)")
    tau: float = option(0.005, help="EMA rate of the target networks, in (0, 1]")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "ensemble")
        check_below_one(self, "gamma")
        check_rate(self, "tau")


def export(
    config: ActorConfig, trained: Trained, about: Export, form: Form, q_agg: str = "min"
) -> Policy:
    """Return the policy of the online actor and, where there are critics, of the online ones."""
    actor, critics = trained.networks["actor"], trained.networks.get("critic")
    sizes = {"hidden": config.hidden, "depth": config.depth}
    return about.policy(config, actor, critics, form=form, q_agg=q_agg, **sizes)


# ---- networks, by what they read


def flow_actor(config: ActorConfig, O: int, A: int) -> NetworkSpec:
    """Return v(x, z, t): log2(1/h) is unused."""
    layout = Layout.actor(O, A, config.hidden, config.depth)
    unused = [layout.log2_column]
    return NetworkSpec(
        lambda random: FlowActor(fresh_layers(layout, random, unused=unused)), config.adam()
    )


def one_step_actor(config: ActorConfig, O: int, A: int) -> NetworkSpec:
    """Return mu(x, z): t and log2(1/h) are unused."""
    layout = Layout.actor(O, A, config.hidden, config.depth)
    return _direct(config, layout, [layout.extra_columns], 1.0)


def mean_actor(config: ActorConfig, O: int, A: int, tau: float | None = None) -> NetworkSpec:
    """Return mu(x), with an EMA target if there is a tau: all but the observation is unused."""
    layout = Layout.actor(O, A, config.hidden, config.depth)
    unused = [layout.action_columns, layout.extra_columns]
    return _direct(config, layout, unused, MEAN_SCALE, tau)


def _direct(
    config: ActorConfig,
    layout: Layout,
    unused: list[slice],
    last: float,
    tau: float | None = None,
) -> NetworkSpec:
    def make(random: Generator) -> Network:
        return DirectActor(fresh_layers(layout, random, unused=unused, last=last))

    return NetworkSpec(make, config.adam(tau or 0.0), target=tau is not None)


def critic(config: CriticConfig, O: int, A: int) -> NetworkSpec:
    """Return Q(x, a), with an EMA target: k is unused."""
    layout = Layout.critic(O, A, config.hidden, config.depth, config.ensemble)
    unused = [layout.extra_columns]
    return NetworkSpec(
        lambda random: CriticEnsemble(fresh_layers(layout, random, unused=unused)),
        config.adam(config.tau),
        target=True,
    )


def value(config: CriticConfig, O: int) -> NetworkSpec:
    """Return V(x): k is unused."""
    layout = Layout.critic(O, 0, config.hidden, config.depth, 1)
    unused = [layout.extra_columns]
    return NetworkSpec(
        lambda random: Value(fresh_layers(layout, random, unused=unused)), config.adam()
    )
