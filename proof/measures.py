"""Measures of pictures that need a network's weights: opened from folders that the user has, never downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..core.artifact import hash_file
from ..core.errors import BadInput


class Measure(Protocol):
    """How near an artifact's picture is to the reference's, or how well either is what the prompt says.

    files: name -> sha256 of the weights that it computes with; two figures compare where these are the same.
    """

    @property
    def files(self) -> Mapping[str, str]: ...
    def measure(self, prompt: str, reference: Image.Image, given: Image.Image) -> dict[str, float]: ...


def open_measures(lpips: Path | None = None, clip: Path | None = None) -> dict[str, Measure]:
    """The measures whose folders are named.

    Raises:
        BadInput: a folder lacks a file, or a weight is missing or of another shape.
    """
    measures: dict[str, Measure] = {}
    if lpips is not None:
        from .lpips import Lpips

        measures["lpips"] = Lpips(lpips)
    if clip is not None:
        from .clip import Clip

        measures["clip"] = Clip(clip)
    return measures


def check_folder(folder: Path, what: str, fix: str) -> None:
    """Refuse a path that is no folder.

    Raises:
        BadInput: says what the folder was to hold.
    """
    if not folder.is_dir():
        raise BadInput(
            f"{folder}, which should hold {what}, is {'no folder' if folder.exists() else 'not there'}.", fix
        )


def hashes_of(files: list[Path]) -> dict[str, str]:
    """Name -> sha256."""
    return {path.name: hash_file(path) for path in sorted(files)}
