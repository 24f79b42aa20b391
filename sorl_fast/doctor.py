"""What is on this machine, and whether every backend that is there agrees with the definition.

Two comparisons: samplers, through `Sampler`, with the definition in float64 numpy; and the operations
of training, on the CPU and on each GPU, by `ops.selfcheck`. Both happen in child processes, so that a
backend that crashes is a line in the table. Works without torch, on a robot, for what is there.

Shape letters: B observations, N candidates, O observation, A action, H hidden, L layers, M Euler steps.
"""

import contextlib
import importlib
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import isolated
from .act import policy_file
from .act.philox import normals
from .act.reference import aggregate, critic_values, denoise
from .act.sampler import Sampler
from .errors import BadInput
from .layout import Layout
from .machine import CPU_PRECISIONS, instruction_sets, machine, notes
from .status import Status

GPU_PRECISIONS = ("fp32", "tf32", "fp16", "bf16")

# How far an action may be from the float64 definition's, absolutely, whatever the weights; and how many
# times as far as the definition with weights and observations rounded to the precision.
SAMPLER_FLOOR = {"fp32": 1e-5, "tf32": 4e-3, "fp16": 4e-3, "bf16": 2e-2, "int8": 5e-2}
SAMPLER_HONEST = 6.0
# Bits of a number's fraction. int8 has no fraction: its steps, 1/127 and 1/255 of the largest number
# near, are those of 6 bits at a number of half that size.
FRACTION = {"fp32": 23, "tf32": 10, "fp16": 10, "bf16": 7, "int8": 6}

SILENCE = 180.0

Progress = Callable[[str], None]


class Check(NamedTuple):
    """One line of the table: a backend at one of its tasks."""

    backend: str  # numpy, native avx2, torch, fused ...
    device: str  # cpu, cuda:0 ...
    task: str
    precision: str
    status: str  # ok, disagrees, failed, crashed, hung or unchecked
    reason: str  # empty if ok


class Report(NamedTuple):
    """What `sorl-fast doctor` found."""

    machine: dict[str, Any]
    checks: list[Check]
    tables: list[str]  # files of the dispatch tables that were written
    notes: list[str]  # what the user should know

    @property
    def agrees(self) -> bool:
        """Whether every backend that is there agrees with the definition."""
        return all(check.status == "ok" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "agrees": self.agrees,
            "machine": self.machine,
            "checks": [check._asdict() for check in self.checks],
            "tables": self.tables,
            "notes": self.notes,
        }


# --- samplers ----------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """The shape of one comparison of a sampler."""

    O: int
    A: int
    H: int
    L: int
    E: int
    B: int
    N: int
    M: int
    seed: int


def sampler_sizes(quick: bool) -> list[Sizes]:
    """Return the shapes that samplers are compared at; H is a multiple of 64, for the GPU's."""
    draw = random.Random(0)
    found = [Sizes(28, 5, 64, 2, 2, 5, 8, 4, 1)]
    for seed in range(0 if quick else 6):
        found.append(
            Sizes(
                *(draw.randint(1, 80), draw.randint(1, 24), 64 * draw.randint(1, 4)),
                *(draw.randint(1, 4), draw.randint(1, 4), draw.randint(1, 20)),
                *(draw.choice((1, 3, 8, 32)), draw.choice((1, 2, 4, 8)), 2 + seed),
            )
        )
    return found


