"""Control pictures from photographs: what a ControlNet was trained to follow, white on black.

Edges as OpenCV's Canny finds them, since that is what the canny ControlNets have seen; lines darker than their
surroundings; and whatever an estimator in ONNX, which the user brings, makes of a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module  # for libraries without types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.errors import MissingDependency, UsageError
from .control_estimator import estimated

__all__ = ["KINDS", "canny", "control_picture", "estimated", "lineart"]

KINDS = ("picture", "canny", "lineart", "depth", "lines", "colours", "pose")
"""What `control_picture` makes: "picture" takes it as it is, "depth" and what follows need an estimator."""

LOW, HIGH = 100, 200
"""OpenCV's thresholds in the scripts that the canny ControlNets were trained and shown with (arXiv 2302.05543)."""

_SHIFT = 15  # bits behind the point of the tangent
_TANGENT = 13573  # of 22.5 degrees
_LINE_SIGMA = 6.0  # pixels: what is darker than its surroundings of this size is a line
_LINE_LEAST = 8  # of 255: less is paper
_LINE_FLOOR = 16  # of 255: a drawing of faint lines alone is not made louder than this

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


def control_picture(image: Image.Image, kind: str = "picture", estimator: str | Path | None = None) -> Image.Image:
    """The control picture of this kind, RGB in the size of `image`.

    Args:
        kind: one of `KINDS`; of an estimator also with the scaling of what it takes, as in "depth:imagenet".
        estimator: the .onnx file that "depth", "lines", "colours" and "pose" need.

    Raises:
        UsageError: no such kind or scaling, or an estimator that is missing or not needed.
        BadInput: the estimator is no ONNX file or gives something else.
        MissingDependency: scikit-image or onnxruntime is not installed.
    """
    name, _, scaling = kind.partition(":")
    plain: dict[str, Callable[[Image.Image], Image.Image]] = {"picture": _as_is, "canny": canny, "lineart": lineart}
    if name not in KINDS or (scaling and name in plain):
        raise UsageError(f"There is no control picture {kind!r}.", f"Give one of {', '.join(KINDS)}.")
    if name in plain:
        if estimator is not None:
            raise UsageError(f"{name} needs no estimator.", "Leave it out.")
        return plain[name](image)
    if estimator is None:
        raise UsageError(f"{name} needs an estimator, and none is built in.", f"Name its file: {name}=FILE.onnx.")
    return estimated(image, estimator, name, scaling or "unit")


def _as_is(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def canny(image: Image.Image, low: float = LOW, high: float = HIGH, sigma: float = 0.0) -> Image.Image:
    """Edges one pixel wide (Canny 1986), pixel for pixel those of OpenCV's `Canny(picture, low, high)`.

    Args:
        low, high: of the gradient's size (|dx| + |dy| of Sobel's 3x3 kernels over 0..255): a curve of pixels above
            `low` is kept where it has one above `high`.
        sigma: pixels of a Gaussian that smooths the picture first; 0 for none, as OpenCV.

    Raises:
        UsageError: thresholds or a sigma that make no sense.
        MissingDependency: scikit-image is not installed.
    """
    if not (math.isfinite(low) and math.isfinite(high) and 0 <= low <= high):
        raise UsageError(f"The thresholds are {low} and {high}.", "Give two numbers, the lower first, from 0 on.")
    if not (math.isfinite(sigma) and sigma >= 0):
        raise UsageError(f"sigma is {sigma}.", "Give 0 or more pixels.")
    pixels = np.asarray(image.convert("RGB"))
    if sigma:
        pixels = _smooth(pixels.astype(np.float32), sigma).round().astype(np.uint8)
    dx, dy = _strongest_gradient(pixels)
    size = np.abs(dx) + np.abs(dy)
    thin = _is_ridge(dx, dy, size) & (size > math.floor(low))
    strong = thin & (size > math.floor(high))
    return _as_picture(_connected(thin, strong).astype(np.uint8) * 255)


def lineart(image: Image.Image) -> Image.Image:
    """Lines, white where the picture is darker than its surroundings; for the lineart and scribble ControlNets.

    A pen drawing keeps its lines, a photograph gets the outlines of what is dark. No network is asked, so a
    ControlNet that was trained on the drawings of one sees simpler lines than it knows.

    Raises:
        MissingDependency: scikit-image is not installed.
    """
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    darker = (_smooth(pixels, _LINE_SIGMA) - pixels).min(axis=2).clip(0)
    lines = darker[darker > _LINE_LEAST]
    typical = max(float(np.median(lines)) if lines.size else 0.0, _LINE_FLOOR)
    return _as_picture((darker / typical * 127).clip(0, 255).astype(np.uint8))


def _strongest_gradient(pixels: npt.NDArray[np.uint8]) -> tuple[Integers, Integers]:
    """Sobel's dx and dy, int32 [h, w], of the channel in which they are largest; [h, w, 3] at the edges repeated."""
    padded = np.pad(pixels.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    dx, dy = across[:, 2:] - across[:, :-2], down[2:] - down[:-2]
    chosen = (np.abs(dx) + np.abs(dy)).argmax(axis=2)[..., None]
    return np.take_along_axis(dx, chosen, 2)[..., 0], np.take_along_axis(dy, chosen, 2)[..., 0]


def _is_ridge(dx: Integers, dy: Integers, size: Integers) -> npt.NDArray[np.bool_]:
    """Where the gradient is larger than at both neighbours along it; those lie in one of four directions."""
    padded = np.pad(size, 1)
    height, width = size.shape

    def neighbour(row: int, column: int) -> Integers:
        part: Integers = padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]
        return part

    x = np.abs(dx).astype(np.int64)
    y = np.abs(dy).astype(np.int64) << _SHIFT
    flat = x * _TANGENT
    level, upright = y < flat, y > flat + (x << (_SHIFT + 1))
    falling = (dx ^ dy) >= 0
    # of a ridge two pixels wide one side is kept, by these signs
    beside = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    above = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    slanted = np.where(
        falling,
        (size > neighbour(-1, -1)) & (size > neighbour(1, 1)),
        (size > neighbour(-1, 1)) & (size > neighbour(1, -1)),
    )
    found: npt.NDArray[np.bool_] = np.where(level, beside, np.where(upright, above, slanted))
    return found


def _connected(thin: npt.NDArray[np.bool_], strong: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The curves of `thin`, in eight directions, that have a pixel of `strong`."""
    labels = _skimage("skimage.measure").label(thin, connectivity=2)
    kept = np.zeros(int(labels.max()) + 1, bool)
    kept[labels[strong]] = True
    found: npt.NDArray[np.bool_] = kept[labels] & thin
    return found


def _smooth(pixels: Floats, sigma: float) -> Floats:
    """A Gaussian over float32 [h, w, 3], the picture's edges repeated."""
    smoothed = _skimage("skimage.filters").gaussian(pixels, sigma, mode="nearest", channel_axis=2, preserve_range=True)
    return np.asarray(smoothed, np.float32)


def _as_picture(grey: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(grey).convert("RGB")


def _skimage(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as exc:
        raise MissingDependency(
            "Control pictures need scikit-image, which does not import here.", 'pip install "vitrify[control]"'
        ) from exc
