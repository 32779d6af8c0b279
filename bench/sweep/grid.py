"""Pictures and words -> one labelled grid, readable at whatever size the pictures have."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

READABLE = 192
"""Pixels of a cell's longer side below which labels do not fit: smaller pictures are enlarged by a whole factor."""

MOST_PIXELS = 48_000_000
"""Of a grid; larger ones are scaled down, for viewers (and Pillow itself) refuse what is much larger."""

_INK, _GREY, _PAPER = (25, 25, 25), (110, 110, 110), (255, 255, 255)
_BEHIND, _BLANK, _ERROR, _ERROR_INK = (247, 247, 247), (236, 236, 236), (251, 231, 228), (150, 30, 20)


@dataclass(frozen=True)
class Tile:
    """One cell: a picture with a caption, an error in words, or nothing."""

    picture: Path | None = None
    caption: str = ""
    error: str = ""


@dataclass(frozen=True)
class Block:
    """One grid: rows of tiles below a title, which may be empty."""

    title: str
    tiles: Sequence[Sequence[Tile]]


@dataclass(frozen=True)
class Legend:
    """The words around a grid.

    columns, rows: a label each. x, y: what they are values of, where they do not say so themselves.
    head, foot: lines above and below everything.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    x: str = ""
    y: str = ""
    head: Sequence[str] = ()
    foot: Sequence[str] = ()


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels. scale: of the pictures. side: of the label column; top: of the labels above the columns."""

    scale: float
    cell: tuple[int, int]
    gap: int
    side: int
    top: int
    caption: int
    label: Font
    small: Font
    columns: list[list[str]]
    rows: list[list[str]]


def draw_grid(blocks: Sequence[Block], legend: Legend, largest: tuple[int, int]) -> Image.Image:
    """The blocks below each other. Each picture lies in the middle of its cell, and all have one scale.

    Args:
        largest: width and height that hold every picture.
    """
    plan = _layout(blocks, legend, largest)
    width = plan.side + len(legend.columns) * (plan.cell[0] + plan.gap) + plan.gap
    head = [
        wrap(line, plan.label if n == 0 else plan.small, width - 2 * plan.gap) for n, line in enumerate(legend.head)
    ]
    foot = [wrap(line, plan.small, width - 2 * plan.gap) for line in legend.foot]
    title = _height(plan.label) + plan.gap if any(b.title for b in blocks) else 0
    row = plan.cell[1] + plan.caption + plan.gap
    block = title + plan.top + len(legend.rows) * row + plan.gap
    above = sum(len(lines) * _height(plan.label if n == 0 else plan.small) for n, lines in enumerate(head)) + plan.gap
    below = sum(len(lines) * _height(plan.small) for lines in foot) + plan.gap * bool(foot)
    paper = Image.new("RGB", (width, above + plan.gap + len(blocks) * block + below), _PAPER)
    pen = ImageDraw.Draw(paper)
    y = plan.gap
    for number, lines in enumerate(head):
        y = _write(pen, (plan.gap, y), lines, plan.label if number == 0 else plan.small, _INK if number == 0 else _GREY)
    y = above + plan.gap
    for one in blocks:
        if title:
            line = _cut(wrap(one.title, plan.label, width - 2 * plan.gap), 1, plan.label, width - 2 * plan.gap)
            _write(pen, (plan.gap, y), line, plan.label, _INK)
        _draw_block(paper, pen, one, legend, plan, y + title)
        y += block
    for lines in foot:
        y = _write(pen, (plan.gap, y), lines, plan.small, _GREY)
    return paper


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Lines of at most `width` pixels, broken between words where that is possible."""
    lines, line = [], ""
    for word in shown(text).split():
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width and len(line) > 1:
            most = next((n for n in range(len(line) - 1, 1, -1) if font.getlength(line[:n]) <= width), 1)
            # names such as int4-weights:group=32 break where they are joined
            fits = max((n for n in range(2, most + 1) if line[n - 1] in "-_:,/+"), default=most)
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line] if line else lines


def shown(text: str) -> str:
    """The text in the letters that Pillow's font has: accents go, what has no such letter becomes a question mark."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode("ascii")


