"""A denoiser's graph -> what the prompt alone decides, computed once, and the rest, which each step computes.

The keys and values of cross-attention are the prompt's embeddings times a weight, and in SDXL so is what the pooled
text and the picture's sizes add to the timestep's embedding: none of it changes from step to step. Both graphs lie
beside the whole one, which stays as it is, and point at the same weights. A quantized graph is cut as well. No torch is
needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.artifact import NOT_RUN, Component
from ..core.errors import BadInput
from ..core.tensors import DType, TensorSpec
from ..pipelines.prompt_part import DETAIL, GIVEN, PROMPT, STEP
from ..runtimes.initializers import state_name
from .libraries import export_libraries
from .simplify import leave_out_unused

if TYPE_CHECKING:
    import onnx_ir as ir

_WEIGHT = ".weight"
_MOVES = ("Reshape", "Transpose", "Unsqueeze", "Expand")  # what makes heads of keys and values, and of a mask
_FIX = "Leave --prompt-once out; it is for UNets and for Sana's transformer."


@dataclass(frozen=True)
class Parts:
    """Both graphs. between: what the first gives and the second takes, by name."""

    prompt: ir.Model
    step: ir.Model
    between: Mapping[str, TensorSpec]


@export_libraries()
def cut(component: Component) -> Parts:
    """Both graphs of a denoiser.

    What is between them is [batch, tokens, channels] of keys and values, as they are before they become heads, named as
    their weights are: `down_blocks.0.attentions.0.transformer_blocks.0.attn2.k`.

    Args:
        component: format onnx, whole or shallow; see step_cache.py.

    Raises:
        BadInput: it has no keys and values that depend on the prompt alone.
    """
    import onnx_ir as ir

    prompt, step = ir.load(component.graph_path), ir.load(component.graph_path)
    if not any(value.name in GIVEN for value in prompt.graph.inputs):
        raise BadInput(f"{component.name} takes no prompt.", _FIX)
    _count(prompt, component, of_prompt=True)
    _count(step, component, of_prompt=False)
    border = _border(prompt, component)
    if not any(name.endswith((".k", ".v")) for name in border):
        raise BadInput(f"{component.name} has no cross-attention whose keys and values a prompt decides.", _FIX)
    between = {name: _spec(component, name, value) for name, value in border.items()}
    _give(prompt, component, between)
    _take(step, component, between)
    left = [value.name for value in step.graph.inputs if value.name in GIVEN]
    if left:
        raise BadInput(f"{component.name} needs {', '.join(map(str, left))} beside keys and values too.", _FIX)
    return Parts(prompt, step, between)


def _count(model: ir.Model, component: Component, of_prompt: bool) -> None:
    """Have the numbers of rows and of tokens told by inputs of the prompt, or by others, as far as these have them."""
    inputs = [value for value in model.graph.inputs if (value.name in GIVEN) is of_prompt]
    for axis, symbol in enumerate(_symbols(component)):
        source = next((v for v in inputs if _symbol(v, axis) == symbol), None)
        for node in model.graph if source is not None else ():
            if _told(node, component) == axis:
                node.replace_input_with(0, source)


def _told(node: ir.Node, component: Component) -> int | None:
    """0 of a node that tells the number of rows, 1 of one that tells that of tokens; each by its place in a shape."""
    given = node.inputs[0] if node.inputs else None
    if node.op_type != "Shape" or given is None or not given.is_graph_input():
        return None
    first, end = (node.attributes.get(name) for name in ("start", "end"))
    axis = 0 if first is None else first.as_int()
    one = end is not None and end.as_int() == axis + 1
    return axis if one and axis < 2 and _symbol(given, axis) == _symbols(component)[axis] else None


def _symbol(value: ir.Value, axis: int) -> str | None:
    dim = value.shape[axis] if value.shape is not None and axis < len(value.shape) else 0
    return None if isinstance(dim, int) else dim.value


def _border(model: ir.Model, component: Component) -> dict[str, ir.Value]:
    """What the prompt's inputs alone decide and others are computed with, by name."""
    decided, known = _decided(model, component)
    found: dict[str, ir.Value] = {}
    for node in model.graph:
        for value in (v for v in node.outputs if v in decided):
            if all(out in decided for user, _ in value.uses() for out in user.outputs) and not value.is_graph_output():
                continue
            value = _before_heads(value, known)
            name = _name(value)
            while found.setdefault(name, value) is not value:  # another form of what that weight gave
                name += "_"
    return found


def _decided(model: ir.Model, component: Component) -> tuple[set[ir.Value], set[ir.Value]]:
    """What the prompt's inputs decide; and what each of the parts knows: constants, and sizes that both can tell.

    These are the number of rows, and that of tokens where a step is given a mask of them.
    """
    graph, symbols = model.graph, _symbols(component)
    rest = [spec.shape for name, spec in component.inputs.items() if name not in GIVEN]
    both = {axis for axis in (0, 1) if any(symbols[axis] in shape[axis : axis + 1] for shape in rest)}
    decided = {value for value in graph.inputs if value.name in GIVEN}
    known = set(graph.initializers.values())
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        if _told(node, component) in both or all(value in known for value in given):
            known.update(node.outputs)
        elif all(value in known or value in decided for value in given):
            decided.update(node.outputs)
    return decided, known


