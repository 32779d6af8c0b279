"""What is said of a machine: this one, and others as their kernels show them in files."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from vitrify.bench import machine
from vitrify.bench.machine import (
    describe_machine,
    differences,
    fingerprint,
    frequency,
    gpus,
    limits,
    swap,
    version_differences,
    versions,
)
from vitrify.core.machine import memory

GB = 10**9
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
HERE: dict[str, Any] = {
    "cpu": "AMD EPYC 9354",
    "architecture": "x86_64",
    "isa": ["avx2", "avx512f", "avx512_vnni"],
    "usable_cores": 8,
    "memory": 33_400_000_000,
    "gpus": [{"name": "NVIDIA L4", "driver": "570.1"}],
    "limits": {"cpus": None, "memory": None},
    "governor": "performance",
    "kernel": "6.8.0",
    "python": "CPython 3.11.7",
}


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_this_machine() -> None:
    found = describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]
    assert 1 <= found["usable_cores"] <= found["cores"]
    assert found["memory"] > 10**8
    assert {"isa", "governor", "max_mhz", "virtualised", "limits", "gpus", "swap", "kernel"} <= set(found)
    assert fingerprint(found) == fingerprint(describe_machine())
    assert differences(found, found) == []


def test_it_is_quick() -> None:
    describe_machine()  # imports
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        describe_machine()
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.05


def test_versions_name_what_is_installed() -> None:
    found = versions()
    assert re.fullmatch(r"\d+\.\d+.*", found["numpy"])
    assert set(found) <= set(machine.LIBRARIES)


def test_frequency(tmp_path: Path) -> None:
    assert frequency(tmp_path) == {"governor": None, "max_mhz": None}
    for core in CORES:
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "performance\n")
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", "3850000\n")
    assert frequency(tmp_path) == {"governor": "performance", "max_mhz": 3850}


@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")
def test_cores_of_two_kinds(tmp_path: Path) -> None:
    first, second, *_ = CORES
    for core, governor, most in ((first, "schedutil", 3400000), (second, "powersave", 4800000)):
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", f"{governor}\n")
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", f"{most}\n")
    assert frequency(tmp_path) == {"governor": "powersave+schedutil", "max_mhz": 4800}


def test_swap(tmp_path: Path) -> None:
    assert swap(tmp_path) is None
    write(tmp_path, "proc/meminfo", "MemTotal:       32712344 kB\nSwapTotal:       2097148 kB\nSwapFree:   0 kB\n")
    assert swap(tmp_path) == 2097148 * 1024


def test_no_limits(tmp_path: Path) -> None:
    assert limits(tmp_path) == {"cpus": None, "memory": None}
    write(tmp_path, "proc/self/cgroup", "0::/user.slice/session-1.scope\n")
    write(tmp_path, "sys/fs/cgroup/user.slice/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/user.slice/memory.max", "max\n")
    assert limits(tmp_path) == {"cpus": None, "memory": None}


def test_limits_in_a_container(tmp_path: Path) -> None:
    """Version 2, where a container sees its own group as the root."""
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", "67108864\n")
    assert limits(tmp_path) == {"cpus": 1.5, "memory": 67108864}


def test_a_parents_limit_binds_too(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/kubepods/pod1/box\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod1/box/cpu.max", "400000 100000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod1/cpu.max", "200000 100000\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/pod1/box/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/kubepods/memory.max", "50000000\n")
    assert limits(tmp_path) == {"cpus": 2.0, "memory": 50_000_000}


def test_limits_of_version_1(tmp_path: Path) -> None:
    """In a container /proc names the host's path, which is not there: the mount's root is its group."""
    write(tmp_path, "proc/self/cgroup", "5:cpu,cpuacct:/docker/4f2a\n4:memory:/docker/4f2a\n1:name=systemd:/x\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n")
    assert limits(tmp_path) == {"cpus": 0.5, "memory": 67108864}
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert limits(tmp_path) == {"cpus": None, "memory": None}


def test_a_limit_above_the_memory_is_none(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory.max", f"{(memory() or 2**62) + 4096}\n")
    assert limits(tmp_path)["memory"] is None


def test_gpus(tmp_path: Path) -> None:
    assert gpus(tmp_path) == []
    for slot in ("0000:01:00.0", "0000:02:00.0"):
        write(
            tmp_path,
            f"proc/driver/nvidia/gpus/{slot}/information",
            f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 83\nGPU UUID: \t GPU-1\nBus Location: \t {slot}\n",
        )
    write(
        tmp_path,
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build  (x@y)  Tue\n"
        "GCC version:  gcc version 11.4.0 (Ubuntu)\n",
    )
    card = tmp_path / "sys/class/drm/card0/device"
    for name, text in (("vendor", "0x8086\n"), ("device", "0x56a0\n")):
        write(card, name, text)
    write(tmp_path, "sys/bus/pci/drivers/i915/bind", "")
    (card / "driver").symlink_to(tmp_path / "sys/bus/pci/drivers/i915")
    write(tmp_path, "sys/class/drm/card1/device/vendor", "0x10de\n")  # NVIDIA's own, known from above
    write(tmp_path, "sys/class/drm/card0-HDMI-A-1/device/vendor", "0x8086\n")  # a socket, not a card
    nvidia = {"name": "NVIDIA H100 80GB HBM3", "driver": "570.124.06"}
    assert gpus(tmp_path) == [nvidia, nvidia, {"name": "Intel 0x56a0", "driver": "i915"}]
    older = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    write(tmp_path, "proc/driver/nvidia/version", older)
    assert gpus(tmp_path)[0]["driver"] == "535.183.01"


def test_the_fingerprint_is_of_what_decides_speed() -> None:
    same = HERE | {"kernel": "6.9.1", "python": "CPython 3.12.1", "memory": 33_300_000_000, "isa": HERE["isa"][::-1]}
    same |= {"gpus": [{"name": "NVIDIA L4", "driver": "580.2"}]}
    assert re.fullmatch("[0-9a-f]{12}", fingerprint(HERE))
    assert fingerprint(same) == fingerprint(HERE)
    assert differences(HERE, same) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cpu": "Intel Xeon 8488C"}, "cpu: AMD EPYC 9354 and Intel Xeon 8488C"),
        ({"architecture": "aarch64"}, "architecture: x86_64 and aarch64"),
        ({"usable_cores": 2}, "usable cores: 8 and 2"),
        (
            {"isa": ["avx2", "amx_int8"]},
            "instruction sets: only the first has avx512_vnni, avx512f; only the second has amx_int8",
        ),
        ({"isa": None}, "instruction sets: avx2, avx512_vnni, avx512f and unknown"),
        ({"memory": 16 * GB}, "memory: 33 GB and 16 GB"),
        ({"gpus": []}, "GPUs: only the first has NVIDIA L4"),
        ({"gpus": HERE["gpus"] * 2}, "GPUs: NVIDIA L4 and NVIDIA L4, NVIDIA L4"),
        ({"limits": {"cpus": 2.0, "memory": None}}, "container limits: none and 2 cores"),
        ({"limits": {"cpus": None, "memory": 4 * GB}}, "container limits: none and 4 GB"),
        ({"limits": {"cpus": 1.5, "memory": 4 * GB}}, "container limits: none and 1.5 cores with 4 GB"),
        ({"governor": "powersave"}, "frequency governor: performance and powersave"),
        ({"governor": None}, "frequency governor: performance and unknown"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_differences_in_words(changed: dict[str, Any], words: str) -> None:
    assert differences(HERE, HERE | changed) == [words]
    assert fingerprint(HERE | changed) != fingerprint(HERE)


def test_a_file_of_before() -> None:
    """Its header lacks most fields: that is told, and nothing breaks."""
    old = {k: HERE[k] for k in ("cpu", "architecture", "usable_cores", "memory")}
    assert differences(old, old) == []
    assert differences(old, HERE) == [
        "instruction sets: unknown and avx2, avx512_vnni, avx512f",
        "GPUs: unknown and NVIDIA L4",
        "container limits: unknown and none",
        "frequency governor: unknown and performance",
    ]


def test_version_differences() -> None:
    ours = {"torch": "2.13.0", "onnx": "1.23.2", "numpy": "2.4.6"}
    theirs = {"torch": "2.12.1", "numpy": "2.4.6", "openvino": "2026.4.1"}
    assert version_differences(ours, ours) == []
    assert version_differences(ours, theirs) == [
        "torch: 2.13.0 and 2.12.1",
        "onnx: 1.23.2 and not installed",
        "openvino: not installed and 2026.4.1",
    ]
