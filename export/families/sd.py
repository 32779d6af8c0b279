"""Stable Diffusion 1.x and 2.x: CLIP text encoder, UNet, VAE encoder and decoder."""

from __future__ import annotations

import math
from typing import Any

from ...core.tensors import DType, TensorSpec
from ..spec import ComponentSpec, Config

F32 = DType.FLOAT32


def _clip_inputs(config: Config) -> dict[str, TensorSpec]:
    return {"input_ids": TensorSpec(DType.INT64, ("batch", "tokens"))}


def _clip_outputs(config: Config) -> dict[str, TensorSpec]:
    dim = int(config["hidden_size"])
    return {
        "last_hidden_state": TensorSpec(F32, ("batch", "tokens", dim)),
        "pooler_output": TensorSpec(F32, ("batch", dim)),
    }


def _clip_narrow(config: Config) -> Config:
    heads = int(config.get("num_attention_heads", 12))
    return config | {"hidden_size": 2 * heads, "intermediate_size": 8 * heads, "projection_dim": 2 * heads}


def _unet_inputs(config: Config) -> dict[str, TensorSpec]:
    return {
        "sample": TensorSpec(F32, ("batch", int(config["in_channels"]), "height", "width")),
        "timestep": TensorSpec(F32, ()),
        "encoder_hidden_states": TensorSpec(F32, ("batch", "tokens", int(config["cross_attention_dim"]))),
    }


def _unet_outputs(config: Config) -> dict[str, TensorSpec]:
    return {"out_sample": TensorSpec(F32, ("batch", int(config["out_channels"]), "height", "width"))}


def _per_block(value: Any, blocks: int) -> list[int]:
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * blocks


def _narrow_channels(channels: list[int], heads: list[int], groups: int) -> list[int]:
    """Channels 16/min as wide, each a multiple of its heads and of `groups`; equal widths stay equal."""
    scale = 16 / min(channels)
    units = [math.lcm(h, groups) for h in heads]
    return [unit * math.ceil(c * scale / unit) for c, unit in zip(channels, units, strict=True)]


def _unet_narrow(config: Config) -> Config:
    channels = [int(c) for c in config["block_out_channels"]]
    heads = _per_block(config.get("num_attention_heads") or config["attention_head_dim"], len(channels))
    return config | {
        "block_out_channels": _narrow_channels(channels, heads, 4),
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
    }


def _vae_narrow(config: Config) -> Config:
    channels = [int(c) for c in config["block_out_channels"]]
    return config | {"block_out_channels": _narrow_channels(channels, [1] * len(channels), 4), "norm_num_groups": 4}


def vae_scale(config: Config) -> int:
    """Pixels per latent pixel along one side."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def _encoder_inputs(config: Config) -> dict[str, TensorSpec]:
    return {"sample": TensorSpec(F32, ("batch", int(config["in_channels"]), "height", "width"))}


def _encoder_outputs(config: Config) -> dict[str, TensorSpec]:
    return {
        "latent_parameters": TensorSpec(
            F32, ("batch", 2 * int(config["latent_channels"]), "latent_height", "latent_width")
        )
    }


def _decoder_inputs(config: Config) -> dict[str, TensorSpec]:
    return {
        "latent_sample": TensorSpec(F32, ("batch", int(config["latent_channels"]), "latent_height", "latent_width"))
    }


def _decoder_outputs(config: Config) -> dict[str, TensorSpec]:
    return {"sample": TensorSpec(F32, ("batch", int(config["out_channels"]), "height", "width"))}


def _encoder_sizes(config: Config) -> list[dict[str, int]]:
    unit = vae_scale(config)
    return [{"batch": 1, "height": 6 * unit, "width": 4 * unit}, {"batch": 2, "height": 5 * unit, "width": 8 * unit}]


SD = (
    ComponentSpec(
        name="text_encoder",
        kind="clip_text",
        folder="text_encoder",
        stem="model",
        library="transformers",
        inputs=_clip_inputs,
        outputs=_clip_outputs,
        example=lambda c: {"batch": 3, "tokens": min(77, int(c.get("max_position_embeddings", 77)))},
        shapes=lambda c: {"batch": (1, 2, 16), "tokens": (1, 77, 77)},
        checks=lambda c: [{"batch": 1, "tokens": 77}, {"batch": 2, "tokens": 41}],
        narrow=_clip_narrow,
        samples=lambda c: {"input_ids": [0, int(c.get("vocab_size", 49408)) - 1]},
    ),
    ComponentSpec(
        name="unet",
        kind="unet",
        folder="unet",
        stem="diffusion_pytorch_model",
        library="diffusers",
        inputs=_unet_inputs,
        outputs=_unet_outputs,
        example=lambda c: {"batch": 3, "height": 24, "width": 40, "tokens": 77},
        shapes=lambda c: {"batch": (1, 2, 16), "height": (8, 64, 256), "width": (8, 64, 256), "tokens": (1, 77, 770)},
        checks=lambda c: [
            {"batch": 1, "height": 16, "width": 8, "tokens": 77},
            {"batch": 2, "height": 8, "width": 32, "tokens": 154},
        ],
        narrow=_unet_narrow,
        samples=lambda c: {"timestep": [0, 999]},
    ),
    ComponentSpec(
        name="vae_decoder",
        kind="vae_decoder",
        folder="vae",
        stem="diffusion_pytorch_model",
        library="diffusers",
        inputs=_decoder_inputs,
        outputs=_decoder_outputs,
        example=lambda c: {"batch": 3, "latent_height": 6, "latent_width": 10},
        shapes=lambda c: {"batch": (1, 1, 16), "latent_height": (8, 64, 256), "latent_width": (8, 64, 256)},
        checks=lambda c: [
            {"batch": 1, "latent_height": 8, "latent_width": 5},
            {"batch": 2, "latent_height": 4, "latent_width": 12},
        ],
        narrow=_vae_narrow,
        unused=("encoder.", "quant_conv."),
    ),
    ComponentSpec(
        name="vae_encoder",
        kind="vae_encoder",
        folder="vae",
        stem="diffusion_pytorch_model",
        library="diffusers",
        inputs=_encoder_inputs,
        outputs=_encoder_outputs,
        example=lambda c: {"batch": 3, "height": 6 * vae_scale(c), "width": 10 * vae_scale(c)},
        shapes=lambda c: {"batch": (1, 1, 16), "height": (64, 512, 2048), "width": (64, 512, 2048)},
        checks=_encoder_sizes,
        narrow=_vae_narrow,
        unused=("decoder.", "post_quant_conv."),
    ),
)
