"""The runtimes that a graph is tried in: what they make of it, called by the names of its inputs."""

import functools
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# inputs by name -> actions, good
Run = Callable[[Mapping[str, Array]], tuple[Array, Array]]


def _onnxruntime(data: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Array]) -> tuple[Array, Array]:
        actions, good = session.run(["actions", "good"], dict(inputs))
        return actions, good

    return run


@functools.cache
def openvino_core() -> Any:
    """Return this process's one Core, which lives as long as it does.

    OpenVINO gives the thread a stack of its own for signal handlers, puts the one before back and frees its
    own when a Core's last model is gone. Of two that overlap, the second puts back what the first has
    freed, and the next signal, a Ctrl-C say, ends the process.
    """
    import openvino

    return openvino.Core()


def _openvino(data: bytes) -> Run:
    core = openvino_core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(data), "CPU", settings)

    def run(inputs: Mapping[str, Array]) -> tuple[Array, Array]:
        results = compiled(dict(inputs))
        actions, good = (np.array(results[name]) for name in ("actions", "good"))
        return actions, good.astype(bool)

    return run


RUNTIMES: dict[str, Callable[[bytes], Run]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


# Who can run a precision: ONNX Runtime's CPU has no product in bf16.
ABLE = {"fp32": tuple(RUNTIMES), "bf16": ("openvino",), "int8": tuple(RUNTIMES)}


def installed() -> list[str]:
    """Return the names of the runtimes that are installed."""
    return [name for name in RUNTIMES if find_spec(name) is not None]
