"""Configs of the known families, read off the shapes of a checkpoint.

What shapes do not tell (how many heads an attention has, which activation, how latents are scaled) is the same in all
models of a family and is written here as the families' own config.json have it. A model that is no such family's, by
its width, gets none: a guess would draw noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ...core.errors import BadInput
from .origins import Checkpoint

Config = dict[str, Any]

CONFIG_FIX = "Give --config FOLDER, a diffusers folder or an artifact of the same architecture."
HEAD = 64  # channels of an attention head, in every known CLIP and in every known UNet but those of the first kind
_SD1_HEADS = 8


def unet_config(part: Checkpoint, *, linear: bool, sample_size: int, pooled: bool = False) -> Config:
    """UNet2DConditionModel's config.json.

    Args:
        part: its tensors, by their names without a prefix.
        linear: its attentions end in matrices, not in convolutions, and have heads of 64 channels, not 8 heads.
        sample_size: side of the latents that it was trained with.
        pooled: it takes a pooled text and sizes.

    Raises:
        BadInput: the layout is none that a config can be read off.
    """
    levels = _levels(part)
    channels = [part[f"{level[-1]}.0.out_layers.3.weight"].shape[0] for level in levels]
    per_level = {len(level) for level in levels}
    depths = [{_depth(part, f"{block}.1") for block in level} for level in levels]
    if len(per_level) > 1 or any(len(depth) > 1 for depth in depths) or not any(max(d) for d in depths):
        raise BadInput("The UNet's levels are not alike, so no config can be read off its shapes.", CONFIG_FIX)
    attended = [max(depth) for depth in depths]
    first = next(name for name in part if name.endswith("attn2.to_k.weight"))
    middle = _depth(part, "middle_block.1") or max(attended)
    config: Config = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": [c // HEAD for c in channels] if linear else _SD1_HEADS,
        "block_out_channels": channels,
        "center_input_sample": False,
        "cross_attention_dim": part[first].shape[1],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in attended],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": part["input_blocks.0.0.weight"].shape[1],
        "layers_per_block": per_level.pop(),
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": part["out.2.weight"].shape[0],
        "sample_size": sample_size,
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(attended)],
    }
    if linear:
        config["use_linear_projection"] = True
    if middle > 1 or max(attended) > 1:
        # a level without attention has an entry that nothing reads
        config["transformer_layers_per_block"] = [*(depth or 1 for depth in attended[:-1]), middle]
    if pooled:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": part["label_emb.0.0.weight"].shape[1],
        }
    return config


def _levels(part: Checkpoint) -> list[list[str]]:
    """The blocks of each level on the way down, as `input_blocks.4`; a downsampling ends a level."""
    levels: list[list[str]] = [[]]
    for number in range(1, 1 + _count(part, r"input_blocks\.(\d+)\.")):
        block = f"input_blocks.{number}"
        if f"{block}.0.op.weight" in part:
            levels.append([])
        elif f"{block}.0.out_layers.3.weight" in part:
            levels[-1].append(block)
    return levels if all(levels) else [level for level in levels if level]


def _depth(part: Checkpoint, attention: str) -> int:
    return 1 + _count(part, rf"{re.escape(attention)}\.transformer_blocks\.(\d+)\.")


def _count(names: Iterable[str], pattern: str) -> int:
    """The highest number that a pattern finds in the names, -1 for none."""
    compiled = re.compile(pattern)
    return max((int(match[1]) for name in names if (match := compiled.match(name))), default=-1)


def vae_config(part: Checkpoint, *, sample_size: int, scaling: float, shift: float | None = None) -> Config:
    """AutoencoderKL's config.json.

    Args:
        part: its tensors, by their names without a prefix.
        sample_size: side of the pictures that it was trained with.
        scaling, shift: what the denoiser's latents are the encoder's times and less.
    """
    levels = 1 + _count(part, r"encoder\.down\.(\d+)\.")
    config: Config = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [part[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": part["encoder.conv_in.weight"].shape[1],
        "latent_channels": part["decoder.conv_in.weight"].shape[1],
        "layers_per_block": 1 + _count(part, r"encoder\.down\.0\.block\.(\d+)\."),
        "norm_num_groups": 32,
        "out_channels": part["decoder.conv_out.weight"].shape[0],
        "sample_size": sample_size,
        "scaling_factor": scaling,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    if shift is not None:
        config["shift_factor"] = shift
    if "quant_conv.weight" not in part:
        config |= {"use_quant_conv": False, "use_post_quant_conv": False}
    return config


def clip_config(part: Checkpoint, *, projected: bool = False) -> Config:
    """CLIPTextModel's config.json, of OpenAI's CLIP under transformers' names.

    Args:
        projected: it is a CLIPTextModelWithProjection.
    """
    words = part["text_model.embeddings.token_embedding.weight"].shape
    layers = 1 + _count(part, r"text_model\.encoder\.layers\.(\d+)\.")
    inner = part["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    wide = words[1] > 1024  # OpenCLIP's large encoder, saved under transformers' names
    return _clip(words, layers, inner, "gelu" if wide else "quick_gelu", projected, words[1])


def open_clip_config(part: Checkpoint, *, projected: bool = False, layers_unused: int = 0) -> Config:
    """CLIPTextModel's config.json, of OpenCLIP under its own names.

    Args:
        projected: it is a CLIPTextModelWithProjection.
        layers_unused: last layers that the denoiser's states come from before.
    """
    words = part["token_embedding.weight"].shape
    layers = 1 + _count(part, r"transformer\.resblocks\.(\d+)\.") - layers_unused
    inner = part["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    width = part["text_projection"].shape[1] if "text_projection" in part else words[1]
    return _clip(words, layers, inner, "gelu", projected, width)


def _clip(words: tuple[int, ...], layers: int, inner: int, act: str, projected: bool, width: int) -> Config:
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": act,
        "hidden_size": words[1],
        "intermediate_size": inner,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": words[1] // HEAD,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "projection_dim": width,
        "vocab_size": words[0],
    }


def t5_config(part: Checkpoint) -> Config:
    """T5EncoderModel's config.json, of the first T5 v1.1's encoder."""
    words = part["shared.weight"].shape
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = part[f"{attention}.relative_attention_bias.weight"].shape
    inner = part["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0]
    return {
        "architectures": ["T5EncoderModel"],
        "d_ff": inner,
        "d_kv": part[f"{attention}.q.weight"].shape[0] // heads,
        "d_model": words[1],
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "num_heads": heads,
        "num_layers": 1 + _count(part, r"encoder\.block\.(\d+)\."),
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": buckets,
        "tie_word_embeddings": False,
        "vocab_size": words[0],
    }


def sd3_config(part: Checkpoint) -> Config:
    """SD3Transformer2DModel's config.json."""
    width, channels, patch, _ = part["x_embedder.proj.weight"].shape
    places = part["pos_embed"].shape[1]
    dual = sorted({int(n.split(".")[1]) for n in part if ".x_block.attn2." in n})
    normed = any(n.endswith("x_block.attn.ln_q.weight") for n in part)
    config: Config = {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": HEAD,
        "caption_projection_dim": part["context_embedder.weight"].shape[0],
        "in_channels": channels,
        "joint_attention_dim": part["context_embedder.weight"].shape[1],
        "num_attention_heads": width // HEAD,
        "num_layers": 1 + _count(part, r"joint_blocks\.(\d+)\."),
        "out_channels": part["final_layer.linear.weight"].shape[0] // patch**2,
        "patch_size": patch,
        "pooled_projection_dim": part["y_embedder.mlp.0.weight"].shape[1],
        "pos_embed_max_size": round(places**0.5),
        "sample_size": 128,
    }
    if dual:
        config["dual_attention_layers"] = dual
    if normed:
        config["qk_norm"] = "rms_norm"
    return config


def flux_config(part: Checkpoint) -> Config:
    """FluxTransformer2DModel's config.json."""
    width, channels = part["img_in.weight"].shape
    head = part["double_blocks.0.img_attn.norm.key_norm.scale"].shape[0]
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": head,
        "guidance_embeds": "guidance_in.in_layer.weight" in part,
        "in_channels": channels,
        "joint_attention_dim": part["txt_in.weight"].shape[1],
        "num_attention_heads": width // head,
        "num_layers": 1 + _count(part, r"double_blocks\.(\d+)\."),
        "num_single_layers": 1 + _count(part, r"single_blocks\.(\d+)\."),
        "patch_size": 1,
        "pooled_projection_dim": part["vector_in.in_layer.weight"].shape[1],
    }
