#!/usr/bin/env bash
# OpenVINO's CPU plugin replaces the calling thread's stack for signal handlers.
#
# Expected: a library that multiplies matrices leaves the calling thread's signal handling as it was.
# Happens: compiling a model gives the thread another alternate signal stack (sigaltstack), smaller than the
#   one that Python's faulthandler has put there.
# Versions: openvino 2026.4.1, numpy 2.4.6, Python 3.11, x86-64 with AVX2
# Date: 2026-11-30
# Matters: Python runs its signal handlers on that stack, so whoever owns it decides whether a Ctrl-C is
#   survived. The export tries its graphs through one openvino.Core, which lives as long as the process.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/show.py" <<'PYTHON'
import ctypes
import faulthandler

import numpy as np
import openvino
from openvino import opset13 as ops


class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def signal_stack():
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.start, stack.size


faulthandler.enable()
core = openvino.Core()
x = ops.parameter([1, 4], np.float32, name="x")
model = openvino.Model([ops.matmul(x, np.eye(4, dtype=np.float32), False, False)], [x], "product")
before = signal_stack()
compiled = core.compile_model(model, "CPU")
during = signal_stack()
assert np.array_equal(compiled(np.ones((1, 4), np.float32))[0], np.ones((1, 4)))
print(f"openvino {openvino.__version__}")
print(f"  signal stack of faulthandler: {before[1]} bytes; with a compiled model: {during[1]} bytes")
print(f"  the same stack: {before[0] == during[0]}")
assert before[0] and during[0] and before[0] != during[0]
PYTHON

"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 numpy==2.4.6
"$folder/venv/bin/python" "$folder/show.py"