def _layout(blocks: Sequence[Block], legend: Legend, largest: tuple[int, int]) -> _Layout:
    columns, rows = len(legend.columns), len(legend.rows) * len(blocks)
    scale: float = max(1, math.ceil(READABLE / max(largest)))
    # labels and gaps take about a third more
    room = math.sqrt(MOST_PIXELS / (1.35 * columns * rows * largest[0] * largest[1]))
    if scale > room:
        scale = math.floor(room) if room >= 1 else room
    # wide and low pictures, too, get cells that a word fits in
    cell = tuple(max(math.ceil(side * scale), 48) for side in largest)
    size = min(max(round(math.sqrt(cell[0] * cell[1]) / 15), 9), 64)
    label, small = ImageFont.load_default(size + 2), ImageFont.load_default(size)
    gap = max(4, size // 2)
    above = [_cut(wrap(text, label, cell[0]), 8, label, cell[0]) for text in legend.columns]
    most = max(cell[0] * 3 // 4, 8 * size)
    names = [*legend.rows, legend.y]
    side = min(most, max((math.ceil(label.getlength(shown(text))) for text in names), default=0))
    caption = _height(small) + 2 if any(t.caption for b in blocks for r in b.tiles for t in r) else 0
    fit = max(1, (cell[1] + caption) // _height(label))
    beside = [_cut(wrap(text, label, side), fit, label, side) if side else [] for text in legend.rows]
    lines = max((len(lines) for lines in above), default=0)
    top = lines * _height(label) + _height(small) * bool(legend.x or (legend.y and not lines)) + gap // 2
    return _Layout(
        scale, (cell[0], cell[1]), gap, side + 2 * gap if side else gap, top, caption, label, small, above, beside
    )


def _draw_block(
    paper: Image.Image, pen: ImageDraw.ImageDraw, block: Block, legend: Legend, plan: _Layout, top: int
) -> None:
    width, height = plan.cell
    if legend.y:
        beside = top + plan.top - _height(plan.small) - plan.gap // 2
        _write(pen, (plan.gap, beside), [shown(legend.y)], plan.small, _GREY)
    if legend.x:
        _write(pen, (plan.side, top), [shown(legend.x)], plan.small, _GREY)
    bottom = top + plan.top - plan.gap // 2
    for number, lines in enumerate(plan.columns):
        left = plan.side + number * (width + plan.gap)
        start = bottom - len(lines) * _height(plan.label)
        for line in lines:
            middle = left + (width - plan.label.getlength(line)) / 2
            start = _write(pen, (middle, start), [line], plan.label, _INK)
    for y, row in enumerate(block.tiles):
        above = top + plan.top + y * (height + plan.caption + plan.gap)
        lines = plan.rows[y]
        _write(pen, (plan.gap, above + (height - len(lines) * _height(plan.label)) / 2), lines, plan.label, _INK)
        for x, tile in enumerate(row):
            _draw_tile(paper, pen, tile, plan, (plan.side + x * (width + plan.gap), above))


def _draw_tile(
    paper: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, plan: _Layout, corner: tuple[int, int]
) -> None:
    (left, top), (width, height) = corner, plan.cell
    box = (left, top, left + width - 1, top + height - 1)
    if tile.picture is not None:
        with Image.open(tile.picture) as opened:
            picture = opened.convert("RGB")
        size = tuple(
            max(1, min(most, round(side * plan.scale))) for side, most in zip(picture.size, plan.cell, strict=True)
        )
        if size != picture.size:
            picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        pen.rectangle(box, fill=_BEHIND)
        paper.paste(picture, (left + (width - size[0]) // 2, top + (height - size[1]) // 2))
        line = _cut(wrap(tile.caption, plan.small, width), 1, plan.small, width)
        for text in line:
            pen.text((left + (width - plan.small.getlength(text)) / 2, box[3] + 2), text, _GREY, plan.small)
        return
    pen.rectangle(box, fill=_ERROR if tile.error else _BLANK)
    edge = plan.gap // 2
    room = width - 2 * edge
    fit = max(1, (height - 2 * edge) // _height(plan.small))
    words = _cut(wrap(tile.error, plan.small, room), fit, plan.small, room)
    _write(pen, (left + edge, top + edge), words, plan.small, _ERROR_INK)


def _write(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], lines: Sequence[str], font: Font, ink: tuple[int, int, int]
) -> int:
    """Lines below each other; returns where the next would start."""
    x, y = at
    for line in lines:
        pen.text((round(x), round(y)), line, ink, font)
        y += _height(font)
    return round(y)


def _cut(lines: list[str], most: int, font: Font, width: float) -> list[str]:
    """At most so many lines; the last ends in dots where there were more."""
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: most - 1], f"{last}..."]


def _height(font: Font) -> int:
    """Of a line."""
    return math.ceil(font.getbbox("Ag|")[3] * 1.2)
