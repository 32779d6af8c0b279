"""The VAE in tiles, as diffusers' own tiling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vitrify
from vitrify.pipelines.tiling import tiled
from vitrify.proof.quality import psnr

diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
torch = pytest.importorskip("torch", reason="needs the extra export")


def test_decoding_in_tiles_equals_diffusers(diffusion_artifact: Path, diffusion_source: Path) -> None:
    theirs = diffusers.AutoencoderKL.from_pretrained(diffusion_source / "vae", torch_dtype=torch.float32)
    theirs.enable_tiling()
    pipeline = vitrify.load(diffusion_artifact, "cpu")
    theirs.tile_sample_min_size, theirs.tile_latent_min_size = 64, 64 // pipeline.scale
    latents = np.random.default_rng(0).normal(size=(1, pipeline.channels, 24, 30)).astype(np.float32)
    pipeline.vae.tile = 64
    mine = np.asarray(pipeline.decode(latents)[0])
    with torch.no_grad():
        out = theirs.decode(torch.from_numpy(latents) / theirs.config.scaling_factor).sample[0]
    other = ((out / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    pipeline.vae.tile = None
    whole = np.asarray(pipeline.decode(latents)[0])
    pipeline.close()
    assert mine.shape == other.shape == whole.shape
    assert psnr(mine, other) >= 50
    assert not np.array_equal(mine, whole), "the picture was not done in tiles"


def test_encoding_in_tiles_equals_diffusers(diffusion_artifact: Path, diffusion_source: Path) -> None:
    theirs = diffusers.AutoencoderKL.from_pretrained(diffusion_source / "vae", torch_dtype=torch.float32)
    theirs.enable_tiling()
    pipeline = vitrify.load(diffusion_artifact, "cpu")
    theirs.tile_sample_min_size, theirs.tile_latent_min_size = 64, 64 // pipeline.scale
    pixels = np.random.default_rng(0).uniform(-1, 1, size=(1, 3, 96, 160)).astype(np.float32)
    pipeline.vae.tile = 64

    class Zeros:
        def normal(self, shape: tuple[int, ...]) -> np.ndarray:
            return np.zeros(shape, np.float32)

    mine = pipeline.vae.encode(pixels, Zeros())
    pipeline.close()
    with torch.no_grad():
        other = theirs.encode(torch.from_numpy(pixels)).latent_dist.mean.numpy() * theirs.config.scaling_factor
    assert np.abs(mine - other).max() < 1e-4 * np.abs(other).max()


def test_what_fits_a_tile_is_done_whole() -> None:
    given = np.arange(2 * 16.0, dtype=np.float32).reshape(1, 2, 4, 4)
    calls = []

    def run(part: np.ndarray) -> np.ndarray:
        calls.append(part.shape)
        return part

    assert np.array_equal(tiled(run, given, 4, 4), given)
    assert calls == [(1, 2, 4, 4)]
    # what changes nothing comes out as it went in, however it is cut
    assert np.allclose(tiled(run, np.ones((1, 1, 13, 7), np.float32), 4, 4), 1)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 10])
def test_tiles_that_a_quarter_does_not_divide_lie_where_they_belong(side: int) -> None:
    """A ramp, enlarged by 8 and made smaller again: no pixel moves, and none is missing."""
    small = np.tile(np.arange(23, dtype=np.float32), (1, 1, 17, 1))
    large = small.repeat(8, 2).repeat(8, 3)
    found = tiled(lambda part: part.repeat(8, 2).repeat(8, 3), small, side, side * 8)
    np.testing.assert_allclose(found, large, atol=1e-4)
    found = tiled(lambda part: part[:, :, ::8, ::8], large, side * 8, side)
    np.testing.assert_allclose(found, small, atol=1e-4)
