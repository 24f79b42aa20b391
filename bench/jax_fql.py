"""FQL's update in JAX, as its authors train: one compiled function, which is given back its own arrays.

Written from the method's definition (`learn.algorithms.fql`), with the same weights, minibatches and noise.
What our networks' unused inputs would multiply is left out.

Shape letters: B rows, O observation, A action, E critics.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sorl_fast.batch import Batch
from sorl_fast.cores import available_cores
from sorl_fast.learn.algorithms.fql import FqlConfig
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.noise import Noise

# How many of the last inputs of each network FQL doesn't have: its critics read no k, its flow no step
# size, and its one-step actor no time either.
UNUSED = {"critic": 1, "flow": 1, "actor": 2}


def raced(method: str, threads: int) -> bool:
    """Whether JAX races a method: if it is installed, and on every core, all of which it takes."""
    own = method == FqlConfig.method and threads == available_cores()
    return own and find_spec("jax") is not None


def make_update(config: FqlConfig) -> Callable[..., Any]:
    """Return update(state, batch, noise) -> (state, metrics), compiled at its first call."""
    import jax
    import jax.numpy as jnp

    def mlp(layers: Any, x: Any) -> Any:
        for i, layer in enumerate(layers):
            x = jnp.matmul(x, layer["w"]) + layer["b"][..., None, :]
            if i + 1 < len(layers):
                x = jax.nn.gelu(x, approximate=True)
            if "g" in layer:
                mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
                x = (x - mean) / jnp.sqrt(var + 1e-6)
                x = x * layer["g"][..., None, :] + layer["c"][..., None, :]
        return x

    def velocity(flow: Any, x: Any, z: Any, t: Any) -> Any:
        return mlp(flow, jnp.concatenate([x, z, t[:, None]], -1))

    def one_step(actor: Any, x: Any, z: Any) -> Any:
        return mlp(actor, jnp.concatenate([x, z], -1))

    def critics(critic: Any, x: Any, a: Any) -> Any:
        return mlp(critic, jnp.concatenate([x, a], -1))[..., 0]  # [E, B]

    def losses(params: Any, target: Any, batch: Any, noise: Any) -> tuple[Any, list[Any]]:
        stop = jax.lax.stop_gradient
        x, a = batch["observations"], batch["actions"]
        after = stop(one_step(params["actor"], batch["next_observations"], noise["td_noise"]))
        q = critics(target, batch["next_observations"], after.clip(-1, 1))
        q = q.mean(0) if config.q_agg == "mean" else q.min(0)
        y = stop(batch["rewards"] + config.gamma * batch["masks"] * q)
        q = critics(params["critic"], x, a)
        td = ((q - y) ** 2).mean()

        x0, t = noise["x0"], noise["t"]
        between = (1 - t[:, None]) * x0 + t[:, None] * a
        matching = ((velocity(params["flow"], x, between, t) - (a - x0)) ** 2).mean()

        goal, steps = noise["noise"], config.flow_steps
        for i in range(steps):
            goal = goal + velocity(params["flow"], x, goal, jnp.full(len(x), i / steps)) / steps
        output = one_step(params["actor"], x, noise["noise"])
        distilled = ((output - stop(goal.clip(-1, 1))) ** 2).mean()
        of_actor = critics(stop(params["critic"]), x, output.clip(-1, 1)).mean(0)
        q_loss = -of_actor.mean()
        if config.normalize_q_loss:
            q_loss = q_loss / stop(jnp.abs(of_actor).mean())
        total = config.alpha * distilled + q_loss
        return td + matching + total, [td, q.mean(), matching, total, distilled, q_loss]

    def update(state: Any, batch: Any, noise: Any) -> tuple[Any, Any]:
        params, target, first, second, count = state
        (_, found), grads = jax.value_and_grad(losses, has_aux=True)(params, target, batch, noise)
        norms = [
            jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads[name]))) for name in UNUSED
        ]
        c, each = config, jax.tree.map
        count = count + 1
        first = each(lambda m, g: c.adam_b1 * m + (1 - c.adam_b1) * g, first, grads)
        second = each(lambda v, g: c.adam_b2 * v + (1 - c.adam_b2) * g**2, second, grads)
        # the target follows the critics as they were before the step
        target = each(lambda t, p: (1 - c.tau) * t + c.tau * p, target, params["critic"])
        unbiased1, unbiased2 = 1 - c.adam_b1**count, 1 - c.adam_b2**count
        params = each(
            lambda p, m, v: p - c.lr * (m / unbiased1) / (jnp.sqrt(v / unbiased2) + c.adam_eps),
            *(params, first, second),
        )
        return (params, target, first, second, count), jnp.stack([*found, *norms])

    return jax.jit(update, donate_argnums=0)


class JaxLearner:
    """What trains a learner's weights in JAX: as far as a race needs, a `Learner`.

    Parameters
    ----------
    learner
        FQL's, before its first update.
    """

    def __init__(self, learner: Learner):
        import jax

        self.method, self._learner = learner.method, learner
        self._on_cpu = jax.default_device(jax.devices("cpu")[0])
        config = self.method.config
        assert isinstance(config, FqlConfig)
        with self._on_cpu:
            params = {
                name: self._arrays(name, network) for name, network in learner.networks.items()
            }
            target = self._arrays("critic", learner.targets["critic"])
            zeros = [jax.tree.map(jax.numpy.zeros_like, params) for _ in range(2)]
            self._state = (params, target, *zeros, jax.numpy.zeros((), "float32"))
        self._update = make_update(config)

    def _arrays(self, name: str, network: Any) -> list[dict[str, Any]]:
        """Return a network's layers, without the weights of inputs that the method doesn't have."""
        import jax.numpy as jnp

        layers: list[dict[str, Any]] = [{} for _ in network.layers()]
        for key, x in network.tensors().items():
            layer, _, what = key.partition("/")
            layers[int(layer)][what] = jnp.array(x.detach().numpy())
        layers[0]["w"] = layers[0]["w"][..., : -UNUSED[name], :]
        return layers

    def update(self, batch: Batch, noise: Noise, choice: object) -> Tensor:
        """Make one update; return the metrics."""
        given = [
            {name: x.numpy() for name, x in tensors.items() if x is not None}
            for tensors in (batch._asdict(), noise)
        ]
        with self._on_cpu:
            self._state, metrics = self._update(self._state, *given)
            return torch.from_numpy(np.array(metrics))

    def state(self) -> dict[str, Tensor]:
        """Return the weights by their names in `Learner.state`."""
        named = [(name, self._state[0][name]) for name in self._state[0]]
        named.append(("target_critic", self._state[1]))
        found = self._learner.state()
        for name, layers in named:
            for i, layer in enumerate(layers):
                for what, x in layer.items():
                    own = found[f"{name}/{i}/{what}"]
                    x = torch.from_numpy(np.array(x))
                    (own[..., : x.shape[-2], :] if what == "w" else own).copy_(x)
        return found
