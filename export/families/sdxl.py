"""Stable Diffusion XL and its refiner: two CLIP text encoders, a UNet that is told sizes, and the VAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...core.errors import BadInput
from ...core.tensors import DType, TensorSpec
from ..spec import ComponentSpec, Config
from .clip import clip_text
from .sd import SD, check_unet, unet_inputs, unet_narrow
from .vae import VAE_DECODER, VAE_ENCODER

F32 = DType.FLOAT32
_UNET = next(spec for spec in SD if spec.name == "unet")
# of the narrow twin
_NARROW_POOLED, _NARROW_TIME = 16, 8


def _pooled(config: Config, time_ids: int) -> int:
    """Numbers of the pooled text: what the UNet's added embedding takes besides those of the sizes."""
    return int(config["projection_class_embeddings_input_dim"]) - time_ids * int(config["addition_time_embed_dim"])


def _unet(time_ids: int) -> ComponentSpec:
    """The spec of a UNet that takes so many sizes; its config does not tell how many."""

    def inputs(config: Config) -> dict[str, TensorSpec]:
        return unet_inputs(config) | {
            "text_embeds": TensorSpec(F32, ("batch", _pooled(config, time_ids))),
            "time_ids": TensorSpec(F32, ("batch", time_ids)),
        }

    def narrow(config: Config) -> Config:
        width = _NARROW_POOLED + time_ids * _NARROW_TIME
        return unet_narrow(config) | {
            "addition_time_embed_dim": _NARROW_TIME,
            "projection_class_embeddings_input_dim": width,
        }

    def shapes(config: Config) -> dict[str, tuple[int, int, int]]:
        return _UNET.shapes(config) | dict.fromkeys(("height", "width"), (8, 128, 256))

    return replace(
        _UNET,
        inputs=inputs,
        narrow=narrow,
        shapes=shapes,
        samples=lambda c: {"timestep": [0, 999], "time_ids": [0, 1024]},
    )


def _components(time_ids: int) -> tuple[ComponentSpec, ...]:
    return (
        replace(clip_text("text_encoder", "clip_text_hidden"), optional=True),
        clip_text("text_encoder_2", "clip_text_projection"),
        _unet(time_ids),
        VAE_DECODER,
        VAE_ENCODER,
    )


SDXL = _components(6)
# of original size and crop, and an aesthetic score; it is saved without text_encoder
SDXL_REFINER = _components(5)


def check_sdxl(given: str, configs: Mapping[str, Config]) -> None:
    """Refuse UNets that are told other things than text and sizes, and latents that are scaled by channel.

    Raises:
        BadInput: says what is not supported.
    """
    check_unet(given, configs, "text_time")
    if configs["vae_decoder"].get("latents_mean"):
        raise BadInput(f"{given}: its VAE has latents_mean, which is not supported.", "Use another model.")
