"""Masks painted in the page, with a pointer, with keys and from a file, as they are sent."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")

from .browser import Page, chromium

SPACE, LEFT, DOWN = " ", "\ue012", "\ue015"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Any, server: Any, http: Any) -> Page:
    """Opened on an idle server; what it sends is noted."""
    assert server.idle(http)
    page = Page(browser, server.url)
    page.open()
    page.ready()
    page.note_jobs()
    return page


@pytest.fixture
def photo(png: bytes, tmp_path: Path) -> Path:
    """96 by 80 pixels."""
    file = tmp_path / "photo.png"
    file.write_bytes(png)
    return file


def white_of(page: Page) -> Any:
    """Where the mask of the last job is white: bool [height, width]."""
    mask = Image.open(io.BytesIO(base64.b64decode(page.sent()["mask"])))
    return np.asarray(mask.convert("L")) >= 128


def test_paints_a_mask_erases_inverts_and_takes_one_from_a_file(page: Page, photo: Path, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    page.choose(photo)
    page.press("Paint a mask")
    canvas = page.until(lambda: page.find(".painter[open] canvas"))
    width = canvas.size["width"]
    stroke = ActionChains(page.browser, duration=10).move_to_element_with_offset(canvas, -width // 4, 0)
    stroke.click_and_hold().move_by_offset(width // 2, 0).release().perform()
    page.press("Use it", ".painter")
    page.until(lambda: page.button("Change mask"))
    assert page.value("Strength") == "1"
    page.draw("a blue heart")
    white = white_of(page)
    assert white.shape == (80, 96)
    assert white[40, 24:73].all()  # along the stroke
    assert not white[:30].any()
    assert not white[50:].any()
    assert page.text(".job .with") == "Start: a picture and a mask, strength 1"

    page.press("Change mask")
    page.press("Invert", ".painter")
    page.press("Erase", ".painter")
    stroke = ActionChains(page.browser, duration=10).move_to_element_with_offset(canvas, -width // 4, width // 4)
    stroke.click_and_hold().move_by_offset(width // 2, 0).release().perform()
    page.press("Use it", ".painter")
    page.until(lambda: not page.find(".painter[open]"))
    page.draw("a blue heart")
    other = white_of(page)
    assert (other[:50] == ~white[:50]).all()
    assert not other[64, 24:73].any()

    half = Image.new("L", (48, 40), 0)
    half.paste(255, (24, 0, 48, 40))
    half.save(tmp_path / "half.png")
    page.press("Change mask")
    page.press("Clear", ".painter")
    page.find(".painter input[type=file]").send_keys(str(tmp_path / "half.png"))
    page.until(lambda: page.text(".painter .hint").startswith("half.png"))
    page.press("Use it", ".painter")
    page.until(lambda: not page.find(".painter[open]"))
    page.draw("a blue heart")
    right = white_of(page)
    assert right[:, 49:].all()
    assert not right[:, :47].any()

    page.press("Change mask")
    page.press("Clear", ".painter")
    page.press("Use it", ".painter")
    page.until(lambda: page.button("Paint a mask"))  # nothing is painted, so there is none
    assert page.value("Strength") == "0.8"
    assert page.faults() == []


def test_keys_alone_paint_a_mask(page: Page, photo: Path) -> None:
    from selenium.webdriver import ActionChains

    page.choose(photo)
    page.press("Paint a mask")
    page.until(lambda: page.find(".painter[open]"))
    page.js("document.querySelector('.painter canvas').focus()")
    ActionChains(page.browser).key_down(SPACE).send_keys(LEFT, LEFT).key_up(SPACE).send_keys(DOWN).perform()
    page.press("Use it", ".painter")
    page.until(lambda: page.button("Change mask"))
    page.draw("a blue heart")
    white = white_of(page)
    assert white[40, 37:49].all()
    assert not white[48:].any()  # the brush was lifted when it went down
    assert page.faults() == []
