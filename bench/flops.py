"""Floating point operations of a graph at given sizes; `counting` has those of a whole call.

A multiply-add is two operations, as in torch.utils.flop_counter and in the roofline model (Williams, Waterman and
Patterson, 2009). Matrix products, convolutions and attention are counted; elementwise operators, biases, norms,
softmax, pooling and resizing are not: they are bound by memory, and a percent of the models here. A quantized product
counts as the same work in float, so that figures of all recipes compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.artifact import Component
from ..core.errors import BadArtifact, BadInput, MissingDependency
from .folding import fold

if TYPE_CHECKING:
    import onnx

_DOMAINS = ("", "ai.onnx")
_CONTRIB = "com.microsoft"
# Operators whose output is shaped as their first input and whose shape onnx does not infer. For GroupNormalization it
# expands the operator into its function, and then needs values that it does not follow.
_SHAPED_AS_INPUT = {("", "GroupNormalization"), ("", "RMSNormalization"), ("", "SimplifiedLayerNormalization")}
_SHAPED_AS_INPUT |= {(_CONTRIB, name) for name in ("Gelu", "FastGelu", "BiasGelu", "QuickGelu")}
# They multiply matrices too, or run other graphs; without a formula here, a count without them would be wrong.
_UNCOUNTED = {"RNN", "GRU", "LSTM", "DeformConv", "CausalConvWithState", "LinearAttention", "AffineGrid"}
_UNCOUNTED |= {"DFT", "STFT", "Det", "SequenceMap"}


def graph_flops(component: Component, sizes: Mapping[str, int]) -> int:
    """Operations of one run of an ONNX component; see `graph_work`."""
    return graph_work(component, sizes)[0]


def graph_work(component: Component, sizes: Mapping[str, int]) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Operations of one run of an ONNX component, and the shapes of its outputs, as far as they are known.

    Only the graph is read, not its external weights.

    Args:
        sizes: of each symbol in the shapes of `component.inputs`, such as {"batch": 2, "height": 64, ...}.

    Raises:
        BadInput: another format, a symbol without a size, sizes that the graph cannot run at, or an operator whose
            work or shape is not known; it is named.
        BadArtifact: the graph does not load.
        MissingDependency: onnx is not installed.
    """
    model = _at_sizes(_graph(component), component, sizes)
    shapes = _shapes(model, component)
    flops = sum(_work(node, shapes) for node in model.graph.node)
    return flops, {name: shapes[name] for name in component.outputs if name in shapes}


def _graph(component: Component) -> onnx.ModelProto:
    if component.format != "onnx":
        raise BadInput(
            f"{component.name} is in the format {component.format}; work is counted in an ONNX graph.",
            "Count it in the onnx artifact of the same model: the work is the same.",
        )
    try:
        import onnx
    except ImportError as exc:
        raise MissingDependency(f"Counting needs onnx: {exc}.", 'Run `pip install "vitrify[bench]"`.') from exc
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it comes with onnx

    try:
        model = onnx.load(component.graph_path, load_external_data=False)
    except (OSError, DecodeError) as exc:
        raise BadArtifact(f"{component.graph_path} does not load: {exc}.", "Copy the whole folder again.") from exc
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    return model


def _at_sizes(model: onnx.ModelProto, component: Component, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The same with numbers for the inputs' shapes, and with nodes whose shapes onnx can infer."""
    from onnx import helper

    held = {one.name for one in model.graph.initializer}
    for value in model.graph.input:
        if value.name in held:
            continue
        if value.name not in component.inputs:
            raise BadInput(
                f"{component.graph} takes {value.name}, which the manifest does not name.", "Export it again."
            )
        dims = [_size(component, dim, sizes) for dim in component.inputs[value.name].shape]
        value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, dims))
    # what the file says of shapes is in symbols, which would stand against the numbers
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in model.graph.node:
        domain = "" if node.domain in _DOMAINS else node.domain
        if (domain, node.op_type) in _SHAPED_AS_INPUT:
            del node.input[1:], node.output[1:], node.attribute[:]
            node.domain, node.op_type = "", "Identity"
        elif (domain, node.op_type) == (_CONTRIB, "MatMulNBits"):
            _unpack(model, node)
        elif domain or node.op_type in _UNCOUNTED:
            raise _unknown(node, f"the work of {_called(node)} is not known")
        elif any(_counted_inside(graph) for graph in _graphs_of(node)):
            raise _unknown(node, f"{node.op_type} runs a graph of its own, how often is not known")
    return model


def _size(component: Component, dim: int | str, sizes: Mapping[str, int]) -> int:
    size = sizes.get(dim, 0) if isinstance(dim, str) else dim
    if size < 1:
        given = f"{dim} is {sizes[dim]}" if isinstance(dim, str) and dim in sizes else f"{dim} has no size"
        raise BadInput(f"{component.name}: {given}.", f"Give a size of 1 or more for {dim}.")
    return size


