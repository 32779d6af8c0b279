"""Weights that stay outside a plan, or can be changed in it: which they are, and where their bytes lie.

Three ways. A refittable plan holds them and takes others; a stripped one is the same without them; a plan apart has
them as inputs. In all three the plan takes each weight as its file stores it, under its name in the state dict: what a
graph does to it first (a cast, a transposition, scales) is in the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.artifact import Component, WeightFile, hash_file
from ..core.errors import BadArtifact, BadInput
from ..core.publish import link_or_copy
from ..runtimes.initializers import check_listed, external_initializers
from ..runtimes.plan_weights import TYPES, PlanWeight

if TYPE_CHECKING:
    import onnx_ir as ir

_NO_INPUTS = ("int4", "float8_e4m3fn")  # TensorRT takes no such tensor from outside


def outside_weights(component: Component, keeps: str) -> dict[str, PlanWeight]:
    """The weights of a graph that lie in files, by the name of their initializer.

    Args:
        component: of the format onnx. keeps: "refit", "strip" or "apart".

    Raises:
        BadInput: a weight in a type that cannot be kept so.
        BadArtifact: no ONNX graph, or a file that the manifest does not list or that is too short.
    """
    check_listed(component)
    folder = Path(component.graph).parent
    sizes = {w.path: (component.root / w.path).stat().st_size for w in component.weights}
    found: dict[str, PlanWeight] = {}
    for name, one in external_initializers(component.graph_path).items():
        dtype = TYPES.get(one.type)
        if dtype is None or (keeps == "apart" and dtype in _NO_INPUTS):
            raise BadInput(
                f"{name} of {component.graph} is {dtype or 'of a type'} that cannot stay outside a plan.",
                "Leave --apart, --refit and --strip out, or use int8-weights.",
            )
        weight = PlanWeight((folder / one.location).as_posix(), dtype, one.shape, one.offset)
        if weight.offset + weight.nbytes > sizes[weight.path]:
            raise BadArtifact(f"{weight.path} ends before {name}.", "Copy the whole folder again or export again.")
        found[name] = weight
    return found


def weights_to_inputs(model: ir.Model, names: Mapping[str, PlanWeight]) -> None:
    """Make inputs of these initializers, behind the graph's own; those that nothing uses are dropped."""
    for name in names:
        value = model.graph.initializers.pop(name, None)
        if value is not None and value.uses():
            value.const_value = None
            model.graph.inputs.append(value)


def mark_refittable(trt: Any, network: Any, weights: Mapping[str, PlanWeight], graph: str) -> None:
    """Let the network's weights of these names be changed later, and hold its own constants against them.

    Raises:
        BadInput: the network has no such weight, or one of another type or shape.
    """
    missing = [name for name in weights if not network.mark_weights_refittable(name)]
    if missing:
        raise BadInput(
            f"TensorRT has no weight {missing[0]} in {graph} that could be refitted ({len(missing)} in all).",
            "Leave --refit and --strip out, or give --apart.",
        )
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type != trt.LayerType.CONSTANT or layer.name not in weights:
            continue
        layer.__class__ = trt.IConstantLayer  # how the bindings give a layer's own members
        told, has = weights[layer.name], layer.weights
        given = _type_name(has.dtype)
        if given != told.dtype or int(has.size) != math.prod(told.shape) or tuple(layer.shape) != told.shape:
            raise BadInput(
                f"TensorRT has {layer.name} as {given} {list(layer.shape)}, its file as {told.dtype} "
                f"{list(told.shape)}.",
                "Leave --refit and --strip out.",
            )


def _type_name(dtype: Any) -> str:
    """The name of numpy's type, or of the library's own where numpy has none."""
    own = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8_e4m3fn"}
    name = str(getattr(dtype, "name", dtype))
    return own.get(name, name.lower())


def keep_files(component: Component, root: Path) -> tuple[WeightFile, ...]:
    """Link the files of weights beside the plan; copied where they cannot be linked."""
    kept = []
    for weight in component.weights:
        target = root / weight.path
        if not target.exists():  # two components may read one file
            link_or_copy(component.root / weight.path, target)
        kept.append(WeightFile(weight.path, weight.bytes, weight.sha256 or hash_file(target)))
    return tuple(kept)
