"""The memory of a GPU while a process works, as NVML says it; the driver's library, through ctypes.

Names and signatures: docs.nvidia.com/deploy/nvml-api and nvml.h. What other processes hold is taken off by what was
held before; one that starts or ends meanwhile is counted.
"""

from __future__ import annotations

import ctypes
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitrify.runtimes.cuda import driver

LIBRARY = "libnvidia-ml.so.1"
CALLS: dict[str, tuple[Any, ...]] = {
    "nvmlInit_v2": (),
    "nvmlDeviceGetHandleByPciBusId_v2": (ctypes.c_char_p, ctypes.c_void_p),
    "nvmlDeviceGetMemoryInfo": (ctypes.c_void_p, ctypes.c_void_p),
}
_PCI = (50, 33, 34)  # CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, _PCI_BUS_ID and _PCI_DEVICE_ID of cuda.h


class MemoryInfo(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpu_memory(index: int = 0) -> Callable[[], int]:
    """A function that says how many bytes of the GPU that CUDA calls `index` are in use.

    Raises:
        OSError: there is no NVML, or it refuses.
        VitrifyError: there is no driver.
    """
    nvml = ctypes.CDLL(LIBRARY)
    for name, types in CALLS.items():
        getattr(nvml, name).argtypes = list(types)

    def call(name: str, *arguments: Any) -> None:
        status = getattr(nvml, name)(*arguments)
        if status:
            raise OSError(f"{name} gives {status}")

    call("nvmlInit_v2")
    cuda = driver()
    device = cuda.number("cuDeviceGet", index)
    # NVML numbers GPUs otherwise than CUDA, which may be shown some of them alone
    domain, bus, slot = (cuda.number("cuDeviceGetAttribute", which, device) for which in _PCI)
    handle = ctypes.c_void_p()
    call("nvmlDeviceGetHandleByPciBusId_v2", f"{domain:08x}:{bus:02x}:{slot:02x}.0".encode(), ctypes.byref(handle))

    def used() -> int:
        info = MemoryInfo()
        call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(info))
        return int(info.used)

    return used


def resident_memory(process: subprocess.Popen[bytes]) -> Callable[[], int]:
    """A function that says how many bytes of memory a process holds; 0 once it has ended."""
    status = Path(f"/proc/{process.pid}/statm")

    def used() -> int:
        try:
            return int(status.read_text().split()[1]) * 4096
        except (OSError, IndexError):
            return 0

    return used


def peak_of(command: Sequence[str], env: dict[str, str], on_gpu: bool, interval: float = 0.01) -> int:
    """The most bytes that were in use while a command ran, less those before: of the first GPU, or of the process.

    Raises:
        AssertionError: the command failed; with what it said.
        OSError, VitrifyError: there is no NVML.
    """
    read = gpu_memory() if on_gpu else None
    before = read() if read else 0
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        read = read or resident_memory(process)
        most = before
        while process.poll() is None:
            most = max(most, read())
            time.sleep(interval)
        said = process.stderr.read().decode(errors="replace") if process.stderr else ""
    assert process.returncode == 0, said[-2000:]
    return most - before
