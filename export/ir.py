"""An ONNX component -> OpenVINO IR: an .xml graph beside its .bin, as Optimum Intel and OpenVINO GenAI name them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.artifact import NOT_RUN, Component, WeightFile, hash_file
from ..core.errors import BadInput, DiskError, ProofFailed
from ..core.progress import Event, Report, silent
from ..core.publish import disk_errors
from ..core.registry import load_runtime
from ..core.safetensors_header import read_tensor
from ..core.tensors import Array
from ..pipelines.prompt_part import is_cut
from ..quant.recipes import Recipe
from ..quant.weights import Quantized, fitting_group, nf4_values, packed, quantize_nf4
from .quantize import external_weights, find_layers, kept_dtype

if TYPE_CHECKING:
    import openvino as ov

XML, BIN = "openvino_model.xml", "openvino_model.bin"


def write_ir(
    component: Component,
    root: Path,
    *,
    recipe: Recipe | None = None,
    folder: str | None = None,
    report: Report = silent,
) -> Component:
    """Write `component` below `root` as IR; with an nf4 recipe its weights in OpenVINO's own nf4.

    Every other precision is what the ONNX graph has: IR keeps its int8 and int4 constants.

    Args:
        component: format onnx.
        folder: the component's folder below `root`; its own name when None.

    Raises:
        BadArtifact: OpenVINO does not read the graph.
        BadInput: nothing to quantize.
        ProofFailed: a constant in the file is not what was written.
        MissingDependency: the `openvino` extra is not installed.
        DiskError: the disk is full.
    """
    load_runtime("openvino")  # says what is missing
    import openvino as ov

    from ..runtimes.ov_model import VERSION, load

    report(Event(f"convert {component.name}"))
    model = load(ov.Core(), component)
    alive: list[Any] = []  # constants that share memory with numpy
    precision, proof = dict(component.precision), dict(component.proof)
    if recipe is not None and recipe.weights == "nf4":
        proof["weights"], kept = _to_nf4(model, component, recipe, alive, report)
        precision = {**recipe.to_json(), "kept": kept, "layers": proof["weights"]["quantized"]}
    _whole_timesteps(model)
    folder = component.name if folder is None else folder
    place = f"{folder}/" if folder else ""
    with disk_errors(root):
        (root / folder).mkdir(parents=True, exist_ok=True)
        save_ir(model, root / place / XML)
        _prove_saved(model, root / place / XML)
        size, digest = (root / place / BIN).stat().st_size, hash_file(root / place / BIN)
    del model, alive
    source = {"format": component.format, "graph": hash_file(component.graph_path)}
    return replace(
        component,
        format="openvino",
        graph=f"{place}{XML}",
        weights=(WeightFile(f"{place}{BIN}", size, digest),),
        precision=precision,
        requires={"runtime": f"openvino>={VERSION.rpartition('.')[0]}", "os": None, "compute_capability": None},
        proof={**proof, "numeric": NOT_RUN},
        details=component.details | {"source": source},
        root=root,
    )


def save_ir(model: ov.Model, path: Path) -> None:
    """Write the .xml and the .bin beside it.

    Raises:
        DiskError: the disk is full.
    """
    import openvino as ov

    try:
        # by default it would halve the precision of float32
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as exc:  # of a write that failed it says "iostream error"
        what = f"OpenVINO cannot write {path}, its disk is full or failing: {exc}."
        raise DiskError(what, "Free some space, then run it again.") from exc


def _prove_saved(model: ov.Model, path: Path) -> None:
    """Read the file again: every constant in it is the model's."""
    import openvino as ov

    fix = "Check the disk, then run it again."
    try:
        found = _digests(ov.Core().read_model(path))
    except RuntimeError as exc:
        raise ProofFailed(f"{path} is not what was written: OpenVINO does not read it ({exc}).", fix) from exc
    for name, digests in _digests(model).items():
        if found.get(name) != digests:
            raise ProofFailed(f"Constant {name} in {path} is not what was written.", fix)


def _digests(model: ov.Model) -> dict[str, list[str]]:
    """Name -> sha256 of the type, the shape and the bytes of each constant that has it."""
    found: dict[str, list[str]] = {}
    for op in model.get_ops():
        if op.get_type_name() == "Constant":
            digest = hashlib.sha256(f"{op.get_element_type().get_type_name()} {list(op.get_output_shape(0))} ".encode())
            digest.update(op.get_tensor_view().data)
            found.setdefault(op.get_friendly_name(), []).append(digest.hexdigest())
    return {name: sorted(digests) for name, digests in found.items()}


