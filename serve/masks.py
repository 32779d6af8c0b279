"""Masks as other programs have them, in the alpha of a picture or in grey, to ours: white where something new is drawn.

What comes in was checked for its format and size; it is decoded here.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps

from ..pipelines.images import open_image
from .errors import BadField, BadRequest
from .pictures import FORMATS

_HALF = 128  # of alpha: the web UI takes what is above


def from_alpha(data: bytes) -> bytes:
    """A PNG of OpenAI's mask: white where it is fully transparent.

    Raises:
        BadField: it has no alpha. BadRequest: it cannot be decoded.
    """
    alpha = _alpha(data)
    if alpha is None:
        raise BadField("The mask has no alpha.", "Send a PNG that is transparent where something new is drawn.", "mask")
    return as_png(alpha.point(lambda value: 0 if value else 255))


def as_grey(data: bytes) -> Image.Image:
    """The web UI's mask, mode L: its alpha where it is transparent anywhere, else its grey.

    Raises:
        BadRequest, BadInput: it cannot be decoded.
    """
    alpha = _alpha(data)
    if alpha is not None and alpha.getextrema() != (255, 255):
        return alpha.point(lambda value: 255 if value > _HALF else 0)
    return open_image(io.BytesIO(data)).convert("L")


def as_png(image: Image.Image) -> bytes:
    """A file that is read again at once: little time is spent on its size."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _alpha(data: bytes) -> Image.Image | None:
    """Mode L; None where the picture has none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if not image.has_transparency_data:
                return None
            return ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    except Exception as exc:  # decoders raise anything on damaged data
        raise BadRequest(f"The mask cannot be decoded: {exc}.", "Save it again, as a PNG.") from exc
