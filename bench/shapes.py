"""What is raced on: the cells, their network, their inputs, and the work that each cannot avoid.

Shape letters: B observations a call, M Euler steps, N candidates, O observation, A action, H hidden
width, D hidden layers, E critics.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sorl_fast.act.form import SHORTCUT, Diffusion, Direct, Form
from sorl_fast.act.policy_file import Policy
from sorl_fast.errors import BadInput
from sorl_fast.layout import Layout

HIDDEN, DEPTH, ENSEMBLE, M_DISC = 512, 4, 2, 8
PRECISIONS = ("fp32", "bf16", "int8")
POWERS = tuple(2**i for i in range(M_DISC.bit_length()))  # a shortcut's step counts
THREADS = (1, 2)


class Cell(NamedTuple):
    """One shape of a call."""

    batch: int  # B
    steps: int  # M
    candidates: int  # N
    obs_dim: int = 28
    act_dim: int = 5
    form: str = SHORTCUT  # how the policy's networks become an action

    @property
    def network(self) -> tuple[int, int, str]:
        """What cells share a policy by."""
        return self.obs_dim, self.act_dim, self.form

    def __str__(self) -> str:
        dims = "" if (self.obs_dim, self.act_dim) == (28, 5) else f" O={self.obs_dim}"
        form = "" if self.form == SHORTCUT else f" {self.form}"
        return f"B={self.batch} M={self.steps} N={self.candidates}{dims}{form}"


class Lane(NamedTuple):
    """Who may be compared: only contenders of the same cell, precision and number of threads."""

    cell: Cell
    precision: str
    threads: int


# The whole grid. Above B = 256 more than 8 candidates are nobody's control loop. The wide shapes are
# those of the humanoid mazes.
GRID = (
    *(
        Cell(B, M, N)
        for B in (1, 256, 4096)
        for M in (1, 4, 8)
        for N in (1, 8, 16, 32)
        if N <= 8 or B <= 256
    ),
    *(Cell(B, M, N, 69, 21) for B, M, N in ((1, 8, 1), (1, 8, 8), (256, 4, 8))),
)

# The lanes with a floor: how many times as fast as the best peer of the lane the median must be.
FLOORS = {
    Lane(Cell(1, 8, 1), "bf16", 1): 2.0,
    Lane(Cell(1, 8, 1), "fp32", 2): 1.7,
    Lane(Cell(1, 8, 8), "bf16", 1): 2.0,
    Lane(Cell(1, 8, 8), "bf16", 2): 3.0,
    Lane(Cell(1, 8, 16), "bf16", 1): 2.0,
    Lane(Cell(1, 8, 16), "bf16", 2): 3.0,
    Lane(Cell(1, 8, 32), "bf16", 1): 2.2,
    Lane(Cell(1, 8, 32), "bf16", 2): 3.5,
    Lane(Cell(256, 4, 8), "bf16", 2): 1.8,
    Lane(Cell(4096, 4, 1), "bf16", 2): 1.8,
}
# What --quick measures: these, and their cells in int8, where no peer runs.
QUICK = (*FLOORS, *dict.fromkeys(lane._replace(precision="int8") for lane in FLOORS))


def lanes_of(cells: Iterable[Cell]) -> tuple[Lane, ...]:
    """Return the lanes of cells: every precision and number of threads."""
    return tuple(Lane(cell, p, t) for cell in cells for p in PRECISIONS for t in THREADS)


FULL = lanes_of(GRID)


def form_cells(name: str, form: Form) -> tuple[Cell, ...]:
    """Return the cells of a form other than the shortcut's: a control loop's, and a batch."""
    (steps,) = form.steps
    return tuple(Cell(B, steps, N, form=name) for B, N in ((1, 1), (1, 8), (1, 32), (256, 1)))


def parse_cell(text: str, form: str = SHORTCUT, counts: tuple[int, ...] = POWERS) -> Cell:
    """Return the cell that "B,M,N" or "B,M,N,O,A" names, of a form with these step counts.

    Raises
    ------
    BadInput
        It names none.
    """
    numbers = [int(n) if n.isdecimal() else 0 for n in text.split(",")]
    if len(numbers) not in (3, 5) or min(numbers) < 1 or numbers[1] not in counts:
        raise BadInput(
            f"{text!r} is no cell: give B,M,N or B,M,N,O,A, all at least 1 and M one of {counts}"
        )
    return Cell(*numbers)._replace(form=form)


def floor(lane: Lane) -> float:
    """Return the ratio to the best peer that `lane` must reach: anything faster, if no other."""
    return FLOORS.get(lane, 1.0)


def make_policy(
    obs_dim: int, act_dim: int, hidden: int = HIDDEN, seed: int = 0, form: Form | None = None
) -> Policy:
    """Return an untrained policy of the paper's depth whose every weight matters to its actions.

    Weights are uniform in +-sqrt(6 / fan_in): signals keep their size through GELU, so that the
    velocities are of order 1 and a wrong step shows in the actions. (Under the training's own initial
    weights they fade, and the noise alone would be compared.)
    """
    rng = np.random.default_rng(seed)

    def make(layer: int, letter: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        limit = np.sqrt(6.0 / (shape[-2] if letter == "w" else 600))
        x = rng.uniform(-limit, limit, shape).astype(np.float32)
        return 1 + x if letter == "g" else x

    O, A, H = obs_dim, act_dim, hidden
    actor = Layout.actor(O, A, H, DEPTH).build(make)
    if isinstance(form, Diffusion):  # its steps magnify what is rounded
        actor[-1] = tuple(x / 8 for x in actor[-1])
    critic = Layout.critic(O, A, H, DEPTH, ENSEMBLE).build(make)
    return Policy(
        obs_dim=O,
        act_dim=A,
        hidden=H,
        depth=DEPTH,
        ensemble=ENSEMBLE,
        m_disc=M_DISC if form is None else 1,
        m_btt=M_DISC if form is None else 1,
        q_agg="mean",
        actor=tuple(actor),
        critic=tuple(critic),
        action_low=-np.ones(A, np.float32),
        action_high=np.ones(A, np.float32),
        env="benchmark",
        form=form,
    )


def make_inputs(cell: Cell, draws: int = 1) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return observations [B, O] and noise, standard normal, the same for everyone.

    The noise is [B, N, A], or [B, N, S, A] where a candidate takes S = `draws` > 1 numbers.
    """
    B, M, N, O, A, _ = cell
    rng = np.random.default_rng((0, B, M, N, O, A))
    obs = rng.standard_normal((B, O), np.float32)
    noise = rng.standard_normal((B, N, A) if draws == 1 else (B, N, draws, A), np.float32)
    return obs, noise