def _whole_timesteps(model: ov.Model) -> None:
    """Declare a float timestep as int64 [1], as Optimum Intel does: OpenVINO GenAI gives nothing else.

    Our own adapter takes it as float (`ov_model.load`), for schedulers whose timesteps are no whole numbers.
    """
    import openvino as ov
    from openvino import opset13

    for given in model.get_parameters():
        shape = given.get_partial_shape()
        ours = "timestep" in given.output(0).get_names() and given.get_element_type() == ov.Type.f32
        if ours and shape.is_static:
            users = list(given.output(0).get_target_inputs())
            given.set_element_type(ov.Type.i64)
            given.set_partial_shape(ov.PartialShape([1]))
            sizes = opset13.constant(np.array(shape.to_shape(), np.int64))
            floats = opset13.reshape(opset13.convert(given, "f32"), sizes, False)
            for user in users:
                user.replace_source_output(floats.output(0))
    model.validate_nodes_and_infer_types()


def _to_nf4(
    model: ov.Model, component: Component, recipe: Recipe, alive: list[Any], report: Report
) -> tuple[dict[str, Any], list[str]]:
    """Replace the weights of layers by nf4 constants, their scale and the arithmetic that OpenVINO recognizes.

    Returns:
        The weights proof (how many, one hash over names and values, the signal to noise ratio), and the kept layers.
    """
    import onnx_ir as ir
    from openvino import opset13

    graph = ir.load(component.graph_path)
    entries = dict(external_weights(graph, component))
    layers = {layer.weight: layer for layer in find_layers(graph, entries, replace(recipe, weights="int4"))}
    constants = {op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}
    digest = hashlib.sha256()
    done: set[str] = set()
    noise = power = 0.0
    for number, (name, layer) in enumerate(layers.items()):
        report(Event(f"quantize {component.name}", number, len(layers), "tensors"))
        group = fitting_group(entries[name].shape[1], recipe.group)
        if name not in constants or layer.transposed or not group:
            continue
        weight = read_tensor(entries[name], "float32")
        quantized = quantize_nf4(weight, group)
        noise += float(np.square(weight - nf4_values(quantized), dtype=np.float64).sum())
        power += float(np.square(weight, dtype=np.float64).sum())
        bytes_ = packed(quantized.values)
        digest.update(f"{name} {list(weight.shape)} {group} ".encode() + bytes_.tobytes())
        digest.update(quantized.scales.astype(np.float16).tobytes())
        _insert(opset13, constants[name], quantized, bytes_, alive)
        done.add(name)
    if not done and not is_cut(component):  # a part of what was quantized may have none of its layers
        raise BadInput(f"{component.name} has no layer that {recipe.id} would quantize.", "Use another recipe.")
    for name, entry in entries.items():
        if name not in done and name in constants and entry.dtype == "F32" and kept_dtype(entry) == "F16":
            half = opset13.constant(read_tensor(entry, "float32").astype(np.float16))
            half.set_friendly_name(name)
            _replace(constants[name], opset13.convert(half, "f32"))
    model.validate_nodes_and_infer_types()
    proof: dict[str, Any] = {"quantized": len(done), "sha256": digest.hexdigest()}
    if noise and power:
        proof["snr_db"] = 10 * math.log10(power / noise)
    return proof, sorted(n.removesuffix(".weight") for n, e in entries.items() if n not in done and len(e.shape) > 1)


def _insert(opset: Any, constant: Any, quantized: Quantized, values: Array, alive: list[Any]) -> None:
    """Give the users of a weight's constant the product of nf4 levels and scales instead."""
    import openvino as ov

    out, inputs, *rest = quantized.values.shape
    tensor = ov.Tensor(values, ov.Shape([out, inputs // quantized.group, quantized.group, *rest]), ov.Type.nf4)
    alive += [values, tensor]
    levels = ov.op.Constant(tensor)
    levels.set_friendly_name(constant.get_friendly_name())
    scales = opset.constant(np.expand_dims(quantized.scales, 2).astype(np.float16))
    product = opset.multiply(opset.convert(levels, "f16"), scales)
    whole = opset.reshape(product, opset.constant(np.array(quantized.values.shape, np.int64)), False)
    _replace(constant, opset.convert(whole, "f32"))


def _replace(constant: Any, result: Any) -> None:
    """Give the users of a weight's constant this value in float32 instead."""
    for user in list(constant.output(0).get_target_inputs()):
        node = user.get_node()
        if node.get_type_name() == "Convert":  # a weight that was stored in half precision
            for after in list(node.output(0).get_target_inputs()):
                after.replace_source_output(result.output(0))
        else:
            user.replace_source_output(result.output(0))
