"""Clients that others wrote, unmodified: what they send and read today."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")


def test_curl_draws(server: Any) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")

    def said(*arguments: str) -> bytes:
        return subprocess.run([curl, "-sSf", *arguments], capture_output=True, check=True, timeout=120).stdout

    wanted = {"model": server.draws, "prompt": "a fox face", "steps": 2, "seed": 7, "width": 64, "height": 64}
    job = json.loads(said(f"{server.url}/v1/jobs", "-H", "Content-Type: application/json", "-d", json.dumps(wanted)))
    until = time.monotonic() + 60
    while job["status"] in ("queued", "running") and time.monotonic() < until:
        time.sleep(0.05)
        job = json.loads(said(f"{server.url}/v1/jobs/{job['id']}"))
    assert job["status"] == "succeeded"
    assert Image.open(io.BytesIO(said(f"{server.url}/v1/jobs/{job['id']}/pictures/0"))).size == (64, 64)


@pytest.fixture
def hugging_face(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """hugging_face(NAME): a client of one of the server's models."""
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)  # read when the library was imported
    return lambda name: hub.InferenceClient(model=f"{server.url}/models/{name}", timeout=120)


def test_huggingface_hub_reads_labels(hugging_face: Any, server: Any, http: Any, png: bytes) -> None:
    labels = hugging_face(server.labels).image_classification(png, top_k=7)
    assert sum(one.score for one in labels) == pytest.approx(1, abs=1e-3)
    given = http.post(f"/models/{server.labels}", content=png).json()
    assert [(one.label, one.score) for one in labels][: len(given)] == [(one["label"], one["score"]) for one in given]
    assert len(hugging_face(server.labels).image_classification(png)) == len(given)
    with pytest.raises(hub.errors.HfHubHTTPError, match="422"):
        hugging_face(server.labels).image_classification(png, top_k=0)


def test_huggingface_hub_draws(hugging_face: Any, server: Any, pictures_of: Any) -> None:
    client = hugging_face(server.draws)
    given = {"num_inference_steps": 3, "guidance_scale": 3.5, "seed": 7, "width": 64, "height": 64}
    made = client.text_to_image("a fox face", negative_prompt="a cat", **given)
    same = {"negative_prompt": "a cat", "steps": 3, "guidance": 3.5, "seed": 7, "width": 64, "height": 64}
    np.testing.assert_array_equal(np.asarray(made), np.asarray(pictures_of("a fox face", **same)[0]))
    with pytest.raises(hub.errors.HfHubHTTPError, match="422"):
        client.text_to_image("a fox face", num_inference_steps=0)


def test_openai_draws(server: Any, pictures_of: Any) -> None:
    openai = pytest.importorskip("openai", reason="needs the extra clients")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    asked = {"model": server.draws, "prompt": "a fox face", "size": "64x64"}
    extra = {"seed": 7, "num_inference_steps": 3}
    made = client.images.generate(**asked, n=2, response_format="b64_json", extra_body=extra)
    first, second = (np.asarray(Image.open(io.BytesIO(base64.b64decode(one.b64_json)))) for one in made.data)
    (wanted,) = pictures_of("a fox face", steps=3, seed=7, width=64, height=64)
    np.testing.assert_array_equal(first, np.asarray(wanted))
    assert first.shape == second.shape
    assert (first != second).any()
    events = list(client.images.generate(**asked, stream=True, extra_body=extra))
    assert events[-1].type == "image_generation.completed"
    with pytest.raises(openai.UnprocessableEntityError, match="num_inference_steps"):
        client.images.generate(**asked, extra_body={"num_inference_steps": 0})
    with pytest.raises(openai.NotFoundError):
        client.images.generate(**asked | {"model": "none-such"})
    assert {one.id for one in client.models.list()} >= {server.draws}


def test_webuiapi_watches_and_interrupts(server: Any) -> None:
    webuiapi = pytest.importorskip("webuiapi", reason="needs the extra clients")
    client = webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1")
    assert {"Euler a", "DPM++ 2M"} <= {one["name"] for one in client.get_samplers()}
    assert len(client.get_sd_models()) == 1
    # the client writes the ControlNets of one call into its own default for the next
    asked: dict[str, Any] = {"prompt": "a fox face", "width": 64, "height": 64, "seed": 3, "alwayson_scripts": {}}
    made = client.txt2img(steps=2, **asked)
    assert (made.image.size, made.info["seed"], made.info["not_supported"]) == ((64, 64), 3, [])
    ended: list[Any] = []
    # so many steps that they would not have ended by themselves
    drawing = threading.Thread(target=lambda: ended.append(client.txt2img(steps=800, **asked)))
    drawing.start()
    try:
        until = time.monotonic() + 60
        while not (said := client.get_progress())["progress"] and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        client.interrupt()
        drawing.join(60)
    assert 0 < said["progress"] < 0.9
    (interrupted,) = ended
    assert interrupted.info["interrupted"]
    assert client.get_progress()["progress"] == 0


def test_tritonclient_infers(server: Any) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs the extra clients")
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(server.labels)
        told = client.get_model_metadata(server.labels)
        (given,), (wanted,) = told["inputs"], told["outputs"]
        pixels = np.random.default_rng(0).standard_normal((2, *given["shape"][1:])).astype(np.float32)
        found = []
        for in_binary, out_binary in ((True, True), (False, False), (True, False)):
            tensor = triton.InferInput(given["name"], pixels.shape, given["datatype"])
            tensor.set_data_from_numpy(pixels, binary_data=in_binary)
            output = triton.InferRequestedOutput(wanted["name"], binary_data=out_binary)
            found.append(client.infer(server.labels, [tensor], outputs=[output]).as_numpy(wanted["name"]))
        assert found[0].shape == (2, wanted["shape"][-1])
        assert np.ptp(found[0]) > 0.1
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], atol=1e-5)
        with pytest.raises(triton.InferenceServerException, match="none-such"):
            client.infer("none-such", [tensor])
    finally:
        client.close()
