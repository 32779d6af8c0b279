"""What a figure was measured on: the machine and the versions, without importing any of the libraries."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.machine import cpu_info, cpu_model, memory, usable_cores, versions_of
from ..runtimes.doctor import machine as doctors_view

# distributions whose version can change a figure
LIBRARIES = (
    "vitrify",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "torch",
    "torchao",
    "bitsandbytes",
    "diffusers",
    "transformers",
    "accelerate",
    "optimum",
    "optimum-onnx",
    "optimum-intel",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "openvino",
    "openvino-genai",
    "openvino-tokenizers",
    "nncf",
    "tensorrt",
    "tensorrt-rtx-cu12",
    "mlcommons-loadgen",
    "psutil",
)

_UNKNOWN = "unknown"
# PCI vendors of GPUs that the kernel shows without naming them; NVIDIA's driver names its own
_VENDORS = {"0x1002": "AMD", "0x8086": "Intel"}
_ROOT = Path("/")


def describe_machine() -> dict[str, Any]:
    """What decides speed, and what else tells machines apart; None where the system does not say.

    cpu; architecture; isa: instruction sets that matter; cores, and usable_cores: those this process may use.
    memory, swap: bytes. governor: of the cores' frequency; max_mhz. virtualised: whether a hypervisor is below.
    limits: cpus and memory in bytes that a container leaves. gpus: name and driver of each. kernel, system, python.
    """
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "isa": doctors_view()["isa"],
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory": memory(),
        "swap": swap(),
        **frequency(),
        "virtualised": virtualised(),
        "limits": limits(),
        "gpus": gpus(),
        "kernel": platform.release(),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def versions() -> dict[str, str]:
    """Version of each library that is installed in this interpreter's environment."""
    return versions_of(LIBRARIES)


