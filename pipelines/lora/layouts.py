"""The names that layers have in models' original code, for LoRAs that were trained with it.

diffusers cut these models into other parts: Stable Diffusion's `input_blocks.4.1` is `down_blocks.1.attentions.0`, and
Flux' `img_attn.qkv` is three layers. The tables follow the conversions in diffusers' `single_file_utils.py`; what a
model really has comes from its own weights, so that no count of blocks is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """What an original layer is here.

    layers: those whose outputs, one after the other, are the original's. swapped: the halves of its outputs are in the
    other order (shift and scale of an adaptive norm).
    """

    layers: tuple[str, ...]
    swapped: bool = False


def original_names(layers: Collection[str]) -> dict[str, Origin]:
    """Original name -> what it is, for the layers (names without `.weight`) of a UNet or transformer."""
    known = set(layers)
    found: dict[str, Origin] = {}
    for table in (_unet, _flux, _sd3):
        for name, origin in table(known):
            if known.issuperset(origin.layers):
                found[name] = origin
    return found


# Stable Diffusion 1.x, 2.x and XL ------------------------------------------------------------------------------------

_UNET = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
           "conv_shortcut": "skip_connection"}  # fmt: skip


def _unet(layers: set[str]) -> Iterator[tuple[str, Origin]]:
    places = dict(_unet_places(layers))
    for layer in layers:
        if layer in _UNET:
            yield _UNET[layer], Origin((layer,))
        for depth in (3, 4, 5):  # mid_block.resnets.0, down_blocks.0.resnets.0, down_blocks.0.downsamplers.0.conv
            parts = layer.split(".")
            place, rest = places.get(".".join(parts[:depth])), ".".join(parts[depth:])
            if place is not None:
                rest = _RESNET.get(rest, rest) if ".resnets." in layer else rest
                yield f"{place}.{rest}" if rest else place, Origin((layer,))


def _unet_places(layers: set[str]) -> Iterator[tuple[str, str]]:
    """(part of the UNet here, its original place): blocks are counted through, resolution after resolution."""
    number = 1
    for block in _numbers(layers, r"down_blocks\.(\d+)\."):
        here = f"down_blocks.{block}"
        for i in _numbers(layers, rf"down_blocks\.{block}\.resnets\.(\d+)\."):
            yield f"{here}.resnets.{i}", f"input_blocks.{number}.0"
            yield f"{here}.attentions.{i}", f"input_blocks.{number}.1"
            number += 1
        if f"{here}.downsamplers.0.conv" in layers:
            yield f"{here}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
            number += 1
    for i in (0, 1):
        yield f"mid_block.resnets.{i}", f"middle_block.{2 * i}"
    yield "mid_block.attentions.0", "middle_block.1"
    number = 0
    for block in _numbers(layers, r"up_blocks\.(\d+)\."):
        here = f"up_blocks.{block}"
        attends = any(layer.startswith(f"{here}.attentions.") for layer in layers)
        for i in _numbers(layers, rf"up_blocks\.{block}\.resnets\.(\d+)\."):
            yield f"{here}.resnets.{i}", f"output_blocks.{number}.0"
            yield f"{here}.attentions.{i}", f"output_blocks.{number}.1"
            number += 1
        yield f"{here}.upsamplers.0.conv", f"output_blocks.{number - 1}.{2 if attends else 1}.conv"


# Flux ----------------------------------------------------------------------------------------------------------------

_FLUX = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}  # fmt: skip
_FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",),
}  # fmt: skip
_FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}  # fmt: skip
_FINAL_NORM = ("final_layer.adaLN_modulation.1", Origin(("norm_out.linear",), swapped=True))


def _flux(layers: set[str]) -> Iterator[tuple[str, Origin]]:
    singles = _numbers(layers, r"single_transformer_blocks\.(\d+)\.")
    if not singles:
        return
    for name, layer in _FLUX.items():
        yield name, Origin((layer,))
    yield _FINAL_NORM
    for i in _numbers(layers, r"transformer_blocks\.(\d+)\."):
        for name, parts in _FLUX_DOUBLE.items():
            yield f"double_blocks.{i}.{name}", Origin(tuple(f"transformer_blocks.{i}.{p}" for p in parts))
    for i in singles:
        for name, parts in _FLUX_SINGLE.items():
            yield f"single_blocks.{i}.{name}", Origin(tuple(f"single_transformer_blocks.{i}.{p}" for p in parts))


# Stable Diffusion 3 --------------------------------------------------------------------------------------------------

_SD3 = {
    "x_embedder.proj": "pos_embed.proj", "context_embedder": "context_embedder", "final_layer.linear": "proj_out",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
}  # fmt: skip
_SD3_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block.attn2.proj": ("attn2.to_out.0",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.mlp.fc1": ("ff.net.0.proj",), "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",), "context_block.mlp.fc2": ("ff_context.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",), "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}  # fmt: skip


def _sd3(layers: set[str]) -> Iterator[tuple[str, Origin]]:
    blocks = _numbers(layers, r"transformer_blocks\.(\d+)\.")
    if not blocks or "pos_embed.proj" not in layers:
        return
    for name, layer in _SD3.items():
        yield name, Origin((layer,))
    yield _FINAL_NORM
    for i in blocks:
        for name, parts in _SD3_BLOCK.items():
            # the last block's text is read and not written: its norm has scale and shift alone, in the other order
            swapped = name == "context_block.adaLN_modulation.1" and i == blocks[-1]
            yield f"joint_blocks.{i}.{name}", Origin(tuple(f"transformer_blocks.{i}.{p}" for p in parts), swapped)


def _numbers(layers: Collection[str], pattern: str) -> list[int]:
    """The numbers in the names that begin so, in order."""
    return sorted({int(match[1]) for layer in layers if (match := re.match(pattern, layer))})
