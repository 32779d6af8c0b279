"""The CUDA driver through ctypes: its calls, and which NVIDIA GPUs there are.

The driver (libcuda) lies wherever an NVIDIA GPU works, and its interface is stable; so neither PyTorch nor cuda-python
has to be installed. Names and signatures: docs.nvidia.com/cuda/cuda-driver-api and cuda.h.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..core.errors import DeviceError, RuntimeFailure

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_DRIVER_HELP = "Install NVIDIA's driver (`nvidia-smi` must list the GPU), or run on a machine that has such a GPU."

_HANDLE, _ADDRESS, _OUT = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p
# names as the library exports them: cuda.h renames those whose second form it wants
CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGetCount": (_OUT,),
    "cuDeviceGet": (_OUT, ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetAttribute": (_OUT, ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, ctypes.c_int),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
    "cuCtxPushCurrent_v2": (_HANDLE,),
    "cuCtxPopCurrent_v2": (_OUT,),
    "cuStreamCreate": (_OUT, ctypes.c_uint),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamBeginCapture_v2": (_HANDLE, ctypes.c_int),
    "cuStreamEndCapture": (_HANDLE, _OUT),
    "cuGraphInstantiateWithFlags": (_OUT, _HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphDestroy": (_HANDLE,),
    "cuMemAlloc_v2": (_OUT, ctypes.c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemGetInfo_v2": (_OUT, _OUT),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, ctypes.c_void_p, ctypes.c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _ADDRESS, ctypes.c_size_t, _HANDLE),
    "cuMemcpyDtoDAsync_v2": (_ADDRESS, _ADDRESS, ctypes.c_size_t, _HANDLE),
    "cuGetErrorString": (ctypes.c_int, _OUT),
}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


@dataclass(frozen=True)
class Gpu:
    """A GPU by its number among CUDA's devices. capability: (major, minor) of its architecture."""

    index: int
    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


class Driver:
    """The loaded library; `call` raises for every status that is not success."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(LIBRARY)
            self._calls = {name: getattr(library, name) for name in CALLS}
        except OSError as exc:
            raise DeviceError(f"There is no NVIDIA GPU here: {LIBRARY} does not load.", _DRIVER_HELP) from exc
        except AttributeError as exc:  # of an older CUDA than these names
            raise DeviceError(f"NVIDIA's driver is too old: {exc}.", "Install a newer driver.") from exc
        for name, types in CALLS.items():
            self._calls[name].argtypes, self._calls[name].restype = list(types), ctypes.c_int
        status = self._calls["cuInit"](0)
        if status:
            raise DeviceError(f"There is no usable NVIDIA GPU here: {self._text(status)}.", _DRIVER_HELP)

    def call(self, name: str, *arguments: Any) -> None:
        """Call one of `CALLS`.

        Raises:
            RuntimeFailure: with the driver's own text.
        """
        status = self._calls[name](*arguments)
        if status == _OUT_OF_MEMORY:
            raise RuntimeFailure("The GPU is out of memory.", "Use a smaller size or batch, or close other programs.")
        if status:
            raise RuntimeFailure(f"CUDA failed in {name}: {self._text(status)}.", "Run `vitrify doctor`.")

    def number(self, name: str, *arguments: Any) -> int:
        """The int that a call of this name writes to its first argument."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def handle(self, name: str, *arguments: Any) -> int:
        """The pointer or device address that a call of this name writes to its first argument."""
        value = ctypes.c_uint64()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def _text(self, status: int) -> str:
        text = ctypes.c_char_p()
        if self._calls["cuGetErrorString"](status, ctypes.byref(text)) or text.value is None:
            return f"CUDA error {status}"
        return text.value.decode(errors="replace")


@cache
def driver() -> Driver:
    """The driver, loaded once a process; a failure is not remembered.

    Raises:
        DeviceError: there is none, or it finds no GPU.
    """
    return Driver()


def find_gpus() -> tuple[Gpu, ...]:
    """Every GPU of this machine that CUDA may use, at least one.

    Raises:
        DeviceError: there is none; says why.
    """
    cuda = driver()
    found = []
    for index in range(cuda.number("cuDeviceGetCount")):
        device = cuda.number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(256)
        cuda.call("cuDeviceGetName", name, len(name), device)
        major, minor = (cuda.number("cuDeviceGetAttribute", which, device) for which in (_MAJOR, _MINOR))
        found.append(Gpu(index, name.value.decode(errors="replace"), (major, minor)))
    if not found:
        raise DeviceError("CUDA finds no NVIDIA GPU here.", _DRIVER_HELP)
    return tuple(found)


def free_bytes(index: int) -> int:
    """Bytes of a GPU's memory that no process holds.

    Raises:
        DeviceError: there is no such GPU.
    """
    gpu = next((g for g in find_gpus() if g.index == index), None)
    if gpu is None:
        raise DeviceError(f"There is no cuda:{index} here.", _DRIVER_HELP)
    cuda = driver()
    device = cuda.number("cuDeviceGet", index)
    context = cuda.handle("cuDevicePrimaryCtxRetain", device)
    try:
        cuda.call("cuCtxPushCurrent_v2", context)
        try:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            cuda.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        finally:
            cuda.handle("cuCtxPopCurrent_v2")
    finally:
        cuda.call("cuDevicePrimaryCtxRelease_v2", device)
    return free.value
