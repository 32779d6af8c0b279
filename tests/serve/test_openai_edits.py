"""POST /v1/images/edits: forms as the openai client sends them, and as nobody should."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from .test_openai import events, opened, refused

PATH = "/v1/images/edits"
FIELDS = {"prompt": "a fox face", "num_inference_steps": "4", "seed": "7"}  # the client sends all as texts


@pytest.fixture(scope="module")
def here(pictures_of):
    """here(image, **more): what the pipeline draws by itself for the same request."""
    return lambda image, **more: pictures_of("a fox face", image=image, steps=4, seed=7, **more)


@pytest.fixture(scope="module")
def photo():
    made = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    ImageDraw.Draw(made).ellipse((20, 12, 60, 52), (220, 120, 20))
    return made


def file_of(image, form="PNG"):
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def clear(photo, box=(30, 20, 50, 40)):
    """The picture as OpenAI's mask: nothing is left inside `box`."""
    made = photo.convert("RGBA")
    made.paste((0, 0, 0, 0), box)
    return made


def edit(http, image, mask=None, name="image", **fields):
    files = {name: ("a.png", image, "image/png")} | ({"mask": ("m.png", mask, "image/png")} if mask is not None else {})
    return http.post(PATH, data={**FIELDS, **fields}, files=files)


def same(data, image):
    np.testing.assert_array_equal(np.asarray(opened(data).convert("RGB")), np.asarray(image))


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_a_picture_is_changed_as_a_whole(http, server, here, photo, name):
    answer = edit(http, file_of(photo), name=name, model=server.draws, response_format="b64_json", background="auto")
    assert answer.status_code == 200, answer.text[:300]
    said = answer.json()
    assert said["size"] == "96x64"  # the picture's own
    assert said["output_format"] == "png"
    (one,) = said["data"]
    assert one["seed"] == 7
    same(one["b64_json"], here(photo)[0])


def test_where_the_mask_is_transparent(http, here, photo):
    (one,) = edit(http, file_of(photo), file_of(clear(photo))).json()["data"]
    mask = Image.new("L", photo.size)
    mask.paste(255, (30, 20, 50, 40))
    same(one["b64_json"], here(photo, mask=mask)[0])
    half = clear(photo)
    half.putalpha(half.getchannel("A").point(lambda value: value or 1))  # nothing is fully transparent
    (kept,) = edit(http, file_of(photo), file_of(half)).json()["data"]
    assert kept["b64_json"] != one["b64_json"]


def test_all_fields(http, here, photo):
    more = {
        "n": "2", "size": "64x64", "output_format": "webp", "strength": "0.5", "guidance_scale": "3.5", "user": "me",
        "negative_prompt": "a cat", "quality": "auto", "stream": "false", "input_fidelity": "low",
    }  # fmt: skip
    said = edit(http, file_of(photo, "JPEG"), **more).json()
    assert [one["seed"] for one in said["data"]] == [7, 8]
    assert all(opened(one["b64_json"]).format == "WEBP" for one in said["data"])
    assert opened(said["data"][0]["b64_json"]).size == (64, 64)
    more["output_format"] = "png"
    data = edit(http, file_of(photo), **more).json()["data"]
    given = {"width": 64, "height": 64, "strength": 0.5, "guidance": 3.5, "negative_prompt": "a cat"}
    for one, image in zip(data, here(photo, batch=2, **given), strict=True):
        same(one["b64_json"], image)


def test_empty_fields_count_as_not_given(http, photo):
    plain = edit(http, file_of(photo)).json()["data"]
    assert edit(http, file_of(photo), n="", size="", strength="", negative_prompt="").json()["data"] == plain


def test_a_stream_of_an_edit(http, photo):
    data = {**FIELDS, "stream": "true", "partial_images": "1"}
    files = {"image": ("a.png", file_of(photo)), "mask": ("m.png", file_of(clear(photo)))}
    with http.stream("POST", PATH, data=data, files=files) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        found = events(response)
    assert [kind for kind, _ in found] == ["image_edit.partial_image", "image_edit.completed"]
    assert all(kind == one["type"] for kind, one in found)
    last = found[-1][1]
    assert last["b64_json"] == edit(http, file_of(photo), file_of(clear(photo))).json()["data"][0]["b64_json"]
    assert (last["size"], last["usage"]["total_tokens"]) == ("96x64", 0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": "0"}, "n"), ({"n": "11"}, "n"), ({"n": "many"}, "n"), ({"n": "1" + "0" * 400}, "n"),
        ({"size": "64"}, "size"), ({"size": "60x64"}, "size"), ({"stream": "perhaps"}, "stream"),
        ({"strength": "0"}, "strength"), ({"strength": "1.5"}, "strength"), ({"strength": "nan"}, "strength"),
        ({"strength": "0.1"}, "strength"), ({"seed": "-1"}, "seed"), ({"seed": "7.5"}, "seed"),
        ({"num_inference_steps": "0"}, "num_inference_steps"), ({"guidance_scale": "inf"}, "guidance_scale"),
        ({"background": "transparent"}, "background"), ({"output_format": "gif"}, "output_format"),
        ({"input_fidelity": "high"}, "input_fidelity"), ({"unknown": "1"}, "unknown"),
        ({"prompt": "x" * 20_001}, "prompt"),
        ({"partial_images": "1"}, "stream"), ({"prompt": "a fox <lora:none:1>"}, "prompt"),
    ],
)  # fmt: skip
def test_fields_that_make_no_sense(http, photo, fields, param):
    error = refused(edit(http, file_of(photo), **fields), param=param)
    assert error["type"] == "invalid_request_error"


