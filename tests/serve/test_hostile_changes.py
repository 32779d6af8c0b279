"""Pictures that are made to hurt, where one is to be changed, masked or followed: refused as those to be labelled."""

from __future__ import annotations

import base64
import time

import pytest

from .hostile import AT_ONCE, LITTLE, forget_peak, memory, reason, talk
from .test_hostile_pictures import DAMAGED, GOOD_PNG, REFUSED, TAKEN, png_of

WAYS = {"hf": "hf", "edit": "openai", "edit mask": "openai", "img2img": "a1111", "img2img mask": "a1111",
        "img2img size": "a1111", "controlnet": "a1111"}  # fmt: skip
"""Where a picture may be -> the protocol, for the shape of its errors."""


def send(http, server, way, data):
    """The answer to a picture that is there."""
    text = base64.b64encode(data).decode()
    if way == "hf":
        body = {"inputs": text, "parameters": {"prompt": "a fox", "num_inference_steps": 2, "strength": 1}}
        body["parameters"]["target_size"] = {"width": 64, "height": 64}
        return http.post(f"/models/{server.draws}", json=body)
    if way.startswith("edit"):
        files = {"image": ("a.png", data)} | ({"mask": ("a.png", data)} if way == "edit mask" else {})
        fields = {"prompt": "a fox", "num_inference_steps": "2", "strength": "1", "size": "64x64"}
        return http.post("/v1/images/edits", data=fields, files=files)
    body = {"prompt": "a fox", "steps": 2, "denoising_strength": 1, "init_images": [text]}
    if way == "img2img mask":
        body["mask"] = text
    if way == "img2img size":
        body["resize_mode"] = 1
    if way == "controlnet":
        body["init_images"] = [base64.b64encode(GOOD_PNG).decode()]
        body["alwayson_scripts"] = {"controlnet": {"args": [{"model": "lines", "image": text, "resize_mode": 1}]}}
    return http.post("/sdapi/v1/img2img", json=body)


@pytest.fixture
def http(able):
    with able.client() as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def warm(able):
    """The model and its ControlNet are loaded, so that what follows measures the refusal."""
    with able.client() as http:
        for way in ("controlnet", "img2img size", "edit"):
            assert send(http, able, way, GOOD_PNG).status_code == 200
        send(http, able, "edit", bytes(6_000_000))


@pytest.fixture(autouse=True)
def unharmed(able):
    """After each of these the server lives and answers at once."""
    yield
    assert able.process.poll() is None
    with able.client() as http:
        start = time.monotonic()
        assert http.get("/healthz").json() == {"status": "ok"}
        assert time.monotonic() - start < AT_ONCE


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_header(http, able, name):
    data, why = REFUSED[name]
    for way, protocol in WAYS.items():
        before, start = forget_peak(able), time.monotonic()
        answer = send(http, able, way, data)
        took, grown = time.monotonic() - start, memory(able) - before
        assert answer.status_code in (413, 422), (way, answer.text[:300])
        assert why in reason(protocol, answer), way
        assert took < AT_ONCE, way
        assert grown < LITTLE + 12 * len(data), way  # JSON, base64 and files, of the picture and the mask


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_behind_a_fine_header(http, able, name):
    data = DAMAGED[name]
    for way, protocol in WAYS.items():
        before, start = forget_peak(able), time.monotonic()
        answer = send(http, able, way, data)
        took, grown = time.monotonic() - start, memory(able) - before
        assert answer.status_code == 422, (way, answer.text[:300])
        assert reason(protocol, answer)
        assert took < AT_ONCE, way
        assert grown < 2 * LITTLE + 12 * len(data) + 4 * 3000 * 3000, way  # the largest of them, decoded


@pytest.mark.parametrize("name", TAKEN)
def test_odd_but_fine(http, able, name):
    for way in ("hf", "edit", "img2img", "img2img size", "controlnet"):
        answer = send(http, able, way, TAKEN[name])
        assert answer.status_code == 200, (way, answer.text[:300])


def test_all_pictures_of_a_request_together(http, able):
    """Each by itself would be taken: 36 million pixels of 64."""
    half = png_of(width=6000, height=6000)
    for way in ("edit mask", "img2img mask"):
        answer = send(http, able, way, half)
        assert answer.status_code == 413, (way, answer.text[:300])
        assert "pixels" in reason(WAYS[way], answer)


def test_many_units(http, able):
    """More than are taken."""
    text = base64.b64encode(GOOD_PNG).decode()
    units = [{"model": "lines", "image": text}] * 1000
    body = {"prompt": "a fox", "alwayson_scripts": {"controlnet": {"args": units}}}
    start = time.monotonic()
    answer = http.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 422, answer.text[:300]
    assert "args" in reason("a1111", answer)
    assert time.monotonic() - start < AT_ONCE


def test_bodies_that_say_they_are_large(able):
    for path in ("/v1/images/edits", "/sdapi/v1/img2img"):
        status, _, _ = talk(able, f"POST {path} HTTP/1.1\nHost: 127.0.0.1\nContent-Length: 1000000000\n\n".encode())
        assert status == 413
