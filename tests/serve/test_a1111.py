"""/sdapi/v1 as webuiapi and other clients of AUTOMATIC1111's web UI use it, and as nobody should."""

from __future__ import annotations

import base64
import io
import json
import threading
import time

import pytest
from PIL import Image

from vitrify.serve.a1111_text import with_text

API = "/sdapi/v1"

# all that webuiapi's txt2img sends when it is called with a prompt, two steps, a size and a seed
WEBUIAPI = {
    "enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0,
    "hr_resize_y": 0, "denoising_strength": 0.7, "firstphase_width": 0, "firstphase_height": 0, "prompt": "a fox face",
    "styles": [], "seed": 3, "subseed": -1, "subseed_strength": 0.0, "seed_resize_from_h": 0, "seed_resize_from_w": 0,
    "batch_size": 1, "n_iter": 1, "steps": 2, "cfg_scale": 7.0, "width": 64, "height": 64, "restore_faces": False,
    "tiling": False, "do_not_save_samples": False, "do_not_save_grid": False, "negative_prompt": "", "eta": 1.0,
    "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "override_settings": {},
    "override_settings_restore_afterwards": True, "sampler_name": "Euler a", "scheduler": "automatic",
    "sampler_index": "Euler a", "script_name": None, "script_args": [], "send_images": True, "save_images": False,
    "alwayson_scripts": {},
}  # fmt: skip


def draw(http, **fields):
    """(pictures, info) of txt2img with these fields besides webuiapi's."""
    answer = http.post(f"{API}/txt2img", json={**WEBUIAPI, **fields})
    assert answer.status_code == 200, answer.text[:300]
    said = answer.json()
    assert set(said) == {"images", "parameters", "info"}
    assert isinstance(said["info"], str)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in said["images"]], json.loads(said["info"])


def refused(response, *statuses):
    assert response.status_code in (statuses or (422,)), response.text[:300]
    said = response.json()
    assert set(said) == {"error", "detail", "body", "errors"}
    assert said["detail"]
    return said["detail"]


@pytest.fixture
def drawing(http, server):
    """A long job that runs: its answer comes into the list."""
    answers = []

    def ask():
        with server.client() as own:
            answers.append(own.post(f"{API}/txt2img", json={**WEBUIAPI, "steps": 1000}))

    thread = threading.Thread(target=ask)
    thread.start()
    progress_of(http)
    yield answers
    http.post(f"{API}/interrupt")
    thread.join(30)
    assert not thread.is_alive()


def progress_of(http):
    """The progress, once a step is done."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        said = http.get(f"{API}/progress").json()
        if said["state"]["sampling_step"] > 0:
            return said
        time.sleep(0.02)
    raise AssertionError("nothing was drawn")


def test_a_picture_as_webuiapi_asks_for_it(http, server):
    (image,), info = draw(http)
    assert image.size == (64, 64)
    assert image.format == "PNG"
    expected = {
        "prompt": "a fox face", "all_prompts": ["a fox face"], "negative_prompt": "", "seed": 3, "all_seeds": [3],
        "width": 64, "height": 64, "steps": 2, "cfg_scale": 7.0, "sampler_name": "Euler a", "batch_size": 1,
        "subseed_strength": 0, "sd_model_name": server.draws, "not_supported": [], "interrupted": False,
        "index_of_first_image": 0,
    }  # fmt: skip
    assert {name: info[name] for name in expected} == expected
    assert {"subseed", "all_subseeds", "job_timestamp", "sd_model_hash", "clip_skip", "version"} <= set(info)
    (text,) = info["infotexts"]
    assert text.startswith("a fox face\nSteps: 2, Sampler: Euler a, CFG scale: 7.0, Seed: 3, Size: 64x64, Model hash: ")
    assert image.info["parameters"] == text
    again, _ = draw(http)
    assert again[0].tobytes() == image.tobytes()


def test_parameters_are_told_back(http):
    said = http.post(f"{API}/txt2img", json=WEBUIAPI).json()["parameters"]
    assert (said["prompt"], said["steps"], said["width"], said["seed"]) == ("a fox face", 2, 64, 3)


def test_what_is_left_out(http):
    """The model's own size, sampler and guidance, a random seed."""
    answer = http.post(f"{API}/txt2img", json={"prompt": "a fox face", "steps": 1}).json()
    info = json.loads(answer["info"])
    assert (info["width"], info["height"], info["sampler_name"], info["cfg_scale"]) == (64, 64, "DDIM", 7.5)
    assert info["seed"] >= 0
    assert info["negative_prompt"] == ""


