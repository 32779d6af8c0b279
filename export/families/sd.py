"""Stable Diffusion 1.x and 2.x: CLIP text encoder, UNet, VAE encoder and decoder."""

from __future__ import annotations

from collections.abc import Mapping

from ...core.errors import BadInput
from ...core.tensors import DType, TensorSpec
from ..spec import ComponentSpec, Config
from .clip import clip_text
from .narrow import narrow_channels, per_block
from .vae import VAE_DECODER, VAE_ENCODER

F32 = DType.FLOAT32


def unet_inputs(config: Config) -> dict[str, TensorSpec]:
    """Of every UNet2DConditionModel; latent consistency models are also told the guidance."""
    inputs = {
        "sample": TensorSpec(F32, ("batch", int(config["in_channels"]), "height", "width")),
        "timestep": TensorSpec(F32, ()),
        "encoder_hidden_states": TensorSpec(F32, ("batch", "tokens", int(config["cross_attention_dim"]))),
    }
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = TensorSpec(F32, ("batch", int(config["time_cond_proj_dim"])))
    return inputs


def unet_outputs(config: Config) -> dict[str, TensorSpec]:
    return {"out_sample": TensorSpec(F32, ("batch", int(config["out_channels"]), "height", "width"))}


def unet_narrow(config: Config) -> Config:
    channels = [int(c) for c in config["block_out_channels"]]
    heads = per_block(config.get("num_attention_heads") or config["attention_head_dim"], len(channels))
    return config | {
        "block_out_channels": narrow_channels(channels, heads, 4),
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
    }


SD = (
    clip_text(),
    ComponentSpec(
        name="unet",
        kind="unet",
        folder="unet",
        stem="diffusion_pytorch_model",
        library="diffusers",
        inputs=unet_inputs,
        outputs=unet_outputs,
        example=lambda c: {"batch": 3, "height": 24, "width": 40, "tokens": 77},
        shapes=lambda c: {"batch": (1, 2, 16), "height": (8, 64, 256), "width": (8, 64, 256), "tokens": (1, 77, 770)},
        checks=lambda c: [
            {"batch": 1, "height": 16, "width": 8, "tokens": 77},
            {"batch": 2, "height": 8, "width": 32, "tokens": 154},
        ],
        narrow=unet_narrow,
        samples=lambda c: {"timestep": [0, 999]},
    ),
    VAE_DECODER,
    VAE_ENCODER,
)


def check_sd(given: str, configs: Mapping[str, Config]) -> None:
    """Refuse UNets whose call needs more than sample, timestep and text.

    Raises:
        BadInput: says what it needs.
    """
    check_unet(given, configs, None)


def check_unet(given: str, configs: Mapping[str, Config], added: str | None) -> None:
    """Refuse UNets that ours cannot call.

    Args:
        given: the model, as the user named it. configs: component -> config.json.
        added: the addition_embed_type that the family's UNets have.

    Raises:
        BadInput: a UNet of another kind, or with other channels than its VAE's latents.
    """
    unet, channels = configs["unet"], int(configs["vae_decoder"]["latent_channels"])
    for key, known in (("addition_embed_type", added), ("class_embed_type", None), ("encoder_hid_dim_type", None)):
        if unet.get(key) != known:
            raise BadInput(
                f"{given}: its UNet has {key}={unet.get(key)!r}, which is not supported.", "Use another model."
            )
    if unet["in_channels"] not in (channels, 2 * channels + 1):
        raise BadInput(
            f"{given}: its UNet takes {unet['in_channels']} channels, its VAE makes {channels}: "
            "neither a text-to-image nor an inpainting model.",
            "Use another model.",
        )
