"""LoRAs and words of a pipeline that is open: laid on by name, by tag or from a picture, and taken off again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, UsageError
from vitrify.pipelines.adapters import parse_lora
from vitrify.pipelines.load import pipeline_of

pytest.importorskip("torch", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
REQUEST: dict[str, Any] = {"steps": 2, "guidance": 3.0, "seed": 5, "width": 64, "height": 64}


@pytest.fixture
def pipeline(artifact: Artifact) -> Iterator[Any]:
    opened = vitrify.load(artifact, "cpu")
    yield opened
    opened.close()


@pytest.fixture
def ink(factors: Any, save_kohya: Any) -> Path:
    path: Path = save_kohya(factors(6, rank=2), alpha=2.0, name="ink")
    return path


def drawn(pipeline: Any, prompt: str = "a castle", **more: Any) -> np.ndarray:
    return np.asarray(pipeline.generate(prompt, **REQUEST, **more).images[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ink", ("ink", 1.0)),
        ("ink:0.8", ("ink", (0.8, 0.8))),
        ("ink:0.5:-0.8", ("ink", (-0.8, 0.5))),
        ("C:/loras/ink.safetensors:0.8", ("C:/loras/ink.safetensors", (0.8, 0.8))),
        ("a:b", ("a:b", 1.0)),
    ],
)
def test_a_lora_on_the_command_line(text: str, expected: tuple[str, Any]) -> None:
    assert parse_lora(text) == expected


def test_a_name_a_path_and_a_tag_are_the_same_and_a_picture_says_how_to_draw_it_again(pipeline: Any, ink: Path) -> None:
    plain = drawn(pipeline)
    styled = drawn(pipeline, loras={str(ink): (0.8, 0.5)})
    assert not np.array_equal(styled, plain)
    with pytest.raises(BadInput, match="no LoRA 'ink'"):
        drawn(pipeline, "a castle <lora:ink:0.5:0.8>")
    pipeline.adapters.folder = ink.parent
    result = pipeline.generate("a castle <lora:ink:0.5:0.8>", **REQUEST)
    np.testing.assert_array_equal(np.asarray(result.images[0]), styled)
    assert result.parameters[0]["prompt"] == "a castle"
    again = pipeline.generate(**json.loads(json.dumps(result.parameters[0])))
    np.testing.assert_array_equal(np.asarray(again.images[0]), styled)
    pipeline.adapters.folder = None
    assert pipeline.adapters.add(ink, "pen") == "pen"
    np.testing.assert_array_equal(drawn(pipeline, loras={"pen": (0.8, 0.5)}), styled)
    for none in ({}, {"pen": 0.0}, {"pen": (0.0, 0.0)}):
        np.testing.assert_array_equal(drawn(pipeline, loras=none), plain)


def test_pictures_of_one_call_have_the_same_loras(pipeline: Any) -> None:
    with pytest.raises(BadInput, match="different LoRAs"):
        pipeline.generate(["a castle <lora:ink>", "a castle"], **REQUEST)


def test_a_word_is_taught_beside_a_lora_and_forgotten(pipeline: Any, ink: Path, tmp_path: Path) -> None:
    width = pipeline.sessions["text_encoder"].outputs["last_hidden_state"].shape[-1]
    vectors = np.random.default_rng(0).standard_normal((2, width)).astype(np.float32)
    save_file({"<toy>": vectors}, tmp_path / "toy.safetensors")
    prompt = "a <toy> castle"
    plain, styled = drawn(pipeline, prompt), drawn(pipeline, prompt, loras={str(ink): 0.8})
    assert pipeline.adapters.add_embedding(tmp_path / "toy.safetensors") == "<toy>"
    taught = drawn(pipeline, prompt), drawn(pipeline, prompt, loras={str(ink): 0.8})
    for one, before in zip(taught, (plain, styled), strict=True):
        assert not np.array_equal(one, before)
    assert not np.array_equal(*taught)
    with pytest.raises(BadInput, match="'<toy>' is taught already"):
        pipeline.adapters.add_embedding(tmp_path / "toy.safetensors")
    pipeline.adapters.forget_embeddings()
    np.testing.assert_array_equal(drawn(pipeline, prompt), plain)
    np.testing.assert_array_equal(drawn(pipeline, prompt, loras={str(ink): 0.8}), styled)


def test_sessions_of_the_callers_own_are_not_changed(pipeline: Any, artifact: Artifact, ink: Path) -> None:
    own: Any = pipeline_of(artifact, {n: pipeline.sessions[n] for n in ("text_encoder", "unet", "vae_decoder")})
    with pytest.raises(UsageError, match="sessions of its own"):
        drawn(own, loras={str(ink): 0.8})
