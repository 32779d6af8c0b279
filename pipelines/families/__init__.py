"""One file a family of diffusion models: its conditioning, its denoiser's call, and what a manifest says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..settings import complete

if TYPE_CHECKING:
    from .base import Config, Family

# A new family is one file here, one row below, and one export spec in export/families/.
_WHERE = {
    "sd": "sd.StableDiffusion",
    "sdxl": "sdxl.StableDiffusionXL",
    "sd3": "sd3.StableDiffusion3",
    "flux": "flux.Flux",
    "sana": "sana.Sana",
}


class _Families(Mapping[str, "type[Family]"]):
    """Name -> class; its file is imported when it is asked for, so that a model waits for no other family's."""

    def __getitem__(self, name: str) -> type[Family]:
        module, _, kind = _WHERE[name].partition(".")
        found: type[Family] = getattr(import_module(f".{module}", __name__), kind)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_WHERE)

    def __len__(self) -> int:
        return len(_WHERE)


FAMILIES: Mapping[str, type[Family]] = _Families()


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
