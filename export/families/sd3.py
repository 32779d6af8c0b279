"""Stable Diffusion 3 and 3.5: two CLIP text encoders, T5 where the model has it, a transformer, a VAE."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from ...core.errors import BadInput
from ...core.tensors import DType, TensorSpec
from ..spec import ComponentSpec, Config
from .clip import clip_text
from .narrow import NARROW, attention_width, first_alike
from .t5 import t5_encoder
from .vae import VAE_DECODER, VAE_ENCODER

F32 = DType.FLOAT32


def _inputs(config: Config) -> dict[str, TensorSpec]:
    return {
        "hidden_states": TensorSpec(F32, ("batch", int(config["in_channels"]), "height", "width")),
        "encoder_hidden_states": TensorSpec(F32, ("batch", "tokens", int(config["joint_attention_dim"]))),
        "pooled_projections": TensorSpec(F32, ("batch", int(config["pooled_projection_dim"]))),
        "timestep": TensorSpec(F32, ("batch",)),
    }


def _outputs(config: Config) -> dict[str, TensorSpec]:
    channels = int(config.get("out_channels") or config["in_channels"])
    return {"out_hidden_states": TensorSpec(F32, ("batch", channels, "height", "width"))}


def _example(config: Config) -> dict[str, int]:
    patch = int(config["patch_size"])
    return {"batch": 3, "height": 6 * patch, "width": 10 * patch, "tokens": 41}


def _shapes(config: Config) -> dict[str, tuple[int, int, int]]:
    patch = int(config["patch_size"])
    most = int(config["pos_embed_max_size"]) * patch
    side = (patch, min(64, most), most)
    return {"batch": (1, 2, 16), "height": side, "width": side, "tokens": (1, 333, 1024)}


def _checks(config: Config) -> list[dict[str, int]]:
    patch = int(config["patch_size"])
    return [
        {"batch": 1, "height": 8 * patch, "width": 3 * patch, "tokens": 77},
        {"batch": 2, "height": 5 * patch, "width": 9 * patch, "tokens": 154},
    ]


def _narrow(config: Config) -> Config:
    """A few heads; a model that is narrow already is its own twin."""
    if attention_width(config) <= NARROW:
        return config
    own = int(config["patch_size"]) ** 2 * int(config["in_channels"])  # as wide as a head of the models that there are
    changes = (
        {
            "num_attention_heads": heads,
            "attention_head_dim": width,
            "caption_projection_dim": heads * width,
            "joint_attention_dim": joint,
            "pooled_projection_dim": pooled,
            "pos_embed_max_size": min(36, int(config["pos_embed_max_size"])),
        }
        for heads, width, joint, pooled in product((2, 3), (8, 12, own), (40, 56), (20, 40, 56))
    )
    return first_alike(config, _sizes, changes)


def _sizes(config: Mapping[str, Any]) -> list[int]:
    """The sizes that the transformer's tensors have, but for those of the pictures and the text."""
    width, patch = attention_width(config), int(config["patch_size"])
    keys = ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")
    wide = [width, 2 * width, 4 * width, 6 * width, 9 * width]
    return [*wide, patch, patch**2 * int(config["in_channels"]), *(int(config[k]) for k in keys)]


SD3 = (
    clip_text("text_encoder", "clip_text_projection"),
    clip_text("text_encoder_2", "clip_text_projection"),
    t5_encoder("text_encoder_3", optional=True),
    ComponentSpec(
        name="transformer",
        kind="sd3_transformer",
        folder="transformer",
        stem="diffusion_pytorch_model",
        library="diffusers",
        inputs=_inputs,
        outputs=_outputs,
        example=_example,
        shapes=_shapes,
        checks=_checks,
        narrow=_narrow,
        samples=lambda c: {"timestep": [0, 1000]},
    ),
    VAE_DECODER,
    VAE_ENCODER,
)


def check_sd3(given: str, configs: dict[str, dict[str, Any]]) -> None:
    """Refuse what does not fit together.

    Raises:
        BadInput: the transformer takes other channels than the VAE makes, or the text encoders' states are wider than
            the transformer's.
    """
    transformer, channels = configs["transformer"], int(configs["vae_decoder"]["latent_channels"])
    if transformer["in_channels"] not in (channels, 2 * channels + 1):
        raise BadInput(
            f"{given}: its transformer takes {transformer['in_channels']} channels, its VAE makes {channels}: "
            "neither a text-to-image nor an inpainting model.",
            "Use another model.",
        )
    width = int(transformer["joint_attention_dim"])
    widths = {n: int(configs[n]["hidden_size"]) for n in ("text_encoder", "text_encoder_2")}
    t5 = int(configs["text_encoder_3"]["d_model"]) if "text_encoder_3" in configs else width
    if sum(widths.values()) > width or t5 != width:
        raise BadInput(
            f"{given}: its transformer attends to states of {width} numbers; its CLIPs give "
            f"{' and '.join(map(str, widths.values()))} and its T5 {t5}.",
            "Use another model.",
        )
