"""The triton backend: the policy on a GPU, a CUDA graph for every size of call.

How a call is computed, by one kernel or by PyTorch's products, `ops.sampling_implementation` says. What
a graph reads and nobody gives, the noise's key and the last good action, lies where it is.

Shape letters: B observations (rows), N candidates, A action, M Euler steps.
"""

import contextlib
import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from ...errors import BadInput
from ..form import NAMES, RESIDUAL, Diffusion, Direct, Form, Tanh
from ..policy_file import Policy
from ..reference import plan_for
from ..rules import ARGMAX, Rule, scale_of
from ..schedule import Schedule, schedule_of
from ..session import Backend, Info, NoiseKey, Session
from .torch import TorchSession, why_not

KEPT = 16  # sizes of call whose graphs are kept


class Call(NamedTuple):
    """What a recording is of, beside its tensors."""

    candidates: int
    steps: Schedule
    want_q: bool
    rule: Rule  # argmax where there is nothing to choose


def schedule_for(policy: Policy, steps: Schedule) -> Any:
    """Return the `ops.Schedule` of a policy's steps; None: M equal ones of Euler's, no finer than trained.

    Parameters
    ----------
    policy
        Of any form but a residual score network's.
    steps
        Such as it takes.
    """
    from ...ops import euler

    if (of_form := _of_form(policy.form)) is not None:
        return of_form
    plan = plan_for(policy, steps)
    trained = policy.finest is None or steps.count <= policy.finest
    return None if steps.is_even and trained else euler(*plan)


def _of_form(form: Form | None) -> Any:
    """Return the `ops.Schedule` of a form; None of Euler's steps."""
    from ...ops import Schedule

    if isinstance(form, Direct):
        one = ((0.0,), (0.0,), (0.0,), (1.0,), (0.0 if form.reads_noise else form.noise_scale,))
        squash = isinstance(form, Tanh)
        return Schedule(*one, begins=form.reads_noise, squash=squash, noise_clip=form.noise_clip)
    if isinstance(form, Diffusion):
        M = len(form.times)
        scales = form.z_scales, form.v_scales, form.noise_scales
        return Schedule(form.times, (0.0,) * M, *scales, clip=form.clip)
    return None


