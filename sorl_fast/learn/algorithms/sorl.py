"""SORL (arXiv 2505.22866): a shortcut actor of any number of Euler steps, and a critic that knows it.

One update is a critic step, then an actor step, then the EMAs. Two networks, two optimisers, two clips
(the authors' release shares one of each: corrected; its shared Adam steps twice an update, once with a
zero critic gradient, so that its critic moves further on momentum - which is why the two learning rates
are separate fields here). The actor step and the EMAs see the critic and the actor just updated
(corrected as well).

Shape letters: B batch, O observation, A action, E critics, L = log2 M_disc. All losses are scalars.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...act.policy_file import Policy
from ...batch import Batch
from ...config import MethodConfig, QAgg, check, euler_steps, is_power_of_two, option
from ...layout import Layout
from ...ops import aggregate
from ..losses import interpolate
from ..method import Export, Method, NetworkSpec, Trained
from ..networks import CriticEnsemble, ShortcutActor, fresh_layers
from ..noise import Fixed, Grid, Grids, Noise, Normal, Plan
from ..optimiser import AdamSettings


@dataclass(frozen=True, kw_only=True)
class SorlConfig(MethodConfig):
    """Every constant of SORL; the defaults are the paper's."""

    method: ClassVar[str] = "sorl"

    # fmt: off
    hidden: int = option(512, help="width H of every hidden layer, actor and critic")
    depth: int = option(4, help="number of hidden layers, actor and critic")
    ensemble: int = option(2, help="number E of critics")
    m_disc: int = option(8, help="M_disc: finest Euler grid the actor learns; a power of two")
    m_btt: int = option(8, help="M_BTT: most Euler steps the Q loss goes back through; a power of two, at most m_disc")
    q_coef: float = option(help="weight of the Q loss in the actor loss; no default outside the paper's table", hint="the paper used 10 to 500; start at 10 for manipulation, 100 or more for locomotion")
    fm_coef: float = option(10.0, help="weight of the flow-matching loss in the actor loss")
    sc_coef: float = option(10.0, help="weight of the self-consistency loss in the actor loss")
    gamma: float = option(0.99, help="discount, in [0, 1)")
    q_agg: QAgg = option("mean", help="how the critic ensemble is aggregated in TD targets and best-of-N: mean or min")
    tau: float = option(0.005, help="EMA rate of both target networks, in (0, 1]")
    actor_lr: float = option(1e-4, help="Adam's learning rate, actor")
    critic_lr: float = option(1e-4, help="Adam's learning rate, critic ensemble")
    adam_b1: float = option(0.9, help="Adam's first moment decay")
    adam_b2: float = option(0.999, help="Adam's second moment decay")
    adam_eps: float = option(1e-8, help="Adam's epsilon")
    clip_norm: float = option(1.0, help="global-norm clip of each network's gradient")
    batch_size: int = option(256, help="transitions a minibatch")
    sc_part: float = option(1.0, later=True, help="part of the minibatch's rows that the self-consistency loss reads, in (0, 1]")
    sc_every: int = option(1, later=True, help="updates from one with a self-consistency loss to the next")
    sc_coin: float = option(0.0, later=True, help="probability, below 1, that an update has the self-consistency loss and no flow matching, which the others have alone; 0: each has both")
    flow_eps: float = option(1e-5, help="e in x_t = (1-(1-e)t) x0 + t a")
    ema_actor: bool = option(False, later=True, help="the policy is the EMA of the actor, which self-consistency learns from, and not the actor just updated (the paper's)")
    normalize_obs: bool = option(False, help="standardise observations by the data set's mean and deviation; saved with the policy")
    # fmt: on

    def __post_init__(self) -> None:
        for name in ("hidden", "depth", "ensemble", "batch_size"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "an integer of at least 1")
        for name in ("m_disc", "m_btt"):
            value = getattr(self, name)
            ok = isinstance(value, int) and is_power_of_two(value) and value <= 1024
            check(ok, name, value, "a power of two from 1 to 1024")
        check(self.m_btt <= self.m_disc, "m_btt", self.m_btt, f"at most m_disc = {self.m_disc}")
        for name in ("q_coef", "fm_coef", "sc_coef"):
            value = getattr(self, name)
            check(math.isfinite(value) and value >= 0, name, value, "finite and not negative")
        for name in ("gamma", "adam_b1", "adam_b2"):
            value = getattr(self, name)
            check(0 <= value < 1, name, value, "in [0, 1)")
        check(0 < self.tau <= 1, "tau", self.tau, "in (0, 1]")
        check(0 <= self.flow_eps < 1, "flow_eps", self.flow_eps, "in [0, 1)")
        for name in ("actor_lr", "critic_lr", "clip_norm", "adam_eps"):
            value = getattr(self, name)
            check(math.isfinite(value) and value > 0, name, value, "finite and above 0")
        check(self.q_agg in ("mean", "min"), "q_agg", self.q_agg, "mean or min")
        check(0 < self.sc_part <= 1, "sc_part", self.sc_part, "in (0, 1]")
        whole = isinstance(self.sc_every, int) and self.sc_every >= 1
        check(whole, "sc_every", self.sc_every, "an integer of at least 1")
        check(0 <= self.sc_coin < 1, "sc_coin", self.sc_coin, "in [0, 1)")
        alone = self.sc_coin == 0 or (self.sc_every == 1 and self.m_disc > 1)
        check(
            alone,
            "sc_coin",
            self.sc_coin,
            "0 with another sc_every than 1, and with an m_disc of 1",
        )

    @property
    def train_steps(self) -> tuple[int, ...]:
        """Step counts {1, 2, 4, ..., m_disc} that the trained actor may act with."""
        return euler_steps(self.m_disc)

    @property
    def finest(self) -> int | None:
        """m_disc: the actor takes any schedule of up to twice as many steps."""
        return self.m_disc

    @property
    def btt_steps(self) -> tuple[int, ...]:
        """Step counts {1, 2, 4, ..., m_btt} that the Q and TD losses draw k from."""
        return euler_steps(self.m_btt)


