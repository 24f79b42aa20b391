#!/usr/bin/env bash
# Expected: a model made by the newest onnx with its defaults loads in the newest onnxruntime.
# Happens: onnx 1.23.2 writes an IR version (and an opset) by default that onnxruntime 1.31.1 refuses.
# Versions: onnx 1.23.2, onnxruntime 1.31.1, numpy 2.4.6
# Date: 2026-11-29
# Matters: a benchmark against ONNX Runtime must say ir_version and opset itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cat > "$work/model.py" <<'PY'
import onnx
import onnxruntime
from onnx import TensorProto, helper

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)


def load(opset, ir=None):
    """Load y = -x; return what is wrong with it."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negative", [x], [y])
    model = helper.make_model(graph, **({"opset_imports": [helper.make_opsetid("", opset)]} if opset else {}))
    if ir:
        model.ir_version = ir
    print(f"IR {model.ir_version}, opset {model.opset_import[0].version}:", end=" ")
    onnx.checker.check_model(model)
    try:
        onnxruntime.InferenceSession(model.SerializeToString())
        print("loads")
        return ""
    except Exception as err:
        print(str(err)[:200])
        return str(err)


assert "IR version" in load(None)
assert "IR version" in load(17)
assert load(17, 10) == ""
PY
cd "$work"
venv/bin/python model.py
