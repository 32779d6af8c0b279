"""The weights proof: every initializer of a graph traced to the tensor of the source that it must be."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.artifact import Component, WeightFile
from ..core.dtypes import ONNX
from ..core.errors import ProofFailed
from ..core.safetensors_header import TensorEntry, read_header

_BLOCK = 8 << 20
Json = dict[str, Any]


class FileHashes:
    """sha256 of files and of the tensors in them, in one pass over each file.

    Remembered by inode, so that a hard link is not read again, with size and time, so that a changed file is.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[str, dict[tuple[int, int], str]]] = {}

    def add(self, files: list[Path]) -> None:
        """Hash these safetensors files, two at a time."""
        todo = {self._key(f): f for f in files if self._key(f) not in self._known}
        with ThreadPoolExecutor(2) as pool:
            for key, result in zip(todo, pool.map(_hash, todo.values()), strict=True):
                self._known[key] = result

    def file(self, path: Path) -> str:
        self.add([path])
        return self._known[self._key(path)][0]

    def tensor(self, path: Path, offset: int, length: int) -> str | None:
        """The hash of these bytes where they are one tensor of the file or lie in one, else None."""
        self.add([path])
        tensors = self._known[self._key(path)][1]
        found = tensors.get((offset, length))
        if found is None and any(o <= offset and offset + length <= o + n for o, n in tensors):
            found = tensors[offset, length] = _hash_range(path, offset, length)
        return found

    @staticmethod
    def _key(path: Path) -> tuple[int, ...]:
        stat = os.stat(path)
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _hash(path: Path) -> tuple[str, dict[tuple[int, int], str]]:
    whole = hashlib.sha256()
    tensors: dict[tuple[int, int], str] = {}
    entries = sorted(read_header(path).values(), key=lambda e: e.offset)
    with path.open("rb") as stream:
        for entry in entries:
            if entry.offset > stream.tell():
                whole.update(stream.read(entry.offset - stream.tell()))
            one = hashlib.sha256()
            left = entry.length
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    raise ProofFailed(
                        f"{path} became shorter while it was read.", "Leave the file alone, run it again."
                    )
                whole.update(block)
                one.update(block)
                left -= len(block)
            tensors[entry.offset, entry.length] = one.hexdigest()
        while block := stream.read(_BLOCK):
            whole.update(block)
    return whole.hexdigest(), tensors


def _hash_range(path: Path, offset: int, length: int) -> str:
    """Of rows of a tensor, such as the query's part of a fused weight."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(offset)
        while length:
            block = stream.read(min(length, _BLOCK))
            if not block:
                raise ProofFailed(f"{path} became shorter while it was read.", "Leave the file alone, run it again.")
            digest.update(block)
            length -= len(block)
    return digest.hexdigest()


def prove_weights(component: Component, expected: Mapping[str, TensorEntry], hashes: FileHashes) -> Component:
    """Trace every external initializer of the component's graph on disk to its source tensor.

    Args:
        expected: initializer name -> the tensor of the source that it must be.

    Returns:
        The component with its files' hashes and `proof.weights`: how many tensors, and one sha256 over their sorted
        (name, dtype, shape, sha256).

    Raises:
        ProofFailed: names the initializer and what differs.
    """
    import onnx

    graph = onnx.load(str(component.graph_path), load_external_data=False).graph
    folder = Path(component.graph).parent
    stored = {onnx_name: name for name, onnx_name in ONNX.items()}
    listed = {w.path for w in component.weights}
    digest, count = hashlib.sha256(), 0
    for tensor in sorted(graph.initializer, key=lambda t: str(t.name)):
        entry = expected.get(tensor.name)
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            if entry is not None:
                raise _failed(tensor.name, "its bytes lie in the graph, where nothing holds them against its source")
            continue
        if entry is None:
            raise _failed(tensor.name, "the source has no such tensor")
        place = {e.key: e.value for e in tensor.external_data}
        location = (folder / place.get("location", "")).as_posix()
        if location not in listed:
            raise _failed(tensor.name, f"it points at {location}, which is none of the component's files")
        path = component.root / location
        offset, length = int(place.get("offset", 0)), int(place.get("length", 0))
        dtype, dims = stored.get(onnx.TensorProto.DataType.Name(tensor.data_type)), list(tensor.dims)
        # sizes of 1 move no element; any other difference may be a transposition, whose bytes are the same
        if dtype != entry.dtype or [d for d in dims if d != 1] != [d for d in entry.shape if d != 1]:
            raise _failed(tensor.name, f"it is {dtype} {dims}, its source {entry.dtype} {list(entry.shape)}")
        got, want = hashes.tensor(path, offset, length), hashes.tensor(entry.file, entry.offset, entry.length)
        if got is None or got != want:
            raise _failed(tensor.name, "its bytes are not those of its source")
        # equal bytes elsewhere in the same file (zeros, ones) would hide a swap of two names
        if offset != entry.offset and hashes.file(path) == hashes.file(entry.file):
            raise _failed(tensor.name, f"it points at byte {offset}, its source lies at byte {entry.offset}")
        digest.update(f"{tensor.name} {dtype} {dims} {got}\n".encode())
        count += 1
    weights = tuple(WeightFile(w.path, w.bytes, hashes.file(component.root / w.path)) for w in component.weights)
    proof: Json = {**component.proof, "weights": {"tensors": count, "sha256": digest.hexdigest()}}
    return replace(component, weights=weights, proof=proof)


def _failed(name: str, why: str) -> ProofFailed:
    return ProofFailed(f"Weight {name}: {why}.", "Export again; if it stays, report it.")
