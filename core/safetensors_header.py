"""Safetensors files read with no library: headers checked to the letter, tensors found by byte offset.

The format (https://huggingface.co/docs/safetensors, "Format"): eight bytes of little-endian header length, a JSON
object `name -> {dtype, shape, data_offsets}`, then the data, which the tensors cover with no hole and no overlap.
An export links initializers to these offsets, so an entry that lies would become a wrong weight without a word.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .dtypes import FLOATS, NAMES, NOT_NUMPY
from .errors import BadInput, DiskError
from .tensors import Array

HEADER_LIMIT = 100_000_000  # the reference implementation's own bound on the JSON header, in bytes
BLOCK = 8 * 1024 * 1024
STEMS = ("diffusion_pytorch_model", "model")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
OTHER_FRAMEWORKS = (".msgpack", ".h5", ".onnx")

NUMPY_DTYPES = {n: np.dtype(t).newbyteorder("<") for n, t in (NAMES | {"BF16": "uint16"}).items() if n not in NOT_NUMPY}

# Bits of one element (safetensors/src/tensor.rs, `Dtype::bitsize`).
DTYPE_BITS = {n: 8 * t.itemsize for n, t in NUMPY_DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
DTYPE_BITS |= dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)

AGAIN = "The file is damaged: download it again."


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor's bytes lie.

    Attributes:
        name: the tensor's name in the file.
        dtype: as safetensors writes it ("F32", "BF16", ...).
        shape: row-major.
        offset: absolute, in bytes from the start of the file.
        length: in bytes.
        file: the file that holds it, as it was given.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int
    file: Path

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a safetensors file, in the order of its data. Only the header is read.

    Raises:
        BadInput: missing, truncated, damaged, or no safetensors file (a pickle, a git-lfs pointer, ...).
        DiskError: the disk failed while it was read.
    """
    size, header = _header_bytes(path)
    return _entries(path, _parse(path, header)[0], 8 + len(header), size)


def read_metadata(path: Path) -> dict[str, str]:
    """What a file says of itself beside its tensors; empty where it says nothing.

    Raises:
        BadInput, DiskError: as `read_header`.
    """
    return _parse(path, _header_bytes(path)[1])[1]


