"""What the exporter knows of Stable Diffusion XL: the tensors of its components, and models that it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from vitrify.core.errors import BadInput
from vitrify.export.families.pipelines import CHECKS, components_of
from vitrify.pipelines.families import pipeline_settings

# of stabilityai/stable-diffusion-xl-base-1.0 and of its refiner, what decides about tensors
UNET: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20], "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "sample_size": 128, "time_cond_proj_dim": None,
    "transformer_layers_per_block": [1, 2, 10],
}  # fmt: skip
REFINER = UNET | {
    "cross_attention_dim": 1280, "block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24],
    "projection_class_embeddings_input_dim": 2560,
}  # fmt: skip
TEXT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408}
TEXT_2 = {
    "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280,
    "vocab_size": 49408,
}  # fmt: skip
VAE: dict[str, Any] = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "scaling_factor": 0.13025}
EULER = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}


def index(refiner: bool) -> dict[str, Any]:
    name = "StableDiffusionXLImg2ImgPipeline" if refiner else "StableDiffusionXLPipeline"
    return {"_class_name": name, "requires_aesthetics_score": refiner, "force_zeros_for_empty_prompt": not refiner}


def spec_of(name: str, *, refiner: bool = False) -> Any:
    return next(spec for spec in components_of(index(refiner))[1] if spec.name == name)


def test_the_text_encoders_give_what_optimum_expects() -> None:
    first = spec_of("text_encoder").outputs(TEXT)
    assert list(first) == ["last_hidden_state", "pooler_output", *(f"hidden_states.{n}" for n in range(13))]
    assert first["hidden_states.11"].shape == ("batch", "tokens", 768)
    second = spec_of("text_encoder_2").outputs(TEXT_2)
    assert list(second) == ["text_embeds", "last_hidden_state", *(f"hidden_states.{n}" for n in range(33))]
    assert second["text_embeds"].shape == ("batch", 1280)


@pytest.mark.parametrize(("config", "refiner", "sizes"), [(UNET, False, 6), (REFINER, True, 5)])
def test_the_unet_is_told_sizes_and_the_pooled_text(config: dict[str, Any], refiner: bool, sizes: int) -> None:
    spec = spec_of("unet", refiner=refiner)
    inputs = spec.inputs(config)
    assert list(inputs) == ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]
    assert (inputs["text_embeds"].shape, inputs["time_ids"].shape) == (("batch", 1280), ("batch", sizes))
    narrow = spec.narrow(config)
    assert spec.inputs(narrow)["time_ids"] == inputs["time_ids"]
    assert spec.inputs(narrow)["text_embeds"].shape[1] > 0
    assert narrow["transformer_layers_per_block"] == config["transformer_layers_per_block"]


def test_a_consistency_model_is_also_told_the_guidance() -> None:
    inputs = spec_of("unet").inputs(UNET | {"time_cond_proj_dim": 256})
    assert list(inputs)[3:] == ["timestep_cond", "text_embeds", "time_ids"]


def test_a_refiner_is_told_from_a_base_by_its_index() -> None:
    assert [spec.optional for spec in components_of(index(True))[1]][:2] == [True, False]
    settings = pipeline_settings("sdxl", {"unet": REFINER, "vae": VAE, "text_encoder_2": TEXT_2}, EULER, index(True))
    assert settings["tasks"] == ["img2img", "inpaint"]
    assert settings["text"] == {"states": {"text_encoder_2": "hidden_states.31"}, "zeros": False, "aesthetics": True}
    assert "tokenizer" not in settings["files"]
    configs = {"unet": UNET, "vae": VAE, "text_encoder": TEXT, "text_encoder_2": TEXT_2}
    settings = pipeline_settings("sdxl", configs, EULER, index(False))
    assert settings["tasks"] == ["text2img", "img2img", "inpaint"]
    assert settings["text"]["states"] == {"text_encoder": "hidden_states.11", "text_encoder_2": "hidden_states.31"}
    assert settings["size"] == [1024, 1024]
    with pytest.raises(BadInput, match="takes 6 numbers beside the pooled text") as caught:
        pipeline_settings("sdxl", configs, EULER, index(True))
    assert "to false" in caught.value.fix


@pytest.mark.parametrize(
    ("unet", "vae", "what"),
    [
        (UNET | {"addition_embed_type": "text_image"}, VAE, "addition_embed_type='text_image'"),
        (UNET | {"encoder_hid_dim_type": "ip_image_proj"}, VAE, "encoder_hid_dim_type"),
        (UNET | {"in_channels": 8}, VAE, "takes 8 channels"),
        (UNET, VAE | {"latents_mean": [0.1, 0.2, 0.3, 0.4]}, "latents_mean"),
    ],
)
def test_what_ours_cannot_call_is_refused(unet: dict[str, Any], vae: dict[str, Any], what: str) -> None:
    CHECKS["sdxl"]("model", {"unet": UNET, "vae_decoder": VAE})
    with pytest.raises(BadInput, match=what):
        CHECKS["sdxl"]("model", {"unet": unet, "vae_decoder": vae})
