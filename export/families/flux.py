"""Flux, dev, schnell and Fill: a CLIP text encoder, T5, a transformer over packed latents, a VAE."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from ...core.errors import BadInput
from ...core.tensors import DType, TensorSpec
from ...pipelines.settings import vae_scale
from ..spec import ComponentSpec, Config
from .clip import clip_text
from .narrow import NARROW, attention_width, first_alike
from .t5 import t5_encoder
from .vae import VAE_DECODER, VAE_ENCODER

F32 = DType.FLOAT32
_PACKED = 4  # latents in a token, a square of 2 by 2


def _inputs(config: Config) -> dict[str, TensorSpec]:
    axes = len(_axes(config))
    inputs = {
        "hidden_states": TensorSpec(F32, ("batch", "image_tokens", int(config["in_channels"]))),
        "encoder_hidden_states": TensorSpec(F32, ("batch", "tokens", int(config["joint_attention_dim"]))),
        "pooled_projections": TensorSpec(F32, ("batch", int(config["pooled_projection_dim"]))),
        "timestep": TensorSpec(F32, ("batch",)),
        "img_ids": TensorSpec(F32, ("image_tokens", axes)),
        "txt_ids": TensorSpec(F32, ("tokens", axes)),
    }
    if config.get("guidance_embeds"):
        inputs["guidance"] = TensorSpec(F32, ("batch",))
    return inputs


def _outputs(config: Config) -> dict[str, TensorSpec]:
    channels = int(config.get("out_channels") or config["in_channels"])
    return {"out_hidden_states": TensorSpec(F32, ("batch", "image_tokens", channels))}


def _narrow(config: Config) -> Config:
    """A few heads; a model that is narrow already is its own twin."""
    if attention_width(config) <= NARROW:
        return config
    changes = (
        {
            "num_attention_heads": heads,
            "attention_head_dim": sum(axes),
            "axes_dims_rope": list(axes),
            "joint_attention_dim": joint,
            "pooled_projection_dim": pooled,
        }
        for heads, axes, joint, pooled in product((2, 3), ((2, 4, 4), (4, 4, 4), (2, 4, 6)), (24, 28), (12, 24))
    )
    return first_alike(config, _sizes, changes)


def _sizes(config: Mapping[str, Any]) -> list[int]:
    """The sizes that the transformer's tensors have, but for those of the pictures and the text."""
    width = attention_width(config)
    keys = ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")
    return [width, 3 * width, 4 * width, 5 * width, 6 * width, *(int(config[k]) for k in keys), *_axes(config)]


def _axes(config: Mapping[str, Any]) -> tuple[int, ...]:
    """How many numbers of a head turn with each coordinate of a position."""
    return tuple(int(width) for width in config.get("axes_dims_rope") or (16, 56, 56))


def _samples(config: Config) -> dict[str, list[int]]:
    # timesteps are shares of 1000; texts have no positions, but their input is there
    ranges = {"timestep": [0, 1], "img_ids": [0, 255], "txt_ids": [0, 255]}
    return ranges | ({"guidance": [1, 4]} if config.get("guidance_embeds") else {})


FLUX = (
    clip_text("text_encoder"),
    t5_encoder("text_encoder_2"),
    ComponentSpec(
        name="transformer",
        kind="flux_transformer",
        folder="transformer",
        stem="diffusion_pytorch_model",
        library="diffusers",
        inputs=_inputs,
        outputs=_outputs,
        example=lambda c: {"batch": 3, "image_tokens": 35, "tokens": 41},
        shapes=lambda c: {"batch": (1, 1, 16), "image_tokens": (1, 4096, 65536), "tokens": (1, 512, 512)},
        checks=lambda c: [
            {"batch": 1, "image_tokens": 48, "tokens": 77},
            {"batch": 2, "image_tokens": 15, "tokens": 128},
        ],
        narrow=_narrow,
        samples=_samples,
    ),
    VAE_DECODER,
    VAE_ENCODER,
)


def check_flux(given: str, configs: dict[str, dict[str, Any]]) -> None:
    """Refuse transformers that see other things than latents, as those of FluxControl do; Fill's see a masked picture.

    Raises:
        BadInput: the transformer takes other channels than the VAE makes.
    """
    transformer, vae = configs["transformer"], configs["vae_decoder"]
    channels = int(vae["latent_channels"])
    filling = 2 * channels + vae_scale(vae) ** 2
    if transformer["in_channels"] not in (_PACKED * channels, _PACKED * filling):
        raise BadInput(
            f"{given}: its transformer takes {transformer['in_channels']} channels, its VAE makes {channels}, "
            f"{_PACKED} to a token: neither a text-to-image nor an inpainting model.",
            "Use another model.",
        )