def _unpack(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """MatMulNBits holds its weight [K, N] packed: to count it, it becomes the MatMul that it computes."""
    from onnx import TensorProto, helper

    sizes = {a.name: a.i for a in node.attribute}
    weight = helper.make_tensor_value_info(f"{node.output[0]}.unpacked", TensorProto.FLOAT, [sizes["K"], sizes["N"]])
    model.graph.input.append(weight)
    del node.input[1:], node.attribute[:]
    node.input.append(weight.name)
    node.domain, node.op_type = "", "MatMul"


def _graphs_of(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside If, Loop and Scan."""
    return [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]


def _counted_inside(graph: onnx.GraphProto) -> bool:
    return any(
        node.domain not in _DOMAINS
        or node.op_type in _FORMULAS
        or node.op_type in _UNCOUNTED
        or any(_counted_inside(inner) for inner in _graphs_of(node))
        for node in graph.node
    )


def _shapes(model: onnx.ModelProto, component: Component) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor whose dims are all known.

    onnx does not follow values through every operator that shapes are computed with (Slice, Range, Squeeze): what can
    be computed from the shapes found so far is, and put in its place, until that finds nothing more.
    """
    from onnx import shape_inference

    while True:
        try:
            # the types are not checked: a node that stands in for another may have others
            inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
        except (shape_inference.InferenceError, ValueError) as exc:
            raise BadInput(
                f"{component.graph} cannot be run at these sizes: {' '.join(str(exc).split())}.",
                "Give sizes that the model can take.",
            ) from exc
        shapes = {one.name: tuple(one.dims) for one in inferred.initializer}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            tensor = value.type.tensor_type
            if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
                shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
        if not fold(model, shapes):
            return shapes


class _Node:
    """What a formula sees: shapes of inputs and outputs, and attributes."""

    def __init__(self, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.proto = node
        self._shapes = shapes

    def input(self, number: int) -> tuple[int, ...]:
        return self._shape(self.proto.input, number)

    @property
    def output(self) -> tuple[int, ...]:
        return self._shape(self.proto.output, 0)

    def has(self, number: int) -> bool:
        return number < len(self.proto.input) and bool(self.proto.input[number])

    def attribute(self, name: str, default: Any) -> Any:
        from onnx import helper

        return next((helper.get_attribute_value(a) for a in self.proto.attribute if a.name == name), default)

    def _shape(self, names: Sequence[str], number: int) -> tuple[int, ...]:
        if number >= len(names) or names[number] not in self._shapes:
            name = names[number] if number < len(names) else f"input {number}"
            raise _unknown(self.proto, f"the shape of {name!r} is not known")
        return self._shapes[names[number]]


def _work(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    formula = _FORMULAS.get(node.op_type)
    return 2 * formula(_Node(node, shapes)) if formula else 0


# Multiply-adds of each operator. The weight of a convolution is [out, in / groups, *kernel], of a transposed one
# [in, out / groups, *kernel]; padding counts as if it were data, as torch counts it.


def _convolution(weight: int) -> Callable[[_Node], int]:
    return lambda node: math.prod(node.output) * math.prod(node.input(weight)[1:])


def _transposed(node: _Node) -> int:
    return math.prod(node.input(0)) * math.prod(node.input(1)[1:])


def _product(node: _Node) -> int:
    return math.prod(node.output) * node.input(0)[-1]


def _gemm(node: _Node) -> int:
    return math.prod(node.output) * node.input(0)[0 if node.attribute("transA", 0) else 1]


def _einsum(node: _Node) -> int:
    """Every index once; of more than two operands the order decides, which the graph does not say."""
    equation = node.attribute("equation", b"").decode().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) > 2 or "." in equation:
        raise _unknown(node.proto, f"the work of Einsum {equation!r} is not known")
    sizes = {index: dim for i, term in enumerate(terms) for index, dim in zip(term, node.input(i), strict=True)}
    return math.prod(sizes.values()) if len(terms) == 2 else 0


def _attention(node: _Node) -> int:
    """Q times K, and the scores times V; a causal mask saves nothing.

    Q, K and V are [batch, heads, rows, dim] or [batch, rows, heads * dim]; the past is always the former.
    """
    query, key, value = (node.input(i) for i in range(3))
    rows, past = key[-2], node.input(4)[-2] if node.has(4) else 0
    if len(query) == 4:
        heads, widths = query[1], query[3] + value[3]
        return query[0] * heads * query[2] * (rows + past) * widths
    heads, kept = int(node.attribute("q_num_heads", 1)), int(node.attribute("kv_num_heads", 1))
    return query[0] * query[1] * (rows + past) * (query[2] + value[2] * heads // kept)


_FORMULAS: dict[str, Callable[[_Node], int]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
}


def _called(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in _DOMAINS else f"{node.domain}.{node.op_type}"


def _unknown(node: onnx.NodeProto, why: str) -> BadInput:
    name = node.name or (node.output[0] if node.output else "?")
    return BadInput(
        f"The operations of node {name} ({_called(node)}) cannot be counted: {why}.", "Report the operator."
    )
