"""Tiny random models in the original layouts of single checkpoints.

The names are made from diffusers' own by the published rules the other way round (convert_diffusers_to_original_
stable_diffusion.py of diffusers, the reference code of Stable Diffusion 3 and Flux); that they are the original ones is
seen from diffusers' single-file converters, which take nothing else.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

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


@pytest.fixture(scope="session")
def layouts() -> Any:
    """The functions of this file."""
    import types

    return types.SimpleNamespace(
        unet=original_unet, vae=original_vae, hf_clip=hf_clip, open_clip=open_clip, sd3=original_sd3,
        flux=original_flux, prefixed=prefixed, save=save,
    )  # fmt: skip


def randomized(module: Any) -> Any:
    """No two tensors alike, also those that start at 0 or 1: a swap would show."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return module.eval()


def tiny_sd(tokenizer: Path, kind: int) -> Any:
    """A tiny random Stable Diffusion 1 or 2, as diffusers holds it."""
    torch.manual_seed(kind)
    text = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=32,
        hidden_act="quick_gelu" if kind == 1 else "gelu", vocab_size=49408, max_position_embeddings=77,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32,
        attention_head_dim=8 if kind == 1 else [2, 4, 8], use_linear_projection=kind == 2, norm_num_groups=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8, sample_size=32,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=0.18215,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="epsilon" if kind == 1 else "v_prediction", timestep_spacing="leading",
    )  # fmt: skip
    made = diffusers.StableDiffusionPipeline(
        vae=randomized(vae), text_encoder=randomized(transformers.CLIPTextModel(text)), unet=randomized(unet),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(tokenizer), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def original_sd(pipe: Any, kind: int) -> Tensors:
    """The tensors of a whole checkpoint, with what training leaves in one."""
    text = pipe.text_encoder.state_dict()
    found = prefixed("model.diffusion_model.", original_unet(pipe.unet.state_dict(), 1))
    found |= prefixed("first_stage_model.", original_vae(pipe.vae.state_dict(), 2))
    if kind == 1:
        found |= prefixed("cond_stage_model.transformer.", hf_clip(text))
        found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    else:
        found |= prefixed("cond_stage_model.model.", open_clip(text, layers_more=1))
    return found | {"betas": torch.linspace(0, 1, 10), "alphas_cumprod": torch.linspace(1, 0, 10)}


@pytest.fixture(scope="session")
def sd(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Any, Path, Path]]:
    """sd(1 or 2): the tiny model, its diffusers folder, and its single checkpoint."""
    made: dict[int, tuple[Any, Path, Path]] = {}

    def make(kind: int) -> tuple[Any, Path, Path]:
        if kind not in made:
            root = tmp_path_factory.mktemp(f"sd{kind}")
            pipe = tiny_sd(diffusion_source / "tokenizer", kind)
            pipe.save_pretrained(root / "folder")
            made[kind] = pipe, root / "folder", save(original_sd(pipe, kind), root / f"tiny-{kind}.safetensors")
        return made[kind]

    return make


SMALL_CLIP = {"num_hidden_layers": 2, "vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def clip(width: int, projected: bool, act: str) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_attention_heads=4, projection_dim=width, hidden_act=act,
        **SMALL_CLIP,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return randomized(kind(config))


def small_vae(channels: int, quant: bool, scaling: float, shift: float | None = None) -> Any:
    return randomized(
        diffusers.AutoencoderKL(
            block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, sample_size=32,
            scaling_factor=scaling, shift_factor=shift, use_quant_conv=quant, use_post_quant_conv=quant,
        )
    )  # fmt: skip


def small_tokenizers(tokenizer: Path) -> tuple[Any, Any]:
    first = transformers.CLIPTokenizer.from_pretrained(tokenizer)
    return first, transformers.CLIPTokenizer.from_pretrained(tokenizer, pad_token="!")


def tiny_sdxl(tokenizer: Path) -> tuple[Any, Tensors]:
    """A tiny random Stable Diffusion XL, as diffusers holds it and as a single checkpoint does."""
    torch.manual_seed(11)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(32, 64), down_block_types=("DownBlock2D", CROSS[0]),
        up_block_types=(CROSS[1], "UpBlock2D"), attention_head_dim=[2, 4], cross_attention_dim=80, norm_num_groups=8,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=96, transformer_layers_per_block=[1, 2],
    )  # fmt: skip
    first, second = small_tokenizers(tokenizer)
    made = diffusers.StableDiffusionXLPipeline(
        vae=small_vae(4, True, 0.13025), text_encoder=clip(32, False, "quick_gelu"),
        text_encoder_2=clip(48, True, "gelu"), tokenizer=first, tokenizer_2=second, unet=randomized(unet),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )  # fmt: skip
    found = prefixed("model.diffusion_model.", original_unet(made.unet.state_dict(), 1))
    found |= prefixed("first_stage_model.", original_vae(made.vae.state_dict(), 2))
    found |= prefixed("conditioner.embedders.0.transformer.", hf_clip(made.text_encoder.state_dict()))
    found |= prefixed("conditioner.embedders.1.model.", open_clip(made.text_encoder_2.state_dict()))
    return made, found


