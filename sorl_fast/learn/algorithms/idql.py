"""IDQL (arXiv 2304.10573), as its authors export it: IQL's value and critics, and a diffusion model of the
data's actions, of whose candidates the target critics choose when it acts.

With `score` residual (theirs) all networks are plain PyTorch; with mlp they are the common ones. An
update steps the score network and the value, then the critics on the NEW value; EMAs follow the updated
networks. The score's learning rate fades over `decay_steps`, however long a training is.

Shape letters: B batch, O observation, A action, E critics, T diffusion steps. All losses are scalars.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...act.form import MAX_BLOCKS, MAX_NOISY, Diffusion
from ...act.policy_file import Policy
from ...batch import Batch
from ...config import MethodConfig, check, option
from ...layout import Layout
from ...ops import aggregate
from ..losses import expectile_loss
from ..method import Export, Method, NetworkSpec, Trained
from ..networks import CriticEnsemble, FlowActor, Network, Value, fresh_layers
from ..noise import Grid, Noise, Normal, Plan, Uniform
from ..optimiser import AdamSettings, AdamWSettings
from ..score_network import fresh_critics, fresh_score, fresh_value
from .common import check_below_one, check_not_negative, check_positive, check_rate, check_whole

BETA_MIN, BETA_MAX = 0.1, 10.0  # of the variance-preserving schedule


@dataclass(frozen=True, kw_only=True)
class IdqlConfig(MethodConfig):
    """Every constant of IDQL; the defaults are the authors'."""

    method: ClassVar[str] = "idql"

    # fmt: off
    score: Literal["residual", "mlp"] = option("residual", help="networks: residual, the authors', trained in plain PyTorch, or mlp, the common actor, critic and value")
    hidden: int = option(512, help="width of every hidden layer, with --score mlp")
    depth: int = option(4, help="number of hidden layers, with --score mlp")
    residual_hidden: int = option(256, help="width of every layer, with --score residual")
    residual_depth: int = option(2, help="hidden layers of critics and value, with --score residual")
    residual_blocks: int = option(3, help="blocks of the score network, with --score residual")
    residual_frequencies: int = option(64, help="Fourier features of time, with --score residual")
    dropout: float = option(0.1, help="dropout in the score network's blocks, with --score residual")
    ensemble: int = option(2, help="number E of critics")
    diffusion_steps: int = option(5, help="T, steps of the diffusion")
    extra_steps: int = option(0, help="M, steps added at its end when the policy acts")
    num_samples: int = option(64, help="candidates N of the paper's policy, for the record: act and evaluate with --candidates N")
    expectile: float = option(0.7, help="expectile of Q that the value is fitted to, in (0, 1)")
    gamma: float = option(0.99, help="discount, in [0, 1)")
    tau: float = option(0.005, help="EMA rate of the target critics, in (0, 1]")
    actor_tau: float = option(0.001, help="EMA rate of the score network that acts, in (0, 1]")
    lr: float = option(3e-4, help="learning rate, every network")
    decay_steps: int = option(3_000_000, help="updates over which the score network's learning rate fades to 0, whatever --steps is")
    weight_decay: float = option(1e-4, help="weight decay of the score network")
    batch_size: int = option(512, help="transitions a minibatch")
    normalize_obs: bool = option(False, help="standardise observations by the data set's mean and deviation; saved with the policy")
    # fmt: on

    def __post_init__(self) -> None:
        check_whole(self, "hidden", "depth", "residual_hidden", "residual_depth", "residual_blocks")
        check_whole(self, "residual_frequencies", "ensemble", "diffusion_steps", "num_samples")
        check_whole(self, "decay_steps", "batch_size")
        more = self.extra_steps
        check(isinstance(more, int) and more >= 0, "extra_steps", more, "an integer of at least 0")
        steps, bound = self.train_steps[0], f"at most {MAX_NOISY} together with extra_steps"
        check(steps <= MAX_NOISY, "diffusion_steps", self.diffusion_steps, bound)
        blocks, bound = self.residual_blocks, f"at most {MAX_BLOCKS}"
        check(blocks <= MAX_BLOCKS, "residual_blocks", blocks, bound)
        check(self.score in ("residual", "mlp"), "score", self.score, "residual or mlp")
        check(0 < self.expectile < 1, "expectile", self.expectile, "in (0, 1)")
        check_below_one(self, "gamma", "dropout")
        check_rate(self, "tau", "actor_tau")
        check_positive(self, "lr")
        check_not_negative(self, "weight_decay")

    @property
    def train_steps(self) -> tuple[int, ...]:
        """The one step count that the policy acts with."""
        return (self.diffusion_steps + self.extra_steps,)


