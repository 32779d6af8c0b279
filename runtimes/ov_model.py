"""OpenVINO's models: read, described, with changed weights; and its exceptions as ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import frontend, opset13

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure, VitrifyError
from ..core.tensors import Array, DType, TensorSpec
from .initializers import bfloat16_bits, bfloat16_values, check_listed, external_initializers
from .low_rank import LowRank, Override, no_weight, wrong_shape
from .ov_branches import add_branches

VERSION = ov.__version__.split("-")[0]
_TYPES = {
    "f32": DType.FLOAT32,
    "f16": DType.FLOAT16,
    "bf16": DType.BFLOAT16,
    "f64": DType.FLOAT64,
    "i64": DType.INT64,
    "i32": DType.INT32,
    "i16": DType.INT16,
    "i8": DType.INT8,
    "u8": DType.UINT8,
    "boolean": DType.BOOL,
}
_FLOATS = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "bf16": np.float32}
_SIZES = ("shape_inference", "shape infer", "while validating node")  # said where sizes do not fit each other
_AGAIN = "Copy the whole folder again or export again."
# nearly all is RuntimeError; the rest is what its binding makes of the C++ standard's exceptions, and its frontends'
LIBRARY: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    *(v for v in vars(frontend).values() if isinstance(v, type) and issubclass(v, Exception)),
)


@contextmanager
def translated(component: Component, device: Device | None = None, *, reading: bool = False) -> Iterator[None]:
    """Turn the library's exceptions into ours, once, here.

    Args:
        device: where the component is being opened, if it is.
        reading: its graph and weights are being read, so that they are at fault.
    """
    try:
        yield
    except LIBRARY as exc:
        raise _translation(exc, component, device, reading) from exc


def _translation(exc: BaseException, component: Component, device: Device | None, reading: bool) -> VitrifyError:
    text = _words(exc)
    if isinstance(exc, MemoryError) or "alloc" in text.lower():
        return RuntimeFailure(f"{component.name} ran out of memory: {text}", "Use a smaller size or batch.")
    if "No conversion rule" in text:
        return RuntimeFailure(
            f"OpenVINO {VERSION} has no such operator ({component.graph}): {text}",
            "pip install --upgrade openvino, or run it with --runtime onnx.",
        )
    if reading:
        return BadArtifact(f"{component.graph} or its weights do not load: {text}", _AGAIN)
    if device is None and any(said in str(exc).lower() for said in _SIZES):
        return BadInput(f"{component.name} refused the sizes of its inputs: {text}", "Check the sizes.")
    if device is None:
        return RuntimeFailure(f"OpenVINO failed in {component.name}: {text}", "Run `vitrify doctor`.")
    if device.kind == "cpu":
        return RuntimeFailure(f"OpenVINO failed to open {component.name}: {text}", "Run `vitrify doctor`.")
    return DeviceError(
        f"OpenVINO does not open {component.name} on {device}: {text}",
        "Check the driver with `vitrify doctor`, or give --device cpu.",
    )


def _words(exc: BaseException) -> str:
    """What an exception says, without the places in the library's own source that its messages begin with."""
    places = ("Exception from ", "Check '", "FrontEnd API failed", "Summary:", "Loading input model")
    lines = [line.strip() for line in str(exc).splitlines()]
    said = [line for line in lines if line and not line.startswith(places)]
    return " ".join(said or lines or [type(exc).__name__])[:300]


def read(core: ov.Core, component: Component, overrides: Mapping[str, Override]) -> ov.Model:
    """The component's graph over its weights, which stay mapped from their files.

    Raises:
        BadArtifact: it does not load, or the manifest describes another graph.
        BadInput: an override has no weight of its name and shape.
    """
    if component.format == "onnx":
        check_listed(component)
    model = load(core, component)
    ports(component, model)
    if overrides:
        onnx = component.format == "onnx"
        _replace(component, model, overrides, set(external_initializers(component.graph_path)) if onnx else None)
    return model


def load(core: ov.Core, component: Component) -> ov.Model:
    """The component's graph, whatever it takes and gives.

    Raises:
        BadArtifact: it does not load.
    """
    if component.format == "onnx":
        external_initializers(component.graph_path)  # of a file that is no ONNX, each frontend would try its luck
    with translated(component, reading=True):
        # never compile_model(path): with a cache folder that serves old weights under the same graph
        model = core.read_model(str(component.graph_path))
        if component.format == "openvino":
            _take_floats(component, model)
        return model


