"""GGUF files of image models, as ComfyUI-GGUF writes them: the original layout's tensors, quantized in blocks.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, read with its own library. A graph computes with
plain floats, so blocks are dequantized, exactly, to float32: a second copy, several times the file's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import BadInput, DiskError, MissingDependency
from ..core.safetensors_header import TensorEntry, read_bytes
from ..core.safetensors_writer import SafetensorsWriter
from ..core.tensors import Array

SIDE_FILE = "dequantized.safetensors"
PLAIN = ("F32", "F16", "BF16", "F64")  # as safetensors calls them; their bytes are the same in both formats
# where a tensor that was reshaped into whole blocks keeps its own shape
_SHAPE = "comfy.gguf.orig_shape."
AGAIN = "The file is damaged: download it again."


def read_gguf(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a GGUF file; `dtype` is the name of its block format, such as "Q4_K". Only the header is read.

    Raises:
        BadInput: missing, truncated or damaged, or no GGUF file.
        MissingDependency: the extra `gguf` is not installed.
    """
    library = _library()
    with _translated(path):
        reader = library.GGUFReader(path)
    shapes = {
        name.removeprefix(_SHAPE): tuple(int(d) for d in field.contents())
        for name, field in reader.fields.items()
        if name.startswith(_SHAPE)
    }
    size, found = path.stat().st_size, {}
    for tensor in reader.tensors:
        # the format counts a tensor's dims from the innermost
        shape = shapes.get(tensor.name, tuple(int(d) for d in reversed(tensor.shape)))
        entry = TensorEntry(
            tensor.name, tensor.tensor_type.name, shape, int(tensor.data_offset), int(tensor.n_bytes), path
        )
        if entry.offset + entry.length > size:
            raise BadInput(f"{path} is truncated: tensor {entry.name!r} ends behind the file.", "Download it again.")
        if entry.elements != int(tensor.n_elements):
            raise BadInput(f"{path}: tensor {entry.name!r} holds no {list(shape)}.", AGAIN)
        found[entry.name] = entry
    return found


def unpacked(checkpoint: Mapping[str, TensorEntry], side: Path) -> dict[str, TensorEntry]:
    """Write tensors as plain floats into `SIDE_FILE` in the folder `side`; the memory of one tensor, in float32, twice.

    Args:
        checkpoint: name -> a tensor of a GGUF file.

    Raises:
        BadInput: a block format that the library does not dequantize.
        DiskError: the disk is full.
    """
    library = _library()
    plan = {name: (e.dtype if e.dtype in PLAIN else "F32", e.shape) for name, e in checkpoint.items()}
    with SafetensorsWriter(side / SIDE_FILE, plan, {"format": "pt"}) as writer:
        for name, entry in checkpoint.items():
            writer.write(name, _plain(library, entry))
    return dict(writer.entries)


def _plain(library: Any, entry: TensorEntry) -> Array:
    data: Array = np.frombuffer(read_bytes(entry), np.uint8)
    if entry.dtype in PLAIN:
        return data
    kind = library.GGMLQuantizationType[entry.dtype]
    try:
        values: Array = library.quants.dequantize(data, kind)
    except NotImplementedError as exc:
        raise BadInput(
            f"{entry.name} in {entry.file} is {entry.dtype}, which gguf does not dequantize.",
            "Take the model with other blocks, such as Q4_K or Q8_0.",
        ) from exc
    return values.astype(np.float32, copy=False)


def bytes_unpacked(checkpoint: Mapping[str, TensorEntry]) -> int:
    """What `unpacked` writes."""
    return sum(e.length if e.dtype in PLAIN else 4 * e.elements for e in checkpoint.values())


def _library() -> Any:
    try:
        import gguf
        import gguf.quants
    except ImportError as exc:
        raise MissingDependency(
            "GGUF files are read with gguf, which is not installed.", 'pip install "vitrify[gguf]"'
        ) from exc
    return gguf


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """What the library makes of a file that is none of the format, as one of our errors."""
    try:
        yield
    except FileNotFoundError as exc:
        raise BadInput(f"{path} does not exist.", "Check the path, or download the file again.") from exc
    except OSError as exc:
        raise DiskError(f"{path} cannot be read: {exc.strerror or exc}.", "Check the disk.") from exc
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as exc:
        raise BadInput(f"{path} is no GGUF file, or is truncated: {exc}.", AGAIN) from exc
