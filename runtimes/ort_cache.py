"""What ONNX Runtime keeps between runs: graphs that it optimized for the CPU, and what other providers build."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..core.artifact import Component, hash_file, identity
from ..core.cache import Cache, key_of
from ..core.errors import BadArtifact
from ..core.machine import processor
from .initializers import external_bytes
from .ort_providers import CPU, Provider
from .ort_source import Source, edited
from .ort_winograd import FORM
from .resident import OPENING

_FORM = [ort.__version__, 3]  # raise the number when `optimized` writes other graphs than before
_GRAPH, _FIRST = "model.onnx", "first"


def optimized(component: Component, *, prepack: bool = True, fewer: bool = False) -> Source:
    """The graph as ONNX Runtime optimized it for this processor, from the cache or made now: a copy of the weights.

    They lie in the file in the layouts that the kernels want, those that prepacking makes among them, and are mapped
    from there: a session opens without laying out anything, and all sessions of all processes share that memory.
    Outputs are those of a session without it, bit for bit.

    Where the cache's bound is too small for it, or another process is writing it, what is not ready.

    Args:
        prepack: keep what prepacking makes, up to the size of the weights once more; left out, and done anew by each
            session, where the cache's bound is too small for that.
        fewer: as of `edited`.
    """
    # not the files' sizes: a VAE's holds the encoder's weights too, and a shallow graph's all of its denoiser's
    cache, size = Cache(), external_bytes(component.graph_path)
    if size > cache.limit:
        return edited(component, {}, fewer=fewer)
    packed = prepack and 2 * size <= cache.limit
    level = str(component.precision.get("accuracy_level", 0))
    tiles = [[FORM, component.usual_sizes()]] if fewer else []
    key = _key(component, level, packed, *tiles, _FORM, processor())
    found = cache.get("onnxruntime", key)
    if found is None:
        source = edited(component, {}, fewer=fewer)
        size += source.grown
        if size > cache.limit:
            return source
        with cache.put("onnxruntime", key) as scratch:
            first = scratch / _FIRST
            first.mkdir()
            # once more over what came out: operators that were taken apart leave casts between them the first time
            _write(source, first, level, packed=False)
            _write(Source(str(first / _GRAPH)), scratch, level, packed=packed and 2 * size <= cache.limit)
            shutil.rmtree(first)
        found = cache.get("onnxruntime", key)
        if found is None:  # another process is writing it
            return source
    return Source(str(found / _GRAPH), kept=found)


def _write(source: Source, folder: Path, level: str, *, packed: bool) -> None:
    writing = ort.SessionOptions()
    writing.log_severity_level = 4
    writing.optimized_model_filepath = str(folder / _GRAPH)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", f"{_GRAPH}.data"),
        ("session.qdq_matmulnbits_accuracy_level", level),
        # without `packed` nothing is packed at all, which saves the time: no call is made here
        ("session.save_external_prepacked_constant_initializers" if packed else "session.disable_prepacking", "1"),
    ):
        writing.add_session_config_entry(name, value)
    held = source.settle(writing)
    with OPENING.turn(alone=False):  # it maps the weights for a while
        ort.InferenceSession(source.model, writing, providers=[CPU.title])
    del held  # it had to live until here


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
