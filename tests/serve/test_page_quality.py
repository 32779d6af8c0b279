"""The page's choice of quality, in a headless Chromium: what it sends, tells and takes over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from .browser import Page, chromium
from .test_page_pictures import by_the_api, drawn, newest

PROMPT = "a red apple"


@pytest.fixture(scope="module")
def caching(start_server: Callable[..., Any], cached_artifact: Path) -> Any:
    return start_server(models=(cached_artifact,))


@pytest.fixture
def http(caching: Any) -> Iterator[Any]:
    with caching.client() as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Any, caching: Any) -> Page:
    page = Page(browser, caching.url)
    page.open()
    page.ready()
    page.note_jobs()
    return page


def test_fast_is_a_choice(page: Page, http: Any) -> None:
    assert page.value("Quality") == "exact"
    page.draw(PROMPT, steps=8)
    assert "preset" not in page.sent(), "it is what the server does by itself"
    assert page.text(".job .with") == ""
    page.write("Quality", "fast")
    page.draw(PROMPT, steps=8)
    assert page.sent()["preset"] == "fast"
    job = newest(http)
    assert drawn(http, job) == by_the_api(http, model="emoji", prompt=PROMPT, steps=8, preset="fast")
    assert page.text(".job .with") == "Less work: step cache 2"
    page.write("Quality", "exact")
    page.press("Use settings", ".job")
    assert page.value("Quality") == "fast"
    assert page.faults() == []


def test_what_another_client_left_out_is_taken_over_as_it_is(page: Page, http: Any) -> None:
    less = {"step_cache": "2", "guidance_interval": [0.25, 0.75]}
    same = by_the_api(http, model="emoji", prompt=PROMPT, steps=8, **less)
    page.go("gallery")
    page.until(lambda: page.find(".grid .tile img[src]")).find_element("xpath", "..").click()
    page.press("Use settings", ".viewer")
    assert page.js("return document.querySelector('select option[value=same]').textContent") == (
        "step cache 2, guidance from 0.25 to 0.75"
    )
    page.find(".form button[type=submit]").click()
    page.until(lambda: page.find(".job[data-state=done]"))
    assert {name: page.sent()[name] for name in (*less, "preset")} == {**less, "preset": "exact"}
    assert drawn(http, newest(http)) == same
    page.write("Quality", "exact")
    page.draw(PROMPT, steps=8)
    assert not set(less) & set(page.sent())
    assert page.faults() == []
