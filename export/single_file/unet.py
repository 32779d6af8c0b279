"""The UNet of latent diffusion: its original names as diffusers' UNet2DConditionModel names them.

The original counts its blocks through (`input_blocks.7.1`); diffusers counts levels of one resolution and layers in
them (`down_blocks.2.attentions.0`). Nothing but names changes.
"""

from __future__ import annotations

import re
from typing import Any

from .origins import Checkpoint, Origin, whole

_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_LABELS = {"label_emb.0.0": "linear_1", "label_emb.0.2": "linear_2"}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")
_MIDDLE_BLOCK = re.compile(r"middle_block\.([012])\.(.+)")


def unet_origins(part: Checkpoint, config: dict[str, Any]) -> dict[str, Origin]:
    """Module name -> where it is, of every tensor of the UNet; a name that is not known stays as it is.

    Args:
        part: the UNet's tensors, by their names without a prefix.
        config: the module's config.json.
    """
    layers = int(config["layers_per_block"])
    embedding = "add_embedding" if config.get("addition_embed_type") else "class_embedding"
    return {unet_name(name, layers, embedding): whole(name) for name in part}


def unet_name(name: str, layers: int, embedding: str) -> str:
    """The module's name of one tensor.

    Args:
        layers: resnets in a level on the way down; there is one more on the way up.
        embedding: what the module calls the original's `label_emb`.
    """
    head, _, leaf = name.rpartition(".")
    if head in _TOP:
        return f"{_TOP[head]}.{leaf}"
    if head in _LABELS:
        return f"{embedding}.{_LABELS[head]}.{leaf}"
    if match := _MIDDLE_BLOCK.fullmatch(head):
        number, rest = match.groups()
        rest = _RESNET.get(rest, rest) if number != "1" else rest
        return f"mid_block.{_MIDDLE[number]}.{rest}.{leaf}"
    if match := _BLOCK.fullmatch(head):
        side, number, place, rest = match.groups()
        down = side == "input"
        level, layer = divmod(int(number) - down, layers + 1)
        block = f"{'down' if down else 'up'}_blocks.{level}"
        if rest == ("op" if down else "conv"):
            return f"{block}.{'downsamplers' if down else 'upsamplers'}.0.conv.{leaf}"
        if place == "0":
            return f"{block}.resnets.{layer}.{_RESNET.get(rest, rest)}.{leaf}"
        return f"{block}.attentions.{layer}.{rest}.{leaf}"
    return name
