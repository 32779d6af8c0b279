"""int8 weights, and activations that are rounded to int8 where they come: linear layers on ONNX Runtime.

Standard operators in the form that ONNX Runtime fuses: DynamicQuantizeLinear, MatMulInteger, and a product with both
scales. Convolutions stay as they are: ConvInteger is slow and has gaps.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.artifact import NOT_RUN, Component
from ..core.errors import BadInput
from ..core.progress import Report, silent
from ..quant.recipes import Recipe
from .quantize import external_weights, find_layers, store_weights

if TYPE_CHECKING:
    import onnx_ir as ir


def quantize_dynamic(component: Component, recipe: Recipe, root: Path, report: Report = silent) -> Component:
    """Write `component` below `root` with its linear layers in dynamic int8.

    Raises:
        BadInput: no linear layer, NaN in a weight, or a graph that is quantized already.
        DiskError: the disk is full.
    """
    import onnx_ir as ir

    model = ir.load(component.graph_path)
    weights = dict(external_weights(model, component))
    found = [layer for layer in find_layers(model, weights, recipe) if layer.op != "Conv"]
    if not found:
        raise BadInput(f"{component.name} has no linear layer that {recipe.id} would quantize.", "Use another recipe.")
    # processors without VNNI add two products of 8 bits in 16: with 7 bits in the weights they fit
    layers = {layer.weight: replace(layer, bits=8, group=0, top=63) for layer in found}
    stored = store_weights(model, component.name, weights, layers, recipe, root, report)
    _to_integers(model, layers)
    ir.save(model, root / stored.graph)
    precision = {**recipe.to_json(), "kept": stored.kept, "layers": len(layers)}
    proof = {"graph": component.proof.get("graph", NOT_RUN), "weights": stored.proof, "numeric": NOT_RUN}
    return replace(component, graph=stored.graph, weights=(stored.file,), precision=precision, proof=proof, root=root)


def _to_integers(model: ir.Model, layers: dict[str, Any]) -> None:
    """DequantizeLinear -> Gemm or MatMul becomes DynamicQuantizeLinear -> MatMulInteger -> Mul (-> Add)."""
    import onnx_ir as ir

    graph = model.graph
    rounded: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
    for name in layers:
        weight, scale = graph.initializers[name], graph.initializers[f"{name}.scale"]
        (dequantize, _), *_ = weight.uses()
        for node, _ in list(dequantize.outputs[0].uses()):
            given, out = node.inputs[0], node.outputs[0]
            assert given is not None
            if given.name not in rounded:
                quantize = ir.node("DynamicQuantizeLinear", [given], num_outputs=3, name=f"{given.name}.quantize")
                graph.insert_before(node, quantize)
                rounded[str(given.name)] = (quantize.outputs[0], quantize.outputs[1], quantize.outputs[2])
            values, step, zero = rounded[str(given.name)]
            product = ir.node("MatMulInteger", [values, weight, zero], name=f"{name}.product")
            wide = ir.node("Cast", [product.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{name}.wide")
            both = ir.node("Mul", [step, scale], name=f"{name}.scales")
            scaled = ir.node("Mul", [wide.outputs[0], both.outputs[0]], name=f"{name}.scaled")
            made = [product, wide, both, scaled]
            if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
                made.append(ir.node("Add", [scaled.outputs[0], node.inputs[2]], name=f"{name}.biased"))
            for one in made:
                graph.insert_before(node, one)
            last = made[-1].outputs[0]
            last.type, last.shape = out.type, out.shape
            kept = out.name
            out.replace_all_uses_with(last, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            last.name = kept
        graph.remove(dequantize, safe=True)
    graph.sort()  # layers come in the weights' order: another user of an input may stand before its rounding
