"""Optimum Intel runs what `vitrify compile --to openvino` writes of SD3 and Flux, from text and from a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.openvino_peers,
    pytest.mark.filterwarnings("ignore"),  # the libraries warn about each other
]

PROMPT, SEED = "a happy face", 5
SIZE = {"width": 48, "height": 32}
KINDS = {"sd3": "StableDiffusion3", "flux": "Flux"}
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
"""What vitrify asks of OpenVINO; by itself it computes float32 in bfloat16 on processors that have it."""


def psnr(a: Any, b: Any) -> float:
    mse = float(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean())
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


@pytest.mark.parametrize("family", KINDS)
def test_optimum_intel_draws_the_same_pictures(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import optimum.intel
    import torch

    import vitrify

    source = request.getfixturevalue(f"{family}_source")
    vitrify.export_model(source, tmp_path / "onnx")
    vitrify.compile_model(tmp_path / "onnx", tmp_path / "ours", to="openvino", verify=False)
    ours = vitrify.load(tmp_path / "ours", "cpu")
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    for task, given in (("", {}), ("Img2Img", {"image": start, "strength": 0.6})):
        kind = getattr(optimum.intel, f"OV{KINDS[family]}{task}Pipeline")
        theirs = kind.from_pretrained(tmp_path / "ours", ov_config=dict(EXACT))
        theirs.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 5, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(SEED)}
        drawn = theirs(PROMPT, **options, **SIZE, **given).images[0]
        expected = ours.generate(PROMPT, steps=5, guidance=3.0, seed=SEED, **SIZE, **given).images[0]
        assert np.asarray(expected).std() > 10
        assert psnr(drawn, expected) >= 50
