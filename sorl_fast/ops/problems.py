"""The problems that an implementation is checked on: random shapes and numbers, and their answers.

An answer is the reference's, in float64 on the CPU: values and gradients. How far an implementation may
be off from it: 4 times as far as the definition is when computed on the CPU with the factors of its
products rounded to the same precision, or FLOOR if that is more.

Shape letters as in `reference`.
"""

import functools
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..layout import Layout
from . import forms, reference
from .implementations import Network, Task
from .parameters import Packings, Parameters
from .reference import Layers
from .rules import DRAW, Rule
from .schedule import Schedule, euler

# largest error that is always allowed, relative to an array's largest entry
FLOOR = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.2e-2}
HONEST = 4.0  # how many times the error of an honest computation is allowed
EDGE = 0.05  # actions so near to the clip get no gradient: rounding may put them on either side


class Form(NamedTuple):
    """How thorough an examination is."""

    own: tuple[tuple[int, int], ...]  # rows B and steps M that the network itself is checked at
    others: int  # random networks beside it
    widths: tuple[int, ...]  # their hidden widths
    counts: tuple[int, ...]  # rows that are timed
    seconds: float  # spent on one time


# Above 4096 rows kernels use other tiles.
FORMS = {
    "tiny": Form(((5, 2),), 0, (64,), (), 0.0),
    "tiny timed": Form(((5, 2),), 0, (64,), (4, 16), 0.0),
    "small": Form(((37, 4),), 2, (64, 96), (), 0.0),
    "short": Form(((37, 4), (4133, 1)), 1, (64,), (1, 256, 4096, 65536), 0.01),
    "full": Form(
        ((1, 8), (37, 4), (257, 2), (4133, 1)),
        4,
        (64, 128, 192, 256),
        (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536),
        0.05,
    ),
}


class Case(NamedTuple):
    """One check's shape: a network, B rows, M steps, N candidates, and where its numbers come from."""

    network: Network
    rows: int
    steps: int
    candidates: int
    seed: int

    def __str__(self) -> str:
        O, A, H, L, E = self.network
        return (
            f"B={self.rows} M={self.steps} N={self.candidates} O={O} A={A} H={H} L={L} E={E} "
            f"seed={self.seed}"
        )


def cases(task: Task, form: Form, seed: int) -> Iterator[Case]:
    """Yield the shapes to check: the network's own, then random ones; all follow from `seed`."""
    draw = random.Random(f"{seed} {task.name}")
    for rows, steps in form.own:
        yield Case(task.network, rows, steps, draw.choice((1, 3, 8)), draw.randrange(2**31))
    for _ in range(form.others):
        network = Network(
            draw.randint(1, 80),
            draw.randint(1, 24),
            draw.choice(form.widths),
            draw.randint(1, 4),
            draw.randint(1, 4),
        )
        rows, steps = draw.randint(2, 200), draw.choice((1, 2, 8))
        yield Case(network, rows, steps, draw.randint(2, 33), draw.randrange(2**31))


def normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Return normal numbers, float32."""
    return scale * torch.randn(*shape, generator=generator)


def random_layers(network: Network, critic: bool, generator: torch.Generator) -> list[Tensor]:
    """Return a network's parameters, float32, flat; velocities and Q are of the order of 1."""

    def make(layer: int, letter: str, shape: tuple[int, ...]) -> Tensor:
        scale = math.sqrt(1.5 / shape[-2]) if letter == "w" else 0.1
        x = normal(generator, *shape, scale=scale)
        return 1 + x if letter == "g" else x

    return reference.flat(network.layout(critic).build(make))


def grouped(params: Sequence[Tensor], critic: bool) -> Layers:
    """Return a flat list of parameters as layers."""
    return Layout.of_act(params, 0, critic).group(params)


