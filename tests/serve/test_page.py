"""The page in a headless Chromium against real servers: drawing, gallery, queue, keys, and a server that fails."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from .browser import Page, chromium

ENTER, ESCAPE, LEFT, RIGHT, DELETE, CONTROL = "\ue007", "\ue00c", "\ue012", "\ue014", "\ue017", "\ue009"
LARGEST = 2**64 - 1  # a seed of more digits than a double has
MINE = "[aria-label='Your jobs that wait and run']"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Any, server: Any, http: Any) -> Iterator[Page]:
    """Opened on a server that is idle."""
    assert server.idle(http)
    page = Page(browser, server.url)
    page.open()
    page.ready()
    try:
        yield page
    finally:
        for job in http.get("/v1/queue").json()["mine"]:
            http.delete(f"/v1/jobs/{job['id']}")
        assert server.idle(http)


def newest(http: Any) -> Any:
    return http.get("/v1/jobs?limit=1").json()["jobs"][0]


def parameters(job: Any) -> Any:
    return job["details"]["parameters"][0]


def test_draws_an_emoji_with_steps_and_previews(page: Page, http: Any) -> None:
    page.js("""
      window.seen = {values: new Set(), steps: new Set(), previews: new Set(), shift: 0};
      new PerformanceObserver((list) => list.getEntries().forEach((e) => e.hadRecentInput || (seen.shift += e.value)))
        .observe({type: "layout-shift", buffered: false});
      const look = () => {
        const bar = document.querySelector(".job progress");
        if (bar) seen.values.add(bar.value / bar.max);
        const step = /^Step (\\d+) of 40(, .+ left)?$/.exec(document.querySelector(".job .status")?.textContent ?? "");
        if (step) seen.steps.add(Number(step[1]));
        const preview = document.querySelector('.job img[src^="data:image/jpeg"]');
        if (preview?.naturalWidth) seen.previews.add(preview.src);
        requestAnimationFrame(look);
      };
      look();
    """)
    page.order("a happy face", steps=40, seed=7)
    page.until(lambda: page.find(".job[data-state=done]"))
    steps, values = page.js("return [[...seen.steps], [...seen.values]]")
    assert len(steps) >= 3
    assert steps == sorted(steps)
    assert len([value for value in values if 0 < value < 1]) >= 3
    assert page.js("return seen.previews.size") >= 2
    assert page.js("return seen.shift") < 0.01  # nothing jumps
    image = page.until(lambda: page.find(".job img[src^='blob:']"))
    page.until(lambda: page.js("return arguments[0].naturalWidth", image) == 64)
    assert "seed 7" in page.text(".job .status")
    given = parameters(newest(http))
    assert (given["prompt"], given["seed"], given["steps"], given["guidance"]) == ("a happy face", 7, 40, 3)
    assert page.faults() == []


def test_sends_every_field(page: Page, http: Any) -> None:
    page.write("Negative prompt", "a hat")
    page.press("3:2, 96 by 64 pixels")
    page.press("Swap width and height")
    page.write("Pictures", 2)
    page.write("Format", "webp")
    page.write("Scheduler", "euler")
    page.order("a red apple", steps=2, guidance=4.5, seed=LARGEST - 9)
    page.until(lambda: page.find(".job[data-state=done]"))
    job = newest(http)
    first, second = job["details"]["parameters"]
    assert (first["negative_prompt"], first["width"], first["height"]) == ("a hat", 64, 96)
    assert (first["steps"], first["guidance"], first["scheduler"]) == (2, 4.5, "euler")
    assert (first["seed"], second["seed"]) == (LARGEST - 9, LARGEST - 8)
    assert http.get(job["pictures"][1]).headers["content-type"] == "image/webp"
    page.until(lambda: len(page.all(".job img[src^='blob:']")) == 2)
    page.press("Use the last picture's seed")
    assert page.value("Seed") == str(LARGEST - 9)
    assert page.faults() == []


def test_several_jobs_are_in_flight_and_each_shows_its_own_pictures(page: Page) -> None:
    page.write("Pictures", 2)
    for prompt in ("a red apple", "a sad face", "a blue heart"):
        page.order(prompt, steps=150)
    page.until(lambda: page.texts(".badge") == ["3"])
    page.until(lambda: len(page.all(".job[data-state=done]")) == 3)
    assert page.texts(".badge") == [""]
    assert page.texts(".job .prompt") == ["a blue heart", "a sad face", "a red apple"]
    page.until(lambda: len(page.all(".job img[src^='blob:']")) == 6)
    assert page.faults() == []


@pytest.mark.parametrize("by", ["button", "escape"])
def test_cancels_a_job_that_runs(page: Page, http: Any, by: str) -> None:
    page.order("a cat face", steps=900)
    page.until(lambda: re.match(r"Step \d+ of 900", page.text(".job .status")))
    if by == "button":
        page.press("Cancel")
    else:
        page.keys(ESCAPE)
    page.until(lambda: page.text(".job .status") == "Cancelled.")
    assert newest(http)["status"] == "cancelled"
    page.press("Remove")
    assert page.all(".job") == []
    assert page.faults() == []


def test_keyboard_alone_draws_and_goes_through_the_panels(page: Page) -> None:
    page.write("Steps", 2)
    page.write("Prompt", "a red apple")
    page.keys(CONTROL, ENTER)
    page.until(lambda: page.find(".job[data-state=done]"))
    page.js("document.querySelector('#tab-generate').focus()")
    for panel in ("classify", "gallery", "queue", "generate"):
        page.keys(RIGHT)
        assert page.js("return document.activeElement.id") == f"tab-{panel}"
        assert page.find(f"#panel-{panel}:not([hidden])")
        assert page.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keys(LEFT)
    assert page.browser.current_url.endswith("#queue")
    page.browser.back()
    page.until(lambda: page.find("#panel-generate:not([hidden])"))
    assert page.faults() == []


def test_recalls_parameters_after_a_reload_and_draws_the_same_picture(page: Page, http: Any) -> None:
    page.order("a green frog face", steps=12, seed=LARGEST)
    page.until(lambda: page.find(".job[data-state=done]"))
    page.write("Prompt", "something else")
    page.write("Seed", 5)
    page.write("Steps", 3)
    page.browser.refresh()
    page.ready()
    page.go("gallery")
    page.until(lambda: page.find(".grid .tile img[src]")).find_element("xpath", "..").click()
    page.until(lambda: page.find(".viewer[open] img[src]"))
    assert str(LARGEST) in page.text(".viewer[open] .facts")
    page.press("Use settings", ".viewer")
    page.until(lambda: page.find("#panel-generate:not([hidden])"))
    assert (page.value("Prompt"), page.value("Seed")) == ("a green frog face", str(LARGEST))
    assert (page.value("Steps"), page.value("Guidance")) == ("12", "3")
    page.find(".form button[type=submit]").click()
    page.until(lambda: page.find(".job[data-state=done]"))
    second, first = http.get("/v1/jobs?limit=2").json()["jobs"]
    assert http.get(second["pictures"][0]).content == http.get(first["pictures"][0]).content
    assert page.faults() == []


def test_copies_the_settings_and_saves_the_picture(page: Page, http: Any, tmp_path: Path) -> None:
    cdp = page.browser.execute_cdp_cmd
    cdp("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    cdp("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.order("a red apple, ripe", steps=2, seed=11)
    page.until(lambda: page.find(".job[data-state=done]"))
    page.press("Copy settings")
    page.until(lambda: page.text("#toast") == "Settings copied.")
    copied = page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied.splitlines()[0] == "a red apple, ripe"
    assert re.search(r"Steps: 2, Sampler: \w+, CFG scale: 3, Seed: 11, Size: 64x64, Model: emoji", copied)
    page.press("Download")
    saved = tmp_path / "a-red-apple-ripe-11.png"
    page.until(saved.exists)
    assert saved.read_bytes() == http.get(newest(http)["pictures"][0]).content
    assert page.faults() == []


def test_gallery_goes_on_with_arrow_keys_searches_and_hides(page: Page) -> None:
    for prompt in ("a red apple", "a yellow star"):
        page.order(prompt, steps=2)
    page.until(lambda: len(page.all(".job[data-state=done]")) == 2)
    page.go("gallery")
    page.until(lambda: page.find(".grid .tile img[src]")).find_element("xpath", "..").click()
    page.until(lambda: page.find(".viewer[open]"))
    assert "a yellow star" in page.text(".viewer[open] .facts")
    page.keys(RIGHT)
    assert "a red apple" in page.text(".viewer[open] .facts")
    page.keys(ESCAPE)
    page.until(lambda: page.js("return document.activeElement.title") == "a red apple")
    assert not page.find(".viewer[open]")
    page.keys(LEFT)  # in the grid
    assert page.js("return document.activeElement.title") == "a yellow star"
    before = len(page.all(".grid li"))
    page.keys(DELETE)
    page.until(lambda: len(page.all(".grid li")) == before - 1)
    assert "1 hidden" in page.text(".gallery .soft")
    page.find(".gallery input[type=search]").send_keys("no such words")
    page.until(lambda: not page.all(".grid li"))
    assert "No picture has these words." in page.find(".gallery").text
    assert page.faults() == []


def test_loads_and_unloads_a_model(page: Page, server: Any, http: Any) -> None:
    def loaded() -> bool:
        models = http.get("/v1/models").json()["models"]
        return bool(next(m for m in models if m["name"] == server.labels)["loaded"])

    where = f".model[data-key={server.labels}] .where"
    http.post(f"/v1/models/{server.labels}/unload")
    page.until(lambda: not loaded())
    page.go("queue")
    page.until(lambda: "not loaded" in page.text(where))
    page.press(f"Load {server.labels}")
    page.until(loaded)
    page.until(lambda: "cpu" in page.text(where))
    page.press(f"Unload {server.labels}")
    page.until(lambda: not loaded())
    page.until(lambda: "not loaded" in page.text(where))
    for before in ("not loaded", "on "):  # one that is open can be pinned too
        page.until(lambda before=before: before in page.text(where))
        page.press(f"Pin {server.labels}")
        page.until(lambda: page.text(f".model[data-key={server.labels}] .tag") == "pinned")
        page.press(f"Unload {server.labels}")
        page.until(lambda: not loaded())
        page.until(lambda: "not loaded" in page.text(where))
        page.press(f"Load {server.labels}")
    page.until(loaded)
    assert page.faults() == []


def test_a_reload_takes_up_what_runs(page: Page) -> None:
    page.order("a cat face", steps=900)
    page.until(lambda: re.match(r"Step \d+ of 900", page.text(".job .status")))
    page.browser.refresh()
    page.until(lambda: re.match(r"Step \d+ of 900", page.text(".job .status")))
    assert page.text(".job .prompt") == "a cat face"
    assert page.text(".job .summary") == "emoji, 64 × 64, 900 steps"
    page.go("queue")
    page.until(lambda: page.text(f"{MINE} .title") == "a cat face")
    page.press("Cancel", MINE)
    page.until(lambda: page.text("[aria-label='Your jobs that ended lately'] .text").startswith("Cancelled, emoji"))
    page.go("generate")
    assert page.text(".job .status") == "Cancelled."
    assert page.faults() == []


@pytest.fixture(scope="module")
def small(start_server: Any) -> Any:
    """Where one job may wait, and one run."""
    return start_server("--queue", 1)


def test_a_full_queue_says_when_to_try_again(browser: Any, small: Any) -> None:
    page = Page(browser, small.url)
    page.open()
    page.ready()
    for _ in range(3):
        page.order("a cat face", steps=900)
    page.until(lambda: page.find(".job[data-state=refused]"))
    assert "there is no room for this one" in page.text(".job[data-state=refused] .status")
    again = page.find(".job[data-state=refused] .strong")
    assert re.match(r"Try again in \d+ s", again.text)
    assert not again.is_enabled()
    assert [fault for fault in page.faults() if "429" not in fault] == []
    page.go("queue")
    page.until(lambda: len(page.all(f"{MINE} li")) == 2)
    assert re.match(r"1 running, 1 waiting", page.text(".queue .soft"))
    for left in (1, 0):
        page.press("Cancel", MINE)
        page.until(lambda left=left: len(page.all(f"{MINE} li")) == left)
    page.until(lambda: page.text(".queue .soft") == "Nothing runs, nothing waits.")


def test_goes_on_when_the_server_was_gone_and_results_are(
    browser: Any, small: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    page = Page(browser, small.url)
    with page.window(360):
        page.open()
        page.ready()
        page.write("Pictures", 16)
        page.order("a red apple", steps=1)
        page.until(lambda: page.find(".job[data-state=done]"))
        page.go("gallery")
        page.until(lambda: page.find(".grid .tile img[src]"))
        assert page.all(".grid .tile img:not([src])")  # far below, so not fetched yet
        page.go("generate")
        page.write("Pictures", 1)
        page.order("a cat face", steps=900)
        page.until(lambda: re.match(r"Step \d+ of 900", page.text(".job .status")))
        small.process.kill()
        small.process.wait()
        page.until(lambda: "The server cannot be reached." in page.text("#banner"))
        page.order("a blue heart", steps=2)
        page.until(lambda: page.text(".job .status").startswith("The server cannot be reached."))
        assert page.text(".state") == "not reached"
        time.sleep(1)  # so that what was drawn is older than results are kept by the next server
        (tmp_path / "serve.toml").write_text("age = 1\n")
        command = [*small.process.args, "--config", str(tmp_path / "serve.toml")]
        small.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        page.until(lambda: not page.find("#banner:not([hidden])"))
        page.until(lambda: "The server ended while this job ran." in page.texts(".job .status")[1])
        page.press("Try again")
        page.until(lambda: page.text(".job .prompt") == "a blue heart" and page.find(".job[data-state=done] img[src]"))
        page.js("scrollTo(0, 0)")
        page.go("gallery")
        page.until(lambda: len(page.all(".grid li")) == 1)
        assert page.text(".grid .caption") == "a blue heart"


def test_asks_for_a_key_and_sends_it_with_everything(browser: Any, guarded: Any) -> None:
    page = Page(browser, guarded.url)
    page.open()
    page.until(lambda: page.find(".ask[open] input"))
    page.press("Not now")
    page.until(lambda: page.text("#banner").startswith("This server wants an API key."))
    page.press("Enter the key")
    for given in ("vk_wrong", guarded.keys["ann"]):
        page.until(lambda: page.find(".ask[open] input")).send_keys(given)
        page.press("Use it")
        page.until(lambda: page.js("return document.querySelector('.ask input').value") == "")
    page.ready()
    assert not page.find("#banner:not([hidden])")
    page.order("a red apple", steps=2)
    page.until(lambda: page.find(".job[data-state=done] img[src^='blob:']"))
    page.go("gallery")
    page.until(lambda: page.find(".grid .tile img[src^='blob:']"))
    assert [fault for fault in page.faults() if "401" not in fault] == []
    assert guarded.keys["ann"] not in page.js("return JSON.stringify({...localStorage}) + location + document.cookie")
    with guarded.client("bob") as other:
        jobs = other.get("/v1/jobs").json()["jobs"]
    assert "a red apple" not in [job["request"].get("prompt") for job in jobs]


def test_page_needs_no_key_but_its_data_do(guarded: Any) -> None:
    with guarded.client() as stranger:
        assert stranger.get("/").status_code == 200
        assert stranger.get("/page/main.js").status_code == 200
        assert stranger.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize(("width", "colours"), [(360, "dark"), (1280, "light")])
def test_fits_the_window_and_names_its_buttons(page: Page, width: int, colours: str) -> None:
    with page.window(width, colours=colours):
        page.open()
        page.ready()
        assert page.js("return document.documentElement.dataset.theme") == colours
        page.write("Pictures", 3)
        page.order("a very long prompt " + "x" * 80, steps=2)
        page.until(lambda: page.find(".job[data-state=done]"))
        page.order("a cat face", steps=900)
        for panel in ("classify", "gallery", "queue", "generate"):
            page.go(panel)
            wide = page.js("return document.documentElement.scrollWidth")
            assert wide <= page.js("return document.documentElement.clientWidth"), panel
            nameless = page.js("""
              const kinds = "button, input:not([aria-hidden]), select, textarea, img:not([alt])";
              const named = (one) => one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim();
              return [...document.querySelectorAll(kinds)].filter((one) => one.checkVisibility() && !named(one))
                .map((one) => one.outerHTML);
            """)
            assert nameless == [], panel
        page.press("Light colours" if colours == "dark" else "Dark colours")
        assert page.js("return document.documentElement.dataset.theme") != colours
        assert page.faults() == []
