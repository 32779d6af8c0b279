"""The autoencoder of latent diffusion: its original names as diffusers' AutoencoderKL names them.

The way up is counted from the other end. The attention's weights are 1x1 convolutions in old files and matrices in the
module: the same bytes.
"""

from __future__ import annotations

import re
from typing import Any

from .origins import Checkpoint, Origin, whole

_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block_1|block_2|attn_1)\.(.+)")
_LEVEL = re.compile(r"(encoder\.down|decoder\.up)\.(\d+)\.(?:block\.(\d+)\.(.+)|(?:down|up)sample\.conv)")
# a discriminator and moving averages that training left behind
_LEFTOVERS = ("loss.", "model_ema.")


def vae_origins(part: Checkpoint, config: dict[str, Any]) -> dict[str, Origin]:
    """Module name -> where it is, of every tensor of the autoencoder; a name that is not known stays as it is.

    Args:
        part: the autoencoder's tensors, by their names without a prefix.
        config: the module's config.json.
    """
    levels = len(config["block_out_channels"])
    return {vae_name(name, levels): whole(name) for name in part if not name.startswith(_LEFTOVERS)}


def vae_name(name: str, levels: int) -> str:
    """The module's name of one tensor; `levels`: resolutions of the autoencoder."""
    head, _, leaf = name.rpartition(".")
    if head in ("encoder.norm_out", "decoder.norm_out"):
        return name.replace("norm_out", "conv_norm_out")
    if match := _MIDDLE.fullmatch(head):
        half, block, rest = match.groups()
        if block == "attn_1":
            return f"{half}.mid_block.attentions.0.{_ATTENTION.get(rest, rest)}.{leaf}"
        return f"{half}.mid_block.resnets.{int(block[-1]) - 1}.{_shortcut(rest)}.{leaf}"
    if match := _LEVEL.fullmatch(head):
        way, level, layer, rest = match.groups()
        down = way == "encoder.down"
        number = int(level) if down else levels - 1 - int(level)
        block = f"{way}_blocks.{number}"
        if rest is None:
            return f"{block}.{'downsamplers' if down else 'upsamplers'}.0.conv.{leaf}"
        return f"{block}.resnets.{layer}.{_shortcut(rest)}.{leaf}"
    return name


def _shortcut(name: str) -> str:
    return "conv_shortcut" if name == "nin_shortcut" else name
