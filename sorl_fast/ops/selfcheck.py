"""Whether an implementation of an operation is right on this machine, and how long it takes.

Each is checked as `judge` does on each of its cases; a recorded CUDA graph must follow its inputs. All of
it happens in child processes (`sorl_fast.isolated`), so that a crash or an endless loop is a finding like
any other.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import isolated
from . import reference
from .graphs import Captured, CudaRecorder, Recorder
from .implementations import (
    GPU,
    PLAIN_OPERATIONS,
    SAMPLING_OPERATIONS,
    SCHEDULED,
    Implementation,
    Network,
    Task,
    registered,
)
from .judge import (
    CHECKS,
    Disagrees,
    Guards,
    agree,
    check_network_operation,
    judge_winners,
    wait,
)
from .problems import (
    FORMS,
    KEYS,
    SETTINGS,
    TEMPERATURE,
    Case,
    Form,
    Problem,
    cases,
    choices,
    grouped,
    key_of,
    problem,
    random_layers,
    solve,
    solved,
)

STATUSES = ("ok", "disagrees", "failed", "crashed", "hung", "unchecked")

SILENCE = 180.0  # seconds without a word after which a check counts as hung: a kernel may compile


class Result(NamedTuple):
    """What is known about one implementation of a task."""

    status: str  # one of STATUSES
    reason: str  # empty if ok
    forward: dict[int, float]  # rows -> microseconds, without gradients
    backward: dict[int, float]  # rows -> microseconds, forward and backward


BACKWARD_ROWS = 4096  # gradients are timed up to here: a training batch is no larger
TIMED_STEPS, TIMED_CANDIDATES = 4, 8


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
    implementation: Implementation, task: Task, rows: int, device: torch.device
) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
    """Return the call to time without gradients, and the one with, if there is one."""
    network, operation = task.network, task.operation
    if operation in SAMPLING_OPERATIONS:
        N, scheduled = min(TIMED_CANDIDATES, rows), operation == SCHEDULED
        steps = TIMED_STEPS if scheduled else 1  # that the problem has, whose answer nobody reads
        c = choices("fp32", Case(network, 2 * N, steps, N, 0), "diffusion" if scheduled else "")
        B, draws = rows // N, [c.schedule.draws] if c.schedule else []
        obs, noise = torch.randn(B, network.obs), torch.randn(B, N, *draws, network.act)
        actor, critic = ([p.to(device) for p in params] for params in (c.actor, c.critic))
        layers = grouped(actor, False), grouped(critic, True)
        rest = [x.to(device) for x in c.limits]
        args = obs.to(device), noise.to(device), TIMED_STEPS, "mean", *rest
        options: dict[str, Any] = {}
        if c.schedule is not None:
            options["temperature"] = torch.ones((), device=device)
        if implementation.prepare is not None:
            networks = implementation.prepare(*layers, network.obs, task.precision)
            networks = networks.following(c.schedule)
            call = functools.partial(networks.best_of_n, *args, **options)
        else:
            options |= {"precision": task.precision}
            options |= {} if c.schedule is None else {"schedule": c.schedule}
            call = functools.partial(implementation.function, *layers, *args, **options)
        return _without_gradients(call), None
    given = problem(operation, Case(network, rows, TIMED_STEPS, 1, 0))
    rest = [x.to(device) if isinstance(x, Tensor) else x for x in given.rest]
    obs, act, grad = (x.to(device) for x in (given.obs, given.act, given.grad))
    params = [p.to(device) for p in given.params]
    here = Problem(operation, params, obs, act, tuple(rest), grad)
    function = functools.partial(implementation.function, precision=task.precision)

    def forward() -> Any:
        return function(grouped(params, here.critic), obs, act, *rest)

    def backward() -> Any:
        return solve(function, here, inputs=())

    return _without_gradients(forward), backward if rows <= BACKWARD_ROWS else None


def _without_gradients(call: Callable[[], Any]) -> Callable[[], Any]:
    def quiet() -> Any:
        with torch.no_grad():
            return call()

    return quiet


def _plain_call(
    implementation: Implementation, task: Task, device: torch.device
) -> tuple[int, Callable[[], Any]]:
    """Return the size and the call to time of an operation that has no rows."""
    network = task.network
    if task.operation == "adam_ema_step":
        g = torch.Generator().manual_seed(0)
        params = [p.to(device) for p in random_layers(network, True, g)]
        parts = [[torch.zeros_like(p) for p in params] for _ in range(4)]
        step = torch.tensor(1, device=device)
        call = functools.partial(implementation.function, params, *parts, step, **SETTINGS)
        return sum(p.numel() for p in params), call
    key, B = torch.tensor(KEYS[0]).to(device), 256
    shape = (B, 1, network.act) if task.operation == "normals" else (B,)
    return math.prod(shape), functools.partial(implementation.function, key, *shape)


def measure(
    implementation: Implementation,
    task: Task,
    form: Form,
    device: torch.device,
    note: isolated.Note,
) -> tuple[dict[int, float], dict[int, float]]:
    """Return microseconds by rows, without and with gradients. What does not fit is left out."""
    forward: dict[int, float] = {}
    backward: dict[int, float] = {}
    if task.operation in PLAIN_OPERATIONS:
        if form.counts:
            rows, plain = _plain_call(implementation, task, device)
            note("time")
            forward[rows] = microseconds(_recorded(plain, device), device, form.seconds)
        return forward, backward
    for rows in form.counts:
        note(f"time of {rows} rows")
        try:
            calls = _timed_calls(implementation, task, rows, device)
            for times, call in zip((forward, backward), calls, strict=True):
                if call is not None:
                    times[rows] = microseconds(_recorded(call, device), device, form.seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return forward, backward


def check_replay(
    implementation: Implementation,
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
    here = Guards(device).all(other)
    function = functools.partial(implementation.function, precision=task.precision)
    recorder = recorder or CudaRecorder(device)
    replay = Captured(lambda: solve(function, here), (), recorder)
    for p, exact in ((given, truth), (other, other_truth)):
        for x, y in zip(here.params, p.params, strict=True):
            x.copy_(y)
        here.grad.copy_(p.grad)
        got = replay()
        wait(device)
        agree(got, exact, f"as a CUDA graph whose weights changed, at {case}")


def check_sampling_replay(
    implementation: Implementation,
    task: Task,
    device: torch.device,
    note: isolated.Note,
    recorder: Recorder | None = None,
) -> None:
    """Check that a sampler's recorded CUDA graph follows its key and its temperature; raise Disagrees."""
    if implementation.prepare is None:
        return
    case = Case(task.network, 37, 4, 3, 11)
    note(f"as a CUDA graph, {case}")
    c = choices(task.precision, case, "diffusion" if task.operation == SCHEDULED else "")
    obs, N = c.tensors[0].to(device), case.candidates
    layers = [grouped([p.to(device) for p in net], net is c.critic) for net in (c.actor, c.critic)]
    networks = implementation.prepare(*layers, task.network.obs, task.precision)
    networks = networks.following(c.schedule)
    key, temperature = torch.tensor(KEYS[0]).to(device), torch.zeros((), device=device)
    rest = [c.steps, c.q_agg, *(x.to(device) for x in c.limits)]

    def call() -> Any:
        if implementation.draws:
            return networks.best_of_n(obs, key, *rest, candidates=N, temperature=temperature)
        draws = c.schedule.draws if c.schedule else 1
        drawn = reference.normals(key, len(obs), N, task.network.act, draws)
        return networks.best_of_n(obs, drawn, *rest, temperature=temperature)

    replay = Captured(_without_gradients(call), (), recorder or CudaRecorder(device))
    key.copy_(key_of(case))
    temperature.fill_(TEMPERATURE)
    found = replay()
    wait(device)
    where = f"as a CUDA graph whose key and temperature changed, at {case}"
    judge_winners(reference.Best(*(x.cpu() for x in found)), c.truth, None, where)


