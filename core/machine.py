"""The machine and what is installed on it, read without importing any library."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

# distributions whose version can change what an artifact computes
LIBRARIES = (
    *("vitrify", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino"),
    *("tensorrt-rtx-cu12", "nncf", "bitsandbytes", "torchao", "numpy"),
)


def installed(distribution: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
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
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0)
