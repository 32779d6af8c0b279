"""Autoencoders, shared by the families: AutoencoderKL, AutoencoderTiny in its place, and AutoencoderDC."""

from __future__ import annotations

import math
from dataclasses import replace

from ...core.errors import BadInput
from ...core.tensors import DType, TensorSpec
from ...pipelines.settings import PREVIEW, vae_factors, vae_scale
from ..spec import ComponentSpec, Config
from .narrow import narrow_channels

F32 = DType.FLOAT32
CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")  # of diffusers
_WIDTHS = ("encoder_block_out_channels", "decoder_block_out_channels")  # of AutoencoderTiny and AutoencoderDC


def _is_plain(config: Config) -> bool:
    """Whether the encoder gives latents; that of an AutoencoderKL gives means and log variances."""
    return _WIDTHS[0] in config


def _narrow(config: Config) -> Config:
    if "encoder_layers_per_block" in config:
        return config | _deep_narrow(config)
    if _is_plain(config):
        return config | {name: [8] * len(config[name]) for name in _WIDTHS}
    channels = [int(c) for c in config["block_out_channels"]]
    return config | {"block_out_channels": narrow_channels(channels, [1] * len(channels), 4), "norm_num_groups": 4}


def _deep_narrow(config: Config) -> Config:
    """Of an AutoencoderDC (Chen et al., arXiv 2410.10733): everything divided by one number.

    Its shortcuts average over as many channels as one width has more than the next, latents included.
    """
    widths = [int(width) for name in _WIDTHS for width in config[name]]
    heads, latents = int(config.get("attention_head_dim", 32)), int(config["latent_channels"])
    common = math.gcd(*widths, heads, latents)
    shrunk = common // 4 if common % 4 == 0 else 1
    narrow = {name: [int(width) // shrunk for width in config[name]] for name in _WIDTHS}
    # of very narrow heads all queries may be 0, or all but for rounding
    return narrow | {"attention_head_dim": heads // max(1, shrunk // 2), "latent_channels": latents // shrunk}


def _encoder_inputs(config: Config) -> dict[str, TensorSpec]:
    return {"sample": TensorSpec(F32, ("batch", int(config["in_channels"]), "height", "width"))}


def _encoder_outputs(config: Config) -> dict[str, TensorSpec]:
    channels = int(config["latent_channels"]) * (1 if _is_plain(config) else 2)  # means and log variances
    return {"latent_parameters": TensorSpec(F32, ("batch", channels, "latent_height", "latent_width"))}


def _decoder_inputs(config: Config) -> dict[str, TensorSpec]:
    return {
        "latent_sample": TensorSpec(F32, ("batch", int(config["latent_channels"]), "latent_height", "latent_width"))
    }


def _decoder_outputs(config: Config) -> dict[str, TensorSpec]:
    channels = int(config.get("out_channels") or config["in_channels"])
    return {"sample": TensorSpec(F32, ("batch", channels, "height", "width"))}


def _encoder_sizes(config: Config) -> list[dict[str, int]]:
    unit = vae_scale(config)
    return [{"batch": 1, "height": 6 * unit, "width": 4 * unit}, {"batch": 2, "height": 5 * unit, "width": 8 * unit}]


VAE_DECODER = ComponentSpec(
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
    narrow=_narrow,
    unused=("encoder.", "quant_conv."),
)
VAE_ENCODER = ComponentSpec(
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
    narrow=_narrow,
    unused=("decoder.", "post_quant_conv."),
)
# a decoder for previews, beside the pipeline's own and mostly a tiny one
PREVIEW_DECODER = replace(VAE_DECODER, name=PREVIEW, folder=PREVIEW, optional=True)


def check_vae(given: str, config: Config) -> None:
    """Refuse what is no VAE, and a config.json that does not say what its latents are.

    Raises:
        BadInput: names the classes that are supported, or the entry.
    """
    name = config.get("_class_name")
    if name not in CLASSES:
        what = f"a {name}" if name else "no model of diffusers"
        raise BadInput(f"{given} is {what}, not a VAE that is supported.", f"Supported: {', '.join(CLASSES)}.")
    try:
        int(config["latent_channels"]), vae_scale(config), vae_factors(config)
    except (KeyError, TypeError, ValueError) as exc:
        raise BadInput(
            f"{given}: its config.json lacks an entry or has a wrong one ({type(exc).__name__}: {exc}).",
            "Check that config.json is the VAE's own.",
        ) from exc
