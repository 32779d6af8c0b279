"""Pictures that a generation starts from: sized and scaled as the VAE wants them, and masks for inpainting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import BadInput, UsageError
from .random import FloatArray

Picture = Image.Image | Sequence[Image.Image]


@dataclass(frozen=True)
class Start:
    """Pictures and masks, ready.

    image: float32 [n, 3, height, width], -1..1. mask: float32 [n, 1, height, width], 1 where something new is drawn,
    0 where the picture stays; None for img2img.
    """

    image: FloatArray
    mask: FloatArray | None


def usual_strength(masked: bool) -> float:
    """How much of a picture is changed where nobody says: as diffusers' pipelines do, all of what a mask covers."""
    return 1.0 if masked else 0.8


def start_of(
    image: Picture | None, mask: Picture | None, strength: float, size: tuple[int, int], count: int
) -> Start | None:
    """The prepared pictures of a request; None where it starts from noise alone.

    Args:
        image, mask: RGB; a mask is read as grey, and what is 128 or above is drawn anew. One for all, or one a picture.
        strength: 0 to 1, how much is changed.
        size: (height, width) that the pictures are resized to, with Pillow's Lanczos filter, as diffusers does.

    Raises:
        BadInput: a mask without a picture, a mask of another size, another number of pictures, strength out of range.
    """
    if image is None:
        if mask is not None:
            raise BadInput("There is a mask but no picture that it belongs to.", "Give the picture too.")
        return None
    if not 0 < strength <= 1:
        raise UsageError(f"The strength is {strength}.", "Give one above 0 and at most 1: 1 changes the most.")
    images = pictures_of(image, count, "picture")
    pixels = stacked(images, count, lambda one: _signed(one, size))
    if mask is None:
        return Start(pixels, None)
    masks = pictures_of(mask, count, "mask")
    for number in range(max(len(images), len(masks))):
        one, covered = images[number % len(images)], masks[number % len(masks)]
        if one.size != covered.size:
            raise BadInput(
                f"The mask is {covered.width}x{covered.height}, its picture {one.width}x{one.height}.",
                "Give a mask of the picture's size.",
            )
    return Start(pixels, stacked(masks, count, lambda one: _binary(one, size)))


def made_up(tasks: Collection[str], size: tuple[int, int]) -> dict[str, Any]:
    """What a request holds besides its prompt where nobody gives a picture: for proofs, calibration and timing.

    Nothing for a model that draws from text alone; else a picture of coarse colours that is changed altogether, and a
    mask over its right half for a model that only draws into pictures.

    Args:
        tasks: of the manifest. size: (height, width) in pixels.
    """
    if "text2img" in tasks:
        return {}
    height, width = size
    coarse = np.random.default_rng(5).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    given: dict[str, Any] = {"strength": 1.0}
    given["image"] = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    if "img2img" not in tasks:
        mask = np.zeros((height, width), np.uint8)
        mask[:, width // 2 :] = 255
        given["mask"] = Image.fromarray(mask)
    return given


def to_latents(mask: FloatArray, size: tuple[int, int]) -> FloatArray:
    """A mask of pixels as one of latents, float32 [n, 1, h, w]: the nearest pixel above and left, as torch picks it."""
    rows = (np.arange(size[0]) * mask.shape[2]) // size[0]
    columns = (np.arange(size[1]) * mask.shape[3]) // size[1]
    picked: FloatArray = mask[:, :, rows][:, :, :, columns]
    return picked


def pictures_of(given: Picture, count: int, what: str) -> list[Image.Image]:
    """The pictures that are given: one, or `count`.

    Args:
        what: they are, in the message.

    Raises:
        BadInput: another number of them.
    """
    images = [given] if isinstance(given, Image.Image) else list(given)
    if len(images) not in (1, count):
        raise BadInput(f"There are {len(images)} {what}s for {count} pictures.", "Give one, or one for each.")
    return images


def stacked(images: Sequence[Image.Image], count: int, make: Callable[[Image.Image], FloatArray]) -> FloatArray:
    """What `make` gives of each, float32 [count, ...]; one alone is made once and stands for all."""
    rows = np.stack([make(one) for one in images])
    return np.repeat(rows, count, axis=0) if len(images) == 1 else rows


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """At (height, width), with Pillow's Lanczos filter, as diffusers' image processors do."""
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def _signed(image: Image.Image, size: tuple[int, int]) -> FloatArray:
    """float32 [3, height, width], -1..1."""
    pixels = np.asarray(resized(image.convert("RGB"), size), dtype=np.float32) / np.float32(255)
    scaled: FloatArray = np.float32(2) * pixels.transpose(2, 0, 1) - np.float32(1)
    return scaled


def _binary(image: Image.Image, size: tuple[int, int]) -> FloatArray:
    """float32 [1, height, width], 0 or 1."""
    plain = image if image.mode in ("L", "RGB") else image.convert("L")
    grey = np.asarray(resized(plain, size).convert("L"), dtype=np.float32) / np.float32(255)
    return (grey >= 0.5).astype(np.float32)[None]
