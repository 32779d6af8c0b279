"""int8 weights and int8 activations from recorded inputs: NNCF finds the ranges, and the artifact stores the integers.

Activations are symmetric, written as uint8 with the zero point 128: the form that ONNX Runtime's integer kernels read
(it turns int8 into it and gets the types wrong on the way) and that is int8 without a zero point for TensorRT.
Those kernels also round what a convolution gives, so the graph says it for every runtime.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.artifact import NOT_RUN, Component
from ..core.errors import BadInput, MissingDependency
from ..core.progress import Event, Report, silent
from ..core.safetensors_header import TensorEntry, read_tensor
from ..core.safetensors_writer import SafetensorsWriter
from ..core.tensors import Array
from ..quant.recipes import Recipe
from .quantize import external_weights, find_layers, point, store_weights
from .ranges import largest

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

_ZERO = "vitrify.zero_point"  # one for all activations
_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")  # the same numbers in another order
_EMBED = 256  # elements: smaller initializers stay in the graph


def quantize_static(
    component: Component,
    recipe: Recipe,
    samples: Sequence[dict[str, Array]],
    root: Path,
    report: Report = silent,
) -> Component:
    """Write `component` below `root` with int8 weights and activations.

    Args:
        component: format onnx, in float.
        samples: recorded inputs of this component.

    Raises:
        BadInput: no samples, nothing to quantize, a graph that is quantized already, or NaN in samples or weights.
        MissingDependency: the `quant` extra is not installed.
        DiskError: the disk is full.
    """
    if not samples:
        raise BadInput(f"{component.name} has no recorded inputs to calibrate with.", "Give prompts or pictures.")
    for one in samples:
        for name, value in one.items():
            if not np.isfinite(value).all():
                raise BadInput(f"A calibration sample of {component.name} holds NaN in {name}.", "Verify the artifact.")
    report(Event(f"quantize {component.name}"))
    with tempfile.TemporaryDirectory(prefix="vitrify-static-") as scratch:
        model, kept = _float_model(component, recipe, Path(scratch))
        quantized = _nncf(model, recipe, samples, kept, Path(scratch))
        counts = _plain(quantized)
        outputs = _floats_of(quantized, [n.output[0] for n in _rounded(quantized, "Conv")])
        _round_outputs(quantized, largest(model, outputs, samples, Path(scratch), report))
        counts["activations"] += len(outputs)
        _part_biases(quantized)
        graph, entries = _external(quantized, Path(scratch))
        layers = {}
        if recipe.name == "int8-hybrid":
            floats = {n: e for n, e in entries.items() if e.dtype == "F32"}
            layers = {layer.weight: layer for layer in find_layers(graph, floats, recipe)}
        stored = store_weights(graph, component.name, entries, layers, recipe, root, report)
    weights = {**stored.proof, "quantized": counts["weights"] + len(layers), "calibrated_on": len(samples)}
    proof = {"graph": component.proof.get("graph", NOT_RUN), "weights": weights, "numeric": NOT_RUN}
    precision = {
        **recipe.to_json(),
        "kept": stored.kept,
        "layers": counts["weights"] + len(layers),
        "quantized_activations": counts["activations"],
        "accuracy_level": 0,
    }
    return replace(component, graph=stored.graph, weights=(stored.file,), precision=precision, proof=proof, root=root)


def _float_model(component: Component, recipe: Recipe, scratch: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The graph in float32 with its weights in one file of `scratch`, as NNCF wants them; and the layers to keep."""
    import onnx_ir as ir

    model = ir.load(component.graph_path)
    entries = dict(external_weights(model, component))
    layers = {layer.weight for layer in find_layers(model, entries, recipe)}
    if not layers:
        raise BadInput(
            f"{component.name} has no layer that {recipe.id} would quantize.",
            "Use another recipe, or leave the component out.",
        )
    with SafetensorsWriter(scratch / "float.safetensors", {n: ("F32", e.shape) for n, e in entries.items()}) as writer:
        for name, entry in entries.items():
            value = model.graph.initializers[name]
            for node in [n for n, _ in value.uses() if n.op_type == "Cast"]:
                node.outputs[0].replace_all_uses_with(value)
                model.graph.remove(node, safe=True)
            weight = read_tensor(entry, "float32")
            if name in layers and not np.isfinite(weight).all():
                raise BadInput(f"The weight {name} holds NaN or infinity.", "Use a checkpoint that is not damaged.")
            writer.write(name, weight)
            point(value, writer.entries[name], entry.shape)
    kept = [str(n.name) for n in model.graph if _stays(n, recipe, layers)]
    return ir.to_proto(model), kept


