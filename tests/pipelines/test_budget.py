"""A bound for memory: components in turn, tiles, one row a call; the same picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.core.errors import DeviceError, UsageError
from vitrify.core.machine import resident
from vitrify.pipelines.budget import VAE_PIXEL, Budget, parse_bytes, session_bytes
from vitrify.proof.quality import psnr

PROMPT = "a red apple"


@pytest.mark.parametrize(
    ("text", "size"), [("6GB", 6 * 10**9), ("800 mb", 8 * 10**8), ("2GiB", 2 << 30), ("1.5g", 15 * 10**8), ("512", 512)]
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0GB", "6 TB", "six", "6GBB"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="no amount of memory") as caught:
        parse_bytes(text)
    assert "6GB" in caught.value.fix


def test_a_session_holds_the_weights_that_its_graph_names(diffusion_artifact: Path) -> None:
    """The VAE's file holds the encoder's weights too, so the decoder needs less than the file."""
    components = Artifact.load(diffusion_artifact).components
    decoder, encoder = session_bytes(components["vae_decoder"]), session_bytes(components["vae_encoder"])
    file = sum(w.bytes for w in components["vae_decoder"].weights)
    widened = 2  # stored in float16, computed in float32
    assert 0.9 * widened * file < decoder + encoder < 1.2 * widened * file
    assert decoder < 0.8 * widened * file


def test_components_in_turn_draw_the_same_picture(diffusion_artifact: Path) -> None:
    wanted = vitrify.load(diffusion_artifact, "cpu")
    plain = wanted.generate(PROMPT, steps=4, seed=3, batch=2)
    wanted.close()
    assert plain.memory is None
    sizes = {n: session_bytes(c) for n, c in Artifact.load(diffusion_artifact).components.items()}
    # the UNet fits, and nothing beside it
    limit = resident() + sizes["unet"] + sizes["text_encoder"] // 2
    pipeline = vitrify.load(diffusion_artifact, "cpu", memory=limit)
    assert list(pipeline.sessions) == []
    for _ in range(2):
        result = pipeline.generate(PROMPT, steps=4, seed=3, batch=2)
        assert result.memory is not None
        assert result.memory["budget"] == limit
        assert result.memory["peak"] > 0
        assert "text_encoder closed for unet" in result.memory["done"]
        assert "unet called once a row" in result.memory["done"]
        assert result.placement == plain.placement, "what was closed ran too"
        for mine, other in zip(result.images, plain.images, strict=True):
            assert psnr(np.asarray(mine), np.asarray(other)) >= 50
    assert "unet" not in list(pipeline.sessions) or len(list(pipeline.sessions)) == 1
    pipeline.close()


def test_a_component_that_does_not_fit_alone_is_refused_at_once(diffusion_artifact: Path) -> None:
    with pytest.raises(DeviceError, match="alone needs about") as caught:
        vitrify.load(diffusion_artifact, "cpu", memory=1_000_000)
    assert "Allow --memory" in caught.value.fix


def test_tiles_are_as_large_as_what_is_left() -> None:
    def budget(left: int) -> Budget:
        return Budget(left + 300, 100, {"vae_decoder": 200})

    assert budget(512 * 512 * VAE_PIXEL).tile("vae_decoder", (512, 512)) is None
    tight = budget(384 * 384 * VAE_PIXEL)
    assert tight.tile("vae_decoder", (1024, 512)) == 384
    assert tight.notes == ["vae_decoder in tiles of 384x384 pixels"]
    assert tight.needs("vae_decoder") == 200 + 384 * 384 * VAE_PIXEL
    assert budget(0).tile("vae_decoder", (512, 512)) == 256
    chosen = budget(0)
    assert chosen.tile("vae_decoder", (1024, 320), 512) == 512
    assert (chosen.notes, chosen.work) == ([], {"vae_decoder": 512 * 320 * VAE_PIXEL})


def test_the_command_tells_what_was_done(diffusion_artifact: Path, tmp_path: Path, vitrify: Callable[..., Any]) -> None:
    picture = tmp_path / "a.png"
    done = vitrify("generate", diffusion_artifact, PROMPT, "-o", picture, "--steps", 2, "--memory", "2GB", "--json")
    assert done.code == 0, done.err
    assert done.json["memory"]["budget"] == 2 * 10**9
    assert 0 < done.json["memory"]["peak"] < 2 * 10**9
    refused = vitrify("generate", diffusion_artifact, PROMPT, "-o", picture, "--memory", "much", "--json")
    assert refused.code == 2
    assert "no amount of memory" in refused.error["what"]
