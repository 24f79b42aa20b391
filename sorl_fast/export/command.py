"""`sorl-fast export`: a graph is made, written, run and compared, and only then put in its place."""

import os
from pathlib import Path
from typing import IO, Any

from ..act.choice import MAX_CANDIDATES, PolicyChoice
from ..act.form import is_residual
from ..act.policy_file import Policy, load
from ..act.rules import Rule, check_critic, rule_of
from ..act.schedule import check_fit, schedule_of
from ..atomic import write_file
from ..errors import BadInput
from .arguments import PRECISIONS, SOURCES
from .check import check, input_names
from .choose import MOST
from .graph import IR, OPSET
from .onnx import onnx_model
from .runtimes import ABLE, RUNTIMES, installed


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    steps: Any = None,
    candidates: int | None = None,
    rule: str | Rule | None = None,
    noise: str = SOURCES[0],
    precision: str = PRECISIONS[0],
) -> str:
    """Write the sampler of a policy's file as one ONNX graph: see `onnx.onnx_model`.

    The file is written under a hidden name beside `out`, read back, run by every runtime that is
    installed and has the precision, and takes its place only where all of them agree with the numpy
    Sampler.

    Parameters
    ----------
    path, out
        The policy's file, and the graph's.
    steps, candidates, rule
        As in `Sampler.act`; None: the policy's own. At most 4096 candidates, and 512 by a rule that
        compares pairs.
    noise
        input: the caller gives it; philox: the graph draws a seed's.
    precision
        fp32; or bf16 or int8, which are judged by wider bounds (`check.BOUNDS`), and which the residual
        diffusion does not have.

    Returns
    -------
    str
        What was written, in lines.

    Raises
    ------
    BadInput
        An argument is wrong, no runtime that has the precision is installed, one disagrees, or the file
        cannot be written. What was at `out` is as it was.
    """
    for name, value, known in (("noise", noise, SOURCES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise BadInput(
                f"{name} is {value!r}, but must be one of {', '.join(known)}: set --{name}"
            )
    policy = load(path)
    way = way_of(policy, steps, candidates, rule)
    if precision != "fp32" and is_residual(policy.form):
        raise BadInput(
            f"precision is {precision!r}, but a residual diffusion is exported in fp32 only, as it acts: "
            "leave --precision out"
        )
    names = _judges(precision)
    data = onnx_model(policy, way, noise, precision)
    errors: dict[str, float] = {}

    def write(file: IO[bytes]) -> None:
        file.write(data)
        file.flush()
        written = Path(file.name).read_bytes()
        for name in names:
            errors[name] = check(policy, way, _make_run(name, written), name, noise, precision)

    write_file(out, write)
    return "\n".join(
        [
            f"{out}: {policy.env or 'a policy'}, {way}, {precision}; "
            f"opset {OPSET}, IR {IR}, {len(data)} bytes",
            f"inputs: {', '.join(_inputs(policy, way, noise))}",
            f"outputs: actions [B, {policy.act_dim}], good [B] (false: hold your last action)",
            *(f"{name} agrees with numpy within {error:.2g}" for name, error in errors.items()),
        ]
    )


def way_of(
    policy: Policy, steps: Any, candidates: int | None, rule: str | Rule | None
) -> PolicyChoice:
    """Return how the graph acts, checked: what is None is the policy's own."""
    own = policy.own
    schedule = own.steps if steps is None else schedule_of(steps)
    check_fit(schedule, policy.finest, policy.train_steps)
    N = own.candidates if candidates is None else candidates
    named = own.rule if rule is None else rule_of(rule)
    pairs = named.name not in ("argmax", "soft")
    most = MOST if pairs else MAX_CANDIDATES
    if not 1 <= N <= most:
        why = f" by {named}, which compares pairs" if pairs else ""
        raise BadInput(
            f"candidates is {N}, but must be an integer from 1 to {most}{why}: set --candidates"
        )
    check_critic(named, N, bool(policy.critic))
    return PolicyChoice(steps=schedule, candidates=N, rule=named)


def _judges(precision: str) -> list[str]:
    """Return the runtimes that can try a graph, or raise BadInput where there is none."""
    able = ABLE[precision]
    if names := [name for name in installed() if name in able]:
        return names
    remedy = "'sorl-fast[export]'" if len(able) > 1 else able[0]
    raise BadInput(
        f"none of {', '.join(able)} is installed, so that a graph in {precision} cannot be tried: pip "
        f"install {remedy}"
    )


def _make_run(name: str, data: bytes) -> Any:
    try:
        return RUNTIMES[name](data)
    except Exception as err:  # a runtime raises what it likes
        raise BadInput(
            f"{name} cannot load the graph: {err}. Take another version of it; nothing was written"
        ) from err


def _inputs(policy: Policy, way: PolicyChoice, noise: str) -> list[str]:
    """Return the graph's inputs with their shapes."""
    N, S, A = way.candidates, policy.draws, policy.act_dim
    shapes = {"obs": f"[B, {policy.obs_dim}]", "u": "[B]", "seed": "[2]", "call": "[1]"}
    shapes["noise"] = f"[B, {N}, {A}]" if S == 1 else f"[B, {N}, {S}, {A}]"
    return [f"{name} {shapes[name]}" for name in input_names(policy, way, noise)]
