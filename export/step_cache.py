"""A denoiser's graph -> the same one that also gives its deep features, and a shallow one that takes them.

Neighbouring steps have nearly the same deep features, so a step may take those of an earlier one and compute only what
stands around them. What they are is said by cut_unet.py and cut_transformer.py. Both graphs point at the same weights,
and a quantized graph is cut as well as one in float. No torch is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.artifact import NOT_RUN, Component
from ..core.tensors import DType, TensorSpec
from ..pipelines.settings import DENOISERS
from ..pipelines.step_cache import DEEP, SHALLOW
from . import cut_transformer, cut_unet
from .cut_place import Place
from .libraries import export_libraries
from .simplify import leave_out_unused

if TYPE_CHECKING:
    import onnx_ir as ir

DEPTHS = (1, 2, 3)  # layers of the last up block, or first blocks, that the shallow graph computes


@dataclass(frozen=True)
class Cut:
    """Both graphs, and where the whole one was cut."""

    full: ir.Model
    shallow: ir.Model
    place: Place


def denoiser_of(components: Mapping[str, Component]) -> Component:
    """The component that is cut; a pipeline has one."""
    return next(components[name] for name in DENOISERS if name in components)


@export_libraries()
def cut(component: Component, depth: int = 1) -> Cut:
    """Both graphs of a denoiser.

    Args:
        component: format onnx. depth: how many layers of a UNet's last up block, or of a transformer's first blocks,
            the shallow graph computes, 1 to 3.

    Raises:
        BadInput: the graph is too small for that, or of neither form.
    """
    import onnx_ir as ir

    full, shallow = ir.load(component.graph_path), ir.load(component.graph_path)
    for model in (full, shallow):  # of a component that was cut before
        forget_deep(component, model)
    found = _place(full, component, depth)
    _give(full, found)
    _take(shallow, _place(shallow, component, depth))
    return Cut(full, shallow, found)


def _place(model: ir.Model, component: Component, depth: int) -> Place:
    if cut_transformer.blocks(model):
        return cut_transformer.place(model, component, depth)
    return cut_unet.place(model, component, depth)


def _give(model: ir.Model, place: Place) -> None:
    """Make an output of the deep features."""
    import onnx_ir as ir

    deep, producer = place.value, place.value.producer()
    if place.base is not None and producer is not None:
        node = ir.node("Sub", [place.value, place.base], name=f"{DEEP}.sub")
        model.graph.insert_after(producer, node)
        deep = node.outputs[0]
        deep.dtype, deep.shape = ir.DataType.FLOAT, ir.Shape(place.shape)
    deep.name = DEEP
    model.graph.outputs.append(deep)


def _take(model: ir.Model, place: Place) -> None:
    """Make an input of the deep features, and leave out all that only they needed."""
    import onnx_ir as ir

    graph, producer = model.graph, place.value.producer()
    given = ir.Value(name=DEEP, shape=ir.Shape(place.shape), type=ir.TensorType(ir.DataType.FLOAT))
    users, taken = list(place.value.uses()), given
    if place.base is not None and producer is not None:
        node = ir.node("Add", [place.base, given], name=f"{DEEP}.add")
        graph.insert_after(producer, node)
        taken = node.outputs[0]
        taken.name, taken.dtype, taken.shape = f"{DEEP}.added", ir.DataType.FLOAT, place.value.shape
    for user, index in users:
        user.replace_input_with(index, taken)
    graph.inputs.append(given)
    leave_out_unused(model)


def cut_in_place(component: Component, depth: int = 1) -> dict[str, Component]:
    """Write both graphs beside the component's, whose own is replaced, and describe them: name -> component.

    The shallow one lies in the same folder, since a runtime reads no weights from another.

    Raises:
        BadInput: see `cut`.
    """
    import onnx_ir as ir

    made = cut(component, depth)
    deep = TensorSpec(DType.FLOAT32, made.place.shape)
    path = component.graph_path.with_name("shallow.onnx")
    for model, target in ((made.shallow, path), (made.full, component.graph_path)):
        target.unlink(missing_ok=True)  # it may be a link to another artifact's file
        ir.save(model, target)
    names = [value.name for value in made.shallow.graph.inputs]
    inputs: Mapping[str, TensorSpec] = {n: s for n, s in component.inputs.items() if n in names} | {DEEP: deep}
    details = component.details | {"step_cache": {"depth": depth, "of": component.name}}
    checks = component.details.get("checks", [])
    shallow = replace(
        component,
        name=component.name + SHALLOW,
        graph=path.relative_to(component.root).as_posix(),
        inputs=inputs,
        outputs={n: s for n, s in component.outputs.items() if n != DEEP},
        shapes=_shapes(component, made.place, inputs),
        proof={"graph": NOT_RUN, "weights": component.proof.get("weights", NOT_RUN), "numeric": NOT_RUN},
        details=details | {"checks": [dict(sizes) | made.place.sizes(sizes) for sizes in checks]},
    )
    return {component.name: replace(component, outputs={**component.outputs, DEEP: deep}), shallow.name: shallow}


def _shapes(component: Component, place: Place, inputs: Mapping[str, TensorSpec]) -> dict[str, tuple[int, int, int]]:
    """Least, usual and most of each symbol of these inputs."""
    known = [{symbol: sizes[k] for symbol, sizes in component.shapes.items()} for k in range(3)]
    least, usual, most = (sizes | place.sizes(sizes) if sizes else sizes for sizes in known)
    used = {dim for spec in inputs.values() for dim in spec.shape if isinstance(dim, str)}
    return {symbol: (least[symbol], usual[symbol], most[symbol]) for symbol in usual if symbol in used}


def forget_deep(component: Component, model: ir.Model) -> Component:
    """The component without its deep features, and `model`, its graph, without their output."""
    for value in [value for value in model.graph.outputs if value.name == DEEP]:
        model.graph.outputs.remove(value)
        node = value.producer()
        if node is not None and not value.uses():  # a difference that is there for them alone
            model.graph.remove(node, safe=True)
        else:
            value.name = f"{node.name if node is not None else value.name}_deep"  # the name may be another one's soon
    return replace(component, outputs={n: s for n, s in component.outputs.items() if n != DEEP})
