#!/usr/bin/env bash
# ONNX Runtime's MatMulInteger of unsigned by signed bytes saturates on AVX2 without VNNI.
#
# Expected: 32 products of 255 by 127 are 1036320, as the operator's int32 result holds easily.
# Happens: on a processor with AVX2 and no VNNI they are 524272 (16 times 32767: sums of two products are
#   kept in 16 bits). The same weights as unsigned bytes with a zero point of 128 give 1036320.
# Versions: onnxruntime 1.31.1, onnx 1.23.2, numpy 2.4.6, Python 3.11, x86-64 with AVX2 (AMD EPYC, without AVX-512)
# Date: 2026-11-29
# Matters: exported graphs in int8 hold weights as unsigned bytes with a zero point, on every processor.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/show.py" <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def product(weights, zeros):
    names = ["a", "w", *zeros]
    node = helper.make_node("MatMulInteger", names, ["y"])
    ports = [
        helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 32]),
        helper.make_tensor_value_info("y", TensorProto.INT32, [1, 4]),
    ]
    constants = [numpy_helper.from_array(x, name) for name, x in ({"w": weights} | zeros).items()]
    graph = helper.make_graph([node], "product", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"a": np.full((1, 32), 255, np.uint8)})[0][0, 0]


signed = product(np.full((32, 4), 127, np.int8), {})
shifted = product(
    np.full((32, 4), 255, np.uint8), {"za": np.array(0, np.uint8), "zw": np.array(128, np.uint8)}
)
print(f"onnxruntime {onnxruntime.__version__}: 32 x 255 x 127 = {32 * 255 * 127}")
print(f"  signed weights: {signed}; unsigned ones with a zero point: {shifted}")
with open("/proc/cpuinfo") as file:
    exact = "vnni" in file.read()  # then there is nothing to see
assert (signed == 524272, shifted) == (not exact, 32 * 255 * 127)
PYTHON

"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" "$folder/show.py"