class Problem(NamedTuple):
    """Inputs of one differentiable operation, on the CPU in float32, and a gradient to send back."""

    operation: str
    params: list[Tensor]
    obs: Tensor  # [B, O]
    act: Tensor  # [B, A]: z, noise or actions
    rest: tuple[Any, ...]  # (t, log2 1/h) or (M,)
    grad: Tensor  # of the output
    owner: Packings | None = None  # of the parameters' packed copies, kept from call to call

    @property
    def critic(self) -> bool:
        """Whether the network is a critic ensemble."""
        return self.operation == "critic_ensemble"

    def to(self, dtype: torch.dtype) -> "Problem":
        """Return a copy with tensors of another type."""
        rest = tuple(x.to(dtype) if isinstance(x, Tensor) else x for x in self.rest)
        return Problem(
            self.operation,
            [p.to(dtype) for p in self.params],
            *(self.obs.to(dtype), self.act.to(dtype), rest, self.grad.to(dtype)),
        )


def key_of(case: Case) -> Tensor:
    """Return the key that a case's noise is drawn from, its numbers at the ends of their ranges."""
    return torch.tensor((-case.seed - 1, 2**32 - 1 - case.seed, 2**32 - case.rows))


def problem(operation: str, case: Case, change: int = 0) -> Problem:
    """Return the problem of a case; another `change` draws other weights and nothing else."""
    network, B = case.network, case.rows
    g = torch.Generator().manual_seed(case.seed)
    critic = operation == "critic_ensemble"
    obs, act = normal(g, B, network.obs), normal(g, B, network.act)
    if operation == "rollout":
        act = reference.normals(key_of(case), B, 1, network.act)[:, 0]
    rest: tuple[Any, ...] = (case.steps,)
    if operation == "velocity":
        rest = (torch.rand(B, generator=g), torch.randint(0, 4, (B,), generator=g).float())
    grad = normal(g, *((network.members, B) if critic else (B, network.act)))
    params = random_layers(network, critic, g.manual_seed(case.seed + change))
    return Problem(operation, params, obs, act, rest, grad)


Function = Callable[..., Any]  # of layers and inputs


def solve(
    function: Function,
    given: Problem,
    *,
    weights: bool = True,
    inputs: Collection[str] = ("d obs", "d action"),
) -> dict[str, Tensor]:
    """Return the operation's value and the gradients asked for, by name."""
    params = [p.detach().requires_grad_(weights) for p in given.params]
    obs, act = given.obs.detach(), given.act.detach()
    of_inputs = {"d obs": obs, "d action": act}
    leaves = {f"d parameter {i}": p for i, p in enumerate(params) if weights}
    # of a critic without action there is no such gradient
    leaves |= {n: of_inputs[n].requires_grad_() for n in inputs if of_inputs[n].numel()}
    layers = Parameters(grouped(params, given.critic), given.owner)
    value = function(layers, obs, act, *given.rest)
    if not leaves:
        return {"value": value.detach()}
    grads = torch.autograd.grad(value, list(leaves.values()), given.grad)
    return {"value": value.detach(), **dict(zip(leaves, grads, strict=True))}


class _RoundFactor(torch.autograd.Function):
    """A factor of a product, rounded; its gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, precision: str) -> Tensor:
        return rounded(x, precision)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


class _RoundGradient(torch.autograd.Function):
    """A product whose gradient is rounded before it goes into the products of backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, precision: str) -> Tensor:
        ctx.precision = precision
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return rounded(grads[0], ctx.precision), None


def rounded(x: Tensor, precision: str) -> Tensor:
    """Round float64 numbers to what a product's factor keeps in a precision."""
    if precision == "tf32":  # a float32 of which ten bits of the fraction are left
        bits = x.float().view(torch.int32)
        return ((bits + 0x1000) & -0x2000).view(torch.float32).to(x.dtype)
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    return x.to(kind).to(x.dtype)


class _Rounding(TorchFunctionMode):
    """Makes the definition's products round their factors: an honest low-precision computation."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._precision = precision

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.addmm, torch.baddbmm):
            return func(*args, **(kwargs or {}))
        b, x, w = args
        p = self._precision
        product = func(b, _RoundFactor.apply(x, p), _RoundFactor.apply(w, p))  # type: ignore[no-untyped-call]
        return _RoundGradient.apply(product, p)  # type: ignore[no-untyped-call]


class Truth(NamedTuple):
    """What a problem's answer is, and how far off each part of it may be, absolutely."""

    exact: dict[str, Tensor]  # float64
    bounds: dict[str, float]


