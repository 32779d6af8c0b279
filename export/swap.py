"""The graphs of an artifact for another model of the same architecture: a fine-tune without a trace.

A graph holds no weights but where they lie. Taken back to that, it is the graph that the exporter made, and other
weights can be pointed into it; what it computes was proved when it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..core.artifact import NOT_RUN, Artifact, Component
from ..core.cache import key_of
from ..core.errors import BadInput, MissingDependency
from ..core.json_file import read_json_object
from ..core.safetensors_header import TensorEntry, read_header
from .binding import COMPUTED
from .families.merging import ratio_of
from .graph import PLACEHOLDER
from .graphs import Graph, graph_parts, shaping
from .spec import ComponentSpec, Config
from .step_cache import forget_deep

if TYPE_CHECKING:
    import onnx_ir as ir

FRESH = "Leave --graph-from out: the model's own graph is traced then."


def graph_from_artifact(artifact: Artifact, spec: ComponentSpec, config: Config) -> Graph:
    """An artifact's graph of a component, without its weights.

    Args:
        config: of the model whose weights the graph is for.

    Raises:
        BadInput: the artifact has no such component, it is quantized or of another format, or of another architecture.
    """
    component = artifact.components.get(spec.name)
    if component is None:
        raise BadInput(f"{artifact.root} has no {spec.name}.", f"Name an artifact of the same family. {FRESH}")
    _check_exact(artifact, component)
    _check_merging(artifact, component, spec)
    import onnx_ir as ir

    model = ir.load(component.graph_path)
    component = forget_deep(component, model)  # this model is cut where it is asked for
    _check_inputs(artifact, component, spec, config)
    _check_config(artifact, component, spec, config)
    forget_weights(model)
    proof = component.proof.get("graph", NOT_RUN)
    return Graph(_key(spec, config), model, proof, f"graph of {artifact.root}")


def _check_exact(artifact: Artifact, component: Component) -> None:
    recipe = component.precision.get("recipe")
    if component.format != "onnx" or recipe != "fp32":
        kind = f"quantized ({recipe})" if recipe != "fp32" else f"of the format {component.format}"
        raise BadInput(
            f"{artifact.root}: its {component.name} is {kind}; its graph was made for its own weights.",
            "Name the float32 ONNX artifact that it was compiled from, and compile the new one again.",
        )


def _check_merging(artifact: Artifact, component: Component, spec: ComponentSpec) -> None:
    has, wants = ratio_of(component.details.get("kind", "")), ratio_of(spec.kind)
    if has != wants:
        fix = f"Give --tome {has}, or leave --graph-from out." if has else FRESH
        raise BadInput(
            f"{artifact.root}: its {component.name} merges {f'{has:g} of its' if has else 'no'} tokens, this model's "
            f"shall merge {f'{wants:g} of them' if wants else 'none'}.",
            fix,
        )


def _check_inputs(artifact: Artifact, component: Component, spec: ComponentSpec, config: Config) -> None:
    for kind, has, wants in (
        ("inputs", component.inputs, spec.inputs(config)),
        ("outputs", component.outputs, spec.outputs(config)),
    ):
        if dict(has) != wants:
            changed = sorted(n for n in has.keys() | wants.keys() if has.get(n) != wants.get(n))
            raise BadInput(
                f"{artifact.root}: its {component.name} has other {kind} than this model: {', '.join(changed)}.", FRESH
            )


def _check_config(artifact: Artifact, component: Component, spec: ComponentSpec, config: Config) -> None:
    """Refuse a graph that was traced with another config; an entry that one side leaves out has its default there."""
    path = component.graph_path.parent / "config.json"
    has, wants = shaping(spec, read_json_object(path)), shaping(spec, config)
    differing = sorted(n for n in has.keys() & wants.keys() if has[n] != wants[n])
    alone = sorted(has.keys() ^ wants.keys())
    if alone and not differing:
        known = _defaults(artifact, spec, config, alone)
        differing = [n for n in alone if n not in known or {**has, **wants}[n] != known[n]]
    if differing:
        name = differing[0]
        raise BadInput(
            f"{artifact.root}: its {component.name} is of another architecture: {name} is "
            f"{has.get(name, 'not set')} in its config.json and {wants.get(name, 'not set')} in this model's"
            f"{f' (and {len(differing) - 1} more)' if len(differing) > 1 else ''}.",
            FRESH,
        )


def _defaults(artifact: Artifact, spec: ComponentSpec, config: Config, names: list[str]) -> dict[str, Any]:
    """What the library takes for these entries where a config.json has none."""
    import inspect

    try:
        from ..runtimes.torch.modules import kind_named
    except ImportError as exc:
        raise MissingDependency(
            f"{artifact.root} and this model have config.json of different versions ({', '.join(names[:3])}); which "
            "values they leave out only diffusers and transformers know, which are not installed.",
            'pip install "vitrify[export]"',
        ) from exc
    cls = kind_named(spec.kind).load_class(config)
    if spec.library == "transformers":
        own = cls.config_class if hasattr(cls, "config_class") and cls.config_class is not None else None
        made = own().to_dict() if own is not None else {}
        return {name: made[name] for name in names if name in made}
    parameters = inspect.signature(cls.__init__).parameters
    found = {name: parameters[name].default for name in names if name in parameters}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in found.items()}


def _key(spec: ComponentSpec, config: Config) -> str:
    """The key under which bindings of this architecture are remembered; one of its own where no exporter is here."""
    try:
        return key_of(graph_parts(spec, config))
    except MissingDependency:
        return ""


def forget_weights(model: ir.Model) -> None:
    """Take a linked graph back to what the exporter made: every parameter a placeholder in the type it computes in.

    Args:
        model: changed in place.
    """
    import onnx_ir as ir

    graph = model.graph
    for value in graph.initializers.values():
        stored = value.const_value
        if not isinstance(stored, ir.ExternalTensor):
            continue
        dtype, cast = stored.dtype, _cast_of(value)
        if cast is not None:
            out = cast.outputs[0]
            dtype = ir.DataType(cast.attributes["to"].as_int())
            for user, index in list(out.uses()):
                user.replace_input_with(index, value)
            graph.remove(cast, safe=True)
        value.dtype = dtype
        value.const_value = ir.ExternalTensor(
            location=PLACEHOLDER, offset=0, length=0, dtype=dtype, shape=stored.shape, name=value.name or ""
        )


def _cast_of(value: ir.Value) -> ir.Node | None:
    """The Cast that `link_weights` put behind a parameter that is stored in another float type."""
    users = [node for node, _ in value.uses()]
    named = f"{value.name}.cast"
    return users[0] if len(users) == 1 and users[0].op_type == "Cast" and users[0].name == named else None


def entries_by_name(
    artifact: Artifact, spec: ComponentSpec, model: ir.Model, checkpoint: Mapping[str, TensorEntry]
) -> dict[str, TensorEntry] | None:
    """Parameter name -> its bytes, where names alone tell which tensor is which; else None, and the module must say.

    The artifact's own files tell under which name a checkpoint holds each parameter. Where the new one has other names,
    those of the parameters themselves are looked for. A tensor that neither knows is left to the module.
    """
    import onnx_ir as ir

    wanted = [n for n, v in model.graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)]
    component = artifact.components[spec.name]
    for names, known in (_names_of(component), ({name: name for name in wanted}, set(wanted))):
        rest = [n for n in checkpoint if n not in known and not n.startswith(spec.unused) and not COMPUTED.search(n)]
        if not rest and all(names.get(name) in checkpoint for name in wanted):
            return {name: checkpoint[names[name]] for name in wanted}
    return None


def _names_of(component: Component) -> tuple[dict[str, str], set[str]]:
    """Parameter -> its tensor's name in the artifact's file, and every name in those files."""
    import onnx_ir as ir

    folder = PurePosixPath(component.graph).parent
    headers = {w.path: read_header(component.root / w.path) for w in component.weights}
    places = {(file, e.offset, e.length): name for file, header in headers.items() for name, e in header.items()}
    found: dict[str, str] = {}
    for name, value in ir.load(component.graph_path).graph.initializers.items():
        stored = value.const_value
        if isinstance(stored, ir.ExternalTensor):
            source = places.get(((folder / str(stored.location)).as_posix(), stored.offset or 0, stored.length or 0))
            found |= {name: source} if source is not None else {}
    return found, {name for header in headers.values() for name in header}
