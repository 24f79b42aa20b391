"""A runtime that a graph was tried in must not leave this process unable to take a signal."""

import ctypes
from pathlib import Path

import pytest
from native.twin import make_policy

from sorl_fast.act.choice import PolicyChoice
from sorl_fast.export.onnx import onnx_model
from sorl_fast.export.runtimes import RUNTIMES


class Stack(ctypes.Structure):
    """stack_t of <signal.h>."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def signal_stack_is_mapped():
    """Whether the stack that this thread's signal handlers run on, if it has one, is memory of ours."""
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    spans = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()
    ]
    return not stack.start or any(int(a, 16) <= stack.start < int(b, 16) for a, b in spans)


@pytest.mark.parametrize("name", RUNTIMES)
def test_signals_still_have_a_stack(name):
    pytest.importorskip("onnx")
    pytest.importorskip(name)
    data = onnx_model(make_policy(), PolicyChoice(steps=1), "input", "fp32")
    first = RUNTIMES[name](data)
    second = RUNTIMES[name](data)
    del first
    assert signal_stack_is_mapped()
    del second
    assert signal_stack_is_mapped()