def test_pictures_that_make_no_sense(http, photo, picture):
    good = file_of(photo)
    refused(edit(http, b"no picture"), param="image")
    refused(edit(http, b""), param="image")
    refused(edit(http, picture("GIF")), param="image")
    refused(edit(http, good[:30]), param="image")
    refused(edit(http, good[:-40]))  # which only a decoder notices
    refused(edit(http, good, good), param="mask")  # it has no alpha
    refused(edit(http, good, b"no picture"), param="mask")
    refused(edit(http, good, file_of(clear(photo).resize((32, 32)))), param="mask")
    refused(edit(http, file_of(Image.new("L", (9000, 9000)))), 413)
    refused(edit(http, good, file_of(Image.new("LA", (9000, 9000)))), 413)
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 4), np.uint8)
    refused(edit(http, good, file_of(Image.fromarray(noise, "RGBA"))[:900]))


def test_forms_that_make_no_sense(http, server, photo):
    good = ("a.png", file_of(photo))
    refused(http.post(PATH, data=FIELDS), param=None)  # no form, but fields of an ordinary page
    refused(http.post(PATH, json=FIELDS), param=None)
    refused(http.post(PATH, data={}, files={"image": good}), param="prompt")
    refused(http.post(PATH, data=FIELDS, files=[("image[]", good), ("image[]", good)]), param="image")
    refused(http.post(PATH, data=FIELDS, files=[("image", good), ("mask", good), ("mask", good)]), param="mask")
    refused(http.post(PATH, data=FIELDS, files={"markup": good}), param="markup")
    refused(http.post(PATH, data=FIELDS, files={"mask": good}), param="image")
    refused(http.post(PATH, data={**FIELDS, "n": ["1", "2"]}, files={"image": good}), param="n")
    refused(http.post(PATH, data={**FIELDS, "image": "text"}, files={"mask": good}), param="image")
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (
        b"",
        b"--x\r\n",
        b"nothing of the kind",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n',
    ):
        refused(http.post(PATH, content=body, headers=kind))
    many = {f"field{number}": "x" for number in range(100)}
    refused(http.post(PATH, data={**FIELDS, **many}, files={"image": good}))
    refused(http.post(PATH, data={**FIELDS, "prompt": "x" * 200_000}, files={"image": good}))
    refused(http.post(PATH, data={**FIELDS, "model": server.labels}, files={"image": good}))
    refused(http.post(PATH, data={**FIELDS, "model": "nothing"}, files={"image": good}), 404)


def test_keys(guarded, photo):
    with guarded.client() as http:
        assert refused(http.post(PATH, content=b"{"), 401)["code"] == "unauthorized"


def test_the_client_itself(server, photo):
    """What it sends and reads today, where it is installed."""
    openai = pytest.importorskip("openai", reason="needs the extra clients")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    extra = {"seed": 7, "num_inference_steps": 4}
    made = client.images.edit(
        image=("a.png", file_of(photo)), mask=("m.png", file_of(clear(photo))), prompt="a fox face", extra_body=extra
    )
    assert base64.b64decode(made.data[0].b64_json).startswith(b"\x89PNG")
    listed = client.images.edit(image=[("a.png", file_of(photo))], prompt="a fox face", extra_body=extra)
    assert opened(listed.data[0].b64_json).size == (96, 64)
    with pytest.raises(openai.UnprocessableEntityError, match="num_inference_steps"):
        client.images.edit(image=file_of(photo), prompt="x", extra_body={"num_inference_steps": 0})
    stream = client.images.edit(image=file_of(photo), prompt="a fox face", stream=True, extra_body=extra)
    assert [event.type for event in stream] == ["image_edit.completed"]


def test_the_reference_shows_the_form(http):
    shown = http.get("/openapi.json").json()["paths"][PATH]["post"]["requestBody"]["content"]["multipart/form-data"]
    schema = shown["schema"]
    assert {"image", "mask", "prompt", "strength", "seed"} <= set(schema["properties"])
    assert set(schema["required"]) == {"prompt", "image"}
    json.dumps(schema)
