"""The page's files as they are sent, and the user's files as the page takes them: dropped, picked and labelled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
from vitrify.serve.page import page_files

from .browser import Page, chromium


def test_page_files_are_sent_with_their_types_and_asked_for_again(http: Any) -> None:
    index = http.get("/")
    assert index.status_code == 200
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    for name, file in page_files().items():
        sent = http.get(f"/page/{name}")
        assert sent.content == file.data
        assert sent.headers["content-type"] == kinds.get(Path(name).suffix, "text/html; charset=utf-8")
        assert sent.headers["cache-control"] == "no-cache"
        assert "default-src 'self'" in sent.headers["content-security-policy"]
        again = http.get(f"/page/{name}", headers={"If-None-Match": f'"other", {sent.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert http.get(f"/page/{name}", headers={"If-None-Match": '"other"'}).status_code == 200
    assert http.get("/favicon.ico").content == page_files()["icon.svg"].data


@pytest.mark.parametrize("path", ["page.py", "..%2fapp.py", "%2e%2e/app.py", "none.js", "", "/etc/passwd"])
def test_nothing_but_the_page_files_is_sent(http: Any, path: str) -> None:
    assert http.get(f"/page/{path}").status_code == 404


def test_page_has_what_it_imports_and_nothing_that_the_policy_forbids() -> None:
    files = {name: file.data.decode() for name, file in page_files().items()}
    for name, text in files.items():
        for wanted in re.findall(r'from "\./([^"]+)"', text):
            assert wanted in files, f"{name} imports {wanted}"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), f"{name} names an address"
    index = files["index.html"]
    for wanted in re.findall(r'(?:src|href)="page/([^"]+)"', index):
        assert wanted in files
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=", index)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Any, server: Any) -> Page:
    """Opened where pictures are labelled."""
    page = Page(browser, server.url)
    page.open("classify")
    page.until(lambda: page.button("Choose pictures"))
    return page


def test_classifies_a_dropped_picture_as_the_api_does(
    page: Page, http: Any, server: Any, png: bytes, tmp_path: Path
) -> None:
    (tmp_path / "one.png").write_bytes(png)
    page.drop(tmp_path / "one.png")
    page.until(lambda: page.find(".answer[data-state=done]"))
    shown = page.texts(".answer .label")
    job = http.get("/v1/jobs?limit=1").json()["jobs"][0]
    assert job["kind"] == "classify"
    assert shown == [answer["label"] for answer in job["answers"][0]]
    model = next(m for m in http.get("/v1/models").json()["models"] if m["name"] == server.labels)
    assert sorted(shown) == sorted(model["labels"])
    scores = [float(text.split()[0]) for text in page.texts(".answer .score")]
    assert scores == [round(100 * answer["score"], 1) for answer in job["answers"][0]]
    bars = page.js("return [...document.querySelectorAll('.labels i')].map((i) => i.style.getPropertyValue('--share'))")
    assert [float(bar) for bar in bars] == [answer["score"] for answer in job["answers"][0]]
    assert page.js("return document.querySelector('.answer img').naturalWidth") == 96
    assert page.faults() == []


def test_a_drop_beside_the_zone_counts_and_one_on_another_panel_does_nothing(
    page: Page, png: bytes, tmp_path: Path
) -> None:
    (tmp_path / "one.png").write_bytes(png)
    page.drop(tmp_path / "one.png", at=(640, 700))
    page.until(lambda: page.find(".answer[data-state=done]"))
    page.go("gallery")
    page.drop(tmp_path / "one.png")
    page.go("classify")
    assert len(page.all(".answer")) == 1
    assert page.browser.current_url == f"{page.url}/#classify"  # the picture did not take the page's place


def test_classifies_picked_pictures_and_clears(page: Page, picture: Any, tmp_path: Path) -> None:
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG")):
        (tmp_path / name).write_bytes(picture(form))
    page.find(".zone input[multiple]").send_keys(f"{tmp_path / 'a.png'}\n{tmp_path / 'b.jpg'}")
    page.until(lambda: page.text(".classify > .status") == "2 pictures labelled.")
    assert page.texts(".answer .file") == ["a.png", "b.jpg"]
    page.press("a.png, enlarge")
    assert page.find(".thumb[aria-pressed=true]")
    page.press("Clear")
    assert page.all(".answer") == []
    assert page.js("return document.activeElement.textContent") == "Choose pictures"
    assert page.faults() == []


def test_classifies_a_folder_and_leaves_out_what_is_no_picture(page: Page, picture: Any, tmp_path: Path) -> None:
    (tmp_path / "album/inner").mkdir(parents=True)
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("inner/c.webp", "WEBP")):
        (tmp_path / "album" / name).write_bytes(picture(form))
    (tmp_path / "album/notes.txt").write_text("no picture")
    (tmp_path / "album/inner/lies.png").write_bytes(picture("PNG")[:60])  # by its first bytes it is one
    page.drop(tmp_path / "album")
    said = "3 pictures labelled, 1 not. 1 file left out: no PNG, JPEG or WebP."
    page.until(lambda: page.text(".classify > .status") == said)
    assert page.texts(".answer .file") == ["a.png", "b.jpg", "c.webp", "lies.png"]
    assert page.texts(".answer[data-state=failed] .file") == ["lies.png"]
    assert "picture" in page.text(".answer[data-state=failed] .text")


def test_faces_are_boxed_where_they_are(page: Page, tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data", reason="needs the extra faces")
    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")
    page.find(".classify input[type=checkbox]").click()
    page.drop(tmp_path / "astronaut.png")
    box = page.until(lambda: page.find(".answer[data-state=done] .box"))
    page.until(lambda: box.value_of_css_property("left") != "auto")
    left, top = (float(box.value_of_css_property(side)[:-2]) for side in ("left", "top"))
    size = page.find(".answer img").size
    assert left / size["width"] == pytest.approx(174 / 512, abs=0.06)
    assert top / size["height"] == pytest.approx(66 / 512, abs=0.06)
    assert len(page.all(".answer .face .label")) == 7
    page.find(".classify input[type=checkbox]").click()  # the same picture as a whole
    page.until(lambda: page.find(".answer[data-state=done]") and not page.all(".box"))
    assert len(page.all(".answer .label")) == 7
    assert page.faults() == []
