"""3x3 convolutions of an ONNX graph as products of tiles (`winograd`), for ONNX Runtime's CPU provider.

The graph alone is edited: other weights stay in their files, and those of the tiles come with the session. Pixels are
lines: the channels of a whole batch at one place lie together. So tiles are taken by one Gather, B^T d B and A^T m A
are each one product with a small matrix, and the results are put in order by one Gather. Sizes are computed in the
graph, which takes any as before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.artifact import Component
from ..core.dtypes import ONNX_TYPES
from ..core.errors import BadArtifact
from ..core.tensors import Array
from . import winograd
from .initializers import BFLOAT16, Initializer, bfloat16_values, external_initializers
from .ort_nodes import Nodes, attribute, declare
from .winograd import NARROW, Tiles, parts, tiles_for
from .winograd_grid import Grid

if TYPE_CHECKING:
    import onnx

FORM = [winograd.FORM, 1]  # raise the second number when graphs are rewritten in another way than before
_LEAST = 16_000_000  # bytes of large enough kernels: a smaller model has drawn before `onnx` is imported
# attribute -> what it must say, and what a node without it stands for
_PLAIN = {
    "strides": ([1, 1], [1, 1]),
    "dilations": ([1, 1], [1, 1]),
    "pads": ([1, 1, 1, 1], [0, 0, 0, 0]),
    "group": (1, 1),
    "auto_pad": (b"NOTSET", b"NOTSET"),
}
_DOUBLING = {
    "mode": (b"nearest", b"nearest"),
    "coordinate_transformation_mode": (b"asymmetric", b"half_pixel"),
    "nearest_mode": (b"floor", b"round_prefer_floor"),
    "axes": ([], []),
}
_OPSET = 18  # from which a Split says into how many, and the other new nodes take what they take here
_SAME_SHAPE = ("GroupNormalization", "Gelu")  # what onnx's shape inference leaves open, though it changes none
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Rewritten:
    """values: of its new initializers, which are declared as external and are in no file. gone: initializers that it no
    longer has. layers: how many were rewritten.
    """

    values: Mapping[str, Array]
    gone: frozenset[str]
    layers: int


def worth_it(component: Component) -> bool:
    """Whether enough of its weights may be of such convolutions, as far as can be told without `onnx`.

    Raises:
        BadArtifact: the graph does not load.
    """
    if component.usual_sizes() is None or not component.takes_pictures():
        return False
    kernels = [one.shape for one in external_initializers(component.graph_path).values() if _is_kernel(one)]
    return sum(4 * math.prod(shape) for shape in kernels if min(shape[:2]) >= NARROW) >= _LEAST


def fewer_products(model: onnx.ModelProto, component: Component, changed: Mapping[str, Array]) -> Rewritten | None:
    """Rewrite the convolutions that are worth it at half the usual sides, in place.

    Args:
        model: the component's graph, which may have been edited but keeps the names of its weights.
        changed: weights in place of those in the files, by name, as the graph stores them (`initializers.stored_like`).

    Returns:
        None where there are none.

    Raises:
        BadArtifact: a weight's file ends too soon.
    """
    inner = any(said.HasField("g") for node in model.graph.node for said in node.attribute)
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if inner or opset < _OPSET:  # an inner graph reads values of the outer one by name
        return None
    return _Editor(model, component, changed).rewritten(_shapes(model, component.usual_sizes() or {}))


def _is_kernel(one: Initializer) -> bool:
    return len(one.shape) == 4 and one.shape[2:] == (3, 3) and ONNX_TYPES.get(one.type) in _FLOATS


def _shapes(model: onnx.ModelProto, usual: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The shapes of pictures, [batch, channels, height, width], as far as they are known where inputs have these."""
    import onnx

    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]
    for given in sized.graph.input:
        dims = given.type.tensor_type.shape.dim
        if len(dims) != len(usual.get(given.name, ())):
            continue  # an initializer too, or not as the manifest says: what comes of it stays unknown
        for dim, size in zip(dims, usual[given.name], strict=True):
            dim.dim_value = size
    for made in sized.graph.output:
        made.type.tensor_type.ClearField("shape")
    for node in sized.graph.node:
        if node.op_type in _SAME_SHAPE:
            value, name = node.input[0], node.output[0]
            node.Clear()
            node.op_type = "Identity"
            node.input.append(value)
            node.output.append(name)
    told = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    known = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*told.value_info, *told.output)}
    return {name: shape for name, shape in known.items() if len(shape) == 4 and all(shape)}


