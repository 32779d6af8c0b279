"""What an ONNX graph says of its external initializers, read with no library.

A runtime that takes changed weights by name must know their stored type and shape before it opens the graph: ONNX
Runtime refuses a wrong one without naming it. Only five fields of the protobuf are read; tensor data is skipped.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..core.artifact import Component
from ..core.dtypes import ONNX_TYPES
from ..core.errors import BadArtifact, BadInput
from ..core.tensors import Array
from .low_rank import no_weight, wrong_shape

# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 8, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_EXTERNAL = 1
_RENAMED = re.compile(r"q_output_(.+)_\d+")  # what NNCF calls a weight that it rounds
FLOAT, BFLOAT16 = 1, 16  # TensorProto.DataType
# of a number, by TensorProto.DataType; 32 of those that are not here
_BITS = {2: 8, 3: 8, 4: 16, 5: 16, 7: 64, 9: 8, 10: 16, 11: 64, 16: 16, 21: 4, 22: 4}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Initializer:
    """type: the number of its TensorProto.DataType. location, offset: of its values, if they are not in the graph."""

    type: int
    shape: tuple[int, ...]
    location: str
    offset: int = 0

    @property
    def external(self) -> bool:
        return bool(self.location)


def external_initializers(graph: Path) -> dict[str, Initializer]:
    """The external initializers of a graph by name; raises as `initializers` does."""
    return {name: one for name, one in initializers(graph).items() if one.external}


def external_bytes(graph: Path, names: Collection[str] | None = None) -> int:
    """Bytes of the weights that lie outside of a graph, 4-bit ones in halves; raises as `initializers` does.

    Args:
        names: of those that count; None: all.
    """
    found = external_initializers(graph).items()
    return sum(math.prod(i.shape) * _BITS.get(i.type, 32) for n, i in found if names is None or n in names) // 8


def initializers(graph: Path) -> dict[str, Initializer]:
    """Every initializer of a graph by name.

    Raises:
        BadArtifact: the file is missing or is no ONNX graph.
    """
    found: dict[str, Initializer] = {}
    try:
        with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for number, at, end in _fields(data, 0, len(data)):
                if number == _MODEL_GRAPH:
                    for inner, start, stop in _fields(data, at, end):
                        if inner == _GRAPH_INITIALIZER:
                            found |= _tensor(data, start, stop)
    except (OSError, ValueError, IndexError) as exc:
        raise BadArtifact(f"{graph} does not load: {exc}.", "Copy the whole folder again or export again.") from exc
    return found


def check_listed(component: Component) -> None:
    """Hold the files that a graph reads its weights from against those that the manifest lists, and verified.

    Raises:
        BadArtifact: another file, or no ONNX graph.
    """
    folder = PurePosixPath(component.graph).parent
    listed = {w.path for w in component.weights}
    for name, one in external_initializers(component.graph_path).items():
        if (folder / one.location).as_posix() not in listed:
            raise BadArtifact(
                f"{component.graph} reads {name} from {one.location}, which the manifest does not list.",
                "Do not use this artifact, or export the model again.",
            )


def state_name(initializer: str) -> str:
    """The name in the state dict of what a graph calls an initializer."""
    renamed = _RENAMED.fullmatch(initializer)
    return renamed[1] if renamed else initializer


def stored_like(graph: str, known: Mapping[str, Initializer], name: str, value: Array) -> tuple[int, Array]:
    """A changed weight as the graph stores it: (type, values; bfloat16 as the uint16 of its bits).

    Values are rounded to the stored type, as a checkpoint that was merged and saved would be.

    Args:
        graph: its name. known: of `external_initializers`.

    Raises:
        BadInput: a name that the graph has no external weight for, another shape, or a type that cannot be replaced.
    """
    stored = known.get(name)
    if stored is None:
        raise no_weight(name, graph)
    if value.shape != stored.shape:
        raise wrong_shape(name, value.shape, stored.shape)
    if stored.type == BFLOAT16:
        return BFLOAT16, bfloat16_bits(value)
    if (kind := ONNX_TYPES.get(stored.type, "")).startswith("float"):
        return stored.type, np.asarray(value, dtype=kind, order="C")
    raise BadInput(
        f"Override {name}: the graph stores it in ONNX type {stored.type}, which is not replaced by name.",
        "Use the artifact in float32, float16 or bfloat16.",
    )


def bfloat16_bits(value: Array) -> Array:
    """The upper halves of float32 values, rounded to nearest even."""
    bits = np.asarray(value, dtype=np.float32, order="C").view(np.uint32)
    rounded: Array = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )
    return rounded


def bfloat16_values(bits: Array) -> Array:
    """uint16 upper halves of float32 values, exactly."""
    values: Array = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values


def _tensor(data: mmap.mmap, at: int, end: int) -> dict[str, Initializer]:
    name, kind, external, dims = "", 0, 0, list[int]()
    told: dict[str, str] = {}
    for number, start, stop in _fields(data, at, end):
        if number == _TENSOR_NAME:
            name = data[start:stop].decode()
        elif number == _TENSOR_TYPE:
            kind, _ = _varint(data, start)
        elif number == _TENSOR_LOCATION:
            external, _ = _varint(data, start)
        elif number == _TENSOR_EXTERNAL:
            entry = {n: data[a:b].decode() for n, a, b in _fields(data, start, stop)}
            told[entry.get(_ENTRY_KEY, "")] = entry.get(_ENTRY_VALUE, "")
        elif number == _TENSOR_DIMS:  # one number, or several packed: both are varints up to `stop`
            while start < stop:
                dim, start = _varint(data, start)
                dims.append(dim)
    outside = told if external == _EXTERNAL else {}
    location, offset = outside.get("location", ""), int(outside.get("offset", 0))
    return {name: Initializer(kind, tuple(dims), location, offset)}


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, first byte, byte behind the last) of each field of a message.

    Raises:
        ValueError: this is no protobuf message.
    """
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            _, stop = _varint(data, at)
        elif wire == _FIXED64:
            stop = at + 8
        elif wire == _FIXED32:
            stop = at + 4
        elif wire == _BYTES:
            length, at = _varint(data, at)
            stop = at + length
        else:
            raise ValueError("it is no ONNX graph")
        if stop > end:
            raise ValueError("it is truncated")
        yield tag >> 3, at, stop
        at = stop


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("it is no ONNX graph")
