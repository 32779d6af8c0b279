"""Which diffusers pipeline classes are supported, and the components of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.errors import BadInput
from ..spec import ComponentSpec
from .sd import SD

# class in model_index.json -> (family, components)
PIPELINES: dict[str, tuple[str, tuple[ComponentSpec, ...]]] = {"StableDiffusionPipeline": ("sd", SD)}


def _check_sd(given: str, configs: dict[str, dict[str, Any]]) -> None:
    """Refuse UNets whose call needs more than sample, timestep and text."""
    unet = configs["unet"]
    for key in ("time_cond_proj_dim", "addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if unet.get(key):
            raise BadInput(f"{given}: its UNet has {key}={unet[key]!r}, which is not supported.", "Use another model.")
    if unet["in_channels"] != configs["vae_decoder"]["latent_channels"]:
        raise BadInput(
            f"{given}: its UNet takes {unet['in_channels']} channels, its VAE makes "
            f"{configs['vae_decoder']['latent_channels']}: an inpainting or depth model, which is not supported.",
            "Use a text-to-image model.",
        )


CHECKS: dict[str, Callable[[str, dict[str, dict[str, Any]]], None]] = {"sd": _check_sd}
