"""`sorl-fast export`: a graph is made, written, run and compared, and only then put in its place."""

import os
from pathlib import Path
from typing import IO, Any

from ..act.choice import MAX_CANDIDATES, PolicyChoice
from ..act.policy_file import Policy, load
from ..act.rules import Rule, check_critic, rule_of
from ..act.schedule import check_fit, schedule_of
from ..atomic import write_file
from ..errors import BadInput
from .arguments import PRECISION
from .check import check
from .choose import MOST
from .graph import IR, OPSET
from .onnx import onnx_model
from .program import program_of
from .runtimes import RUNTIMES, installed


def export(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    steps: Any = None,
    candidates: int | None = None,
    rule: str | Rule | None = None,
    precision: str = PRECISION,
) -> str:
    """Write the sampler of a policy's file as one ONNX graph: see `onnx.onnx_model`.

    The file is written under a hidden name beside `out`, read back, run by every runtime that is
    installed, and takes its place only where all of them agree with the numpy Sampler.

    Parameters
    ----------
    path, out
        The policy's file, and the graph's.
    steps, candidates, rule
        As in `Sampler.act`; None: the policy's own. At most 4096 candidates, and 512 by a rule that
        compares pairs.
    precision
        fp32.

    Returns
    -------
    str
        What was written, in lines.

    Raises
    ------
    BadInput
        An argument is wrong, no runtime is installed, one disagrees, or the file cannot be written. What
        was at `out` is as it was.
    """
    if precision != PRECISION:
        raise BadInput(
            f"precision is {precision!r}, but a graph is exported in {PRECISION} only: leave it out, and "
            "let the runtime convert it"
        )
    policy = load(path)
    if policy.chunk > 1:
        raise BadInput(
            f"this policy returns chunks of {policy.chunk} actions, which a graph does not: act with it "
            "from Python, C or C++, or train one without --chunk"
        )
    way = way_of(policy, steps, candidates, rule)
    names = installed()
    if not names:
        raise BadInput(
            f"none of {', '.join(RUNTIMES)} is installed, so that the graph cannot be tried: pip install "
            "'sorl-fast[export]'"
        )
    data = onnx_model(policy, way)
    errors: dict[str, float] = {}

    def write(file: IO[bytes]) -> None:
        file.write(data)
        file.flush()
        written = Path(file.name).read_bytes()
        for name in names:
            errors[name] = check(policy, way, _make_run(name, written), name)

    write_file(out, write)
    return "\n".join(
        [
            f"{out}: {policy.env or 'a policy'}, {way}; opset {OPSET}, IR {IR}, {len(data)} bytes",
            f"inputs: {', '.join(_inputs(policy, way))}",
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


def _make_run(name: str, data: bytes) -> Any:
    try:
        return RUNTIMES[name](data)
    except Exception as err:  # a runtime raises what it likes
        raise BadInput(
            f"{name} cannot load the graph: {err}. Take another version of it; nothing was written"
        ) from err


def _inputs(policy: Policy, way: PolicyChoice) -> list[str]:
    """Return the graph's inputs with their shapes."""
    N, S, A = way.candidates, policy.draws, policy.act_dim
    found = [f"obs [B, {policy.obs_dim}]"]
    if program_of(policy, way.steps).draws:
        found.append(f"noise [B, {N}, {A}]" if S == 1 else f"noise [B, {N}, {S}, {A}]")
    return [*found, "u [B]"] if N > 1 and way.rule.draws else found
