"""Low-rank branches beside the layers of an OpenVINO model, for weights that are stored in few bits.

The branch reads a layer's input before its rounding, and is added to the layer's result before the bias: OpenVINO finds
the constants, scales and roundings that it fuses where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import openvino as ov
from openvino import opset13

from .initializers import state_name
from .low_rank import LowRank, no_layer, no_weight

# between a stored weight and its layer: int8 and int4 to float, levels times scales, a convolution's groups
_WEIGHT_STEPS = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
_LAYERS = ("MatMul", "Convolution")
# what puts the same numbers into another order, and how to do it to other numbers
_MOVES: dict[str, Callable[[ov.Output, ov.Node], ov.Node]] = {
    "Reshape": lambda x, n: opset13.reshape(x, n.input_value(1), n.get_attributes()["special_zero"]),
    "Transpose": lambda x, n: opset13.transpose(x, n.input_value(1)),
    "Squeeze": lambda x, n: opset13.squeeze(x, n.input_value(1)),
    "Unsqueeze": lambda x, n: opset13.unsqueeze(x, n.input_value(1)),
}
_SMOOTHING = "/nncf_smooth_quant"


def add_branches(graph: str, model: ov.Model, branches: Mapping[str, LowRank]) -> None:
    """Put a branch beside each layer that has one of these weights, in place. The arrays are copied.

    Raises:
        BadInput: no weight of that name, a weight of no layer, or a layer of other sizes.
    """
    constants: dict[str, list[ov.Node]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            constants.setdefault(state_name(node.get_friendly_name()), []).append(node)
    for name, branch in branches.items():
        if name not in constants:
            raise no_weight(name, graph)
        layers = [layer for constant in constants[name] for layer in _layers(constant)]
        if not layers:
            raise no_layer(name, graph)
        for layer in layers:
            _beside(layer, graph, name, branch)
    model.validate_nodes_and_infer_types()


def _layers(weight: ov.Node) -> Iterator[ov.Node]:
    """The layers that compute with what a weight becomes."""
    for target in weight.output(0).get_target_inputs():
        node = target.get_node()
        if node.get_type_name() in _LAYERS and target.get_index() == 1:
            yield node
        elif node.get_type_name() in _WEIGHT_STEPS and target.get_index() == 0:
            yield from _layers(node)


def _beside(layer: ov.Node, graph: str, name: str, branch: LowRank) -> None:
    given = _unrounded(layer.input_value(0))
    weight = [int(d) for d in layer.input_value(1).get_shape()]
    settings = layer.get_attributes()
    if layer.get_type_name() == "Convolution":
        down, up = branch.for_conv(name, weight)
        flat = [0] * (len(weight) - 2)
        middle = opset13.convolution(
            given, _constant(down), settings["strides"], settings["pads_begin"], settings["pads_end"],
            settings["dilations"], settings["auto_pad"],
        )  # fmt: skip
        ones = [1 for _ in flat]
        change = opset13.convolution(middle, _constant(up), ones, flat, flat, ones)
    else:
        if settings["transpose_a"] or len(weight) != 2:
            raise no_layer(name, graph)
        outputs, inputs = weight if settings["transpose_b"] else weight[::-1]
        down, up = branch.for_linear(name, inputs, outputs)
        middle = opset13.matmul(given, _constant(down), False, True)
        change = opset13.matmul(middle, _constant(up), False, True)
    readers = layer.output(0).get_target_inputs()
    total = opset13.add(layer.output(0), change)
    for reader in readers:
        reader.replace_source_output(total.output(0))


def _constant(value: np.ndarray) -> ov.Node:
    return opset13.constant(np.ascontiguousarray(value, dtype=np.float32))


def _unrounded(value: ov.Output) -> ov.Output:
    """A layer's input as it was before it was rounded, and before SmoothQuant moved a part of it into the weight."""
    source, moves = value, []
    maker, between = _back_over_moves(value)
    rounding = _rounding(maker)
    if rounding is not None:
        source, moves = rounding.input_value(0), between
    smoothing, between = _back_over_moves(source)
    if smoothing.get_type_name() == "Multiply" and smoothing.get_friendly_name().endswith(_SMOOTHING):
        source, moves = smoothing.input_value(0), [*moves, *between]
    for move in reversed(moves):
        source = _MOVES[move.get_type_name()](source, move).output(0)
    return source


def _back_over_moves(value: ov.Output) -> tuple[ov.Node, list[ov.Node]]:
    """What made the numbers of a value, and what put them into another order since, the last first."""
    moves = []
    node = value.get_node()
    while node.get_type_name() in _MOVES:
        moves.append(node)
        node = node.input_value(0).get_node()
    return node, moves


def _rounding(node: ov.Node) -> ov.Node | None:
    """The FakeQuantize whose integers this node turns back to float; None where it is another kind of node."""
    for op_type in ("Multiply", "Subtract", "Convert", "Convert"):
        if node.get_type_name() == op_type:
            node = node.input_value(0).get_node()
        elif op_type == "Multiply":
            break
    return node if node.get_type_name() == "FakeQuantize" else None
