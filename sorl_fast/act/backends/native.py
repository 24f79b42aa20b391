"""The native backend: `sorl_fast._native`, a C++ session over packed weights, seen as a `Session`.

Shape letters: B observations (rows), N candidates, O observation, A action.
"""

import json
import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cores import unpin
from ...errors import BadInput
from ..choice import PolicyChoice
from ..deadline import DeadlineInfo, Planned
from ..form import NAMES, RESIDUAL
from ..policy_file import Policy
from ..rules import ARGMAX, Rule
from ..schedule import Schedule, schedule_of
from ..session import Backend, Info, NoiseKey, Status, as_floats

_SAME_NAME = (
    *("obs_dim", "act_dim", "hidden", "depth", "ensemble", "m_disc", "m_btt", "chunk"),
    *("action_low", "action_high", "obs_mean", "obs_std", "actor", "critic"),
)


def import_native() -> Any:
    """Return the native module, or raise BadInput where this installation has none that loads."""
    try:
        return import_module("sorl_fast._native")
    except ImportError as err:
        raise BadInput(
            f"this installation of sorl-fast has no working native module ({err}): install a wheel, build "
            "it with g++ by `pip install -e .`, or choose backend numpy"
        ) from err


def make_model(native: Any, policy: Policy, precision: str, isa: str | None = None) -> Any:
    """Pack a policy for an instruction set; None: SORL_CPU_ISA's, or the fastest.

    Raises
    ------
    BadInput
        The instruction set is not there.
    """
    fields = {name: getattr(policy, name) for name in _SAME_NAME}
    fields |= {"q_min": policy.q_agg == "min", "precision": precision, "isa": isa}
    if (units := policy.action_map) is not None:
        fields |= {"map_low": units.low, "map_high": units.high}
    if (ood := policy.ood) is not None:
        fields |= {"ood_mean": ood.mean, "ood_whiten": ood.whiten, "ood_threshold": ood.threshold}
    if policy.form is not None:
        fields["form"] = json.dumps(policy.form.to_json())
    try:
        return native.Model(**fields)
    except ValueError as err:
        raise BadInput(str(err)) from None