# ---- the diffusion


def vp_betas(steps: int) -> NDArray[np.float64]:
    """Return the variances [T] that each diffusion step adds: the variance-preserving schedule."""
    t = np.arange(1, steps + 1)
    kept = np.exp(-BETA_MIN / steps - 0.5 * (BETA_MAX - BETA_MIN) * (2 * t - 1) / steps**2)
    return 1 - kept


def diffusion_form(config: IdqlConfig) -> Diffusion:
    """Return how the policy acts: from T - 1 down to step 0, which adds no noise, then more of step 0."""
    T, residual = config.diffusion_steps, config.score == "residual"
    betas = vp_betas(T)
    hats = np.cumprod(1 - betas)
    t = np.array([*reversed(range(T)), *[0] * config.extra_steps])
    kept = np.sqrt(1 - betas[t])
    return Diffusion(
        times=tuple((t if residual else t / T).tolist()),
        z_scales=tuple((1 / kept).tolist()),
        v_scales=tuple((-betas[t] / np.sqrt(1 - hats[t]) / kept).tolist()),
        noise_scales=tuple(np.where(t > 0, np.sqrt(betas[t]), 0).tolist()),
        clip=1.0,
        blocks=config.residual_blocks if residual else 0,
        frequencies=config.residual_frequencies if residual else 0,
    )


def diffuse(actions: Tensor, noise: Tensor, t: Tensor, steps: int) -> Tensor:
    """Return x_t = sqrt(a^_t) a + sqrt(1 - a^_t) eps [B, A]; t [B] integers in float, a^ the schedule's."""
    hats = np.cumprod(1 - vp_betas(steps))
    # as numbers that an operation carries: a CUDA graph could not copy them from the host
    kept, added = (torch.zeros_like(t) for _ in range(2))
    for i, hat in enumerate(hats):
        kept = torch.where(t == i, float(np.sqrt(hat)), kept)
        added = torch.where(t == i, float(np.sqrt(1 - hat)), added)
    return kept.unsqueeze(-1) * actions + added.unsqueeze(-1) * noise


def score_loss(
    score: Callable[[Tensor, Tensor, Tensor], Tensor],
    batch: Batch,
    t: Tensor,
    noise: Tensor,
    steps: int,
) -> Tensor:
    """Mean over B of the SUM over A of (eps - score(x, x_t, t))^2; t [B] integers in float."""
    noisy = diffuse(batch.actions, noise, t, steps)
    return (score(batch.observations, noisy, t) - noise).square().sum(-1).mean()


# ---- the method


