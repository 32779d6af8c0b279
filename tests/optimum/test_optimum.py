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
