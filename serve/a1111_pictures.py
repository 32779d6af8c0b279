"""Pictures of img2img as the web UI prepares them: sized, masked and filled; and what was drawn put back into them.

What is drawn by a mask lies under the picture that it was drawn for, softly where the mask is blurred: all that the
mask keeps stays as it was, to the pixel.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from ..pipelines.images import open_image
from .errors import BadField
from .masks import as_grey, as_png

RESIZE, CROP, FILL = 0, 1, 2
"""Ways to another shape: stretched; cut to it; whole, its edges repeated."""

Size = tuple[int, int]
Box = tuple[int, int, int, int]

_LANCZOS = Image.Resampling.LANCZOS
_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2))
"""Pixels of blur and how often it is laid on: from the picture's far colours to those at the mask's edge."""


@dataclass(frozen=True)
class Masking:
    """How a mask is meant. blur: pixels across and down. fill: whether what it covers takes the colours around it.

    only: whether just the part around it is drawn, at the full size, with so many pixels of `padding`.
    """

    invert: bool
    blur: tuple[float, float]
    fill: bool
    only: bool
    padding: int


@dataclass(frozen=True)
class Kept:
    """A picture that what is drawn goes into, as files: decoded it would lie in memory for as long as a job waits.

    mode, size: of what is drawn, as in `inpainting`.
    """

    image: bytes
    mask: bytes
    how: Masking
    mode: int
    size: Size

    def around(self, drawn: Iterable[Image.Image]) -> Iterator[Image.Image]:
        """Each with the picture around it."""
        picture, covered = _opened(self.image, self.mask, self.how)
        if self.how.only:
            box = region(covered, self.how.padding, self.size)
        else:
            box = (0, 0, *self.size)
            picture, covered = (sized(one, self.mode, self.size) for one in (picture, covered))
            # what is drawn goes to where the mask is half of white; beyond, it fades into what was there
            covered = covered.point(lambda value: min(255, 2 * value))
        left, top, right, bottom = box
        for one in drawn:
            placed = picture.copy()
            placed.paste(sized(one, CROP, (right - left, bottom - top)), (left, top))
            yield Image.composite(placed, picture, covered)


@dataclass(frozen=True)
class Prepared:
    """Files for a generation, and what its result goes into; mask and kept are None without a mask."""

    image: bytes
    mask: bytes | None = None
    kept: Kept | None = None


def prepared(image: bytes, mode: int, size: Size) -> Prepared:
    """A picture for img2img. mode: RESIZE, CROP or FILL. size: width and height that are drawn.

    Raises:
        BadInput: it cannot be decoded.
    """
    return Prepared(as_png(sized(open_image(io.BytesIO(image)), mode, size)))


def inpainting(image: bytes, mask: bytes, how: Masking, mode: int, size: Size) -> Prepared:
    """A picture and a mask for inpainting.

    Raises:
        BadInput, BadRequest: one cannot be decoded. BadField: the mask has another size, or nothing to draw.
    """
    picture, covered = _opened(image, mask, how)
    if how.only:
        box = region(covered, how.padding, size)
        picture, covered = (sized(one.crop(box), FILL, size) for one in (picture, covered))
    else:
        picture, covered = (sized(one, mode, size) for one in (picture, covered))
    if how.fill:
        picture = filled(picture, covered)
    return Prepared(as_png(picture), as_png(covered), Kept(image, mask, how, mode, size))


def _opened(image: bytes, mask: bytes, how: Masking) -> tuple[Image.Image, Image.Image]:
    """The picture, RGB, and the mask, L, inverted and blurred as it is meant."""
    picture, covered = open_image(io.BytesIO(image)), as_grey(mask)
    if picture.size != covered.size:
        was = f"The mask is {covered.width}x{covered.height}, its picture {picture.width}x{picture.height}."
        raise BadField(was, "Give a mask of the picture's size.", "mask")
    if how.invert:
        covered = ImageOps.invert(covered)
    return picture, covered.filter(ImageFilter.GaussianBlur(how.blur)) if any(how.blur) else covered


def sized(image: Image.Image, mode: int, size: Size) -> Image.Image:
    """The picture, L or RGB, at `size`, by Pillow's Lanczos filter."""
    if mode == CROP:
        return ImageOps.fit(image, size, _LANCZOS)
    if mode != FILL:
        return image.resize(size, _LANCZOS)
    factor = min(size[0] / image.width, size[1] / image.height)
    inner = (_side(image.width * factor, size[0]), _side(image.height * factor, size[1]))
    pixels = np.asarray(image.resize(inner, _LANCZOS))
    before = [(outer - side) // 2 for outer, side in zip(size, inner, strict=True)]
    after = [outer - side - first for outer, side, first in zip(size, inner, before, strict=True)]
    margins = [(before[1], after[1]), (before[0], after[0]), (0, 0)]
    return Image.fromarray(np.pad(pixels, margins[: pixels.ndim], mode="edge"))


def _side(pixels: float, most: int) -> int:
    return max(1, min(most, round(pixels)))


def region(mask: Image.Image, padding: int, size: Size) -> Box:
    """What the mask, L, covers at all, with `padding` around it, in the shape of `size` as far as the picture reaches.

    Raises:
        BadField: it covers nothing.
    """
    found = mask.getbbox()
    if found is None:
        raise BadField("The mask is black all over.", "Make it white where something new is drawn.", "mask")
    left, top, right, bottom = found
    left, right = max(0, left - padding), min(mask.width, right + padding)
    top, bottom = max(0, top - padding), min(mask.height, bottom + padding)
    width, height = right - left, bottom - top
    if width * size[1] < height * size[0]:
        left, right = _widened(left, right, round(height * size[0] / size[1]), mask.width)
    else:
        top, bottom = _widened(top, bottom, round(width * size[1] / size[0]), mask.height)
    return left, top, right, bottom


def _widened(start: int, end: int, length: int, most: int) -> tuple[int, int]:
    """A span of `length` about the same middle, moved and at last cut to lie within 0 and `most`."""
    length = min(length, most)
    first = max(0, min(most - length, start - (length - (end - start)) // 2))
    return first, first + length


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture, RGB, with what the mask, L of its size, covers painted over in the colours around it."""
    bare = Image.new("RGBa", image.size)
    bare.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    painted = Image.new("RGBA", image.size)
    for pixels, times in _BLURS:
        layer = bare.filter(ImageFilter.GaussianBlur(pixels)).convert("RGBA")
        for _ in range(times):
            painted.alpha_composite(layer)
    painted.alpha_composite(bare.convert("RGBA"))
    return painted.convert("RGB")
