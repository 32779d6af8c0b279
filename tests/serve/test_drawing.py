"""Pictures, ControlNets, LoRAs, embeddings and hooks through the server: what Python draws, bit for bit."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import vitrify
from vitrify.pipelines.control import ControlUnit
from vitrify.pipelines.control_pictures import control_picture
from vitrify.pipelines.hooks import hooks_of
from vitrify.pipelines.images import open_image
from vitrify.runtimes.base import Options

from .conftest import ENGINE
from .test_faults import LONG, ask, stepping, until

PLAIN = {"prompt": "a red apple", "steps": 6, "guidance": 3.0, "seed": 11}


def file_of(image: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def drawn_by_hand(size: tuple[int, int] = (80, 72)) -> bytes:
    image = Image.new("RGB", size, (250, 240, 220))
    ImageDraw.Draw(image).ellipse((20, 16, 60, 56), fill=(30, 160, 60), outline=(0, 0, 0), width=3)
    return file_of(image)


def right_half(size: tuple[int, int] = (80, 72)) -> bytes:
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, *size))
    return file_of(mask)


PHOTO, MASK = drawn_by_hand(), right_half()
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "two": {"images": 2},
    "the model's steps": {"steps": None, "guidance": None},
    "a scheduler of the web UI": {"scheduler": "DPM++ 2M Karras"},
    "a picture": {"image": PHOTO, "strength": 0.5, "width": 64, "height": 64, "images": 2},
    "a picture's own size": {"image": PHOTO},
    "a mask": {"image": PHOTO, "mask": MASK},
    "a net": {"control": [{"net": "lines", "picture": PHOTO}]},
    "nets": {
        "control": [
            {"net": "lines", "picture": PHOTO, "made_by": "canny", "strength": 0.5, "end": 0.7},
            {"net": "lines", "picture": PHOTO, "made_by": "lineart", "strength": 1.5, "start": 0.3},
        ],
        "image": PHOTO, "mask": MASK,
    },
    "a LoRA": {"loras": {"style": 0.7}},
    "LoRAs": {"prompt": "a red apple <lora:deep:0.5>", "loras": {"style": [0.5, 0.2]}},
    "an embedding": {"prompt": "a zyx apple"},
    "a hook": {"prompt": "a __colour__ apple"},
}  # fmt: skip


@pytest.fixture(scope="module")
def ours(
    control_artifact: Path, net_artifact: Path, lora_folder: Path, embedding_file: Path, words_folder: Path
) -> Iterator[Callable[..., Any]]:
    """ours(**FIELDS) draws in this process what a job of these fields asks for."""
    options = Options(threads=1)
    pipeline: Any = vitrify.load(control_artifact, "cpu", options=options)
    net: Any = vitrify.load(net_artifact, "cpu", options=options)
    pipeline.adapters.folder = lora_folder
    pipeline.adapters.add_embedding(embedding_file)

    def draw(**fields: Any) -> Any:
        given = PLAIN | fields
        for name in ("image", "mask"):
            if name in given:
                given[name] = open_image(io.BytesIO(given[name]))
        given["control"] = [
            ControlUnit(
                control_picture(open_image(io.BytesIO(one["picture"])), one.get("made_by", "picture")), net,
                one.get("strength", 1.0), one.get("start", 0.0), one.get("end", 1.0),
            )
            for one in given.get("control", ())
        ]  # fmt: skip
        given["loras"] = {n: tuple(s) if isinstance(s, list) else s for n, s in given.get("loras", {}).items()}
        return pipeline.generate(
            given.pop("prompt"),
            batch=given.pop("images", 1),
            hooks=hooks_of([f"wildcards:folder={words_folder}"]),
            **given,
        )

    yield draw
    pipeline.close()
    net.close()


@pytest.fixture
def http(able: Any) -> Iterator[Any]:
    with able.client() as client:
        yield client


def body(fields: dict[str, Any]) -> dict[str, Any]:
    """With its pictures as base64."""
    if isinstance(fields, dict):
        return {name: body(value) for name, value in fields.items()}
    if isinstance(fields, list):
        return [body(one) for one in fields]
    return base64.b64encode(fields).decode() if isinstance(fields, bytes) else fields


def job_of(http: Any, server: Any, state: str = "succeeded", **fields: Any) -> dict[str, Any]:
    job = until(http, ask(http, server, **body(PLAIN | fields)), "succeeded", "failed", "interrupted")
    assert job["status"] == state, job
    return job


def pixels(http: Any, job: dict[str, Any]) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(http.get(path).content))) for path in job["pictures"]]


@pytest.mark.parametrize("name", CASES)
def test_it_draws_what_python_draws(able: Any, http: Any, ours: Callable[..., Any], name: str) -> None:
    fields = CASES[name]
    job, made = job_of(http, able, **fields), ours(**fields)
    found, expected = pixels(http, job), [np.asarray(image) for image in made.images]
    assert len(found) == len(expected) == fields.get("images", 1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    for told, table in zip(job["details"]["parameters"], made.parameters, strict=True):
        loras = {n: list(s) if isinstance(s, tuple) else s for n, s in table.pop("loras", {}).items()}
        assert told == (table | {"loras": loras} if loras else table)
    assert job["details"]["notes"] == list(made.notes) == []
    assert (job["step"], job["steps"]) == (len(made.timings["steps"]),) * 2


def test_each_way_changes_the_picture(ours: Callable[..., Any]) -> None:
    plain = np.asarray(ours().images[0], float)
    for name in ("a scheduler of the web UI", "a mask", "a net", "a LoRA", "an embedding"):
        other = ours(**CASES[name], **({} if "image" in CASES[name] else {"width": 64, "height": 64})).images[0]
        assert np.abs(np.asarray(other.resize((64, 64)), float) - plain).mean() > 1, name
    one, both = (np.asarray(ours(**CASES[name]).images[0], float) for name in ("a LoRA", "LoRAs"))
    assert np.abs(one - both).mean() > 1


def test_what_the_models_say_of_themselves(able: Any, http: Any) -> None:
    models = {one["name"]: one for one in http.get("/v1/models").json()["models"]}
    steered, net, plain = models["steered"], models["lines"], models["emoji"]
    assert steered["tasks"] == ["text2img", "img2img", "inpaint"]
    assert (steered["steps"], steered["guidance"]) == (50, 7.5)
    assert steered["controlnets"] == ["lines"]
    assert plain["controlnets"] == []
    assert steered["loras"] == plain["loras"] == ["broken", "deep", "style"]
    assert steered["hooks"] == ["wildcards"]
    assert "euler_a" in steered["schedulers"]
    assert "flow_euler" not in steered["schedulers"]
    assert (net["kinds"], net["control"]) == ([], True)
    assert "tasks" not in net
    assert "control" not in steered


def test_a_job_says_what_was_asked_without_the_pictures(able: Any, http: Any) -> None:
    job = job_of(http, able, **CASES["nets"], strength=0.5, loras={"style": [0.5, 0.2]}, hooks=[])
    asked = job["request"]
    assert asked["pictures"] == ["image", "mask"]
    assert asked["control"][0] == {"net": "lines", "made_by": "canny", "strength": 0.5, "start": 0.0, "end": 0.7}
    assert (asked["strength"], asked["loras"], asked["hooks"]) == (0.5, {"style": [0.5, 0.2]}, [])
    assert len(str(job)) < 5000
    assert job["steps"] == 3


def test_hooks_are_chosen_by_their_names(able: Any, http: Any) -> None:
    blank = "a __colour__ apple"
    for hooks, prompt in ((None, "a red apple"), (["wildcards"], "a red apple"), ([], blank)):
        job = job_of(http, able, prompt=blank, hooks=hooks, steps=1)
        assert job["details"]["parameters"][0]["prompt"] == prompt


def test_refusals_come_before_any_work(able: Any, http: Any) -> None:
    picture = base64.b64encode(PHOTO).decode()
    for fields, said in (
        ({"model": "lines"}, "lines is a ControlNet"),
        ({"model": "emoji", "control": [{"net": "lines", "picture": picture}]}, "without --control"),
        ({"mask": picture}, "no picture that it belongs to"),
        ({"loras": {"../style": 1}}, "no LoRA '../style'"),
        ({"scheduler": "flow_euler"}, "flow matching"),
        ({"hooks": ["x"]}, "no hook 'x'"),
        ({"image": picture, "strength": 1.5}, "less than or equal to 1"),
    ):
        answer = http.post("/v1/jobs", json={"model": able.draws, "prompt": "a fox", **fields})
        assert answer.status_code == 422, answer.text
        assert said in answer.json()["error"]["what"]
    answer = http.post("/v1/jobs", json={"model": "lines", "pictures": [picture]})
    assert answer.status_code == 422
    assert "lines is a ControlNet" in answer.json()["error"]["what"]
    assert not http.get("/v1/queue").json()["mine"]


def test_a_file_that_is_no_lora_fails_its_job_alone(able: Any, http: Any, ours: Callable[..., Any]) -> None:
    failed = job_of(http, able, "failed", loras={"broken": 1})
    assert failed["error"]["code"] == "bad_input"
    np.testing.assert_array_equal(pixels(http, job_of(http, able))[0], np.asarray(ours().images[0]))


def test_no_hook_smuggles_a_path_in(able: Any, http: Any, lora_folder: Path) -> None:
    """A word of a list makes the prompt a tag only after the server has read it."""
    prompt = f"a fox <lo__part__:{lora_folder / 'style.safetensors'}:1>"
    failed = job_of(http, able, "failed", prompt=prompt)
    assert failed["error"]["code"] == "bad_input"
    assert "There is no LoRA" in failed["error"]["what"]
    made = job_of(http, able, prompt="a fox <lo__part__:style:1>")
    assert made["details"]["parameters"][0]["loras"] == {"style": [1.0, 1.0]}, "the server's own words may name one"


def test_a_damaged_picture_fails_its_job_alone(able: Any, http: Any) -> None:
    for fields in ({"image": PHOTO[:200]}, {"image": PHOTO, "mask": MASK[: len(MASK) - 30]}):
        assert job_of(http, able, "failed", **fields)["error"]["code"] == "bad_input"
    assert job_of(http, able)


def test_another_picture_is_another_request(able: Any, http: Any) -> None:
    key = {"Idempotency-Key": "drawing-1"}
    fields = body({"model": able.draws, **PLAIN, "image": PHOTO})
    first = http.post("/v1/jobs", json=fields, headers=key).json()["id"]
    assert http.post("/v1/jobs", json=fields, headers=key).json()["id"] == first
    other = http.post("/v1/jobs", json=body(fields | {"image": drawn_by_hand((72, 80))}), headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "conflict")


@pytest.mark.skipif(ENGINE == "ray", reason="needs the engine local: Ray's processes outlive a killed server")
def test_what_waits_with_its_pictures_outlives_the_server(
    start_server: Callable[..., Any], control_artifact: Path, net_artifact: Path, ours: Callable[..., Any]
) -> None:
    models = (control_artifact, net_artifact)
    first = start_server(models=models)
    first.draws = control_artifact.name
    fields = {**CASES["nets"], "strength": 0.6}
    with first.client() as http:
        for _ in range(first.at_once):
            stepping(http, ask(http, first, steps=LONG))
        waits = ask(http, first, **body(PLAIN | fields))
        assert len(list((first.state / "jobs" / waits).iterdir())) == 4
    first.process.kill()
    first.process.wait()
    second = start_server(state=first.state, models=models)
    with second.client() as http:
        job = until(http, waits, "succeeded", "failed")
        assert job["status"] == "succeeded", job
        np.testing.assert_array_equal(pixels(http, job)[0], np.asarray(ours(**fields).images[0]))
        assert [file.name for file in (second.state / "jobs" / waits).iterdir()] == ["output-0"]
        second.draws = control_artifact.name
        for _ in range(second.at_once):
            stepping(http, ask(http, second, steps=LONG))
        waits = ask(http, second, **body(PLAIN | fields))
    second.process.kill()
    second.process.wait()
    with start_server(state=first.state, models=models[:1]).client() as http:
        job = until(http, waits, "succeeded", "failed")
        assert (job["error"]["code"], job["error"]["what"]) == ("unknown_model", "No model 'lines' is served any more.")
