"""Tiny random models of the families whose denoiser is a transformer, as diffusers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

WORDS = Path(__file__).resolve().parents[2] / "demo/models/emoji-diffusion/tokenizer"


def vae(**options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=16,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, sample_size=32, use_quant_conv=False,
        use_post_quant_conv=False, **options,
    )  # fmt: skip


def clip(width: int, layers: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=width, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4, projection_dim=16,
        vocab_size=49408, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip


def t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4, is_gated_act=True)
    )


def t5_words(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import T5TokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(["a happy face and a sad one", "a blue car", "an apple"] * 4, trainer)
    tokenizer.save(str(folder / "t5.json"))
    return T5TokenizerFast(tokenizer_file=str(folder / "t5.json"), extra_ids=0, model_max_length=512)


def clip_words(folder: Path, pad: str) -> Any:
    """CLIP's tokenizer, from the layout that transformers 4 reads."""
    import shutil

    from transformers import CLIPTokenizer

    from vitrify.export.layout import _complete_tokenizer
    from vitrify.pipelines.families.sd import StableDiffusion

    if not (folder / "clip").is_dir():
        shutil.copytree(WORDS, folder / "clip")
        _complete_tokenizer(WORDS, folder / "clip", StableDiffusion)
    return CLIPTokenizer.from_pretrained(folder / "clip", pad_token=pad)


def lively(pipe: Any, folder: Path) -> Path:
    """Weights that neither swallow nor blow up what they are given; the folder that it is saved in."""
    import torch

    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for module in (m for m in pipe.components.values() if isinstance(m, torch.nn.Module)):
            for parameter in (p for p in module.parameters() if p.ndim > 1):
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * 1.2 * parameter[0].numel() ** -0.5)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sd3_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 3 with its T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("sd3")
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=64, pooled_projection_dim=32,
        pos_embed_max_size=24, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609), text_encoder=CLIPTextModelWithProjection(clip(32, 3)),
        tokenizer=clip_words(folder, "<|endoftext|>"), text_encoder_2=CLIPTextModelWithProjection(clip(24, 2)),
        tokenizer_2=clip_words(folder, "!"), text_encoder_3=t5(64), tokenizer_3=t5_words(folder),
    )  # fmt: skip
    return lively(pipe, folder / "source")


@pytest.fixture(scope="session")
def flux_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flux dev."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    folder = tmp_path_factory.mktemp("flux")
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    pipe = FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159), text_encoder=CLIPTextModel(clip(32, 2)),
        tokenizer=clip_words(folder, "<|endoftext|>"), text_encoder_2=t5(32), tokenizer_2=t5_words(folder),
    )  # fmt: skip
    return lively(pipe, folder / "source")
