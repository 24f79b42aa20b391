#!/usr/bin/env bash
# Expected: tl.dot of bfloat16 in Triton's interpreter is the product of the numbers.
# Happens: it multiplies their bit patterns, which it holds as uint16, as integers; no error, no warning.
#   float16 is right.
# Versions: triton 3.7.1, numpy 2.4.6, torch 2.13.0
# Date: 2026-11-29
# Matters: with TRITON_INTERPRET=1 left in the environment a bf16 policy would act on such numbers, and no
#   error would say so. The tests of the kernels repair the interpreter.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-deps triton==3.7.1
cat > "$work/product.py" <<'PY'
import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def product(x, y, out):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at)))


print("triton", triton.__version__, "numpy", numpy.__version__, "torch", torch.__version__)
torch.manual_seed(0)
errors = {}
for dtype in (torch.float16, torch.bfloat16):
    x, y = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    out = torch.empty(16, 16)
    product[(1,)](x, y, out)
    errors[dtype] = float((out - x.float() @ y.float()).abs().max())
    print(dtype, "largest error of 16 x 16 products of normals:", errors[dtype])
    if dtype == torch.bfloat16:
        bits = (a.view(torch.uint16).numpy().astype(numpy.float64) for a in (x, y))
        patterns = next(bits) @ next(bits)
        print("first product:", float(out[0, 0]), "of the bit patterns:", patterns[0, 0])
assert errors[torch.float16] < 1e-2
assert errors[torch.bfloat16] > 1e6
PY
cd "$work"
TRITON_INTERPRET=1 venv/bin/python product.py
