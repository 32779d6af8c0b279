"""The graphs of architectures: made once, proved with random weights, kept in the cache without any."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.cache import Cache, key_of
from ..core.progress import Event, Report
from .graph import OPSET, graph_from_module, operators
from .libraries import version
from .spec import ComponentSpec, Config
from .twin import prove_graph, prove_itself

if TYPE_CHECKING:
    import onnx_ir as ir

KIND = "graphs"
_SMALL = 20_000_000  # parameters up to which an architecture needs no twin to be proved: its own weights are 80 MB
FORM = 3  # raise it when graph_from_module writes other graphs than before
# config entries that change no tensor of the graph
_IDLE = (
    *("_name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype", "architectures"),
    *("id2label", "label2id", "problem_type", "_commit_hash", "scaling_factor", "shift_factor", "sample_size"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "force_upcast", "_use_default_values"),
)


@dataclass(frozen=True)
class Graph:
    """An architecture's graph. model: without weights. proof: see twin.py. note: why it was made or reused."""

    key: str
    model: ir.Model
    proof: dict[str, Any]
    note: str


def shaping(spec: ComponentSpec, config: Config) -> Config:
    """The entries of a config that a graph depends on."""
    kept = {k: v for k, v in config.items() if k not in _IDLE}
    # the end token decides which position a CLIP pools; sizes that only a resize would use do not enter a graph
    ends = {k: config[k] for k in ("eos_token_id",) if spec.kind.startswith("clip_text") and k in config}
    # positions that are computed are those of the size that the model was trained with, stretched
    stretched = config.get("interpolation_scale") is not None
    sizes = {k: config[k] for k in ("sample_size",) if stretched and k in config}
    return kept | ends | sizes


def graph_parts(spec: ComponentSpec, config: Config) -> dict[str, Any]:
    """What a graph depends on: the module and its config, its inputs and outputs, the opset and the exporters.

    Raises:
        MissingDependency: an exporter's library is not installed.
    """
    specs = {**spec.inputs(config), **spec.outputs(config)}
    names = ("torch", "onnxscript", "onnx-ir", spec.library)
    return {
        "kind": spec.kind,
        "config": shaping(spec, config),
        "tensors": {n: s.to_json(n) for n, s in specs.items()},
        "opset": OPSET,
        "form": FORM,
        "versions": {n: version(n) for n in names},
    }


def graph_for(spec: ComponentSpec, config: Config, cache: Cache, report: Report) -> Graph:
    """The graph of this architecture, from the cache or made and proved now.

    On a hit torch is not imported.

    Raises:
        BadInput: the config cannot be built or traced.
        ProofFailed: the graph, or that of the narrow twin, does not compute what its module does.
    """
    parts = graph_parts(spec, config)
    import onnx_ir as ir  # after the line above, which says what is not installed

    key = key_of(parts)
    found = cache.get(KIND, key)
    if found is not None:
        known = json.loads((found / "graph.json").read_text())
        return Graph(key, ir.load(found / "model.onnx"), known["proof"], f"graph {key[:8]} from the cache")
    why = _why(parts, cache)
    report(Event(f"trace {spec.name}", note=f"{spec.name}: no graph {key[:8]} in the cache ({why})"))
    model = graph_from_module(spec, config)
    report(Event(f"prove {spec.name}"))
    small = sum(math.prod(v.shape.numpy()) for v in model.graph.initializers.values() if v.shape) <= _SMALL
    proof = prove_itself(spec, config, model) if small else prove_graph(spec, config, operators(model))
    with cache.put(KIND, key) as scratch:
        ir.save(model, scratch / "model.onnx")
        (scratch / "graph.json").write_text(json.dumps({"parts": parts, "proof": proof}, indent=1))
    kept = cache.get(KIND, key)
    if kept is not None:
        return Graph(key, ir.load(kept / "model.onnx"), proof, f"graph {key[:8]} made ({why})")
    return Graph(key, _through_disk(model), proof, f"graph {key[:8]} made ({why}), larger than the cache")


def _through_disk(model: ir.Model) -> ir.Model:
    """The model as a reader of its file sees it."""
    import onnx_ir as ir

    folder = Path(tempfile.mkdtemp())
    try:
        ir.save(model, folder / "model.onnx")
        return ir.load(folder / "model.onnx")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _why(parts: dict[str, Any], cache: Cache) -> str:
    """What differs from the graph in the cache that is nearest, in a few words."""
    nearest: list[str] | None = None
    for entry in cache.entries():
        if entry.kind != KIND:
            continue
        try:
            other = json.loads((entry.path / "graph.json").read_text())["parts"]
        except (OSError, ValueError, KeyError):
            continue
        if other.get("kind") != parts["kind"]:
            continue
        changed = [f"{g} {k}" for g in ("config", "versions") for k in _changed(parts[g], other.get(g, {}))]
        changed += [k for k in ("tensors", "opset", "form") if parts[k] != other.get(k)]
        if changed and (nearest is None or len(changed) < len(nearest)):
            nearest = changed
    if nearest is None:
        return "the first of its kind"
    return "differs from the nearest in " + ", ".join(nearest[:3]) + (" and more" if len(nearest) > 3 else "")


def _changed(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