def test_several_pictures(http):
    images, info = draw(http, batch_size=2, n_iter=2, negative_prompt="a cat")
    assert len(images) == len(info["infotexts"]) == 4
    assert info["all_seeds"] == [3, 4, 5, 6]
    assert info["all_negative_prompts"] == ["a cat"] * 4
    assert [image.info["parameters"] for image in images] == info["infotexts"]
    assert "\nNegative prompt: a cat\nSteps: 2, " in info["infotexts"][3]
    assert "Seed: 6" in info["infotexts"][3]


def test_pictures_may_be_left_out(http):
    images, info = draw(http, send_images=False)
    assert images == []
    assert info["all_seeds"] == [3]


def test_the_old_name_of_the_sampler(http):
    fields = {"sampler_name": None, "sampler_index": "DPM++ 2M Karras"}
    assert draw(http, **fields)[1]["sampler_name"] == "DPM++ 2M Karras"


def test_what_is_not_done_is_named(http):
    asked = {
        "restore_faces": True, "tiling": True, "styles": ["anime"], "enable_hr": True, "s_noise": 0.5,
        "subseed_strength": 0.3, "subseed": 8, "alwayson_scripts": {"ADetailer": {"args": [True]}, "off": {"args": []}},
        "override_settings": {"CLIP_stop_at_last_layers": 2}, "scheduler": "Exponential", "something_new": {"a": 1},
        "save_images": True, "eta": 0.2,
    }  # fmt: skip
    images, info = draw(http, **asked)
    assert len(images) == 1
    expected = {
        "restore_faces", "tiling", "styles", "enable_hr", "hr_scale", "hr_upscaler", "denoising_strength", "s_noise",
        "subseed_strength", "subseed", "alwayson_scripts.ADetailer", "override_settings.CLIP_stop_at_last_layers",
        "scheduler", "something_new", "save_images", "eta",
    }  # fmt: skip
    assert set(info["not_supported"]) == expected


def test_progress_and_interrupt(http, server, drawing):
    said = progress_of(http)
    assert 0 < said["progress"] < 1
    assert said["eta_relative"] > 0
    state = said["state"]
    assert state["sampling_steps"] == 1000
    assert state["job_count"] == 1
    assert state["job_no"] == 0
    assert not state["interrupted"]
    assert Image.open(io.BytesIO(base64.b64decode(said["current_image"]))).size[0] >= 64
    assert http.get(f"{API}/progress", params={"skip_current_image": True}).json()["current_image"] is None
    (mine,) = http.get("/v1/queue").json()["mine"]

    before = http.get(f"/v1/jobs/{mine['id']}").json()["step"]
    answer = http.post(f"{API}/interrupt")
    assert answer.status_code == 200
    assert answer.json() == {}
    assert server.idle(http)
    ended = http.get(f"/v1/jobs/{mine['id']}").json()
    assert ended["status"] == "cancelled"
    assert ended["step"] <= before + 20  # what was done between the two requests, and one step more
    time.sleep(0.5)
    assert http.get(f"/v1/jobs/{mine['id']}").json()["step"] == ended["step"]

    until = time.monotonic() + 10
    while not drawing and time.monotonic() < until:
        time.sleep(0.05)
    (interrupted,) = drawing
    assert interrupted.status_code == 200
    assert interrupted.json()["images"] == []
    assert json.loads(interrupted.json()["info"])["interrupted"]
    idle = http.get(f"{API}/progress").json()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)


def test_skip_ends_it_too(http, server, drawing):
    assert http.post(f"{API}/skip").json() == {}
    assert server.idle(http)


