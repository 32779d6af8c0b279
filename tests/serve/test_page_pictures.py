"""The page's fields for pictures, ControlNets, LoRAs and hooks, in a headless Chromium against a real server.

What the page draws is compared, byte for byte, with what the API draws of the same body.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

pytest.importorskip("fastapi", reason="needs the extra serve")

from .browser import HELD, Page, chromium

DONE = ".job[data-state=done]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def http(able: Any) -> Iterator[Any]:
    with able.client() as client:
        yield client


@pytest.fixture
def page(browser: Any, able: Any, http: Any) -> Iterator[Page]:
    """Opened on an idle server that has a ControlNet, LoRAs and a hook; what it sends is noted."""
    assert able.idle(http)
    page = Page(browser, able.url)
    page.open()
    page.ready()
    page.note_jobs()
    page.write("Model", able.draws)
    try:
        yield page
    finally:
        for job in http.get("/v1/queue").json()["mine"]:
            http.delete(f"/v1/jobs/{job['id']}")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """96 by 80 pixels with edges."""
    return saved(tmp_path / "photo.png", (96, 80))


def saved(path: Path, size: tuple[int, int]) -> Path:
    image = Image.new("RGB", size, (250, 200, 0))
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill=(40, 40, 200))
    image.save(path)
    return path


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def newest(http: Any) -> Any:
    return http.get("/v1/jobs?limit=1").json()["jobs"][0]


def drawn(http: Any, job: Any) -> bytes:
    return bytes(http.get(job["pictures"][0]).content)


def by_the_api(http: Any, **body: Any) -> bytes:
    """The picture of this body, drawn without the page."""
    job = http.post("/v1/jobs", json={"kind": "generate", "steps": 4, "guidance": 3, "seed": 7, **body}).json()
    assert "id" in job, job
    while job["status"] in ("queued", "running"):
        job = http.get(f"/v1/jobs/{job['id']}").json()
    assert job["status"] == "succeeded", job
    return drawn(http, job)


def as_text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def test_starts_from_a_chosen_picture_and_does_so_again(page: Page, http: Any, able: Any, photo: Path) -> None:
    assert not page.field("Strength").is_displayed()
    page.choose(photo)
    assert page.js("return [...document.querySelectorAll('.size input')].map((one) => one.value)") == ["96", "80"]
    assert page.value("Strength") == "0.8"
    page.write("Strength", 0.5)
    page.draw("a red apple")
    same = {"model": able.draws, "prompt": "a red apple", "image": as_text(photo), "strength": 0.5}
    assert drawn(http, newest(http)) == by_the_api(http, **same, width=96, height=80)
    assert page.text(".job .with") == "Start: a picture, strength 0.5"
    assert page.js("return document.querySelector('.job .with img').naturalWidth") == 96
    page.press("Remove the start picture")
    assert not page.find(f".start {HELD}")
    page.press("1:1, 64 by 64 pixels")
    page.press("Use settings", ".job")
    page.until(lambda: page.find(f".start {HELD}"))
    assert (page.value("Strength"), page.value("Seed")) == ("0.5", "7")
    first = drawn(http, http.get("/v1/jobs?limit=2").json()["jobs"][1])
    page.find(".form button[type=submit]").click()
    page.until(lambda: len(page.all(DONE)) == 2)
    assert drawn(http, newest(http)) == first
    page.find(".job .tile").click()
    page.until(lambda: page.find(".viewer[open]"))
    assert "a picture, strength 0.5" in page.texts(".viewer[open] .facts dd")
    assert page.faults() == []


def test_takes_over_the_size_that_was_drawn_and_not_the_picture_s(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.press("1:1, 64 by 64 pixels")
    page.draw("a red apple", steps=2)
    page.press("Remove the start picture")
    page.press("Use settings", ".job")
    page.until(lambda: page.find(f".start {HELD}"))
    page.draw("a red apple", steps=2)
    body = page.sent()
    assert ("image" in body, body["width"], body["height"]) == (True, 64, 64)
    assert page.faults() == []


def test_takes_a_dropped_and_a_pasted_picture_and_says_what_is_none(page: Page, photo: Path, tmp_path: Path) -> None:
    page.drop(photo, at=(700, 600))
    page.until(lambda: page.text(".start .file") == "photo.png")
    page.press("Remove the start picture")
    page.js(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
        document.activeElement.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
        """,
        as_text(photo),
    )
    page.until(lambda: page.text(".start .file") == "pasted.png")
    (tmp_path / "notes.png").write_text("no picture")
    page.drop(tmp_path / "notes.png")
    page.until(lambda: page.text("#toast") == "notes.png is no PNG, JPEG or WebP that can be read.")
    assert page.text(".start .file") == "pasted.png"
    assert page.faults() == []


