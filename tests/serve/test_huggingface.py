"""POST /models/{name} as huggingface_hub and curl send it, and as nobody should."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vitrify.serve.errors import Unsupported
from vitrify.serve.huggingface import wanted

PROMPT = {"inputs": "a fox face", "parameters": {"num_inference_steps": 2, "seed": 7}}


def b64(data):
    return base64.b64encode(data).decode()


def drawn(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16)


def refused(response, *statuses):
    """The reason that a refusal gives."""
    assert response.status_code in (statuses or (422,)), response.text[:300]
    assert response.headers["x-should-retry"] == "false"
    said = response.json()
    assert set(said) == {"error", "error_type"}
    return said["error"]


def test_raw_bytes_give_the_five_best_labels(http, server, png):
    answer = http.post(f"/models/{server.labels}", content=png)
    assert answer.status_code == 200
    labels = answer.json()
    assert len(labels) == 5
    assert all(set(one) == {"label", "score"} for one in labels)
    scores = [one["score"] for one in labels]
    assert scores == sorted(scores, reverse=True)
    assert 0 < sum(scores) <= 1 + 1e-5


@pytest.mark.parametrize("said", ["image/png", "application/x-www-form-urlencoded", "application/json", "nonsense"])
def test_what_the_client_says_of_the_type_does_not_matter(http, server, png, said):
    plain = http.post(f"/models/{server.labels}", content=png).json()
    assert http.post(f"/models/{server.labels}", content=png, headers={"Content-Type": said}).json() == plain


def test_json_and_forms_give_the_same(http, server, png):
    path = f"/models/{server.labels}"
    plain = http.post(path, content=png).json()
    assert http.post(path, json={"inputs": b64(png)}).json() == plain
    assert http.post(path, json={"inputs": "data:image/png;base64," + b64(png)}).json() == plain
    assert http.post(path, content=json.dumps({"inputs": b64(png), "parameters": {}})).json() == plain
    for name in ("inputs", "image", "file"):
        assert http.post(path, files={name: ("face.png", png, "image/png")}).json() == plain
    form = {"files": {"inputs": ("face.png", png)}, "data": {"parameters": json.dumps({"top_k": 2})}}
    assert http.post(path, **form).json() == plain[:2]


def test_parameters(http, server, png):
    path = f"/models/{server.labels}"
    all_of_them = http.post(path, json={"inputs": b64(png), "parameters": {"top_k": 7}}).json()
    assert len(all_of_them) == 7
    assert sum(one["score"] for one in all_of_them) == pytest.approx(1, abs=1e-3)
    assert len(http.post(path, json={"inputs": b64(png), "parameters": {"top_k": 10**30}}).json()) == 7
    raw = {"top_k": 7, "function_to_apply": "none"}
    logits = {
        one["label"]: one["score"] for one in http.post(path, json={"inputs": b64(png), "parameters": raw}).json()
    }
    raw["function_to_apply"] = "sigmoid"
    for one in http.post(path, json={"inputs": b64(png), "parameters": raw}).json():
        assert one["score"] == pytest.approx(1 / (1 + np.exp(-logits[one["label"]])), abs=1e-5)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_other_formats(http, server, picture, form):
    assert len(http.post(f"/models/{server.labels}", content=picture(form)).json()) == 5


def test_a_prompt_gives_a_picture(http, server):
    answer = http.post(f"/models/{server.draws}", json=PROMPT, headers={"Accept": "image/png"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "7"
    assert drawn(answer.content).shape == (64, 64, 3)
    again = http.post(f"/models/{server.draws}", json=PROMPT)
    assert again.content == answer.content
    other = {**PROMPT, "parameters": {**PROMPT["parameters"], "seed": 8}}
    assert http.post(f"/models/{server.draws}", json=other).content != answer.content


def test_the_accept_header_chooses_the_form(http, server):
    path = f"/models/{server.draws}"
    plain = http.post(path, json=PROMPT)
    said = http.post(path, json=PROMPT, headers={"Accept": "application/json"}).json()
    assert base64.b64decode(said["image"]) == plain.content
    assert said["seed"] == 7
    assert said["parameters"]["prompt"] == "a fox face"
    assert said["timings"]["total"] > 0
    assert said["placement"]["unet"]
    for kind in ("jpeg", "webp"):
        answer = http.post(path, json=PROMPT, headers={"Accept": f"image/{kind}"})
        assert answer.headers["content-type"] == f"image/{kind}"
        assert np.abs(drawn(answer.content) - drawn(plain.content)).mean() < 12
    assert "image/gif" in refused(http.post(path, json=PROMPT, headers={"Accept": "image/gif"}))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "png"), ("*/*", "png"), ("image/webp, image/png;q=0.9", "webp"), ("image/gif, image/*;q=0.1", "png"),
        ("application/json;q=0.5, image/jpeg;q=0.7", "jpeg"), ("application/json", "json"),
    ],
)  # fmt: skip
def test_accept(accept, kind):
    assert wanted(accept) == kind


@pytest.mark.parametrize("accept", ["image/gif", "text/html", "image/png;q=0", "image/png;q=nan", ";;;,,"])
def test_nothing_accepted(accept):
    if accept == ";;;,,":  # an item without a type stands for none at all
        assert wanted(accept) == "png"
        return
    with pytest.raises(Unsupported):
        wanted(accept)


def test_all_parameters_of_a_drawing(http, server):
    asked = {
        "negative_prompt": "a cat", "width": 96, "height": 32, "num_inference_steps": 3, "guidance_scale": 2,
        "scheduler": "euler", "seed": 2**64 - 1,
    }  # fmt: skip
    answer = http.post(
        f"/models/{server.draws}",
        json={"inputs": "a fox face", "parameters": asked},
        headers={"Accept": "application/json"},
    )
    said = answer.json()["parameters"]
    assert (said["width"], said["height"], said["steps"], said["guidance"]) == (96, 32, 3, 2)
    assert (said["negative_prompt"], said["scheduler"], said["seed"]) == ("a cat", "euler", 2**64 - 1)
    assert drawn(base64.b64decode(answer.json()["image"])).shape == (32, 96, 3)


def png_that_says(width, height):
    """A PNG whose header says such a size, with a few pixels only."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def test_pictures_that_are_none(http, server, png, picture):
    path = f"/models/{server.labels}"
    assert "no PNG" in refused(http.post(path, content=picture("GIF")))
    assert "no PNG" in refused(http.post(path, content=b"<svg xmlns='http://www.w3.org/2000/svg'/>"))
    assert "no PNG" in refused(http.post(path, content=b""))
    assert "no PNG" in refused(http.post(path, content=b"%!PS-Adobe-3.0 EPSF-3.0"))
    refused(http.post(path, content=png[: len(png) // 2]))
    refused(http.post(path, content=png[:20]))
    refused(http.post(path, content=picture("JPEG")[:200]))
    refused(http.post(path, content=png_that_says(64, 64)))
    assert "9000x9000" in refused(http.post(path, content=png_that_says(9000, 9000)), 413)
    assert "pixels" in refused(http.post(path, content=png_that_says(60000, 60000)), 413)
    assert len(http.post(path, content=png).json()) == 5


def test_addresses_are_not_fetched(http, server):
    for address in ("http://127.0.0.1:9/a.png", "https://example.org/a.png", "file:///etc/passwd"):
        assert "not fetched" in refused(http.post(f"/models/{server.labels}", json={"inputs": address}))


@pytest.mark.parametrize(
    "body",
    [
        {}, {"inputs": None}, {"inputs": 3}, {"inputs": ["x"]}, {"inputs": "no base64!"}, {"inputs": ""},
        {"inputs": "PNG", "parameters": []}, {"inputs": "PNG", "parameters": {"top_k": "3"}},
        {"inputs": "PNG", "parameters": {"top_k": 0}}, {"inputs": "PNG", "parameters": {"top_k": -(10**40)}},
        {"inputs": "PNG", "parameters": {"top_k": True}}, {"inputs": "PNG", "parameters": {"top_k": 1.5}},
        {"inputs": "PNG", "parameters": {"function_to_apply": "tanh"}}, {"inputs": "PNG", "parameters": {"other": 1}},
        {"inputs": "PNG", "options": {}}, {"inputs": "PNG", "\ud800": 1},
    ],
)  # fmt: skip
def test_bodies_that_make_no_sense(http, server, png, body):
    body = {name: b64(png) if value == "PNG" else value for name, value in body.items()}
    refused(http.post(f"/models/{server.labels}", content=json.dumps(body)))


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b'{"inputs": ' + b"[" * 100_000, b'{"inputs": ' + b'{"a":' * 40 + b"1" + b"}" * 41, b"null",
        b'{"inputs": "x"', b'{"inputs": "x", "parameters": {"top_k": 1' + b"0" * 5000 + b"}}", b"\xff\xfe{",
        b'{"inputs": "\xff"}',
    ],
)  # fmt: skip
def test_json_that_is_none(http, server, body):
    for name in (server.labels, server.draws):
        refused(http.post(f"/models/{name}", content=body, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize(
    "parameters",
    [
        {"width": "64"}, {"width": 63}, {"width": 0}, {"width": -64}, {"width": 10**30}, {"height": 4112},
        {"height": 64.5}, {"num_inference_steps": 0}, {"num_inference_steps": 10**9}, {"num_inference_steps": True},
        {"guidance_scale": -1}, {"guidance_scale": "7"}, {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")}, {"seed": -1}, {"seed": 2**64}, {"seed": "7"}, {"scheduler": "magic"},
        {"scheduler": 3}, {"negative_prompt": ["a"]}, {"negative_prompt": "\ud800"}, {"num_images": 3},
        {"__class__": "x"}, {"model": "../../etc"}, {"format": "gif"},
    ],
)  # fmt: skip
def test_drawings_that_make_no_sense(http, server, parameters):
    body = {"inputs": "a fox face", "parameters": {"num_inference_steps": 1, **parameters}}
    assert refused(http.post(f"/models/{server.draws}", content=json.dumps(body)))


@pytest.mark.parametrize("prompt", [None, 3, [], ["a"], {}, "x" * 20_001, "\ud800", "half \udfff of it"])
def test_prompts_that_are_none(http, server, prompt):
    refused(http.post(f"/models/{server.draws}", content=json.dumps({"inputs": prompt})))


def test_a_refusal_names_the_client_s_own_field(http, server):
    body = {"inputs": "a fox", "parameters": {"num_inference_steps": 0}}
    assert "num_inference_steps" in refused(http.post(f"/models/{server.draws}", json=body))
    body = {"inputs": "a fox", "parameters": {"width": 70}}
    assert "64" in refused(http.post(f"/models/{server.draws}", json=body))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"nothing of the kind"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="inputs"\r\n\r\nabc'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 5000, b"--x"),
    ],
)
def test_forms_that_are_none(http, server, kind, body):
    refused(http.post(f"/models/{server.labels}", content=body, headers={"Content-Type": kind}))


def test_forms_with_other_parts(http, server, png):
    path = f"/models/{server.labels}"
    refused(http.post(path, files={"upload": ("a.png", png)}))
    refused(http.post(path, files=[("inputs", ("a.png", png)), ("inputs", ("b.png", png))]))
    refused(http.post(path, files={"inputs": ("a.png", png)}, data={"parameters": "[]"}))
    refused(http.post(path, files={"inputs": ("a.png", png)}, data={"other": "1"}))
    refused(http.post(path, files={"inputs": ("../../etc/passwd", b"text")}))


def test_models_that_are_not_served(http, png):
    for name in ("nothing", "..%2f..%2fetc%2fpasswd", "%00", "%F0%9F%98%80", "x" * 3000):
        assert http.post(f"/models/{name}", content=png).status_code == 404
    assert "is served" in refused(http.post("/models/nothing", content=png), 404)


def test_a_body_that_says_it_is_large_is_refused_before_it_is_read(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(
            f"POST /models/{server.labels} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000000\r\n\r\n".encode()
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_key_is_asked_for_before_the_body_is_looked_at(guarded, png):
    with guarded.client() as http:
        assert "key" in refused(http.post(f"/models/{guarded.labels}", content=b"{"), 401)
    with guarded.client("ann") as http:
        assert len(http.post(f"/models/{guarded.labels}", content=png).json()) == 5