def test_what_waits_is_interrupted_where_nothing_runs_of_the_caller(guarded):
    with guarded.client("ann") as ann, guarded.client("bob") as bob:
        answers = {}

        def ask(name):
            with guarded.client(name) as own:
                answers[name] = own.post(f"{API}/txt2img", json={**WEBUIAPI, "steps": 1000})

        names = ["ann"] * guarded.at_once + ["bob"]
        threads = [threading.Thread(target=ask, args=(name,)) for name in names]
        for thread in threads[:-1]:
            thread.start()
        until = time.monotonic() + 60
        while ann.get("/v1/queue").json()["running"] < guarded.at_once and time.monotonic() < until:
            time.sleep(0.02)
        progress_of(ann)
        threads[-1].start()
        until = time.monotonic() + 20
        while not bob.get("/v1/queue").json()["mine"] and time.monotonic() < until:
            time.sleep(0.02)
        waits = bob.get(f"{API}/progress").json()
        assert (waits["progress"], waits["state"]["job_count"], waits["state"]["sampling_step"]) == (0, 1, 0)
        assert waits["current_image"] is None  # ann's is hers

        assert bob.post(f"{API}/interrupt").json() == {}
        threads[-1].join(20)
        assert json.loads(answers["bob"].json()["info"])["interrupted"]
        assert bob.post(f"{API}/interrupt").json() == {}  # nothing of bob's is left, and ann's goes on
        first = ann.get(f"{API}/progress").json()["state"]["sampling_step"]
        time.sleep(0.5)
        later = ann.get(f"{API}/progress").json()["state"]
        assert later["sampling_step"] > first
        assert not later["interrupted"]
        ann.post(f"{API}/interrupt")
        threads[0].join(20)
        assert json.loads(answers["ann"].json()["info"])["interrupted"]


def test_basic_authentication(guarded):
    with guarded.client() as http:
        answer = http.get(f"{API}/scripts")
        refused(answer, 401)
        assert "Basic" in answer.headers["www-authenticate"]
        refused(http.get(f"{API}/options", auth=("ann", "wrong")), 401)
        assert http.get(f"{API}/options", auth=("ann", guarded.keys["ann"])).status_code == 200
        answer = http.post(f"{API}/txt2img", json=WEBUIAPI, auth=("anybody", guarded.keys["bob"]))
        assert answer.status_code == 200


def test_models_and_options(http, server):
    (model,) = http.get(f"{API}/sd-models").json()
    assert model["model_name"] == server.draws
    assert model["title"].startswith(server.draws)
    options = http.get(f"{API}/options").json()
    assert options["sd_model_checkpoint"] == model["title"]
    assert options["sd_checkpoint_hash"] == model["sha256"]
    for name in (model["title"], model["model_name"], model["hash"]):
        said = http.post(f"{API}/options", json={"sd_model_checkpoint": name, "eta_ancestral": 1}).json()
        assert said["not_supported"] == ["eta_ancestral"]
        assert draw(http, override_settings={"sd_model_checkpoint": name})[1]["sd_model_name"] == server.draws
    assert server.draws in refused(http.post(f"{API}/options", json={"sd_model_checkpoint": "nothing"}), 404)
    refused(http.post(f"{API}/options", json={"sd_model_checkpoint": server.labels}), 404)
    refused(http.post(f"{API}/options", json={"sd_model_checkpoint": ["a"]}))
    refused(http.post(f"{API}/txt2img", json={**WEBUIAPI, "override_settings": {"sd_model_checkpoint": "x"}}), 404)


def test_formats(http):
    (image,), _ = draw(http, override_settings={"samples_format": "jpg"})
    assert image.format == "JPEG"
    try:
        http.post(f"{API}/options", json={"samples_format": "webp"})
        assert draw(http)[0][0].format == "WEBP"
    finally:
        http.post(f"{API}/options", json={"samples_format": "png"})
    refused(http.post(f"{API}/options", json={"samples_format": "gif"}))


def test_options_are_the_caller_s_own(guarded):
    with guarded.client("ann") as ann, guarded.client("bob") as bob:
        ann.post(f"{API}/options", json={"samples_format": "webp"})
        assert ann.get(f"{API}/options").json()["samples_format"] == "webp"
        assert bob.get(f"{API}/options").json()["samples_format"] == "png"


def test_lists(http):
    assert http.get(f"{API}/scripts").json() == {"txt2img": [], "img2img": []}
    assert http.get(f"{API}/embeddings").json() == {"loaded": {}, "skipped": {}}
    assert http.get(f"{API}/cmd-flags").json() == {}
    samplers = http.get(f"{API}/samplers").json()
    assert {"Euler a", "DPM++ 2M", "DPM++ 2M Karras", "DDIM"} <= {one["name"] for one in samplers}
    assert all(isinstance(one["aliases"], list) and isinstance(one["options"], dict) for one in samplers)
    assert not {"Flow Euler", "SCM"} & {one["name"] for one in samplers}  # which draw with other kinds of model
    assert [one["name"] for one in http.get(f"{API}/schedulers").json()] == ["automatic", "karras"]
    for name in (
        "upscalers", "latent-upscale-modes", "sd-vae", "loras", "hypernetworks", "face-restorers", "realesrgan-models",
        "prompt-styles", "artist-categories", "artists", "script-info", "extensions",
    ):  # fmt: skip
        assert http.get(f"{API}/{name}").json() == []
    memory = http.get(f"{API}/memory").json()
    assert 0 < memory["ram"]["used"] < memory["ram"]["total"]
    assert "cuda" in memory
    for name in ("refresh-checkpoints", "refresh-vae", "refresh-loras", "reload-checkpoint", "unload-checkpoint"):
        assert http.post(f"{API}/{name}").json() == {}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("extra-single-image", {"image": "x"}),
        ("extra-batch-images", {"imageList": []}), ("interrogate", {"image": "x", "model": "clip"}),
    ],
)  # fmt: skip
def test_what_cannot_be_done_yet(http, name, body):
    said = refused(http.post(f"{API}/{name}", json=body))
    assert "cannot" in said
    assert "yet" in said


