"""Image-to-image by POST /models/{name}, as huggingface_hub sends it, and as nobody should."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from .test_huggingface import drawn, png_that_says, refused


@pytest.fixture(scope="module")
def here(pictures_of):
    """here(prompt, image, **more): what the pipeline draws by itself for the same request."""
    return lambda prompt, image, **more: pictures_of(prompt, image=image, **more)[0]


@pytest.fixture(scope="module")
def photo():
    made = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    ImageDraw.Draw(made).ellipse((20, 12, 60, 52), (220, 120, 20))
    return made


@pytest.fixture(scope="module")
def file(photo):
    out = io.BytesIO()
    photo.save(out, "PNG")
    return out.getvalue()


def b64(data):
    return base64.b64encode(data).decode()


def change(http, server, inputs, **options):
    body = {"inputs": inputs, "parameters": {"num_inference_steps": 4, "seed": 7, **options}}
    return http.post(f"/models/{server.draws}", content=json.dumps(body))


def test_a_picture_and_a_prompt(http, server, here, photo, file):
    answer = change(http, server, b64(file), prompt="a fox face")
    assert answer.status_code == 200, answer.text[:300]
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "7"
    np.testing.assert_array_equal(drawn(answer.content), np.asarray(here("a fox face", photo, steps=4, seed=7)))
    assert change(http, server, f"data:image/png;base64,{b64(file)}", prompt="a fox face").content == answer.content


def test_all_parameters(http, server, here, photo, file):
    asked = {
        "prompt": "a fox face", "negative_prompt": "a cat", "guidance_scale": 3.5, "strength": 0.5,
        "target_size": {"width": 64, "height": 32}, "scheduler": "euler",
    }  # fmt: skip
    answer = change(http, server, b64(file), **asked)
    given = {"negative_prompt": "a cat", "guidance": 3.5, "strength": 0.5, "width": 64, "height": 32}
    wanted = here("a fox face", photo, steps=4, seed=7, scheduler="euler", **given)
    np.testing.assert_array_equal(drawn(answer.content), np.asarray(wanted))


def test_a_picture_is_told_from_a_prompt(http, server, here, photo, file):
    """Also where nothing says what shall become of it."""
    wanted = np.asarray(here("", photo, steps=4, seed=7))
    np.testing.assert_array_equal(drawn(change(http, server, b64(file)).content), wanted)
    for prompt in ("iVBORw0KGgo", "data: a fox", "/9j/ a fox", "UklGR" * 20, "aGFsbG8="):
        answer = change(http, server, prompt)
        assert answer.status_code == 200, prompt
        assert drawn(answer.content).shape == (64, 64, 3)


def test_the_accept_header_chooses_the_form(http, server, file):
    body = {"inputs": b64(file), "parameters": {"prompt": "a fox", "num_inference_steps": 2, "seed": 7}}
    said = http.post(f"/models/{server.draws}", json=body, headers={"Accept": "application/json"}).json()
    assert said["parameters"]["strength"] == 0.8
    assert said["parameters"]["prompt"] == "a fox"
    assert Image.open(io.BytesIO(base64.b64decode(said["image"]))).size == (96, 64)


def test_the_client_itself(server, here, photo, file, monkeypatch):
    """What huggingface_hub sends and reads today."""
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)  # read when the library was imported
    client = hub.InferenceClient(model=f"{server.url}/models/{server.draws}", timeout=120)
    size = hub.ImageToImageTargetSize(width=64, height=64)
    made = client.image_to_image(
        file, prompt="a fox face", negative_prompt="a cat", num_inference_steps=4, guidance_scale=3.5, seed=7
    )
    wanted = here("a fox face", photo, steps=4, seed=7, guidance=3.5, negative_prompt="a cat")
    np.testing.assert_array_equal(np.asarray(made.convert("RGB")), np.asarray(wanted))
    sized = client.image_to_image(file, prompt="a fox face", target_size=size, num_inference_steps=2, strength=0.6)
    assert sized.size == (64, 64)
    assert client.image_to_image(file).size == (96, 64)  # the picture's own bytes, and nothing else
    with pytest.raises(hub.errors.HfHubHTTPError, match="422"):
        client.image_to_image(file, prompt="a fox", num_inference_steps=0)


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"strength": 0}, "strength"), ({"strength": 1.1}, "strength"), ({"strength": "1"}, "strength"),
        ({"strength": 0.1}, "one of 4"), ({"strength": float("nan")}, "strength"), ({"target_size": 64}, "target_size"),
        ({"target_size": {"width": 64}}, "target_size.height"), ({"target_size": {"width": 60, "height": 64}}, "60"),
        ({"target_size": {"width": 10**30, "height": 64}}, "target_size.width"), ({"prompt": 3}, "prompt"),
        ({"target_size": {"width": 64, "height": 64, "depth": 1}}, "target_size.depth"),
        ({"prompt": "x" * 20_001}, "prompt"),
        ({"num_inference_steps": 0}, "num_inference_steps"), ({"guidance_scale": -1}, "guidance_scale"),
        ({"scheduler": "magic"}, "ddim"), ({"width": 64}, "width"), ({"mask_image": "x"}, "mask_image"),
        ({"seed": -1}, "seed"), ({"negative_prompt": ["a"]}, "negative_prompt"),
    ],
)  # fmt: skip
def test_parameters_that_make_no_sense(http, server, file, parameters, why):
    assert why in refused(change(http, server, b64(file), **{"prompt": "a fox", **parameters}))


def test_pictures_that_are_none(http, server, file, picture):
    assert "no base64" in refused(change(http, server, "a picture of a cat", prompt="a fox"))
    assert "no PNG" in refused(change(http, server, b64(picture("GIF")), prompt="a fox"))
    assert "not fetched" in refused(change(http, server, "http://127.0.0.1:9/a.png", prompt="a fox"))
    refused(change(http, server, b64(file[:60]), prompt="a fox"))
    refused(change(http, server, b64(file[:-40]), prompt="a fox"))
    refused(http.post(f"/models/{server.draws}", content=file[:60]))
    assert "9000x9000" in refused(change(http, server, b64(png_that_says(9000, 9000))), 413)
    assert "9000x9000" in refused(http.post(f"/models/{server.draws}", content=png_that_says(9000, 9000)), 413)


def test_a_controlnet_by_itself_does_nothing(able, net_artifact, file):
    with able.client() as http:
        for body in ({"content": file}, {"json": {"inputs": "a fox"}}, {"json": {"inputs": b64(file)}}):
            assert "is a ControlNet" in refused(http.post(f"/models/{net_artifact.name}", **body))
