"""Write a safetensors file tensor by tensor: only the one at hand is in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from .publish import disk_errors
from .safetensors_header import DTYPE_BITS, TensorEntry
from .tensors import Array

_ALIGN = 64  # of the first tensor, in bytes: wide enough for any vector unit that reads a mapped weight


class SafetensorsWriter:
    """A safetensors file whose tensors are announced first and written in that order.

    Args:
        tensors: name -> (dtype as safetensors writes it, shape).
        metadata: text for the header's `__metadata__`.

    Raises:
        DiskError: the disk is full or read-only.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        at, ends = 0, {}
        for name, (dtype, shape) in tensors.items():
            length = math.prod(shape) * DTYPE_BITS[dtype] // 8
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + length]}
            ends[name] = (at, length)
            at += length
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % _ALIGN)
        start = len(text) + 8
        self.entries = {
            name: TensorEntry(name, dtype, tuple(shape), start + ends[name][0], ends[name][1], path)
            for name, (dtype, shape) in tensors.items()
        }
        self._left = list(tensors)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("wb")
            try:
                self._stream.write(len(text).to_bytes(8, "little") + text)
            except OSError:
                with suppress(OSError):  # what could not be written cannot be flushed either
                    self._stream.close()
                raise

    def write(self, name: str, values: Array) -> None:
        """Append the next tensor; `values` holds its bytes in row-major order.

        Raises:
            ValueError: it is not this tensor's turn, or its bytes are not as many as were announced.
            DiskError: the disk is full.
        """
        if not self._left or self._left[0] != name:
            raise ValueError(f"{name} is written out of turn")
        entry = self.entries[name]
        data = np.ascontiguousarray(values)
        if data.nbytes != entry.length:
            raise ValueError(f"{name} has {data.nbytes} bytes, {entry.length} were announced")
        with disk_errors(self.path):
            self._stream.write(data.reshape(-1).view(np.uint8).data)
        self._left.pop(0)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with disk_errors(self.path):
            self._stream.close()
        if kind is None and self._left:
            raise ValueError(f"{', '.join(self._left[:3])} were announced and not written")
