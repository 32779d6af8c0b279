"""Grids: every picture whole and in the middle of its cell, labels beside it, at any size of picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from vitrify.bench.sweep.grid import MOST_PIXELS, READABLE, Block, Legend, Tile, draw_grid, shown, wrap

BLUE, GREEN = (20, 60, 200), (10, 160, 40)


def picture(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> Tile:
    Image.new("RGB", size, colour).save(path)
    return Tile(path, "0.12 s")


def box(grid: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """left, top, right and bottom of all that has this colour."""
    ys, xs = np.nonzero((np.asarray(grid) == colour).all(-1))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def test_small_pictures_are_enlarged_by_one_whole_factor_and_centred(tmp_path: Path) -> None:
    tiles = [picture(tmp_path / "a.png", (64, 64), BLUE), picture(tmp_path / "b.png", (128, 32), GREEN)]
    grid = draw_grid([Block("", [tiles])], Legend(["one", "two"], [""]), (128, 64))
    a, b = box(grid, BLUE), box(grid, GREEN)
    assert (a[2] - a[0], a[3] - a[1]) == (128, 128)
    assert (b[2] - b[0], b[3] - b[1]) == (256, 64), "twice, as the other: the longest side reaches 192"
    assert max(128, 64) * 2 >= READABLE
    assert a[1] + a[3] == b[1] + b[3], "both in the middle of cells of one height"
    assert b[0] - a[2] > (256 - 128) // 2, "and of one width"


def test_large_pictures_stay_as_they_are_and_get_larger_letters(tmp_path: Path) -> None:
    heights = []
    for side in (192, 768):
        tile = picture(tmp_path / f"{side}.png", (side, side), BLUE)
        grid = draw_grid([Block("", [[tile]])], Legend(["steps 5"], [""]), (side, side))
        left, top, right, bottom = box(grid, BLUE)
        assert (right - left, bottom - top) == (side, side)
        above = np.asarray(grid.convert("L"))[:top]
        heights.append(int((above < 128).any(1).sum()))
    assert heights[0] >= 8
    assert 3 <= heights[1] / heights[0] <= 5


def test_a_grid_of_very_many_pixels_is_scaled_down(tmp_path: Path) -> None:
    tile = picture(tmp_path / "a.png", (3072, 3072), BLUE)
    grid = draw_grid([Block("", [[tile] * 3] * 2)], Legend(["x"] * 3, ["y"] * 2), (3072, 3072))
    assert grid.width * grid.height <= MOST_PIXELS
    assert grid.width * grid.height > MOST_PIXELS / 2


def test_errors_and_blanks_are_cells_of_their_own(tmp_path: Path) -> None:
    tiles = [[picture(tmp_path / "a.png", (64, 64), BLUE), Tile(), Tile(error="The width is 65.")]]
    grid = draw_grid([Block("seed 1", tiles), Block("seed 2", tiles)], Legend(["a", "b", "c"], [""]), (64, 64))
    left, top, right, _ = box(grid, BLUE)
    row = np.asarray(grid)[top + 60]
    assert tuple(row[right + 100]) == (236, 236, 236)
    cell = np.asarray(grid)[top : top + 192, right + 200 : right + 400]
    reds = cell[..., 0].astype(int) - cell[..., 1]
    assert (reds > 100).sum() > 100, "words in red"
    assert tuple(cell[180, 50]) == (251, 231, 228)
    assert right - left == 192


def test_labels_wrap_and_the_columns_keep_their_width(tmp_path: Path) -> None:
    tile = picture(tmp_path / "a.png", (64, 64), BLUE)
    long = "a small house by the sea with a garden and a very very long name"
    short, tall = (draw_grid([Block("", [[tile]])], Legend([text], [text]), (64, 64)) for text in ("a", long))
    assert tall.height > short.height
    assert tall.width - short.width <= 192 * 3 / 4, "the labels of rows take at most three quarters of a cell"


def test_wrap_breaks_between_words_and_through_a_word_that_fits_no_line() -> None:
    font = ImageFont.load_default(14)
    assert wrap("one two", font, 1000) == ["one two"]
    lines = wrap("one two three " + "x" * 60, font, 100)
    assert lines[0] == "one two three"[: len(lines[0])]
    assert "".join(lines).replace(" ", "") == "onetwothree" + "x" * 60
    assert all(font.getlength(line) <= 100 for line in lines)
    width = font.getlength("int4-weights:group=3")
    assert wrap("int4-weights:group=32", font, width) == ["int4-weights:", "group=32"]
    assert wrap("", font, 100) == []
    assert wrap("ab", font, 1) == ["a", "b"], "a letter a line, at worst"


@pytest.mark.parametrize(
    ("text", "seen"), [("Bär, naïve", "Bar, naive"), ("漢字", "??"), ("½ ﬁt\n🙂", "1?2 fit\n?"), ("\udce9", "?")]
)
def test_letters_that_the_font_has_not(text: str, seen: str) -> None:
    assert shown(text) == seen
