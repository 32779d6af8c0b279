"""float64 in a graph becomes float32: TensorRT has none, and GPUs are slow at it.

Rotary positions are what modules compute so (Flux, `FluxPosEmbed`). Their angles are positions times rates of 1 and
below; in float32 those of a position p are off by up to p * 1.2e-7 radians: 8e-6 at the edge of a picture of 1024
pixels, 3e-5 at one of 4096. The rates themselves are folded in float64 before this and rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


def doubles_to_floats(model: ir.Model) -> None:
    """Make every float64 constant, cast and value of the graph a float32 one; a graph without is left as it is."""
    import onnx_ir as ir

    double, single = ir.DataType.DOUBLE, ir.DataType.FLOAT
    for value in model.graph.initializers.values():
        if value.dtype is double and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = single
    for node in list(model.graph):
        for name, attribute in list(node.attributes.items()):
            if attribute.type is ir.AttributeType.INT and name in ("to", "dtype") and attribute.value == double:
                node.attributes[name] = ir.AttrInt64(name, int(single))
            elif attribute.type is ir.AttributeType.TENSOR and attribute.value.dtype is double:
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().astype(np.float32)))
        for out in node.outputs:
            if out.dtype is double:
                out.dtype = single
        if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].dtype is node.outputs[0].dtype:
            _skip(model, node)


def _skip(model: ir.Model, node: ir.Node) -> None:
    """Remove a Cast that changes nothing; one that makes an output of the graph stays."""
    given, made = node.inputs[0], node.outputs[0]
    if made in model.graph.outputs or given is None:
        return
    made.replace_all_uses_with(given)
    model.graph.remove(node, safe=True)
