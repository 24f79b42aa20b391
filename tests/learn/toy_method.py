"""The smallest method: behaviour cloning by flow matching alone, acting in one Euler step."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sorl_fast.act.policy_file import Policy
from sorl_fast.config import MethodConfig, option
from sorl_fast.layout import Layout
from sorl_fast.learn.losses import interpolate
from sorl_fast.learn.method import Method, NetworkSpec
from sorl_fast.learn.networks import ShortcutActor, fresh_layers
from sorl_fast.learn.noise import Normal, Uniform
from sorl_fast.learn.optimiser import AdamSettings


@dataclass(frozen=True, kw_only=True)
class ToyConfig(MethodConfig):
    method: ClassVar[str] = "toy"
    width: int = option(8, help="width of the one hidden layer")
    lr: float = option(1e-3, help="Adam's learning rate")
    batch_size: int = option(16, help="transitions a minibatch")
    normalize_obs: bool = option(False, help="standardise observations")


class Toy(Method):
    Config = ToyConfig
    title = "behaviour cloning by flow matching"
    metrics: ClassVar = {"fm_loss": "Flow matching"}
    val_metrics = plots = ("fm_loss",)
    shown: ClassVar = {"fm": "fm_loss"}
    remedy = "Lower --lr"

    def networks(self, obs_dim, act_dim):
        layout = Layout.actor(obs_dim, act_dim, self.config.width, 1)
        make = lambda random: ShortcutActor(fresh_layers(layout, random))  # noqa: E731
        return {"actor": NetworkSpec(make, AdamSettings(self.config.lr), target=True)}

    def plan(self, act_dim):
        return {"t": Uniform((self.config.batch_size,)), "x0": Normal(self.config.batch_size)}

    def losses(self, trained, batch, noise, choice):
        x_t = interpolate(batch.actions, noise["x0"], noise["t"])
        v = trained.networks["actor"](batch.observations, x_t, noise["t"], 0 * noise["t"])
        return {"fm_loss": (v - (batch.actions - noise["x0"])).square().mean()}

    def update(self, trained, batch, noise, choice):
        loss = self.losses(trained, batch, noise, choice)["fm_loss"]
        trained.optimisers["actor"].step(loss)
        return loss.detach()[None]

    def export(self, trained, about):
        O, A, H, one = about.obs_dim, about.act_dim, self.config.width, np.ones(about.act_dim)
        shapes = Layout.critic(O, A, H, 1, 1).layers()
        critic = [tuple(np.zeros(shape) for shape in layer.values()) for layer in shapes]
        return Policy(obs_dim=O, act_dim=A, hidden=H, depth=1, ensemble=1, m_disc=1, m_btt=1, q_agg="mean",
                      env=about.env, action_low=-one, action_high=one, config=self.config.to_dict(),
                      actor=trained.networks["actor"].arrays(), critic=tuple(critic))  # fmt: skip
