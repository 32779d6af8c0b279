"""Tiny random models in the original layouts of single checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .originals import (
    CROSS,
    Tensors,
    hf_clip,
    open_clip,
    original_flux,
    original_sd3,
    original_unet,
    original_vae,
    prefixed,
    save,
)

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")


@pytest.fixture(scope="session")
def layouts() -> Any:
    """The functions of originals.py."""
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
