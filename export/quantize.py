"""A float ONNX component -> the same graph with its weights in int8, int4 or float8, streamed tensor by tensor.

Each quantized weight becomes a standard DequantizeLinear in front of its layer, in the form that every runtime reads
and ONNX Runtime fuses: linear layers as Gemm without a transposition, their weight stored [in, out].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.artifact import NOT_RUN, Component, WeightFile
from ..core.dtypes import ONNX
from ..core.errors import BadInput, ProofFailed
from ..core.progress import Event, Report, silent
from ..core.safetensors_header import TensorEntry, read_tensor
from ..core.safetensors_writer import SafetensorsWriter
from ..core.tensors import Array
from ..proof.weights import FileHashes
from ..quant.recipes import Recipe
from ..quant.weights import Quantized, fitting_group, float8_values, packed, quantize_float8, quantize_integers
from .link import cast_stored

if TYPE_CHECKING:
    import onnx_ir as ir

FILE = "model.safetensors"
SMALL = 4096  # weights with fewer elements gain nothing
_FLOATS = {ONNX[name]: name for name in ("F32", "F16", "BF16")}
_HALF_RANGE = (6.1e-5, 65504.0)  # float16's smallest normal and largest number


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution whose weight is quantized.

    weight: the initializer's name. op: Gemm, MatMul or Conv. transposed: the graph has the weight as [in, out].
    bits, group: as the recipe has them, or what fits the layer. top: the largest integer used; 0: all that fit.
    float8: 8 bits that are a float8 e4m3, one scale an output channel.
    """

    weight: str
    op: str
    transposed: bool
    bits: int
    group: int
    symmetric: bool
    top: int = 0
    float8: bool = False

    def quantize(self, weight: Array) -> Quantized:
        values = weight.T if self.transposed else weight
        given = np.ascontiguousarray(values, dtype=np.float32)
        if self.float8:
            return quantize_float8(given)
        if self.group:  # of a convolution too: TensorRT takes groups along the last axis of a matrix alone
            given = given.reshape(len(given), -1)
        return quantize_integers(given, self.bits, self.group, self.symmetric, self.top)

    def restored(self, done: Quantized) -> Array:
        """What a runtime computes with."""
        return float8_values(done) if self.float8 else done.dequantized()


def quantize_weights(component: Component, recipe: Recipe, root: Path, report: Report = silent) -> Component:
    """Write `component` below `root` with its weights in the recipe's integers.

    Memory is that of the graph and of the largest tensor, whatever the model's size.

    Args:
        component: format onnx, in float.
        root: the new artifact's folder.

    Returns:
        The component there. `precision` lists the layers that were kept and what they are stored in.

    Raises:
        BadInput: nothing to quantize, NaN in a weight, or a graph that is quantized already.
        ProofFailed: the file does not hold what was written.
        DiskError: the disk is full.
    """
    import onnx_ir as ir

    model = ir.load(component.graph_path)
    weights = dict(external_weights(model, component))
    layers = {layer.weight: layer for layer in find_layers(model, weights, recipe)}
    if not layers:
        raise BadInput(
            f"{component.name} has no layer that {recipe.id} would quantize.",
            "Use another recipe, or leave the component out.",
        )
    stored = store_weights(model, component.name, weights, layers, recipe, root, report)
    proof = {"graph": component.proof.get("graph", NOT_RUN), "weights": stored.proof, "numeric": NOT_RUN}
    precision = {**recipe.to_json(), "kept": stored.kept, "layers": len(layers), "accuracy_level": 0}
    return replace(
        component, graph=stored.graph, weights=(stored.file,), precision=precision, proof=proof, root=root
    )  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A component's new files. kept: the layers that were not quantized. proof: of what the file holds."""

    graph: str
    file: WeightFile
    kept: list[str]
    proof: dict[str, Any]


