"""Joules between two moments, as the hardware's own counters say: RAPL of the processor, NVML of an NVIDIA GPU.

The counters are of whole packages and cards, so what else runs there meanwhile is counted too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..core.device import Device
from ..core.errors import UsageError, VitrifyError
from ..runtimes.cuda import driver

_POWERCAP = "class/powercap"
_PCI = (50, 33, 34)  # CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, _PCI_BUS_ID and _PCI_DEVICE_ID of cuda.h


@dataclass(frozen=True)
class _Counter:
    """One that only grows. joules: reads it. wraps_at: where it starts again from 0; 0: never."""

    name: str
    joules: Callable[[], float]
    wraps_at: float = 0.0


class EnergyMeter:
    """Reads the counters of what runs a model: the processor's packages and, for a GPU, the GPU as well.

    A figure is given only where all of these can be read; a part of them would pass for the whole.

    Attributes:
        source: which counters are read, or why there are none.

    Args:
        device: what runs the model, as users write it.
        sysfs: where the kernel's /sys is; a container may have the host's elsewhere.

    Raises:
        UsageError: `device` is no device.
    """

    def __init__(self, device: str = "cpu", sysfs: Path = Path("/sys")) -> None:
        where = Device.parse(device)
        counters, problems = _packages(sysfs)
        if where.kind == "cuda":
            found, problem = _gpu(where.index or 0)
            counters += found
            problems += problem
        elif where.kind != "cpu":
            problems.append(f"no counter is known for the device {device}")
        self.source = "; ".join(problems) or ", ".join(counter.name for counter in counters)
        self._counters = [] if problems else counters
        self._before: list[float] | None = None

    @property
    def source_is_readable(self) -> bool:
        return bool(self._counters)

    def start(self) -> None:
        """Begin to count, anew where it had begun."""
        self._before = self._read()

    def stop(self) -> float | None:
        """Joules since `start`; None where there is nothing to read, or no longer.

        A package's counter starts again from 0 after minutes at full load (262 kJ on many: 17 minutes at 250 W). One
        such turn is seen, a second one is not.

        Raises:
            UsageError: it was not started.
        """
        if self._before is None and self._counters:
            raise UsageError("The energy meter was not started.", "Call start() first.")
        before, self._before = self._before, None
        after = self._read()
        if before is None or after is None:
            return None
        total = 0.0
        for counter, first, last in zip(self._counters, before, after, strict=True):
            total += last - first if last >= first else last - first + counter.wraps_at
        return total

    def _read(self) -> list[float] | None:
        if not self._counters:
            return None
        try:
            return [counter.joules() for counter in self._counters]
        except (OSError, ValueError) as exc:
            self._counters = []
            self.source = f"the counters could be read no longer: {exc}"
            return None


def _packages(sysfs: Path) -> tuple[list[_Counter], list[str]]:
    """A counter for each processor package, or what stands against it.

    The zones are the kernel's (Documentation/power/powercap), AMD's too: intel-rapl:N with the name package-N. Zones
    below (intel-rapl:N:M) are parts of a package or its memory, and `psys` is the whole board with the packages in it.
    """
    folder = sysfs / _POWERCAP
    zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    counters = []
    for zone in zones:
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith("package"):
                continue
            _microjoules(zone / "energy_uj")
            largest = _microjoules(zone / "max_energy_range_uj")
        except PermissionError as exc:
            return [], [f"no RAPL: {exc.filename} is not readable by this user"]
        except (OSError, ValueError) as exc:
            return [], [f"no RAPL: {zone} cannot be read ({exc})"]
        counters.append(_Counter(f"RAPL {name}", partial(_microjoules, zone / "energy_uj"), largest))
    if not counters:
        what = f"{folder} does not exist" if not folder.is_dir() else f"{folder} has no package"
        return [], [f"no RAPL: {what}; virtual machines seldom have it"]
    return counters, []


def _microjoules(path: Path) -> float:
    """Joules, of a file that says microjoules."""
    return int(path.read_text()) / 1e6


def _gpu(index: int) -> tuple[list[_Counter], list[str]]:
    """The counter of the NVIDIA GPU that CUDA calls `index`, or what stands against it. Older GPUs than Volta lack it.

    NVML numbers GPUs otherwise than CUDA, which may be shown some of them and orders them by speed; where a card sits
    on the bus both say.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return [], ["no NVML: nvidia-ml-py is not installed"]
    try:
        cuda = driver()
        device = cuda.number("cuDeviceGet", index)
        domain, bus, slot = (cuda.number("cuDeviceGetAttribute", which, device) for which in _PCI)
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByPciBusId(f"{domain:08x}:{bus:02x}:{slot:02x}.0")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except VitrifyError as exc:
        return [], [f"no NVML: {exc.what}"]
    except nvml.NVMLError as exc:
        return [], [f"no NVML: {exc}"]

    def joules() -> float:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3  # given in millijoules
        except nvml.NVMLError as exc:
            raise OSError(f"NVML: {exc}") from exc

    return [_Counter(f"NVML GPU {index}", joules)], []
