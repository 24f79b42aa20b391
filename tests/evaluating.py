"""What the tests of evaluating share: small policies of two environments, and episodes in closed form."""

import numpy as np

from sorl_fast.act.policy_file import Policy
from sorl_fast.simulate.episodes import Episode
from sorl_fast.simulate.evaluate import Evaluator

CUBE = "cube-single-play-singletask-task2-v0"
MAZE = "pointmaze-medium-navigate-singletask-task1-v0"


def make_policy(env: str, obs_dim: int, act_dim: int, m_disc: int = 4) -> Policy:
    rng = np.random.default_rng(7)

    def w(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    H, E = 8, 2
    return Policy(
        obs_dim=obs_dim,
        act_dim=act_dim,
        hidden=H,
        depth=1,
        ensemble=E,
        m_disc=m_disc,
        m_btt=m_disc,
        q_agg="mean",
        env=env,
        action_low=np.full(act_dim, -1, np.float32),
        action_high=np.full(act_dim, 1, np.float32),
        actor=((w(obs_dim + act_dim + 2, H), w(H)), (w(H, act_dim), w(act_dim))),
        critic=(
            (w(E, obs_dim + act_dim + 1, H), w(E, H), w(E, H), w(E, H)),
            (w(E, H, 1), w(E, 1)),
        ),
    )


class Stop(Exception):
    """Somebody's Ctrl-C."""


class FakeWorkers(Evaluator):
    """Episodes in closed form, without a simulator; `ran` has the tasks, `stop` ends it after some."""

    def _run_all(self, policy, backend, tasks, kept, progress):
        self.ran, self.acted = tasks, backend
        for task in tasks[: getattr(self, "stop", None)]:
            M, N, seed, e, rule = task
            success = (len(str(M)) * N + seed + e * len(rule)) % 3 == 0
            kept.add(task, Episode(success, 5 + e, -1.5 * e, 0.25))
        if hasattr(self, "stop"):
            raise Stop
