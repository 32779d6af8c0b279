"""POST /v1/images/generations as the openai client sends it and reads the answers, and as nobody should."""

from __future__ import annotations

import base64
import io
import json
import time

import pytest
from PIL import Image

PATH = "/v1/images/generations"


def asked(server, **more):
    """What the client sends for images.generate(..., extra_body={...})."""
    return {"model": server.draws, "prompt": "a fox face", "num_inference_steps": 2, "seed": 7, **more}


def opened(data):
    return Image.open(io.BytesIO(base64.b64decode(data)))


def refused(response, *statuses, param=...):
    assert response.status_code in (statuses or (422,)), response.text[:300]
    assert response.status_code != 409
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if param is not ...:
        assert error["param"] == param
    return error


def events(response):
    """(event, data) of a stream; comments are left out, as clients do."""
    found = []
    for block in response.read().decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_a_picture(http, server):
    answer = http.post(PATH, json=asked(server, size="96x32", response_format="b64_json"))
    assert answer.status_code == 200
    said = answer.json()
    assert isinstance(said["created"], int)
    assert said["size"] == "96x32"
    assert said["output_format"] == "png"
    (one,) = said["data"]
    assert one["seed"] == 7
    assert opened(one["b64_json"]).size == (96, 32)
    assert opened(one["b64_json"]).format == "PNG"
    again = http.post(PATH, json=asked(server, size="96x32")).json()["data"]
    assert again == said["data"]


def test_several_pictures_have_seeds_that_draw_them_again(http, server):
    data = http.post(PATH, json=asked(server, n=3)).json()["data"]
    assert [one["seed"] for one in data] == [7, 8, 9]
    alone = http.post(PATH, json=asked(server, seed=8)).json()["data"][0]
    pairs = zip(opened(alone["b64_json"]).tobytes(), opened(data[1]["b64_json"]).tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 2  # a batch may be computed by other kernels


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats(http, server, kind):
    said = http.post(PATH, json=asked(server, output_format=kind)).json()
    assert said["output_format"] == kind
    assert opened(said["data"][0]["b64_json"]).format == kind.upper()


def test_what_the_client_leaves_out(http):
    """The model that draws, its own size, a random seed."""
    first = http.post(PATH, json={"prompt": "a fox face", "num_inference_steps": 1, "size": "auto"}).json()["data"][0]
    second = http.post(PATH, json={"prompt": "a fox face", "num_inference_steps": 1, "n": None}).json()["data"][0]
    assert opened(first["b64_json"]).size == (64, 64)
    assert first["seed"] != second["seed"]


def test_fields_that_change_nothing_here(http, server):
    more = {"user": "me", "quality": "auto", "background": "opaque", "moderation": "auto", "stream": False}
    assert (
        http.post(PATH, json=asked(server, **more)).json()["data"] == http.post(PATH, json=asked(server)).json()["data"]
    )


def test_a_stream_ends_with_the_picture(http, server):
    body = asked(server, stream=True)
    with http.stream("POST", PATH, json=body, headers={"Accept": "text/event-stream"}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        found = events(response)
    ((kind, data),) = found
    assert kind == data["type"] == "image_generation.completed"
    assert data["b64_json"] == http.post(PATH, json=asked(server)).json()["data"][0]["b64_json"]
    assert (data["size"], data["output_format"], data["quality"], data["background"]) == (
        "64x64",
        "png",
        "auto",
        "opaque",
    )
    assert isinstance(data["created_at"], int)
    assert data["usage"]["total_tokens"] == 0


def test_a_stream_with_previews(http, server):
    body = asked(server, stream=True, partial_images=3, num_inference_steps=12, n=2)
    with http.stream("POST", PATH, json=body) as response:
        found = events(response)
    kinds = [kind.removeprefix("image_generation.") for kind, _ in found]
    assert kinds == ["partial_image"] * 3 + ["completed"] * 2
    assert [data["partial_image_index"] for _, data in found[:3]] == [0, 1, 2]
    assert all(kind == data["type"] for kind, data in found)
    previews = [opened(data["b64_json"]) for _, data in found[:3]]
    assert all(one.format.lower() == data["output_format"] for one, (_, data) in zip(previews, found, strict=False))
    assert len({one.tobytes() for one in previews}) == 3
    assert [data["seed"] for _, data in found[3:]] == [7, 8]


def test_a_client_that_leaves_a_stream_stops_the_job(http, server):
    with http.stream("POST", PATH, json=asked(server, stream=True, num_inference_steps=500)) as response:
        for line in response.iter_lines():
            if line.startswith(": step 2"):
                break
        (mine,) = http.get("/v1/queue").json()["mine"]
        assert mine["status"] == "running"
    assert server.idle(http)
    gone = http.get(f"/v1/jobs/{mine['id']}").json()
    assert gone["status"] == "cancelled"
    assert gone["step"] < 500


def test_a_client_that_does_not_wait_stops_the_job(http, server):
    import httpx

    with pytest.raises(httpx.ReadTimeout):
        http.post(PATH, json=asked(server, num_inference_steps=500), timeout=1)
    assert server.idle(http)


def test_refusals_come_before_the_stream(http, server):
    refused(http.post(PATH, json=asked(server, stream=True, n=0)), param="n")
    refused(http.post(PATH, json=asked(server, stream=True, model="nothing")), 404)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"), ({"prompt": 3}, "prompt"), ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "x" * 20_001}, "prompt"), ({"prompt": "\ud800"}, ...), ({"n": 0}, "n"), ({"n": 11}, "n"),
        ({"n": "2"}, "n"), ({"n": True}, "n"), ({"n": 10**40}, "n"), ({"size": "64"}, "size"), ({"size": 64}, "size"),
        ({"size": "64x"}, "size"), ({"size": "0x0"}, "size"), ({"size": "63x64"}, "size"), ({"size": "64X64"}, "size"),
        ({"size": "99999x99999"}, "size"), ({"size": "64x64\n"}, "size"), ({"size": "9" * 5000}, "size"),
        ({"response_format": "url"}, "response_format"), ({"output_format": "gif"}, "output_format"),
        ({"background": "transparent"}, "background"), ({"quality": "hd"}, "quality"), ({"stream": "yes"}, "stream"),
        ({"stream": True, "partial_images": 4}, "partial_images"), ({"partial_images": 1}, "stream"),
        ({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"), ({"seed": 2**64 - 1, "n": 2}, "seed"),
        ({"num_inference_steps": 0}, "num_inference_steps"), ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"guidance_scale": -0.1}, "guidance_scale"), ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"negative_prompt": {}}, "negative_prompt"), ({"unknown": 1}, "unknown"), ({"style": "vivid"}, "style"),
        ({"\udc00": 1}, ...), ({"model": 3}, "model"), ({"user": "x" * 2000}, "user"),
    ],
)  # fmt: skip
def test_fields_that_make_no_sense(http, server, fields, param):
    error = refused(http.post(PATH, content=json.dumps(asked(server, **fields))), param=param)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "bad_request"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"[" * 50_000, b"\xff", b'{"prompt": "x", "prompt'])
