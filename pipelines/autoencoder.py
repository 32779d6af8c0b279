"""Pixels to latents and back, through a VAE's encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import BadInput
from ..runtimes.base import Session
from .components import budget_of
from .families.base import FloatArray, as_inputs, check_finite
from .images import to_uint8
from .random import Generator
from .tiling import tiled


class Autoencoder:
    """The sessions vae_decoder and vae_encoder, whose latents are shifted and scaled as the denoiser was trained.

    Args:
        settings: `vae` of a manifest's `pipeline`: scaling_factor and shift_factor.
        channels: of the latents. scale: pixels for one of them along a side.
        decoder: the component that decodes.

    tile: pixels along the side of a tile; larger pictures are done in tiles. None: whole, or as a budget wants it.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        settings: Mapping[str, Any],
        channels: int,
        scale: int,
        decoder: str = "vae_decoder",
    ) -> None:
        self.sessions = sessions
        self.decoder = decoder
        self.scale = scale
        self.tile: int | None = None
        self.scaling, self.shift = np.float32(settings["scaling_factor"]), np.float32(settings["shift_factor"])
        self.channels = channels

    def encode(self, pixels: FloatArray, noise: Generator | None, *, shifted: bool = True) -> FloatArray:
        """Pictures, float32 [n, 3, height, width] in -1..1, to latents, float32 [n, channels, h, w].

        An encoder that gives means and log variances is sampled from (Kingma and Welling, arXiv 1312.6114).

        Args:
            noise: what samples are drawn with; None: the means are taken.
            shifted: whether the VAE's shift is taken off.

        Raises:
            BadInput: the artifact has no encoder.
        """
        if "vae_encoder" not in self.sessions:
            raise BadInput("This artifact has no vae_encoder, so it reads no picture.", "Export it again.")
        tile = self._tile("vae_encoder", pixels.shape[2:])
        session = self.sessions["vae_encoder"]

        def run(part: FloatArray) -> FloatArray:
            out = session.run(as_inputs(session, {"sample": part}))
            return next(iter(out.values())).astype(np.float32, copy=False)

        found = np.concatenate([self._tiled(run, one[None], tile, encode=True) for one in pixels])
        check_finite("vae_encoder", found, "instead of latents")
        if found.shape[1] == 2 * self.channels:
            found, variances = np.split(found, 2, axis=1)
            if noise is not None:
                deviations = np.exp(np.float32(0.5) * np.clip(variances, -30, 20))
                found = found + deviations * noise.normal(found.shape)
        latents: FloatArray = (found - self.shift if shifted else found) * self.scaling
        return latents

    def draws(self, size: tuple[int, int], count: int, noise: Generator) -> None:
        """Take from `noise` what `encode` of `count` pictures would: diffusers encodes where nothing needs it."""
        given = next(iter(self.sessions["vae_encoder"].outputs.values())).shape[1]
        if given != self.channels:  # means and log variances; a tiny autoencoder's latents are not drawn
            noise.normal((count, self.channels, *size))

    def decode(self, latents: FloatArray) -> list[Image.Image]:
        """Latents, float32 [n, channels, h, w], to pictures; one at a time, for the VAE needs the most memory."""
        latents = latents / self.scaling + self.shift
        height, width = (side * self.scale for side in latents.shape[2:])
        tile = self._tile(self.decoder, (height, width))
        session = self.sessions[self.decoder]

        def run(part: FloatArray) -> FloatArray:
            return session.run(as_inputs(session, {"latent_sample": part}))["sample"].astype(np.float32, copy=False)

        out = []
        for one in latents:
            picture = self._tiled(run, one[None], tile, encode=False)
            check_finite(self.decoder, picture, "instead of a picture")
            out.append(Image.fromarray(to_uint8(picture)[0]))
        return out

    def _tile(self, name: str, size: tuple[int, int]) -> int | None:
        """The side of the tiles for a picture of (height, width) pixels; asked before the session is opened."""
        budget = budget_of(self.sessions)
        return self.tile if budget is None else budget.tile(name, size, self.tile)

    def _tiled(
        self, run: Callable[[FloatArray], FloatArray], given: FloatArray, tile: int | None, *, encode: bool
    ) -> FloatArray:
        if tile is None:
            return run(given)
        latents = max(1, tile // self.scale)
        pixels = latents * self.scale
        return tiled(run, given, pixels, latents) if encode else tiled(run, given, latents, pixels)
