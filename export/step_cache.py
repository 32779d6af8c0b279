"""A UNet's graph -> the same one that also gives its deep features, and a shallow one that takes them.

Neighbouring steps have nearly the same deep features (DeepCache: Ma et al., arXiv 2312.00858), so a step may take those
of an earlier one and compute only what stands around them. Both graphs point at the same weights, and a quantized graph
is cut as well as one in float. No torch is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.artifact import NOT_RUN, Component
from ..core.errors import BadInput
from ..core.tensors import DType, TensorSpec
from ..pipelines.step_cache import DEEP, SHALLOW
from .libraries import export_libraries

if TYPE_CHECKING:
    import onnx_ir as ir

DEPTHS = (1, 2, 3)  # layers of the last up block that the shallow graph computes


@dataclass(frozen=True)
class Cut:
    """Both graphs, and the deep features' channels."""

    full: ir.Model
    shallow: ir.Model
    channels: int


@export_libraries()
def cut(component: Component, depth: int = 1) -> Cut:
    """Both graphs of a UNet.

    Args:
        component: format onnx. depth: how many layers of the last up block the shallow graph computes, 1 to 3.

    Raises:
        BadInput: the graph has no skip connections at its full size, as a UNet has.
    """
    import onnx_ir as ir

    full, shallow = ir.load(component.graph_path), ir.load(component.graph_path)
    for model in (full, shallow):  # of a component that was cut before
        forget_deep(component, model)
    deep = _deep(full, component, depth)
    channels = deep.shape[1] if deep.shape is not None else None
    assert isinstance(channels, int)
    place = next(i for i, node in enumerate(full.graph) if deep in node.outputs)
    number = list(full.graph[place].outputs).index(deep)
    deep.name = DEEP
    full.graph.outputs.append(deep)
    _take(shallow, shallow.graph[place].outputs[number])
    return Cut(full, shallow, channels)


def _deep(model: ir.Model, component: Component, depth: int) -> ir.Value:
    """What the last up block's `depth` last layers get from below.

    Each of these layers begins with a Concat of that and of a skip connection, along the channels.
    """
    joins = [n for n in model.graph if n.op_type == "Concat" and len(n.inputs) == 2 and _channels(n.outputs[0])]
    joins = [n for n in joins if n.attributes["axis"].as_int() == 1]
    # those at full size, which is that of the last one's skip connection
    sizes = [join.inputs[1].shape[2:] if join.inputs[1] is not None and join.inputs[1].shape else () for join in joins]
    joins = [join for join, size in zip(joins, sizes, strict=True) if size == sizes[-1]]
    if len(joins) < depth:
        raise BadInput(
            f"{component.name} has {len(joins)} skip connections at its full size, so no {depth} layers between them.",
            f"Give --step-cache {len(joins)} or less." if joins else "Step caching is for UNets.",
        )
    deep = joins[-depth].inputs[0]
    if deep is None or deep.producer() is None or not _channels(deep):
        raise BadInput(
            f"The graph of {component.name} does not say the shape of its deep features.", "Export it again."
        )
    return deep


def _channels(value: ir.Value) -> int | None:
    """The channels of a picture's features [batch, channels, height, width]; None of anything else."""
    shape = value.shape
    return shape[1] if shape is not None and len(shape) == 4 and isinstance(shape[1], int) else None


def _take(model: ir.Model, deep: ir.Value) -> None:
    """Make an input of what was computed, and leave out all that only it needed."""
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = model.graph
    given = ir.Value(name=DEEP, shape=deep.shape, type=deep.type)
    for user, index in list(deep.uses()):
        user.replace_input_with(index, given)
    graph.inputs.append(given)
    RemoveUnusedNodesPass()(model)
    for value in [v for v in graph.inputs if not v.uses()]:
        graph.inputs.remove(value)
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        graph.initializers.pop(name)


def cut_in_place(component: Component, depth: int = 1) -> dict[str, Component]:
    """Write both graphs beside the component's, whose own is replaced, and describe them: name -> component.

    The shallow one lies in the same folder, since a runtime reads no weights from another.

    Raises:
        BadInput: see `cut`.
    """
    import onnx_ir as ir

    made = cut(component, depth)
    sample = component.inputs["sample"]
    deep = TensorSpec(DType.FLOAT32, (sample.shape[0], made.channels, *sample.shape[2:]))
    path = component.graph_path.with_name("shallow.onnx")
    for model, target in ((made.shallow, path), (made.full, component.graph_path)):
        target.unlink(missing_ok=True)  # it may be a link to another artifact's file
        ir.save(model, target)
    names = [value.name for value in made.shallow.graph.inputs]
    inputs: Mapping[str, TensorSpec] = {n: s for n, s in component.inputs.items() if n in names} | {DEEP: deep}
    used = {dim for spec in inputs.values() for dim in spec.shape if isinstance(dim, str)}
    shallow = replace(
        component,
        name=component.name + SHALLOW,
        graph=path.relative_to(component.root).as_posix(),
        inputs=inputs,
        outputs={n: s for n, s in component.outputs.items() if n != DEEP},
        shapes={symbol: sizes for symbol, sizes in component.shapes.items() if symbol in used},
        proof={"graph": NOT_RUN, "weights": component.proof.get("weights", NOT_RUN), "numeric": NOT_RUN},
        details=component.details | {"step_cache": {"depth": depth, "of": component.name}},
    )
    return {component.name: replace(component, outputs={**component.outputs, DEEP: deep}), shallow.name: shallow}


def forget_deep(component: Component, model: ir.Model) -> Component:
    """The component without its deep features, and `model`, its graph, without their output."""
    for value in [value for value in model.graph.outputs if value.name == DEEP]:
        model.graph.outputs.remove(value)
        node = value.producer()
        value.name = f"{node.name if node is not None else value.name}_deep"  # the name may be another one's soon
    return replace(component, outputs={n: s for n, s in component.outputs.items() if n != DEEP})
