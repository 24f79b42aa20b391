"""Everyone who races: sorl-fast, and the runtimes that one could pick instead, at their best settings.

A contender gets the same weights, observations and noise as the others. Whatever can be done before
the first call is: graphs are compiled for the exact shapes, weights converted, inputs and outputs bound.
A call is one call from Python that leaves the actions in memory.

Shape letters: B observations, N candidates, R = B N rows, O observation, A action, M steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from sorl_fast.act.backends.native import import_native, make_model
from sorl_fast.act.choice import PolicyChoice
from sorl_fast.act.policy_file import Policy
from sorl_fast.act.schedule import schedule_of
from sorl_fast.errors import BadInput
from sorl_fast.export.onnx import plain_model
from sorl_fast.export.program import Program, draws_read, program_of
from sorl_fast.export.runtimes import openvino_core

from .harness import Contender, Floats, Running
from .shapes import THREADS, Cell

# Distributions behind the contenders, for the record in the machine's versions.
PACKAGES = ("numpy", "torch", "onnx", "onnxruntime", "openvino")


def import_bench() -> Any:
    """Return the module of the benchmarks' loops, or raise BadInput where there is no native module."""
    import_native()  # they are built together
    return import_module("sorl_fast._bench")


@dataclass(frozen=True)
class SorlFast:
    """The native sampler: `act_into` with arrays of the caller's own, as a control loop calls it."""

    precision: str
    threads: int
    isa: str | None = None  # None: the fastest
    name: str = "sorl-fast"

    def session(self, policy: Policy, max_rows: int, max_candidates: int) -> Any:
        """Return a native session over the policy, and its instruction set."""
        native = import_native()
        model = make_model(native, policy, self.precision, self.isa)
        return native.Session(model, self.threads, max_rows, max_candidates), model.isa

    def prepare(self, cell: Cell, policy: Policy, obs: Floats, noise: Floats) -> Running:
        """Pack the weights; see `Contender`."""
        session, isa = self.session(policy, cell.batch, cell.candidates)
        actions = np.empty((cell.batch, cell.act_dim), np.float32)
        act_into, M, N = session.act_into, cell.steps, cell.candidates
        bench = import_bench()

        def call() -> Any:
            act_into(obs, actions, M, N, 0, 0, 0, noise)
            return actions

        return Running(
            call,
            lambda result: result,
            isa=isa,
            cpp=lambda calls: bench.time(session, obs, M, N, calls),
        )


def _actor(policy: Policy, program: Program) -> list[Sequence[Any]]:
    """Return the actor's layers, of the first only what meets an input that is not known to be 0."""
    (w, b), *others = policy.actor
    if not program.reads_time:
        w = w[: policy.obs_dim + (policy.act_dim if program.reads_z else 0)]
    return [(w, b), *others]


