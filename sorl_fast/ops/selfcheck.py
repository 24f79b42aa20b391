"""Whether a way of computing an operation is right on this machine, and how long it takes.

Each way (fused kernels, a chain of library products, the plain reference) is compared with the
reference in float64 on the CPU: values and gradients, on random shapes and numbers. A way can't pass
by luck, for outputs begin as NaN; inputs lie between fences of NaN, so that a read beyond them shows;
weights change in place between calls; a row that is not finite must leave the others alone; a recorded
CUDA graph must follow its inputs. All of it happens in child processes (`sorl_fast.isolated`), so that
a crash or an endless loop is a finding like any other.

How far a way may be off: 4 times as far as the definition is when computed on the CPU with the factors
of its products rounded to the same precision, or FLOOR if that is more.

Shape letters as in `reference`.
"""

import functools
import importlib
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import isolated
from . import reference
from .graphs import Captured, CudaRecorder, Recorder
from .reference import Layers

ACTOR_OPERATIONS = ("velocity", "rollout")
NETWORK_OPERATIONS = (*ACTOR_OPERATIONS, "critic_ensemble", "best_of_n")
PLAIN_OPERATIONS = ("adam_ema_step", "normals", "words")  # of no network, in one precision
OPERATIONS = (*NETWORK_OPERATIONS, *PLAIN_OPERATIONS)
WAYS = ("fused", "chain", "reference")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
STATUSES = ("ok", "disagrees", "failed", "crashed", "hung", "unchecked")

# largest error that is always allowed, relative to an array's largest entry
FLOOR = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 1.2e-2}
HONEST = 4.0  # how many times the error of an honest computation is allowed
NORMALS_BOUND = 5e-7  # absolute
EDGE = 0.05  # actions so near to the clip get no gradient: rounding may put them on either side

SILENCE = 180.0  # seconds without a word after which a check counts as hung: a kernel may compile


class Network(NamedTuple):
    """Sizes of an actor and its critics."""

    obs: int
    act: int
    hidden: int
    depth: int
    members: int


DEFAULT = Network(28, 5, 512, 4, 2)


class Task(NamedTuple):
    """What is examined as one: an operation in a precision, on a network."""

    operation: str
    precision: str
    network: Network

    @property
    def name(self) -> str:
        """The task's name in a table; what does not matter to the operation is left out of it."""
        if self.operation in PLAIN_OPERATIONS:
            return self.operation
        O, A, H, L, E = self.network
        E = 1 if self.operation in ACTOR_OPERATIONS else E
        return f"{self.operation} {self.precision} O{O} A{A} H{H} L{L} E{E}"


class Result(NamedTuple):
    """What is known about one way of doing a task."""

    status: str  # one of STATUSES
    reason: str  # empty if ok
    forward: dict[int, float]  # rows -> microseconds, without gradients
    backward: dict[int, float]  # rows -> microseconds, forward and backward


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
BACKWARD_ROWS = 4096  # gradients are timed up to here: a training batch is no larger
TIMED_STEPS, TIMED_CANDIDATES = 4, 8


class Disagrees(Exception):
    """The numbers are wrong. The message says which, and by how much."""


# --- the ways ----------------------------------------------------------------------------------------


class Way(NamedTuple):
    """One way of doing an operation.

    `function` takes the arguments that the reference's does and, for an operation of a network,
    precision=. With `draws` it also takes a key (int64 [3], see `reference.normals`) instead of noise,
    and then best_of_n takes candidates=.
    """

    function: Callable[..., Any]
    draws: bool = False


