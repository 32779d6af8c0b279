"""Where a module's tensor lies in a checkpoint of another layout: whole, some of its rows, or made of it.

Rows of a tensor are contiguous bytes, so a third of a fused query-key-value weight is a reference into the user's own
file like any other. What is no run of bytes there (a transposition, halves that change places, another element type)
is copied into a side file, tensor by tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...core.dtypes import FLOATS
from ...core.errors import BadInput
from ...core.safetensors_header import TensorEntry, read_bytes, read_tensor
from ...core.safetensors_writer import SafetensorsWriter
from ...core.tensors import Array
from .eight_bits import EIGHT_BITS, widened

SIDE_FILE = "rearranged.safetensors"

Checkpoint = Mapping[str, TensorEntry]


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` (None: the end) of the tensor `name` along its first axis."""

    name: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Origin:
    """How one tensor of a module is had: pieces one after another, transposed or not.

    pieces: none for a tensor that no file holds, the identity of size `identity`.
    """

    pieces: tuple[Piece, ...]
    transposed: bool = False
    identity: int = 0


def whole(name: str) -> Origin:
    """The tensor as it is."""
    return Origin((Piece(name),))


def transposed(name: str) -> Origin:
    """A matrix that the file holds the other way round."""
    return Origin((Piece(name),), transposed=True)


def identity(size: int) -> Origin:
    """The matrix that changes nothing, where a module wants one and the file has none."""
    return Origin((), identity=size)


def chunks(name: str, sizes: Iterable[int]) -> list[Origin]:
    """A tensor cut along its first axis."""
    cut, at = [], 0
    for size in sizes:
        cut.append(Origin((Piece(name, at, at + size),)))
        at += size
    return cut


def thirds(name: str, checkpoint: Checkpoint) -> list[Origin]:
    """The query's, the key's and the value's part of a fused tensor.

    Raises:
        BadInput: its rows cannot be divided by three.
    """
    rows = _rows(checkpoint[name])
    if rows % 3:
        raise _uneven(checkpoint[name], 3)
    return chunks(name, [rows // 3] * 3)


def halves_swapped(name: str, checkpoint: Checkpoint) -> Origin:
    """Shift and scale where the module wants scale and shift.

    Raises:
        BadInput: its rows cannot be divided by two.
    """
    rows = _rows(checkpoint[name])
    if rows % 2:
        raise _uneven(checkpoint[name], 2)
    return Origin((Piece(name, rows // 2, rows), Piece(name, 0, rows // 2)))


def _rows(entry: TensorEntry) -> int:
    return entry.shape[0] if entry.shape else 1


def _uneven(entry: TensorEntry, parts: int) -> BadInput:
    what = f"{entry.name} in {entry.file} has the shape {list(entry.shape)}, which is not {parts} parts of one size."
    return BadInput(what, "Download the file again, or name the model's diffusers folder.")


def placed(origins: Mapping[str, Origin], checkpoint: Checkpoint) -> dict[str, TensorEntry]:
    """Module name -> the bytes in the checkpoint's own file, of all that are there as the module wants them.

    Raises:
        BadInput: rows that a tensor does not have.
    """
    found = {}
    for target, origin in origins.items():
        entries = [_piece(piece, checkpoint) for piece in origin.pieces]
        if len(entries) == 1 and not origin.transposed and entries[0].dtype not in EIGHT_BITS:
            found[target] = replace(entries[0], name=target)
    return found


def why_copied(origin: Origin, checkpoint: Checkpoint) -> str:
    """Why the bytes of an origin cannot be referred to, in a few words."""
    if origin.identity:
        return "not in the file: the identity"
    if origin.transposed:
        return "stored transposed"
    if len(origin.pieces) > 1:
        return "its halves change places"
    dtype = checkpoint[origin.pieces[0].name].dtype
    return f"stored as {dtype}, widened to float16"


def write_copies(
    origins: Mapping[str, Origin], checkpoint: Checkpoint, path: Path, dtype: str = "F16"
) -> dict[str, TensorEntry]:
    """Write tensors into a file of their own; the memory of one tensor, twice at most.

    Args:
        dtype: of a tensor that is in no file.

    Returns:
        Module name -> its bytes in the new file.

    Raises:
        BadInput: the checkpoint changed, or holds pieces of one tensor in two element types.
        DiskError: the disk is full or failed.
    """
    plan = {name: _described(name, origin, checkpoint, dtype) for name, origin in origins.items()}
    with SafetensorsWriter(path, plan, {"format": "pt"}) as writer:
        for name, origin in origins.items():
            writer.write(name, _computed(origin, checkpoint, plan[name][0]))
    return dict(writer.entries)


def _piece(piece: Piece, checkpoint: Checkpoint) -> TensorEntry:
    """The piece as an entry of its own."""
    entry = checkpoint[piece.name]
    if piece.start == 0 and piece.stop is None:
        return entry
    rows, stop = _rows(entry), piece.stop if piece.stop is not None else _rows(entry)
    if not 0 <= piece.start < stop <= rows:
        what = f"{entry.name} in {entry.file} has {rows} rows; {piece.start} to {stop} are wanted of it."
        raise BadInput(what, "Check that the configs belong to this file.")
    row = entry.length // rows
    return replace(
        entry,
        shape=(stop - piece.start, *entry.shape[1:]),
        offset=entry.offset + piece.start * row,
        length=(stop - piece.start) * row,
    )


def _described(name: str, origin: Origin, checkpoint: Checkpoint, dtype: str) -> tuple[str, tuple[int, ...]]:
    """The element type and the shape that an origin gives."""
    if origin.identity:
        return dtype, (origin.identity, origin.identity)
    entries = [_piece(piece, checkpoint) for piece in origin.pieces]
    kinds, rests = {e.dtype for e in entries}, {e.shape[1:] for e in entries}
    if len(kinds) > 1 or len(rests) > 1:
        raise BadInput(
            f"{name} would be joined of {' and '.join(f'{e.name} ({e.dtype} {list(e.shape)})' for e in entries)}.",
            "Download the file again: such parts are of one kind.",
        )
    shape = (sum(e.shape[0] for e in entries), *entries[0].shape[1:]) if len(entries) > 1 else entries[0].shape
    kind = kinds.pop()
    return "F16" if kind in EIGHT_BITS else kind, shape[::-1] if origin.transposed else shape


def _computed(origin: Origin, checkpoint: Checkpoint, dtype: str) -> Array:
    if origin.identity:
        # bfloat16 as its bits, the upper half of a float32's
        kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": np.uint16}
        made: Array = np.eye(origin.identity, dtype=kinds[dtype]) * kinds[dtype](0x3F80 if dtype == "BF16" else 1)
        return made
    entries = [_piece(piece, checkpoint) for piece in origin.pieces]
    if entries[0].dtype in EIGHT_BITS:
        parts = [widened(read_bytes(e), e.dtype).reshape(e.shape) for e in entries]
    else:
        parts = [read_tensor(e) for e in entries]
    joined: Array = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return joined.T if origin.transposed else joined


def common_dtype(checkpoint: Checkpoint) -> str:
    """The element type that most numbers of a checkpoint are stored in, of those that a graph takes."""
    sizes: dict[str, int] = {}
    for entry in checkpoint.values():
        if entry.dtype in FLOATS:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + math.prod(entry.shape)
    return max(sizes, key=lambda kind: sizes[kind], default="F16")
