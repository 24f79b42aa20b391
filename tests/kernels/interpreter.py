"""Triton's interpreter, made right for bfloat16, which it holds as uint16 bit patterns.

As it comes (triton 3.9) it multiplies the patterns of a bf16 product as integers and cuts a float32 to
bf16 instead of rounding it. With `repair` a product of bf16 is exact in float32 and the conversion
rounds to nearest even. Arithmetic on bf16 other than products stays wrong: kernels compute in float32.

Before triton 3.7 it makes a Python integer of an array with one entry, which NumPy 2.4 refuses.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def widen(bits):
    """The float32 values of bf16 bit patterns."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(values):
    """The bf16 bit patterns nearest to float32 values, ties to even; every NaN is the quiet one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def repair():
    """Put the corrections into Triton's interpreter, once."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder.create_dot, "repaired", False):
        return
    create_dot, cast_impl = builder.create_dot, builder.cast_impl
    patch_tensor = interpreter._patch_lang_tensor

    def floats(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle(widen(x.data), tl.float32)

    def dot(self, a, b, *rest):
        return create_dot(self, floats(a), floats(b), *rest)

    def cast(self, x, dtype):
        target = dtype.scalar
        if target == tl.bfloat16 and x.dtype.scalar in (tl.float32, tl.float64):
            return interpreter.TensorHandle(narrow(x.data.astype(np.float32)), target)
        return cast_impl(self, floats(x) if target != tl.bfloat16 else x, dtype)

    def patch(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch
    dot.repaired = True
    builder.create_dot, builder.cast_impl = dot, cast
