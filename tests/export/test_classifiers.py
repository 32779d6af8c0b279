"""The classifier architectures beside ViT go through the same code; small random models of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LABELS = {0: "sad", 1: "angry", 2: "happy"}


def deit(transformers: Any) -> tuple[Any, Any]:
    config = transformers.DeiTConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3, image_size=64, id2label=LABELS
    )
    size = {"height": 64, "width": 64}
    return transformers.DeiTForImageClassification(config), transformers.DeiTImageProcessor(size=size, crop_size=size)


def swin(transformers: Any) -> tuple[Any, Any]:
    config = transformers.SwinConfig(
        embed_dim=12, depths=[2, 2], num_heads=[3, 6], window_size=4, image_size=64, id2label=LABELS
    )
    processor = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    return transformers.SwinForImageClassification(config), processor


def convnext(transformers: Any) -> tuple[Any, Any]:
    config = transformers.ConvNextConfig(
        hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1], image_size=64, id2label=LABELS
    )
    return transformers.ConvNextForImageClassification(config), transformers.ConvNextImageProcessor(
        size={"shortest_edge": 64}
    )


@pytest.mark.parametrize("make", [deit, swin, convnext])
def test_other_classifiers_export_and_agree_with_transformers(make: Any, tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    model, processor = make(transformers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    source = tmp_path / "source"
    model.save_pretrained(source)
    processor.save_pretrained(source)
    artifact = vitrify.export_model(source, tmp_path / "artifact")
    proof = artifact.components["model"].proof
    assert proof["graph"]["relative"] <= 1e-4
    assert proof["numeric"]["relative"] <= 1e-4
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    [answer] = vitrify.load(artifact, "cpu").classify([picture], top_k=None)
    with torch.inference_mode():
        logits = model.eval()(**processor(picture, return_tensors="pt")).logits
    expected = dict(zip(LABELS.values(), logits.softmax(-1)[0].tolist(), strict=True))
    assert {a["label"]: a["score"] for a in answer} == pytest.approx(expected, abs=1e-3)