def fingerprint(machine: Mapping[str, Any]) -> str:
    """12 hex digits of the sha256 of what decides speed; machines with the same ones compare."""
    text = json.dumps(_deciding(machine), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What decides speed and differs, in words such as "memory: 16 GB and 8 GB"; empty where the fingerprints agree."""
    first, second = _deciding(a), _deciding(b)
    return [
        _sets(name, first[name], second[name])
        if isinstance(first[name], list) and isinstance(second[name], list)
        else f"{name}: {_in_words(first[name])} and {_in_words(second[name])}"
        for name in first
        if first[name] != second[name]
    ]


def version_differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Libraries that differ, such as "torch: 2.13.0 and not installed"."""
    return [
        f"{name}: {a.get(name, 'not installed')} and {b.get(name, 'not installed')}"
        for name in dict.fromkeys((*a, *b))
        if a.get(name) != b.get(name)
    ]


def _deciding(machine: Mapping[str, Any]) -> dict[str, Any]:
    """A field that older files lack is None, and so is what the system did not say."""
    left = machine.get("limits")
    names = machine.get("gpus")
    return {
        "cpu": machine.get("cpu"),
        "architecture": machine.get("architecture"),
        "usable cores": machine.get("usable_cores"),
        "instruction sets": None if machine.get("isa") is None else sorted(machine["isa"]),
        "memory": _gigabytes(machine.get("memory")),
        "GPUs": None if names is None else sorted(gpu["name"] for gpu in names),
        "container limits": None if left is None else _limits_in_words(left),
        "frequency governor": machine.get("governor"),
    }


def _limits_in_words(left: Mapping[str, Any]) -> str:
    cores, size = left.get("cpus"), _gigabytes(left.get("memory"))
    parts = ([] if cores is None else [f"{cores:g} cores"]) + ([] if size is None else [size])
    return " with ".join(parts) or "none"


def _gigabytes(size: int | None) -> str | None:
    """Rounded: the same machine says a few MB more or less with another kernel."""
    return None if size is None else f"{round(size / 1e9)} GB"


def _in_words(value: Any) -> str:
    return _UNKNOWN if value is None else ", ".join(value) or "none" if isinstance(value, list) else str(value)


def _sets(name: str, first: list[str], second: list[str]) -> str:
    """Only what one of them has; of several that are called the same, all."""
    ours = [one for one in first if one not in second]
    theirs = [one for one in second if one not in first]
    if not ours and not theirs:
        return f"{name}: {_in_words(first)} and {_in_words(second)}"
    parts = [f"only the {which} has {', '.join(some)}" for which, some in (("first", ours), ("second", theirs)) if some]
    return f"{name}: {'; '.join(parts)}"


def frequency(root: Path = _ROOT) -> dict[str, Any]:
    """governor of the cores that this process may use, several joined by "+"; max_mhz of the fastest of them."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    folders = [root / f"sys/devices/system/cpu/cpu{core}/cpufreq" for core in cores]
    governors = {text for folder in folders if (text := _text(folder / "scaling_governor"))}
    most = [number for folder in folders if (number := _number(folder / "cpuinfo_max_freq"))]
    return {
        "governor": "+".join(sorted(governors)) or None,
        "max_mhz": round(max(most) / 1000) if most else None,  # from kHz
    }


def virtualised() -> bool | None:
    """Whether a hypervisor is below: x86 says so among its flags."""
    flags = next((value.split() for key, value in cpu_info() if key == "flags"), None)
    return None if flags is None else "hypervisor" in flags


def swap(root: Path = _ROOT) -> int | None:
    """Bytes of swap space; None where the system does not say."""
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        if line.startswith("SwapTotal:"):
            return int(line.split()[1]) * 1024
    return None


def limits(root: Path = _ROOT) -> dict[str, Any]:
    """cpus (a share of them as a fraction) and bytes of memory that control groups leave; None without a limit.

    Version 2 (cpu.max, memory.max) and 1 (cpu.cfs_quota_us, memory.limit_in_bytes); a group's parents bind it too. In
    a container its own group is the mount's root, whatever /proc calls it.
    """
    mount = root / "sys/fs/cgroup"
    cpus: list[float] = []
    sizes: list[int] = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for group in _upwards([mount, mount / "unified"], path):
                quota, _, period = (_text(group / "cpu.max") or "max").partition(" ")
                cpus += [int(quota) / int(period)] if quota != "max" else []
                sizes += [size] if (size := _number(group / "memory.max")) is not None else []
        if "cpu" in controllers.split(","):
            for group in _upwards([mount / "cpu", mount / controllers], path):
                quota_us, period_us = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
                cpus += [quota_us / period_us] if quota_us and period_us and quota_us > 0 else []
        if "memory" in controllers.split(","):
            for group in _upwards([mount / "memory", mount / controllers], path):
                sizes += [size] if (size := _number(group / "memory.limit_in_bytes")) is not None else []
    # version 1 says "no limit" with a number close to 2**63
    least = min((size for size in sizes if size < (memory() or 2**62)), default=None)
    return {"cpus": round(min(cpus), 2) if cpus else None, "memory": least}


def _upwards(mounts: Iterable[Path], path: str) -> list[Path]:
    """A group and all above it, up to each mount."""
    group = Path(path.lstrip("/"))
    return [mount / part for mount in mounts for part in (group, *group.parents)]


def gpus(root: Path = _ROOT) -> list[dict[str, Any]]:
    """Name and driver of each GPU that a driver shows: NVIDIA's in /proc, others as the kernel lists them."""
    version = (_text(root / "proc/driver/nvidia/version") or "").split("Kernel Module")
    driver = next((word for word in version[-1].split() if word[0].isdigit()), None) if len(version) > 1 else None
    found: list[dict[str, Any]] = []
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        names = [line.partition(":")[2].strip() for line in (_text(path) or "").splitlines() if "Model" in line]
        found.append({"name": names[0] if names else "NVIDIA GPU", "driver": driver})
    for device in sorted(root.glob("sys/class/drm/card[0-9]/device")):
        vendor = _VENDORS.get(_text(device / "vendor") or "")
        if vendor:
            module = device / "driver"
            name = f"{vendor} {_text(device / 'device') or _UNKNOWN}"  # a number that its maker gave it
            found.append({"name": name, "driver": module.resolve().name if module.exists() else None})
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    """The whole number in a file; None where there is none, such as "max"."""
    text = _text(path) or ""
    return int(text) if text.lstrip("-").isdecimal() else None
