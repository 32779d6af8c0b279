"""The machine and what is installed on it, read without importing any library."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# distributions whose version can change what an artifact computes
LIBRARIES = (
    *("vitrify", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino"),
    *("tensorrt-rtx-cu12", "nncf", "bitsandbytes", "torchao", "numpy"),
)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def installed(distribution: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    from importlib import metadata  # with email's parser and zipfile behind it: most commands ask for no version

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """Distribution -> version, of those that are installed."""
    return {name: version for name in distributions if (version := installed(name))}


def cpu_info() -> list[tuple[str, str]]:
    """The (key, value) lines of /proc/cpuinfo, of all cores; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def cpu_model() -> str:
    """The CPU's name; Linux does not tell it to `platform`, so there it is read from /proc."""
    names = [value for key, value in cpu_info() if key == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def processor() -> list[str]:
    """The CPU's name and, where the system tells, what instructions it has: what a library lays memory out for."""
    flags = next((value for key, value in cpu_info() if key in ("flags", "Features")), "")
    return [platform.machine(), cpu_model(), flags]


def usable_cores() -> int:
    """Cores that the scheduler gives this process (taskset and containers narrow it)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int | None:
    """Physical memory in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def describe_host() -> dict[str, str]:
    """What a proof ran on, in a few words: a manifest goes to others."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
    }


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process holds; 0 where that cannot be read."""
    return _status(pid, "VmRSS") or 0


def peak_resident() -> int | None:
    """The most bytes of memory that this process held since `forget_peak`; None where the system does not say."""
    return _status("self", "VmHWM")


def forget_peak() -> None:
    """Let `peak_resident` start from what is held now; where the system refuses, it goes on from the older peak."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def free_at_once() -> bool:
    """Let memory that a library frees go back to the system at once, not only the largest pieces of it.

    glibc raises its bound for such pieces up to 32 MB, and keeps smaller ones: a VAE held three times what it needed.
    For the whole process. Returns whether this C library has the call.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 20)) and bool(mallopt(_TRIM_THRESHOLD, 1 << 20))


def _status(pid: int | str, key: str) -> int | None:
    """A line of /proc/PID/status in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{key}:")), None)