# --- one item in a child, all items from the parent --------------------------------------------------


def examine_item(item: isolated.Item, note: isolated.Note) -> isolated.Outcome:
    """Check one implementation of a task and time it: the child's work."""
    task = Task(item["operation"], item["precision"], Network(*item["network"]))
    form, device = FORMS[item["form"]], torch.device(item["device"])
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as err:  # whatever a driver raises: no implementation is to blame for it
        reason = " ".join(str(err).split())[:300]
        raise isolated.Unavailable(f"a second process can't use {device}: {reason}") from err
    implementation = registered(item["registry"])[task.operation][item["implementation"]]
    try:
        with torch.device("cpu"):
            for case in cases(task, form, item["seed"]):
                CHECKS[task.operation](implementation, task, case, device, note)
            if device.type == "cuda" and CHECKS[task.operation] is check_network_operation:
                check_replay(implementation, task, device, note)
            if device.type == "cuda" and task.operation in SAMPLING_OPERATIONS:
                check_sampling_replay(implementation, task, device, note)
        forward, backward = measure(implementation, task, form, device, note)
        wait(device)
    except Disagrees as err:
        return {"status": "disagrees", "reason": str(err)}
    except ModuleNotFoundError as err:
        return {"status": "failed", "reason": f"{err.name} is not installed", "harmless": True}
    except torch.OutOfMemoryError as err:
        raise isolated.Unavailable(f"{device} has too little free memory: {err}") from err
    return {"status": "ok", "reason": "", "forward": forward, "backward": backward}


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
    """Check and time every implementation of some tasks, in child processes.

    Parameters
    ----------
    wanted
        Tasks; see `tasks`.
    device
        Where the operations run.
    form
        A key of FORMS.
    registry
        See `implementations`.
    seed
        What the random shapes and numbers follow from.
    silence
        Seconds without a sign of life after which an implementation counts as hung.
    progress
        Called before each implementation of a task.

    Returns
    -------
    dict
        Task's name -> implementation -> Result. Never raises for what an implementation does.
    """
    known = registered(registry)
    # the plainest implementation first: should one spoil the device, it comes after those that can't
    plan = [
        (task, implementation)
        for task in wanted
        for implementation in reversed(list(known[task.operation]))
    ]
    items = [
        task._asdict()
        | {
            "implementation": implementation,
            "device": str(device),
            "form": form,
            "registry": registry,
            "seed": seed,
        }
        for task, implementation in plan
    ]
    found: dict[str, dict[str, Result]] = {}
    # deterministic cuBLAS, as `poisoned` asks for, needs to be told so before it starts
    more = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    outcomes = isolated.run(f"{__name__}:examine_item", items, silence=silence, environment=more)
    for i, (task, implementation) in enumerate(plan):
        if progress is not None:
            progress(i, len(plan), f"{task.name}, {implementation}")
        outcome = next(outcomes)
        times = [
            {int(rows): us for rows, us in outcome.get(kind, {}).items()}
            for kind in ("forward", "backward")
        ]
        result = Result(outcome["status"], outcome["reason"], times[0], times[1])
        found.setdefault(task.name, {})[implementation] = result
    return found