def _late(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports its module when it is called, in the child."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f".{module}", __package__), name)(*args, **kwargs)

    return call


def _reference(name: str) -> Callable[..., Any]:
    def call(*args: Any, precision: str, **kwargs: Any) -> Any:
        return getattr(reference, name)(*args, **kwargs)

    return getattr(reference, name) if name in PLAIN_OPERATIONS else call


def _fused_best_of_n(
    actor: Layers, critic: Layers, obs: Tensor, noise: Tensor, steps: int, q_agg: str, low: Tensor,
    high: Tensor, *, precision: str, candidates: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    N = noise.shape[1] if candidates is None else candidates
    sample = _late("triton", "sample_best")
    action, index, q, _ = sample(actor, critic, obs, noise, N, steps, q_agg, low, high, precision)
    return action, index, q


# operation -> name of the way -> way
WAYS_OF_GPU: dict[str, dict[str, Way]] = {
    name: {
        "fused": Way(_late("triton", name), draws=name == "rollout"),
        **({"chain": Way(_late("chain", name))} if name in NETWORK_OPERATIONS else {}),
        "reference": Way(_reference(name)),
    }
    for name in OPERATIONS
}
WAYS_OF_GPU["best_of_n"]["fused"] = Way(_fused_best_of_n, draws=True)

GPU = f"{__name__}:WAYS_OF_GPU"


Ways = Mapping[str, Mapping[str, Way]]


def ways(registry: str) -> Ways:
    """Return the ways that `module:attribute` names, a mapping or a function that returns one."""
    module, _, name = registry.partition(":")
    found = getattr(importlib.import_module(module), name)
    return found() if callable(found) else found


# --- numbers to check with ---------------------------------------------------------------------------


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


def _normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator)


def random_layers(network: Network, critic: bool, generator: torch.Generator) -> list[Tensor]:
    """Return a network's parameters, float32, flat; velocities and Q are of the order of 1."""
    O, A, H, L, E = network
    lead, out, extra = ((E,), 1, 1) if critic else ((), A, 2)
    params = []
    for i, (a, b) in enumerate(pairwise([O + A + extra, *[H] * L, out])):
        params.append(_normal(generator, *lead, a, b, scale=math.sqrt(1.5 / a)))
        params.append(_normal(generator, *lead, b, scale=0.1))
        if critic and i < L:
            params.append(1 + _normal(generator, *lead, b, scale=0.1))
            params.append(_normal(generator, *lead, b, scale=0.1))
    return params


def grouped(params: Sequence[Tensor], critic: bool) -> Layers:
    """Return a flat list of parameters as layers."""
    each = 4 if critic else 2
    hidden = [tuple(params[i : i + each]) for i in range(0, len(params) - 2, each)]
    return [*hidden, tuple(params[-2:])]


class Problem(NamedTuple):
    """Inputs of one differentiable operation, on the CPU in float32, and a gradient to send back."""

    operation: str
    params: list[Tensor]
    obs: Tensor  # [B, O]
    act: Tensor  # [B, A]: z, noise or actions
    rest: tuple[Any, ...]  # (t, log2 1/h) or (M,)
    grad: Tensor  # of the output

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
    obs, act = _normal(g, B, network.obs), _normal(g, B, network.act)
    if operation == "rollout":
        act = reference.normals(key_of(case), B, 1, network.act)[:, 0]
    rest: tuple[Any, ...] = (case.steps,)
    if operation == "velocity":
        rest = (torch.rand(B, generator=g), torch.randint(0, 4, (B,), generator=g).float())
    grad = _normal(g, *((network.members, B) if critic else (B, network.act)))
    params = random_layers(network, critic, g.manual_seed(case.seed + change))
    return Problem(operation, params, obs, act, rest, grad)


Function = Callable[..., Any]  # of layers and inputs


def solve(
    function: Function, given: Problem, *, weights: bool = True, inputs: bool = True
) -> dict[str, Tensor]:
    """Return the operation's value and the gradients asked for, by name."""
    params = [p.detach().requires_grad_(weights) for p in given.params]
    obs, act = (x.detach().requires_grad_(inputs) for x in (given.obs, given.act))
    value = function(grouped(params, given.critic), obs, act, *given.rest)
    leaves = {f"d parameter {i}": p for i, p in enumerate(params) if weights}
    if inputs:
        leaves |= {"d obs": obs, "d action": act}
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


def _bounds(
    exact: Mapping[str, Tensor], honest: Mapping[str, Tensor], precision: str
) -> dict[str, float]:
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


@functools.lru_cache(maxsize=8)  # the ways of a task are checked on the same problems
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
    return given, Truth(exact, _bounds(exact, honest, precision))


# --- comparing ---------------------------------------------------------------------------------------


def agree(
    got: Mapping[str, Tensor],
    truth: Truth,
    where: str,
    keep: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise Disagrees unless every array is as near to the truth as it must be.

    Parameters
    ----------
    got
        Some of the truth's arrays, by name.
    where
        What to say about the case.
    keep
        Of some arrays, a mask of the entries that matter; all entries of the others do.
    """
    for name, x in got.items():
        y, bound = truth.exact[name], truth.bounds[name]
        if x.shape != y.shape:
            raise Disagrees(f"{name} has the shape {list(x.shape)}, not {list(y.shape)}, {where}")
        x = x.detach().to("cpu", torch.float64)
        error = (x - y).abs()
        if keep is not None and name in keep:
            error = error[keep[name].expand_as(error)]
        if not error.numel():
            continue
        bad = int((~error.isfinite()).sum())
        if bad:
            raise Disagrees(f"{name} has {bad} entries of {error.numel()} not finite, {where}")
        worst, scale = float(error.max()), max(float(y.abs().max()), 1e-30)
        if worst > bound:
            raise Disagrees(
                f"{name} is off by {worst / scale:.1e} of its largest entry, allowed are "
                f"{bound / scale:.1e}, {where}"
            )


class Fences:
    """Tensors on the device, each between two stretches of NaN that nobody may touch or read."""

    WIDTH = 256

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: list[tuple[Tensor, Tensor, bool]] = []

    def __call__(self, x: Tensor, *, written: bool = False, shift: int = 0) -> Tensor:
        """Return a copy of float32 x on the device.

        Parameters
        ----------
        written
            It may be changed.
        shift
            How many numbers it begins after an address that is a multiple of 16 bytes.
        """
        n = x.numel()
        memory = torch.full((n + 2 * self.WIDTH + shift,), torch.nan, device=self._device)
        memory = memory[shift:]
        own = memory[self.WIDTH : self.WIDTH + n].view(x.shape)
        own.copy_(x)
        self._kept.append((memory, x.detach().clone(), written))
        return own

    def all(self, given: Problem) -> Problem:
        """Return a problem on the device."""
        rest = tuple(self(x) if isinstance(x, Tensor) else x for x in given.rest)
        params = [self(p) for p in given.params]
        return Problem(
            given.operation, params, self(given.obs), self(given.act), rest, self(given.grad)
        )

    def forget(self) -> None:
        """Say that what lies between the fences has been changed rightly."""
        self._kept = [(memory, x, True) for memory, x, _ in self._kept]

    def look(self, where: str) -> None:
        """Raise Disagrees if anything was written where it must not be."""
        for memory, x, written in self._kept:
            now = memory.cpu()
            w = self.WIDTH
            if not (now[:w].isnan().all() and now[len(now) - w :].isnan().all()):
                raise Disagrees(f"it writes beyond the ends of an input, {where}")
            if not written and not _same_bits(now[w : len(now) - w].view(x.shape), x.cpu()):
                raise Disagrees(f"it changes an input, {where}")


def _same_bits(x: Tensor, y: Tensor) -> bool:
    return bool((x.view(torch.int32) == y.view(torch.int32)).all())


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill memory from torch.empty with NaN, or the largest integer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an operation without a deterministic form says so
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def wait(device: torch.device) -> None:
    """Wait till the device has done everything: what went wrong on it shows now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- checks ------------------------------------------------------------------------------------------


def check_network_operation(
    way: Way, task: Task, case: Case, device: torch.device, note: isolated.Note
) -> None:
    """Check velocity, rollout or critic_ensemble on one case; raise Disagrees."""
    operation, precision = task.operation, task.precision
    given, truth = solved(operation, precision, case)
    function = functools.partial(way.function, precision=precision)
    fence = Fences(device)
    here = fence.all(given)

    note(f"values and gradients, {case}")
    with poisoned():
        first = solve(function, here)
        wait(device)
    agree(first, truth, f"at {case}")
    fence.look(f"at {case}")

    note(f"values alone, {case}")
    # observations whose rows do not follow each other in memory
    apart = here.obs.t().contiguous().t()
    with poisoned(), torch.no_grad():
        layers = grouped(here.params, here.critic)
        value = function(layers, apart, here.act, *here.rest)
        wait(device)
    agree({"value": value}, truth, f"without gradients at {case}")

    if way.draws:
        note(f"noise from a key, {case}")
        with poisoned(), torch.no_grad():
            value = function(layers, here.obs, key_of(case).to(device), *here.rest)
            wait(device)
        agree({"value": value}, truth, f"with noise from a key at {case}")

    note(f"gradients of the inputs alone, {case}")
    with poisoned():
        got = solve(function, here, weights=False)
        wait(device)
    agree(got, truth, f"with gradients of inputs alone at {case}")
    note(f"gradients of the weights alone, {case}")
    with poisoned():
        got = solve(function, here, inputs=False)
        wait(device)
    agree(got, truth, f"with gradients of weights alone at {case}")
    fence.look(f"at {case}")
    if case.rows > 1000:
        return

    note(f"rows that are not finite, {case}")
    _check_bad_rows(function, here, truth, case, device)
    agree(first, truth, f"a later call changed an earlier result, at {case}")

    note(f"changed weights, {case}")
    other, other_truth = solved(operation, precision, case, 1)
    for p, q in zip(here.params, other.params, strict=True):
        p.copy_(q)
    fence.forget()
    grad = fence(other.grad)
    with poisoned():
        got = solve(function, here._replace(grad=grad))
        wait(device)
    agree(got, other_truth, f"after its weights changed in place, at {case}")
    fence.look(f"at {case}")


def _check_bad_rows(
    function: Function, here: Problem, truth: Truth, case: Case, device: torch.device
) -> None:
    """Rows of NaN and infinity give no finite result, and leave the other rows as they were."""
    B = case.rows
    spoiled = {0: torch.nan, B // 2: -torch.inf, B - 1: torch.inf}
    obs, act = here.obs.clone(), here.act.clone()
    for i, (row, x) in enumerate(spoiled.items()):
        (obs if i < 2 else act)[row, -1] = x
    good = torch.ones(B, dtype=torch.bool)
    good[list(spoiled)] = False
    with poisoned():
        got = solve(function, here._replace(obs=obs, act=act), weights=False)
        wait(device)
    of_value = good if here.critic else good[:, None]
    keep = {"value": of_value, "d obs": good[:, None], "d action": good[:, None]}
    agree(got, truth, f"in the rows beside those that are not finite, at {case}", keep)
    value = got["value"].cpu()
    with torch.no_grad():
        cpu = [p.cpu() for p in here.params]
        rest = [x.cpu() if isinstance(x, Tensor) else x for x in here.rest]
        expected = getattr(reference, here.operation)(
            grouped(cpu, here.critic), obs.cpu(), act.cpu(), *rest
        )
    if value[expected.isnan()].isfinite().any():
        raise Disagrees(f"it makes a number of one that is not finite, at {case}")


def _all_candidates(
    actor: Layers, critic: Layers, obs: Tensor, noise: Tensor, steps: int, q_agg: str, low: Tensor,
    high: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """Return every candidate's action [B, N, A] and aggregated Q [B, N]."""
    B, N, A = noise.shape
    rows = obs.repeat_interleave(N, 0)
    z = reference.denoise(actor, rows, noise.reshape(B * N, A), steps).clamp(low, high)
    q = reference.aggregate(reference.critic_ensemble(critic, rows, z, steps), q_agg)
    return {"action": z.view(B, N, A), "q": q.view(B, N)}


Winners = tuple[Tensor, Tensor, Tensor]  # actions, candidates, their Q


class Choices(NamedTuple):
    """Inputs of best_of_n, and what is true of every candidate."""

    actor: list[Tensor]
    critic: list[Tensor]
    tensors: tuple[Tensor, Tensor]  # obs [B, O], noise [B, N, A]
    q_agg: str
    limits: tuple[Tensor, Tensor]  # low, high [A]
    truth: Truth


@functools.lru_cache(maxsize=8)
def choices(precision: str, case: Case) -> Choices:
    """Return best_of_n's problem of a case; B N is about the case's rows."""
    network, N = case.network, case.candidates
    B = max(2, case.rows // N)
    g = torch.Generator().manual_seed(case.seed)
    actor, critic = (random_layers(network, c, g) for c in (False, True))
    obs, noise = _normal(g, B, network.obs), reference.normals(key_of(case), B, N, network.act)
    low, high = (x + 0.2 * torch.rand(network.act, generator=g) for x in (-1.0, 0.7))
    q_agg = "min" if case.seed % 2 else "mean"

    def answer(dtype: torch.dtype) -> dict[str, Tensor]:
        layers = [grouped([p.to(dtype) for p in x], c) for x, c in ((actor, False), (critic, True))]
        x, z, lo, hi = (x.to(dtype) for x in (obs, noise, low, high))
        return _all_candidates(layers[0], layers[1], x, z, case.steps, q_agg, lo, hi)

    with torch.no_grad():
        exact = answer(torch.float64)
        with _honest(precision) as dtype:
            honest = answer(dtype)
    truth = Truth(exact, _bounds(exact, honest, precision))
    return Choices(actor, critic, (obs, noise), q_agg, (low, high), truth)


def check_best_of_n(
    way: Way, task: Task, case: Case, device: torch.device, note: isolated.Note
) -> None:
    """Check best_of_n on one case: the winner is as good as the best, and is what it says it is."""
    c = choices(task.precision, case)
    fence = Fences(device)
    actor, critic = ([fence(p) for p in params] for params in (c.actor, c.critic))
    obs, noise = (fence(x) for x in c.tensors)
    low, high = (fence(x) for x in c.limits)

    def call(obs: Tensor, noise: Tensor, **more: int) -> Winners:
        with poisoned(), torch.no_grad():
            layers = grouped(actor, False), grouped(critic, True)
            rest = (case.steps, c.q_agg, low, high)
            found = way.function(*layers, obs, noise, *rest, precision=task.precision, **more)
            wait(device)
        action, index, q = found
        return action.cpu(), index.cpu(), q.cpu()

    note(f"values, {case}")
    found = call(obs, noise)
    fence.look(f"at {case}")
    _judge(found, c.truth, None, f"at {case}")
    B, N, _ = noise.shape
    if way.draws:
        note(f"noise from a key, {case}")
        drawn = call(obs, key_of(case).to(device), candidates=N)
        _judge(drawn, c.truth, None, f"with noise from a key at {case}")
    if case.rows > 1000:
        return
    note(f"candidates that are not finite, {case}")
    bad_obs, bad_noise = obs.clone(), noise.clone()
    bad_obs[0, 0] = torch.nan
    left = torch.ones(B, N, dtype=torch.bool)
    left[0] = False
    if N > 1:  # the winners that there were
        for b in range(1, B):
            bad_noise[b, found[1][b], -1] = torch.inf if b % 2 else torch.nan
            left[b, found[1][b]] = False
    _judge(call(bad_obs, bad_noise), c.truth, left, f"beside what is not finite, at {case}")


def _judge(found: Winners, truth: Truth, left: Tensor | None, where: str) -> None:
    """Raise Disagrees unless each observation's winner is one of the best of those left."""
    action, index, q = found
    exact = truth.exact["q"] if left is None else truth.exact["q"].where(left, -torch.inf)
    rows = exact.amax(1) > -torch.inf
    action, index, q, exact = action[rows], index[rows], q[rows], exact[rows]
    B, N = exact.shape
    if index.dtype != torch.int64 or ((index < 0) | (index >= N)).any():
        raise Disagrees(f"a winner's index is not in 0 to {N - 1}, {where}")
    take = index[:, None]
    own = truth.exact["action"][rows].gather(1, take[..., None].expand(B, 1, action.shape[1]))
    won = exact.gather(1, take)[:, 0]
    agree(
        {"action": action, "q": q},
        Truth(
            {"action": own[:, 0], "q": truth.exact["q"][rows].gather(1, take)[:, 0]}, truth.bounds
        ),
        where,
    )
    behind = float((exact.amax(1) - won).max()) if B else 0.0
    if behind > 2 * truth.bounds["q"]:
        raise Disagrees(f"a winner's Q is {behind:.1e} below the best, {where}")


SETTINGS = {"lr": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1.0, "tau": 0.3}


def _optimised(
    step_of: Function, tensors: Sequence[Sequence[Tensor]], device: torch.device, scale: float
) -> dict[str, Tensor]:
    """Do three steps; return the state that they leave and the norms."""
    params, grads, more, first, second, targets = tensors
    norms = []
    for step in (1, 2, 3):
        of_step = [[x * scale * step for x in part] for part in (grads, more)]
        number = torch.tensor(step, device=device)
        norms.append(
            step_of(
                *(params, of_step[0], first, second, targets, number),
                **SETTINGS, more_grads=of_step[1] if step > 1 else (),
            ).reshape(())
        )  # fmt: skip
    groups = {"parameter": params, "first": first, "second": second, "target": targets}
    state = {f"{name} {i}": x for name, group in groups.items() for i, x in enumerate(group)}
    return {**state, "norm": torch.stack(norms)}


def check_adam_ema_step(
    way: Way, task: Task, case: Case, device: torch.device, note: isolated.Note
) -> None:
    """Check three optimiser steps, with and without the clip; raise Disagrees."""
    g = torch.Generator().manual_seed(case.seed)
    shapes = [p.shape for p in random_layers(case.network, True, g)]
    tensors = [[_normal(g, *shape) for shape in shapes] for _ in range(6)]
    tensors[3:5] = [[torch.zeros_like(x) for x in part] for part in tensors[3:5]]
    count = sum(x.numel() for x in tensors[0])
    # a norm below the clip's, and one above, whose tensors lie as a slice may
    for scale, shift in ((0.1 / math.sqrt(count), 0), (1.0, 1)):
        note(f"scale {scale:.1e}, {case}")
        fence = Fences(device)
        here = [[fence(x, written=True, shift=shift) for x in part] for part in tensors]
        with poisoned():
            got = _optimised(way.function, here, device, scale)
            wait(device)
        double = [[x.double() for x in part] for part in tensors]
        exact = _optimised(reference.adam_ema_step, double, torch.device("cpu"), scale)
        agree(got, Truth(exact, _bounds(exact, exact, "fp32")), f"at {case}")
        fence.look(f"at {case}")
    note(f"gradients that are not finite, {case}")
    here = [[x.to(device) for x in part] for part in tensors]
    here[1][-1].fill_(torch.inf)
    with poisoned():
        got = _optimised(way.function, here, device, 1.0)
        wait(device)
    if got["norm"].isfinite().any():
        raise Disagrees(f"the norm of a gradient that is not finite is finite, at {case}")


# keys at the ends of their ranges: seed (the bits of a uint64), call, row_offset
KEYS = ((7, 0, 0), (-1, 2**32 - 1, 2**32 - 500), (-(2**63), 5, 2**31))


def check_noise(
    way: Way, task: Task, case: Case, device: torch.device, note: isolated.Note
) -> None:
    """Check normals or words: equal integers, normals within NORMALS_BOUND; raise Disagrees."""
    shape: tuple[int, ...] = (case.rows, case.candidates, case.network.act)
    if task.operation == "words":
        shape = (math.prod(shape),)
    for numbers in KEYS:
        note(f"key {numbers}, {case}")
        key = torch.tensor(numbers)
        with poisoned():
            got = way.function(key.to(device), *shape).cpu()
            wait(device)
        expected = getattr(reference, task.operation)(key, *shape)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise Disagrees(f"the result is {list(got.shape)} {got.dtype}, at {case}")
        error = (got.double() - expected.double()).abs().max()
        if not error <= (NORMALS_BOUND if task.operation == "normals" else 0):
            raise Disagrees(
                f"the numbers of key {numbers} are off by {float(error):.1e}, at {case}"
            )


_CHECKS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("velocity", "rollout", "critic_ensemble"), check_network_operation),
    "best_of_n": check_best_of_n,
    "adam_ema_step": check_adam_ema_step,
    "normals": check_noise,
    "words": check_noise,
}


# --- times -------------------------------------------------------------------------------------------


def microseconds(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return the median time of a call, which has been made before; CUDA events on a GPU."""

    def block(calls: int) -> float:
        if device.type != "cuda":
            start = time.perf_counter()
            for _ in range(calls):
                call()
            return (time.perf_counter() - start) / calls
        cuda: Any = torch.cuda
        stream = cuda.current_stream(device)  # the device need not be the current one
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        for _ in range(calls):
            call()
        end.record(stream)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / calls

    one = block(1)
    calls = max(1, min(1000, int(seconds / 5 / max(one, 1e-9))))
    return 1e6 * statistics.median(block(calls) for _ in range(5 if seconds else 1))


def _recorded(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Return what replays the call as training and acting do: a CUDA graph on a GPU."""
    call()
    if device.type != "cuda":
        return call
    return Captured(call, (), CudaRecorder(device))


def _timed_calls(
    way: Way, task: Task, rows: int, device: torch.device
) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
    """Return the call to time without gradients, and the one with, if there is one."""
    network, operation = task.network, task.operation
    if operation == "best_of_n":
        N = min(TIMED_CANDIDATES, rows)
        c = choices("fp32", Case(network, 2 * N, 1, N, 0))
        B = rows // N
        obs, noise = torch.randn(B, network.obs), torch.randn(B, N, network.act)
        actor, critic = ([p.to(device) for p in params] for params in (c.actor, c.critic))
        layers = grouped(actor, False), grouped(critic, True)
        rest = [x.to(device) for x in c.limits]
        args = (*layers, obs.to(device), noise.to(device), TIMED_STEPS, "mean", *rest)
        return _without_gradients(
            functools.partial(way.function, *args, precision=task.precision)
        ), None
    given = problem(operation, Case(network, rows, TIMED_STEPS, 1, 0))
    rest = [x.to(device) if isinstance(x, Tensor) else x for x in given.rest]
    obs, act, grad = (x.to(device) for x in (given.obs, given.act, given.grad))
    params = [p.to(device) for p in given.params]
    here = Problem(operation, params, obs, act, tuple(rest), grad)
    function = functools.partial(way.function, precision=task.precision)

    def forward() -> Any:
        return function(grouped(params, here.critic), obs, act, *rest)

    def backward() -> Any:
        return solve(function, here, inputs=False)

    return _without_gradients(forward), backward if rows <= BACKWARD_ROWS else None


def _without_gradients(call: Callable[[], Any]) -> Callable[[], Any]:
    def quiet() -> Any:
        with torch.no_grad():
            return call()

    return quiet


def _plain_call(way: Way, task: Task, device: torch.device) -> tuple[int, Callable[[], Any]]:
    """Return the size and the call to time of an operation that has no rows."""
    network = task.network
    if task.operation == "adam_ema_step":
        g = torch.Generator().manual_seed(0)
        params = [p.to(device) for p in random_layers(network, True, g)]
        parts = [[torch.zeros_like(p) for p in params] for _ in range(4)]
        step = torch.tensor(1, device=device)
        call = functools.partial(way.function, params, *parts, step, **SETTINGS)
        return sum(p.numel() for p in params), call
    key, B = torch.tensor(KEYS[0]).to(device), 256
    shape = (B, 1, network.act) if task.operation == "normals" else (B,)
    return math.prod(shape), functools.partial(way.function, key, *shape)


def measure(
    way: Way, task: Task, form: Form, device: torch.device, note: isolated.Note
) -> tuple[dict[int, float], dict[int, float]]:
    """Return microseconds by rows, without and with gradients. What does not fit is left out."""
    forward: dict[int, float] = {}
    backward: dict[int, float] = {}
    if task.operation in PLAIN_OPERATIONS:
        if form.counts:
            rows, plain = _plain_call(way, task, device)
            note("time")
            forward[rows] = microseconds(_recorded(plain, device), device, form.seconds)
        return forward, backward
    for rows in form.counts:
        note(f"time of {rows} rows")
        try:
            calls = _timed_calls(way, task, rows, device)
            for times, call in zip((forward, backward), calls, strict=True):
                if call is not None:
                    times[rows] = microseconds(_recorded(call, device), device, form.seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return forward, backward


def check_replay(
    way: Way,
    task: Task,
    device: torch.device,
    note: isolated.Note,
    recorder: Recorder | None = None,
) -> None:
    """Check that a recorded CUDA graph follows its inputs and its weights; raise Disagrees."""
    case = Case(task.network, 37, 2, 1, 11)
    note(f"as a CUDA graph, {case}")
    given, truth = solved(task.operation, task.precision, case)
    other, other_truth = solved(task.operation, task.precision, case, 1)
    here = Fences(device).all(other)
    function = functools.partial(way.function, precision=task.precision)
    recorder = recorder or CudaRecorder(device)
    replay = Captured(lambda: solve(function, here), (), recorder)
    for p, exact in ((given, truth), (other, other_truth)):
        for x, y in zip(here.params, p.params, strict=True):
            x.copy_(y)
        here.grad.copy_(p.grad)
        got = replay()
        wait(device)
        agree(got, exact, f"as a CUDA graph whose weights changed, at {case}")


# --- one item in a child, all items from the parent --------------------------------------------------


def examine_item(item: isolated.Item, note: isolated.Note) -> isolated.Outcome:
    """Check one way of a task and time it: the child's work."""
    task = Task(item["operation"], item["precision"], Network(*item["network"]))
    form, device = FORMS[item["form"]], torch.device(item["device"])
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as err:
        reason = " ".join(str(err).split())[:300]
        raise isolated.Unavailable(f"a second process can't use {device}: {reason}") from err
    way = ways(item["registry"])[task.operation][item["way"]]
    try:
        with torch.device("cpu"):
            for case in cases(task, form, item["seed"]):
                _CHECKS[task.operation](way, task, case, device, note)
            if device.type == "cuda" and _CHECKS[task.operation] is check_network_operation:
                check_replay(way, task, device, note)
        forward, backward = measure(way, task, form, device, note)
        wait(device)
    except Disagrees as err:
        return {"status": "disagrees", "reason": str(err)}
    except ModuleNotFoundError as err:
        return {"status": "failed", "reason": f"{err.name} is not installed", "harmless": True}
    except torch.OutOfMemoryError as err:
        raise isolated.Unavailable(f"{device} has too little free memory: {err}") from err
    return {"status": "ok", "reason": "", "forward": forward, "backward": backward}


def tasks(network: Network, precisions: Sequence[str]) -> list[Task]:
    """Return every task of a network in some precisions, and those of no network."""
    found = [Task(name, p, network) for p in precisions for name in NETWORK_OPERATIONS]
    return found + [Task(name, "fp32", network) for name in PLAIN_OPERATIONS]


Progress = Callable[[int, int, str], None]  # done, total, what comes next


def examine(
    wanted: Sequence[Task],
    device: torch.device,
    *,
    form: str = "short",
    registry: str = GPU,
    seed: int = 0,
    silence: float = SILENCE,
    progress: Progress | None = None,
) -> dict[str, dict[str, Result]]:
    """Check and time every way of some tasks, in child processes.

    Parameters
    ----------
    wanted
        Tasks; see `tasks`.
    device
        Where the operations run.
    form
        A key of FORMS.
    registry
        See `ways`.
    seed
        What the random shapes and numbers follow from.
    silence
        Seconds without a sign of life after which a way counts as hung.
    progress
        Called before each way of a task.

    Returns
    -------
    dict
        Task's name -> way -> Result. Never raises for what a way does.
    """
    known = ways(registry)
    # the plainest way first: should one spoil the device, it comes after those that can't
    plan = [(task, way) for task in wanted for way in reversed(list(known[task.operation]))]
    items = [
        task._asdict()
        | {"way": way, "device": str(device), "form": form, "registry": registry, "seed": seed}
        for task, way in plan
    ]
    found: dict[str, dict[str, Result]] = {}
    # deterministic cuBLAS, as `poisoned` asks for, needs to be told so before it starts
    more = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    outcomes = isolated.run(f"{__name__}:examine_item", items, silence=silence, environment=more)
    for i, (task, way) in enumerate(plan):
        if progress is not None:
            progress(i, len(plan), f"{task.name}, {way}")
        outcome = next(outcomes)
        times = [
            {int(rows): us for rows, us in outcome.get(kind, {}).items()}
            for kind in ("forward", "backward")
        ]
        result = Result(outcome["status"], outcome["reason"], times[0], times[1])
        found.setdefault(task.name, {})[way] = result
    return found