# ---- losses


class Regression(NamedTuple):
    """Velocities that the actor is to learn: s(x_t, t, h) = target, one row each; may have no row."""

    x_t: Tensor  # [B, A]
    t: Tensor  # [B]
    log2_steps: Tensor  # [B], log2(1/h)
    target: Tensor  # [B, A], no gradient


def regression_losses(
    actor: ShortcutActor, obs: Tensor, terms: Sequence[Regression]
) -> list[Tensor]:
    """Mean of ||s(x_t, t, h) - target||^2 of each term; 0 for one that has no row.

    The actor runs once, on the rows of all terms: one wide batch is cheaper than several. A term of n rows
    is one of the first n of `obs` [B, O].
    """
    filled = [term for term in terms if len(term.t)]
    if not filled:
        return [obs.new_zeros(()) for _ in terms]
    x_t, t, log2_steps, target = (torch.cat(parts) for parts in zip(*filled, strict=True))
    v = actor(torch.cat([obs[: len(term.t)] for term in filled]), x_t, t, log2_steps)
    errors = iter((v - target).split([len(term.t) for term in filled]))
    return [next(errors).square().mean() if len(term.t) else v.new_zeros(()) for term in terms]


def flow_matching(batch: Batch, t: Tensor, noise: Tensor, config: SorlConfig) -> Regression:
    """Regress s(x_t, t, 1/M_disc) on a - (1-e) x0.

    Parameters
    ----------
    t
        [B], on the grid {0, ..., M_disc-1} / M_disc.
    noise
        x0 [B, A], standard normal.
    """
    x_t = interpolate(batch.actions, noise, t, config.flow_eps)
    log2_steps = torch.full_like(t, config.m_disc.bit_length() - 1)
    return Regression(x_t, t, log2_steps, batch.actions - (1 - config.flow_eps) * noise)


def half_steps(log2_steps: Tensor) -> Tensor:
    """Return h/2 of every log2(1/h)."""
    return torch.exp2(-log2_steps - 1)


@torch.no_grad()
def consistency_target(
    target_actor: ShortcutActor,
    obs: Tensor,
    x_t: Tensor,
    t: Tensor,
    log2_steps: Tensor,
    half: Tensor | None = None,
) -> Tensor:
    """Return (v1 + v2)/2 [B, A]: the mean velocity of two half steps of the EMA actor."""
    half = half_steps(log2_steps) if half is None else half
    v1 = target_actor(obs, x_t, t, log2_steps + 1)
    v2 = target_actor(obs, x_t + half.unsqueeze(-1) * v1, t + half, log2_steps + 1)
    return (v1 + v2) / 2


def self_consistency(
    target_actor: ShortcutActor,
    batch: Batch,
    log2_steps: Tensor,
    t: Tensor,
    noise: Tensor,
    config: SorlConfig,
    half: Tensor | None = None,
) -> Regression:
    """Regress s(x_t, t, h) on (v1 + v2)/2: one big step h is to equal two half steps.

    Parameters
    ----------
    log2_steps
        [n], log2(1/h) of the BIG step, of the first n <= B rows; empty if M_disc = 1, when the loss is 0.
    t
        [n], on each row's grid {0, h, 2h, ...}.
    noise
        x0 [n, A], standard normal.
    half
        h/2 [n], where it is there already.
    """
    n = len(t)
    if n == 0:
        none = batch.actions[:0]
        return Regression(none, t, log2_steps, none)
    x_t = interpolate(batch.actions[:n], noise, t, config.flow_eps)
    target = consistency_target(target_actor, batch.observations[:n], x_t, t, log2_steps, half)
    return Regression(x_t, t, log2_steps, target)


