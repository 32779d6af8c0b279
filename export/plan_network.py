"""A component's graph in TensorRT's hands: parsed, held against the manifest, its sizes set, and read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.artifact import Component
from ..core.errors import BadArtifact, BadInput
from ..core.tensors import TensorSpec
from ..runtimes.plan_weights import PlanWeight
from ..runtimes.trt_engine import DTYPES, plain
from .libraries import export_libraries


def parse(parser: Any, component: Component, precision: str, title: str, inputs: Mapping[str, PlanWeight]) -> None:
    """Read the graph into the parser's network; weights beside the graph are mapped, not copied.

    Args:
        inputs: the weights that become inputs.

    Raises:
        BadArtifact: the graph is missing.
        BadInput: the library does not read it; names the node.
    """
    path = component.graph_path
    if not path.is_file():
        raise BadArtifact(f"{path} is missing.", "Copy the whole folder again or export again.")
    half, rounded = precision != "float32", component.precision.get("activations") != "float32"
    if half or rounded or inputs:
        parsed = parser.parse(_changed(path, precision, inputs), str(path))
    else:
        parsed = parser.parse_from_file(str(path))
    if not parsed:
        error = parser.get_error(0) if parser.num_errors else None
        said = plain(error.desc()) if error else "the parser does not say why"
        node = " ".join(part for part in (error.node_operator(), error.node_name()) if part) if error else ""
        at = f" at the node {node}" if node else ""
        raise BadInput(f"{title} cannot read {component.graph}{at}: {said}", "Compile it for another runtime.")


@export_libraries()
def _changed(path: Path, precision: str, inputs: Mapping[str, PlanWeight]) -> bytes:
    """The graph as TensorRT takes it; its weights stay where they are."""
    import onnx_ir as ir

    from .half import compute_in_half
    from .plan_weights import weights_to_inputs
    from .signed import make_signed

    model = ir.load(path)
    make_signed(model)
    if precision != "float32":
        compute_in_half(model, precision)
    weights_to_inputs(model, inputs)
    return bytes(ir.to_proto(model).SerializeToString())


def check_network(network: Any, component: Component, weights: Mapping[str, PlanWeight]) -> None:
    """Hold the network's inputs and outputs against the component's.

    Args:
        weights: those that are inputs beside the component's own.

    Raises:
        BadInput: another name, type or shape, or an input whose values decide sizes.
    """
    found = dict(_spec(network.get_input(n)) for n in range(network.num_inputs))
    made = dict(_spec(network.get_output(n)) for n in range(network.num_outputs))
    for name, weight in weights.items():
        dtype, shape = found.pop(name, (weight.dtype, weight.shape))  # one that nothing uses is none of its inputs
        if (dtype, shape) != (weight.dtype, weight.shape):
            raise BadInput(
                f"The weight {name} of {component.graph} is {dtype} {list(shape)}, its file says {weight.dtype} "
                f"{list(weight.shape)}.",
                "Leave --apart out.",
            )
    for kind, specs, has in (("input", component.inputs, found), ("output", component.outputs, made)):
        if set(specs) != set(has):
            raise BadInput(
                f"{component.graph} has the {kind}s {', '.join(has)}; the manifest says {', '.join(specs)}.",
                "Export the model again.",
            )
        for name, spec in specs.items():
            dtype, shape = has[name]
            if dtype is not spec.dtype or len(shape) != len(spec.shape) or not _agree(shape, spec):
                raise BadInput(
                    f"The {kind} {name} of {component.graph} is {dtype or 'of another type'} {list(shape)}; the "
                    f"manifest says {spec.dtype} {list(spec.shape)}.",
                    "Export the model again.",
                )
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if tensor.is_shape_tensor:
            raise BadInput(f"The values of {tensor.name} decide sizes.", "Compile it for another runtime.")


def _spec(tensor: Any) -> tuple[str, tuple[Any, tuple[int, ...]]]:
    return tensor.name, (DTYPES.get(tensor.dtype.name), tuple(tensor.shape))


def _agree(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """-1 is a size that the network leaves open."""
    return all(has in (-1, told) or isinstance(told, str) for has, told in zip(shape, spec.shape, strict=True))


def profile_of(builder: Any, component: Component) -> Any:
    """min, optimum and max of every input.

    Raises:
        BadInput: a size that the manifest does not give, or sizes that do not grow.
    """
    profile = builder.create_optimization_profile()
    for name, spec in component.inputs.items():
        unknown = [d for d in spec.shape if isinstance(d, str) and d not in component.shapes]
        if unknown:
            raise BadInput(f"The manifest gives no sizes for {unknown[0]} of {name}.", "Export the model again.")
        sizes = [tuple(component.shapes[d][k] if isinstance(d, str) else d for d in spec.shape) for k in range(3)]
        try:
            profile.set_shape(name, *sizes)
        except (ValueError, RuntimeError) as exc:
            raise BadInput(
                f"{component.name} cannot be built for {name} of {' to '.join(str(list(s)) for s in sizes)}: {exc}.",
                "Give sizes that grow from the least to the most.",
            ) from exc
    return profile


def described(trt: Any, network: Any, config: Any, profile: Any, component: Component) -> dict[str, Any]:
    """What the library itself says of a network and of how it will be built, for the manifest: read back, not repeated.

    inputs: of each the dtype, the shape (-1: open), and min, optimum and max of the profile.
    """
    kinds = Counter(network.get_layer(n).type.name for n in range(network.num_layers))
    inputs: dict[str, Any] = {}
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if tensor.name in component.inputs:
            name, (dtype, shape) = _spec(tensor)
            inputs[name] = {"dtype": str(dtype), "shape": list(shape)}
            sizes = [list(size) for size in profile.get_shape(name)]
            inputs[name] |= dict(zip(("min", "opt", "max"), sizes, strict=True))
    outputs = dict(_spec(network.get_output(n)) for n in range(network.num_outputs))
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]
    return {
        "layers": network.num_layers,
        "kinds": dict(sorted(kinds.items())),
        "inputs": inputs,
        "outputs": {name: {"dtype": str(dtype), "shape": list(shape)} for name, (dtype, shape) in outputs.items()},
        "weight_inputs": network.num_inputs - len(inputs),
        "flags": flags,
        "workspace": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "inspector": "not read: needs a GPU",
    }
