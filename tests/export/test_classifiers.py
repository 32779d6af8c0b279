"""The classifier architectures beside ViT go through the same code; small random models of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.errors import BadInput
from vitrify.export.job import ExportJob
from vitrify.export.source import open_source

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


def convnext(transformers: Any, edge: int = 64) -> tuple[Any, Any]:
    config = transformers.ConvNextConfig(
        hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1], image_size=64, id2label=LABELS
    )
    return transformers.ConvNextForImageClassification(config), transformers.ConvNextImageProcessor(
        size={"shortest_edge": edge}
    )


def convnext_at_another_size(transformers: Any) -> tuple[Any, Any]:
    """Its pictures are prepared larger than those it was trained on, as most of its checkpoints have it."""
    return convnext(transformers, edge=100)


def saved(made: tuple[Any, Any], folder: Path) -> Path:
    for part in made:
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [deit, swin, convnext, convnext_at_another_size])
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_other_classifiers_export_and_agree_with_transformers(make: Any, runtime: str, tmp_path: Path) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    import torch
    import transformers

    torch.manual_seed(0)
    model, processor = make(transformers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    artifact = vitrify.export_model(saved((model, processor), tmp_path / "source"), tmp_path / "artifact")
    proof = artifact.components["model"].proof
    assert proof["graph"]["relative"] <= 1e-4
    assert proof["numeric"]["relative"] <= 1e-4
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    with torch.inference_mode():
        logits = model.eval()(**processor(picture, return_tensors="pt")).logits
    expected = dict(zip(LABELS.values(), logits.softmax(-1)[0].tolist(), strict=True))
    [answer] = vitrify.load(artifact, "cpu", runtime=runtime).classify([picture], top_k=None)
    assert {a["label"]: a["score"] for a in answer} == pytest.approx(expected, abs=1e-3)


def test_a_convnext_takes_pictures_of_every_size(tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    model, processor = convnext(transformers)
    artifact = vitrify.export_model(saved((model, processor), tmp_path / "source"), tmp_path / "artifact")
    component = artifact.components["model"]
    assert component.inputs["pixel_values"].shape == ("batch", 3, "height", "width")
    assert component.shapes["height"] == component.shapes["width"] == (32, 64, 1024)
    sizes = [tuple(o["sizes"].values()) for o in component.proof["numeric"]["outputs"]]
    assert len(set(sizes)) == 2
    assert all(height != width for _, height, width in sizes)
    session = vitrify.load(artifact, "cpu").sessions["model"]
    for height, width in ((32, 32), (64, 64), (97, 210)):
        pixels = torch.randn(2, 3, height, width)
        with torch.inference_mode():
            expected = model.eval()(pixels).logits.numpy()
        got = session.run({"pixel_values": pixels.numpy()})["logits"]
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("make", [deit, swin])
def test_pictures_prepared_in_another_size_are_refused_before_anything_is_traced(make: Any, tmp_path: Path) -> None:
    import transformers

    model, _ = make(transformers)
    processor = transformers.ViTImageProcessor(size={"height": 96, "width": 80})
    source = open_source(saved((model, processor), tmp_path / "source"))
    stages: list[str] = []
    with pytest.raises(BadInput, match=r'takes pictures of 64x64 .* makes them sized 80x96.*"height": 64, "width": 64'):
        ExportJob(source, tmp_path / "out", report=lambda event: stages.append(event.stage)).run()
    assert stages == []
    assert not (tmp_path / "out").exists()
