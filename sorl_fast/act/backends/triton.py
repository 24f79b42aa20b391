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
from typing import Any

from ...errors import BadInput
from ..form import NAMES, RESIDUAL, Diffusion, Direct, Form, Tanh
from ..policy_file import Policy
from ..rules import ARGMAX, Rule
from ..session import Backend, Info, NoiseKey, Session
from .torch import TorchSession, why_not

KEPT = 16  # sizes of call whose graphs are kept


def schedules_of(form: Form | None) -> dict[int, Any]:
    """Return M -> the `ops.Schedule` of a form's steps; none of Euler's, which are a shortcut actor's.

    Parameters
    ----------
    form
        None: a shortcut actor. No residual score network.
    """
    from ...ops import Schedule

    if isinstance(form, Direct):
        one = ((0.0,), (0.0,), (0.0,), (1.0,), (0.0 if form.reads_noise else form.noise_scale,))
        squash = isinstance(form, Tanh)
        steps = Schedule(*one, begins=form.reads_noise, squash=squash, noise_clip=form.noise_clip)
    elif isinstance(form, Diffusion):
        M = len(form.times)
        scales = form.z_scales, form.v_scales, form.noise_scales
        steps = Schedule(form.times, (0.0,) * M, *scales, clip=form.clip)
    else:
        return {}
    return {form.steps[0]: steps}


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
        self._schedules = schedules_of(policy.form)
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
        steps: Any,
        want_q: bool,
        temperature: float = 0.0,
        rule: Rule = ARGMAX,
        draw: NoiseKey | None = None,
    ) -> tuple[Any, Info]:
        """Act on obs [B, O] with noise [B, N, (S,) A] or that of the key; see `Session.act`.

        Steps and rule are such as `BACKEND` says.
        """
        torch = self._torch
        device = obs.device if obs.is_cuda else self._device
        guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        # what is made here is written again by later calls, which inference mode would forbid them
        with guard, torch.inference_mode(False), torch.no_grad():
            place = self._at(device)
            inputs = [obs.to(device)]
            if self._schedules:
                place.temperature.fill_(temperature)
            if isinstance(noise, NoiseKey):
                for part, number in zip(place.key_parts, noise, strict=True):
                    part.fill_(number - 2**64 if number >= 2**63 else number)
            else:
                inputs.append(noise.to(device))
            action, *info = self._run(place, inputs, (candidates, steps, want_q))
            return action.to(obs.device), Info(*(x.to(obs.device) for x in info))

    def _at(self, device: Any) -> "_Place":
        """Return what the session has on a device; the last good action moves there."""
        place = self._places.get(device)
        if place is None:
            last = self._last.to(device, copy=True)
            key = self._torch.zeros(3, dtype=self._torch.int64, device=device)
            place = self._places[device] = _Place(key, last, self._recorder(device))
        if device.type == "cuda" and not self._in_users_graph(device):
            place.follow(self._torch.cuda.current_stream(device))
        if self._place is not None and self._place is not place:
            place.last.copy_(self._place.last)
        self._place = place
        return place

    def _in_users_graph(self, device: Any) -> bool:
        """Whether the caller is recording a CUDA graph."""
        return device.type == "cuda" and self._torch.cuda.is_current_stream_capturing()

    def _run(self, place: "_Place", inputs: list[Any], call: tuple[int, int, bool]) -> Any:
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

    def _function(self, place: "_Place", rows: int, call: tuple[int, int, bool]) -> Any:
        """Return what computes a call of a size, everything ready that it reads."""
        device, N = place.last.device, call[0]
        actor, critic, *_ = self._on(device)
        implementation = self._ops.sampling_implementation(
            actor, critic, rows * N, self._precision, device, call[1] in self._schedules
        )
        if implementation not in place.networks:
            # a graph would pack at each replay only, not now; the reference packs nothing
            if implementation != "reference" and self._in_users_graph(device):
                raise BadInput(
                    f"the first call of {rows} rows and {N} candidates cannot be inside the recording of "
                    "a CUDA graph: make one such call before it"
                )
            key = "triton", device, implementation, self._precision
            place.networks[implementation] = self._policy.once(
                key, lambda: self._prepare(device, implementation, actor, critic)
            )
        return functools.partial(self._compute, place, place.networks[implementation], *call)

    def _prepare(self, device: Any, implementation: str, actor: Any, critic: Any) -> Any:
        networks = self._ops.prepare(
            *(implementation, actor, critic, self._policy.obs_dim, self._precision, self._schedules)
        )
        if device.type == "cuda" and implementation != "reference":
            # other samplers read them on other streams
            self._torch.cuda.current_stream(device).synchronize()
        return networks

    def _compute(
        self,
        place: "_Place",
        networks: Any,
        N: int,
        steps: int,
        want_q: bool,
        obs: Any,
        noise: Any = None,
    ) -> Any:
        _, _, low, high, *_ = self._on(obs.device)
        policy = self._policy
        options: dict[str, Any] = {"want_q": want_q, "temperature": place.temperature}
        if noise is None and networks.draws:
            noise, options["candidates"] = place.key, N
        elif noise is None:
            noise = self._ops.normals(place.key, len(obs), N, policy.act_dim, policy.draws)
        arguments = noise, steps, policy.q_agg, low, high
        best = networks.best_of_n(self._normalised(obs), *arguments, **options)
        action, info, last = self._settle(obs, best, place.last)
        place.last.copy_(last)
        return action, *info


class _Place:
    """What a session has on one device."""

    def __init__(self, key: Any, last: Any, recorder: Any) -> None:
        self.key = key  # int64 [3]: seed, call, row_offset
        self.key_parts = key.unbind()
        self.temperature = key.new_zeros((), dtype=last.dtype)  # what multiplies a form's noise
        self.last = last  # [A], the last good action
        self.recorder = recorder  # of graphs; None: calls are not recorded
        self._stream: Any = None  # that of the last call
        self.graphs: OrderedDict[tuple[Any, ...], Any] = OrderedDict()  # by size of call
        self.networks: dict[str, Any] = {}  # the policy's, by the implementation that reads them

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
    rules=("argmax",),
    schedules=False,
    why_not=_why_not,
    make=_make,
)
