#!/usr/bin/env bash
# Expected: range(tl.program_id(0), n, tl.num_programs(0)) runs in Triton's interpreter as it compiles.
# Happens: TypeError: only 0-dimensional arrays can be converted to Python scalars. Triton 3.6 holds a
#   scalar as an array with one entry and calls int() on it, which NumPy 2.4 refuses.
# Versions: triton 3.6.0, numpy 2.4.6, torch 2.13.0
# Date: 2026-11-29
# Matters: most of this package's tests of kernels failed for this alone under triton 3.6, the triton of
#   torch 2.10 and 2.11. (Triton 3.7.1 squeezes the array first.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
# without what triton's torch would ask for: any torch's CPU tensors do
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-deps triton==3.6.0
cat > "$work/scalar.py" <<'PY'
import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def count(out, n):
    for i in range(tl.program_id(0), n, tl.num_programs(0)):
        tl.store(out + i, i)


print("triton", triton.__version__, "numpy", numpy.__version__, "torch", torch.__version__)
try:
    count[(2,)](torch.zeros(8, dtype=torch.int32), 8)
except Exception as err:
    print(type(err).__name__, err)
    assert "0-dimensional arrays" in str(err)
else:
    raise SystemExit("it runs now")
PY
cd "$work"
TRITON_INTERPRET=1 venv/bin/python scalar.py
