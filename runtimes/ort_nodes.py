"""An ONNX graph that is edited: what its nodes say, its new nodes, and values that come with the session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.tensors import Array

if TYPE_CHECKING:
    import onnx


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """What an attribute says, a list where it has several; `default` where the node has none of that name."""
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def declare(graph: onnx.GraphProto, values: Mapping[str, Array]) -> None:
    """Add float32 initializers that are declared as external and are in no file."""
    import onnx

    for name, value in values.items():
        tensor = graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=value.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{name}.given")


class Nodes:
    """New nodes of one graph and what they read, and arithmetic with them (`winograd_grid.Numbers`). Values are names.

    constants: initializers. weights: the values of those that are not in the graph.
    """

    def __init__(self) -> None:
        self.constants: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self.weights: dict[str, Array] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0

    def taken(self) -> list[onnx.NodeProto]:
        """Those that were made since the last time."""
        nodes, self._nodes = self._nodes, []
        return nodes

    def made(self, op_type: str, *given: str, **attributes: Any) -> str:
        return self._made(op_type, given, attributes, 1)[0]

    def named(self, op_type: str, name: str, *given: str) -> None:
        import onnx

        self._nodes.append(onnx.helper.make_node(op_type, given, [name]))

    def split(self, value: str, times: int) -> list[str]:
        """[n, m] as `times` of [n, m / times]."""
        return [value] if times == 1 else self._made("Split", [value], {"axis": 1, "num_outputs": times}, times)

    def joined(self, *values: str) -> str:
        return values[0] if len(values) == 1 else self.made("Concat", *values, axis=0)

    def shaped(self, value: str, *sizes: int | str) -> str:
        """Reshaped; a size is a number, or the name of one of shape [1]."""
        if all(isinstance(size, int) for size in sizes):
            return self.made("Reshape", value, self.constant([int(size) for size in sizes]))
        listed = (self.constant([size]) if isinstance(size, int) else size for size in sizes)
        return self.made("Reshape", value, self.joined(*listed))

    def one(self, value: str) -> str:
        """[] as [1]."""
        return self.made("Unsqueeze", value, self.constant([0]))

    def weight(self, name: str, value: Array) -> str:
        self.weights[name] = value
        return name

    def constant(self, values: int | Sequence[int] | Array) -> str:
        """int64, but for arrays of float32."""
        import onnx

        array = np.asarray(values)
        array = array if array.dtype == np.float32 else array.astype(np.int64)
        key = (array.tobytes(), array.shape, array.dtype)
        if key not in self.constants:
            self.constants[key] = onnx.numpy_helper.from_array(array, f"vitrify.constant{len(self.constants)}")
        return str(self.constants[key].name)

    def add(self, a: str, b: str) -> str:
        return self.made("Add", a, b)

    def subtract(self, a: str, b: str) -> str:
        return self.made("Sub", a, b)

    def multiply(self, a: str, b: str) -> str:
        return self.made("Mul", a, b)

    def divide(self, a: str, b: str) -> str:
        return self.made("Div", a, b)

    def remainder(self, a: str, b: str) -> str:
        return self.made("Mod", a, b)

    def least(self, a: str, b: str) -> str:
        return self.made("Min", a, b)

    def count_to(self, end: str) -> str:
        return self.made("Range", self.constant(0), end, self.constant(1))

    def upright(self, row: str) -> str:
        return self.made("Unsqueeze", row, self.constant([1]))

    def _made(self, op_type: str, given: Sequence[str], attributes: Mapping[str, Any], count: int) -> list[str]:
        import onnx

        self._count += 1
        names = [f"vitrify.{op_type}{self._count}" + f".{i}" * (count > 1) for i in range(count)]
        self._nodes.append(onnx.helper.make_node(op_type, given, names, **attributes))
        return names
