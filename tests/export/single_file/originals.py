"""Tensors of diffusers' modules under the names of the original layouts.

The names are made from diffusers' own by the published rules the other way round (convert_diffusers_to_original_
stable_diffusion.py of diffusers, the reference code of Stable Diffusion 3 and Flux); that they are the original ones is
seen from diffusers' single-file converters, which take nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra export")

Tensors = dict[str, Any]
CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_unet(state: Mapping[str, Any], layers: int) -> Tensors:
    """The names of latent diffusion; `layers`: layers_per_block."""
    attended = {name.split(".")[1] for name in state if name.startswith("up_blocks") and ".attentions." in name}
    found = {}
    for name, tensor in state.items():
        head, _, leaf = name.rpartition(".")
        if head in UNET_TOP:
            found[f"{UNET_TOP[head]}.{leaf}"] = tensor
        elif match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", head):
            kind, number, rest = match.groups()
            place = 2 * int(number) if kind == "resnets" else 1
            found[f"middle_block.{place}.{RESNET[rest] if kind == 'resnets' else rest}.{leaf}"] = tensor
        else:
            way, block, kind, layer, rest = re.fullmatch(
                r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", head
            ).groups()
            number = (layers + 1) * int(block) + int(layer) + (way == "down")
            side = "input_blocks" if way == "down" else "output_blocks"
            if kind == "resnets":
                found[f"{side}.{number}.0.{RESNET[rest]}.{leaf}"] = tensor
            elif kind == "attentions":
                found[f"{side}.{number}.1.{rest}.{leaf}"] = tensor
            elif kind == "downsamplers":
                found[f"{side}.{(layers + 1) * (int(block) + 1)}.0.op.{leaf}"] = tensor
            else:
                last, place = (layers + 1) * int(block) + layers, 2 if block in attended else 1
                found[f"{side}.{last}.{place}.conv.{leaf}"] = tensor
    return found


def original_vae(state: Mapping[str, Any], levels: int, convolutions: bool = True) -> Tensors:
    """The names of latent diffusion; its attentions are 1x1 convolutions."""
    found = {}
    for name, tensor in state.items():
        head, _, leaf = name.rpartition(".")
        head = head.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)", head):
            half, kind, number, rest = match.groups()
            if kind == "attentions":
                head = f"{half}.mid.attn_1.{VAE_ATTENTION[rest]}"
                if convolutions and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
            else:
                head = f"{half}.mid.block_{int(number) + 1}.{rest}"
        head = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets", r"encoder.down.\1.block", head)
        head = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", head)
        head = re.sub(
            r"decoder\.up_blocks\.(\d+)\.resnets", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.block", head
        )
        head = re.sub(
            r"decoder\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.upsample", head
        )
        found[f"{head}.{leaf}"] = tensor
    return found


def hf_clip(state: Mapping[str, Any]) -> Tensors:
    """transformers' names as its files have them: those of version 5's flat model got their old prefix back."""
    own = ("text_model.", "text_projection.")
    return {name if name.startswith(own) else f"text_model.{name}": tensor for name, tensor in state.items()}


def open_clip(state: Mapping[str, Any], layers_more: int = 0) -> Tensors:
    """OpenCLIP's names, with as many layers more as the model does not use."""
    state, found = hf_clip(state), {}
    layer = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    top = {"text_model.embeddings.position_embedding.weight": "positional_embedding",
           "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
           "text_model.final_layer_norm.weight": "ln_final.weight",
           "text_model.final_layer_norm.bias": "ln_final.bias"}  # fmt: skip
    for name, tensor in state.items():
        if name in top:
            found[top[name]] = tensor
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            number, rest, leaf = match.groups()
            block = f"transformer.resblocks.{number}"
            if rest == "self_attn.q_proj":
                parts = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                found[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
            elif rest in layer:
                found[f"{block}.{layer[rest]}.{leaf}"] = tensor
    last = max(int(name.split(".")[2]) for name in found if ".resblocks." in name)
    for more in range(layers_more):
        for name in [n for n in found if n.startswith(f"transformer.resblocks.{last}.")]:
            found[name.replace(f".{last}.", f".{last + 1 + more}.", 1)] = torch.randn_like(found[name])
    if "text_projection" not in found:
        width = found["ln_final.bias"].shape[0]
        found["text_projection"] = torch.randn(width, width)
    return found | {"logit_scale": torch.tensor(4.6)}


def swapped(tensor: Any) -> Any:
    first, second = tensor.chunk(2, dim=0)
    return torch.cat([second, first])


def original_sd3(state: Mapping[str, Any], layers: int) -> Tensors:
    """The names of the reference code of Stable Diffusion 3."""
    top = {
        "pos_embed.proj": "x_embedder.proj", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2", "context_embedder": "context_embedder",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0", "proj_out": "final_layer.linear",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    }  # fmt: skip
    inner = {
        "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
        "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q", "attn.norm_added_k": "context_block.attn.ln_k",
        "attn2.to_out.0": "x_block.attn2.proj", "attn2.norm_q": "x_block.attn2.ln_q",
        "attn2.norm_k": "x_block.attn2.ln_k", "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1", "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2", "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
    }  # fmt: skip
    fused = {"attn.to_": "x_block.attn", "attn2.to_": "x_block.attn2", "attn.add_": "context_block.attn"}
    found: Tensors = {}
    for name, tensor in state.items():
        head, _, leaf = name.rpartition(".")
        if name == "pos_embed.pos_embed":
            found["pos_embed"] = tensor
        elif head in top:
            found[f"{top[head]}.{leaf}"] = tensor
        elif head == "norm_out.linear":
            found[f"final_layer.adaLN_modulation.1.{leaf}"] = swapped(tensor)
        else:
            number, rest = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", head).groups()
            block = f"joint_blocks.{number}"
            start = re.fullmatch(r"(attn2?\.(?:to_|add_))[qkv](_proj)?", rest)
            if start and start[0] != "attn.to_out":
                target = f"{block}.{fused[start[1]]}.qkv.{leaf}"
                kinds = [f"transformer_blocks.{number}.{start[1]}{c}{start[2] or ''}.{leaf}" for c in "qkv"]
                found[target] = torch.cat([state[kind] for kind in kinds])
            else:
                last = rest == "norm1_context.linear" and int(number) == layers - 1
                found[f"{block}.{inner[rest]}.{leaf}"] = swapped(tensor) if last else tensor
    return found


def original_flux(state: Mapping[str, Any]) -> Tensors:
    """The names of the reference code of Flux."""
    top = {
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "context_embedder": "txt_in", "x_embedder": "img_in", "proj_out": "final_layer.linear",
    }  # fmt: skip
    double = {
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2", "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
        "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
    }  # fmt: skip
    norms = {
        "attn.norm_q": "img_attn.norm.query_norm", "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm", "attn.norm_added_k": "txt_attn.norm.key_norm",
    }  # fmt: skip
    found: Tensors = {}
    for name, tensor in state.items():
        head, _, leaf = name.rpartition(".")
        if head in top:
            found[f"{top[head]}.{leaf}"] = tensor
        elif head == "norm_out.linear":
            found[f"final_layer.adaLN_modulation.1.{leaf}"] = swapped(tensor)
        elif match := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", head):
            number, rest = match.groups()
            block = f"double_blocks.{number}"
            if rest in double:
                found[f"{block}.{double[rest]}.{leaf}"] = tensor
            elif rest in norms:
                found[f"{block}.{norms[rest]}.scale"] = tensor
            elif rest in ("attn.to_q", "attn.add_q_proj"):
                kinds = [name.replace("_q", f"_{letter}") for letter in "qkv"]
                stream = "img" if rest == "attn.to_q" else "txt"
                found[f"{block}.{stream}_attn.qkv.{leaf}"] = torch.cat([state[kind] for kind in kinds])
        else:
            number, rest = re.fullmatch(r"single_transformer_blocks\.(\d+)\.(.+)", head).groups()
            block, own = f"single_blocks.{number}", f"single_transformer_blocks.{number}"
            if rest == "norm.linear":
                found[f"{block}.modulation.lin.{leaf}"] = tensor
            elif rest == "proj_out":
                found[f"{block}.linear2.{leaf}"] = tensor
            elif rest in ("attn.norm_q", "attn.norm_k"):
                found[f"{block}.norm.{'query' if rest.endswith('q') else 'key'}_norm.scale"] = tensor
            elif rest == "attn.to_q":
                kinds = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
                found[f"{block}.linear1.{leaf}"] = torch.cat([state[f"{own}.{kind}.{leaf}"] for kind in kinds])
    return found


def prefixed(prefix: str, tensors: Mapping[str, Any]) -> Tensors:
    return {f"{prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}


def save(tensors: Mapping[str, Any], path: Path) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, str(path))
    return path
