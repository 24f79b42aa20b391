#!/usr/bin/env bash
# ONNX Runtime's LayerNormalization gives NaN on finite rows with a large mean, before 1.27.
#
# Expected: a row of finite float32 numbers of mean 10,000 and standard deviation 1 comes out with
#   mean 0 and deviation 1, to about 0.01: near 10,000 float32 has steps of 0.001.
# Happens: in 1.26.0 nearly half of such rows come out as NaN, and of the others some are off by
#   thousands; at a mean of 100 values are off by 0.05. In 1.27.0 there is no NaN, and the error is
#   float32's. (As if the variance were E[x^2] - E[x]^2 in float32, which cancels and may be negative.)
# Versions: onnxruntime 1.26.0 (also seen: 1.20.1) and 1.27.0 (right), onnx 1.23.2, numpy 2.4.6,
#   Python 3.11, x86-64 with AVX-512
# Date: 2026-11-29
# Matters: a peer must compute the same actions before it is timed, and a critic's layer norms may meet
#   such rows; hence onnxruntime>=1.27 for the benchmarks.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/show.py" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

ROWS, WIDTH = 256, 512


def port(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


node = helper.make_node("LayerNormalization", ["x", "scale"], ["y"], axis=-1, epsilon=1e-6)
ports = [port("x", ROWS, WIDTH), port("scale", WIDTH)]
graph = helper.make_graph([node], "norm", ports, [port("y", ROWS, WIDTH)])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
)
print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}, numpy {np.__version__}")
for mean in (0, 100, 10_000):
    noise = np.random.default_rng(0).standard_normal((ROWS, WIDTH))
    x = (mean + noise).astype(np.float32)
    (y,) = session.run(None, {"x": x, "scale": np.ones(WIDTH, np.float32)})
    exact = x.astype(np.float64)
    exact = exact - exact.mean(1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(1, keepdims=True) + 1e-6)
    nan = int(np.isnan(y).any(1).sum())
    print(f"  mean {mean:6d}: {nan:3d} of {ROWS} rows with NaN, ", end="")
    print(f"largest error of the others {np.nanmax(np.abs(y - exact)):.2g}")
expected = sys.argv[1]  # of the last mean
found = "NaN" if nan else "right" if np.abs(y - exact).max() < 0.1 else "wrong"
if found != expected:
    sys.exit(f"CHANGED: {found}, but was {expected}")
PYTHON

for version_and_result in 1.26.0:NaN 1.27.0:right; do
  version=${version_and_result%:*}
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check \
    "onnxruntime==$version" onnx==1.23.2 numpy==2.4.6
  "$folder/$version/bin/python" "$folder/show.py" "${version_and_result#*:}"
done
