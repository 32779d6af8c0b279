"""An ONNX graph with low-rank branches beside its layers, for weights that are stored in few bits.

    x ──> layer ──────────> (rounding) ──> Add ──> y
      └─> down ──> up ───────────────────┘

The layer keeps its rounding and its weight, so that a runtime fuses it as before. Where it reads a rounded x, the
branch reads x before the rounding. The graph alone is edited: weights stay in their files, and those of the branches
come with the session.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..core.tensors import Array
from .initializers import state_name
from .low_rank import LowRank, no_layer, no_weight
from .ort_nodes import attribute, declare

if TYPE_CHECKING:
    import onnx

_WEIGHT_STEPS = ("DequantizeLinear", "Cast", "Reshape", "Identity")  # between a stored weight and its layer
_LAYERS = ("Gemm", "MatMul", "MatMulInteger", "Conv")
_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")  # the same numbers in another order
_FUSED = (*_LAYERS, *_MOVES)  # these may be fused with the rounding of what they read
_CONV = ("strides", "pads", "dilations", "auto_pad")
_SMOOTHING = "/nncf_smooth_quant"  # how NNCF ends the name of a product whose factors it took into the weight


def add_branches(model: onnx.ModelProto, name: str, branches: Mapping[str, LowRank]) -> dict[str, Array]:
    """Put a branch beside each layer that has one of these weights, in place.

    Args:
        name: of the graph, for errors.

    Returns:
        The values of its new initializers, which are declared as external and are in no file.

    Raises:
        BadInput: no weight of that name, a weight of no layer, or a layer of other sizes.
    """
    editor = _Editor(name, model)
    for weight, branch in branches.items():
        editor.add(weight, branch)
    return editor.finished()


class _Editor:
    def __init__(self, name: str, model: onnx.ModelProto) -> None:
        self._name, self._model = name, model
        self._makers = {out: node for node in model.graph.node for out in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for given in dict.fromkeys(node.input):
                self._users.setdefault(given, []).append(node)
        self._initializers: dict[str, list[onnx.TensorProto]] = {}
        for tensor in model.graph.initializer:
            self._initializers.setdefault(state_name(tensor.name), []).append(tensor)
        self._behind: dict[str, list[onnx.NodeProto]] = {}  # output of a node -> what comes after the node
        self._renamed: dict[str, str] = {}  # output of a node -> its name in the end; until then the graph is as it was
        self._values: dict[str, Array] = {}
        self._pending: list[onnx.NodeProto] = []
        self._numbers = itertools.count()

    def add(self, name: str, branch: LowRank) -> None:
        stored = self._initializers.get(name)
        if stored is None:
            raise no_weight(name, self._name)
        for tensor in stored:
            layers = list(self._layers(tensor.name))
            if not layers:
                raise no_layer(name, self._name)
            for layer, weight in layers:
                self._beside(layer, name, branch, self._sizes(tensor, weight))

    def finished(self) -> dict[str, Array]:
        graph = self._model.graph
        nodes = [n for node in graph.node for n in (node, *self._behind.get(node.output[0], ()))]
        for node in graph.node:
            if node.output[0] in self._renamed:
                node.output[0] = self._renamed[node.output[0]]
        del graph.node[:]
        graph.node.extend(nodes)
        declare(graph, self._values)
        return self._values

    def _layers(self, weight: str) -> Iterator[tuple[onnx.NodeProto, str]]:
        """The layers that compute with a weight, and the name under which each reads it."""
        for node in self._users.get(weight, []):
            if node.op_type in _LAYERS and len(node.input) > 1 and node.input[1] == weight and node.input[0] != weight:
                yield node, weight
            elif node.op_type in _WEIGHT_STEPS and node.input[0] == weight:
                yield from self._layers(node.output[0])

    def _sizes(self, tensor: onnx.TensorProto, weight: str) -> tuple[int, ...]:
        """The dims of a weight where its layer reads it: a grouped convolution's is stored as a matrix."""
        import onnx

        maker = self._makers.get(weight)
        while maker is not None and maker.op_type != "Reshape":
            maker = self._makers.get(maker.input[0])
        if maker is None:
            return tuple(tensor.dims)
        (shape,) = (t for t in self._model.graph.initializer if t.name == maker.input[1])
        return tuple(int(d) for d in onnx.numpy_helper.to_array(shape))

    def _beside(self, layer: onnx.NodeProto, name: str, branch: LowRank, weight: tuple[int, ...]) -> None:
        given = self._unrounded(layer.input[0])
        if layer.op_type == "Conv":
            if attribute(layer, "group", 1) != 1:
                raise no_layer(name, self._name)
            down, up = branch.for_conv(name, weight)
            settings = {a.name: a for a in layer.attribute if a.name in _CONV}
            middle = self._node("Conv", [given, self._new(name, "down", down)], settings)
            change = self._node("Conv", [middle, self._new(name, "up", up)])
        else:
            if attribute(layer, "transA", 0) or attribute(layer, "alpha", 1.0) != 1.0 or len(weight) != 2:
                raise no_layer(name, self._name)
            outputs, inputs = weight if attribute(layer, "transB", 0) else weight[::-1]
            down, up = branch.for_linear(name, inputs, outputs)
            middle = self._node("MatMul", [given, self._new(name, "down", down.T)])
            change = self._node("MatMul", [middle, self._new(name, "up", up.T)])
        self._join(self._end(layer), change)

    def _unrounded(self, value: str) -> str:
        """A layer's input before it was rounded, and before SmoothQuant moved a part of it into the weight."""
        source, moves = value, []
        maker, between = self._back_over_moves(value)
        rounding = self._rounding(maker)
        if rounding is not None:
            source, moves = rounding.input[0], between
        smoothing, between = self._back_over_moves(source)
        if smoothing is not None and smoothing.op_type == "Mul" and smoothing.name.endswith(_SMOOTHING):
            source, moves = smoothing.input[0], [*moves, *between]
        for move in reversed(moves):
            source = self._node(move.op_type, [source, *move.input[1:]], {a.name: a for a in move.attribute})
        return source

    def _back_over_moves(self, value: str) -> tuple[onnx.NodeProto | None, list[onnx.NodeProto]]:
        """What made the numbers of a value, and what put them into another order since, the last first."""
        moves = []
        maker = self._makers.get(value)
        while maker is not None and maker.op_type in _MOVES:
            moves.append(maker)
            maker = self._makers.get(maker.input[0])
        return maker, moves

    def _rounding(self, maker: onnx.NodeProto | None) -> onnx.NodeProto | None:
        """What rounded the numbers that this node gives, as integers or back in float; None of any other node."""
        if maker is not None and maker.op_type == "DequantizeLinear" and not self._rounded_result(maker.output[0]):
            maker = self._makers.get(maker.input[0])
        is_rounding = maker is not None and maker.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
        return maker if is_rounding else None

    def _end(self, layer: onnx.NodeProto) -> onnx.NodeProto:
        """The node that gives a layer's result in float: of integers, the one behind their scales and the bias."""
        node = layer
        if layer.op_type != "MatMulInteger":
            for _ in ("QuantizeLinear", "DequantizeLinear"):
                readers = self._users.get(node.output[0], [])
                node = readers[0] if readers else node
            return node if self._rounded_result(node.output[0]) else layer
        for op_type in ("Cast", "Mul", "Add"):
            readers = self._users.get(node.output[0], [])
            if len(readers) == 1 and readers[0].op_type == op_type and (op_type != "Add" or self._is_bias(readers[0])):
                node = readers[0]
        return node

    def _rounded_result(self, value: str) -> bool:
        """Whether a value is a layer's result, rounded with the layer and read in float."""
        back = self._makers.get(value)
        rounding = self._makers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        if rounding is None or rounding.op_type != "QuantizeLinear" or len(self._users[rounding.input[0]]) > 1:
            return False
        layer = self._makers.get(rounding.input[0])
        readers = self._users.get(value, [])
        return layer is not None and layer.op_type in _LAYERS and any(r.op_type not in _FUSED for r in readers)

    def _is_bias(self, node: onnx.NodeProto) -> bool:
        return any(state_name(name) in self._initializers for name in node.input)

    def _join(self, end: onnx.NodeProto, change: str) -> None:
        """Let all that reads what `end` gives read the sum; a rounding that is fused with the layer stays with it."""
        out = end.output[0]
        alone = self._renamed[out] = f"{out}.alone"
        readers = self._users.get(out, [])
        if readers and all(r.op_type == "QuantizeLinear" for r in readers):
            settings = {a.name: a for a in readers[0].attribute}
            scales = list(readers[0].input[1:])
            rounded = self._node("QuantizeLinear", [alone, *scales], settings)
            alone = self._node("DequantizeLinear", [rounded, *scales], settings)
        self._node("Add", [alone, change], out=out)
        self._behind[out] = self._pending
        self._pending = []

    def _new(self, name: str, part: str, value: Array) -> str:
        """A new initializer."""
        self._values[f"{name}.{part}"] = np.ascontiguousarray(value, dtype=np.float32)
        return f"{name}.{part}"

    def _node(
        self, op_type: str, given: list[str], settings: Mapping[str, onnx.AttributeProto] | None = None, out: str = ""
    ) -> str:
        """A new node, which comes behind the layer at hand; its output."""
        import onnx

        out = out or f"vitrify.branch.{next(self._numbers)}"
        node = onnx.helper.make_node(op_type, given, [out], name=f"{out}.node")
        node.attribute.extend((settings or {}).values())
        self._pending.append(node)
        return out
