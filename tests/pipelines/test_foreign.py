"""Folders without a manifest, in Optimum's layout, open and run; one that is damaged is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.artifact import MANIFEST, is_artifact
from vitrify.core.errors import BadArtifact, BadInput
from vitrify.pipelines.foreign import is_foreign
from vitrify.pipelines.load import open_artifact


@pytest.fixture
def diffusion(diffusion_artifact: Path, tmp_path: Path) -> Path:
    return stripped(diffusion_artifact, tmp_path / "diffusion")


@pytest.fixture
def emotions(emotions_artifact: Path, tmp_path: Path) -> Path:
    return stripped(emotions_artifact, tmp_path / "emotions")


def stripped(artifact: Path, target: Path) -> Path:
    shutil.copytree(artifact, target)
    (target / MANIFEST).unlink()
    return target


def test_it_is_recognized_by_its_layout(diffusion: Path, emotions: Path, emotions_source: Path) -> None:
    assert [is_foreign(diffusion), is_foreign(emotions)] == [True, True]
    assert [is_artifact(diffusion), is_foreign(emotions_source)] == [False, False]


def test_it_draws_the_same_picture_and_claims_no_proof(diffusion: Path, diffusion_artifact: Path) -> None:
    opened = open_artifact(diffusion)
    assert {str(c.proof[k]) for c in opened.components.values() for k in ("graph", "weights", "numeric")} == {"not run"}
    assert opened.proof["images"] == "not run"
    assert set(opened.components) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert opened.model["architecture"] == "StableDiffusionPipeline"
    drawn = []
    for one in (opened, diffusion_artifact):
        pipeline = vitrify.load(one, "cpu")
        drawn.append(np.asarray(pipeline.generate("a blue car", steps=5, seed=4, width=96, height=64).images[0]))
        pipeline.close()
    np.testing.assert_array_equal(*drawn)
    assert not (diffusion / MANIFEST).exists(), "nothing is written into a folder that is not ours"


def test_it_gives_the_same_labels(emotions: Path, emotions_artifact: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    answers = []
    for one in (emotions, emotions_artifact):
        pipeline = vitrify.load(one, "cpu")
        answers.append(pipeline.classify([picture], top_k=None))
        pipeline.close()
    assert answers[0] == answers[1]


def test_the_command_line_takes_it(vitrify: Callable[..., Any], emotions: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), (240, 200, 30)).save(tmp_path / "one.png")
    labels = vitrify("classify", emotions, tmp_path / "one.png", "--json")
    assert labels.code == 0, labels.err
    assert len(labels.json["results"][0]["labels"]) == 5
    seen = vitrify("inspect", emotions, "--json")
    assert seen.code == 0, seen.err
    assert seen.json["components"]["model"]["proof"] == {"graph": "not run", "weights": "not run", "numeric": "not run"}


def test_it_can_be_verified_against_the_source(
    vitrify: Callable[..., Any], emotions: Path, emotions_source: Path
) -> None:
    done = vitrify("verify", emotions, "--against", emotions_source, "--json")
    assert done.code == 0, done.err
    assert done.json["components"]["model"]["numeric"]["relative"] <= 1e-4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.onnx", b"not a graph"),
        ("model.onnx", b""),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("preprocessor_config.json", None),
        ("model.safetensors", None),
        ("model.safetensors", b"short"),
    ],
)
def test_a_damaged_one_is_refused(
    vitrify: Callable[..., Any], emotions: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    (emotions / name).unlink()
    if content is not None:
        (emotions / name).write_bytes(content)
    with pytest.raises(BadArtifact):
        vitrify_load(emotions)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    done = vitrify("classify", emotions, tmp_path / "one.png", "--json")
    assert (done.code, done.error["code"]) == (6, "bad_artifact"), done.err
    assert "Traceback" not in done.err


def vitrify_load(folder: Path) -> Any:
    return vitrify.load(folder, "cpu")


def test_a_config_that_lacks_what_is_needed_is_refused(diffusion: Path) -> None:
    config = json.loads((diffusion / "unet/config.json").read_text())
    del config["block_out_channels"]
    (diffusion / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="block_out_channels"):
        open_artifact(diffusion)