class Idql(Method[IdqlConfig]):
    """Implicit diffusion Q-learning."""

    Config = IdqlConfig
    title = "IDQL: a diffusion model, and the best of N under IQL's critics (arXiv 2304.10573)"
    metrics: ClassVar = {
        "actor_loss": "Score loss",
        "value_loss": "Expectile loss of the value",
        "critic_loss": "TD loss of the critic",
        "v_mean": "Mean V",
        "q_mean": "Mean Q",
        "actor_grad_norm": "Score's gradient norm",
        "value_grad_norm": "Value's gradient norm",
        "critic_grad_norm": "Critic's gradient norm",
    }
    val_metrics = ("actor_loss", "value_loss", "critic_loss", "v_mean", "q_mean")
    plots = ("actor_loss", "value_loss", "critic_loss")
    shown: ClassVar = {"critic": "critic_loss", "score": "actor_loss", "q": "q_mean"}
    remedy = "Lower --lr"

    def networks(self, obs_dim: int, act_dim: int) -> dict[str, NetworkSpec]:
        """Return the score network and the critics, each with an EMA target, and the value."""
        c, O, A = self.config, obs_dim, act_dim
        adam = AdamSettings(c.lr, c.tau)
        adamw = AdamWSettings(c.lr, c.decay_steps, c.actor_tau, weight_decay=c.weight_decay)
        makers = self._residual(O, A) if c.score == "residual" else self._mlp(O, A)
        actor, critic, value = makers
        return {
            "actor": NetworkSpec(actor, adamw, target=True),
            "critic": NetworkSpec(critic, adam, target=True),
            "value": NetworkSpec(value, adam),
        }

    def _residual(self, O: int, A: int) -> list[Callable[[torch.Generator], Any]]:
        c = self.config
        H, depth = c.residual_hidden, c.residual_depth
        return [
            lambda random: fresh_score(O, A, H, c.residual_blocks, c.residual_frequencies, random),
            lambda random: fresh_critics(O, A, H, depth, c.ensemble, random),
            lambda random: fresh_value(O, H, depth, random),
        ]

    def _mlp(self, O: int, A: int) -> list[Callable[[torch.Generator], Any]]:
        c = self.config
        actor = Layout.actor(O, A, c.hidden, c.depth)
        critic = Layout.critic(O, A, c.hidden, c.depth, c.ensemble)
        value = Layout.critic(O, 0, c.hidden, c.depth, 1)

        def layers(layout: Layout, random: torch.Generator) -> list[dict[str, Tensor]]:
            return fresh_layers(layout, random, unused=[slice(layout.inputs - 1, None)])

        return [
            lambda random: FlowActor(layers(actor, random)),
            lambda random: CriticEnsemble(layers(critic, random)),
            lambda random: Value(layers(value, random)),
        ]

    def plan(self, act_dim: int) -> Plan:
        """Return the noise and the step of the score's regression, and what dropout draws."""
        c = self.config
        plan: dict[str, Any] = {"t": Grid(c.batch_size, c.diffusion_steps)}
        if c.score == "residual" and c.dropout > 0:
            shape = (c.residual_blocks, c.batch_size, c.residual_hidden)
            plan["dropout"] = Uniform(shape)
        return plan | {"noise": Normal(c.batch_size)}

    def q(self, critics: Network, obs: Tensor, actions: Tensor) -> Tensor:
        """Return Q [E, B], whatever the critics are."""
        return (
            critics(obs, actions) if self.config.score == "residual" else critics(obs, actions, 0)
        )

    def score(self, network: Network, obs: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """Return the noise [B, A] at step t [B]; the common actor reads t / T as its time."""
        c = self.config
        return network(obs, z, t if c.score == "residual" else t / c.diffusion_steps)

    def actor_loss(self, trained: Trained, batch: Batch, noise: Noise, *, training: bool) -> Tensor:
        """Return the score network's loss, with dropout where it trains."""
        c, network = self.config, trained.networks["actor"]
        t = (noise["t"] * c.diffusion_steps).round()
        score = partial(self.score, network)
        if training and "dropout" in noise:
            keep = (noise["dropout"] >= c.dropout).float()
            score = partial(network, keep=keep, dropout=c.dropout)
        return score_loss(score, batch, t, noise["noise"], c.diffusion_steps)

    def value_loss(self, trained: Trained, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the expectile loss of the value on min Q_target, and V(x) [B]."""
        with torch.no_grad():
            q = self.q(trained.targets["critic"], batch.observations, batch.actions)
        v = trained.networks["value"](batch.observations)
        return expectile_loss(v, aggregate(q, "min"), self.config.expectile), v

    def critic_loss(self, trained: Trained, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean over members and B of (Q - r - gamma mask V(x'))^2, and Q [E, B]."""
        with torch.no_grad():
            v = trained.networks["value"](batch.next_observations)
            y = batch.rewards + self.config.gamma * batch.masks * v
        q = self.q(trained.networks["critic"], batch.observations, batch.actions)
        return (q - y).square().mean(), q

    def losses(
        self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable
    ) -> dict[str, Tensor]:
        """Return the losses of the validation data, without dropout."""
        actor = self.actor_loss(trained, batch, noise, training=False)
        value, v = self.value_loss(trained, batch)
        critic, q = self.critic_loss(trained, batch)
        values = (actor, value, critic, v.mean(), q.mean())
        return dict(zip(self.val_metrics, values, strict=True))

    def update(self, trained: Trained, batch: Batch, noise: Noise, choice: Hashable) -> Tensor:
        """Make a step of the score network, one of the value, then one of the critics."""
        actor = self.actor_loss(trained, batch, noise, training=True)
        value, v = self.value_loss(trained, batch)
        norms = trained.step({"actor": actor, "value": value})
        critic, q = self.critic_loss(trained, batch)
        norms += trained.step({"critic": critic})
        values = (actor, value, critic, v.mean(), q.mean(), *norms)
        return torch.stack([x.detach() for x in values])

    def export(self, trained: Trained, about: Export) -> Policy:
        """Return the EMA of the score network, and the TARGET critics that choose of its candidates."""
        c, residual = self.config, self.config.score == "residual"
        return about.policy(
            c,
            trained.targets["actor"],
            trained.targets["critic"],
            hidden=c.residual_hidden if residual else c.hidden,
            depth=c.residual_depth if residual else c.depth,
            form=diffusion_form(c),
        )