def _stays(node: ir.Node, recipe: Recipe, layers: set[str]) -> bool:
    """Whether a product stays in float, or a sum."""
    if node.op_type == "Add":  # what a ControlNet gives is zeros while it is recorded, and no range for what it will be
        return any(value is not None and value.is_graph_input() for value in node.inputs)
    if node.op_type not in ("Gemm", "Conv", "MatMul"):
        return False
    if node.op_type != "Conv" and recipe.name == "int8-hybrid":
        return True
    # without a weight it is attention: nothing to store, and probabilities over thousands of tokens fit no int8
    return node.inputs[1] is None or node.inputs[1].name not in layers


def _nncf(
    model: onnx.ModelProto, recipe: Recipe, samples: Sequence[dict[str, Array]], kept: list[str], folder: Path
) -> onnx.ModelProto:
    with _quiet():
        try:
            import nncf
            from nncf.quantization.advanced_parameters import (
                AdvancedQuantizationParameters,
                AdvancedSmoothQuantParameters,
                OverflowFix,
                QuantizationParameters,
            )
        except ImportError as exc:
            raise MissingDependency(
                f"{recipe.name} needs nncf, which does not import: {exc}.", 'pip install "vitrify[quant]"'
            ) from exc
        quantized: onnx.ModelProto = nncf.quantize(
            model,
            nncf.Dataset(list(samples)),
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric: TensorRT takes no zero points
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
            advanced_parameters=AdvancedQuantizationParameters(
                # processors without VNNI add two products of 8 bits in 16; with 7 bits in the weights they fit
                overflow_fix=OverflowFix.ENABLE,
                smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=recipe.smooth or -1),
                disable_bias_correction=True,
                # else of convolutions by channels too, where ONNX Runtime and TensorRT want one range
                activations_quantization_params=QuantizationParameters(per_channel=False),
                backend_params={"external_data_dir": str(folder)},
            ),
        )
    return quantized


def _plain(model: onnx.ModelProto) -> dict[str, int]:
    """Make every quantizer symmetric; how many there are of weights and of activations."""
    import onnx

    values = {i.name: i for i in model.graph.initializer}
    widened: set[str] = set()
    zeros: dict[tuple[int, ...], str] = {}
    counts = {"weights": 0, "activations": 0}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        zero, scale = values[node.input[2]], values[node.input[1]]
        if onnx.numpy_helper.to_array(zero).any():
            raise BadInput(f"{node.name} has a zero point, which this recipe does not allow.", "Report it.")
        if zero.data_type == onnx.TensorProto.UINT8 and scale.name not in widened:
            # what is never negative was given all 8 bits: the signed half has 7
            wide = onnx.numpy_helper.to_array(scale) * np.float32(255 / 127)
            scale.CopyFrom(onnx.numpy_helper.from_array(wide.astype(np.float32), scale.name))
            widened.add(scale.name)
        if node.input[0] in values:
            # ONNX Runtime fuses a Gemm only where its weight says the 0 that is the default
            node.input[2] = zeros.setdefault(tuple(zero.dims), f"{_ZERO}.{'x'.join(map(str, zero.dims))}")
            counts["weights"] += node.op_type == "DequantizeLinear"
        else:
            node.input[2] = _ZERO
            counts["activations"] += node.op_type == "QuantizeLinear"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(128, np.uint8), _ZERO))
    for dims, name in zeros.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(dims, np.int8), name))
    used = {_ZERO, *(name for node in model.graph.node for name in node.input)}
    left = [i for i in model.graph.initializer if i.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)
    shapes = [v for v in model.graph.value_info if not re.match(r"d?q_output|zero_point", v.name)]
    del model.graph.value_info[:]
    model.graph.value_info.extend(shapes)
    return counts


