"""Encoded prompts in the cache folder, so that the next process need not open the text encoder.

An entry is one safetensors file with what the encoder gave. Its key holds whatever decides that: the graph, the
weights and changed weights, the runtime, its version, device and options, the processors, and the tokens. So results of
different runtimes or precisions never stand in for each other. No text of a prompt is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ..core.artifact import Component, hash_file, identity
from ..core.cache import Cache, key_of
from ..core.dtypes import NAMES
from ..core.errors import BadArtifact, DeviceError, DiskError, VitrifyError
from ..core.machine import LIBRARIES, processor, versions_of
from ..core.safetensors_header import read_header, read_metadata, read_tensor
from ..core.safetensors_writer import SafetensorsWriter
from ..core.tensors import Array

KIND = "prompts"
_FILE = "states.safetensors"
_SUM = "sha256"
_FORM = 2  # raise the number when entries are made in another way than before
_STORED = {numpy: name for name, numpy in NAMES.items() if numpy in ("float16", "float32", "float64", "int32", "int64")}
_BUILDS = ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "tensorrt", "tensorrt-cu12")


class Entries:
    """What one text encoder gave.

    Args:
        way: what it is opened with, as `opening` says it: runtime, device, options. None: not known, and nothing is
            kept.
        say: is told once, in a line, that the folder cannot be written.

    Raises:
        UsageError: $VITRIFY_CACHE_MAX is not a number of bytes.
    """

    def __init__(self, component: Component, way: Any, say: Callable[[str], None]) -> None:
        self._component, self._way, self._say = component, way, say
        self._cache: Cache | None = Cache() if way is not None else None
        self._encoder: list[Any] = []
        self._writable = True

    def get(self, tokens: str, changed: str) -> dict[str, Array] | None:
        """What it gave, as arrays of the caller's own; None where there is no whole entry.

        Args:
            tokens: what tells its inputs from any others. changed: the same of its changed weights; empty for none.

        Raises:
            BadArtifact: the graph or its weights cannot be read.
        """
        if self._cache is None:
            return None
        key = self._key(tokens, changed)
        with suppress(OSError, VitrifyError, ValueError):  # damaged, or removed just now: it is encoded again
            folder = self._cache.get(KIND, key)
            if folder is not None:
                path = folder / _FILE
                found = {n: np.array(read_tensor(entry)) for n, entry in read_header(path).items()}
                if found and read_metadata(path).get(_SUM) == _sum(found):
                    return found
        return None

    def put(self, tokens: str, changed: str, answer: Mapping[str, Array]) -> None:
        """Keep what it gave. A folder that cannot be written stops no drawing: it is told once.

        Raises:
            BadArtifact: the graph or its weights cannot be read.
        """
        if self._cache is None or not self._writable or any(a.dtype.name not in _STORED for a in answer.values()):
            return
        if sum(value.nbytes for value in answer.values()) > self._cache.limit:
            return  # it would be dropped at once, after all the others
        tensors = {n: (_STORED[a.dtype.name], tuple(a.shape)) for n, a in answer.items()}
        try:
            with (
                self._cache.put(KIND, self._key(tokens, changed)) as scratch,
                SafetensorsWriter(scratch / _FILE, tensors, {_SUM: _sum(answer)}) as writer,
            ):
                for name, value in answer.items():
                    writer.write(name, value)
        except (DiskError, OSError) as exc:
            self._writable = False
            self._say(f"prompts are not kept: {exc.what if isinstance(exc, DiskError) else exc}")

    def _key(self, tokens: str, changed: str) -> str:
        if not self._encoder:
            libraries = versions_of((*LIBRARIES, *_BUILDS))
            self._encoder = [_FORM, _content(self._component), self._way, libraries, processor(), _gpus(self._way)]
        return key_of([*self._encoder, changed, tokens])


def _content(component: Component) -> list[Any]:
    """What tells a graph with its weights from any others, as for what runtimes keep.

    Raises:
        BadArtifact: they cannot be read.
    """
    graph, listed = component.graph_path, {w.path for w in component.weights}
    try:
        weights = [identity(component, w) for w in component.weights]
        if component.graph in listed:  # as a plan's, which is large
            return [component.format, component.graph, weights]
        found: list[Any] = [component.format, hash_file(graph), weights]
        if component.format != "onnx":  # whose graphs name all their files; others take what lies beside them
            for file in sorted(p for p in graph.parent.iterdir() if p.is_file()):
                stat = file.stat()
                found.append([file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino])
        return found
    except OSError as exc:
        what = f"{component.graph} or its weights cannot be read: {exc}."
        raise BadArtifact(what, "Copy the whole folder again or export again.") from exc


def _gpus(way: Any) -> list[str]:
    """The GPUs of this machine, where one of them encodes: the cache folder may be that of several machines."""
    if "cuda" not in str(way):
        return []
    from ..runtimes.cuda import find_gpus

    with suppress(DeviceError):
        return [str(gpu) for gpu in find_gpus()]
    return []


def _sum(answer: Mapping[str, Array]) -> str:
    """Of names and bytes; what else is wrong with a file its header tells."""
    found = hashlib.sha256()
    for name in sorted(answer):
        found.update(f"{name}\0".encode())
        found.update(np.asarray(answer[name]).tobytes())
    return found.hexdigest()