def test_json_that_is_none(http, body):
    refused(http.post(PATH, content=body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": [' + b"[]," * 7_000_000 + b"1]}", b'{"a": [' + b"1," * 10_000_000 + b"1]}",
        b"{" + b",".join(b'"k%d": 1' % number for number in range(1_000_000)) + b"}",
        b'{"a": "' + b"]" * 999 + b'"' + b"[" * 999,
    ],
    ids=["lists", "numbers", "fields", "brackets in a string"],
)  # fmt: skip
def test_json_that_would_take_long_to_read(http, body):
    start = time.monotonic()
    refused(http.post(PATH, content=body), 413, 422)
    assert time.monotonic() - start < 2  # a second, and another on a busy machine
    assert http.get("/healthz").status_code == 200


def test_models_that_do_not_draw(http, server):
    assert refused(http.post(PATH, json=asked(server, model="nothing")), 404)["code"] == "unknown_model"
    assert refused(http.post(PATH, json=asked(server, model=server.labels)))["code"] == "unsupported"
    refused(http.post(PATH, content=json.dumps(asked(server, model="\ud800"))), 404, 422)


def test_variations_are_refused(http, server, png):
    answer = http.post("/v1/images/variations", data={"model": server.draws}, files={"image": ("a.png", png)})
    error = refused(answer)
    assert error["code"] == "unsupported"
    assert "/v1/images/edits" in error["message"]


def test_the_models_as_the_client_lists_them(http, server):
    said = http.get("/v1/models").json()
    assert said["object"] == "list"
    assert {one["id"] for one in said["data"]} == {server.draws, server.labels}
    for one in said["data"]:
        assert one["object"] == "model"
        assert isinstance(one["created"], int)
        assert one["owned_by"]
    assert {one["name"] for one in said["models"]} == {server.draws, server.labels}
    one = http.get(f"/v1/models/{server.draws}").json()
    assert (one["id"], one["object"]) == (server.draws, "model")
    assert http.get("/v1/models/nothing").status_code == 404


def test_keys(guarded):
    with guarded.client() as http:
        answer = http.post(PATH, content=b"{")
        assert refused(answer, 401)["code"] == "unauthorized"
        assert "Bearer" in answer.headers["www-authenticate"]
        answer = http.post(PATH, json=asked(guarded), headers={"Authorization": "Bearer vk_wrong"})
        refused(answer, 401)
    with guarded.client("ann") as http:
        assert http.post(PATH, json=asked(guarded)).status_code == 200