def tiny_sd3(tokenizer: Path) -> tuple[Any, Tensors]:
    """A tiny random Stable Diffusion 3.5, without T5; CLIP's first projection is the identity, as in the model."""
    torch.manual_seed(12)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=96, pooled_projection_dim=80,
        pos_embed_max_size=24, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    first, second = small_tokenizers(tokenizer)
    encoder = clip(32, True, "quick_gelu")
    with torch.no_grad():
        encoder.text_projection.weight.copy_(torch.eye(32))
    made = diffusers.StableDiffusion3Pipeline(
        vae=small_vae(16, False, 1.5305, 0.0609), text_encoder=encoder, text_encoder_2=clip(48, True, "gelu"),
        text_encoder_3=None, tokenizer=first, tokenizer_2=second, tokenizer_3=None, transformer=randomized(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    clip_l = {n: t for n, t in hf_clip(encoder.state_dict()).items() if n != "text_projection.weight"}
    found = prefixed("model.diffusion_model.", original_sd3(made.transformer.state_dict(), 2))
    found |= prefixed("first_stage_model.", original_vae(made.vae.state_dict(), 2))
    found |= prefixed("text_encoders.clip_l.transformer.", clip_l)
    found |= prefixed("text_encoders.clip_g.transformer.", hf_clip(made.text_encoder_2.state_dict()))
    return made, found


def tiny_flux() -> tuple[Any, Tensors]:
    """A tiny random Flux transformer, and its checkpoint as its authors publish it: nothing else is in it."""
    torch.manual_seed(13)
    made = randomized(
        diffusers.FluxTransformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        )
    )  # fmt: skip
    return made, original_flux(made.state_dict())


@pytest.fixture(scope="session")
def other(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path, Path]]:
    """other("sdxl" or "sd3"): as `sd`."""
    made: dict[str, tuple[Any, Path, Path]] = {}

    def make(kind: str) -> tuple[Any, Path, Path]:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            pipe, tensors = {"sdxl": tiny_sdxl, "sd3": tiny_sd3}[kind](diffusion_source / "tokenizer")
            pipe.set_progress_bar_config(disable=True)
            pipe.save_pretrained(root / "folder")
            made[kind] = pipe, root / "folder", save(tensors, root / f"{kind}.safetensors")
        return made[kind]

    return make


@pytest.fixture(scope="session")
def flux(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """The tiny Flux transformer, a diffusers folder with all else of a model, and the transformer's checkpoint."""
    root = tmp_path_factory.mktemp("flux")
    transformer, tensors = tiny_flux()
    transformer.save_pretrained(root / "folder/transformer")
    small_vae(4, False, 0.3611, 0.1159).save_pretrained(root / "folder/vae")
    clip(32, False, "quick_gelu").save_pretrained(root / "folder/text_encoder")
    t5 = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    randomized(transformers.T5EncoderModel(t5)).save_pretrained(root / "folder/text_encoder_2")
    diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(root / "folder/scheduler")
    shutil.copytree(diffusion_source / "tokenizer", root / "folder/tokenizer")
    small_t5_tokenizer(root / "folder/tokenizer_2")
    index = {
        "_class_name": "FluxPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (root / "folder/model_index.json").write_text(json.dumps(index))
    return transformer, root / "folder", save(tensors, root / "flux.safetensors")


def small_t5_tokenizer(folder: Path) -> None:
    """A vocabulary of single letters in the form of T5's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 512,
                "tokenizer_class": "T5Tokenizer"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
