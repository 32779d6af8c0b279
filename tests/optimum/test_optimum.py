"""Optimum runs our artifacts unmodified, and its folders open as artifacts. Its libraries need an environment apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.optimum,
    pytest.mark.filterwarnings("ignore"),  # the pinned libraries warn about each other
]

MODEL = Path(__file__).resolve().parents[2] / "demo/models/emoji-diffusion"
PROMPT = "a happy face"


def psnr(a: Any, b: Any) -> float:
    mse = float(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean())
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vitrify import export_model

    target = tmp_path_factory.mktemp("optimum") / "emoji"
    export_model(MODEL, target)
    return target


@pytest.fixture(scope="module")
def ours(artifact: Path) -> Any:
    import vitrify

    return vitrify.load(artifact, "cpu")


def test_optimum_draws_the_same_picture(artifact: Path, ours: Any) -> None:
    import torch
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    theirs = ORTStableDiffusionPipeline.from_pretrained(artifact)
    drawn = theirs(
        PROMPT,
        num_inference_steps=10,
        guidance_scale=3.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    expected = ours.generate(PROMPT, steps=10, guidance=3.0, seed=5, width=64, height=64).images[0]
    assert drawn.size == expected.size
    assert psnr(drawn, expected) >= 50
    other = ours.generate(PROMPT, steps=10, guidance=3.0, seed=6, width=64, height=64).images[0]
    assert psnr(drawn, other) < 40  # the comparison can fail


def test_a_folder_that_optimum_wrote_opens(artifact: Path, ours: Any, tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    import vitrify

    source = tmp_path / "source"
    _with_vocabulary(MODEL, source, artifact)
    ORTStableDiffusionPipeline.from_pretrained(str(source), export=True).save_pretrained(tmp_path / "theirs")
    pipeline = vitrify.load(tmp_path / "theirs", "cpu")
    options = {"steps": 6, "guidance": 3.0, "seed": 5, "width": 64, "height": 64}
    assert psnr(pipeline.generate(PROMPT, **options).images[0], ours.generate(PROMPT, **options).images[0]) >= 50


def _with_vocabulary(model: Path, target: Path, artifact: Path) -> None:
    """The model in float32, and with the tokenizer files that transformers 4 asks for."""
    import shutil

    from diffusers import StableDiffusionPipeline

    shutil.copytree(model, target)
    shutil.rmtree(target / "tokenizer")
    shutil.copytree(artifact / "tokenizer", target / "tokenizer")
    StableDiffusionPipeline.from_pretrained(target).save_pretrained(target)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory, artifact: Path) -> Path:
    """Stable Diffusion XL, tiny and random, as diffusers saves it."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def text(width: int, layers: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            hidden_size=width, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
            projection_dim=16, vocab_size=49408, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
        )  # fmt: skip

    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=16, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, cross_attention_dim=56, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, sample_size=32, scaling_factor=0.13025,
    )  # fmt: skip
    for module in (unet, vae):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
    words = CLIPTokenizer.from_pretrained(artifact / "tokenizer")
    folder = tmp_path_factory.mktemp("xl") / "source"
    StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(text(32, 3)), text_encoder_2=CLIPTextModelWithProjection(text(24, 2)),
        tokenizer=words, tokenizer_2=CLIPTokenizer.from_pretrained(artifact / "tokenizer", pad_token="!"), unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"), add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_optimum_draws_the_same_picture_with_xl(xl: Path, tmp_path: Path) -> None:
    import torch
    from optimum.onnxruntime import ORTStableDiffusionXLPipeline

    import vitrify

    vitrify.export_model(xl, tmp_path / "ours")
    ours = vitrify.load(tmp_path / "ours", "cpu")
    theirs = ORTStableDiffusionXLPipeline.from_pretrained(tmp_path / "ours")
    size = {"width": 48, "height": 32}
    for negative in ("", "blurry!!"):
        drawn = theirs(
            PROMPT, negative_prompt=negative or None, num_inference_steps=4, guidance_scale=5.0,
            generator=torch.Generator().manual_seed(5), **size,
        ).images[0]  # fmt: skip
        expected = ours.generate(PROMPT, negative_prompt=negative, steps=4, guidance=5.0, seed=5, **size).images[0]
        assert np.asarray(expected).std() > 10
        assert psnr(drawn, expected) >= 50


def test_a_folder_of_xl_that_optimum_wrote_opens(xl: Path, tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTStableDiffusionXLPipeline

    import vitrify

    vitrify.export_model(xl, tmp_path / "ours")
    ORTStableDiffusionXLPipeline.from_pretrained(str(xl), export=True).save_pretrained(tmp_path / "theirs")
    options = {"steps": 4, "guidance": 5.0, "seed": 5, "width": 48, "height": 32}
    drawn = [vitrify.load(tmp_path / n, "cpu").generate(PROMPT, **options).images[0] for n in ("ours", "theirs")]
    assert psnr(*drawn) >= 50