def q_loss(
    actor: ShortcutActor, critic: CriticEnsemble, batch: Batch, steps: int, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """-mean(Q) / stopgrad(mean|Q|) of the actor's own k-step actions, gradient through all k steps.

    Q is the ensemble MEAN whatever q_agg says, as the authors do. The critic's own parameters get no
    gradient from here: nobody would read it.

    Returns
    -------
    loss, q
        The loss, and Q [B] for the log.
    """
    actions = actor.sample(batch.observations, noise, steps)
    q = critic(batch.observations, actions, steps, frozen=True).mean(0)
    return -q.mean() / q.detach().abs().mean(), q


@torch.no_grad()
def td_target(
    actor: ShortcutActor,
    target_critic: CriticEnsemble,
    batch: Batch,
    steps: int,
    noise: Tensor,
    config: SorlConfig,
) -> Tensor:
    """Return y = r + gamma * mask * agg(Q_target(x', a', k)) [B], a' a k-step sample at x'.

    No gradient reaches the actor from here (the authors' release lets it: corrected).
    """
    actions = actor.sample(batch.next_observations, noise, steps)
    q = target_critic(batch.next_observations, actions, steps)
    return batch.rewards + config.gamma * batch.masks * aggregate(q, config.q_agg)


def td_loss(critic: CriticEnsemble, batch: Batch, steps: int, target: Tensor) -> Tensor:
    """Mean over B and both members of (Q(x, a, k) - y)^2, y [B] from `td_target`."""
    return (critic(batch.observations, batch.actions, steps) - target).square().mean()


# ---- the method


def consistency_strata(batch_size: int, m_disc: int) -> Tensor:
    """Return log2(1/h) of every row [B]: equal strata L-1, ..., 0, rows left over get 0.

    M_disc = 1 has no strata: the result is empty, and so the loss is 0.
    """
    L = m_disc.bit_length() - 1
    if L == 0:
        return torch.zeros(0)
    strata = torch.arange(L - 1, -1, -1).repeat_interleave(batch_size // L)
    return torch.cat([strata, strata.new_zeros(batch_size - len(strata))]).float()


class Steps(NamedTuple):
    """Which operations an update consists of: each k is drawn apart, from {1, 2, ..., M_BTT}."""

    td: int
    q: int
    fm: bool = True  # whether there is a flow-matching loss
    sc: bool = True  # whether there is a self-consistency loss


class Sorl(Method[SorlConfig]):
    """SORL: flow matching, self-consistency and Q through M_BTT Euler steps."""

    Config = SorlConfig
    title = "SORL: any-step shortcut policies (arXiv 2505.22866)"
    metrics: ClassVar = {
        "critic_loss": "TD loss of the critic",
        "actor_loss": "Actor loss",
        "fm_loss": "Flow matching",
        "sc_loss": "Self-consistency",
        "q_loss": "Q loss of the actor",
        "q_mean": "Mean Q",
        "critic_grad_norm": "Critic's gradient norm",
        "actor_grad_norm": "Actor's gradient norm",
    }
    val_metrics = ("critic_loss", "fm_loss", "sc_loss", "q_loss", "q_mean")
    plots = ("fm_loss", "sc_loss", "q_loss", "critic_loss")
    shown: ClassVar = {"critic": "critic_loss", "fm": "fm_loss", "q": "q_mean"}
    remedy = "Lower --actor-lr, --critic-lr or --q-coef"

    @classmethod
    def normalises_q(cls, agent: Mapping[str, Any]) -> bool:
        """Return True: `q_loss` always is."""
        return True

    def networks(self, obs_dim: int, act_dim: int) -> dict[str, NetworkSpec]:
        """Return the actor and the critic ensemble, each with an EMA target."""
        c = self.config
        actor = Layout.actor(obs_dim, act_dim, c.hidden, c.depth)
        critic = Layout.critic(obs_dim, act_dim, c.hidden, c.depth, c.ensemble)
        adam = (c.tau, c.adam_b1, c.adam_b2, c.adam_eps, c.clip_norm)
        return {
            "actor": NetworkSpec(
                lambda random: ShortcutActor(fresh_layers(actor, random)),
                AdamSettings(c.actor_lr, *adam),
                target=True,
            ),
            "critic": NetworkSpec(
                lambda random: CriticEnsemble(fresh_layers(critic, random)),
                AdamSettings(c.critic_lr, *adam),
                target=True,
            ),
        }

    def plan(self, act_dim: int) -> Plan:
        """Return the noise of an update: four x0, and a time each for FM and SC."""
        B = self.config.batch_size
        strata = consistency_strata(math.ceil(B * self.config.sc_part), self.config.m_disc)
        return {
            "fm_t": Grid(B, self.config.m_disc),
            "sc_t": Grids(torch.exp2(strata)),
            "td_noise": Normal(B),
            "fm_noise": Normal(B),
            "sc_noise": Normal(len(strata)),
            "q_noise": Normal(B),
            "sc_log2_steps": Fixed(strata),
            "sc_half": Fixed(half_steps(strata)),
        }

    def kept(self) -> dict[str, Tensor]:
        """Return the regression losses, which updates without one of them report again."""
        both = self.config.sc_every == 1 and self.config.sc_coin == 0
        return {} if both else {"regression": torch.zeros(2)}

    def choose(self, host: torch.Generator, step: int) -> Steps:
        """Draw k of the TD loss and, apart, of the Q loss, uniform on {1, 2, ..., M_BTT}.

        And which regressions there are: both, or as `sc_every` and `sc_coin` say.
        """
        c, steps = self.config, self.config.btt_steps
        td, q = (int(torch.randint(len(steps), (), generator=host)) for _ in range(2))
        if c.sc_coin > 0:  # no number is drawn where there is no coin: the others stay as they were
            sc = float(torch.rand((), generator=host)) < c.sc_coin
            return Steps(steps[td], steps[q], fm=not sc, sc=sc)
        return Steps(steps[td], steps[q], sc=step % c.sc_every == 0)

    def critic_loss(self, trained: Trained, batch: Batch, noise: Noise, k: int) -> Tensor:
        """Return the TD loss."""
        actor, target_critic = trained.networks["actor"], trained.targets["critic"]
        target = td_target(actor, target_critic, batch, k, noise["td_noise"], self.config)
        return td_loss(trained.networks["critic"], batch, k, target)

    def actor_losses(
        self, trained: Trained, batch: Batch, noise: Noise, k: int, fm: bool = True, sc: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the flow-matching, self-consistency and Q losses, and Q [B].

        The first is 0 unless `fm`, the second unless `sc`: at least one of them is there.
        """
        actor, critic = trained.networks["actor"], trained.networks["critic"]
        terms = []
        if fm:
            terms += [flow_matching(batch, noise["fm_t"], noise["fm_noise"], self.config)]
        if sc:
            drawn = noise["sc_log2_steps"], noise["sc_t"], noise["sc_noise"]
            target = trained.targets["actor"]
            terms += [self_consistency(target, batch, *drawn, self.config, noise["sc_half"])]
        found = iter(regression_losses(actor, batch.observations, terms))
        zero = batch.rewards.new_zeros(())
        losses = [next(found) if there else zero for there in (fm, sc)]
        return losses[0], losses[1], *q_loss(actor, critic, batch, k, noise["q_noise"])

    def losses(
        self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable
    ) -> dict[str, Tensor]:
        """Return the losses of the validation data."""
        assert isinstance(choice, Steps)
        fm, sc, q_part, q = self.actor_losses(trained, batch, noise, choice.q)  # always both
        td = self.critic_loss(trained, batch, noise, choice.td)
        values = (td, fm, sc, q_part, q.mean())
        return dict(zip(self.val_metrics, values, strict=True))

    def update(self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable) -> Tensor:
        """Make a critic step, then an actor step; both EMAs follow at once."""
        assert isinstance(choice, Steps)
        config = self.config
        critic_loss = self.critic_loss(trained, batch, noise, choice.td)
        # The critic's target is next read by the next update, so its EMA may follow at once.
        critic_norm = trained.optimisers["critic"].step(critic_loss)

        there = choice.fm, choice.sc
        fm, sc, q_part, q = self.actor_losses(trained, batch, noise, choice.q, *there)
        regression = config.fm_coef * fm + config.sc_coef * sc
        actor_norm = trained.optimisers["actor"].step(regression, config.q_coef * q_part)
        actor_loss = regression + config.q_coef * q_part
        if "regression" in trained.kept:
            kept = trained.kept["regression"]
            for i, (loss, made) in enumerate(zip((fm, sc), there, strict=True)):
                if made:
                    kept[i].copy_(loss.detach())
            fm, sc = kept.clone()

        values = (critic_loss, actor_loss, fm, sc, q_part, q.mean(), critic_norm, actor_norm)
        return torch.stack([v.detach() for v in values])

    def export(self, trained: Trained, about: Export) -> Policy:
        """Return the actor, online or its EMA, and the online critic, actions bounded by [-1, 1]."""
        c = self.config
        actors = trained.targets if c.ema_actor else trained.networks
        return about.policy(
            c,
            actors["actor"],
            trained.networks["critic"],
            hidden=c.hidden,
            depth=c.depth,
            form=None,
            q_agg=c.q_agg,
            m_disc=c.m_disc,
            m_btt=c.m_btt,
        )
