"""What is on this machine, as JSON values, and what of it the user should know or mend.

Works without torch, on a robot, for what is there.
"""

import contextlib
import importlib
import os
import platform
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import isolated
from .cores import available_cores
from .version import __version__

PACKAGES = ("numpy", "safetensors", "torch", "triton", "ogbench", "mujoco", "gymnasium")
# what acts and what trains, and what each may be
BACKENDS = {
    "SORL_BACKEND": ("numpy", "native", "torch", "triton"),
    "SORL_OPS": ("native", "torch", "triton"),
}
ENVIRONMENT = (*BACKENDS, "SORL_CPU_ISA", "MUJOCO_GL", "CUDA_VISIBLE_DEVICES")
CPU_PRECISIONS = ("fp32", "bf16")
SAMPLING_PRECISIONS = (*CPU_PRECISIONS, "int8")  # on the CPU


def cpu_model() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Return the versions of what matters; None of what is not installed."""
    found: dict[str, str | None] = {"sorl_fast": __version__, "python": platform.python_version()}
    modules = packages_distributions()  # ROCm's triton comes under another name
    for package in PACKAGES:
        try:
            found[package] = version(modules.get(package, [package])[0])
        except PackageNotFoundError:
            found[package] = None
    return found


def instruction_sets() -> dict[str, dict[str, list[str]]] | None:
    """Return those that the native code can use, slowest first, by use and precision.

    None: the native module is not there or does not load.
    """
    try:
        native = importlib.import_module("sorl_fast._native")
    except ImportError:
        return None
    return {
        "sampling": {p: list(native.isas(p)) for p in SAMPLING_PRECISIONS},
        "training": {p: list(native.train_isas(p)) for p in CPU_PRECISIONS},
    }


def gpus() -> list[dict[str, Any]]:
    """Return the GPUs that torch can use, with architecture, memory and driver."""
    if find_spec("torch") is None:
        return []
    import torch

    from .ops.table import driver

    found = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        found.append(
            {
                "device": f"cuda:{i}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "multiprocessors": properties.multi_processor_count,
                "driver": driver(),
            }
        )
    return found


def render(item: isolated.Item, note: isolated.Note) -> isolated.Outcome:
    """Render one picture off screen with MuJoCo: a child's work, for MUJOCO_GL is read at import."""
    import mujoco

    note("rendering")
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 3'/><geom size='.5'/></worldbody></mujoco>"
    )
    renderer = mujoco.Renderer(model, 16, 16)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data)
    if not renderer.render().any():
        return {"status": "failed", "reason": "the picture is black"}
    return {"status": "ok", "reason": ""}


def rendering() -> str:
    """Return how MuJoCo can render off screen here, or why not."""
    if find_spec("mujoco") is None:
        return "mujoco is not installed"
    reason = ""
    for name in ("", "egl", "osmesa"):
        more = {"MUJOCO_GL": name} if name else {}
        (outcome,) = isolated.run(
            f"{__name__}:render", [{}], silence=60.0, start=60.0, environment=more
        )
        if outcome["status"] == "ok":
            return f"yes, with MUJOCO_GL={name}" if name else "yes"
        reason = reason or outcome["reason"]
    return f"no: {reason}"


def machine(*, rendered: bool = True) -> dict[str, Any]:
    """Return what is on this machine, as JSON values."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": available_cores(),
        "instruction_sets": instruction_sets(),
        "gpus": gpus(),
        "versions": versions(),
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "mujoco_rendering": rendering() if rendered else None,
    }


def notes(there: dict[str, Any]) -> list[str]:
    """Return what in a machine's description the user should know or mend."""
    found = []
    sets = there["instruction_sets"]
    if sets is None:
        found.append(
            "The native extension is not there, so numpy acts and PyTorch trains, more slowly. Install "
            "a wheel, or install with a C++ compiler"
        )
    wanted = there["environment"]["SORL_CPU_ISA"]
    for use, by_precision in (sets or {}).items():
        for precision, names in by_precision.items():
            if wanted and wanted not in names:
                found.append(
                    f"SORL_CPU_ISA is {wanted!r}, which {use} in {precision} does not have here: it "
                    f"has {', '.join(names) or 'none'}. Unset it, unless you mean it"
                )
    for variable, known in BACKENDS.items():
        backend = there["environment"][variable]
        if backend and backend not in known:
            found.append(f"{variable} is {backend!r}, but must be one of {', '.join(known)}")
        elif backend == "native" and sets is None:
            found.append(f"{variable} is 'native', but the native extension is not there. Unset it")
        elif backend == "triton" and not there["gpus"]:
            found.append(f"{variable} is 'triton', but there is no GPU. Unset it")
    installed = there["versions"]
    if installed["torch"] is None:
        found.append(
            "torch is not installed: acting works, training does not. pip install 'sorl-fast[train]'"
        )
    elif not there["gpus"] and Path("/proc/driver/nvidia/version").exists():
        found.append(
            "There is an NVIDIA driver, but torch finds no GPU: install a CUDA build of torch, and "
            "look at CUDA_VISIBLE_DEVICES"
        )
    if there["gpus"] and installed["triton"] is None:
        found.append("triton is not installed: the GPU's fused kernels are not used")
    return found
