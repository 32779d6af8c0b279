"""Optimum runs our artifacts of SD3 and Flux unmodified, and its folders of them open as artifacts."""

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

PROMPT = "a happy face"
SIZE = {"width": 48, "height": 32}
KINDS = {"sd3": "StableDiffusion3", "flux": "Flux"}


def psnr(a: Any, b: Any) -> float:
    mse = float(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean())
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


@pytest.mark.parametrize("family", KINDS)
def test_optimum_draws_the_same_picture(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import optimum.onnxruntime
    import torch

    import vitrify

    source = request.getfixturevalue(f"{family}_source")
    vitrify.export_model(source, tmp_path / "ours")
    ours = vitrify.load(tmp_path / "ours", "cpu")
    kind = getattr(optimum.onnxruntime, f"ORT{KINDS[family]}Pipeline")
    theirs = kind.from_pretrained(tmp_path / "ours")
    drawn = theirs(
        PROMPT, num_inference_steps=4, guidance_scale=3.0, generator=torch.Generator().manual_seed(5), **SIZE
    ).images[0]
    expected = ours.generate(PROMPT, steps=4, guidance=3.0, seed=5, **SIZE).images[0]
    assert np.asarray(expected).std() > 10
    assert psnr(drawn, expected) >= 50


@pytest.mark.parametrize("family", KINDS)
def test_a_folder_that_optimum_wrote_opens(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import optimum.onnxruntime

    import vitrify

    source = request.getfixturevalue(f"{family}_source")
    vitrify.export_model(source, tmp_path / "ours")
    kind = getattr(optimum.onnxruntime, f"ORT{KINDS[family]}Pipeline")
    kind.from_pretrained(str(source), export=True).save_pretrained(tmp_path / "theirs")
    options = {"steps": 4, "guidance": 3.0, "seed": 5, **SIZE}
    drawn = [vitrify.load(tmp_path / n, "cpu").generate(PROMPT, **options).images[0] for n in ("ours", "theirs")]
    assert psnr(*drawn) >= 50
