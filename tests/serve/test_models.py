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
from vitrify.serve.messages import Closed
from vitrify.serve.models import Models
from vitrify.serve.previews import Preview
from vitrify.serve.worker import Worker, WorkerSettings


@pytest.fixture
def copies(emotions_artifact: Path, tmp_path: Path) -> dict[str, Path]:
    for name in "abc":
        shutil.copytree(emotions_artifact, tmp_path / name)
    return {name: tmp_path / name for name in "abc"}


def test_the_one_that_was_used_longest_ago_makes_room(copies: dict[str, Path]) -> None:
    size, told = Artifact.load(copies["a"]).weight_bytes, []
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

    def preview(self, latents: Any) -> list[Image.Image] | None:
        """It has no decoder for previews."""
        return None

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


class Tiny(Linear):
    """One that has, whose pictures are green."""

    def preview(self, latents: Any) -> list[Image.Image]:
        return [Image.new("RGB", (512, 384), (0, 200, 0)) for _ in latents]


def test_a_decoder_for_previews_is_asked_instead() -> None:
    preview = Preview(Tiny())
    latents = np.zeros((2, 4, 48, 64), np.float32)
    preview.learn(latents[:1], [Image.new("RGB", (512, 384), (255, 0, 0))])
    shown = Image.open(io.BytesIO(preview.draw(latents).data))
    assert shown.size == (256, 192)
    assert np.abs(np.asarray(shown, int) - (0, 200, 0)).max() < 8


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


def test_a_model_and_its_controlnet_stay_open_together(
    copies: dict[str, Path], diffusion_artifact: Path, net_artifact: Path
) -> None:
    paths = {"a": copies["a"], "emoji": diffusion_artifact, "lines": net_artifact}
    drawing, net, labels = (Artifact.load(paths[name]).weight_bytes for name in ("emoji", "lines", "a"))
    told: list[tuple[str, str]] = []
    models = Models(
        paths, device="cpu", budget=drawing + max(net, labels), closed=lambda name, why: told.append((name, why))
    )
    models.get("lines")
    models.get("a") if labels <= drawing else None
    opened = models.together(["emoji", "lines"])
    assert opened == [models.get("emoji"), models.get("lines")]
    assert ("lines", "room for emoji") not in told, "it is wanted too"
    assert "a" not in models
    models.close_all()
    small = Models(paths, device="cpu", budget=max(drawing, net))
    small.get("a") if labels <= max(drawing, net) else None
    with pytest.raises(Unsupported, match=r"lines has .* may be opened beside emoji"):
        small.together(["emoji", "lines"])
    assert "emoji" in small
    small.close_all()


def test_embeddings_are_learned_where_they_fit(
    diffusion_artifact: Path, copies: dict[str, Path], embedding_file: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    save_file({"emb_params": np.zeros((1, 9), np.float32)}, tmp_path / "wide.safetensors")
    paths = {"emoji": diffusion_artifact, "a": copies["a"]}
    placed: dict[str, Any] = {}
    models = Models(
        paths, device="cpu", embeddings=[embedding_file, tmp_path / "wide.safetensors"],
        opened=lambda name, held, seconds, placement, pinned: placed.update({name: placement}),
    )  # fmt: skip
    pipeline = models.get("emoji")
    tokens = pipeline.family.tokenizers["text_encoder"].encode("zyx").ids[0]
    plain = pipeline.family.tokenizers["text_encoder"].encode("zy x").ids[0]
    assert (tokens != tokens[-1]).sum() == 3, "a start and two vectors"
    assert (tokens != plain).any()
    assert "9 numbers" in models.untaught("emoji")["wide"]
    assert set(placed["emoji"]) == {"text_encoder", "unet", "vae_decoder"}, "what they changed is open again"
    models.get("a")
    assert models.untaught("a") == {}
    models.close_all()


def test_a_preview_does_not_outlive_its_pipeline(diffusion_artifact: Path, emotions_artifact: Path) -> None:
    """It would open the decoder of a pipeline that was closed to make room, beside the new one."""

    class Pipe:
        def __init__(self) -> None:
            self.said: list[Any] = []

        def recv(self) -> Any:
            raise EOFError

        def send(self, message: Any) -> None:
            self.said.append(message)

    paths = {"draws": diffusion_artifact, "labels": emotions_artifact}
    budget = max(Artifact.load(path).weight_bytes for path in paths.values())
    pipe = Pipe()
    worker = Worker(pipe, WorkerSettings(paths, device="cpu", budget=budget))
    (pipeline,) = worker._models.together(["draws"])
    first = worker.preview_of("draws", pipeline)
    assert worker.preview_of("draws", pipeline) is first
    worker._models.together(["labels"])
    assert pipe.said[-2] == Closed("draws", "room for labels")
    (again,) = worker._models.together(["draws"])
    assert again is not pipeline
    assert worker.preview_of("draws", again) is not first
    worker._models.close_all()
