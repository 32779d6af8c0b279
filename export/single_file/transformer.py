"""The transformers of Stable Diffusion 3 and Flux: their original names as diffusers names them.

Both hold query, key and value of an attention in one tensor: the module's three are rows of it. The last modulation
gives shift and scale where diffusers wants scale and shift: those few tensors have to be copied.
"""

from __future__ import annotations

import re
from typing import Any

from ...core.errors import BadInput
from .origins import Checkpoint, Origin, chunks, halves_swapped, thirds, whole

_SD3_TOP = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
}
_SD3_BLOCK = re.compile(r"joint_blocks\.(\d+)\.(x|context)_block\.(.+)")
# in a block -> (of the picture's stream, of the text's)
_SD3_IN_BLOCK = {
    "attn.ln_q": ("attn.norm_q", "attn.norm_added_q"),
    "attn.ln_k": ("attn.norm_k", "attn.norm_added_k"),
    "attn.proj": ("attn.to_out.0", "attn.to_add_out"),
    "attn2.ln_q": ("attn2.norm_q", "attn2.ln_q"),
    "attn2.ln_k": ("attn2.norm_k", "attn2.ln_k"),
    "attn2.proj": ("attn2.to_out.0", "attn2.proj"),
    "adaLN_modulation.1": ("norm1.linear", "norm1_context.linear"),
    "mlp.fc1": ("ff.net.0.proj", "ff_context.net.0.proj"),
    "mlp.fc2": ("ff.net.2", "ff_context.net.2"),
}
_FLUX_TOP = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
_FLUX_DOUBLE = re.compile(r"double_blocks\.(\d+)\.(img|txt)_(.+)")
_FLUX_SINGLE = re.compile(r"single_blocks\.(\d+)\.(.+)")
_FLUX_IN_DOUBLE = {
    "mod.lin": ("norm1.linear", "norm1_context.linear"),
    "attn.norm.query_norm": ("attn.norm_q", "attn.norm_added_q"),
    "attn.norm.key_norm": ("attn.norm_k", "attn.norm_added_k"),
    "attn.proj": ("attn.to_out.0", "attn.to_add_out"),
    "mlp.0": ("ff.net.0.proj", "ff_context.net.0.proj"),
    "mlp.2": ("ff.net.2", "ff_context.net.2"),
}
_FLUX_IN_SINGLE = {
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
_LAST = "final_layer.adaLN_modulation.1"
_QKV = ("to_q", "to_k", "to_v")
_ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")


def sd3_origins(part: Checkpoint, config: dict[str, Any]) -> dict[str, Origin]:
    """SD3Transformer2DModel; a name that is not known stays as it is.

    Args:
        part: the transformer's tensors, by their names without a prefix.
        config: the module's config.json.
    """
    last = int(config["num_layers"]) - 1
    found: dict[str, Origin] = {}
    for name in part:
        head, _, leaf = name.rpartition(".")
        if name == "pos_embed":
            found["pos_embed.pos_embed"] = whole(name)
        elif head in _SD3_TOP:
            found[f"{_SD3_TOP[head]}.{leaf}"] = whole(name)
        elif head == _LAST:
            found[f"norm_out.linear.{leaf}"] = halves_swapped(name, part)
        elif match := _SD3_BLOCK.fullmatch(head):
            block, text, rest = f"transformer_blocks.{match[1]}", match[2] == "context", match[3]
            if rest in ("attn.qkv", "attn2.qkv"):
                targets = _ADDED_QKV if text else _QKV
                attention = rest.partition(".")[0]
                found |= _named([f"{block}.{attention}.{t}.{leaf}" for t in targets], thirds(name, part))
            else:
                target = f"{block}.{_SD3_IN_BLOCK.get(rest, (rest, rest))[text]}.{leaf}"
                # the text's stream ends in the last block, with a modulation like that of the last layer
                swapped = text and rest == "adaLN_modulation.1" and int(match[1]) == last
                found[target] = halves_swapped(name, part) if swapped else whole(name)
        else:
            found[name] = whole(name)
    return found


def flux_origins(part: Checkpoint, config: dict[str, Any]) -> dict[str, Origin]:
    """FluxTransformer2DModel; a name that is not known stays as it is.

    Args:
        part: the transformer's tensors, by their names without a prefix.
        config: the module's config.json.

    Raises:
        BadInput: a fused tensor has other rows than the config says.
    """
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    found: dict[str, Origin] = {}
    for name in part:
        head, _, leaf = name.rpartition(".")
        leaf = "weight" if leaf == "scale" else leaf
        if head in _FLUX_TOP:
            found[f"{_FLUX_TOP[head]}.{leaf}"] = whole(name)
        elif head == _LAST:
            found[f"norm_out.linear.{leaf}"] = halves_swapped(name, part)
        elif match := _FLUX_DOUBLE.fullmatch(head):
            block, text, rest = f"transformer_blocks.{match[1]}", match[2] == "txt", match[3]
            if rest == "attn.qkv":
                targets = _ADDED_QKV if text else _QKV
                found |= _named([f"{block}.attn.{t}.{leaf}" for t in targets], thirds(name, part))
            else:
                found[f"{block}.{_FLUX_IN_DOUBLE.get(rest, (rest, rest))[text]}.{leaf}"] = whole(name)
        elif match := _FLUX_SINGLE.fullmatch(head):
            block, rest = f"single_transformer_blocks.{match[1]}", match[2]
            if rest == "linear1":
                parts = [*(f"attn.{t}" for t in _QKV), "proj_mlp"]
                found |= _named([f"{block}.{t}.{leaf}" for t in parts], _fused(name, part, width))
            else:
                found[f"{block}.{_FLUX_IN_SINGLE.get(rest, rest)}.{leaf}"] = whole(name)
        else:
            found[name] = whole(name)
    return found


def _named(targets: list[str], origins: list[Origin]) -> dict[str, Origin]:
    return dict(zip(targets, origins, strict=True))


def _fused(name: str, part: Checkpoint, width: int) -> list[Origin]:
    """Query, key and value, `width` rows each, and the rows of the feed-forward layer."""
    rows = part[name].shape[0]
    if rows <= 3 * width:
        what = f"{name} in {part[name].file} has {rows} rows; a Flux of width {width} has more than {3 * width}."
        raise BadInput(what, "Check that the configs belong to this file.")
    return chunks(name, [width, width, width, rows - 3 * width])
