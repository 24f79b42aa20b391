"""Actions from a trained policy, always finite and always within its bounds.

The arguments are checked here, once. What a call computes is defined in `reference`; a `session` does
it with one of the `backends`, chosen when the Sampler is made.

Shape letters: B observations (rows), N candidates, O observation, A action, h actions of a chunk, M Euler
steps. A policy whose `chunk` h is above 1 returns [h, A] where others return [A]: the actions of h ticks.
"""

import math
import operator
import os
import secrets
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from . import policy_file
from .backends import BACKENDS
from .choice import PolicyChoice
from .deadline import DeadlineInfo, Planned, microseconds, refuse_beside
from .form import name_of
from .policy_file import Policy
from .replay import Replaying
from .rules import ARGMAX, Rule, check_critic, rule_of
from .schedule import MAX_STEPS, Schedule, check_fit, schedule_of
from .session import Info, NoiseKey, Session, Status

__all__ = ["BACKENDS", "DeadlineInfo", "Info", "Planned", "Sampler", "Session", "Status"]

KNOWN_PRECISIONS = tuple(dict.fromkeys(p for has in BACKENDS.values() for p in has.precisions))


class Sampler(Replaying):
    """A policy ready to act: one policy, one session. For several threads, one Sampler each.

    Parameters
    ----------
    policy
        The trained policy; samplers may share it.
    backend
        numpy (the definition), native, torch or triton. None: what the environment variable
        SORL_BACKEND names, or else native where it is installed and runs the policy's form, numpy where
        not.
    precision
        fp32, or what products read where the backend has it: bf16 (native, triton), int8 (native:
        hidden layers in 8 bits, other weights in bf16), tf32 or fp16 (triton).
    threads
        Threads of the native backend, at least 1. numpy and torch take theirs from the process
        (OMP_NUM_THREADS, `torch.set_num_threads`), which is not this object's to change.

    Raises
    ------
    BadInput
        The backend, precision or thread count is unknown, this build does not have it, or the backend
        does not run the policy's form.

    Examples
    --------
    >>> sampler = Sampler.load("run/policy.safetensors")       # doctest: +SKIP
    >>> action = sampler.act(obs, steps=4, candidates=8)       # doctest: +SKIP
    """

    def __init__(
        self,
        policy: Policy,
        backend: str | None = None,
        precision: str = "fp32",
        threads: int = 1,
    ) -> None:
        if not isinstance(policy, Policy):
            raise BadInput(
                f"policy is a {type(policy).__name__}, but must be a Policy: Sampler(policy), or "
                "Sampler.load(path) for a file"
            )
        self.policy = policy
        self.backend = _choose(backend, policy)
        self._session = _make_session(self.backend, policy, precision, threads)
        # the native backend's, which has more: the whole of a call in one step
        self._native: Any = self._session if self.backend == "native" else None
        own = policy.own
        self._rule = (
            ARGMAX if own.rule == ARGMAX else own.rule
        )  # as a session tells it by its identity
        self._steps: int | Schedule = own.steps.count if own.steps.is_even else own.steps
        self._candidates = own.candidates
        self._seed = secrets.randbits(64)
        self._calls = 0
        super().__init__(policy.action_shape)

    @property
    def isa(self) -> str:
        """The native backend's instruction set, such as avx512; "" with another backend."""
        return str(getattr(self._session, "isa", ""))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Sampler cannot be copied or sent to another process, for its session is of this one: send "
            "its policy, or the file's path, and make another Sampler there"
        )

    def reset(self) -> None:
        """Forget the last good action, as at the start of an episode: held rows get 0, clipped.

        What `replay` has left of a chunk is dropped, too.
        """
        self._session.reset()
        self._replay.drop()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: str | None = None,
        precision: str = "fp32",
        threads: int = 1,
    ) -> Self:
        """Make a Sampler from a policy file; see the class, and `policy_file.load` for its errors."""
        return cls(policy_file.load(path), backend, precision, threads)

    def act(
        self,
        obs: Any,
        steps: Any = None,
        candidates: int | None = None,
        *,
        rule: str | Rule | None = None,
        seed: int | None = None,
        call: int | None = None,
        noise: Any = None,
        row_offset: int = 0,
        return_info: bool = False,
        temperature: float | None = None,
        deadline_us: float | None = None,
    ) -> Any:
        """Return the action, or one chosen of N actions, for one observation or a batch.

        A non-finite observation or result never raises: that row's action is the last good action of
        this Sampler as it was before the call (before any: 0 clipped to the bounds), and its status
        says so. After the call the last good action is that of the highest good row. Of a chunk it is
        the last action, and a row without a good chunk gets it h times.

        Parameters
        ----------
        obs
            [O] or [B, O], B at least 0; real floating point or integer, converted to float32. With the
            torch and triton backends, a tensor gives tensors, on its device.
        steps
            M Euler steps, or step sizes that sum to 1, such as [0.5, 0.25, 0.25] or "1/2,1/4,1/4", at
            most 2 m_disc of them; of a policy with a form one of `policy.train_steps`. None: the
            policy's own: 1, or else the smallest that there is, unless its file says otherwise.
        candidates
            N, at least 1: N actions are sampled, and one is chosen. None: the policy's own, 1 unless its
            file says otherwise.
        rule
            How it is chosen: argmax, the highest Q; medoid, nearest, better, soft, each with a parameter
            after a colon if need be; or centre, the only one for a policy without critics. See
            `rules.Rule`. None: the policy's own, argmax unless its file says otherwise.
        seed
            In [0, 2^64). The same seed gives the same action for ever. None: this Sampler's own seed,
            drawn when it was made, and a count of the calls.
        call
            With a seed: number of the call, at least 0, modulo 2^32; another number, other noise.
            None: 0.
        noise
            The caller's own standard normal noise (in no units), [N, A] for one observation and
            [B, N, A] for a batch, instead of a seed, which only a rule that draws (better, soft) then
            reads; [N, S, A] and [B, N, S, A] where the policy draws S > 1 numbers (`policy.draws`). Here A
            is `policy.act_dim`, all numbers of a chunk. A NaN in what is read of it counts as a
            non-finite result.
        row_offset
            Number of the first row, so that a batch may be split: rows b of a call with row_offset = r
            get the noise of rows r + b. No effect with `noise`, unless the rule draws.
        return_info
            Also return an `Info`. The action is the same.
        temperature
            What multiplies the noise that the policy's form adds, at least 0; None: the policy's own.
            Refused for Euler steps and for an actor that reads its noise, which add none.
        deadline_us
            Microseconds from the call within which one action for one observation is wanted, after
            `prepare_deadline`, which has measured the ways to act: the first that takes no longer, else
            the cheapest, is begun, and cut short if the time runs out all the same. The status then has
            CUT_SHORT, and the action depends on the clock. Steps, candidates, rule, noise and temperature
            are not given then, and the info is a `DeadlineInfo`. Native backend only.

        Returns
        -------
        actions or (actions, Info)
            float32 [A] or [B, A], of a policy with chunks [h, A] or [B, h, A], in the units of the
            policy's `action_map` where it has one: within `policy.bounds`.

        Raises
        ------
        BadInput
            A shape, dtype or number is wrong; the message names it, the bound and the remedy.
        """
        if deadline_us is not None:
            refuse_beside(
                {"steps": steps, "candidates": candidates, "rule": rule, "noise": noise}
                | {"temperature": temperature}
            )
            x = self._session.array("obs", obs)
            out = np.empty(self.policy.act_dim, np.float32)
            noise_key = self._key(seed, call, _integer("row_offset", row_offset, 0, 2**32))
            done = self._by(x, out, deadline_us, noise_key)
            action = self._split(out)
            return (action, done) if return_info else action
        steps = self._steps if steps is None else steps
        candidates = self._candidates if candidates is None else candidates
        rule = self._rule if rule is None else _named(rule) if type(rule) is str else rule
        native = self._native
        plain_call = noise is None and temperature is None and not return_info
        if native is not None and plain_call and (rule is native.rule or rule == native.rule):
            own = seed is None and call is None
            key = (
                (self._seed, self._calls & 0xFFFFFFFF)
                if own
                else (seed, 0 if call is None else call)
            )
            try:
                plain = native.act_plain(obs, self._number(steps), candidates, *key, row_offset)
            except ValueError:
                plain = None  # what is wrong is said below
            if plain is not None:
                self._calls += own
                return plain if len(self._shape) == 1 else self._split(plain)
        action, info = self._call(
            *(obs, steps, candidates, rule, seed, call, noise, row_offset, return_info, temperature)
        )
        return (action, info) if return_info else action

    def _split(self, actions: Any) -> Any:
        """Return the numbers of calls [..., h A] as actions [..., h, A]; those of no chunk as they are."""
        return actions.reshape((*actions.shape[:-1], *self._shape))

    def _call(
        self,
        obs: Any,
        steps: Any,
        candidates: int | None,
        rule: Any,
        seed: int | None,
        call: int | None,
        noise: Any,
        row_offset: int,
        want_q: bool,
        temperature: float | None,
    ) -> tuple[Any, Info]:
        """Make a call by arguments as they were given; return the actions and their `Info`."""
        steps = self._steps if steps is None else steps
        candidates = self._candidates if candidates is None else candidates
        rule = self._rule if rule is None else rule
        x = self._session.array("obs", obs)
        O = self.policy.obs_dim
        single = x.ndim == 1
        if x.ndim not in (1, 2) or x.shape[-1] != O:
            raise BadInput(
                f"obs has the shape {list(x.shape)}, but must be [{O}] or [B, {O}]: this policy was "
                f"trained on {O} numbers an observation"
            )
        if single:
            x = x[None]
        steps = self._check_steps(steps)
        candidates = _integer("candidates", candidates, 1, 2**31)
        rule = self._check_rule(rule, candidates)
        factor = self._check_temperature(temperature)
        row_offset = _integer("row_offset", row_offset, 0, 2**32 - max(len(x), 1) + 1)
        source: Any
        if noise is None:
            source = draw = self._key(seed, call, row_offset)
        elif rule.draws:
            source = self._noise(noise, len(x), candidates, single)
            draw = self._key(seed, call, row_offset)
        elif seed is not None or call is not None:
            raise BadInput(
                f"noise is given together with seed or call, which {rule} does not read: give one or the "
                "other"
            )
        else:
            source, draw = self._noise(noise, len(x), candidates, single), None
        action, info = self._session.act(
            *(x, source, candidates, steps, want_q, factor, rule),
            draw if rule.draws else None,
        )
        action = self._split(action)
        if not _is_tensor(obs):
            status = np.asarray(info.status).astype(np.uint32, copy=False)
            action = np.asarray(action)
            info = Info(np.asarray(info.candidate), np.asarray(info.q), status)
        if single:
            action, info = action[0], Info(*(part[0] for part in info))
        if single and isinstance(action, np.ndarray):
            info = Info(int(info.candidate), float(info.q), Status(int(info.status)))
        return action, info

    def act_into(
        self,
        obs: NDArray[np.float32],
        out: NDArray[np.float32],
        steps: Any = None,
        candidates: int | None = None,
        *,
        rule: str | Rule | None = None,
        seed: int | None = None,
        call: int = 0,
        noise: NDArray[np.float32] | None = None,
        row_offset: int = 0,
        status: NDArray[np.uint32] | None = None,
        deadline_us: float | None = None,
    ) -> DeadlineInfo | None:
        """Write what `act` would return into the caller's own memory, in the least time.

        Native backend only. The arrays are C-contiguous and of the exact dtype; nothing is converted
        or copied. After the first call of a size and a schedule nothing is allocated either, unless calls
        of many rows and calls of many candidates alternate whose product is above 2^22. Steps named by an
        integer or a `Schedule`, and a rule named as in the call before, cost least.

        Parameters
        ----------
        obs
            float32 [O] or [B, O].
        out
            float32 [A] or [B, A], of a policy with chunks [h, A] or [B, h, A]; written.
        steps, candidates, rule, seed, row_offset
            As in `act`.
        call
            In [0, 2^32); read only with a seed, for without one this Sampler counts its calls.
        noise
            float32 [N, A] or [B, N, A] to be used instead of the seed's, or None; [N, S, A] or
            [B, N, S, A] where the policy draws S > 1 numbers.
        status
            uint32 [B], written, or None.
        deadline_us
            As in `act`, of obs [O] and out [A]; the `DeadlineInfo` is returned, status is not written.

        Raises
        ------
        BadInput
            The backend is another one, or a number, shape or dtype is wrong.
        """
        native = self._needs_native("act_into")
        if len(self._shape) > 1:
            out = self._flat(out)
        if deadline_us is not None:
            refuse_beside({"steps": steps, "candidates": candidates, "rule": rule, "noise": noise})
            noise_key = self._key(seed, None if seed is None else call, row_offset)
            return self._by(obs, out, deadline_us, noise_key)
        M: Any = self._steps if steps is None else steps
        N = self._candidates if candidates is None else candidates
        rule = self._rule if rule is None else _named(rule) if type(rule) is str else rule
        if rule is not native.rule:
            native.use(self._check_rule(rule, _integer("candidates", N, 1, 2**31)))
        own = seed is None
        if own:
            seed, call = self._seed, self._calls & 0xFFFFFFFF
        more = N, seed, call, row_offset, noise, None, None, status
        try:
            native.act_into(obs, out, self._number(M), *more)
        except (TypeError, ValueError):
            number = native.number(self._check_steps(M))  # which prepares a schedule that is new
            try:
                native.act_into(obs, out, number, *more)
            except (TypeError, ValueError) as err:
                for name, value, low, end in (
                    ("candidates", N, 1, 2**31),
                    ("seed", seed, 0, 2**64),
                    ("call", call, 0, 2**32),
                    ("row_offset", row_offset, 0, 2**32),
                ):
                    _integer(name, value, low, end)
                raise BadInput(str(err)) from None
        self._calls += own
        return None

    def prepare_deadline(self, ways: Sequence[PolicyChoice] = ()) -> tuple[Planned, ...]:
        """Measure the ways to act that a call with `deadline_us` chooses from.

        Takes up to some seconds: for before the loop. What is measured is this Sampler, on the core it is
        on, with whatever else runs there. Native backend only.

        Parameters
        ----------
        ways
            The best first; `recommend.by_success` orders those of a run's evaluation. None: the
            policy's own and the cheaper ones by its own rule, more steps before more candidates; of a
            policy that has no choice of its own all step counts, of 4, 2 and 1 candidates.

        Returns
        -------
        tuple of Planned
            The ways in their order, with their costs.

        Raises
        ------
        BadInput
            The backend is another one, a way is none of the policy's, or its form is a diffusion, which
            cannot be cut short.
        """
        policy, native = self.policy, self._needs_native("a deadline")
        for way in ways:
            if not isinstance(way, PolicyChoice):
                raise BadInput(f"ways has a {type(way).__name__}, but must be PolicyChoices")
            way.check(policy.finest, policy.train_steps, bool(policy.critic))
        planned: tuple[Planned, ...] = native.prepare_deadline(ways)
        return planned

    def _by(self, obs: Any, out: Any, deadline_us: float, key: NoiseKey) -> DeadlineInfo:
        native = self._needs_native("a deadline")
        done: DeadlineInfo = native.act_by(obs, out, microseconds(deadline_us), key)
        return done

    def _needs_native(self, what: str) -> Any:
        if self._native is None:
            raise BadInput(
                f"{what} needs the native backend, but this Sampler's is {self.backend!r}: load it with "
                "backend='native'"
            )
        return self._native

    def _flat(self, out: Any) -> Any:
        """Return a view of the caller's memory for chunks as one of their numbers, or raise BadInput."""
        h, A = self._shape
        if not isinstance(out, np.ndarray) or out.ndim not in (2, 3) or out.shape[-2:] != (h, A):
            shape = list(out.shape) if isinstance(out, np.ndarray) else type(out).__name__
            raise BadInput(f"out has the shape {shape}, but must be [{h}, {A}] or [B, {h}, {A}]")
        if not out.flags.c_contiguous:
            raise BadInput("out is not C-contiguous: give memory of its own, such as np.empty's")
        return out.reshape((*out.shape[:-2], h * A))

    def _number(self, steps: Any) -> int | None:
        """Return what the native session knows these steps by; None: it may not know them yet."""
        if type(steps) is int:
            return steps if steps <= MAX_STEPS else None
        known: int | None = self._native.numbers.get(steps) if type(steps) is Schedule else None
        return known

    def _check_steps(self, steps: Any) -> int | Schedule:
        """Return M where the steps are equal, else the schedule: what the session takes."""
        schedule, policy = schedule_of(steps), self.policy
        check_fit(schedule, policy.finest, policy.train_steps)
        return schedule.count if schedule.is_even else schedule

    def _check_rule(self, value: Any, candidates: int) -> Rule:
        rule = rule_of(value)
        check_critic(rule, candidates, bool(self.policy.critic))
        # The caller's own object where it is written so: a native session tells a rule by its identity.
        return value if isinstance(value, Rule) and str(value) == str(rule) else rule

    def _check_temperature(self, value: float | None) -> float:
        if value is None:
            return self.policy.temperature
        form = self.policy.form
        if form is None or form.own_temperature is None:
            raise BadInput(
                f"temperature is {value!r}, but this policy adds no noise to what it computes (its form "
                f"is {name_of(form)}): leave temperature out"
            )
        try:
            number = float(value)
        except (OverflowError, TypeError, ValueError):
            number = math.nan
        if not 0 <= number < 2.0**127:
            raise BadInput(
                f"temperature is {value!r}, but must be a finite number of at least 0: set temperature="
            )
        return number

    def _key(self, seed: int | None, call: int | None, row_offset: int) -> NoiseKey:
        """Return what the caller's seed and call, checked, or this Sampler's own, make of the noise."""
        if seed is None:
            if call is not None:
                raise BadInput(f"call is {call!r} without a seed: give seed= too, or neither")
            self._calls += 1
            return NoiseKey(self._seed, (self._calls - 1) % 2**32, row_offset)
        seed = _integer("seed", seed, 0, 2**64)
        number = 0 if call is None else _integer("call", call, 0, 2**64)
        return NoiseKey(seed, number % 2**32, row_offset)

    def _noise(self, noise: Any, rows: int, candidates: int, single: bool) -> Any:
        """Return the caller's noise [B, N, A] or [B, N, S, A], checked."""
        z = self._session.array("noise", noise)
        draws = self.policy.draws
        shape = ([] if single else [rows]) + [candidates] + [draws] * (draws > 1)
        shape += [self.policy.act_dim]
        if list(z.shape) != shape:
            raise BadInput(
                f"noise has the shape {list(z.shape)}, but must be {shape}: "
                f"{'' if single else 'observations, '}candidates, {'draws, ' * (draws > 1)}"
                "action components"
            )
        return z[None] if single else z