def _torch_sampler(policy: Policy, cell: Cell, bf16: bool) -> Any:
    """Return a torch module forward(obs [B, O], *draws [B, N, A]) -> [B, A], unrolled over the steps.

    The draws are those of `forms.draws_read`.

    In bf16 the weights are converted once (autocast would convert them at every use under inference
    mode); z, the sum over the ensemble and the choice stay in fp32.
    """
    import torch
    from torch import nn

    kind = torch.bfloat16 if bf16 else torch.float32
    # torch.compile traces what forward names, and cannot trace a Policy's arrays
    normalised, use_mean = policy.obs_mean is not None, policy.q_agg == "mean"
    program = program_of(policy, cell.steps)
    clip, noise_clip = program.clip, program.noise_clip

    def network(layers: Sequence[Sequence[Any]]) -> Any:
        parts: list[nn.Module] = []
        for i, layer in enumerate(layers):
            w, b = (torch.from_numpy(np.array(a)) for a in layer[:2])
            linear = nn.Linear(*w.shape)
            with torch.no_grad():
                linear.weight.copy_(w.T)
                linear.bias.copy_(b)
            parts.append(linear)
            if i + 1 < len(layers):
                parts.append(nn.GELU(approximate="tanh"))
            if len(layer) == 4:
                norm = nn.LayerNorm(len(b), eps=1e-6)
                with torch.no_grad():
                    norm.weight.copy_(torch.from_numpy(np.array(layer[2])))
                    norm.bias.copy_(torch.from_numpy(np.array(layer[3])))
                parts.append(norm)
        return nn.Sequential(*parts).to(kind)

    class Sampler(nn.Module):
        time: torch.Tensor
        k: torch.Tensor
        low: torch.Tensor
        high: torch.Tensor
        row: torch.Tensor
        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.actor = network(_actor(policy, program))
            self.critics = nn.ModuleList(
                network([[a[e] for a in layer] for layer in policy.critic])
                for e in range(policy.ensemble)
            )
            B, N = cell.batch, cell.candidates
            time = [[step.time, step.log2_steps] for step in program.steps]
            self.register_buffer(
                "time", torch.tensor(time, dtype=kind)[:, None].repeat(1, B * N, 1)
            )
            self.register_buffer("k", torch.full((B * N, 1), float(cell.steps), dtype=kind))
            self.register_buffer("low", torch.from_numpy(np.array(policy.action_low)))
            self.register_buffer("high", torch.from_numpy(np.array(policy.action_high)))
            self.register_buffer("row", torch.arange(B))
            for field in ("mean", "std"):
                value = getattr(policy, f"obs_{field}")
                self.register_buffer(
                    field, torch.empty(0) if value is None else torch.from_numpy(value.copy())
                )

        def forward(self, obs: Any, *draws: Any) -> Any:
            B, N, A = cell.batch, cell.candidates, cell.act_dim
            x = ((obs - self.mean) / self.std if normalised else obs).to(kind)
            rows = x[:, None].expand(B, N, -1).reshape(B * N, -1)
            unread = [draw.reshape(B * N, A) for draw in draws]
            z = unread.pop(0) if program.reads_z else None
            for i, step in enumerate(program.steps):
                if z is None:
                    v = self.actor(x)[:, None].expand(B, N, -1).reshape(B * N, -1)
                elif program.reads_time:
                    v = self.actor(torch.cat([rows, z.to(kind), self.time[i]], 1))
                else:
                    v = self.actor(torch.cat([rows, z.to(kind)], 1))
                v = v.float()
                if program.squashes:
                    v = torch.tanh(v)
                if step.gain != 1:
                    v = v * step.gain
                if step.keep != 0:
                    v = v + (z if step.keep == 1 else z * step.keep)
                z = v
                if step.noise:
                    added = unread.pop(0) * step.noise
                    z = z + (added if noise_clip is None else added.clamp(-noise_clip, noise_clip))
                if clip is not None:
                    z = z.clamp(-clip, clip)
            z = torch.clamp(z, self.low, self.high)
            if N == 1:
                return z
            x = torch.cat([rows, z.to(kind), self.k], 1)
            q = torch.stack([critic(x).float() for critic in self.critics])
            q = q.mean(0) if use_mean else q.amin(0)
            return z.view(B, N, A)[self.row, q.view(B, N).argmax(1)]

    # torch.compile keeps what it compiled with the code object, gives up after some eight shapes of one,
    # and looks through them at every call: each sampler gets a code object of its own.
    Sampler.forward.__code__ = Sampler.forward.__code__.replace()
    return Sampler().eval()


@dataclass(frozen=True)
class Torch:
    """PyTorch under inference mode: op by op, or the whole sampler through torch.compile."""

    precision: str
    threads: int
    compiled: bool = False

    @property
    def name(self) -> str:
        """Name in the tables."""
        return "torch-compile" if self.compiled else "torch-eager"

    def prepare(self, cell: Cell, policy: Policy, obs: Floats, noise: Floats) -> Running:
        """Convert the weights and, if asked to, compile for static shapes; see `Contender`."""
        import torch

        model = _torch_sampler(policy, cell, self.precision == "bf16")
        x = torch.from_numpy(obs)
        draws = [torch.from_numpy(z) for z in draws_read(noise, program_of(policy, cell.steps))]
        torch.set_num_threads(self.threads)  # generated code has the number of threads in it
        run = torch.compile(model, fullgraph=True, dynamic=False) if self.compiled else model

        def call() -> Any:
            with torch.inference_mode():
                return run(x, *draws)

        return Running(
            call, lambda result: result.numpy(), lambda: torch.set_num_threads(self.threads)
        )