class TritonSession(TorchSession):
    """One policy on one or more GPUs. Not for two threads at once.

    A tensor is computed with on its own GPU; an array, or a tensor of the CPU, on the current one.

    Parameters
    ----------
    policy
        Its weights are copied and packed once for a GPU and a precision, whoever asks.
    precision
        fp32, tf32, fp16 or bf16.
    recorder
        Makes the recorder of a device's graphs, or None for no graphs; for tests. None: CUDA's.

    Raises
    ------
    BadInput
        torch, triton or a GPU is missing, or triton interprets and has no right bf16.
    """

    def __init__(
        self, policy: Policy, precision: str, recorder: Callable[[Any], Any] | None = None
    ) -> None:
        self._places: dict[Any, _Place] = {}
        self._place: _Place | None = None
        super().__init__(policy)
        from ... import ops

        self._device = ops.triton_device(precision)
        from ...ops import graphs

        self._ops: Any = ops
        self._captured: Any = graphs.Captured
        self._recorder = recorder or (
            lambda device: graphs.CudaRecorder(device) if device.type == "cuda" else None
        )
        self._precision = precision

    def reset(self) -> None:
        """Forget the last good action, also where recorded graphs read it."""
        super().reset()
        if self._place is not None:
            torch = self._torch
            with torch.inference_mode(False), torch.no_grad():
                place = self._at(self._place.last.device)
                place.last.copy_(self._last)

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
        """Act on obs [B, O] with noise [B, N, (S,) A] or that of the key; see `Session.act`."""
        torch = self._torch
        device = obs.device if obs.is_cuda else self._device
        guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        # what is made here is written again by later calls, which inference mode would forbid them
        with guard, torch.inference_mode(False), torch.no_grad():
            place = self._at(device)
            inputs = [obs.to(device)]
            if self._policy.form is not None:
                place.temperature.fill_(temperature)
            key = noise if isinstance(noise, NoiseKey) else draw
            if key is not None:
                for part, number in zip(place.key_parts, key, strict=True):
                    part.fill_(number - 2**64 if number >= 2**63 else number)
            if not isinstance(noise, NoiseKey):
                inputs.append(noise.to(device))
            rule = rule if candidates > 1 else ARGMAX
            call = Call(candidates, schedule_of(steps), want_q, rule)
            action, *info = self._run(place, inputs, call)
            return action.to(obs.device), Info(*(x.to(obs.device) for x in info))

    def _at(self, device: Any) -> "_Place":
        """Return what the session has on a device; the last good action moves there."""
        place = self._places.get(device)
        if place is None:
            last = self._last.to(device, copy=True)
            key = self._torch.zeros(3, dtype=self._torch.int64, device=device)
            of = self._policy
            w = self._torch.from_numpy(scale_of(of.action_low, of.action_high)).to(device)
            place = self._places[device] = _Place(key, last, w, self._recorder(device))
        if device.type == "cuda" and not self._in_users_graph(device):
            place.follow(self._torch.cuda.current_stream(device))
        if self._place is not None and self._place is not place:
            place.last.copy_(self._place.last)
        self._place = place
        return place

    def _in_users_graph(self, device: Any) -> bool:
        """Whether the caller is recording a CUDA graph."""
        return device.type == "cuda" and self._torch.cuda.is_current_stream_capturing()

    def _run(self, place: "_Place", inputs: list[Any], call: Call) -> Any:
        """Return the action and the parts of Info, by a graph if there may be one."""
        device = inputs[0].device
        if place.recorder is None or self._in_users_graph(device):
            return self._function(place, len(inputs[0]), call)(*inputs)
        size = (len(inputs[0]), len(inputs), *call)
        graph = place.graphs.get(size)
        if graph is not None:
            place.graphs.move_to_end(size)
            return [x.clone() for x in graph(*inputs)]
        function = self._function(place, len(inputs[0]), call)
        before = place.last.clone()
        try:
            graph = place.graphs[size] = self._captured(function, inputs, place.recorder)
        except RuntimeError as err:
            warnings.warn(
                f"calls of this Sampler cannot be recorded as CUDA graphs, and will take longer: {err}",
                RuntimeWarning,
                stacklevel=5,
            )
            place.recorder = None
            place.last.copy_(before)
            return function(*inputs)
        while len(place.graphs) > KEPT:
            place.graphs.popitem(last=False)
        return [x.clone() for x in graph.first]

    def _function(self, place: "_Place", rows: int, call: Call) -> Any:
        """Return what computes a call of a size, everything ready that it reads."""
        device = place.last.device
        actor, critic, *_ = self._on(device)
        schedule = schedule_for(self._policy, call.steps)
        implementation = self._ops.sampling_implementation(
            *(actor, critic, rows * call.candidates, self._precision, device, schedule is not None)
        )
        kind = implementation, None if schedule is None else call.steps
        if kind not in place.networks:
            # a graph would pack at each replay only, not now; the reference packs nothing
            if implementation != "reference" and self._in_users_graph(device):
                raise BadInput(
                    f"the first call of {rows} rows, {call.candidates} candidates and steps {call.steps} "
                    "cannot be inside the recording of a CUDA graph: make one such call before it"
                )
            key = "triton", device, implementation, self._precision
            networks = self._policy.once(
                key, lambda: self._prepare(device, implementation, actor, critic)
            )
            # tables of steps stay: recorded graphs, the caller's too, read them
            place.networks[kind] = networks.following(schedule)
        return functools.partial(self._compute, place, place.networks[kind], call)

    def _prepare(self, device: Any, implementation: str, actor: Any, critic: Any) -> Any:
        networks = self._ops.prepare(
            *(implementation, actor, critic, self._policy.obs_dim, self._precision)
        )
        if device.type == "cuda" and implementation != "reference":
            # other samplers read them on other streams
            self._torch.cuda.current_stream(device).synchronize()
        return networks

    def _compute(
        self,
        place: "_Place",
        networks: Any,
        call: Call,
        obs: Any,
        noise: Any = None,
    ) -> Any:
        _, _, low, high, *_ = self._on(obs.device)
        policy, N = self._policy, call.candidates
        options: dict[str, Any] = {"want_q": call.want_q, "temperature": place.temperature}
        if call.rule != ARGMAX:
            options["rule"] = self._rule_on(place, call.rule)
        if noise is None and networks.draws:
            noise, options["candidates"] = place.key, N
        elif noise is None:
            noise = self._ops.normals(place.key, len(obs), N, policy.act_dim, policy.draws)
        arguments = noise, call.steps.count, policy.q_agg, low, high
        best = networks.best_of_n(self._normalised(obs), *arguments, **options)
        action, info, last = self._settle(obs, best, place.last)
        place.last.copy_(last)
        return action, *info

    def _rule_on(self, place: "_Place", rule: Rule) -> Any:
        """Return a rule as the operations take it."""
        p = rule.parameter or Fraction(1)
        key = place.key if rule.draws else None
        return self._ops.Rule(rule.name, (p.numerator, p.denominator), place.w, key)


class _Place:
    """What a session has on one device."""

    def __init__(self, key: Any, last: Any, w: Any, recorder: Any) -> None:
        self.key = key  # int64 [3]: seed, call, row_offset, of the noise and of what a rule draws
        self.key_parts = key.unbind()
        self.temperature = key.new_zeros((), dtype=last.dtype)  # what multiplies a form's noise
        self.last = last  # [A], the last good action
        self.w = w  # [A], what a rule measures distances in
        self.recorder = recorder  # of graphs; None: calls are not recorded
        self._stream: Any = None  # that of the last call
        self.graphs: OrderedDict[tuple[Any, ...], Any] = OrderedDict()  # by size of call
        # the policy's, by the implementation that reads them and the steps that are a schedule
        self.networks: dict[tuple[str, Schedule | None], Any] = {}

    def follow(self, stream: Any) -> None:
        """Let the stream of this call wait for that of the last: what is here is here once."""
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
        self._stream = stream


def _why_not(precision: str) -> str:
    if why := why_not("triton"):
        return why
    from ... import ops

    try:
        ops.triton_device(precision)
    except BadInput as err:
        return str(err)
    return ""


def _make(policy: Policy, precision: str, threads: int) -> Session:
    return TritonSession(policy, precision)


BACKEND = Backend(
    name="triton",
    precisions=("fp32", "tf32", "bf16", "fp16"),
    forms=tuple(name for name in NAMES if name != RESIDUAL),
    why_not=_why_not,
    make=_make,
)
