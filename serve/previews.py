"""Latents to small pictures without the decoder: the linear map that fits best what the decoder drew before."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ..core.tensors import Array
from .jobs import Picture

_SIDE = 256  # pixels of the longer side
_QUALITY = 70


class Preview:
    """A picture of latents, learnt from pairs of latents and pictures by least squares.

    It starts from what the decoder draws of a few smooth latents, and learns from each picture that is drawn after.
    """

    def __init__(self, pipeline: Any) -> None:
        self._map: Array | None = None
        side = 8
        smooth = np.random.default_rng(0).standard_normal((4, pipeline.channels, 2, 2)).astype(np.float32)
        latents = smooth.repeat(side // 2, axis=2).repeat(side // 2, axis=3)
        self.learn(latents, pipeline.decode(latents))

    def learn(self, latents: Array, pictures: list[Image.Image]) -> None:
        """latents: float32 [n, channels, height, width], as the decoder was given them."""
        rows, colours = [], []
        for one, picture in zip(latents, pictures, strict=True):
            height, width = one.shape[1:]
            small = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BOX), np.float32)
            rows.append(_rows(one))
            colours.append(small.reshape(-1, 3))
        self._map = np.linalg.lstsq(np.concatenate(rows), np.concatenate(colours), rcond=None)[0]

    def draw(self, latents: Array) -> Picture:
        """Of the first of these latents, as JPEG."""
        assert self._map is not None
        height, width = latents.shape[2:]
        colours = np.clip(_rows(latents[0]) @ self._map, 0, 255).astype(np.uint8).reshape(height, width, 3)
        scale = max(1, _SIDE // max(height, width))
        picture = Image.fromarray(colours).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
        out = BytesIO()
        picture.save(out, "JPEG", quality=_QUALITY)
        return Picture(out.getvalue(), "jpeg")


def _rows(latents: Array) -> Array:
    """[channels, height, width] -> [height * width, channels + 1], the last column being 1."""
    flat = latents.reshape(len(latents), -1).T
    return np.concatenate([flat, np.ones((len(flat), 1), np.float32)], axis=1)
