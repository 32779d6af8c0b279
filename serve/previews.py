"""Latents to small pictures: by the model's decoder for previews, or the linear map that fits best what was drawn."""

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
    """A picture of latents: by the pipeline's decoder for previews where its artifact has one.

    Else learnt from pairs of latents and pictures by least squares: it starts from what the decoder draws of a few
    smooth latents, and learns from each picture that is drawn after.
    """

    def __init__(self, pipeline: Any) -> None:
        self._map: Array | None = None
        self._decode = pipeline.preview
        side = 8
        smooth = np.random.default_rng(0).standard_normal((4, pipeline.channels, 2, 2)).astype(np.float32)
        latents = smooth.repeat(side // 2, axis=2).repeat(side // 2, axis=3)
        self._decodes = self._decode(latents[:1]) is not None
        if not self._decodes:
            self.learn(latents, pipeline.decode(latents))

    def learn(self, latents: Array, pictures: list[Image.Image]) -> None:
        """latents: float32 [n, channels, height, width], as the decoder was given them."""
        if self._decodes:
            return
        rows, colours = [], []
        for one, picture in zip(latents, pictures, strict=True):
            height, width = one.shape[1:]
            small = np.asarray(picture.convert("RGB").resize((width, height), Image.Resampling.BOX), np.float32)
            rows.append(_rows(one))
            colours.append(small.reshape(-1, 3))
        self._map = np.linalg.lstsq(np.concatenate(rows), np.concatenate(colours), rcond=None)[0]

    def draw(self, latents: Array) -> Picture:
        """Of the first of these latents, as JPEG."""
        if self._decodes:
            picture = self._decode(latents[:1])[0].convert("RGB")
            picture.thumbnail((_SIDE, _SIDE))
        else:
            picture = self._mapped(latents[0])
        out = BytesIO()
        picture.save(out, "JPEG", quality=_QUALITY)
        return Picture(out.getvalue(), "jpeg")

    def _mapped(self, latents: Array) -> Image.Image:
        assert self._map is not None
        height, width = latents.shape[1:]
        colours = np.clip(_rows(latents) @ self._map, 0, 255).astype(np.uint8).reshape(height, width, 3)
        scale = max(1, _SIDE // max(height, width))
        return Image.fromarray(colours).resize((width * scale, height * scale), Image.Resampling.BICUBIC)


def _rows(latents: Array) -> Array:
    """[channels, height, width] -> [height * width, channels + 1], the last column being 1."""
    flat = latents.reshape(len(latents), -1).T
    return np.concatenate([flat, np.ones((len(flat), 1), np.float32)], axis=1)
