"""One file a family of diffusion models: its conditioning, its denoiser's call, and what a manifest says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..settings import complete
from .base import Config, Family
from .flux import Flux
from .sana import Sana
from .sd import StableDiffusion
from .sd3 import StableDiffusion3
from .sdxl import StableDiffusionXL

# A new family is one file here, one row below, and one export spec in export/families/.
FAMILIES: dict[str, type[Family]] = {
    "sd": StableDiffusion,
    "sdxl": StableDiffusionXL,
    "sd3": StableDiffusion3,
    "flux": Flux,
    "sana": Sana,
}


def family_of_class(name: str) -> str | None:
    """The family whose models diffusers runs with the pipeline class `name`; None for a class that is not known."""
    return next((family for family, kind in FAMILIES.items() if name in kind.classes), None)


@complete("pipeline")
def pipeline_settings(family: str, configs: Mapping[str, Config], scheduler: Config, index: Config) -> dict[str, Any]:
    """A manifest's `pipeline` part of a diffusion model.

    Args:
        family: a name in `FAMILIES`. configs, scheduler, index: as `Family.describe` takes them.

    Raises:
        BadInput: the scheduler's class or options are not supported, or a config lacks something.
    """
    return {"family": family, **FAMILIES[family].describe(configs, scheduler, index)}