def _header_bytes(path: Path) -> tuple[int, bytes]:
    """The file's size and its JSON header, once the declared length is known to be possible."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or start[8:9] != b"{" or length > HEADER_LIMIT or 8 + length > size:
                raise _not_a_header(path, start, length, size)
            file.seek(8)
            header = file.read(length)
    except FileNotFoundError as exc:
        raise BadInput(f"{path} does not exist.", "Check the path, or download the file again.") from exc
    except IsADirectoryError as exc:
        raise BadInput(
            f"{path} is a folder where a .safetensors file was expected.", "Give the file inside it."
        ) from exc
    except PermissionError as exc:
        raise BadInput(f"{path} may not be read by this user.", "Give yourself read permission on it.") from exc
    except OSError as exc:
        raise DiskError(f"{path} cannot be read: {exc.strerror or exc}.", "Check the disk.") from exc
    if len(header) < length:
        raise BadInput(f"{path} became shorter while it was read.", "Wait until it is written, or download it again.")
    return size, header


def _not_a_header(path: Path, start: bytes, length: int, size: int) -> BadInput:
    """Why the first bytes cannot open a safetensors file, most specific reason first."""
    if size == 0:
        return BadInput(f"{path} is empty.", AGAIN)
    if start[:2] == b"PK" or (start[0] == 0x80 and start[8:9] != b"{"):
        return pickle_refusal(path)
    if start.startswith(b"version https://git-lfs"):
        return BadInput(f"{path} is a git-lfs pointer, not the weights.", "Run `git lfs pull` in its folder.")
    if size < 9:
        return BadInput(f"{path} holds {size} bytes, too few for a safetensors header.", AGAIN)
    if start[8:9] != b"{":
        return BadInput(f"{path} is not a safetensors file: no JSON header follows its first 8 bytes.", AGAIN)
    if length > HEADER_LIMIT:
        return BadInput(f"{path} declares a header of {length} bytes; at most {HEADER_LIMIT} are allowed.", AGAIN)
    missing = 8 + length - size
    return BadInput(f"{path} is truncated: {missing} bytes of its header are missing.", "Download it again.")


def pickle_refusal(path: Path) -> BadInput:
    """The one refusal of a pickle checkpoint, with the conversion to safetensors."""
    return BadInput(
        f"{path} is a pickle checkpoint (.bin, .pt, .pth, .ckpt); opening one can run any code, so it is refused.",
        'Convert it once with the `safetensors` library, where you trust its source: `python -c "import torch, '
        "safetensors.torch as s; d = torch.load('IN.bin', weights_only=True); "
        "s.save_file({k: v.clone() for k, v in d.items()}, 'OUT.safetensors', {'format': 'pt'})\"`.",
    )


def _parse(path: Path, header: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The rows of the tensors, and the metadata."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} occurs twice")
        return found

    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"{path} has a broken header: {exc}.", AGAIN) from exc
    if not isinstance(parsed, dict):
        raise BadInput(f"{path} has a broken header: not a JSON object.", AGAIN)
    metadata = parsed.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise BadInput(f"{path} has a broken header: __metadata__ is no map of strings.", AGAIN)
    return parsed, metadata or {}


def _entries(path: Path, header: dict[str, Any], start: int, size: int) -> dict[str, TensorEntry]:
    entries = [_entry(path, name, value, start) for name, value in header.items()]
    # Empty tensors share their offset with the next one: they sort in front of it.
    entries.sort(key=lambda entry: (entry.offset, entry.length))
    at = start
    for entry in entries:
        if entry.offset != at:
            kind = "overlaps the tensor before it" if entry.offset < at else "leaves a hole before it"
            raise _lie(entry, f"its data starts at byte {entry.offset - start} and {kind}")
        at += entry.length
    if at > size:
        first = next(entry for entry in entries if entry.offset + entry.length > size)
        raise BadInput(
            f"{path} is truncated: {at - size} bytes are missing, from tensor {first.name!r} on.", "Download it again."
        )
    if at < size:
        raise BadInput(f"{path} ends in {size - at} bytes that belong to no tensor.", AGAIN)
    return {entry.name: entry for entry in entries}


def _entry(path: Path, name: str, value: Any, start: int) -> TensorEntry:
    """One header row, checked by itself; `_entries` checks how the rows fit together.

    Raises:
        BadInput: the row lies or is malformed.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise BadInput(f"{path} has a tensor whose name is no text: {name!r}.", AGAIN) from exc
    blank = TensorEntry(name, "", (), 0, 0, path)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _lie(blank, "its header row is not {dtype, shape, data_offsets}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _lie(blank, f"its dtype {dtype!r} is unknown", f"Known are {', '.join(DTYPE_BITS)}; download it again.")
    if not _are_sizes(shape) or len(shape) > 64:  # numpy's bound; it also keeps the product printable
        raise _lie(blank, f"its shape {shape!r} is no list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _lie(blank, f"its data_offsets {offsets!r} are no [begin, end] in the data")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    length = offsets[1] - offsets[0]
    if bits != length * 8:
        raise _lie(blank, f"{dtype} {shape} takes {-(-bits // 8)} bytes, its data_offsets span {length}")
    return TensorEntry(name, dtype, tuple(shape), start + offsets[0], length, path)


def _are_sizes(value: Any) -> bool:
    # A size past 64 bits is a lie too, and would print (or multiply) without end.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _lie(entry: TensorEntry, why: str, fix: str = AGAIN) -> BadInput:
    return BadInput(f"Tensor {entry.name!r} in {entry.file} has a false header: {why}.", fix)


def _blocks(entry: TensorEntry) -> Iterator[bytes]:
    """The tensor's bytes in pieces of at most 8 MB.

    Raises:
        BadInput: the file is gone or became shorter.
        DiskError: the disk failed.
    """
    left = entry.length
    try:
        with entry.file.open("rb") as file:
            file.seek(entry.offset)
            while left:
                block = file.read(min(BLOCK, left))
                if not block:
                    what = f"{entry.file} lacks {left} bytes of tensor {entry.name!r}."
                    raise BadInput(what, "It changed since it was opened: download it again.")
                left -= len(block)
                yield block
    except FileNotFoundError as exc:
        raise BadInput(f"{entry.file} does not exist any more.", "Download it again.") from exc
    except OSError as exc:
        raise DiskError(f"{entry.file} cannot be read: {exc.strerror or exc}.", "Check the disk.") from exc


def read_bytes(entry: TensorEntry) -> bytearray:
    """The tensor's bytes, in memory that the caller owns and may write to.

    Raises:
        BadInput: the file is gone or became shorter.
        DiskError: the disk failed.
    """
    buffer = bytearray(entry.length)
    at = 0
    for block in _blocks(entry):
        buffer[at : at + len(block)] = block
        at += len(block)
    return buffer


def read_tensor(entry: TensorEntry, dtype: str | None = None) -> Array:
    """The tensor as a numpy array of `entry.shape` that the caller owns.

    Args:
        entry: from `read_header`.
        dtype: None gives the stored type, BF16 as the uint16 of its bits; "float32" converts F16, BF16, F32 and F64.

    Raises:
        BadInput: a dtype that numpy lacks, or one that is no float where float32 was asked for; a changed file.
        DiskError: the disk failed.
        ValueError: `dtype` is neither None nor "float32".
    """
    if dtype not in (None, "float32"):
        raise ValueError(f"dtype is None or 'float32', not {dtype!r}")
    convertible = NUMPY_DTYPES if dtype is None else FLOATS
    if entry.dtype not in convertible:
        what = f"Tensor {entry.name!r} in {entry.file} is {entry.dtype}, which cannot be read as {dtype or 'numpy'}."
        raise BadInput(what, f"Expected one of {', '.join(convertible)}: use a checkpoint that is not quantized.")
    stored: Array = np.frombuffer(read_bytes(entry), dtype=NUMPY_DTYPES[entry.dtype]).reshape(entry.shape)
    if dtype is None or entry.dtype == "F32":
        return stored
    if entry.dtype == "BF16":  # the upper half of a float32 (the bits below are zero), so exact
        wide: Array = (stored.astype("<u4") << np.uint32(16)).view("<f4")
        return wide
    converted: Array = stored.astype("<f4")
    return converted


def hash_tensor(entry: TensorEntry) -> str:
    """SHA-256 of the tensor's bytes, in hex, with 8 MB of memory.

    Raises:
        BadInput: the file is gone or became shorter.
        DiskError: the disk failed.
    """
    digest = hashlib.sha256()
    for block in _blocks(entry):
        digest.update(block)
    return digest.hexdigest()


def open_checkpoint(
    folder: Path, stem_candidates: Sequence[str] = STEMS, variant: str | None = None
) -> dict[str, TensorEntry]:
    """Every tensor of a model folder: one file, or the shards that its index names.

    Args:
        folder: a diffusers component or a transformers model.
        stem_candidates: file names without their ending, the preferred first.
        variant: the infix of the files, such as "fp16" in `model.fp16.safetensors`.

    Raises:
        BadInput: no safetensors of that variant (said: which there are, or that only a pickle is there), a shard that
            is missing or disagrees with the index, or a damaged file.
        DiskError: the disk failed.
    """
    try:
        present = {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise BadInput(f"{folder} is not a folder.", "Give the folder of a diffusers or transformers model.") from exc
    except OSError as exc:
        raise BadInput(f"{folder} cannot be read: {exc.strerror or exc}.", "Check its permissions.") from exc
    infix = f".{variant}" if variant else ""
    for stem in stem_candidates:
        single = f"{stem}{infix}.safetensors"
        if single in present:
            return read_header(folder / single)
        index = f"{stem}.safetensors.index{infix}.json"
        if index in present:
            return _open_shards(folder / index, present)
    raise _no_checkpoint(folder, sorted(present), f"{stem_candidates[0]}{infix}.safetensors")


def _open_shards(index: Path, present: Container[str]) -> dict[str, TensorEntry]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        # A shard lies beside its index: a name with a folder in it would lead out.
        if not all(isinstance(name, str) and name and Path(name).name == name for name in names):
            raise ValueError("a shard's name is no file name")
    except OSError as exc:
        raise BadInput(f"{index} cannot be read: {exc.strerror or exc}.", "Check its permissions.") from exc
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BadInput(f"{index} is no index of shards: {exc}.", AGAIN) from exc
    missing = [name for name in names if name not in present]
    if missing:
        raise BadInput(
            f"{index.parent} lacks the shards {', '.join(missing)} that {index.name} names.", "Download them."
        )
    found: dict[str, TensorEntry] = {}
    for name in names:
        for tensor, entry in read_header(index.parent / name).items():
            if tensor in found:
                raise BadInput(f"Tensor {tensor!r} is in both {found[tensor].file} and {entry.file}.", AGAIN)
            found[tensor] = entry
    for tensor, name in weight_map.items():
        if tensor not in found or found[tensor].file.name != name:
            raise BadInput(f"{index} says that tensor {tensor!r} is in {name}; it is not.", AGAIN)
    return found


def _no_checkpoint(folder: Path, names: Sequence[str], wanted: str) -> BadInput:
    """Why a folder has no weights to open, from what lies in it instead."""
    weights = [name for name in names if name.endswith(".safetensors")]
    if weights:
        fix = "Ask for the variant that is there (--variant, or none), or put the missing index beside the shards."
        return BadInput(f"{folder} has no {wanted} (nor its index); it has {', '.join(weights[:8])}.", fix)
    others = [name for name in names if name.endswith(OTHER_FRAMEWORKS)]
    pickles = [name for name in names if name.endswith(PICKLES) and not name.startswith("training_args")]
    if pickles:
        return pickle_refusal(folder / pickles[0])
    if others:
        fix = "Save it as safetensors with the library that wrote it (`save_pretrained(..., safe_serialization=True)`)."
        return BadInput(f"{folder} has no {wanted}, only {others[0]} of another framework.", fix)
    return BadInput(f"{folder} has no weights: expected {wanted}.", "Check the path, or download the model again.")