def bounds(
    exact: Mapping[str, Tensor], honest: Mapping[str, Tensor], precision: str
) -> dict[str, float]:
    """Return how far off each array may be, given what an honest computation makes of it."""
    return {
        name: max(
            FLOOR[precision] * float(x.abs().max()) + 1e-30,
            HONEST * float((honest[name].double() - x).abs().max()),
        )
        for name, x in exact.items()
    }


@contextmanager
def _honest(precision: str) -> Iterator[torch.dtype]:
    """Compute as a clean implementation would: float32 alone, or float64 with rounded factors."""
    if precision == "fp32":
        yield torch.float32
    else:
        with _Rounding(precision):
            yield torch.float64


@functools.lru_cache(maxsize=8)  # the implementations of a task are checked on the same problems
def solved(operation: str, precision: str, case: Case, change: int = 0) -> tuple[Problem, Truth]:
    """Return a case's problem and its answer."""
    function = getattr(reference, operation)
    given = problem(operation, case, change)
    if operation == "rollout":
        p = given.to(torch.float64)
        z = reference.denoise(grouped(p.params, False), p.obs, p.act, case.steps)
        given = given._replace(grad=given.grad * ((z.abs() - 1).abs() > EDGE))
    exact = solve(function, given.to(torch.float64))
    with _honest(precision) as dtype:
        honest = solve(function, given.to(dtype))
    return given, Truth(exact, bounds(exact, honest, precision))


TEMPERATURE = 0.75  # of scheduled steps
MOVED = 16  # times that a choice is made again of moved numbers


def schedules(case: Case) -> dict[str, Schedule]:
    """Return steps of every kind, M those of the case or one, by the form of policy that has them."""
    draw, M = random.Random(case.seed), case.steps

    def some(low: float, high: float) -> tuple[float, ...]:
        return tuple(draw.uniform(low, high) for _ in range(M))

    times = tuple((i + 1) / 16 for i in range(M))  # exact in any type
    noisy = tuple(0.0 if i % 2 else 0.5 for i in range(M))  # first, and not at every step
    one, nothing = (1.0,), (0.0,)
    uneven = [(t, l, h) for t, l, h in zip(times, some(0, 3), some(0.1, 0.6), strict=True)]
    return {
        "diffusion": Schedule(times, some(0, 3), some(0.5, 1), some(-0.7, 0.7), noisy, clip=0.95),
        "tanh": Schedule(
            nothing, nothing, nothing, one, one, begins=False, squash=True, noise_clip=0.3
        ),
        "direct": Schedule(nothing, nothing, nothing, one, nothing),
        "uneven": euler(uneven, M + 2),
    }


def _candidates(
    actor: Layers, rows: Tensor, noise: Tensor, steps: int, schedule: Schedule | None
) -> Tensor:
    """Return z [B N, A] by the definition of each form, which knows no schedule."""
    if schedule is None:
        return reference.denoise(actor, rows, noise, steps)
    if schedule.z_scales == (0.0,):
        return forms.one_step(
            *(actor, rows, noise), reads_noise=schedule.begins, tanh=schedule.squash,
            scale=TEMPERATURE * schedule.noise_scales[0], noise_clip=schedule.noise_clip,
        )  # fmt: skip
    fed = dict(zip(schedule.times, schedule.log2_steps, strict=True))

    def network(obs: Tensor, z: Tensor, t: Tensor) -> Tensor:
        return reference.velocity(actor, obs, z, t, torch.full_like(t, fed[float(t[0])]))

    drawn = noise.view(len(rows), schedule.draws, -1)
    of_steps = zip(schedule.times, *schedule[2:5], strict=True)
    each = [(t, a, b, TEMPERATURE * s) for t, a, b, s in of_steps]
    return forms.diffuse(network, rows, drawn, each, schedule.clip)