def random_policy(sizes: Sizes) -> policy_file.Policy:
    """Return a policy whose actions and Q are of the order of 1."""
    rng = np.random.default_rng(sizes.seed)
    O, A, H, L, E = sizes[:5]

    def normal(*shape: int, scale: float) -> NDArray[np.float32]:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    def make(layer: int, letter: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        x = normal(*shape, scale=math.sqrt(1.5 / shape[-2]) if letter == "w" else 0.1)
        return 1 + x if letter == "g" else x

    return policy_file.Policy(
        obs_dim=O, act_dim=A, hidden=H, depth=L, ensemble=E, m_disc=8, m_btt=8,
        q_agg="min" if sizes.seed % 2 else "mean",
        actor=tuple(Layout.actor(O, A, H, L).build(make)),
        critic=tuple(Layout.critic(O, A, H, L, E).build(make)),
        action_low=np.full(A, -0.9, np.float32), action_high=np.full(A, 0.8, np.float32),
        obs_mean=normal(O, scale=0.1), obs_std=1 + abs(normal(O, scale=0.1)),
    )  # fmt: skip


def _rounded(x: NDArray[Any], precision: str) -> NDArray[np.float64]:
    """Round the fractions of numbers to a precision's bits."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    scale = 2.0 ** (FRACTION[precision] + 1)
    return np.ldexp(np.round(fraction * scale) / scale, exponent)


class Candidates(NamedTuple):
    """Every candidate's action [B, N, A] and aggregated Q [B, N]."""

    actions: NDArray[Any]
    q: NDArray[Any]


def candidates_of(
    policy: policy_file.Policy,
    obs: NDArray[np.float32],
    sizes: Sizes,
    call: int,
    precision: str | None = None,
) -> Candidates:
    """Return what the definition makes of every candidate, in float64.

    With `precision`, weights and normalised observations are rounded to it first.
    """
    B, N, M = sizes.B, sizes.N, sizes.M

    def own(x: NDArray[Any]) -> NDArray[np.float64]:
        return x.astype(np.float64) if precision is None else _rounded(x, precision)

    actor, critic = (
        [[own(x) for x in layer] for layer in net] for net in (policy.actor, policy.critic)
    )
    assert policy.obs_mean is not None and policy.obs_std is not None
    rows = np.repeat(own((obs.astype(np.float64) - policy.obs_mean) / policy.obs_std), N, axis=0)
    noise = normals(sizes.seed, B, N, policy.act_dim, call, 0).astype(np.float64)
    z = denoise(actor, rows, noise.reshape(B * N, -1), M)
    actions = np.clip(z, policy.action_low, policy.action_high)
    q = aggregate(critic_values(critic, rows, actions, M), policy.q_agg)
    return Candidates(actions.reshape(B, N, -1), q.reshape(B, N))


class Disagrees(Exception):
    """A sampler's numbers are wrong."""


def compare_sampler(sampler: Any, policy: policy_file.Policy, sizes: Sizes, precision: str) -> None:
    """Compare two calls of a sampler with the definition; raise Disagrees."""
    rng = np.random.default_rng(sizes.seed)
    obs = rng.normal(size=(sizes.B, sizes.O)).astype(np.float32)
    act = {"steps": sizes.M, "candidates": sizes.N, "seed": sizes.seed, "return_info": True}
    for call in (0, 2**32 - 1):
        exact = candidates_of(policy, obs, sizes, call)
        rough = candidates_of(policy, obs, sizes, call, precision)
        bound, q_bound = (
            max(
                SAMPLER_FLOOR[precision] * max(1.0, abs(x).max()), SAMPLER_HONEST * abs(x - y).max()
            )
            for x, y in zip(exact, rough, strict=True)
        )
        action, info = sampler.act(obs, call=call, **act)
        if action.shape != (sizes.B, sizes.A) or not np.isfinite(action).all():
            raise Disagrees(f"actions are not finite, or of a wrong shape, at {sizes}")
        index = np.asarray(info.candidate)
        if ((index < 0) | (index >= sizes.N)).any():
            raise Disagrees(f"a winning candidate is not in 0 to {sizes.N - 1}, at {sizes}")
        take = np.arange(sizes.B), index
        error = abs(action - exact.actions[take]).max()
        if not error <= bound:
            raise Disagrees(f"an action is off by {error:.1e}, allowed are {bound:.1e}, at {sizes}")
        error = abs(info.q - exact.q[take]).max()
        if not error <= q_bound:
            raise Disagrees(f"a Q is off by {error:.1e}, allowed are {q_bound:.1e}, at {sizes}")
        behind = (exact.q.max(1) - exact.q[take]).max()
        if not behind <= 2 * q_bound:
            raise Disagrees(f"a winner's Q is {behind:.1e} below the best, at {sizes}")
    last = action[-1]
    bad = obs.copy()
    bad[0, 0] = np.nan
    held, info = sampler.act(bad, call=2**32 - 1, **act)
    if not np.array_equal(held[0], last) or not info.status[0] & Status.NONFINITE_OBS:
        raise Disagrees(f"an observation of NaN does not hold the last action, at {sizes}")
    if not abs(held[1:] - action[1:]).max(initial=0) <= bound and sizes.N == 1:
        raise Disagrees(f"an observation of NaN disturbs others, at {sizes}")


@contextlib.contextmanager
def _instruction_set(name: str) -> Iterator[None]:
    """Force the native code's instruction set."""
    before = os.environ.get("SORL_CPU_ISA")
    os.environ["SORL_CPU_ISA"] = name
    try:
        yield
    finally:
        del os.environ["SORL_CPU_ISA"]
        if before is not None:
            os.environ["SORL_CPU_ISA"] = before


def check_sampler(item: isolated.Item, note: isolated.Note) -> isolated.Outcome:
    """Compare one sampler with the definition: a child's work."""
    for values in item["sizes"]:
        sizes = Sizes(*values)
        note(str(sizes))
        policy = random_policy(sizes)
        with _instruction_set(item["isa"]) if item["isa"] else contextlib.nullcontext():
            sampler = Sampler(policy, item["backend"], item["precision"])
        try:
            compare_sampler(sampler, policy, sizes, item["precision"])
        except Disagrees as err:
            return {"status": "disagrees", "reason": str(err)}
    return {"status": "ok", "reason": ""}


def samplers(there: dict[str, Any]) -> list[dict[str, str]]:
    """Return the samplers of a machine: backend, device, isa and precision."""

    def sampler(backend: str, precision: str, isa: str = "", device: str = "cpu") -> dict[str, str]:
        return {"backend": backend, "precision": precision, "isa": isa, "device": device}

    found = [sampler("numpy", "fp32")]
    if there["instruction_sets"] is not None:
        for precision, names in there["instruction_sets"]["sampling"].items():
            found += [sampler("native", precision, isa) for isa in names]
    if there["versions"]["torch"] is not None:
        found.append(sampler("torch", "fp32"))
    if there["gpus"] and there["versions"]["triton"] is not None:
        found += [sampler("triton", p, device=there["gpus"][0]["device"]) for p in GPU_PRECISIONS]
    return found


def check_samplers(there: dict[str, Any], quick: bool, progress: Progress) -> list[Check]:
    """Compare every sampler of the machine with the definition."""
    wanted = samplers(there)
    sizes = sampler_sizes(quick)
    outcomes = isolated.run(
        f"{__name__}:check_sampler", [{**x, "sizes": sizes} for x in wanted], silence=SILENCE
    )
    checks = []
    for x in wanted:
        backend = f"{x['backend']} {x['isa']}".strip()
        progress(f"sampler {backend} {x['precision']}")
        outcome = next(outcomes)
        checks.append(
            Check(
                *(backend, x["device"], "sampler", x["precision"]),
                *(outcome["status"], outcome["reason"]),
            )
        )
    return checks


# --- training's operations ---------------------------------------------------------------------------


def _implementations_of_cpu(precision: str) -> dict[str, dict[str, Any]]:
    """Return PyTorch's and the native implementations of the operations, for `selfcheck.examine`."""
    from .ops.implementations import ON_GPU, Implementation

    reference = {name: forms["reference"] for name, forms in ON_GPU.items()}
    found = {
        name: {"torch": plain} if precision == "fp32" else {} for name, plain in reference.items()
    }
    sets = instruction_sets()
    if sets is not None:
        for isa in sets["training"][precision]:
            for name in ("velocity", "rollout", "critic_ensemble"):
                found[name][f"native {isa}"] = Implementation(_native_implementation(name, isa))
        if precision == "fp32":  # its arithmetic is the same on every instruction set
            found["adam_ema_step"]["native"] = Implementation(_native_adam)
    return found


def _native_implementation(name: str, isa: str) -> Callable[..., Any]:
    def call(*args: Any, precision: str) -> Any:
        from .ops import native

        # its own memory begins as NaN, as torch's does
        importlib.import_module("sorl_fast._native").lease_fill(0xFF)
        with _instruction_set(isa):
            return getattr(native, name)(*args, precision)

    return call


def _native_adam(*args: Any, **kwargs: Any) -> Any:
    from .ops import native

    params, grads, first, second, targets, step = args
    return native.adam_ema_step(params, grads, first, second, targets, int(step), **kwargs)


def implementations_fp32() -> dict[str, dict[str, Any]]:
    """Return the CPU's implementations in float32."""
    return _implementations_of_cpu("fp32")


def implementations_bf16() -> dict[str, dict[str, Any]]:
    """Return the CPU's implementations in bf16."""
    return _implementations_of_cpu("bf16")


def _examined(
    wanted: Sequence[Any], device: Any, form: str, registry: str, progress: Progress
) -> tuple[list[Check], dict[str, Any]]:
    """Examine tasks; return the table's lines, and what `selfcheck.examine` does."""
    from .ops import selfcheck

    found = selfcheck.examine(
        wanted,
        device,
        form=form,
        registry=registry,
        silence=SILENCE,
        progress=lambda done, total, text: progress(f"{done + 1}/{total} on {device}: {text}"),
    )
    checks = [
        Check(name, str(device), task.operation, task.precision, result.status, result.reason)
        for task in wanted
        for name, result in found.get(task.name, {}).items()
    ]
    return checks, found


def check_cpu_training(quick: bool, progress: Progress) -> list[Check]:
    """Compare PyTorch's and the native operations with the definition, gradients included."""
    import torch

    from .ops.implementations import Network, registered, tasks

    network = Network(28, 5, 64, 2, 2)
    checks: list[Check] = []
    for precision in CPU_PRECISIONS:
        registry = f"{__name__}:implementations_{precision}"
        known = registered(registry)
        wanted = [
            task
            for task in tasks(network, (precision,))
            if known[task.operation]
            and (precision == "fp32" or "torch" not in known[task.operation])
        ]
        form = "tiny" if quick else "small"
        checks += _examined(wanted, torch.device("cpu"), form, registry, progress)[0]
    return checks


def check_gpu(name: str, quick: bool, progress: Progress) -> tuple[list[Check], str | None, str]:
    """Check and time every implementation on a GPU and write its dispatch table.

    Returns
    -------
    checks, path, note
        The table's lines; the dispatch table's file, if it could be written, or else why not.
    """
    import torch

    from .ops import table
    from .ops.implementations import DEFAULT, GPU, tasks

    device = torch.device(name)
    wanted = tasks(DEFAULT, GPU_PRECISIONS)
    form = "short" if quick else "full"
    checks, found = _examined(wanted, device, form, GPU, progress)
    try:
        return checks, str(table.save(device, found)), ""
    except BadInput as err:
        return checks, None, f"The dispatch table of {name} cannot be kept: {err}"


# --- all of it ---------------------------------------------------------------------------------------


def examine(*, quick: bool = False, progress: Progress = lambda text: None) -> Report:
    """Look at the machine and check every backend that is there.

    Parameters
    ----------
    quick
        Fewer shapes, and on a GPU fewer sizes.
    progress
        Called with what is being done.
    """
    progress("looking around")
    there = machine()
    found = notes(there)
    checks = check_samplers(there, quick, progress)
    if there["versions"]["torch"] is not None:
        checks += check_cpu_training(quick, progress)
    tables = []
    for gpu in there["gpus"]:
        more, path, note = check_gpu(gpu["device"], quick, progress)
        checks += more
        tables += [path] if path else []
        found += [note] if note else []
    return Report(there, checks, tables, found)


def text(report: Report) -> str:
    """Return the report as the command line prints it."""
    there = report.machine
    lines = [
        f"{there['system']}, {there['cpu']}, {there['cores']} cores",
        "  ".join(f"{k} {v or 'not installed'}" for k, v in there["versions"].items()),
    ]
    for use, by_precision in (there["instruction_sets"] or {}).items():
        for precision, names in by_precision.items():
            lines.append(f"instruction sets, {use} in {precision}: {', '.join(names) or 'none'}")
    if there["instruction_sets"] is None:
        lines.append("instruction sets: the native extension is not there")
    for gpu in there["gpus"]:
        lines.append(
            f"{gpu['device']}: {gpu['name']}, capability {gpu['capability']}, "
            f"{gpu['memory_bytes'] / 2**30:.0f} GiB, driver {gpu['driver']}"
        )
    if not there["gpus"]:
        lines.append("GPU: none that torch can use")
    given = {k: v for k, v in there["environment"].items() if v is not None}
    lines.append(
        "environment: " + (", ".join(f"{k}={v}" for k, v in given.items()) or "nothing set")
    )
    lines.append(f"MuJoCo off-screen rendering: {there['mujoco_rendering']}")
    lines.append("")
    width = max((len(check.backend) for check in report.checks), default=0)
    lines.append(f"{'backend':{width}s}  {'device':7s}  {'precision':9s}  {'task':15s}  verdict")
    for c in report.checks:
        verdict = c.status if c.status == "ok" else f"{c.status.upper()}: {c.reason}"
        lines.append(
            f"{c.backend:{width}s}  {c.device:7s}  {c.precision:9s}  {c.task:15s}  {verdict}"
        )
    lines.append("")
    lines += [f"Note: {note}" for note in report.notes]
    lines += [f"Dispatch table: {path}" for path in report.tables]
    bad = [check for check in report.checks if check.status != "ok"]
    if bad:
        lines.append(
            f"{len(bad)} of {len(report.checks)} checks did not end well. Please report the lines "
            "above; on a GPU what did not pass is not used, on a CPU choose what acts with SORL_BACKEND, "
            "what trains with SORL_OPS, or another instruction set with SORL_CPU_ISA"
        )
    else:
        lines.append(f"All {len(report.checks)} checks agree with the definition.")
    return "\n".join(lines)
