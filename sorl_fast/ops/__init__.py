"""The operations that cost time. Callers use these names; which backend runs them is decided here.

Every operation is defined by its plain PyTorch form in `reference`. A faster backend registers here,
for the devices and precisions that it serves, and is tested against that form.
"""

from .reference import adam_ema_step, aggregate, best_of_n, critic_ensemble, rollout, velocity

__all__ = ["adam_ema_step", "aggregate", "best_of_n", "critic_ensemble", "rollout", "velocity"]
