"""Configs of Sana's components: tiny ones, and those of the models in their full size."""

from __future__ import annotations

from typing import Any

GEMMA: dict[str, Any] = {
    "model_type": "gemma2", "vocab_size": 200, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12,
    "max_position_embeddings": 512, "attn_logit_softcapping": 5.0,
}  # fmt: skip
GEMMA_2B: dict[str, Any] = {
    "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "max_position_embeddings": 8192,
}  # fmt: skip
SANA: dict[str, Any] = {
    "_class_name": "SanaTransformer2DModel", "in_channels": 4, "out_channels": 4, "num_attention_heads": 3,
    "attention_head_dim": 8, "num_layers": 1, "num_cross_attention_heads": 2, "cross_attention_head_dim": 12,
    "cross_attention_dim": 24, "caption_channels": 32, "mlp_ratio": 2.5, "sample_size": 16, "patch_size": 1,
}  # fmt: skip
SANA_1600M: dict[str, Any] = SANA | {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20,
    "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
    "caption_channels": 2304, "sample_size": 32,
}  # fmt: skip
SANA_600M: dict[str, Any] = SANA_1600M | {
    "num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}  # fmt: skip
# an autoencoder that folds pixels into channels and back, where the pipelines' tests have one that resizes
FOLDING: dict[str, Any] = {
    "_class_name": "AutoencoderDC", "in_channels": 3, "latent_channels": 4, "attention_head_dim": 8,
    "encoder_block_types": ["ResBlock", "EfficientViTBlock"], "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [8, 16], "decoder_block_out_channels": [8, 16], "encoder_layers_per_block": [1, 1],
    "decoder_layers_per_block": [1, 1], "encoder_qkv_multiscales": [[], [5]], "decoder_qkv_multiscales": [[], [5]],
    "upsample_block_type": "pixel_shuffle", "downsample_block_type": "pixel_unshuffle", "scaling_factor": 0.4,
}  # fmt: skip
DC_AE: dict[str, Any] = FOLDING | {
    "latent_channels": 32, "attention_head_dim": 32,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3], "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_block_types": [*["ResBlock"] * 3, *["EfficientViTBlock"] * 3],
    "decoder_block_types": [*["ResBlock"] * 3, *["EfficientViTBlock"] * 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]], "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "upsample_block_type": "interpolate", "downsample_block_type": "conv",
}  # fmt: skip