def _before_heads(value: ir.Value, known: set[ir.Value]) -> ir.Value:
    """Keys and values [batch, tokens, channels] of their heads, a mask [batch, tokens] of its; all else as it is.

    Only over what a step can do again without the prompt: into sizes that follow from the rows' number.
    """
    at = found = value
    while (node := at.producer()) is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        if any(other is not None and other not in known for other in node.inputs[1:]):
            break
        at = node.inputs[0]
        found = at if _sizes(at) else found
    return found


def _sizes(value: ir.Value) -> list[int | str]:
    """Numbers and symbols; empty where the graph says none, or one that is computed of others."""
    sizes = [d if isinstance(d, int) else str(d.value or "?") for d in value.shape or ()]
    return [] if any(isinstance(d, str) and not d.isidentifier() for d in sizes) else sizes


def _name(value: ir.Value) -> str:
    """Of the weight that was multiplied last, such as `...attn2.k` of `...attn2.to_k.weight`."""
    waiting, seen = deque([value]), {value}
    while waiting:
        at = waiting.popleft()
        name = state_name(at.name or "")
        if at.is_initializer() and name.endswith(_WEIGHT):
            name = name.removesuffix(_WEIGHT).removesuffix(".linear_2")  # the second layer of an embedding
            return name.replace(".to_k", ".k").replace(".to_v", ".v")
        node = at.producer()
        for given in node.inputs if node is not None else ():
            if given is not None and given not in seen:
                seen.add(given)
                waiting.append(given)
    return f"prompt.{value.name}"


def _spec(component: Component, name: str, value: ir.Value) -> TensorSpec:
    """float32; a size that is no number is that of the rows where it comes first, and of the tokens elsewhere.

    Raises:
        BadInput: the graph does not say its shape, or it is no float.
    """
    sizes, (rows, tokens) = _sizes(value), _symbols(component)
    if not sizes or value.dtype is None or value.dtype.name != "FLOAT":
        raise BadInput(f"The graph of {component.name} does not say the shape of {name}.", "Export it again.")
    dims = [d if isinstance(d, int) else (tokens if k else rows) for k, d in enumerate(sizes)]
    return TensorSpec(DType.FLOAT32, tuple(dims))


def _symbols(component: Component) -> tuple[str, str]:
    """What the manifest calls the numbers of rows and of tokens."""
    shapes = [component.inputs[name].shape for name in GIVEN if name in component.inputs]
    long = next((shape for shape in shapes if len(shape) > 1 and isinstance(shape[1], str)), ("batch", "tokens"))
    return str(long[0]), str(long[1])


def _give(model: ir.Model, component: Component, between: Mapping[str, TensorSpec]) -> None:
    """Leave of the graph what gives these."""
    import onnx_ir as ir

    found = _border(model, component)
    del model.graph.outputs[:]
    for name, spec in between.items():
        value = found[name]
        value.name, value.shape = name, ir.Shape(spec.shape)
        model.graph.outputs.append(value)
    leave_out_unused(model)


def _take(model: ir.Model, component: Component, between: Mapping[str, TensorSpec]) -> None:
    """Make inputs of these, and leave out what only they needed."""
    import onnx_ir as ir

    for name, value in _border(model, component).items():
        given = ir.Value(name=name, shape=ir.Shape(between[name].shape), type=ir.TensorType(ir.DataType.FLOAT))
        for user, index in list(value.uses()):
            user.replace_input_with(index, given)
        model.graph.inputs.append(given)
    leave_out_unused(model)


def cut_prompt_part(component: Component) -> dict[str, Component]:
    """Write both graphs beside the component's, which stays, and describe them: name -> component.

    They lie in the same folder, since a runtime reads no weights from another.

    Raises:
        BadInput: see `cut`.
    """
    import onnx_ir as ir

    made = cut(component)
    parts = {}
    for model, kind in ((made.prompt, PROMPT), (made.step, STEP)):
        path = component.graph_path.with_name(f"{component.graph_path.stem}{kind}.onnx")
        path.unlink(missing_ok=True)  # it may be a link to another artifact's file
        ir.save(model, path)
        names = {value.name for value in model.graph.inputs}
        inputs = {n: s for n, s in {**component.inputs, **made.between}.items() if n in names}
        used = {dim for spec in inputs.values() for dim in spec.shape if isinstance(dim, str)}
        parts[component.name + kind] = replace(
            component,
            name=component.name + kind,
            graph=path.relative_to(component.root).as_posix(),
            inputs=inputs,
            outputs=made.between if kind == PROMPT else component.outputs,
            shapes={symbol: sizes for symbol, sizes in component.shapes.items() if symbol in used},
            proof={"graph": NOT_RUN, "weights": component.proof.get("weights", NOT_RUN), "numeric": NOT_RUN},
            details=component.details | {DETAIL: {"of": component.name}},
        )
    return parts


def prompt_parts(components: Mapping[str, Component], denoiser: str) -> dict[str, Component]:
    """The parts of a denoiser, and of its shallow graph where it has one.

    Raises:
        BadInput: see `cut`.
    """
    from ..pipelines.step_cache import SHALLOW

    names = [name for name in (denoiser, denoiser + SHALLOW) if name in components]
    return {name: part for whole in names for name, part in cut_prompt_part(components[whole]).items()}
