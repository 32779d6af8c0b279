"""Artifacts of every past schema stay readable and give what they gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.artifact import Artifact

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.mark.parametrize("schema", ["schema-1"])
def test_an_old_artifact_still_opens_and_classifies(schema: str) -> None:
    artifact = Artifact.load(FIXTURES / schema, checksums=True)
    assert artifact.model["architecture"] == "ViTForImageClassification"
    assert artifact.components["model"].proof["weights"]["tensors"] > 10
    ramp = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    [answer] = vitrify.load(artifact, "cpu").classify([Image.fromarray(ramp)], top_k=None)
    scores = {a["label"]: a["score"] for a in answer}
    assert scores == pytest.approx({"sad": 0.332069, "disgust": 0.33609, "angry": 0.331841}, abs=1e-5)
