"""Models of a worker: opened on demand, within a budget, and how pictures of steps are drawn."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadArtifact
from vitrify.serve.errors import UnknownModel, Unsupported
from vitrify.serve.models import Models, weights_of
from vitrify.serve.previews import Preview


@pytest.fixture
def copies(emotions_artifact: Path, tmp_path: Path) -> dict[str, Path]:
    for name in "abc":
        shutil.copytree(emotions_artifact, tmp_path / name)
    return {name: tmp_path / name for name in "abc"}


def test_the_one_that_was_used_longest_ago_makes_room(copies: dict[str, Path]) -> None:
    size, told = weights_of(Artifact.load(copies["a"])), []
    models = Models(
        copies, device="cpu", budget=2 * size,
        opened=lambda name, held, seconds, placement, pinned: told.append((name, held, pinned)),
        closed=lambda name, why: told.append((name, why)),
    )  # fmt: skip
    first = models.get("a")
    models.get("b")
    assert models.get("a") is first
    assert not models.fits("c")
    models.get("c")
    assert told == [("a", size, False), ("b", size, False), ("b", "room for c"), ("c", size, False)]
    assert "b" not in models
    models.get("a", pinned=True)
    models.get("b")
    assert told[4:] == [("a", size, True), ("c", "room for b"), ("b", size, False)]
    models.get("c", pinned=True)
    with pytest.raises(Unsupported, match="0 MB may be opened"):
        models.get("b")
    assert models.close("a")
    assert not models.close("a")
    models.get("b")
    models.close_all()
    assert not any(name in models for name in copies)


def test_a_load_that_fails_leaves_the_others(copies: dict[str, Path]) -> None:
    models = Models(copies, device="cpu")
    opened = models.get("a")
    weights = max(copies["b"].rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:1000])
    for _ in range(2):
        with pytest.raises(BadArtifact, match=weights.name):
            models.get("b")
    with pytest.raises(UnknownModel, match="a, b, c"):
        models.get("d")
    assert models.get("a") is opened
    models.close_all()


class Linear:
    """A decoder that is linear: the case that a preview can learn exactly."""

    channels = 4
    _map = np.array([[40, 0, 0], [0, 40, 0], [0, 0, 40], [10, 10, 10]], np.float32)

    def decode(self, latents: Any) -> list[Image.Image]:
        flat = np.moveaxis(latents, 1, 3) @ self._map + 128
        return [Image.fromarray(np.clip(one, 0, 255).astype(np.uint8)).resize((64, 64)) for one in flat]


def test_a_preview_learns_what_the_decoder_draws() -> None:
    decoder = Linear()
    preview = Preview(decoder)
    latents = np.random.default_rng(3).standard_normal((1, 4, 8, 8)).astype(np.float32)
    latents = latents.repeat(4, axis=2).repeat(4, axis=3)
    shown = preview.draw(latents)
    assert shown.media_type == "image/jpeg"
    drawn = np.asarray(Image.open(io.BytesIO(shown.data)).resize((32, 32), Image.Resampling.BOX), np.float32)
    truth = np.asarray(decoder.decode(latents)[0].resize((32, 32), Image.Resampling.BOX), np.float32)
    assert np.abs(drawn - truth).mean() < 8


def test_previews_of_the_built_in_model_come_to_look_like_the_picture(diffusion_artifact: Path) -> None:
    from vitrify.pipelines.load import load

    pipeline: Any = load(diffusion_artifact, "cpu")
    seen: list[Any] = []
    drawn = pipeline.generate(
        "a red apple", steps=8, guidance=3, seed=0, on_step=lambda step: seen.append(step.latents)
    )
    preview = Preview(pipeline)
    preview.learn(seen[-1], drawn.images)
    truth = np.asarray(drawn.images[0].resize((16, 16), Image.Resampling.BOX), np.float32)

    def error(latents: Any) -> float:
        shown = Image.open(io.BytesIO(preview.draw(latents).data)).resize((16, 16), Image.Resampling.BOX)
        return float(np.abs(np.asarray(shown, np.float32) - truth).mean())

    assert error(seen[-1]) < 15
    assert error(seen[-1]) < error(seen[0]) / 2
    pipeline.close()