def _take_floats(component: Component, model: ov.Model) -> None:
    """Take as float32 what the graph declares as whole numbers and converts at once, where the manifest says float32.

    A timestep is declared so for OpenVINO GenAI (`export.ir`), but some schedulers stop between whole numbers.
    """
    for given in model.get_parameters():
        spec = next((s for n, s in component.inputs.items() if n in given.output(0).get_names()), None)
        if spec is None or spec.dtype != DType.FLOAT32 or given.get_element_type() != ov.Type.i64:
            continue
        users = [target.get_node() for target in given.output(0).get_target_inputs()]
        if all(u.get_type_name() == "Convert" and u.get_output_element_type(0) == ov.Type.f32 for u in users):
            given.set_element_type(ov.Type.f32)
            given.set_partial_shape(ov.PartialShape([d if isinstance(d, int) else -1 for d in spec.shape]))
            model.validate_nodes_and_infer_types()


def ports(component: Component, model: ov.Model | ov.CompiledModel) -> dict[str, int]:
    """The number of each output, by the manifest's name; inputs are held against the manifest too.

    Raises:
        BadArtifact: other names or element types than the manifest says.
    """
    outputs: dict[str, int] = {}
    for kind, specs, found in (
        ("inputs", component.inputs, model.inputs),
        ("outputs", component.outputs, model.outputs),
    ):
        owners = {name: [i for i, port in enumerate(found) if name in port.get_names()] for name in specs}
        if len(found) != len(specs) or sorted(i for o in owners.values() for i in o) != list(range(len(found))):
            raise BadArtifact(
                f"{component.graph} has the {kind} {', '.join(map(_name, found))}; "
                f"the manifest says {', '.join(specs)}.",
                _AGAIN,
            )
        for name, spec in specs.items():
            kept = precision_of(found[owners[name][0]].get_element_type())
            if kept != spec.dtype:
                raise BadArtifact(f"{component.graph} has {name} as {kept}; the manifest says {spec.dtype}.", _AGAIN)
        outputs = {name: numbers[0] for name, numbers in owners.items()}
    return outputs


def describe(graph: Path, model: ov.Model) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Inputs and outputs of a model that no manifest describes. OpenVINO keeps no names of sizes: each gets its own.

    Raises:
        BadArtifact: an element type that is not supported.
    """

    def specs(found: Sequence[ov.Output]) -> dict[str, TensorSpec]:
        made = {}
        for port in found:
            name, kept = _name(port), port.get_element_type().get_type_name()
            if kept not in _TYPES or port.get_partial_shape().rank.is_dynamic:
                raise BadArtifact(f"{graph}: {name} is {kept} of any rank, which is not supported.", "Export it again.")
            dims = enumerate(port.get_partial_shape())
            shape = tuple(d.get_length() if d.is_static else f"{name}_{i}" for i, d in dims)
            made[name] = TensorSpec(_TYPES[kept], shape)
        return made

    return specs(model.inputs), specs(model.outputs)


def _name(port: ov.Output) -> str:
    """The one of a tensor's names that its node bears, so that an alias from inside the graph is not taken for it."""
    names = sorted(port.get_names())
    own = port.get_node().get_friendly_name().partition("/sink_port_")[0]
    return str(own if own in names or not names else names[0])


def _replace(
    component: Component, model: ov.Model, overrides: Mapping[str, Override], weights: set[str] | None
) -> None:
    """Put changed weights in their Constants' places, rounded to the stored type, and branches beside their layers.

    The arrays are copied.

    weights: the names that may be changed, where a graph says which of its Constants are weights.
    """
    graph = component.graph_path.name
    nodes: dict[str, ov.Node] = {}
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if name in overrides and node.get_type_name() == "Constant" and (weights is None or name in weights):
            nodes[name] = node
    branches: dict[str, LowRank] = {}
    for name, value in overrides.items():  # one at a time: each may be computed when it is asked for
        if isinstance(value, LowRank):
            branches[name] = value
            continue
        if name not in nodes:
            raise no_weight(name, graph)
        _replace_constant(nodes[name], name, value)
    if branches:
        add_branches(graph, model, branches)


def _replace_constant(node: ov.Node, name: str, value: Array) -> None:
    shape, kept = list(node.get_output_shape(0)), node.get_output_element_type(0)
    if list(value.shape) != shape:
        raise wrong_shape(name, value.shape, shape)
    if kept.get_type_name() not in _FLOATS:
        raise BadInput(
            f"Override {name}: the graph stores it as {kept.get_type_name()}, which is not replaced by name.",
            "Use the artifact in float32, float16 or bfloat16.",
        )
    changed = opset13.constant(_rounded(value, kept.get_type_name()), dtype=kept)
    changed.set_friendly_name(name)
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(changed.output(0))


def _rounded(value: Array, kept: str) -> Array:
    """Values that the stored type holds exactly: OpenVINO cuts float32 to bfloat16 instead of rounding it."""
    if kept != "bf16":
        return np.asarray(value, dtype=_FLOATS[kept], order="C")
    return bfloat16_values(bfloat16_bits(value))


def precision_of(kept: Any) -> str:
    """OpenVINO's element type by the name that numpy and safetensors users know."""
    name = kept.get_type_name()
    return _TYPES[name].value if name in _TYPES else name
