"""Pictures from clients: known by their first bytes and measured by their header before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import warnings
from io import BytesIO

from PIL import Image

from .errors import BadRequest, TooLarge

FORMATS = ("PNG", "JPEG", "WEBP")
_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}


def kind_of(data: bytes) -> str | None:
    """PNG, JPEG or WEBP by the first bytes; None for anything else."""
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def checked(data: bytes, pixels: int) -> bytes:
    """The same bytes, where they are a picture of at most so many pixels by its own header.

    Raises:
        BadRequest: no PNG, JPEG or WebP, or a damaged header. TooLarge: more pixels.
    """
    kind = kind_of(data)
    if kind is None:
        raise BadRequest(
            "The data is no PNG, JPEG or WebP picture.", "Send the picture's own bytes, or base64 in JSON."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit; ours follows
            with Image.open(BytesIO(data), formats=[kind]) as image:
                width, height = image.size
                frames = getattr(image, "n_frames", 1) if kind == "WEBP" else 1
    except Image.DecompressionBombError as exc:
        raise TooLarge(f"The picture has too many pixels; {pixels} are taken.", "Send a smaller one.") from exc
    except Exception as exc:  # of a damaged file Pillow raises anything
        raise BadRequest(f"The {kind} picture is damaged: {type(exc).__name__}.", "Send it again.") from exc
    if width * height * max(1, frames) > pixels:
        raise TooLarge(f"The picture has {width}x{height} pixels; {pixels} are taken.", "Send a smaller one.")
    return data


def from_base64(text: str) -> bytes:
    """Bytes of base64, with or without `data:image/png;base64,` before it.

    Raises:
        BadRequest: it is an address, or no base64.
    """
    if text.startswith(("http://", "https://", "file:")):
        raise BadRequest("Addresses are not fetched.", "Send the picture itself, as base64.")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest("The picture is no base64.", "Send the picture's bytes as base64.") from exc
