"""The devices that this machine has, whatever is installed, and which runtime runs each."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.device import Device
from ..core.errors import DeviceError, RuntimeFailure
from ..core.machine import cpu_model
from .cuda import find_gpus

_PCI, _KFD, _ACCEL = Path("/sys/bus/pci/devices"), Path("/dev/kfd"), Path("/dev/accel")
_DISPLAY, _PROCESSING = "0x03", "0x12"  # PCI classes
_VENDORS = {"NVIDIA": "0x10de", "AMD": "0x1002", "Intel": "0x8086"}
# what brings a runtime for a device that is there and that none runs
_GET = {
    "cuda": 'pip install "vitrify[tensorrt-rtx]", or a build of PyTorch for CUDA, or onnxruntime-gpu',
    "rocm": "a build of PyTorch for ROCm, or onnxruntime-migraphx",
    "gpu": 'pip install "vitrify[openvino]"',
    "npu": 'pip install "vitrify[openvino]"',
    "directml": "pip uninstall onnxruntime, then pip install onnxruntime-directml",
    "coreml": 'pip install "vitrify[onnx]"',
}


def devices_here(runtimes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each device: the CPU, those that were found, and the kinds that were looked for and not found.

    Args:
        runtimes: of each its `devices`, where it is usable, and `details`, as the doctor has them.

    Returns:
        Of each: device, name, found, runs ([{runtime, provider}]), what (why it is not used), fix.
    """
    rows = [_row("cpu", cpu_model(), runtimes), *_nvidia(runtimes), *_amd(runtimes)]
    for kind, pci in (("gpu", _DISPLAY), ("npu", _PROCESSING)):
        rows += _intel(kind, pci, runtimes)
    if platform.system() == "Windows":
        rows.append(_row("directml", "a GPU with DirectX 12", runtimes))
    if platform.system() == "Darwin":
        rows.append(_row("coreml", "Apple's GPU and neural engine", runtimes))
    # what a library lists and was not looked for here, such as a device of another package's runtime
    known = {Device.parse(row["device"]).kind for row in rows}
    for name in dict.fromkeys(n for runtime in runtimes.values() for n in runtime.get("devices", ())):
        kind = Device.parse(name).kind
        if kind not in known and kind not in ("auto", "hetero"):
            rows.append(_row(name, "", runtimes))
    return rows


def _nvidia(runtimes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    try:
        return [_row(f"cuda:{gpu.index}", str(gpu), runtimes) for gpu in find_gpus()]
    except (DeviceError, RuntimeFailure) as exc:
        seen = _on_pci("NVIDIA", _DISPLAY)
        what = f"An NVIDIA GPU is on the bus, and its driver is not usable. {exc.what}" if seen else exc.what
        return [_missing("cuda", "NVIDIA GPUs", what, exc.fix)]


def _amd(runtimes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    if _KFD.exists() or _listed("rocm", runtimes):
        return [_row("rocm", "an AMD GPU", runtimes)]
    what = "An AMD GPU is on the bus; /dev/kfd, which ROCm needs, is not there." if _on_pci("AMD", _DISPLAY) else ""
    fix = "Install AMD's driver with ROCm (amdgpu-install), or run on a machine that has such a GPU."
    return [_missing("rocm", "AMD GPUs", what or "There is no AMD GPU here: no /dev/kfd.", fix)]


def _intel(kind: str, pci: str, runtimes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    listed = _listed(kind, runtimes)
    if listed:
        told = runtimes.get("openvino", {}).get("details", {}).get("devices", {})
        return [_row(name, str(told.get(name, {}).get("name", "")), runtimes) for name in listed]
    title, seen = ("Intel GPUs", "/dev/dri") if kind == "gpu" else ("Intel NPUs", "/dev/accel")
    if _on_pci("Intel", pci) or (kind == "npu" and _ACCEL.exists()):
        what = f"There is one on the bus, which no runtime lists: its driver or {seen} is missing, or OpenVINO is."
        return [_missing(kind, title, what, f"Install Intel's driver for it and {_GET[kind]}.")]
    return [_missing(kind, title, f"There is no {title.removesuffix('s')} here.", "")]


def _listed(kind: str, runtimes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = (name for runtime in runtimes.values() for name in runtime.get("devices", ()))
    return [name for name in dict.fromkeys(names) if Device.parse(name).kind == kind]


def _row(device: str, name: str, runtimes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    wanted = Device.parse(device)
    runs = []
    for runtime, row in runtimes.items():
        has = [Device.parse(d) for d in row.get("devices", ())] if row.get("usable") else []
        if any(d.kind == wanted.kind and (d.index is None or d.index == (wanted.index or 0)) for d in has):
            providers = row.get("details", {}).get("providers", ())
            opened = [p["name"] for p in providers if wanted.kind in p.get("opened", ())]
            runs += [{"runtime": runtime, "provider": provider} for provider in opened or [""]]
    what = "" if runs else "It is there, and no runtime that is installed runs it."
    fix = "" if runs else f"Install one: {_GET[wanted.kind]}." if wanted.kind in _GET else ""
    return {"device": device, "name": name, "found": True, "runs": runs, "what": what, "fix": fix}


def _missing(device: str, name: str, what: str, fix: str) -> dict[str, Any]:
    return {"device": device, "name": name, "found": False, "runs": [], "what": what, "fix": fix}


def _on_pci(vendor: str, kind: str) -> bool:
    """Whether the PCI bus has a device of this vendor and class; False where the system does not show it."""
    for device in _PCI.glob("*"):
        with suppress(OSError):  # it went meanwhile, or may not be read
            found = (device / "vendor").read_text().strip(), (device / "class").read_text()[:4]
            if found == (_VENDORS[vendor], kind):
                return True
    return False