def _all_candidates(
    actor: Layers, critic: Layers, obs: Tensor, noise: Tensor, steps: int, q_agg: str, low: Tensor,
    high: Tensor, schedule: Schedule | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return every candidate's action [B, N, A] and aggregated Q [B, N]."""
    B, N, *_, A = noise.shape
    rows = obs.repeat_interleave(N, 0)
    z = _candidates(actor, rows, noise.reshape(B * N, *noise.shape[2:]), steps, schedule)
    z = z.clamp(low, high)
    k = steps if schedule is None or schedule.k is None else schedule.k
    q = reference.aggregate(reference.critic_ensemble(critic, rows, z, k), q_agg)
    return {"action": z.view(B, N, A), "q": q.view(B, N)}


class Choices(NamedTuple):
    """Inputs of best_of_n, and what is true of every candidate."""

    steps: int  # M
    schedule: Schedule | None

    actor: list[Tensor]
    critic: list[Tensor]
    tensors: tuple[Tensor, Tensor]  # obs [B, O], noise [B, N, (S,) A]
    q_agg: str
    limits: tuple[Tensor, Tensor]  # low, high [A]
    truth: Truth


@functools.lru_cache(maxsize=8)
def choices(precision: str, case: Case, of: str = "") -> Choices:
    """Return best_of_n's problem of a case, `of` one of its `schedules`; B N is about the case's rows."""
    schedule = schedules(case)[of] if of else None
    draws, steps = (schedule.draws, len(schedule.times)) if schedule else (1, case.steps)
    network, N = case.network, case.candidates
    B = max(2, case.rows // N)
    g = torch.Generator().manual_seed(case.seed)
    actor, critic = (random_layers(network, c, g) for c in (False, True))
    obs = normal(g, B, network.obs)
    noise = reference.normals(key_of(case), B, N, network.act, draws)
    low, high = (x + 0.2 * torch.rand(network.act, generator=g) for x in (-1.0, 0.7))
    q_agg = "min" if case.seed % 2 else "mean"

    def answer(dtype: torch.dtype) -> dict[str, Tensor]:
        layers = [grouped([p.to(dtype) for p in x], c) for x, c in ((actor, False), (critic, True))]
        x, z, lo, hi = (x.to(dtype) for x in (obs, noise, low, high))
        return _all_candidates(layers[0], layers[1], x, z, steps, q_agg, lo, hi, schedule)

    with torch.no_grad():
        exact = answer(torch.float64)
        with _honest(precision) as dtype:
            honest = answer(dtype)
    truth = Truth(exact, bounds(exact, honest, precision))
    return Choices(steps, schedule, actor, critic, (obs, noise), q_agg, (low, high), truth)


def rules_of(limits: tuple[Tensor, Tensor], key: Tensor) -> list[Rule]:
    """Return every rule but the highest Q, for action bounds low, high [A]; those that draw by a key."""
    w = 2 / (limits[1] - limits[0])
    parts = {
        "medoid": (1, 2),
        "nearest": (2, 3),
        "better": (2, 3),
        "soft": (1, 2),
        "centre": (1, 1),
    }
    return [Rule(name, part, w, key if name in DRAW else None) for name, part in parts.items()]


def picked(rule: Rule, truth: Truth, left: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return whom a rule chooses [B], and where rounding within the bounds cannot change that [B].

    Parameters
    ----------
    rule
        On the CPU.
    truth
        Of every candidate's action [B, N, A] and Q [B, N].
    left
        Which of them may be chosen, [B, N].
    seed
        Of the moved numbers that tell who is chosen clearly.
    """
    actions, q = truth.exact["action"], truth.exact["q"]
    g = torch.Generator().manual_seed(seed)
    u = None if rule.key is None else reference.uniforms(rule.key, len(q)).double()
    rule = rule._replace(w=rule.w.double())

    def choose(scale: float) -> Tensor:
        def moved(x: Tensor, bound: float) -> Tensor:
            return x + scale * bound * (2 * torch.rand(x.shape, generator=g) - 1)

        of = truth.bounds
        return rule.picks(u)(moved(actions, of["action"]), moved(q, of["q"]), left)

    first = choose(0.0)
    return first, torch.stack([choose(1.0) == first for _ in range(MOVED)]).all(0)


SETTINGS = {"lr": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1.0, "tau": 0.3}


# keys at the ends of their ranges: seed (the bits of a uint64), call, row_offset
KEYS = ((7, 0, 0), (-1, 2**32 - 1, 2**32 - 500), (-(2**63), 5, 2**31))
