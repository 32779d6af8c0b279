"""Numbers in a graph that follow from its shapes, computed ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from ..core.tensors import Array

_LARGEST = 4096  # elements: what shapes are made of is smaller, weights are not looked at


def fold(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Replace nodes of `model` that can be computed by initializers.

    Args:
        shapes: of tensors, as far as they are known.

    Returns:
        How many nodes were replaced.
    """
    from onnx import TensorProto, numpy_helper

    known: dict[str, Array] = {
        one.name: numpy_helper.to_array(one)
        for one in model.graph.initializer
        if one.data_location != TensorProto.EXTERNAL and math.prod(one.dims) <= _LARGEST
    }
    kept, count = [], 0
    for node in model.graph.node:
        values = _computed(node, known, shapes, model)
        if values is None:
            kept.append(node)
            continue
        count += 1
        known |= values
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    if count:
        del model.graph.node[:]
        model.graph.node.extend(kept)
    return count


def _computed(
    node: onnx.NodeProto, known: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], model: onnx.ModelProto
) -> dict[str, Array] | None:
    """Outputs of a node whose inputs are known, all small. Shape and Size need no more than their input's shape."""
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    if node.domain not in ("", "ai.onnx") or any(a.HasField("g") or a.graphs for a in node.attribute):
        return None
    if any(math.prod(shapes.get(name, ())) > _LARGEST for name in node.output):
        return None
    inputs = {name: known[name] for name in node.input if name in known}
    if node.op_type in ("Shape", "Size") and node.input[0] in shapes:
        # of the shape alone: a tensor of any size without memory
        inputs = {node.input[0]: np.broadcast_to(np.float32(0), shapes[node.input[0]])}
    if not inputs or len(inputs) != len({name for name in node.input if name}):
        return None
    try:
        found = ReferenceEvaluator(node, opsets={o.domain: o.version for o in model.opset_import}).run(None, inputs)
    except Exception:  # an operator that the evaluator does not know, in whatever way: its output stays unknown
        return None
    arrays = {name: np.asarray(value) for name, value in zip(node.output, found, strict=True) if name}
    return arrays if all(array.size <= _LARGEST for array in arrays.values()) else None