def test_png_info_reads_what_was_written(http):
    answer = http.post(f"{API}/txt2img", json={**WEBUIAPI, "negative_prompt": "a cat"}).json()
    said = http.post(f"{API}/png-info", json={"image": "data:image/png;base64," + answer["images"][0]}).json()
    (text,) = json.loads(answer["info"])["infotexts"]
    assert said["info"] == text
    assert said["items"] == {}
    expected = {"Prompt": "a fox face", "Negative prompt": "a cat", "Steps": "2", "Seed": "3", "Size": "64x64"}
    assert {name: said["parameters"][name] for name in expected} == expected


def test_png_info_of_other_pictures(http, png, picture):
    def ask(data):
        return http.post(f"{API}/png-info", json={"image": base64.b64encode(data).decode()})

    nothing = {"info": "", "items": {}, "parameters": {}}
    assert ask(png).json() == nothing
    assert ask(picture("JPEG")).json() == nothing
    assert ask(with_text(png, "Comment", "mine")).json()["items"] == {"Comment": "mine"}
    strange = ask(with_text(png, "parameters", "Steps: Steps: , , :\nSteps: " + ": , " * 10_000))
    assert strange.status_code == 200
    refused(ask(b"no picture"))
    refused(ask(png[:30]))
    refused(http.post(f"{API}/png-info", json={"image": "http://127.0.0.1:9/a.png"}))
    refused(http.post(f"{API}/png-info", json={"image": 3}))
    refused(http.post(f"{API}/png-info", json={}))


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": None}, {"prompt": 3}, {"prompt": ["a"]}, {"prompt": "x" * 20_001}, {"prompt": "\ud800"},
        {"negative_prompt": {}}, {"steps": 0}, {"steps": 10**30}, {"steps": "many"}, {"steps": 2.5},
        {"cfg_scale": -1}, {"cfg_scale": float("nan")}, {"cfg_scale": float("inf")}, {"cfg_scale": "high"},
        {"width": 65}, {"width": -64}, {"width": 10**30}, {"height": 8192}, {"height": "tall"}, {"seed": -2},
        {"seed": 2**64}, {"seed": "x"}, {"seed": 2**64 - 1, "batch_size": 2}, {"batch_size": 0}, {"n_iter": 17},
        {"batch_size": 16, "n_iter": 2}, {"sampler_name": "Restart"}, {"sampler_name": 3}, {"sampler_name": "\udfff"},
        {"scheduler": "x" * 100}, {"override_settings": []}, {"override_settings": {"samples_format": 3}},
        {"override_settings": {"sd_model_checkpoint": 3}}, {"send_images": "maybe"}, {"alwayson_scripts": []},
        {"alwayson_scripts": {"controlnet": {"args": [{"model": "none is served"}]}}},
        {"prompt": "a fox <lora:none:1>"}, {"prompt": "a fox <lora::1>"}, {"prompt": "a fox <lora:../a:1>"},
    ],
)  # fmt: skip
def test_fields_that_make_no_sense(http, fields):
    refused(http.post(f"{API}/txt2img", content=json.dumps({**WEBUIAPI, **fields})))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"[" * 50_000, b"\xff"])
def test_json_that_is_none(http, body):
    for name in ("txt2img", "options", "png-info"):
        refused(http.post(f"{API}/{name}", content=body))


def test_strange_fields_are_only_named(http):
    fields = {"x" * 5000: "y", "nan": float("nan"), "model_config": {}, "__class__": "z", "self": [1]}
    answer = http.post(f"{API}/txt2img", content=json.dumps({**WEBUIAPI, **fields}))
    assert answer.status_code == 200, answer.text[:300]
    named = json.loads(answer.json()["info"])["not_supported"]
    assert "self" in named
    assert "x" * 80 in named
