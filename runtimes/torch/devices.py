"""The devices that PyTorch has here, by the names that users give: cpu, cuda:0, rocm:0, xpu:0, mps.

A build of PyTorch for AMD calls its GPUs "cuda" too; here they are "rocm", for nothing made for NVIDIA runs on them.
"""

from __future__ import annotations

from typing import Any

import torch

from ...core.device import Device
from ...core.errors import DeviceError
from ...core.machine import cpu_info

_NUMBERED = ("cuda", "rocm", "xpu")
# what a processor needs to compute in a short float itself, the quickest first; Linux names them so
_INSTRUCTIONS = {
    "bfloat16": ("amx_bf16", "avx512_bf16", "bf16", "svebf16"),
    "float16": ("amx_fp16", "avx512_fp16", "asimdhp"),
}


def names() -> dict[str, str]:
    """Device -> what the library calls it."""
    found = {"cpu": torch.backends.cpu.get_cpu_capability()}
    kind = "rocm" if torch.version.hip else "cuda"
    if torch.cuda.is_available():
        found |= {f"{kind}:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    if torch.xpu.is_available():
        found |= {f"xpu:{i}": torch.xpu.get_device_name(i) for i in range(torch.xpu.device_count())}
    if torch.backends.mps.is_available():
        found["mps"] = "Metal"
    return found


def find(device: Device, has: tuple[str, ...]) -> tuple[Device, torch.device]:
    """The device as it is listed in `has`, and as PyTorch names it.

    "cpu:0" is the CPU and "cuda" the first GPU; other numbers must be there.

    Raises:
        DeviceError: it is not.
    """
    index = device.index or (0 if device.kind in _NUMBERED else None)
    listed = Device(device.kind, index, device.detail)
    if str(listed) not in has:
        raise DeviceError(
            f"PyTorch {torch.__version__} cannot run on {device} here; it has {', '.join(has)}.", _fix(device)
        )
    kind = "cuda" if device.kind == "rocm" else device.kind
    return listed, torch.device(kind) if index is None else torch.device(kind, index)


def _fix(device: Device) -> str:
    """What may be missing, where the device is of a kind that another build of PyTorch runs."""
    build = torch.version.hip or torch.version.cuda
    if device.kind in ("cuda", "rocm", "xpu") and not (build and device.kind != "xpu"):
        return "Give --device cpu; for a GPU, install a build of PyTorch for it (pytorch.org/get-started)."
    return "Give --device cpu."


def instructions(dtype: str) -> str | None:
    """The instructions with which this processor computes in `dtype`, such as amx_bf16; None where it has none."""
    flags = {flag for key, value in cpu_info() if key in ("flags", "Features") for flag in value.split()}
    return next((name for name in _INSTRUCTIONS[dtype] if name in flags), None)


def details() -> dict[str, Any]:
    """What a probe tells besides: threads, the devices' names, and how the CPU computes in short floats."""
    short = {dtype: instructions(dtype) or "converted to float32 and back: slow" for dtype in _INSTRUCTIONS}
    return {"threads": torch.get_num_threads(), "names": names(), "cpu": short}
