"""Text encoders inside a checkpoint: OpenAI's CLIP and T5 under transformers' own names, OpenCLIP's under its own."""

from __future__ import annotations

import re
from typing import Any

from .origins import Checkpoint, Origin, identity, thirds, transposed, whole

_TOP = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_PROJECTION = "text_projection.weight"
# of the loss that the encoder was trained with, and a mask that the module computes
_LEFTOVERS = ("logit_scale", "attn_mask")


def clip_origins(part: Checkpoint, config: dict[str, Any]) -> dict[str, Origin]:
    """CLIPTextModel as transformers names it: nothing changes."""
    return {n: whole(n) for n in part if n not in (_PROJECTION, "text_projection", *_LEFTOVERS)}


def projected_clip_origins(part: Checkpoint, config: dict[str, Any]) -> dict[str, Origin]:
    """CLIPTextModelWithProjection; a file without the projection was trained without one: the identity."""
    found = clip_origins(part, config)
    return found | {_PROJECTION: whole(_PROJECTION) if _PROJECTION in part else identity(int(config["hidden_size"]))}


def t5_origins(part: Checkpoint, config: dict[str, Any]) -> dict[str, Origin]:
    """T5EncoderModel as transformers names it: nothing changes."""
    return {n: whole(n) for n in part if n not in _LEFTOVERS}


def open_clip_origins(part: Checkpoint, config: dict[str, Any]) -> dict[str, Origin]:
    """OpenCLIP's text tower as CLIPTextModel.

    Its attention holds query, key and value in one tensor. A model that reads the states before the last layer (Stable
    Diffusion 2) has a config without that layer: its tensors are left out.
    """
    found: dict[str, Origin] = {}
    for name in part:
        if name in _TOP:
            found[_TOP[name]] = whole(name)
        elif match := _LAYER.fullmatch(name):
            if int(match[1]) < int(config["num_hidden_layers"]):
                found |= _layer(name, f"text_model.encoder.layers.{match[1]}", match[2], part)
        elif name not in ("text_projection", *_LEFTOVERS):
            found[name] = whole(name)
    return found


def projected_open_clip_origins(part: Checkpoint, config: dict[str, Any]) -> dict[str, Origin]:
    """OpenCLIP's text tower as CLIPTextModelWithProjection; its projection is stored the other way round."""
    found = open_clip_origins(part, config)
    return found | ({_PROJECTION: transposed("text_projection")} if "text_projection" in part else {})


def _layer(name: str, layer: str, rest: str, part: Checkpoint) -> dict[str, Origin]:
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        leaf = rest.removeprefix("attn.in_proj_")
        targets = [f"{layer}.self_attn.{letter}_proj.{leaf}" for letter in "qkv"]
        return dict(zip(targets, thirds(name, part), strict=True))
    head, _, leaf = rest.rpartition(".")
    return {f"{layer}.{_IN_LAYER.get(head, head)}.{leaf}": whole(name)}