def onnx_model(policy: Policy, cell: Cell) -> bytes:
    """Return the whole sampler of a cell as one plain ONNX graph, for ONNX Runtime and OpenVINO."""
    way = PolicyChoice(steps=schedule_of(cell.steps), candidates=cell.candidates)
    return plain_model(policy, way, cell.batch)


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's CPU provider: every graph optimisation, sequential, buffers bound once."""

    threads: int
    precision: str = "fp32"
    name: str = "onnxruntime"

    def prepare(self, cell: Cell, policy: Policy, obs: Floats, noise: Floats) -> Running:
        """Optimise the graph and bind the arrays; see `Contender`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            onnx_model(policy, cell), options, providers=["CPUExecutionProvider"]
        )
        value = onnxruntime.OrtValue.ortvalue_from_numpy  # on the CPU it shares the array's memory
        actions = np.empty((cell.batch, cell.act_dim), np.float32)
        binding = session.io_binding()
        binding.bind_ortvalue_input("obs", value(obs))
        draws = draws_read(noise, program_of(policy, cell.steps))
        for i, draw in enumerate(draws):
            binding.bind_ortvalue_input(f"draw{i}", value(draw))
        binding.bind_ortvalue_output("actions", value(actions))
        run = session.run_with_iobinding

        def call() -> Any:
            run(binding)
            return actions

        return Running(call, lambda result: result, keep=draws)


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's CPU plugin: latency hint, one stream, one request used again and again."""

    precision: str
    threads: int
    name: str = "openvino"

    def prepare(self, cell: Cell, policy: Policy, obs: Floats, noise: Floats) -> Running:
        """Compile the graph and bind the arrays; see `Contender`."""
        import openvino

        core = openvino_core()
        compiled = core.compile_model(
            core.read_model(onnx_model(policy, cell)),
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": self.threads,
                "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[self.precision],
            },
        )
        request = compiled.create_infer_request()
        draws = draws_read(noise, program_of(policy, cell.steps))
        for i, array in enumerate([obs, *draws]):
            request.set_input_tensor(i, openvino.Tensor(array, shared_memory=True))
        result = request.get_output_tensor(0).data
        infer = request.infer

        def call() -> Any:
            infer(share_outputs=True)
            return result

        return Running(call, lambda actions: actions, keep=draws)


_PEERS: dict[str, tuple[Contender, ...]] = {
    "torch-eager": tuple(Torch(p, t) for p in ("fp32", "bf16") for t in THREADS),
    "torch-compile": tuple(Torch("fp32", t, compiled=True) for t in THREADS),
    "onnxruntime": tuple(OnnxRuntime(t) for t in THREADS),
    "openvino": tuple(OpenVino(p, t) for p in ("fp32", "bf16") for t in THREADS),
}
PEERS = tuple(_PEERS)
_NEEDS = {
    "torch-eager": ("torch",),
    "torch-compile": ("torch",),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
}


def make_peers(
    names: Sequence[str], otherwise: str = "choose others with --peers"
) -> list[Contender]:
    """Return the named peers at each precision and number of threads that they have.

    Parameters
    ----------
    names
        Of `PEERS`.
    otherwise
        What a user may do instead of installing one.

    Raises
    ------
    BadInput
        A name is unknown, or what it needs is not installed.
    """
    found: list[Contender] = []
    for name in names:
        if name not in _PEERS:
            raise BadInput(f"peer is {name!r}, but must be one of {', '.join(PEERS)}")
        for package in _NEEDS[name]:
            if find_spec(package) is None:
                raise BadInput(
                    f"{name} needs {package}, which is not installed: pip install 'sorl-fast[peers]', "
                    f"or {otherwise}"
                )
        found += _PEERS[name]
    return found
