"""Pictures from clients: known by their first bytes and measured by their header before anything is decoded.

The headers are read here and not by Pillow, which unpacks texts and profiles, joins metadata and looks at every byte
between two segments when it opens a file: seconds and gigabytes for a file of a few megabytes. What passes has few
enough parts that opening it costs little.

Sources: PNG (W3C, third edition), 5.3 and 11.2.1; JPEG (ITU T.81), annex B; WebP container (RFC 9649), 2.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO

from PIL import Image

from .errors import BadField, BadRequest, TooLarge

FORMATS = ("PNG", "JPEG", "WEBP")
_MAGIC = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_PARTS = 20_000  # chunks of a PNG (64 MB in pieces of 8 kB, and more) or a WebP
_SEGMENTS = 1_000  # of a JPEG before its pixels
_SCANS = 100  # of a JPEG: each goes over all pixels
_JUNK = 4096  # bytes between a JPEG's segments
_EXIF = 64 * 1024  # bytes: what a JPEG can hold; a table in it may name the same bytes thousands of times
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # EXIF 2.32, 4.6.4
_PROFILE = 64  # segments of Photoshop's data in a JPEG, which are read entry by entry
_TEXTS, _TEXT = 64, 1_000_000  # of a PNG: how many, and their characters together
_TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")
_NO_SIZE = frozenset((0x01, *range(0xD0, 0xD9)))  # JPEG's markers without a segment
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those with the size


def kind_of(data: bytes) -> str | None:
    """PNG, JPEG or WEBP by the first bytes; None for anything else."""
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            return kind
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def checked(data: bytes, pixels: int) -> bytes:
    """The same bytes, where they are a picture of at most so many pixels by its own header.

    Raises:
        BadRequest: no PNG, JPEG or WebP, or a damaged header. TooLarge: more pixels, or more parts than pictures have.
    """
    width, height, frames = size_of(data)
    if width * height * frames > pixels:
        times = f" in {frames} frames" if frames > 1 else ""
        raise TooLarge(f"The picture has {width}x{height} pixels{times}; {pixels} are taken.", "Send a smaller one.")
    return data


def all_checked(texts: Mapping[str, str], pixels: int) -> dict[str, bytes]:
    """Field -> the picture that it holds as base64; all of them together, as they are decoded, of so many pixels.

    Raises:
        BadField: a field holds no picture, or a damaged one. TooLarge: more pixels, or more parts than pictures have.
    """
    found, left = {}, pixels
    for name, text in texts.items():
        try:
            found[name] = checked(from_base64(text), left)
        except BadRequest as exc:
            raise BadField(exc.what, exc.fix, name) from exc
        left -= math.prod(size_of(found[name]))
    return found


def size_of(data: bytes) -> tuple[int, int, int]:
    """Width, height, and frames (of an animated WebP), by the header.

    Raises:
        BadRequest: no PNG, JPEG or WebP, or a damaged header. TooLarge: more parts than pictures have.
    """
    kind = kind_of(data)
    if kind is None:
        raise BadRequest(
            "The data is no PNG, JPEG or WebP picture.", "Send the picture's own bytes, or base64 in JSON."
        )
    try:
        width, height, frames = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}[kind](data)
    except (struct.error, IndexError) as exc:
        raise _damaged(kind, "it ends too soon") from exc
    if not width or not height:
        raise _damaged(kind, f"it has {width}x{height} pixels")
    return width, height, frames


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of a checked picture once it is turned as its EXIF says, as it is when it is decoded.

    Raises:
        BadRequest, TooLarge: as `size_of`.
    """
    width, height, _ = size_of(data)
    exif = Image.Exif()
    try:
        if kind_of(data) == "PNG":  # which Pillow would decode to see what stands behind the pixels
            exif.load(next((bytes(part) for kind, part in _chunks(data) if kind == b"eXIf"), b""))
        else:
            with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(data), formats=FORMATS) as image:
                exif = image.getexif()
        turned = exif.get(_ORIENTATION) in _ON_ITS_SIDE
    except Exception:  # Pillow raises anything on a damaged header; what decodes the picture says so
        turned = False
    return (height, width) if turned else (width, height)


def texts_of(data: bytes) -> dict[str, str]:
    """The texts of a PNG, key -> text; nothing of other formats. No pixel is decoded.

    Raises:
        BadRequest: the PNG is damaged. TooLarge: more text than a picture's parameters are.
    """
    found: dict[str, str] = {}
    room = _TEXT
    for kind, part in _chunks(data) if kind_of(data) == "PNG" else ():
        if kind in _TEXT_KINDS:
            key, text = _text(kind, bytes(part), room)
            room -= len(text)
            found[key] = text
    return found


def from_base64(text: str) -> bytes:
    """Bytes of base64, with or without `data:image/png;base64,` before it.

    Raises:
        BadRequest: it is an address, or no base64.
    """
    if text[:10].lower().startswith(("http://", "https://", "file:")):
        raise BadRequest("Addresses are not fetched.", "Send the picture itself, as base64.")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest("The picture is no base64.", "Send the picture's bytes as base64.") from exc


