"""The cache folder: content-addressed entries, written whole or not at all, dropped least recently used first.

`$VITRIFY_CACHE` names the folder (default: the user's cache folder), `$VITRIFY_CACHE_MAX` its bound in bytes
(default 8 GB). An entry is a folder `kind/key`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import Busy, DiskError, UsageError
from .publish import locked, published

DEFAULT_LIMIT = 8_000_000_000
_MARK = ".used"  # its modification time is the entry's last use
_ABANDONED = 86_400  # seconds after which a temporary folder belongs to no process that is still writing it


@dataclass(frozen=True)
class Entry:
    """One entry: its kind, key, size in bytes and last use in seconds since the epoch."""

    kind: str
    key: str
    bytes: int
    used: float
    path: Path


def key_of(data: Any) -> str:
    """A key from JSON data: the first 32 hex digits of its sha256."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Cache:
    """The entries below `root`, at most `limit` bytes of them.

    Raises:
        UsageError: `$VITRIFY_CACHE_MAX` is not a number of bytes.
    """

    def __init__(self, root: Path | None = None, limit: int | None = None) -> None:
        named = os.environ.get("VITRIFY_CACHE")
        self.root = root or (Path(named) if named else _users_folder())
        bound = os.environ.get("VITRIFY_CACHE_MAX", str(DEFAULT_LIMIT))
        if limit is None and not bound.isdigit():
            raise UsageError(f"VITRIFY_CACHE_MAX is {bound!r}.", "Set it to a number of bytes, such as 8000000000.")
        self.limit = int(bound) if limit is None else limit

    def get(self, kind: str, key: str) -> Path | None:
        """The entry's folder, and mark it as used; None where there is none."""
        path = self.root / kind / key
        if not (path / _MARK).exists():
            return None
        with suppress(OSError):
            (path / _MARK).touch()
        return path

    @contextmanager
    def put(self, kind: str, key: str, *, exclusive: bool = False) -> Iterator[Path]:
        """A temporary folder that becomes the entry when the block ends well; then the bound is kept.

        An entry larger than the bound is dropped at once, and one that another process is writing is left to it: ask
        `get` what is there.

        Args:
            exclusive: where another process writes the entry, raise Busy instead of doing its work a second time.

        Raises:
            DiskError: the cache cannot be written.
            Busy: with `exclusive` alone.
        """
        path = self.root / kind / key
        if path.is_dir() and not (path / _MARK).exists():
            _remove(path)  # damaged: entries are renamed into place with their mark inside
        with _named_in_fix(), ExitStack() as stack:
            try:
                scratch = stack.enter_context(published(path, replace=True, marker=_MARK))
            except Busy:  # another process writes the same content
                if exclusive:
                    raise
                yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitrify-")))
                return
            yield scratch
            (scratch / _MARK).touch()
        self.prune(self.limit)

    def entries(self) -> list[Entry]:
        """Every entry, the most recently used first."""
        found = []
        for mark in self.root.glob(f"*/*/{_MARK}"):
            folder = mark.parent
            if folder.name.startswith("."):
                continue  # being written
            try:
                # a file that is also linked elsewhere takes no room of its own
                sizes = [f.stat() for f in folder.rglob("*") if f.is_file()]
                used = mark.stat().st_mtime
            except FileNotFoundError:
                continue  # removed by another process while it was read
            size = sum(s.st_size for s in sizes if s.st_nlink == 1)
            found.append(Entry(folder.parent.name, folder.name, size, used, folder))
        return sorted(found, key=lambda e: -e.used)

    def prune(self, limit: int) -> list[Entry]:
        """Remove the least recently used entries until at most `limit` bytes are left; returns those removed."""
        total, removed = 0, []
        for entry in self.entries():
            total += entry.bytes
            if total > limit:
                _remove(entry.path)
                removed.append(entry)
                total -= entry.bytes
        for left in self.root.glob("*/.*.part-*"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
        return removed


def _users_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("vitrify"))


def _remove(path: Path) -> None:
    """Take an entry away whole: a reader finds it or not, never half of it. One that is being written stays."""
    with suppress(OSError, Busy), locked(path):
        path = path.rename(path.with_name(f".{path.name}.part-{os.urandom(4).hex()}"))
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _named_in_fix() -> Iterator[None]:
    try:
        yield
    except DiskError as exc:
        fix = "Free some space, or set VITRIFY_CACHE to a folder that can be written."
        raise DiskError(exc.what, fix) from exc