def store_weights(
    model: ir.Model,
    name: str,
    weights: dict[str, TensorEntry],
    layers: dict[str, Layer],
    recipe: Recipe,
    root: Path,
    report: Report,
) -> Stored:
    """Write a graph and one file of its weights, those of `layers` quantized, one tensor at a time.

    Other matrices in float32 are stored in float16 where that loses nothing that counts, and computed in float32.

    Args:
        model: changed in place. weights: its external initializers, by name; int8 ones stay as they are.
    """
    import onnx_ir as ir

    plan = _plan(weights, layers)
    path = root / name / FILE
    digests: dict[str, str] = {}
    noise = power = 0.0
    with SafetensorsWriter(path, plan, {"recipe": recipe.id}) as writer:
        for number, (key, entry) in enumerate(weights.items()):
            report(Event(f"quantize {name}", number, len(weights), "tensors"))
            if key in layers:
                weight = read_tensor(entry, "float32")
                done = layers[key].quantize(weight)
                source = (weight.T if layers[key].transposed else weight).reshape(done.values.shape)
                noise += float(np.square(source - layers[key].restored(done), dtype=np.float64).sum())
                power += float(np.square(source, dtype=np.float64).sum())
                values = _stored(key, layers[key], done)
            else:
                values = {key: as_stored(entry, plan[key][0])}
            for tensor, value in values.items():
                writer.write(tensor, value)
                digests[tensor] = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    _rewrite(model, weights, layers, writer.entries)
    graph = f"{name}/model.onnx"
    ir.save(model, root / graph)
    proof = prove_written(path, writer.entries, digests) | {"quantized": len(layers)}
    if noise and power:
        proof["snr_db"] = 10 * math.log10(power / noise)
    kept = sorted(
        n.removesuffix(".weight")
        for n, e in weights.items()
        if n not in layers and len(e.shape) > 1 and e.dtype != "I8"
    )
    return Stored(graph, WeightFile(f"{name}/{FILE}", path.stat().st_size, FileHashes().file(path)), kept, proof)


def external_weights(model: ir.Model, component: Component) -> Iterator[tuple[str, TensorEntry]]:
    """(name, where its bytes lie) of each initializer whose data is outside the graph."""
    import onnx_ir as ir

    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor.dtype.name not in _FLOATS:
            raise BadInput(
                f"{component.name} is quantized already: {name} is {tensor.dtype.name.lower()}.",
                "Compile from the artifact that `vitrify export` made.",
            )
        file = component.graph_path.parent / tensor.location
        shape = tuple(int(d) for d in tensor.shape.numpy())
        yield name, TensorEntry(name, _FLOATS[tensor.dtype.name], shape, tensor.offset or 0, tensor.length or 0, file)


def find_layers(model: ir.Model, weights: dict[str, TensorEntry], recipe: Recipe) -> Iterator[Layer]:
    """The layers whose weights the recipe quantizes: those that a weight belongs to alone, and that are not kept."""
    for name, entry in weights.items():
        if len(entry.shape) < 2 or recipe.kept(name.removesuffix(".weight")) or entry.elements < SMALL:
            continue
        users = list(_users(model.graph.initializers[name]))
        if not users or any(index != 1 or node.op_type not in ("Gemm", "MatMul", "Conv") for node, index in users):
            continue
        node = users[0][0]
        conv = node.op_type == "Conv"
        forms = {(n.op_type == "Conv", n.op_type == "Gemm" and _transposed(n)) for n, _ in users}
        if len(forms) > 1 or (not conv and len(entry.shape) != 2):
            continue  # shared by layers that read it differently, or many matrices in one: no one scale axis fits
        # a MatMul, and a Gemm without transB, have the weight as [in, out]
        straight = not conv and not (node.op_type == "Gemm" and _transposed(node))
        kind = (recipe.convs or recipe.weights) if conv else recipe.weights
        inputs = entry.shape[0] if straight else math.prod(entry.shape[1:])
        bits = 4 if kind == "int4" else 8
        wanted = recipe.group if kind == recipe.weights else 0
        group = fitting_group(inputs, wanted) if wanted else 0
        if bits == 4 and not group:
            bits = 8  # no group divides its inputs, and one scale for a whole channel loses too much in 4 bits
        yield Layer(
            name, node.op_type, straight, bits, group, recipe.symmetric, float8=kind == "float8e4m3"
        )  # fmt: skip