class _Editor:
    def __init__(self, model: onnx.ModelProto, component: Component, changed: Mapping[str, Array]) -> None:
        self._model, self._component, self._changed = model, component, changed
        self._stored = external_initializers(component.graph_path)
        self._makers = {out: node for node in model.graph.node for out in node.output}
        self._nodes = Nodes()

    def rewritten(self, shapes: Mapping[str, Sequence[int]]) -> Rewritten | None:
        graph, nodes = self._model.graph, self._nodes
        kept: list[onnx.NodeProto] = []
        layers = 0
        for node in graph.node:
            weight, shape = self._weight(node), shapes.get(node.output[0])
            if weight is not None and shape is not None and self._by_tiles(node, weight, shape):
                kept += nodes.taken()
                layers += 1
            else:
                kept.append(node)
        if not layers:
            return None
        before = {i.name for i in graph.initializer}
        self._replace_nodes(kept)
        read = {name for node in graph.node for name in node.input} | {v.name for v in graph.output}
        initializers = [i for i in graph.initializer if i.name in read]
        del graph.initializer[:]
        graph.initializer.extend([*initializers, *nodes.constants.values()])
        declare(graph, nodes.weights)
        gone = frozenset(before - read)
        inputs = [value for value in graph.input if value.name not in gone]
        del graph.input[:]
        graph.input.extend(inputs)
        return Rewritten(nodes.weights, gone, layers)

    def _replace_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Those that are left, without what nobody reads any more: doublings, and casts of weights."""
        graph = self._model.graph
        wanted = {value.name for value in graph.output}
        live = []
        for node in reversed(nodes):
            if wanted.intersection(node.output):
                wanted.update(name for name in node.input if name)
                live.append(node)
        del graph.node[:]
        graph.node.extend(reversed(live))

    def _weight(self, node: onnx.NodeProto) -> str | None:
        """The stored weight of a convolution of one group in float32, with a kernel of 3x3, a step of one and a border
        of one, so that sizes stay; None of any other node.
        """
        import onnx

        if node.op_type != "Conv" or node.domain or not _says(node, _PLAIN):
            return None
        name = str(node.input[1])
        cast = self._makers.get(name)
        if cast is not None and cast.op_type == "Cast" and attribute(cast, "to", 0) == onnx.TensorProto.FLOAT:
            name = str(cast.input[0])
        one = self._stored.get(name)
        if one is None or not _is_kernel(one) or (cast is None and ONNX_TYPES[one.type] != "float32"):
            return None
        return name

    def _before_doubling(self, value: str) -> str | None:
        """What a picture was before each of its pixels became four; None where that was not done to it."""
        import onnx

        node = self._makers.get(value)
        if node is None or node.op_type != "Resize" or not _says(node, _DOUBLING):
            return None
        scales = [i for i in self._model.graph.initializer if i.name in node.input[2:3]]
        known = scales and not scales[0].external_data
        return node.input[0] if known and onnx.numpy_helper.to_array(scales[0]).tolist() == [1, 1, 2, 2] else None

    def _kernel(self, name: str) -> Array:
        """float32 [out, in, 3, 3]."""
        one = self._stored[name]
        values = self._changed.get(name)
        if values is None:
            values = self._read(name, one)
        if one.type == BFLOAT16:
            return bfloat16_values(values)
        return values.astype(np.float32, copy=False)

    def _read(self, name: str, one: Initializer) -> Array:
        """As it is stored. Not mapped: `resident` takes mappings of these files for those of its session."""
        path = self._component.graph_path.parent / one.location
        kind = np.dtype(np.uint16) if one.type == BFLOAT16 else np.dtype(ONNX_TYPES[one.type])
        try:
            return np.fromfile(path, kind, math.prod(one.shape), offset=one.offset).reshape(one.shape)
        except (OSError, ValueError) as exc:
            what = f"{path} cannot be read up to the end of {name}: {exc}."
            raise BadArtifact(what, "Copy the whole folder again or export again.") from exc

    def _by_tiles(self, layer: onnx.NodeProto, weight: str, shape: Sequence[int]) -> bool:
        """Make nodes that give what a convolution gives, under its output's name, if that is worth it.

        weight: its stored one. shape: of its result, at the usual sizes.
        """
        kernel_shape, (batch, _, height, width) = self._stored[weight].shape, shape
        small = self._before_doubling(layer.input[0])
        tiles = tiles_for(kernel_shape, height * width // 4, doubled=small is not None)
        if tiles is None:
            return False
        made = self._products(
            layer.input[0] if small is None else small,
            self._kernel(weight),
            tiles,
            parts(tiles, kernel_shape, (batch, height, width)),
            f"vitrify.{weight}.tiles{tiles.inputs}",
        )
        bias = layer.input[2] if len(layer.input) > 2 else ""
        if bias:
            self._nodes.named("Add", layer.output[0], made, self._nodes.shaped(bias, -1, 1, 1))
        else:
            self._nodes.named("Identity", layer.output[0], made)
        return True

    def _products(self, given: str, kernel: Array, tiles: Tiles, times: int, name: str) -> str:
        """[batch, out, height, width] of [batch, in, height, width].

        times: in how many parts the tiles are computed, so that what lies between takes less memory. name: of the
        weights of the tiles.
        """
        n, side = self._nodes, tiles.inputs
        outputs, inputs = kernel.shape[:2]
        sizes = n.made("Shape", given)
        batch, height, width = (n.made("Gather", sizes, n.constant(i)) for i in (0, 2, 3))
        grid = Grid(n, height, width, tiles, times)
        ends = n.made("Pad", given, n.joined(n.constant([0, 0, 1, 1, 0, 0]), n.one(grid.below), n.one(grid.beside)))
        lines = n.made("Transpose", n.shaped(ends, n.one(n.multiply(batch, n.constant(inputs))), -1), perm=[1, 0])
        weights = n.weight(name, tiles.transformed(kernel.swapaxes(0, 1)))
        into, back = (n.constant(np.kron(m, m).astype(np.float32)) for m in (tiles.into, tiles.back))
        made, row = [], n.one(n.multiply(batch, n.constant(outputs)))
        for places in n.split(grid.places(), times):
            taken = n.shaped(n.made("Gather", lines, places), side * side, -1)
            moved = n.shaped(n.made("MatMul", into, taken), side * side, -1, inputs)
            products = n.shaped(n.made("MatMul", moved, weights), side * side, -1)
            made.append(n.shaped(n.made("MatMul", back, products), -1, row))
        ordered = n.made("Gather", n.joined(*made), n.shaped(grid.order(), -1))
        turned = n.made("Transpose", ordered, perm=[1, 0])
        return n.shaped(turned, n.one(batch), outputs, n.one(grid.result_height), n.one(grid.result_width))


def _says(node: onnx.NodeProto, attributes: Mapping[str, tuple[Any, Any]]) -> bool:
    """Whether each attribute says what it must."""
    return all(attribute(node, name, usual) == wanted for name, (wanted, usual) in attributes.items())
