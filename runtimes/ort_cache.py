"""What ONNX Runtime keeps between runs: graphs that it optimized for the CPU, and what other providers build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..core.artifact import Component, hash_file, identity
from ..core.cache import Cache, key_of
from ..core.errors import BadArtifact
from .ort_providers import CPU, Provider

_FORM = [ort.__version__, 2]  # raise the number when `optimized` writes other graphs than before


def optimized(component: Component) -> Path:
    """The graph as ONNX Runtime optimized it for the CPU, from the cache or made now: a full copy of the weights.

    Where the cache's bound is too small for it, or another process is writing it, the component's own graph.
    """
    cache = Cache()
    if sum(w.bytes for w in component.weights) > cache.limit:
        return component.graph_path
    level = str(component.precision.get("accuracy_level", 0))
    key = _key(component, level, _FORM)
    found = cache.get("onnxruntime", key)
    if found is None:
        with cache.put("onnxruntime", key) as scratch:
            writing = ort.SessionOptions()
            writing.log_severity_level = 4
            # what is beyond this level depends on the processor, which a shared cache would not survive
            writing.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            writing.optimized_model_filepath = str(scratch / "model.onnx")
            writing.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "model.onnx.data"
            )
            writing.add_session_config_entry("session.disable_prepacking", "1")
            writing.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
            ort.InferenceSession(str(component.graph_path), writing, providers=[CPU.title])
        found = cache.get("onnxruntime", key)
    if found is None:
        return component.graph_path  # another process is writing it
    return found / "model.onnx"


def built_folder(component: Component, row: Provider, version: str) -> str | None:
    """A folder for what a provider builds of this graph with these weights; None where the cache holds no such thing.

    The libraries look at the graph's name at most, and would serve an engine with other weights: so each has its own.
    """
    cache, kind = Cache(), f"onnxruntime-{row.name}"
    if sum(w.bytes for w in component.weights) > cache.limit:
        return None
    key = _key(component, row.title, [ort.__version__, version])
    if cache.get(kind, key) is None:
        with cache.put(kind, key):
            pass  # the provider fills it while a session is opened
    found = cache.get(kind, key)
    return None if found is None else str(found)


def _key(component: Component, *more: Any) -> str:
    try:
        weights = [identity(component, w) for w in component.weights]
        return key_of([hash_file(component.graph_path), weights, *more])
    except OSError as exc:
        what = f"{component.graph} or its weights cannot be read: {exc}."
        raise BadArtifact(what, "Copy the whole folder again or export again.") from exc
