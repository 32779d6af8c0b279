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
Range = tuple[int, int]  # addresses: the first, and the first behind
_PROC = Path("/proc/self")
_PAGE = mmap.PAGESIZE
_DONTNEED = getattr(mmap, "MADV_DONTNEED", 4)


class _Turns:
    """Openings of sessions: any number at once, or one alone, so that a mapping that is new is known to be its own."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._open, self._alone = 0, False

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._alone and not (alone and self._open))
            self._open, self._alone = self._open + 1, alone
        try:
            yield
        finally:
            with self._free:
                self._open, self._alone = self._open - 1, False
                self._free.notify_all()


OPENING = _Turns()


class HeldWhole(DeviceError):
    """Weights cannot be held in part: the library copied them, or the system does not tell."""


class Resident:
    """Bounds how much of some mapped files a session holds.

    Made before the session is opened, alone (`OPENING.turn(alone=True)`); `found` is called when it is, and the calls
    of the session run within `working`.

    Args:
        files: paths as they are opened. limit: bytes that are held of them, about.
    """

    def __init__(self, files: Iterable[Path], limit: int) -> None:
        self._files = {str(path.resolve()) for path in files}
        self._limit = limit
        self._before = _mapped(self._files)
        self._ranges: list[Range] = []
        self._calls, self._lock = 0, threading.Lock()
        self._stop, self._watcher = threading.Event(), threading.Thread()

    def found(self, weights: int) -> None:
        """The session is open; what it mapped since is its own.

        Args:
            weights: bytes of the files that it computes with.

        Raises:
            HeldWhole: most of the files is not mapped, something was written to the mappings, or the system does
                not tell.
        """
        self._ranges = _without(_mapped(self._files, clean=True), self._before)
        copied = weights - sum(end - start for start, end in self._ranges)
        if copied > self._limit:
            raise _unable(f"the library copied {copied / 1e6:.0f} MB of them")

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a call runs; several may at once."""
        with self._lock:
            self._calls += 1
            if self._calls == 1:
                self._stop = threading.Event()
                self._watcher = threading.Thread(target=self._watch, args=(self._stop,), name="weights", daemon=True)
                self._watcher.start()
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._stop.set()
                    self._watcher.join()  # the session may be closed next, and its addresses be another's
                    self._give_back()

    def _watch(self, stop: threading.Event) -> None:
        self._give_back()
        floor = file_bytes()  # of all files that the process holds, but for these
        while not stop.wait(_PERIOD):
            if file_bytes() > floor + self._limit:
                self._give_back()
                floor = file_bytes()

    def _give_back(self) -> None:
        for start, end in self._ranges:
            _madvise(start, end - start)


def file_bytes() -> int:
    """Bytes of mapped files that the process holds."""
    try:
        return int((_PROC / "statm").read_text().split()[2]) * _PAGE
    except OSError as exc:
        raise _unable("the system does not tell what a process holds") from exc


def _mapped(files: set[str], *, clean: bool = False) -> list[Range]:
    """Addresses of every mapping of these files in this process.

    Args:
        clean: whether to refuse those that were written to.
    """
    found: list[Range] = []
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
                found.append((start, end))
        elif clean and inside and words[0] == "Anonymous:" and words[1] != "0":
            raise _unable("the library wrote to them")
    return found


def _without(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What of the ranges is in none of the others; the system joins neighbours into one mapping."""
    left = list(ranges)
    for start, end in others:
        cut = [((a, min(b, start)), (max(a, end), b)) for a, b in left]
        left = [part for both in cut for part in both if part[0] < part[1]]
    return left


def _madvise(start: int, length: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_DONTNEED))


def _unable(why: str) -> HeldWhole:
    where = "" if sys.platform == "linux" else f" (this is {sys.platform})"
    return HeldWhole(f"Weights cannot be held in part: {why}{where}.", "Leave resident_weights out.")
