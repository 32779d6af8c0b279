"""Which component runs on which device, as a user says it: `vae=cpu,unet=cuda:0`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..core.device import Device
from ..core.errors import UsageError
from .settings import DENOISERS


def parse_place(text: str) -> dict[str, str]:
    """Component -> device of a text like "vae=cpu,unet=cuda:0".

    Raises:
        UsageError: a part is not NAME=DEVICE, or a name is given twice.
    """
    place: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, given, device = (p.strip() for p in part.partition("="))
        if not given or not name or not device:
            raise UsageError(f"{part!r} places nothing.", "Give COMPONENT=DEVICE, as in vae=cpu,unet=cuda:0.")
        if name in place:
            raise UsageError(f"{name} is placed twice.", "Give each component one device.")
        place[name] = device
    return place


def placed(place: Mapping[str, str], components: Iterable[str]) -> dict[str, Device]:
    """The device of each component that `place` names.

    Args:
        place: component -> device's name. "vae" stands for its encoder and decoder, "text_encoders" for all of them,
            and "denoiser" for the UNet or the transformer.

    Raises:
        UsageError: a name fits no component, or a device's name is none.
    """
    names = list(components)
    found: dict[str, Device] = {}
    # a component's own name wins over one that stands for several
    for given in sorted(place, key=lambda name: name in names):
        fit = [given] if given in names else [n for n in names if _stands_for(given, n)]
        if not fit:
            raise UsageError(f"There is no component {given!r} to place.", f"Components are {', '.join(names)}.")
        found |= dict.fromkeys(fit, Device.parse(place[given]))
    return found


def fitting(place: Mapping[str, str], components: Iterable[str]) -> dict[str, str]:
    """The part of `place` that is for these components."""
    names = list(components)
    return {given: device for given, device in place.items() if any(given == n or _stands_for(given, n) for n in names)}


def _stands_for(given: str, name: str) -> bool:
    groups = {
        "vae": name.startswith("vae_"),
        "text_encoders": name.startswith("text_encoder"),
        "denoiser": name in DENOISERS,
    }
    return groups.get(given, False)
