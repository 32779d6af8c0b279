"""The GPU memory that plans compute in: one block that the sessions of a process share, since they run in turn.

A pipeline's components run one after the other. With a block each, a GPU would hold the activations of all of them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from .cuda_memory import Memory, Workspace


class Activations:
    """One GPU's block. It grows to what the largest component needs, and is freed with the last session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory: Memory | None = None

    @contextmanager
    def held(self, gpu: Workspace, size: int) -> Iterator[tuple[int, int]]:
        """(address, bytes) of at least `size` bytes, which no other session uses until this ends.

        Synchronize before that.
        """
        with self._lock:
            if self._memory is None or self._memory.size < size:
                self._memory = None  # before the larger one is asked for
                self._memory = gpu.allocate(size)
            yield self._memory.address, self._memory.size


_BLOCKS: weakref.WeakValueDictionary[int, Activations] = weakref.WeakValueDictionary()
_MAKING = threading.Lock()


def activations_of(index: int) -> Activations:
    """The block of the GPU with this number."""
    with _MAKING:
        found = _BLOCKS.get(index)
        if found is None:
            found = _BLOCKS[index] = Activations()
        return found
