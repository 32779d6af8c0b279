"""Named answers to what matters most: the same picture, time, or memory.

Each says how a generation is drawn and how its sessions are opened; what a user gives besides goes before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.errors import UsageError
from ..runtimes.base import Options


@dataclass(frozen=True)
class Preset:
    """What it stands for.

    what: in a few words. step_cache, guidance_interval, guidance_every: as `DiffusionPipeline.generate` takes them.
    options: fields of `runtimes.base.Options`. offload: as `load` takes it; None leaves it as it is.
    """

    what: str
    step_cache: str | None = None
    guidance_interval: tuple[float, float] | None = None
    guidance_every: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    offload: str | None = None


PRESETS = {
    "exact": Preset(
        "the same picture, as fast as that goes: graphs compiled for the size that is drawn", options={"static": True}
    ),
    "fast": Preset(
        "nearly the same picture with half of the denoiser's work: each second step is whole", step_cache="2"
    ),
    "small": Preset(
        "the least memory: one component at a time, of which few weights are held; on ONNX Runtime",
        options={"arena": False, "resident_weights": 256_000_000},
        offload="components",
    ),
}


def preset_named(name: str) -> Preset:
    """Raises:
    UsageError: there is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"There is no preset {name!r}.", f"Give {', '.join(PRESETS)}.")
    return PRESETS[name]


def opened_with(preset: str | None, options: Options, offload: str) -> tuple[Options, str]:
    """Options and offload with what the preset says where a user left the usual."""
    if preset is None:
        return options, offload
    one, usual = preset_named(preset), Options()
    wanted = {n: v for n, v in one.options.items() if getattr(options, n) == getattr(usual, n)}
    return replace(
        options, **wanted, optional=(*options.optional, *wanted)
    ), one.offload if one.offload is not None and offload == "auto" else offload
