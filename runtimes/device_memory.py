"""How much memory of a device is free: what decides whether a model's components stay on it together."""

from __future__ import annotations

from ..core.device import Device
from ..core.errors import DeviceError, RuntimeFailure
from .cuda import free_bytes


def free_memory(device: Device) -> int | None:
    """Bytes of a GPU's memory that are free now; None where nobody says, which says nothing of the device."""
    if device.kind != "cuda":
        return None
    try:
        return free_bytes(device.index or 0)
    except (DeviceError, RuntimeFailure):  # what opens on it then tells what is wrong
        return None