def reads_z(policy: Policy) -> bool:
    """Whether the actor reads a candidate's noise, so that each candidate is an evaluation of its own."""
    return not isinstance(policy.form, Direct) or policy.form.reads_noise


def flop(cell: Cell, policy: Policy) -> float:
    """Return the floating-point operations that a call cannot avoid, two a multiply-add.

    The observation's part of every first layer counts once an observation, as it can be computed once
    for all steps and candidates; the part of t, log2 M and k not at all, as it is known beforehand.
    An actor that reads no noise is evaluated once an observation.
    The critics run if there is something to choose. Activations and norms are left out.
    """
    B, M, N, O, A, _ = cell
    H, D, E = policy.hidden, policy.depth, policy.ensemble
    actor = O * H + M * (N if reads_z(policy) else 1) * weights_again(cell, policy)
    critic = E * (O * H + N * (A * H + (D - 1) * H * H + H)) if N > 1 else 0
    return 2.0 * B * (actor + critic)


def weights_held(cell: Cell, policy: Policy) -> int:
    """Return how many different weights a call reads, the critics' if there is a choice."""
    H, D, E, O, A = policy.hidden, policy.depth, policy.ensemble, cell.obs_dim, cell.act_dim
    critics = E * (O * H + A * H + (D - 1) * H * H + H) if cell.candidates > 1 else 0
    return O * H + weights_again(cell, policy) + critics


def weights_again(cell: Cell, policy: Policy) -> int:
    """Return how many of them each further Euler step reads again: the actor's.

    But for the observation's part of the first layer, which counts once. What stays in registers over
    several steps is nothing: the smallest weights that matter are hundreds of kilobytes.
    """
    H, D, A = policy.hidden, policy.depth, cell.act_dim
    return A * H * reads_z(policy) + (D - 1) * H * H + H * A
