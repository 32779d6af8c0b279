"""Weights that are mapped from their files, given back to the system while a call runs, so that few are held at a time.

A library that computes from mapped weights touches them layer by layer; what was touched counts as the process's memory
until somebody says that it is not needed. A thread says so whenever more than a bound is held (madvise(2),
MADV_DONTNEED). The system keeps the files in its page cache while it has room, so that the next call reads memory and
no disk. Nothing of it changes a number: the mappings are never written to, which is checked.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import DeviceError

_PERIOD = 0.01  # seconds between two looks; a core reads some 50 MB of weights meanwhile
_PROC = Path("/proc/self")
_PAGE = mmap.PAGESIZE
_DONTNEED = getattr(mmap, "MADV_DONTNEED", 4)


class Resident:
    """Bounds how much of some mapped files this process holds.

    Args:
        files: paths as they were opened. weights: bytes of them that are used.
        limit: bytes, about; it is what the files may add to `base`.
        base: bytes of files that the process holds besides, such as libraries; see `file_bytes`.

    Raises:
        DeviceError: not on Linux, most of the files is not mapped, or something was written to the mappings.
    """

    def __init__(self, files: Iterable[Path], weights: int, limit: int, base: int) -> None:
        self._limit = base + limit
        self._ranges = _mapped({str(path.resolve()) for path in files})
        copied = weights - sum(length for _, length in self._ranges)
        if copied > limit:
            raise _unable(f"the library copied {copied / 1e6:.0f} MB of them")
        self._calls, self._lock = 0, threading.Lock()
        self._stop = threading.Event()

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a call runs; several may at once."""
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                self._stop = threading.Event()
                threading.Thread(target=self._watch, args=(self._stop,), name="resident weights", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._stop.set()
                    self._give_back()

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(_PERIOD):
            if file_bytes() > self._limit:
                self._give_back()

    def _give_back(self) -> None:
        for start, length in self._ranges:
            _madvise(start, length)


def file_bytes() -> int:
    """Bytes of mapped files that the process holds."""
    try:
        return int((_PROC / "statm").read_text().split()[2]) * _PAGE
    except OSError as exc:
        raise _unable("the system does not tell what a process holds") from exc


def _mapped(files: set[str]) -> list[tuple[int, int]]:
    """(address, bytes) of every mapping of these files, neighbours in one."""
    found: list[tuple[int, int]] = []
    inside = False
    try:
        lines = (_PROC / "smaps").read_text().splitlines()
    except OSError as exc:
        raise _unable("the system does not tell what a process maps") from exc
    for line in lines:
        words = line.split(maxsplit=5)
        if "-" in words[0] and not words[0].endswith(":"):  # the first line of a mapping
            inside = len(words) == 6 and os.path.realpath(words[5]) in files
            if inside:
                start, end = (int(part, 16) for part in words[0].split("-"))
                if found and sum(found[-1]) == start:
                    found[-1] = (found[-1][0], end - found[-1][0])
                else:
                    found.append((start, end - start))
        elif inside and words[0] == "Anonymous:" and words[1] != "0":
            raise _unable("the library wrote to them")
    return found


def _madvise(start: int, length: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_DONTNEED))


def _unable(why: str) -> DeviceError:
    where = "" if sys.platform == "linux" else f" (this is {sys.platform})"
    return DeviceError(f"Weights cannot be held in part: {why}{where}.", "Leave resident_weights out.")
