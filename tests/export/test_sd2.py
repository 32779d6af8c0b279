"""Stable Diffusion 2, tiny and random: linear projections, heads by block, a text encoder with gelu, v-prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.export.job import export_model

pytestmark = pytest.mark.slow  # traces a model of its own
torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

PROMPT, NEGATIVE = "a red apple on a table", "blurry"


def pipeline(tokenizer: Path) -> Any:
    """SD 2.x in small: what sets it apart from 1.x is as in its configs."""
    torch.manual_seed(4)
    text = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=16,
        hidden_act="gelu", vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407,
        pad_token_id=1,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=[2, 4, 8], cross_attention_dim=32, use_linear_projection=True, norm_num_groups=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=32,
        scaling_factor=0.18215,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction", timestep_spacing="leading",
    )  # fmt: skip
    words = transformers.CLIPTokenizer.from_pretrained(tokenizer)
    return diffusers.StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=transformers.CLIPTextModel(text).eval(), tokenizer=words, unet=unet.eval(),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(diffusion_source: Path) -> Any:
    made = pipeline(diffusion_source / "tokenizer")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def artifact(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("sd2")
    reference.save_pretrained(folder / "source")
    return export_model(folder / "source", folder / "artifact", verify=True)


def test_every_proof_passes(artifact: Artifact) -> None:
    for component in artifact.components.values():
        assert component.proof["graph"]["relative"] <= 1e-4
        assert component.proof["numeric"]["relative"] <= 1e-4
        assert component.proof["weights"]["tensors"] > 10
    assert artifact.proof["images"]["pictures"] == 2
    assert artifact.pipeline["scheduler"]["prediction_type"] == "v_prediction"


@pytest.mark.parametrize(("runtime", "scheduler"), [("onnx", None), ("onnx", "euler"), ("openvino", None)])
def test_it_draws_what_diffusers_draws(reference: Any, artifact: Artifact, runtime: str, scheduler: str | None) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    size = {"width": 48, "height": 32}
    own = reference.scheduler
    if scheduler == "euler":
        reference.scheduler = diffusers.EulerDiscreteScheduler.from_config(own.config)
    try:
        expected = reference(
            PROMPT, negative_prompt=NEGATIVE, num_inference_steps=6, guidance_scale=7.5,
            generator=torch.Generator().manual_seed(9), **size,
        ).images[0]  # fmt: skip
    finally:
        reference.scheduler = own
    drawn = vitrify.load(artifact, "cpu", runtime=runtime)
    options: dict[str, Any] = {"negative_prompt": NEGATIVE, "steps": 6, "guidance": 7.5, "scheduler": scheduler, **size}
    same, other = (drawn.generate(PROMPT, seed=seed, **options).images[0] for seed in (9, 10))
    drawn.close()
    assert same.size == expected.size == (48, 32)
    assert psnr(same, expected) >= 50
    assert psnr(other, expected) < 40, "the comparison can fail"


def psnr(a: Any, b: Any) -> float:
    mse = float(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean())
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))