def _transposed(node: ir.Node) -> bool:
    flag = node.attributes.get("transB")
    return flag is not None and flag.as_int() == 1


def _users(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that compute with a weight, through the Cast that a half-precision one has."""
    for node, index in value.uses():
        if node.op_type == "Cast":
            yield from _users(node.outputs[0])
        else:
            yield node, index


def _plan(weights: dict[str, TensorEntry], layers: dict[str, Layer]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor of the new file, in the order in which it is written."""
    plan: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, entry in weights.items():
        layer = layers.get(name)
        if layer is None:
            plan[name] = (kept_dtype(entry), entry.shape)
            continue
        shape = _graph_shape(entry, layer)
        whole = "F8_E4M3" if layer.float8 else "I8"
        plan[name] = (whole, shape) if layer.bits == 8 else ("U8", ((entry.elements + 1) // 2,))
        scales = _scales_shape(entry, layer)
        plan[f"{name}.scale"] = ("F32", scales)
        if not layer.symmetric:
            plan[f"{name}.zero_point"] = (
                ("I8", scales) if layer.bits == 8 else ("U8", ((int(np.prod(scales)) + 1) // 2,))
            )
    return plan


def _graph_shape(entry: TensorEntry, layer: Layer) -> tuple[int, ...]:
    """The weight's shape in the graph: [in, out] of a linear layer, [out, in*height*width] of a grouped convolution."""
    if layer.op == "Conv" and layer.group:
        return (entry.shape[0], math.prod(entry.shape[1:]))
    return entry.shape if layer.op == "Conv" or layer.transposed else entry.shape[::-1]


def _scales_shape(entry: TensorEntry, layer: Layer) -> tuple[int, ...]:
    shape = _graph_shape(entry, layer)
    axis = _axis(layer)
    if not layer.group:
        return (shape[axis],)
    return tuple(d // layer.group if i == axis else d for i, d in enumerate(shape))


def _axis(layer: Layer) -> int:
    """DequantizeLinear's axis: along the output channels for one scale each, along the inputs for groups."""
    if layer.op == "Conv":
        return 1 if layer.group else 0
    return 0 if layer.group else 1


def kept_dtype(entry: TensorEntry) -> str:
    """float16 for a matrix in float32 whose numbers fit; vectors (biases, norms) weigh nothing and stay.

    Reads the tensor, which is read again when it is written: the file's header, where its dtype stands, comes first.
    """
    if entry.dtype != "F32" or len(entry.shape) < 2:
        return entry.dtype
    size = np.abs(read_tensor(entry, "float32"))
    return "F16" if size.max() <= _HALF_RANGE[1] and np.median(size) > _HALF_RANGE[0] else "F32"


def as_stored(entry: TensorEntry, dtype: str) -> Array:
    if dtype == entry.dtype:
        return read_tensor(entry)
    return read_tensor(entry, "float32").astype(np.float16)


def _stored(name: str, layer: Layer, done: Quantized) -> dict[str, Array]:
    """The tensors of one layer as the file holds them."""
    turn = layer.op != "Conv"

    def whole(array: Array) -> Array:
        return np.ascontiguousarray(array.T if turn and array.ndim > 1 else array)

    values = whole(done.values)
    out: dict[str, Array] = {name: values if layer.bits == 8 else packed(values), f"{name}.scale": whole(done.scales)}
    if done.zeros is not None:
        zeros = whole(done.zeros)
        out[f"{name}.zero_point"] = zeros if layer.bits == 8 else packed(zeros)
    return out


def _rewrite(
    model: ir.Model, weights: dict[str, TensorEntry], layers: dict[str, Layer], written: dict[str, TensorEntry]
) -> None:
    """Point the graph at the new file and put a DequantizeLinear in front of each quantized layer."""
    import onnx_ir as ir

    graph = model.graph
    for name, entry in weights.items():
        value = graph.initializers[name]
        layer = layers.get(name)
        for node in [n for n, _ in value.uses() if n.op_type == "Cast"]:
            node.outputs[0].replace_all_uses_with(value)
            graph.remove(node, safe=True)
        if layer is None:
            dtype = ir.DataType[ONNX[written[name].dtype]]
            point(value, written[name], entry.shape)
            if written[name].dtype in ("F16", "BF16"):
                cast_stored(graph, value, dtype, ir.DataType.FLOAT)
            continue
        shape = _graph_shape(entry, layer)
        users = [node for node, _ in value.uses()]
        stored = "FLOAT8E4M3FN" if layer.float8 else "INT8" if layer.bits == 8 else "INT4"
        scales = _scales_shape(entry, layer)
        inputs = [value, _new(graph, written[f"{name}.scale"], scales)]
        if not layer.symmetric:
            inputs.append(_new(graph, written[f"{name}.zero_point"], scales, stored))
        attributes: dict[str, Any] = {"axis": _axis(layer)} | ({"block_size": layer.group} if layer.group else {})
        dequantize = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}.dequantize")
        out = dequantize.outputs[0]
        out.name, out.dtype, out.shape = f"{name}.float32", ir.DataType.FLOAT, ir.Shape(shape)
        first = users[0] if len(users) == 1 else graph[0]
        graph.insert_before(first, dequantize)
        grouped = layer.op == "Conv" and layer.group
        weight = _reshaped(graph, out, entry.shape, first) if grouped else out
        for node in users:
            node.replace_input_with(1, weight)
            if node.op_type == "Gemm":
                node.attributes["transB"] = ir.AttrInt64("transB", 0)
        point(value, written[name], shape, stored)


def _reshaped(graph: ir.Graph, matrix: ir.Value, shape: tuple[int, ...], before: ir.Node) -> ir.Value:
    """The matrix as a convolution's weight."""
    import onnx_ir as ir

    sizes = ir.Value(name=f"{matrix.name}.shape", const_value=ir.tensor(np.array(shape, np.int64)))
    graph.register_initializer(sizes)
    node = ir.node("Reshape", [matrix, sizes], name=f"{matrix.name}.reshape")
    out = node.outputs[0]
    out.name, out.dtype, out.shape = f"{matrix.name}.weight", ir.DataType.FLOAT, ir.Shape(shape)
    graph.insert_before(before, node)
    return out


def _new(graph: ir.Graph, entry: TensorEntry, shape: tuple[int, ...], dtype: str = "") -> ir.Value:
    import onnx_ir as ir

    value = ir.Value(name=entry.name)
    point(value, entry, shape, dtype)
    graph.register_initializer(value)
    return value


def point(value: ir.Value, entry: TensorEntry, shape: tuple[int, ...], dtype: str = "") -> None:
    """Give an initializer its bytes in a file. dtype: ONNX's name where it is not that of the entry (INT4 in bytes)."""
    import onnx_ir as ir

    kind = ir.DataType[dtype or ONNX[entry.dtype]]
    value.const_value = ir.ExternalTensor(
        location=entry.file.name, offset=entry.offset, length=entry.length, dtype=kind, shape=ir.Shape(shape),
        name=entry.name,
    )  # fmt: skip
    value.shape, value.dtype = ir.Shape(shape), kind


def prove_written(path: Path, entries: dict[str, TensorEntry], digests: dict[str, str]) -> dict[str, Any]:
    """Read the file again: every tensor in it is what was computed of its source."""
    hashes = FileHashes()
    whole = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        got = hashes.tensor(path, entry.offset, entry.length)
        if got != digests[name]:
            raise ProofFailed(f"Weight {name} in {path} is not what was written.", "Check the disk, then run it again.")
        whole.update(f"{name} {entry.dtype} {list(entry.shape)} {got}\n".encode())
    return {"tensors": len(entries), "sha256": whole.hexdigest()}
