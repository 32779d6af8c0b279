"""What a proof of pictures saw: kept for the page also where the proof failed, and beside the artifact's manifest."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.artifact import Artifact, WeightFile
from ..core.publish import disk_errors, write_whole
from ..pipelines.images import open_image

FOLDER = "proof"
_SIDES = ("reference", "artifact")
_FACTORS = (200, 100, 50, 20, 10, 5, 2, 1)


@dataclass(frozen=True)
class Pair:
    """One picture as the reference and as the artifact drew it, in RGB and of one size."""

    reference: Image.Image
    artifact: Image.Image


@dataclass
class Evidence:
    """What a proof leaves besides its verdict.

    pairs: the pictures, in the manifest's order. whole: the figures of pictures or labels, as the manifest has them.
    artifact: with every figure that was had, and with `status` and `what` where the proof failed.
    """

    pairs: list[Pair] = field(default_factory=list)
    whole: dict[str, Any] = field(default_factory=dict)
    artifact: Artifact | None = None


def difference(pair: Pair) -> tuple[Image.Image, int]:
    """The absolute difference of each channel, times the largest of a few round factors that clips one value in 100.

    Returns:
        The picture and the factor; a black one and 0 where both are equal.
    """
    a, b = (np.asarray(p).astype(np.int32) for p in (pair.reference, pair.artifact))
    apart = np.abs(a - b)
    # of the largest alone, one edge that moved would leave all else black
    most = float(np.percentile(apart, 99))
    factor = next((f for f in _FACTORS if f * most <= 255), 1) if apart.any() else 0
    return Image.fromarray(np.minimum(apart * factor, 255).astype(np.uint8)), factor


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG file with nothing but its pixels."""
    packed = BytesIO()
    picture.save(packed, "PNG", optimize=True)
    return packed.getvalue()


def data_uri(picture: Image.Image) -> str:
    """The picture as a page can hold it."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode("ascii")


def keep_pictures(artifact: Artifact, pairs: Sequence[Pair]) -> Artifact:
    """Write the pictures of `proof.images.drawn` into the artifact's folder; returns it with their names.

    The files are named by their content, so that none is ever overwritten: until the manifest is saved, what lies there
    is what the old manifest says. `remove_pictures` takes away what it names no more.

    Raises:
        DiskError: they cannot be written.
    """
    images = artifact.proof.get("images")
    if not pairs or not isinstance(images, dict):
        return artifact
    listed = {f.path: f for f in artifact.others if not _is_picture(f.path)}
    drawn = []
    with disk_errors(artifact.root):
        (artifact.root / FOLDER).mkdir(exist_ok=True)
        for entry, pair in zip(images["drawn"], pairs, strict=True):
            names = {}
            for side, picture in zip(_SIDES, (pair.reference, pair.artifact), strict=True):
                file = _write(artifact.root, png_bytes(picture))
                names[side], listed[file.path] = file.path, file
            drawn.append({**entry, **names})
    proof = {**artifact.proof, "images": {**images, "drawn": drawn}}
    return replace(artifact, proof=proof, others=tuple(listed[name] for name in sorted(listed)))


def remove_pictures(old: Artifact, new: Artifact) -> None:
    """Take away the pictures of an earlier proof, after the manifest was saved."""
    kept = {f.path for f in new.others}
    with disk_errors(new.root):
        for file in old.others:
            if _is_picture(file.path) and file.path not in kept:
                (new.root / file.path).unlink(missing_ok=True)


def kept_pairs(artifact: Artifact) -> list[Pair | None]:
    """The pictures that lie in the artifact's folder, in the manifest's order; None where there is none.

    Raises:
        BadInput: one is no picture, or damaged.
    """
    images = artifact.proof.get("images")
    drawn = images.get("drawn") if isinstance(images, dict) else None
    listed = {f.path for f in artifact.others}  # whose place and size were checked when it was loaded
    found: list[Pair | None] = []
    for entry in drawn if isinstance(drawn, list) else []:
        names = [str(entry.get(side)) for side in _SIDES] if isinstance(entry, dict) else []
        if not names or not listed.issuperset(names):
            found.append(None)
            continue
        pair = Pair(*(open_image(artifact.root / name) for name in names))
        found.append(pair if pair.reference.size == pair.artifact.size else None)
    return found


def _write(root: Path, data: bytes) -> WeightFile:
    digest = hashlib.sha256(data).hexdigest()
    name = f"{FOLDER}/{digest[:16]}.png"
    write_whole(root / name, data)
    return WeightFile(name, len(data), digest)


def _is_picture(path: str) -> bool:
    return path.startswith(f"{FOLDER}/") and path.endswith(".png")
