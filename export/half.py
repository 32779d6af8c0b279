"""An ONNX graph that computes in float32 -> one that computes in 16 bits, with the same inputs and outputs.

No weight is read: one that is stored in float32 gets a Cast, one that is stored in 16 bits behind a Cast loses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import BadInput
from ..core.tensors import Array

if TYPE_CHECKING:
    import onnx_ir as ir

_KINDS = {"float16": "FLOAT16", "bfloat16": "BFLOAT16"}
# 999 in float16 times a frequency, and then its sine, would be noise; sums of squares pass 65504, float16's largest;
# bfloat16 has float32's range, and fewer digits still
_IN_FLOAT32 = ("Sin", "Cos", "Range", "Pow", "Exp", "Log", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Reciprocal")
_WAVES = ("Sin", "Cos")  # all that leads to these stays as well
_SIZES = {"Resize": (1, 2), "Upsample": (1,)}  # inputs that are scales, which ONNX wants in float32


def compute_in_half(model: ir.Model, dtype: str = "float16") -> None:
    """Make every node compute in 16 bits but those that lose too much, and keep the boundary's dtypes.

    Weights behind a DequantizeLinear keep their float32 scales, and only its output is cast, unless activations are
    quantized too: TensorRT wants the scales of both operands in one type.

    Args:
        model: changed in place; each value's dtype is known, as it is in the graphs that the exporter writes.
        dtype: "float16" or "bfloat16".

    Raises:
        BadInput: a value has no dtype, or the graph has control flow or functions.
    """
    import onnx_ir as ir

    to16 = ir.DataType[_KINDS[dtype]]
    graph = model.graph
    nodes = list(graph)
    untyped = [v.name for n in nodes for v in n.outputs if v.dtype is None and v.uses()]
    nested = [n.op_type for n in nodes if any(a.type is ir.AttributeType.GRAPH for a in n.attributes.values())]
    if untyped or nested or model.functions:
        why = f"does not say the type of {untyped[0]}" if untyped else f"has {(nested or ['functions'])[0]}"
        raise BadInput(f"The graph cannot be put into {dtype}: it {why}.", "Compile it in float32.")
    kept = _kept(nodes)
    single = {v for n in nodes for v in n.outputs if v.dtype is ir.DataType.FLOAT}
    single |= {v for v in (*graph.inputs, *graph.initializers.values()) if v.dtype is ir.DataType.FLOAT}
    halved: set[ir.Value] = set()  # values that have 16 bits now
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def cast(value: ir.Value, to: ir.DataType) -> ir.Value:
        if (value, to) not in casts:
            const = value.const_value
            if value.is_initializer() and const is not None and not isinstance(const, ir.ExternalTensor):
                casts[value, to] = _embedded(graph, value, to)
            else:
                node = ir.node("Cast", [value], {"to": int(to)}, name=f"{value.name}.{to.name.lower()}.cast")
                out = node.outputs[0]
                out.name, out.shape, out.dtype = f"{value.name}.{to.name.lower()}", value.shape, to
                producer = value.producer()
                graph.insert_before(nodes[0], node) if producer is None else graph.insert_after(producer, node)
                casts[value, to] = out
        return casts[value, to]

    for node in nodes:
        if node in kept:
            for index, value in enumerate(node.inputs):
                if value in halved:
                    node.replace_input_with(index, cast(value, ir.DataType.FLOAT))
            continue
        if node.op_type == "Cast" and node.outputs[0] in single:
            node.attributes["to"] = ir.AttrInt64("to", int(to16))
        elif node.op_type in ("Constant", "ConstantOfShape") and node.outputs[0] in single:
            _halve_attribute(node, to16)
        else:
            exempt = _SIZES.get(node.op_type, ())
            given = [(i, v) for i, v in enumerate(node.inputs) if v in single and i not in exempt]
            if not given:
                continue  # whatever it makes, it makes from no float
            for index, value in given:
                if value not in halved:
                    node.replace_input_with(index, cast(value, to16))
        for value in node.outputs:
            if value in single:
                value.dtype = to16
                halved.add(value)
    for index, value in enumerate(graph.outputs):
        if value in halved:
            name = value.name
            value.name = f"{name}.{dtype}"
            out = cast(value, ir.DataType.FLOAT)
            out.name = name
            graph.outputs[index] = out
    _drop_empty_casts(graph)
    for name in [n for n, v in graph.initializers.items() if not v.uses() and v not in graph.outputs]:
        graph.initializers.pop(name)


def _kept(nodes: list[ir.Node]) -> set[ir.Node]:
    """The nodes that go on computing in float32."""
    static = any(n.op_type == "QuantizeLinear" for n in nodes)
    kept = {n for n in nodes if n.op_type in _IN_FLOAT32 or (_is_weight(n) and not static)}
    waiting = [n for n in nodes if n.op_type in _WAVES]
    while waiting:
        for value in waiting.pop().inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in kept:
                kept.add(producer)
                waiting.append(producer)
    return kept


def _is_weight(node: ir.Node) -> bool:
    first = node.inputs[0] if node.inputs else None
    return node.op_type == "DequantizeLinear" and first is not None and first.is_initializer()


def _embedded(graph: ir.Graph, value: ir.Value, to: ir.DataType) -> ir.Value:
    """A small constant in 16 bits: -inf and the like of a mask become the largest that there is."""
    import onnx_ir as ir

    assert value.const_value is not None
    name = f"{value.name}.{to.name.lower()}"
    tensor = ir.tensor(_halved(value.const_value.numpy(), to), name=name)
    made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(to), const_value=tensor)
    graph.initializers[name] = made
    return made


def _halved(value: Array, to: ir.DataType) -> Array:
    import ml_dtypes

    kind = to.numpy()
    # its own largest: float32's would be rounded to infinity in bfloat16
    largest = float(ml_dtypes.finfo(kind).max)  # type: ignore[no-untyped-call]
    half: Array = np.clip(value, -largest, largest).astype(kind)
    return half


def _halve_attribute(node: ir.Node, to: ir.DataType) -> None:
    import onnx_ir as ir

    attribute = node.attributes.get("value")
    if attribute is None or attribute.type is not ir.AttributeType.TENSOR:
        filled = np.zeros(1, to.numpy())  # ConstantOfShape without a value
        if node.op_type == "Constant":
            name, given = next(iter(node.attributes.items()))
            node.attributes.pop(name)
            filled = _halved(np.asarray(given.value, np.float32), to)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled))
        return
    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_halved(attribute.as_tensor().numpy(), to)))


def _drop_empty_casts(graph: ir.Graph) -> None:
    """Remove each Cast whose input has the type that it casts to."""
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Cast" else None
        out = node.outputs[0]
        if source is None or source.dtype is not out.dtype or out in graph.outputs:
            continue
        for user, index in list(out.uses()):
            user.replace_input_with(index, source)
        graph.remove(node, safe=True)