def _rounded(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    """The nodes of this kind with an int8 weight and an int8 input."""
    made = {name: node for node in model.graph.node for name in node.output}

    def comes_rounded(name: str) -> bool:
        while name in made and made[name].op_type in _MOVES:
            name = made[name].input[0]
        return name in made and made[name].op_type == "DequantizeLinear"

    return [n for n in model.graph.node if n.op_type == op and all(map(comes_rounded, n.input[:2]))]


def _floats_of(model: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Those of these values that somebody reads in float; the others are rounded already."""
    read = {name for node in model.graph.node if node.op_type != "QuantizeLinear" for name in node.input}
    read |= {value.name for value in model.graph.output}
    return [name for name in names if name in read]


def _part_biases(model: onnx.ModelProto) -> None:
    """Add the bias of each rounded Gemm behind it: with one in float, ONNX Runtime computes it in float32."""
    import onnx

    rounded = {n.output[0] for n in _rounded(model, "Gemm") if len(n.input) == 3 and n.input[2] and _beta(n) == 1}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        name = node.output[0]
        if name in rounded:
            bias, node.output[0] = node.input.pop(), _alike(model, name, "product")
            nodes.append(onnx.helper.make_node("Add", [node.output[0], bias], [name], f"{node.name}.bias"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _beta(node: onnx.NodeProto) -> float:
    return next((a.f for a in node.attribute if a.name == "beta"), 1.0)


def _alike(model: onnx.ModelProto, name: str, kind: str) -> str:
    """A new value with the type and shape of this one; its name."""
    for given in [v for v in (*model.graph.value_info, *model.graph.output) if v.name == name]:
        model.graph.value_info.add().CopyFrom(given)
        model.graph.value_info[-1].name = f"{name}.{kind}"
    return f"{name}.{kind}"


def _round_outputs(model: onnx.ModelProto, peaks: dict[str, float]) -> None:
    """Round each of these values to int8 and back, for all that read it."""
    import onnx

    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        name = node.output[0]
        if name not in peaks:
            continue
        node.output[0], scale = _alike(model, name, "float32"), f"{name}.scale"
        step = np.float32(max(peaks[name], 1e-12) / 127)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(step), scale))
        make = onnx.helper.make_node
        nodes.append(make("QuantizeLinear", [node.output[0], scale, _ZERO], [f"{name}.quantized"], f"{name}.quantize"))
        nodes.append(make("DequantizeLinear", [f"{name}.quantized", scale, _ZERO], [name], f"{name}.dequantize"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _external(model: onnx.ModelProto, scratch: Path) -> tuple[ir.Model, dict[str, TensorEntry]]:
    """The model with its large initializers in a file of `scratch`, and where each of them lies."""
    import onnx
    import onnx_ir as ir

    names = {onnx.TensorProto.FLOAT: "F32", onnx.TensorProto.INT8: "I8"}
    large = [i for i in model.graph.initializer if i.data_type in names and math.prod(i.dims) >= _EMBED]
    plan = {i.name: (names[i.data_type], tuple(i.dims)) for i in large}
    with SafetensorsWriter(scratch / "quantized.safetensors", plan) as writer:
        for initializer in large:
            writer.write(initializer.name, onnx.numpy_helper.to_array(initializer))
            initializer.ClearField("raw_data")
    del model.metadata_props[:]
    made = ir.from_proto(model)
    _say_types(made)
    for name, entry in writer.entries.items():
        point(made.graph.initializers[name], entry, entry.shape)
    return made, writer.entries


def _say_types(model: ir.Model) -> None:
    """Type and shape of what was put between: other tools do not infer them."""
    import onnx_ir as ir

    for node in model.graph:
        given, made = node.inputs[0], node.outputs[0]
        if given is not None and node.op_type == "QuantizeLinear":
            made.dtype, made.shape = ir.DataType.UINT8, given.shape
        elif given is not None and node.op_type == "DequantizeLinear":
            made.dtype, made.shape = ir.DataType.FLOAT, given.shape


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws its own bars and logs at import; neither belongs to our progress."""
    logger = logging.getLogger("nncf")
    level = logger.level
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
