"""sbx's SAC as an expert's teacher: what it is made of, its state as arrays, its actor as a policy.

The actor's hidden layers are GELU in the tanh form, as a policy file's are; the rest is sbx's default:
learning rate 3e-4, minibatches of 256, discount 0.99, two critics of which the lesser counts.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ..act.form import Tanh
from ..act.policy_file import Policy
from ..act.sampler import Sampler
from ..envs.bodies import Body
from ..errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

BUFFER = 1_000_000  # transitions kept
BLOCK = 8  # updates a call of JAX, after as many updates' steps: a third faster on a CPU than one by one
AGREES = 1e-5  # largest difference of actions in [-1, 1] between sbx's network and the Sampler's
_BUFFERS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class Agent:
    """A SAC agent in its environment.

    Parameters
    ----------
    body
        What learns to move.
    env
        From `envs.bodies.open_online`.
    seed
        Seeds weights, minibatches, noise, starts and directions.
    hidden, critic_hidden, depth
        Sizes of the networks.
    capacity
        Transitions that the replay buffer holds.

    Raises
    ------
    BadInput
        sbx is not installed.
    """

    def __init__(
        self,
        body: Body,
        env: Any,
        seed: int,
        *,
        hidden: int,
        critic_hidden: int,
        depth: int,
        capacity: int = BUFFER,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its own libraries' names
            try:
                import flax.linen
                from sbx import SAC
                from stable_baselines3.common.logger import Logger
            except ImportError as err:
                raise BadInput(
                    f"training an expert needs sbx ({err}); pip install 'sorl-fast[expert]'"
                ) from err
            self._sac: Any = SAC(
                "MlpPolicy",
                env,
                seed=seed,
                buffer_size=capacity,
                train_freq=BLOCK * body.update_every,
                gradient_steps=BLOCK,
                policy_kwargs={
                    "activation_fn": flax.linen.gelu,  # the tanh form, unless told otherwise
                    "layer_norm": body.layer_norm,
                    "net_arch": {"pi": [hidden] * depth, "qf": [critic_hidden] * depth},
                },
            )
        self._sac.set_logger(Logger(folder=None, output_formats=[]))
        self.body, self.hidden, self.depth = body, hidden, depth

    @property
    def steps(self) -> int:
        """Steps made in the environment."""
        return int(self._sac.num_timesteps)

    @property
    def returns(self) -> list[float]:
        """Sums of rewards of the newest episodes, explored ones, at most 100."""
        return [float(info["r"]) for info in self._sac.ep_info_buffer or ()]

    def learn(self, steps: int) -> None:
        """Make `steps` more steps, rounded up to whole blocks of updates, and learn from them."""
        self._sac.learn(steps, reset_num_timesteps=False)

    def act(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return sbx's own actions [B, A] for observations [B, O], without noise."""
        return np.asarray(self._sac.predict(obs, deterministic=True)[0], np.float32)

    def some_observations(self, count: int) -> NDArray[np.float32]:
        """Return up to `count` of the observations met, evenly over the buffer."""
        met = self._sac.replay_buffer.observations[: self._filled(), 0]
        return np.asarray(met[:: max(1, len(met) // count)][:count], np.float32)

    def _filled(self) -> int:
        return int(self._sac.replay_buffer.size())

    def _learned(self) -> Any:
        """Return what training changes, as a tree of arrays."""
        sac = self._sac
        return {
            "actor": sac.policy.actor_state,
            "critic": sac.policy.qf_state,
            "entropy": sac.ent_coef_state,
            "key": sac.key,
            "policy_key": sac.policy.key,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that training goes on from but the simulator's own state, as arrays by name."""
        import jax

        leaves = jax.tree.leaves(self._learned())
        arrays = {f"learned/{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        buffer, n = self._sac.replay_buffer, self._filled()
        arrays |= {f"buffer/{name}": getattr(buffer, name)[:n] for name in _BUFFERS}
        counts = [self._sac.num_timesteps, self._sac._n_updates, buffer.pos, buffer.full]
        return arrays | {"counts": np.array(counts, np.int64)}

    def restore(self, arrays: Mapping[str, NDArray[Any]], seed: int) -> None:
        """Go on from `state`'s arrays, with a new episode; draws go on from (seed, steps made)."""
        import jax

        sac, buffer = self._sac, self._sac.replay_buffer
        leaves, tree = jax.tree.flatten(self._learned())
        made = [jax.numpy.asarray(arrays[f"learned/{i}"]) for i in range(len(leaves))]
        for old, new in zip(leaves, made, strict=True):
            if np.shape(old) != np.shape(new):
                raise ValueError(f"an array of the shape {np.shape(new)} and not {np.shape(old)}")
        learned = jax.tree.unflatten(tree, made)
        for name in _BUFFERS:
            kept = arrays[f"buffer/{name}"]
            getattr(buffer, name)[: len(kept)] = kept
        sac.num_timesteps, sac._n_updates, buffer.pos = (int(x) for x in arrays["counts"][:3])
        buffer.full = bool(arrays["counts"][3])
        word = np.random.SeedSequence((seed, sac.num_timesteps)).generate_state(1)[0]
        sac.set_random_seed(int(word) >> 1)  # also NumPy's global generator, and the environment
        sac.policy.actor_state, sac.policy.qf_state = learned["actor"], learned["critic"]
        sac.ent_coef_state = learned["entropy"]
        sac.key, sac.policy.key = learned["key"], learned["policy_key"]

    def policy(self, config: dict[str, Any]) -> Policy:
        """Return the actor, without its noise, as a policy of form tanh.

        Raises
        ------
        RuntimeError
            The Sampler's actions for observations that were met are not the agent's.
        """
        body = self.body
        params = self._sac.policy.actor_state.params["params"]
        layers = [
            tuple(np.asarray(params[f"Dense_{i}"][x], np.float32) for x in ("kernel", "bias"))
            for i in range(self.depth + 1)  # the one after them is the noise's
        ]
        w, b = layers[0]
        # z, t and log2(1/h), which a policy's first layer also has columns for, change nothing
        layers[0] = np.concatenate([w, np.zeros((body.act_dim + 2, w.shape[1]), np.float32)]), b
        made = Policy(
            obs_dim=body.obs_dim,
            act_dim=body.act_dim,
            hidden=self.hidden,
            depth=self.depth,
            ensemble=0,
            m_disc=1,
            m_btt=1,
            q_agg="mean",
            actor=tuple(layers),
            critic=(),
            action_low=np.full(body.act_dim, -1, np.float32),
            action_high=np.full(body.act_dim, 1, np.float32),
            env=body.online,
            config=config,
            form=Tanh(reads_noise=False),
        )
        obs = self.some_observations(256)
        if len(obs):
            apart = float(np.abs(Sampler(made).act(obs, seed=0) - self.act(obs)).max())
            if not apart <= AGREES:
                raise RuntimeError(
                    f"the policy's actions are {apart:.1e} from sbx's, but must be within {AGREES:.0e}: "
                    "this version of sbx has another network. Install the one of constraints.txt"
                )
        return made