@lru_cache(64)
def _named(rule: str) -> Rule:
    return rule_of(rule)


def _choose(backend: str | None, policy: Policy) -> str:
    """Decide the backend: the argument, or else SORL_BACKEND, or else the fastest on a CPU."""
    origin, name = "backend", backend
    if name is None:
        origin, name = "the environment variable SORL_BACKEND", os.environ.get("SORL_BACKEND")
    if not name:
        return fastest(policy)
    if name not in BACKENDS:
        raise BadInput(f"{origin} is {name!r}, but must be one of {', '.join(BACKENDS)}")
    return name


def fastest(policy: Policy) -> str:
    """Return the fastest backend for one observation that is installed, needs no GPU and runs the form."""
    runs = name_of(policy.form) in BACKENDS["native"].forms
    return "native" if runs and find_spec("sorl_fast._native") is not None else "numpy"


def _make_session(name: str, policy: Policy, precision: str, threads: int) -> Session:
    """Make the chosen backend's session, or say why it cannot serve."""
    if precision not in KNOWN_PRECISIONS:
        known = ", ".join(KNOWN_PRECISIONS)
        raise BadInput(f"precision is {precision!r}, but must be one of {known}")
    _integer("threads", threads, 1, 2**31)
    backend = BACKENDS[name]
    if (form := name_of(policy.form)) not in backend.forms:
        able = ", ".join(b.name for b in BACKENDS.values() if form in b.forms)
        raise BadInput(
            f"backend is {name!r}, which does not run a policy of the form {form!r}: choose backend "
            f"{able}, or leave it out"
        )
    if precision not in backend.precisions:
        has = ", ".join(backend.precisions)
        raise BadInput(f"precision is {precision!r}, but the {name} backend has {has} only")
    if why := backend.why_not(precision):
        raise BadInput(why)
    return backend.make(policy, precision, threads)


def _is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor, without importing torch."""
    return any(f"{c.__module__}.{c.__name__}" == "torch.Tensor" for c in type(value).__mro__)


def _integer(name: str, value: Any, low: int, end: int) -> int:
    """Return `value` as an int in [low, end)."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number < end:
        bound = f"from {low} to {end - 1}"
        raise BadInput(f"{name} is {value!r}, but must be an integer {bound}. Set {name}=")
    return number
