"""Pictures in and out: files to RGB, decoder outputs to bytes, PNG files that say how they were made."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from ..core.errors import BadInput, DiskError, NotFinite, UsageError

MAX_PIXELS = 89_478_485
"""Pillow's own limit (a quarter of a GiB as 24-bit RGB); Pillow refuses twice as many whatever is asked for."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000")
"""What `open_image` decodes. Not EPS and its like: opening one runs another program."""

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k")
_OTHER_SUFFIXES = (".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
SUFFIXES = frozenset((*_JPEG_SUFFIXES, *_OTHER_SUFFIXES))
"""What `expand` takes for pictures in a folder."""

LONGEST_WORDS = 80
"""Bytes of the prompt in a picture's name."""

_FIX = f"Give a picture as {', '.join(FORMATS)}."


def open_image(source: str | Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to RGB, upright, on white where it is transparent; of an animation the first frame.

    Args:
        source: a path, or an open binary file that can seek; it is read from its start and left open.
        max_pixels: the largest width * height that is decoded.

    Raises:
        BadInput: it is missing, empty, no picture, damaged or too large.
    """
    image = _decoded(source, FORMATS, max_pixels)
    name = _name(source)
    try:
        return _as_rgb(image, name)
    except (OSError, ValueError) as exc:  # a colour mode that Pillow does not convert
        raise BadInput(f"{name} has pixels of kind {image.mode}: {exc}.", "Convert it to an 8-bit RGB PNG.") from exc


def _decoded(source: str | Path | BinaryIO, formats: Sequence[str], max_pixels: int) -> Image.Image:
    """The picture, upright, with its pixels read; every failure as one BadInput."""
    if not isinstance(source, str | Path):
        return _decoded_file(source, _name(source), formats, max_pixels)
    path = Path(source)
    if not path.exists():
        raise BadInput(f"{path} does not exist.", "Check the path.")
    if path.is_dir():
        raise BadInput(f"{path} is a folder, not a picture.", "Name the files in it.")
    if not path.is_file():  # a pipe would block, a device never end
        raise BadInput(f"{path} is not a regular file.", "Save the picture to a file first.")
    try:
        with path.open("rb") as file:
            return _decoded_file(file, str(path), formats, max_pixels)
    except OSError as exc:
        raise BadInput(f"{path} cannot be opened: {exc.strerror}.", "Check its permissions.") from exc


def _decoded_file(file: BinaryIO, name: str, formats: Sequence[str], max_pixels: int) -> Image.Image:
    Image.init()  # which formats this Pillow was built with
    form = "a picture"
    try:
        if not file.read(1):
            raise BadInput(f"{name} is empty (0 bytes).", "Save or download it again.")
        file.seek(0)
        image = Image.open(file, formats=[known for known in formats if known in Image.OPEN])
        form = f"a {image.format} file"
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise BadInput(
                f"{name} has too many pixels: {image.width}x{image.height} is {pixels}, the limit {max_pixels}.",
                "Scale it down first.",
            )
        image.load()
        return ImageOps.exif_transpose(image)
    except BadInput:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise BadInput(f"{name} has too many pixels: {exc}.", "Scale it down first.") from exc
    except UnidentifiedImageError as exc:
        raise BadInput(f"{name} is not a picture that can be read.", _FIX) from exc
    except Exception as exc:  # decoders raise anything on damaged data: OSError, ValueError, SyntaxError, struct.error
        raise BadInput(f"{name} is {form} that cannot be decoded: {exc}.", "Save or download it again.") from exc


def _name(source: str | Path | BinaryIO) -> str:
    return str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "The picture"))


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64)
        # Pillow would clip at 255. I holds 16 bits in PNG and PGM; what more means, or F, no file says.
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise BadInput(
                f"{name} has {image.mode}-mode pixels, not 8 or 16 bits.", "Convert it to an 8-bit or 16-bit PNG."
            )
        return Image.fromarray((grey / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        ground.alpha_composite(layer)
        return ground.convert("RGB")
    return image.convert("RGB")


def expand(paths: Sequence[str | Path]) -> list[Path]:
    """Files as they are given; each folder as the picture files right in it, by name.

    Raises:
        BadInput: a path does not exist, or a folder has no picture.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise BadInput(f"{path} does not exist.", "Check the path.")
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in path.iterdir() if _is_picture(file))
        if not inside:
            raise BadInput(f"The folder {path} has no pictures ({' '.join(sorted(SUFFIXES))}).", "Name another folder.")
        found += inside
    return found


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def to_uint8(images: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A decoder's output as bytes, rounded as diffusers' VaeImageProcessor does (half to even).

    Args:
        images: float32 [n, 3, height, width]; -1..1, what lies beyond is clipped.

    Returns:
        uint8 [n, height, width, 3].

    Raises:
        NotFinite: a value is not a number; diffusers would give a black picture.
    """
    if np.isnan(images).any():
        raise NotFinite(
            "The decoded picture holds values that are not numbers (NaN).",
            "Use fp32 or bf16 for the decoder (fp16 overflows in some models, SDXL's among them).",
        )
    unit = np.clip(images.astype(np.float32, copy=False) * np.float32(0.5) + np.float32(0.5), 0, 1)
    pixels: npt.NDArray[np.uint8] = (unit * np.float32(255)).round().astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


def save_png(image: Image.Image, path: Path, parameters: Mapping[str, Any]) -> None:
    """Write a PNG that says how it was made; whole or not at all.

    Its text "parameters" is what AUTOMATIC1111's web UI writes and many tools read, "vitrify" is JSON.

    Args:
        image: the picture.
        path: a name that ends in .png; a file there is replaced.
        parameters: what goes into the JSON. The first text uses prompt, negative_prompt, steps, scheduler, guidance,
            seed, model and strength, where they are given.

    Raises:
        UsageError: `path` does not end in .png.
        DiskError: the disk is full, or the folder is missing or may not be written to.
    """
    _check_suffix(path)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", _a1111_text(parameters, image.size).encode(errors="replace").decode())
    info.add_text("vitrify", json.dumps(dict(parameters), default=_plain))
    packed = BytesIO()
    image.save(packed, "PNG", pnginfo=info)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        try:
            part.write_bytes(packed.getbuffer())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise DiskError(
            f"{path} could not be written: {exc.strerror}.", "Free space, or name a folder that you may write to."
        ) from exc


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} does not end in .png, the one format written.", f"Use {path.with_suffix('.png')}.")


def check_png_path(path: Path) -> None:
    """Refuse a path that `save_png` cannot write, before a picture is drawn for it.

    Raises:
        UsageError: it does not end in .png.
        DiskError: its folder is missing or may not be written to, it is a folder itself, or its name is too long.
    """
    _check_suffix(path)
    folder = path.absolute().parent
    try:
        if not folder.is_dir():
            why, fix = "there is no such folder", "Make the folder, or name another."
        elif path.is_dir():
            why, fix = "it is a folder", "Name a file in it."
        elif not os.access(folder, os.W_OK | os.X_OK):
            why, fix = "its folder may not be written to", "Name a folder that you may write to."
        else:
            return
    except OSError as exc:  # a name that the system does not take: Path.is_dir answers no to some and raises for others
        raise DiskError(f"{_short(path)} could not be written: {exc.strerror}.", "Choose another name.") from exc
    raise DiskError(f"{path} could not be written: {why}.", fix)


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 100 else f"{text[:50]}...{text[-40:]}"


def picture_paths(output: Path | None, prompt: str, seed: int, count: int) -> list[Path]:
    """Where `count` pictures go: `output`, or a name made of prompt and seed; with -1, -2, ... where there are several.

    The words of the prompt take at most `LONGEST_WORDS` bytes of the name: a name of more than 255 bytes cannot be
    written, on some file systems of 143.
    """
    words = "-".join(re.findall(r"\w+", prompt.lower())[:8]).encode(errors="ignore")[:LONGEST_WORDS]
    first = output or Path(f"{words.decode(errors='ignore').strip('-') or 'picture'}-{seed}.png")
    if count == 1:
        return [first]
    return [first.with_name(f"{first.stem}-{i + 1}{first.suffix}") for i in range(count)]


def _a1111_text(parameters: Mapping[str, Any], size: tuple[int, int]) -> str:
    settings = {
        "Steps": parameters.get("steps"),
        "Sampler": parameters.get("scheduler"),
        "CFG scale": parameters.get("guidance"),
        "Seed": parameters.get("seed"),
        "Size": f"{size[0]}x{size[1]}",
        "Model": parameters.get("model"),
        "Denoising strength": parameters.get("strength"),
    }
    lines = [str(parameters.get("prompt") or "")]
    if parameters.get("negative_prompt"):
        lines.append(f"Negative prompt: {parameters['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items() if value is not None))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    """Values that would read as more than one setting go in JSON's quotes, as the web UI has them."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be kept in a picture's JSON")


def read_parameters(path: Path) -> dict[str, Any]:
    """The JSON that `save_png` put into a picture.

    Raises:
        BadInput: it is no PNG, or vitrify's text is not in it or damaged.
    """
    text = _decoded(path, ("PNG",), MAX_PIXELS).info.get("vitrify")
    fix = "Give a PNG that vitrify wrote; editors and web sites often drop such text."
    if text is None:
        raise BadInput(f"{path} does not say how it was made.", fix)
    try:
        parameters = json.loads(text)
    except (TypeError, ValueError) as exc:
        raise BadInput(f"{path} holds damaged text: {exc}.", fix) from exc
    if not isinstance(parameters, dict):
        raise BadInput(f"{path} holds a {type(parameters).__name__} where an object is expected.", fix)
    return parameters
