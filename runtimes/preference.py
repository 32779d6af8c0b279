"""Which device is the best of those that runtimes list: what is used where nobody names one."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.device import Device
from .base import Probe

# The best first, then any other, then the CPU. A device that a library merely lists may still fail to open, and then
# the reason is told.
_PREFERENCE = ("cuda", "rocm", "directml", "coreml", "xpu", "gpu")
_LAST = "cpu"
_CHOOSERS = ("auto", "hetero")  # no devices: they choose one themselves, which only a user may leave to them


def preferred(probes: Sequence[Probe]) -> list[Device]:
    """The devices that every runtime has, the best first.

    One runtime lists "cuda" and another "cuda:0": a device without a number stands for any of its kind.
    """
    parsed = [[Device.parse(name) for name in probe.devices] for probe in probes]
    listed = [[device for device in devices if device.kind not in _CHOOSERS] for devices in parsed]

    def has(devices: Sequence[Device], wanted: Device) -> bool:
        numbers = [d.index for d in devices if d.kind == wanted.kind]
        return bool(numbers) and (wanted.index is None or wanted.index in numbers or None in numbers)

    common = dict.fromkeys(d for devices in listed for d in devices if all(has(other, d) for other in listed))
    numbered = {d.kind for d in common if d.index is not None}
    apart = [d for d in common if d.index is not None or d.kind not in numbered]  # not "cuda" and "cuda:0" both

    def rank(device: Device) -> int:
        if device.kind == _LAST:
            return len(_PREFERENCE) + 1
        return _PREFERENCE.index(device.kind) if device.kind in _PREFERENCE else len(_PREFERENCE)

    return sorted(apart, key=rank)
