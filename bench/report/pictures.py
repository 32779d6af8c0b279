"""Sample pictures of a model: for each prompt the source's, and one of each artifact with its PSNR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import VitrifyError
from ...pipelines.images import open_image
from ...proof.evidence import png_bytes
from ..results import Cell
from .document import Gallery, Picture

_SHOWN = 8  # rows
_SIDE = 320  # pixels; larger ones are shown smaller, so that a page of them can be sent


def gallery(model: str, cells: Sequence[Cell], folder: Path) -> Gallery | None:
    """The pictures of one model's artifacts; None where no cell names any.

    Recipes are proved with different numbers of steps, and at different sizes: artifacts share a row where their
    reference is the same picture.

    Args:
        folder: what relative paths are relative to.
    """
    artifacts: dict[str, Cell] = {}
    for cell in cells:
        if _named(cell):
            artifacts.setdefault(str(cell.facts.get("artifact")), cell)
    rows: dict[tuple[str, bytes | str], list[Picture]] = {}
    for cell in artifacts.values():
        for place, entry in enumerate(_named(cell)):
            source = _picture("source", "", entry.get("reference"), folder)
            row = rows.setdefault((str(entry.get("prompt")), source.png or source.problem), [source])
            label = f"{cell.spec.runtime} {cell.spec.recipe}"
            row.append(_picture(label, _psnr(cell, place), entry.get("artifact"), folder))
    if not rows:
        return None
    fullest = sorted(rows.items(), key=lambda item: -len(item[1]))
    said = f"{model}: the source's pictures, and those of each artifact with their PSNR"
    if len({len(row) for row in rows.values()}) > 1:
        said += "; artifacts whose proof drew with other steps or sizes have rows of their own"
    if len(rows) > _SHOWN:
        said += f"; {_SHOWN} of {len(rows)} rows"
    return Gallery(said, [(prompt, row) for (prompt, _), row in fullest[:_SHOWN]])


def _named(cell: Cell) -> list[Mapping[str, Any]]:
    named = cell.facts.get("pictures")
    return [p for p in named if isinstance(p, Mapping)] if isinstance(named, list) else []


def _psnr(cell: Cell, place: int) -> str:
    """Of the picture at this place of the proof; a manifest of an earlier version has fewer figures than pictures."""
    values = cell.quality.psnr_db if cell.quality else ()
    if place >= len(values):
        return "PSNR not known"
    value = values[place]
    return "identical" if value is None else f"{value:.1f} dB"


def _picture(label: str, detail: str, path: Any, folder: Path) -> Picture:
    if not isinstance(path, str):
        return Picture(label, detail, problem="no picture is named")
    file = Path(path) if Path(path).is_absolute() else folder / path
    try:
        if not file.is_file():
            return Picture(label, detail, problem=f"{path} is not there")
        picture = open_image(file)
    except VitrifyError as exc:
        return Picture(label, detail, problem=exc.what)
    except OSError as exc:
        return Picture(label, detail, problem=f"{path[:80]} cannot be read: {exc.strerror}")
    if max(picture.size) > _SIDE:
        picture.thumbnail((_SIDE, _SIDE))
    return Picture(label, detail, png_bytes(picture), width=picture.width, height=picture.height)
