"""Tiny random pipelines of diffusers that the tests of several subjects draw with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from vitrify.pipelines.families.sana import INSTRUCTION

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

LONG = ", ".join(f"a {c} car on a {d} table" for c in ("red", "green", "blue") for d in ("old", "new", "big")) * 12


def clip_config(width: int, layers: int, act: str, projection: int) -> Any:
    return transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        projection_dim=projection, hidden_act=act, vocab_size=49408, max_position_embeddings=77, bos_token_id=49406,
        eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip


def tiny_vae() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=16,
    )  # fmt: skip


def sd3_pipeline(
    words: Callable[..., Any],
    t5_words: Any,
    *,
    t5: bool = True,
    dual: tuple[int, ...] = (),
    norm: str | None = None,
    dynamic: bool = False,
    small_vae: bool = False,
    layers: int = 2,
) -> Any:
    """dual: layers with a second attention. norm: of queries and keys. dynamic: shift by the picture's size.

    layers: blocks of the transformer.
    """
    torch.manual_seed(3)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=40,
        pos_embed_max_size=24, dual_attention_layers=dual, qk_norm=norm,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=16, norm_num_groups=8, sample_size=32,
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    encoder = None
    if t5:
        config = transformers.T5Config(
            vocab_size=64, d_model=64, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
        encoder = transformers.T5EncoderModel(config)
    shift = {"use_dynamic_shifting": True} if dynamic else {"shift": 3.0}
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        vae=tiny_vae() if small_vae else vae,
        text_encoder=transformers.CLIPTextModelWithProjection(clip_config(32, 3, "quick_gelu", 24)),
        tokenizer=words(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config(24, 2, "gelu", 16)),
        tokenizer_2=words("!"),
        text_encoder_3=encoder,
        tokenizer_3=t5_words if t5 else None,
    )


def flux_pipeline(words: Callable[..., Any], t5_words: Any, name: str, layers: int = 1) -> Any:
    """name: dev, schnell, fill or tiny vae. layers: blocks, as many double as single ones."""
    torch.manual_seed(4)
    dev = name != "schnell"
    more = 16 + 4 if name == "fill" else 0  # the masked picture and the mask's four pixels
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=64 + 4 * more, out_channels=64 if more else None, num_layers=layers,
        num_single_layers=layers, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, guidance_embeds=dev, axes_dims_rope=[4, 4, 8],
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=16, norm_num_groups=8, sample_size=32,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    clip = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=49408,
        max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip
    t5 = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    shift = {"use_dynamic_shifting": True, "shift": 3.0} if dev else {"shift": 1.0}
    kind = diffusers.FluxFillPipeline if name == "fill" else diffusers.FluxPipeline
    return kind(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        vae=tiny_vae() if name == "tiny vae" else vae,
        text_encoder=transformers.CLIPTextModel(clip),
        tokenizer=words(),
        text_encoder_2=transformers.T5EncoderModel(t5),
        tokenizer_2=t5_words,
    )


def gemma_words() -> Any:
    """A tokenizer as Gemma has it, with a few hundred words: BPE over bytes, and a token before each text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    texts = [INSTRUCTION.lower(), INSTRUCTION, LONG]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [*first, *sorted(model["vocab"], key=model["vocab"].get)]
    return transformers.GemmaTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[tuple(merge) for merge in model["merges"]],
        add_bos_token=True,
        add_eos_token=False,
    )


def gemma(words: int) -> Any:
    config = transformers.Gemma2Config(
        vocab_size=words, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=24, max_position_embeddings=1024,
    )  # fmt: skip
    return transformers.Gemma2Model(config)


def deep_autoencoder() -> Any:
    return diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=8, scaling_factor=0.41407,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16), decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate", downsample_block_type="conv",
    )  # fmt: skip


def sana_transformer(layers: int = 1, **more: Any) -> Any:
    return diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=3, attention_head_dim=8, num_layers=layers,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        mlp_ratio=2.5, sample_size=16, **more,
    )  # fmt: skip


def sana_pipeline(**more: Any) -> Any:
    """more: of the transformer."""
    torch.manual_seed(3)
    words = gemma_words()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(words, gemma(len(words)), deep_autoencoder(), sana_transformer(**more), scheduler)
