"""Parts of losses that several methods share: pure functions of tensors.

Shape letters: B batch, A action.
"""

from torch import Tensor


def interpolate(actions: Tensor, noise: Tensor, t: Tensor, flow_eps: float = 0.0) -> Tensor:
    """Return x_t = (1 - (1-e) t) x0 + t a [B, A] for actions and noise [B, A], t [B]."""
    t = t.unsqueeze(-1)
    return (1 - (1 - flow_eps) * t) * noise + t * actions
