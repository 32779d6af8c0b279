"""Less work through the server: what Python draws with the same preset, step cache, guidance or decoder, to the bit."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.runtimes.base import Options

from .test_faults import ask, until

PLAIN = {"prompt": "a red apple", "steps": 8, "guidance": 3.0, "seed": 11}


@pytest.fixture(scope="module")
def fast(start_server: Callable[..., Any], cached_artifact: Path, diffusion_artifact: Path, shared: Path) -> Any:
    """A server that draws with the preset `fast`; the model `emoji` can cache steps, `plain` cannot."""
    plain = shared / "uncached" / "plain"
    if not plain.exists():
        shutil.copytree(diffusion_artifact, plain)
    return start_server("--preset", "fast", models=(cached_artifact, plain))


@pytest.fixture(scope="module")
def ours(cached_artifact: Path) -> Iterator[Callable[..., Any]]:
    pipeline: Any = vitrify.load(cached_artifact, "cpu", options=Options(threads=1))

    def draw(**fields: Any) -> np.ndarray:
        given = PLAIN | fields
        return np.asarray(pipeline.generate(given.pop("prompt"), **given).images[0])

    yield draw
    pipeline.close()


@pytest.fixture
def http(fast: Any) -> Iterator[Any]:
    with fast.client() as client:
        yield client


def job_of(http: Any, server: Any, **fields: Any) -> Any:
    job = until(http, ask(http, server, **(PLAIN | fields)), "succeeded", "failed", "interrupted")
    assert job["status"] == "succeeded", job
    return job


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    ("fields", "python"),
    [
        ({}, {"preset": "fast"}),
        ({"preset": "exact"}, {}),
        ({"preset": "exact", "step_cache": "2"}, {"step_cache": "2"}),
        ({"preset": "exact", "step_cache": "0.1"}, {"step_cache": "0.1"}),
        ({"preset": "exact", "guidance_interval": [0.25, 0.75]}, {"guidance_interval": (0.25, 0.75)}),
        ({"guidance_every": 2}, {"step_cache": "2", "guidance_every": 2}),
    ],
)
def test_it_draws_what_python_draws(
    fast: Any, http: Any, ours: Callable[..., Any], fields: dict[str, Any], python: dict[str, Any]
) -> None:
    job = job_of(http, fast, **fields)
    np.testing.assert_array_equal(pixels(http.get(job["pictures"][0]).content), ours(**python))
    told, asked = job["details"]["parameters"][0], job["request"]
    for name in ("step_cache", "guidance_every", "guidance_interval"):
        assert told.get(name) == asked.get(name)
    assert asked["preset"] == fields.get("preset", "fast")
    assert job["details"]["notes"] == []


def test_each_leaves_out_something(ours: Callable[..., Any]) -> None:
    drawn = [
        ours(**one).tobytes()
        for one in ({}, {"preset": "fast"}, {"step_cache": "3"}, {"guidance_interval": (0.25, 0.75)})
    ]
    assert len(set(drawn)) == 4


def test_a_preset_goes_without_what_a_model_lacks_and_says_so(fast: Any, http: Any) -> None:
    job = job_of(http, fast, model="plain")
    assert any("--step-cache" in note for note in job["details"]["notes"])
    assert "step_cache" not in job["details"]["parameters"][0]
    for fields, said in (({"step_cache": "3"}, "no graph"), ({"decoder": "preview"}, "no decoder for previews")):
        answer = http.post("/v1/jobs", json={"model": "plain", **PLAIN, **fields})
        assert answer.status_code == 422
        assert said in answer.text


def test_what_the_models_say_of_themselves(http: Any) -> None:
    models = {one["name"]: one for one in http.get("/v1/models").json()["models"]}
    assert models["emoji"]["step_cache"] is True
    assert models["plain"]["step_cache"] is False
    assert models["emoji"]["preview_decoder"] is models["plain"]["preview_decoder"] is False
    assert models["emoji"]["preset"] == "fast"


def test_hugging_face_s_clients_may_ask_for_it(http: Any, ours: Callable[..., Any]) -> None:
    names = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
    usual = {names.get(name, name): value for name, value in PLAIN.items() if name != "prompt"}

    def drawn(**more: Any) -> np.ndarray:
        asked = {"inputs": PLAIN["prompt"], "parameters": usual | more}
        answer = http.post("/models/emoji", json=asked)
        assert answer.status_code == 200, answer.text
        return pixels(answer.content)

    np.testing.assert_array_equal(drawn(), ours(preset="fast"))
    np.testing.assert_array_equal(drawn(preset="exact", step_cache="2"), ours(step_cache="2"))
    np.testing.assert_array_equal(
        drawn(preset="exact", guidance_interval=[0.0, 0.5], guidance_every=2),
        ours(guidance_interval=(0.0, 0.5), guidance_every=2),
    )
    refused = http.post("/models/emoji", json={"inputs": "x", "parameters": {"decoder": "preview"}})
    assert refused.status_code == 422
    assert "no decoder for previews" in refused.text


def test_openai_s_clients_get_the_server_s_preset(http: Any, ours: Callable[..., Any]) -> None:
    body = {
        "model": "emoji", "prompt": PLAIN["prompt"], "seed": PLAIN["seed"], "num_inference_steps": PLAIN["steps"],
        "guidance_scale": PLAIN["guidance"], "response_format": "b64_json",
    }  # fmt: skip
    answer = http.post("/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    np.testing.assert_array_equal(pixels(base64.b64decode(answer.json()["data"][0]["b64_json"])), ours(preset="fast"))


def test_the_web_ui_s_early_steps_without_the_negative_prompt(fast: Any, http: Any, ours: Callable[..., Any]) -> None:
    body = {
        "prompt": PLAIN["prompt"], "seed": PLAIN["seed"], "steps": PLAIN["steps"], "cfg_scale": PLAIN["guidance"],
        "sampler_name": "DDIM", "override_settings": {"sd_model_checkpoint": "emoji", "skip_early_cond": 0.25},
    }  # fmt: skip
    answer = http.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    said = json.loads(answer.json()["info"])
    assert "override_settings.skip_early_cond" not in said["not_supported"]
    assert "Skip Early CFG: 0.25" in said["infotexts"][0]
    # the web UI leaves out a step at 0.25 of all as well: of eight the first three
    expected = ours(preset="fast", guidance_interval=(0.375, 1.0), scheduler="ddim")
    np.testing.assert_array_equal(pixels(base64.b64decode(answer.json()["images"][0])), expected)
    for wrong in (-0.1, 1, "half"):
        body["override_settings"] = {"skip_early_cond": wrong}
        assert http.post("/sdapi/v1/txt2img", json=body).status_code == 422
