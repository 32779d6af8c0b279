"""What a tool's file is given and gives back. Every environment reads it, so it imports Pillow only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLAIN = 1.0  # standard deviation of a channel, of 255, below which a picture shows nothing but rounding


@dataclass(frozen=True)
class Job:
    """A picture to draw.

    model: a file or folder in the tool's own format. noise: an .npy file with what to start from, float32
        [1, channels, height, width] of the latents, unit variance; a tool that cannot be given any draws the same
        numbers from `seed`.
    variant: what the row wants of the tool, in the words of the tool's file. side: pixels, of a square.
    """

    model: Path
    noise: Path
    variant: str
    prompt: str
    seed: int
    side: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Drawn:
    """pixels: a numpy array [height, width, 3], float from 0 to 1 or uint8, or a Pillow image.

    ends: the clock (`time.perf_counter`) at the end of each step that the tool told of.
    """

    pixels: Any
    ends: Sequence[float]


@dataclass
class Opened:
    """A tool that is ready. values: what else it can tell of itself, such as compile_s; read after the last picture."""

    draw: Callable[[], Drawn]
    values: dict[str, float] = field(default_factory=dict)


Opener = Callable[[Job], Callable[[], Opened]]
"""Imports the library and returns the function that opens the model, so that opening is timed without the imports."""


class NoPicture(Exception):
    """What was drawn is none: no figure of it may be told."""


def picture(pixels: Any) -> Any:
    """The pixels as a Pillow image.

    Raises:
        NoPicture: they hold NaN or infinity, or are all of one colour.
    """
    from PIL import Image, ImageStat

    image = pixels
    if not isinstance(pixels, Image.Image):
        if pixels.dtype.kind == "f":
            if not abs(pixels).max() < float("inf"):  # NaN compares as false, too
                raise NoPicture("The picture holds NaN or infinity.")
            pixels = (pixels.clip(0, 1) * 255).round().astype("uint8")
        image = Image.fromarray(pixels)
    image = image.convert("RGB")
    spread = max(ImageStat.Stat(image).stddev)
    if spread < PLAIN:
        raise NoPicture(f"The picture is plain: its channels vary by {spread:.2f} of 255 and a colour is all there is.")
    return image
