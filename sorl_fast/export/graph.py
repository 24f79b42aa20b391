"""An ONNX graph, node by node.

Written so rather than exported from torch: the graph is the one that an exporter makes (Gemm, Gelu,
LayerNormalization), in milliseconds instead of many seconds, and without the exporter's packages.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# The oldest that has Gelu (without it a layer's is nine nodes more), and the oldest IR that holds it.
# onnx writes newer ones by default, which runtimes of the same month refuse.
OPSET, IR = 20, 9
# Above it nothing counts as finite: bf16's greatest, so that a runtime that converts the graph to bf16
# makes no infinity of the bound itself (float32 goes on for another 0.4 per cent).
MAX = float(np.uint32(0x7F7F0000).view(np.float32))


class Graph:
    """Nodes in their order, and the constants that they read. A value goes by its name.

    Only this class knows the package onnx.
    """

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def constant(self, name: str, value: Any) -> str:
        """Return the name of a constant; made once a name."""
        from onnx import numpy_helper

        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def bf16_constant(self, name: str, value: Any) -> str:
        """Return the name of a constant that is rounded to bf16, to the nearest, ties to even."""
        from onnx import TensorProto, helper

        if name not in self._constants:
            bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
            rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
            self._constants[name] = helper.make_tensor(
                name, TensorProto.BFLOAT16, rounded.shape, rounded.tobytes(), raw=True
            )
        return name

    def number(self, value: float) -> str:
        """Return the name of a float32 scalar."""
        return self.constant(f"number/{float(value)!r}", np.float32(value))

    def integers(self, *values: int) -> str:
        """Return the name of a vector of int64: axes, or a shape."""
        text = ",".join(map(str, values))
        return self.constant(f"integers/{text}", np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """Return the name of an int64 scalar."""
        return self.constant(f"integer/{value}", np.int64(value))

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of what it makes."""
        from onnx import helper

        output = output or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def nodes(self, kind: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node that makes `count` values and return their names."""
        from onnx import helper

        outputs = [f"{kind}_{len(self._nodes)}_{i}" for i in range(count)]
        self._nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs

    def times(self, x: str, factor: float) -> str:
        """Return x times a number."""
        return x if factor == 1 else self.node("Mul", x, self.number(factor))

    def clip(self, x: str, bound: float | None) -> str:
        """Return x clipped to +-bound; None: x."""
        if bound is None:
            return x
        return self.node("Clip", x, self.number(-bound), self.number(bound))

    def reduce(self, kind: str, x: str, axis: int, keep: bool = True) -> str:
        """Return ReduceSum, ReduceMin, ... of x over an axis."""
        return self.node(kind, x, self.integers(axis), keepdims=int(keep))

    def floats(self, mask: str) -> str:
        """Return 1.0 where a mask is true, else 0.0."""
        return self.node("Cast", mask, to=1)  # TensorProto.FLOAT

    def indices(self, x: str) -> str:
        """Return whole float32 numbers as int64."""
        return self.node("Cast", x, to=7)  # TensorProto.INT64

    def finite(self, x: str, most: float = MAX) -> str:
        """Return the mask [rows, 1] of the rows of x [rows, n] whose every magnitude is at most `most`.

        By a comparison, which is false of NaN: the difference x - x may be folded away.
        """
        inside = self.node("LessOrEqual", self.node("Abs", x), self.number(most))
        least = self.reduce("ReduceMin", self.floats(inside), 1)
        return self.node("Greater", least, self.number(0.5))

    def model(
        self,
        inputs: Iterable[tuple[str, str, Sequence[int | str]]],
        outputs: Iterable[tuple[str, str, Sequence[int | str]]],
        notes: dict[str, str],
    ) -> bytes:
        """Return the model's bytes, checked by onnx.

        Parameters
        ----------
        inputs, outputs
            Names, types such as "FLOAT", and shapes; a dimension with a name is of any size.
        notes
            The model's metadata.
        """
        from onnx import TensorProto, checker, helper

        def port(name: str, kind: str, shape: Sequence[int | str]) -> Any:
            return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)

        graph = helper.make_graph(
            self._nodes,
            "sampler",
            [port(*p) for p in inputs],
            [port(*p) for p in outputs],
            list(self._constants.values()),
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR)
        model.producer_name = "sorl-fast"
        helper.set_model_props(model, notes)
        checker.check_model(model)
        return bytes(model.SerializeToString())