def _png(data: bytes) -> tuple[int, int, int]:
    """The first chunk says the size; a second one of its kind would say another."""
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if (length, kind) != (13, b"IHDR"):
        raise _damaged("PNG", "it does not begin with its header")
    if zlib.crc32(data[12:29]) != struct.unpack_from(">I", data, 29)[0]:
        raise _damaged("PNG", "the checksum of its header is wrong")
    seen: dict[bytes, int] = {}
    for kind, part in _chunks(data):
        seen[kind] = seen.get(kind, 0) + 1
        if kind == b"eXIf" and len(part) > _EXIF:
            raise _too_much("PNG", "much EXIF")
    if b"IDAT" not in seen:
        raise _damaged("PNG", "it has no pixels")
    if seen[b"IHDR"] > 1:
        raise _damaged("PNG", "it has two headers")
    if sum(seen.get(kind, 0) for kind in _TEXT_KINDS) > _TEXTS:
        raise _too_much("PNG", "many texts")
    return width, height, 1


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """A PNG's chunks up to its end, or to where it was cut off within its pixels: a decoder says how far they go."""
    view, at = memoryview(data), 8
    for _ in range(_PARTS):
        if len(data) - at < 12:
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, view[at + 8 : at + 8 + length]
        if kind == b"IEND":
            return
        if at + 12 + length > len(data) and kind != b"IDAT":
            raise _damaged("PNG", "it ends too soon")
        at += 12 + length
    raise _too_much("PNG", "many chunks")


def _text(kind: bytes, part: bytes, room: int) -> tuple[str, str]:
    key, _, rest = part.partition(b"\0")
    packed, coding = kind == b"zTXt", "latin-1"
    if packed:
        rest = rest[1:]
    elif kind == b"iTXt":
        packed, coding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        unpack = zlib.decompressobj()
        try:
            rest = unpack.decompress(rest, room + 1)
        except zlib.error as exc:
            raise _damaged("PNG", "a text of it cannot be unpacked") from exc
    if len(rest) > room:
        raise _too_much("PNG", "much text")
    return key.decode("latin-1"), rest.decode(coding, "replace")


def _jpeg(data: bytes) -> tuple[int, int, int]:
    """A frame's segment says the size, before the first scan."""
    if data.count(b"\xff\xda") > _SCANS:
        raise _too_much("JPEG", "many scans")
    size: tuple[int, int] | None = None
    at, junk, exif, photoshop = 2, 0, 0, 0
    for _ in range(_SEGMENTS):
        found = data.find(b"\xff", at, at + _JUNK)
        if found < 0:
            raise _damaged("JPEG", "it has no segment where one is due")
        start = found + 1
        while data[start] == 0xFF and start - at <= _JUNK:
            start += 1
        junk += start - at - 1
        if junk > _JUNK:
            raise _too_much("JPEG", "many bytes between its segments")
        marker = data[start]
        if marker == 0xD9:
            break
        if marker in _NO_SIZE or marker == 0:
            at = start + 1
            continue
        (length,) = struct.unpack_from(">H", data, start + 1)
        at = start + 1 + length
        if length < 2 or at > len(data):
            raise _damaged("JPEG", "it ends too soon")
        if marker in _FRAMES:
            if size is not None:
                raise _damaged("JPEG", "it has two sizes")
            height, width = struct.unpack_from(">HH", data, start + 4)
            size = width, height
        elif marker == 0xDA:
            if size is None:
                break
            return *size, 1
        exif += marker == 0xE1 and data.startswith(b"Exif\0", start + 3)
        photoshop += marker == 0xED
        if exif > 1 or photoshop > _PROFILE:
            raise _too_much("JPEG", "much metadata")
    else:
        raise _too_much("JPEG", "many segments")
    raise _damaged("JPEG", "it has no pixels")


def _webp(data: bytes) -> tuple[int, int, int]:
    """The first chunk says the size: that of the canvas, or of the one frame."""
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise _damaged("WEBP", "it ends too soon")
    kind = data[12:16]
    if kind == b"VP8 ":
        code, width, height = struct.unpack_from("<3sHH", data, 23)
        if code != b"\x9d\x01\x2a":
            raise _damaged("WEBP", "it has no frame where one is due")
        return width & 0x3FFF, height & 0x3FFF, 1
    if kind == b"VP8L":
        mark, bits = struct.unpack_from("<BI", data, 20)
        if mark != 0x2F:
            raise _damaged("WEBP", "it has no frame where one is due")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1
    if kind != b"VP8X":
        raise _damaged("WEBP", "it does not begin with a frame")
    low, high, low2, high2 = struct.unpack_from("<HBHB", data, 24)
    frames, at = 0, 12
    for _ in range(_PARTS):
        if at + 8 > size + 8:
            return (low | high << 16) + 1, (low2 | high2 << 16) + 1, max(1, frames)
        kind, length = struct.unpack_from("<4sI", data, at)
        frames += kind == b"ANMF"
        if kind == b"EXIF" and length > _EXIF:
            raise _too_much("WEBP", "much EXIF")
        at += 8 + length + (length & 1)
    raise _too_much("WEBP", "many chunks")


def _damaged(kind: str, why: str) -> BadRequest:
    return BadRequest(f"The {kind} picture is damaged: {why}.", "Send it again.")


def _too_much(kind: str, what: str) -> TooLarge:
    return TooLarge(f"The {kind} picture has too {what}.", "Save it without metadata, or as an ordinary file.")