class NativeSession:
    """One C++ session. Not for two threads at once.

    Parameters
    ----------
    policy
        Its weights are packed once for a precision and an instruction set, whoever asks.
    precision
        fp32, bf16 or int8.
    threads
        1 to 64. Above 1, the others spin for 200 us after a call and then park.

    Raises
    ------
    BadInput
        Threads is out of its bounds, or SORL_CPU_ISA names an instruction set that is not there.
    """

    def __init__(self, policy: Policy, precision: str, threads: int) -> None:
        native = import_native()
        isa = os.environ.get("SORL_CPU_ISA") or native.isas(precision)[-1]
        key = "native", precision, isa
        model = policy.once(key, lambda: make_model(native, policy, precision))
        if threads > 1:
            unpin()  # the session's threads may run where this one may
        try:
            self._session = native.Session(model, threads, 1, 1)
        except ValueError as err:
            raise BadInput(str(err)) from None
        self._act_dim = policy.act_dim
        self._own = policy.choice
        self._planned: tuple[Planned, ...] = ()
        self._counts = frozenset(policy.train_steps)
        # By which the session chooses, until `use` sets another one.
        self.rule = ARGMAX
        # What the C++ calls take as `steps` for each schedule that was used, and for the policy's own.
        self.numbers: dict[Schedule, int] = {schedule_of(count): count for count in self._counts}
        self.isa: str = model.isa
        # The bound C++ methods, for callers to whom a microsecond matters: `Sampler.act_into`, and
        # the common case of `Sampler.act`, (obs, steps, candidates, seed, call, row_offset) ->
        # actions, or None where a conversion, an error or a schedule's preparation is due.
        self.act_into = self._session.act_into
        self.act_plain = self._session.act

    def reset(self) -> None:
        """Forget the last good action."""
        self._session.reset()

    def use(self, rule: Rule) -> None:
        """Choose by a rule from now on."""
        if rule is not self.rule:
            self._session.set_rule(str(rule))
            self.rule = rule

    def number(self, steps: int | Schedule) -> int:
        """Return what the C++ calls take as `steps`, of a schedule that the policy takes.

        Its biases are folded where it is new: not for a control loop's calls.

        Raises
        ------
        BadInput
            This session has all schedules that it can keep.
        """
        if isinstance(steps, int) and steps in self._counts:
            return steps
        schedule = schedule_of(steps)
        if (known := self.numbers.get(schedule)) is None:
            try:
                known = self.numbers[schedule] = self._session.prepare(schedule.sizes)
            except ValueError as err:
                raise BadInput(str(err)) from None
        return known

    def prepare_deadline(self, ways: Sequence[PolicyChoice]) -> tuple[Planned, ...]:
        """Measure these ways, the best first, or the usual ones where there are none.

        Raises
        ------
        BadInput
            A way or the policy's form cannot be cut short.
        """
        own = self._own
        given = [(self.number(way.steps), way.candidates, str(way.rule)) for way in ways]
        usual = None if own is None else (own.steps.sizes, own.candidates, str(own.rule))
        try:
            rows = self._session.prepare_deadline(given, usual)
        except ValueError as err:
            raise BadInput(str(err)) from None
        rule = ARGMAX if own is None else own.rule
        found = list(ways)
        for steps, candidates, *_ in rows[len(found) :]:
            schedule = schedule_of(steps) if own is None or steps in self._counts else own.steps
            found.append(PolicyChoice(steps=schedule, candidates=candidates, rule=rule))
        costs = [[ns * 1e-3 for ns in row[2:]] for row in rows]
        self._planned = tuple(Planned(way, *us) for way, us in zip(found, costs, strict=True))
        return self._planned

    def act_by(
        self,
        obs: NDArray[np.float32],
        out: NDArray[np.float32],
        deadline_us: float,
        key: NoiseKey,
    ) -> DeadlineInfo:
        """Act on obs [O] within a deadline, into out [A]; see `Sampler.act`."""
        if not self._planned:
            raise BadInput(
                "no deadline was prepared: call prepare_deadline() once before the loop, which measures "
                "what a call takes"
            )
        try:
            way, evaluations, scored, candidate, q, status, us = self._session.act_by(
                obs, out, deadline_us, *key
            )
        except (TypeError, ValueError) as err:
            raise BadInput(str(err)) from None
        done = self._planned[way].way, evaluations, scored, us
        return DeadlineInfo(candidate, q, Status(status), *done)

    def array(self, name: str, value: Any) -> NDArray[np.float32]:
        """Return the caller's numbers as contiguous float32, or raise BadInput; see `Session.array`."""
        numbers = as_floats(name, value)
        return np.ascontiguousarray(numbers) if numbers.ndim else numbers

    def act(
        self,
        obs: Any,
        noise: Any | NoiseKey,
        candidates: int,
        steps: int | Schedule,
        want_q: bool,
        temperature: float = 0.0,
        rule: Rule = ARGMAX,
        draw: NoiseKey | None = None,
    ) -> tuple[Any, Info]:
        """Act on obs [B, O] with noise [B, N, A] or [B, N, S, A], or that of the key; see `Session.act`.

        Another rule or schedule than before is set first, and stays.
        """
        self.use(rule)
        number = self.number(steps)
        B = len(obs)
        action = np.empty((B, self._act_dim), np.float32)
        candidate = np.empty(B, np.int32)
        q = np.empty(B, np.float32) if want_q or (candidates > 1 and rule.reads_q) else None
        status = np.empty(B, np.uint32)
        key, z = (
            (noise, None) if isinstance(noise, NoiseKey) else (draw or NoiseKey(0, 0, 0), noise)
        )
        try:
            self.act_into(
                obs, action, number, candidates, *key, z, candidate, q, status, temperature
            )
        except ValueError as err:
            raise BadInput(str(err)) from None
        if q is None:
            q = np.full(B, np.nan, np.float32)
        return action, Info(candidate.astype(np.int64), q, status)


def _why_not(precision: str) -> str:
    try:
        import_native()
    except BadInput as err:
        return str(err)
    return ""


BACKEND = Backend(
    name="native",
    precisions=("fp32", "bf16", "int8"),
    forms=tuple(name for name in NAMES if name != RESIDUAL),
    why_not=_why_not,
    make=NativeSession,
)
