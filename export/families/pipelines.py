"""The components that the exporter makes of each family of diffusion models, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...pipelines.families import FAMILIES
from ..spec import ComponentSpec
from .flux import FLUX, check_flux
from .sana import SANA
from .sd import SD, check_sd
from .sd3 import SD3, check_sd3
from .sdxl import SDXL, SDXL_REFINER, check_sdxl

# family -> the specs of its components
SPECS: dict[str, tuple[ComponentSpec, ...]] = {"sana": SANA, "sd": SD, "sdxl": SDXL, "sd3": SD3, "flux": FLUX}

# class in model_index.json -> (family, components)
PIPELINES: dict[str, tuple[str, tuple[ComponentSpec, ...]]] = {
    name: (family, specs) for family, specs in SPECS.items() for name in FAMILIES[family].classes
}


def components_of(index: Mapping[str, Any]) -> tuple[str, tuple[ComponentSpec, ...]]:
    """The family of a model and the specs of its components, by its model_index.json, whose class is in `PIPELINES`."""
    family, specs = PIPELINES[str(index["_class_name"])]
    refiner = family == "sdxl" and index.get("requires_aesthetics_score")
    return family, SDXL_REFINER if refiner else specs


CHECKS: dict[str, Callable[[str, dict[str, dict[str, Any]]], None]] = {
    "sd": check_sd,
    "sdxl": check_sdxl,
    "sd3": check_sd3,
    "flux": check_flux,
}