def test_a_large_picture_is_made_smaller_before_it_is_sent(page: Page, tmp_path: Path) -> None:
    page.choose(saved(tmp_path / "large.jpg", (3000, 1500)))
    assert "2048 × 1024" in page.find(f".start {HELD}").text
    page.draw("a red apple", steps=2)
    body = page.sent()
    assert decoded(body["image"]).size == (2048, 1024)
    assert (body["width"], body["height"]) == (128, 64)  # of its shape, in what the model draws well
    assert page.faults() == []


def test_a_photo_that_lies_on_its_side_is_sent_upright(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    Image.open(saved(tmp_path / "photo.png", (96, 64))).save(tmp_path / "phone.jpg", exif=exif)
    page.choose(tmp_path / "phone.jpg")
    assert "64 × 96" in page.find(f".start {HELD}").text
    page.draw("a red apple", steps=2)
    picture = decoded(page.sent()["image"])
    assert (picture.size, picture.getexif().get(0x0112)) == ((64, 96), None)


def test_follows_a_controlnet(page: Page, http: Any, able: Any, photo: Path) -> None:
    page.press("Add a ControlNet")
    page.order("a red apple", steps=4, seed=7)
    page.until(lambda: page.text(".note") == "A ControlNet needs a picture to follow: give one, or remove it.")
    assert page.all(".job") == []
    assert page.js("return document.activeElement.getAttribute('aria-label')") == "Choose the picture to follow"
    page.choose(photo, ".unit")
    page.write("Made by", "canny")
    strength = page.find(".unit .line input[type=number]")
    strength.clear()
    strength.send_keys("0.75")
    page.write("To", 0.5)
    page.draw("a red apple")
    job = newest(http)
    unit = {"net": "lines", "made_by": "canny", "strength": 0.75, "start": 0.0, "end": 0.5}
    assert job["request"]["control"] == [unit]
    same = {"model": able.draws, "prompt": "a red apple"}
    assert drawn(http, job) == by_the_api(http, **same, control=[{**unit, "picture": as_text(photo)}])
    assert drawn(http, job) != by_the_api(http, **same)
    assert page.text(".job .with") == "ControlNet: lines 0.75, edges (canny), from 0 to 0.5"
    page.press("Remove ControlNet 1")
    page.press("Use settings", ".job")
    page.until(lambda: page.find(f".unit {HELD}"))
    assert (page.value("Made by"), page.value("From"), page.value("To")) == ("canny", "0", "0.5")
    page.find(".form button[type=submit]").click()
    page.until(lambda: len(page.all(DONE)) == 2)
    assert drawn(http, newest(http)) == drawn(http, job)
    assert page.faults() == []


def test_lays_a_lora_on_as_a_tag_in_the_prompt_does(page: Page, http: Any, able: Any) -> None:
    assert page.texts(".settings [aria-label='LoRA to add'] option") == ["broken", "deep", "style"]
    page.find("[aria-label='LoRA to add'] option[value=style]").click()
    page.press("Add this LoRA")
    page.write("style", 0.5)
    page.draw("a red apple")
    job = newest(http)
    same = {"model": able.draws, "prompt": "a red apple"}
    assert drawn(http, job) == by_the_api(http, **same, loras={"style": 0.5})
    assert page.text(".job .with") == "LoRA: style 0.5"
    page.press("Remove style")
    assert "style" in page.texts("[aria-label='LoRA to add'] option")
    page.draw("a red apple <lora:style:0.5>")
    assert drawn(http, newest(http)) == drawn(http, job)
    page.until(lambda: page.text(".job .with") == "LoRA: style 0.5")
    assert "loras" not in page.sent()
    page.press("Use settings", ".job")
    assert (page.value("Prompt"), page.value("style")) == ("a red apple", "0.5")
    page.draw("a red apple <lora:deep:0.25:0.5>")
    page.press("Use settings", ".job")
    assert page.value("Prompt") == "a red apple <lora:deep:0.25:0.5>"  # two strengths have no slider
    assert page.text(".job .with") == "LoRAs: style 0.5, deep 0.5 / 0.25"
    assert page.faults() == []


def test_a_hook_can_be_left_out(page: Page, http: Any) -> None:
    page.draw("a __colour__ apple", steps=1)
    assert newest(http)["details"]["parameters"][0]["prompt"] == "a red apple"
    page.find(".settings .actions input[type=checkbox]").click()
    page.draw("a __colour__ apple", steps=1)
    assert page.sent()["hooks"] == []
    assert newest(http)["details"]["parameters"][0]["prompt"] == "a __colour__ apple"
    assert page.text(".job .with") == "Hooks: none"


def test_a_drawn_picture_is_sent_to_the_form(page: Page, http: Any) -> None:
    page.draw("a red apple")
    picture = drawn(http, newest(http))
    page.go("gallery")
    page.until(lambda: page.find(".grid .tile img[src]")).find_element("xpath", "..").click()
    page.press("Start from this", ".viewer")
    page.until(lambda: page.find(f"#panel-generate:not([hidden]) .start {HELD}"))
    assert page.text(".start .file") == "a red apple"
    page.draw("a green apple")
    assert base64.b64decode(page.sent()["image"]) == picture
    assert page.faults() == []


def seen(page: Page) -> set[str]:
    """Which groups of fields are."""
    groups = page.js("""
      return [...document.querySelectorAll("#panel-generate [role=group]")].filter((one) => one.checkVisibility())
        .map((one) => document.getElementById(one.getAttribute("aria-labelledby"))?.textContent)
    """)
    return {"Start picture", "LoRAs", "ControlNets", "Hooks"} & set(groups)


@pytest.fixture(scope="module")
def bare(start_server: Any, diffusion_artifact: Path, tmp_path_factory: Any) -> Any:
    """A server without LoRAs and hooks. `old` was exported before pictures were encoded, `fills` only draws into them.

    The embedding that it was started with is of another model.
    """
    folder = tmp_path_factory.mktemp("bare")
    for name, task in (("old", "text2img"), ("fills", "inpaint")):
        shutil.copytree(diffusion_artifact, folder / name)
        manifest = json.loads((folder / name / "artifact.json").read_text())
        manifest["pipeline"]["tasks"] = [task]
        if name == "old":
            manifest["components"].pop("vae_encoder")
        (folder / name / "artifact.json").write_text(json.dumps(manifest))
    save_file({"emb_params": np.ones((1, 48), np.float32)}, folder / "qwx.safetensors")
    return start_server("--embedding", folder / "qwx.safetensors", models=(folder / "old", folder / "fills"))


def test_shows_what_the_chosen_model_can_do(page: Page, browser: Any, bare: Any) -> None:
    assert seen(page) == {"Start picture", "LoRAs", "ControlNets", "Hooks"}
    page.press("Add a ControlNet")
    page.write("Model", "emoji")  # was exported without --control
    assert seen(page) == {"Start picture", "LoRAs", "Hooks"}
    assert page.all(".unit") == []
    other = Page(browser, bare.url)
    other.open()
    other.ready()
    assert seen(other) == set()
    other.draw("a red apple", steps=2)
    assert other.button("Use settings", ".job")
    assert not other.button("Start from this", ".job")
    assert other.faults() == []


def test_asks_for_what_an_inpainting_model_needs(browser: Any, bare: Any, photo: Path) -> None:
    page = Page(browser, bare.url)
    page.open()
    page.ready()
    page.write("Model", "fills")
    page.order("a red apple", steps=2)
    page.until(lambda: page.text(".note") == "This model draws into a picture: give one.")
    page.choose(photo)
    assert not page.find(".note:not([hidden])")
    page.order("a red apple", steps=2)
    page.until(lambda: page.text(".note") == "This model draws what a mask covers: paint one.")
    assert page.js("return document.activeElement.textContent") == "Paint a mask"
    page.press("Paint a mask")
    page.press("Invert", ".painter")
    page.press("Use it", ".painter")
    page.until(lambda: page.button("Change mask"))
    page.draw("a red apple", steps=2)
    assert page.text(".job .with") == "Start: a picture and a mask, strength 1"
    assert page.faults() == []


def test_shows_the_notes_of_a_result(browser: Any, bare: Any) -> None:
    page = Page(browser, bare.url)
    page.open()
    page.ready()
    page.draw("a qwx apple", steps=2)
    (note,) = page.texts(".job .notes li")
    assert note.startswith("'qwx' is no word of this model: ")
    page.find(".job .tile").click()
    page.until(lambda: page.find(".viewer[open]"))
    assert note in page.texts(".viewer[open] .facts dd")


def test_after_a_reload_pictures_must_be_given_again(page: Page, photo: Path) -> None:
    page.press("Add a ControlNet")
    page.choose(photo, ".unit")
    page.choose(photo)
    page.write("Strength", 0.9)
    page.order("a cat face", steps=900)
    page.until(lambda: page.text(".job .status").startswith("Step "))
    page.browser.refresh()
    page.until(lambda: page.text(".job .status").startswith("Step "))
    assert page.text(".job .with") == "Start: a picture, strength 0.9. ControlNet: lines 1"
    page.press("Cancel")
    page.until(lambda: page.text(".job .status") == "Cancelled.")
    assert not page.button("Try again")  # for the server does not give pictures back
    assert page.button("Remove")
    page.js("sessionStorage.clear()")
    page.choose(photo)
    page.draw("a red apple")
    page.browser.refresh()
    page.ready()
    page.go("gallery")
    page.until(lambda: page.find(".grid .tile img[src]")).find_element("xpath", "..").click()
    page.press("Use settings", ".viewer")
    page.until(lambda: "Give the pictures again" in page.text("#toast"))
    assert (page.value("Prompt"), page.find(f".start {HELD}")) == ("a red apple", None)
    assert page.faults() == []


def test_steps_and_guidance_are_the_models_until_they_are_set(page: Page, http: Any, able: Any) -> None:
    model = next(one for one in http.get("/v1/models").json()["models"] if one["name"] == able.draws)
    assert (float(page.value("Steps")), float(page.value("Guidance"))) == (model["steps"], model["guidance"])
    page.write("Steps", 12)
    page.write("Model", "emoji")
    assert (page.value("Steps"), float(page.value("Guidance"))) == ("12", model["guidance"])


@pytest.mark.parametrize(("width", "colours"), [(390, "dark"), (1280, "light")])
def test_all_of_it_fits_the_window_and_has_names(page: Page, photo: Path, width: int, colours: str) -> None:
    with page.window(width, colours=colours):
        page.open()
        page.ready()
        page.write("Model", "steered")
        page.choose(photo)
        page.press("Add this LoRA")
        page.press("Add a ControlNet")
        page.choose(photo, ".unit")
        for painting in (False, True):
            if painting:
                page.press("Paint a mask")
                page.until(lambda: page.find(".painter[open]"))
            for box in ("html", ".form", ".painter[open]")[: 2 + painting]:
                sides = "const one = document.querySelector(arguments[0]); return one.scrollWidth - one.clientWidth"
                wide = page.js(sides, box)
                assert wide <= 0, box
            nameless = page.js("""
              const kinds = "button, input:not([aria-hidden]), select, textarea, canvas, img:not([alt])";
              const named = (one) => one.labels?.length || one.getAttribute("aria-label") || one.textContent.trim();
              return [...document.querySelectorAll(kinds)].filter((one) => one.checkVisibility() && !named(one))
                .map((one) => one.outerHTML);
            """)
            assert nameless == []
        page.press("Cancel", ".painter")
        assert page.js("return document.activeElement.textContent") == "Paint a mask"
        assert page.faults() == []
