"""A network's parameters as the kernels read them: two flat tensors a member.

Shape letters: E members, O observation, A action, X scalar columns, H hidden, L hidden layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# precision -> (type of weights and activations, input precision of a product); sums are float32
PRECISIONS = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
}


class Sizes(NamedTuple):
    """The shape of an actor (norm False) or a critic ensemble (norm True)."""

    obs: int  # O
    act: int  # A
    extra: int  # X: columns behind the action's, 2 of an actor (t, log2 1/h), 1 of a critic (k)
    hidden: int  # H, a multiple of 64
    depth: int  # L
    out: int  # A of an actor, 1 of a critic
    members: int  # E, 1 of an actor
    norm: bool  # LayerNorm after every hidden layer's GELU

    @property
    def inputs(self) -> int:
        """Inputs of the first layer."""
        return self.obs + self.act + self.extra

    @property
    def weights(self) -> int:
        """Numbers of a member in `Packed.weights`."""
        return (self.inputs + (self.depth - 1) * self.hidden + self.out) * self.hidden

    @property
    def vectors(self) -> int:
        """Numbers of a member in `Packed.vectors`."""
        return (3 if self.norm else 1) * self.depth * self.hidden + self.out


class Packed(NamedTuple):
    """Parameters in the precision of the products."""

    # [E, sizes.weights]: w1 [O + A + X, H], then L - 1 times [H, H], then the last [H, out]; row-major
    weights: Tensor
    # float32 [E, sizes.vectors]: b of the hidden layers [L, H], with norm g [L, H] and c [L, H], then
    # the last b [out]
    vectors: Tensor
    sizes: Sizes
    precision: str  # a key of PRECISIONS


def pack(params: Sequence[Tensor], sizes: Sizes, precision: str) -> Packed:
    """Copy parameters into `Packed` form.

    Parameters
    ----------
    params
        float32, layer by layer: w [(E,) in, out], b [(E,) out] and with `sizes.norm` g, c [E, out];
        the last layer has only w, b. The ensemble axis is there exactly with `sizes.norm`.
    sizes
        The network's.
    precision
        A key of PRECISIONS.
    """
    E, each = sizes.members, 4 if sizes.norm else 2
    hidden, last = params[:-2], params[-2:]
    weights = [*hidden[0::each], last[0]]
    vectors = [x for i in range(1, each) for x in hidden[i::each]] + [last[1]]
    dtype = PRECISIONS[precision][0]
    return Packed(
        torch.cat([w.reshape(E, -1) for w in weights], 1).to(dtype),
        torch.cat([v.reshape(E, -1) for v in vectors], 1),
        sizes,
        precision,
    )
