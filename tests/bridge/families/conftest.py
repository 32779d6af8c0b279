"""Tiny random pipelines of the larger families, each exported once.

Their configs are those of tests/pipelines/families, so that one graph serves both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitrify

diffusers = pytest.importorskip("diffusers", reason="needs vitrify[export]")
torch = pytest.importorskip("torch", reason="needs vitrify[export]")
transformers = pytest.importorskip("transformers", reason="needs vitrify[export]")

GAIN = 1.2  # of random layers: lower ones lose what they are told, higher ones make everything black or white


def _clip(
    width: int, layers: int, projection: int, act: str = "quick_gelu", kind: str = "CLIPTextModelWithProjection"
) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        projection_dim=projection, hidden_act=act, vocab_size=49408, max_position_embeddings=77, bos_token_id=49406,
        eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def _t5(width: int) -> Any:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=64, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
    )


def _vae(channels: int, **more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=8, sample_size=32, **more,
    )  # fmt: skip


def sdxl(words: Any, t5_words: Any) -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, cross_attention_dim=56, norm_num_groups=8,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 8 * 6,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(4, scaling_factor=0.13025, force_upcast=True), text_encoder=_clip(32, 3, 32, kind="CLIPTextModel"),
        text_encoder_2=_clip(24, 2, 16, "gelu"), tokenizer=words, tokenizer_2=words, unet=unet, add_watermarker=False,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading",
            steps_offset=1,
        ),
    )  # fmt: skip


def sd3(words: Any, t5_words: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=64, pooled_projection_dim=40,
        pos_embed_max_size=24,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(32, 3, 24), tokenizer=words, text_encoder_2=_clip(24, 2, 16, "gelu"), tokenizer_2=words,
        text_encoder_3=_t5(64), tokenizer_3=t5_words,
    )  # fmt: skip


def flux(words: Any, t5_words: Any) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(32, 2, 32, kind="CLIPTextModel"), tokenizer=words,
        text_encoder_2=_t5(32), tokenizer_2=t5_words,
    )  # fmt: skip


def sana(words: Any, t5_words: Any) -> Any:
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {word: number for number, word in enumerate([*first, "▁", *map(chr, range(33, 127))])}
    gemma = transformers.GemmaTokenizer(vocab=vocab, merges=[], add_bos_token=True, add_eos_token=False)
    encoder = transformers.Gemma2Config(
        vocab_size=len(gemma), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=24, max_position_embeddings=1024,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=8, scaling_factor=0.41407,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16), decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate", downsample_block_type="conv",
    )  # fmt: skip
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=3, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        mlp_ratio=2.5, sample_size=16,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(gemma, transformers.Gemma2Model(encoder), vae, transformer, scheduler)


BUILDERS: dict[str, Callable[[Any, Any], Any]] = {"sdxl": sdxl, "sd3": sd3, "flux": flux, "sana": sana}


@pytest.fixture(scope="session")
def t5_words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A T5 tokenizer of few pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    trained.train_from_iterator(["a red apple on a table", "a blue car, blurry and dark"] * 4, trainer)
    file = tmp_path_factory.mktemp("t5") / "tokenizer.json"
    trained.save(str(file))
    return transformers.T5TokenizerFast(tokenizer_file=str(file), extra_ids=0, model_max_length=512)


@pytest.fixture(scope="session")
def tiny(
    diffusion_source: Path, t5_words: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """tiny(family): the model's folder and its artifact; each is made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def model(family: str) -> tuple[Path, Path]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(3)
            words = transformers.CLIPTokenizer.from_pretrained(diffusion_source / "tokenizer")
            pipe = BUILDERS[family](words, t5_words)
            draw = torch.Generator().manual_seed(11)
            with torch.no_grad():
                for module in (m for m in pipe.components.values() if isinstance(m, torch.nn.Module)):
                    for weight in module.eval().parameters():
                        drawn = torch.randn(weight.shape, generator=draw)
                        if weight.ndim < 2:
                            weight.add_(drawn, alpha=0.1)
                        else:
                            weight.copy_(drawn * GAIN * weight[0].numel() ** -0.5)
            pipe.save_pretrained(folder / "model")
            vitrify.export_model(folder / "model", folder / "artifact", verify=False)
            made[family] = folder / "model", folder / "artifact"
        return made[family]

    return model
