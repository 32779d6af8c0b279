"""Write a folder so that it is there whole or not at all."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import BadInput, Busy, DiskError

_OLD = "-old"
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Translate what the system says of `where`, or of another file that it names, into one DiskError or BadInput."""
    try:
        yield
    except OSError as exc:
        # of two files, a copy's disk is the second's
        name = (exc.errno in _FULL and exc.filename2) or exc.filename
        named = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else where
        elsewhere = not _stands_for(where, named)
        place, choose = (named, "Check that file.") if elsewhere else (where, "Choose another folder with -o.")
        if exc.errno in _FULL:
            raise DiskError(f"The disk that holds {place} is full.", "Free some space, then run it again.") from exc
        if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            what = "read or written" if elsewhere else "written"
            raise DiskError(f"{place} cannot be {what}: {exc.strerror}.", choose) from exc
        if exc.errno in (errno.EIO, errno.EFBIG):
            raise DiskError(f"Writing {place} failed: {exc.strerror}.", "Check the disk, then run it again.") from exc
        if exc.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP):
            raise BadInput(f"{str(place)[:200]} cannot be made: {exc.strerror}.", choose) from exc
        raise


def _stands_for(where: Path, named: Path) -> bool:
    """Whether the user knows `named` as `where`: it is on the way there, below, or a temporary folder beside it."""
    place, file = Path(os.path.realpath(where)), Path(os.path.realpath(named))
    if place.is_relative_to(file):
        return True
    beside = file.relative_to(place.parent).parts if file.is_relative_to(place.parent) else ("",)
    return beside[0] == place.name or beside[0].startswith(f".{place.name}.")


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or as it was; text in UTF-8.

    Raises:
        DiskError: the disk is full or read-only.
    """
    part = file.with_name(f".{uuid.uuid4().hex}.part")  # of its own, also where two write the same file
    with disk_errors(file):
        try:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def published(target: Path, *, replace: bool = False, marker: str = "artifact.json") -> Iterator[Path]:
    """Give a temporary folder beside `target`; rename it to `target` when the block ends well.

    A killed process leaves at most a hidden `.NAME.part-*` folder, which the next run removes; killed between the
    two renames of a replacement, it leaves the old folder as `.NAME.part-*-old`, which the next run puts back. A
    second process that writes the same target is refused while the first holds the lock.

    Args:
        replace: an existing `target` that holds `marker` may be replaced; nothing else ever is.

    Raises:
        BadInput: `target` exists and may not be replaced.
        Busy: another process is writing it.
        DiskError: the disk is full or read-only.
    """
    # where it is a link, the folder that it names is written, not the link
    target = Path(os.path.realpath(target))  # unlike resolve(), it bears links that lead in a circle
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            _clean_up(target)
            _refuse_existing(target, replace, marker)
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
            try:
                scratch.chmod(0o755)
                yield scratch
                if target.exists():
                    target.rename(scratch.with_name(scratch.name + _OLD))
                scratch.rename(target)
            finally:
                _clean_up(target)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock on what is written to or removed from `target`.

    Raises:
        Busy: another process or thread holds it.
    """
    from filelock import FileLock, Timeout  # brings asyncio, which who only reads an artifact has no use for

    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as exc:
        raise Busy(
            f"{target} is being written by another process (lock {lock.lock_file}).",
            "Wait for it to end, or choose another folder with -o.",
        ) from exc
    try:
        yield
    finally:
        # while it is still held: removed later, it might be the file that another process has just locked
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _clean_up(target: Path) -> None:
    """Remove temporary folders, also those of killed processes; one moved aside goes back if nothing replaced it."""
    for stale in target.parent.glob(f".{glob.escape(target.name)}.part-*"):
        if stale.name.endswith(_OLD) and not target.exists():
            stale.rename(target)
        else:
            shutil.rmtree(stale, ignore_errors=True)


def _refuse_existing(target: Path, replace: bool, marker: str) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / marker).is_file():
        raise BadInput(f"{target} exists and is not an artifact.", "Choose another folder with -o.")
    if not replace:
        raise BadInput(f"{target} exists.", "Give --force to replace it, or another folder with -o.")


def can_link(source: Path, folder: Path) -> bool:
    """Whether `source` can be hard-linked into `folder`, found by trying."""
    probe = folder / f".{uuid.uuid4().hex}"
    try:
        os.link(source.resolve(), probe)
    except OSError:
        return False
    probe.unlink()
    return True


def link_or_copy(source: Path, target: Path) -> bool:
    """Hard-link `source` (its real file, not a link to it) as `target`, else copy. True when it was linked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve()
    try:
        os.link(real, target)
        return True
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
    shutil.copyfile(real, target)
    return False
