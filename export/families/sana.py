"""Sana and Sana-Sprint: Gemma 2, a linear transformer, and a deep compression autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from ...core.tensors import DType, TensorSpec
from ..spec import ComponentSpec, Config
from .gemma import GEMMA2
from .narrow import first_alike
from .vae import VAE_DECODER, VAE_ENCODER

F32 = DType.FLOAT32


def _latents(config: Config, channels: int) -> TensorSpec:
    return TensorSpec(F32, ("batch", channels, "height", "width"))


def _inputs(config: Config) -> dict[str, TensorSpec]:
    inputs = {
        "hidden_states": _latents(config, int(config["in_channels"])),
        "encoder_hidden_states": TensorSpec(F32, ("batch", "tokens", int(config["caption_channels"]))),
        "timestep": TensorSpec(F32, ("batch",)),
        "encoder_attention_mask": TensorSpec(DType.INT64, ("batch", "tokens")),
    }
    if config.get("guidance_embeds"):
        inputs["guidance"] = TensorSpec(F32, ("batch",))
    return inputs


def _outputs(config: Config) -> dict[str, TensorSpec]:
    return {"out_hidden_states": _latents(config, int(config.get("out_channels") or config["in_channels"]))}


def _sides(config: Config, height: int, width: int) -> dict[str, int]:
    """Latents of so many patches."""
    patch = int(config.get("patch_size") or 1)
    return {"height": height * patch, "width": width * patch}


def _narrow(config: Config) -> Config:
    """A few heads, each of at least 8: with narrower ones all of a query may be 0, or all but for rounding."""
    if int(config["num_attention_heads"]) * int(config["attention_head_dim"]) <= 48:
        return config
    changes = (
        {
            "num_attention_heads": heads,
            "attention_head_dim": width,
            "num_cross_attention_heads": cross,
            "cross_attention_head_dim": cross_width,
            "cross_attention_dim": 48,
            "caption_channels": 48 if config["caption_channels"] == config["cross_attention_dim"] else 64,
        }
        for (heads, width), (cross, cross_width) in product(_HEADS, _HEADS)
    )
    return first_alike(config, _sizes, changes)


_HEADS = ((6, 8), (4, 12), (3, 16), (2, 24))  # number and width of heads that are 48 together


def _sizes(config: Mapping[str, Any]) -> list[int]:
    """The sizes that the transformer's tensors have, but for those of the pictures and the text."""
    heads, cross = int(config["num_attention_heads"]), int(config["num_cross_attention_heads"])
    width = heads * int(config["attention_head_dim"])
    hidden = int(width * float(config.get("mlp_ratio", 2.5)))
    own = [heads, cross, width, hidden, 2 * hidden, 6 * width]
    return [*own, *(int(config[k]) for k in ("attention_head_dim", "cross_attention_head_dim", "caption_channels"))]


TRANSFORMER = ComponentSpec(
    name="transformer",
    kind="sana_transformer",
    folder="transformer",
    stem="diffusion_pytorch_model",
    library="diffusers",
    inputs=_inputs,
    outputs=_outputs,
    # sides that no model was trained with: position embeddings, where there are any, are then computed
    example=lambda c: {"batch": 3, "tokens": 23, **_sides(c, 11, 7)},
    shapes=lambda c: {"batch": (1, 2, 16), "height": (4, 32, 128), "width": (4, 32, 128), "tokens": (1, 60, 300)},
    checks=lambda c: [
        {"batch": 1, "tokens": 17, **_sides(c, 4, 9)},
        {"batch": 2, "tokens": 30, **_sides(c, 8, 5)},
    ],
    narrow=_narrow,
    samples=lambda c: {"timestep": [0, 999], "encoder_attention_mask": [0, 1]},
)

SANA = (GEMMA2, TRANSFORMER, VAE_DECODER, VAE_ENCODER)
