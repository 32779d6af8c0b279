"""/sdapi/v1/img2img, ControlNets and LoRAs as clients of AUTOMATIC1111's web UI ask for them, and as nobody should."""

from __future__ import annotations

import base64
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

import vitrify
from vitrify.pipelines.control import ControlUnit
from vitrify.pipelines.control_pictures import control_picture
from vitrify.runtimes.base import Options
from vitrify.serve.a1111_pictures import Masking, inpainting, sized

from .test_a1111 import API, WEBUIAPI, refused

# what webuiapi's img2img sends besides, when it is called with a picture
CHANGE = {
    "resize_mode": 0, "denoising_strength": 0.75, "mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": True,
    "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "initial_noise_multiplier": 1, "image_cfg_scale": 1.5,
    "include_init_images": False,
}  # fmt: skip
LEFT_OUT = (
    "enable_hr", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "firstphase_width",
    "firstphase_height",
)  # fmt: skip
STEPS = 4


@pytest.fixture
def http(able):
    with able.client() as client:
        yield client


@pytest.fixture(scope="module")
def local(control_artifact, net_artifact, lora_folder):
    """The same model and ControlNet in this process, with as many threads as the server has."""
    options = Options(threads=1)
    pipeline, net = (vitrify.load(path, "cpu", options=options) for path in (control_artifact, net_artifact))
    pipeline.adapters.folder = lora_folder
    yield pipeline, net
    pipeline.close()
    net.close()


@pytest.fixture(scope="module")
def photo():
    """Not square, with edges."""
    made = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    ImageDraw.Draw(made).ellipse((20, 12, 60, 52), (220, 120, 20))
    return made


@pytest.fixture(scope="module")
def spot():
    """A mask of its size."""
    made = Image.new("L", (96, 64))
    ImageDraw.Draw(made).rectangle((30, 20, 49, 39), fill=255)
    return made


def file_of(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def b64(image):
    return "data:image/png;base64," + base64.b64encode(file_of(image)).decode()


def asked(image, **fields):
    base = {name: value for name, value in WEBUIAPI.items() if name not in LEFT_OUT}
    return {**base, **CHANGE, "init_images": [b64(image)], "steps": STEPS, "sampler_name": "DDIM", "eta": 0, **fields}


def change(http, image, **fields):
    """(pictures, info, parameters) of img2img with these fields besides webuiapi's."""
    answer = http.post(f"{API}/img2img", json=asked(image, **fields))
    assert answer.status_code == 200, answer.text[:300]
    said = answer.json()
    assert set(said) == {"images", "parameters", "info"}
    pictures = [Image.open(io.BytesIO(base64.b64decode(one))) for one in said["images"]]
    return pictures, json.loads(said["info"]), said["parameters"]


def here(local, **given):
    """What the pipeline draws by itself for the same request."""
    common = {"width": 64, "height": 64, "steps": STEPS, "guidance": 7.0, "seed": 3, "scheduler": "ddim"}
    return local[0].generate("a fox face", **{**common, **given}).images


def same(one, other):
    np.testing.assert_array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))


def test_a_picture_as_webuiapi_has_it_changed(http, able, local, photo):
    (picture,), info, parameters = change(http, photo)
    same(picture, here(local, image=photo, strength=0.75)[0])
    expected = {
        "prompt": "a fox face", "seed": 3, "all_seeds": [3], "width": 64, "height": 64, "denoising_strength": 0.75,
        "not_supported": [], "interrupted": False, "sd_model_name": able.draws, "extra_generation_params": {},
    }  # fmt: skip
    assert {name: info[name] for name in expected} == expected
    (text,) = info["infotexts"]
    assert ", Denoising strength: 0.75, Version: " in text
    assert picture.info["parameters"] == text
    assert parameters["init_images"] is None
    assert parameters["mask"] is None
    assert (parameters["denoising_strength"], parameters["width"], parameters["steps"]) == (0.75, 64, STEPS)


def test_several_pictures_of_another_strength(http, local, photo):
    pictures, info, _ = change(http, photo, denoising_strength=0.5, batch_size=2, negative_prompt="a cat")
    assert info["all_seeds"] == [3, 4]
    alone = here(local, image=photo, strength=0.5, seed=[3, 4], batch=2, negative_prompt="a cat")
    for one, other in zip(pictures, alone, strict=True):
        same(one, other)
    given = {**asked(photo), "denoising_strength": None, "width": None, "height": None}
    said = http.post(f"{API}/img2img", json=given).json()["parameters"]
    assert (said["width"], said["height"]) == (64, 64)  # the model's own


def test_pictures_are_told_back_where_that_is_asked(http, photo, spot):
    _, _, parameters = change(http, photo, mask=b64(spot), include_init_images=True)
    assert parameters["init_images"] == [b64(photo)]
    assert parameters["mask"] == b64(spot)


@pytest.mark.parametrize("mode", [1, 2])
def test_the_ways_to_another_shape(http, local, photo, mode):
    (picture,), info, _ = change(http, photo, resize_mode=mode)
    assert info["not_supported"] == []
    same(picture, here(local, image=sized(photo, mode, (64, 64)), strength=0.75)[0])


def test_a_mask_over_the_whole_picture(http, local, photo, spot):
    fields = {"mask": b64(spot), "inpaint_full_res": False, "inpainting_fill": 1, "width": 96, "height": 64}
    (picture,), info, _ = change(http, photo, mask_blur=2, **fields)
    how = Masking(invert=False, blur=(2, 2), fill=False, only=False, padding=0)
    made = inpainting(file_of(photo), file_of(spot), how, 0, (96, 64))
    start, mask = (Image.open(io.BytesIO(data)) for data in (made.image, made.mask))
    drawn = here(local, image=start, mask=mask, strength=0.75, width=96)[0]
    same(picture, next(made.kept.around([drawn])))
    kept = np.asarray(mask) == 0
    assert kept.mean() > 0.5
    assert (np.asarray(picture)[kept] == np.asarray(photo)[kept]).all()
    assert (np.asarray(picture)[20:40, 30:50] == np.asarray(drawn)[20:40, 30:50]).mean() > 0.9
    assert info["not_supported"] == []
    assert info["extra_generation_params"] == {"Mask blur": "2"}
    assert ", Denoising strength: 0.75, Mask blur: 2, Version: " in info["infotexts"][0]
    assert picture.info["parameters"] == info["infotexts"][0]


def test_a_mask_as_webuiapi_sends_it(http, local, photo, spot):
    """Only what is masked is drawn, in the size that is asked for, and put back into the picture."""
    (picture,), info, _ = change(http, photo, mask=b64(spot))
    assert picture.size == photo.size
    how = Masking(invert=False, blur=(4, 4), fill=True, only=True, padding=0)
    made = inpainting(file_of(photo), file_of(spot), how, 0, (64, 64))
    start, mask = (Image.open(io.BytesIO(data)) for data in (made.image, made.mask))
    same(picture, next(made.kept.around(here(local, image=start, mask=mask, strength=0.75))))
    assert not (np.asarray(picture)[22:38, 32:48] == np.asarray(photo)[22:38, 32:48]).all()
    told = {"Mask blur": "4", "Inpaint area": "Only masked", "Masked area padding": 0, "Masked content": "fill"}
    assert info["extra_generation_params"] == told
    assert info["not_supported"] == []


def test_what_is_not_masked(http, photo, spot):
    fields = {"mask": b64(spot), "inpainting_mask_invert": 1, "inpaint_full_res": False, "mask_blur": 0}
    (picture,), info, _ = change(http, photo, width=96, **fields)
    assert (np.asarray(picture)[20:40, 30:50] == np.asarray(photo)[20:40, 30:50]).all()
    assert not (np.asarray(picture)[:20] == np.asarray(photo)[:20]).all()
    assert info["extra_generation_params"]["Mask mode"] == "Inpaint not masked"
    assert "Mask blur" not in info["extra_generation_params"]


def test_the_mask_may_be_in_the_alpha(http, photo, spot):
    clear = Image.new("RGBA", photo.size)
    clear.putalpha(spot)
    (one,), (two,) = (change(http, photo, mask=b64(mask))[0] for mask in (clear, spot))
    same(one, two)


def test_another_format_of_what_is_put_together(http, photo, spot):
    (picture,), _, _ = change(http, photo, mask=b64(spot), override_settings={"samples_format": "webp"})
    assert picture.format == "WEBP"
    assert picture.size == photo.size
    assert change(http, photo, mask=b64(spot), send_images=False)[0] == []


def test_what_is_not_done_is_named(http, photo, spot):
    asked_for = {
        "resize_mode": 3, "inpainting_fill": 2, "latent_mask": "AAAA", "initial_noise_multiplier": 0.5,
        "mask_round": False, "restore_faces": True, "script_name": "loopback", "refiner_checkpoint": "x",
    }  # fmt: skip
    _, info, _ = change(http, photo, mask=b64(spot), **asked_for)
    expected = set(asked_for) - {"mask_round"}  # which this server never leaves out
    assert set(info["not_supported"]) == expected


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"init_images": []}, "init_images"), ({"init_images": None}, "init_images"), ({"init_images": "x"}, "list"),
        ({"init_images": ["no base64!"]}, "no base64"), ({"init_images": ["aGFsbG8="]}, "no PNG"),
        ({"init_images": ["http://127.0.0.1:9/a.png"]}, "not fetched"), ({"init_images": [None]}, "init_images"),
        ({"init_images": ["x"] * 17}, "init_images"), ({"denoising_strength": 0}, "denoising_strength"),
        ({"denoising_strength": 1.01}, "denoising_strength"), ({"denoising_strength": -1}, "denoising_strength"),
        ({"denoising_strength": float("nan")}, "denoising_strength"), ({"denoising_strength": 0.1}, "one of 4"),
        ({"resize_mode": 4}, "resize_mode"), ({"resize_mode": "x"}, "resize_mode"), ({"mask_blur": -1}, "mask_blur"),
        ({"mask_blur": 10**30}, "mask_blur"), ({"mask_blur_x": float("inf")}, "mask_blur_x"), ({"mask": 3}, "mask"),
        ({"inpainting_fill": 4}, "inpainting_fill"), ({"inpaint_full_res_padding": -1}, "inpaint_full_res_padding"),
        ({"inpainting_mask_invert": 2}, "inpainting_mask_invert"), ({"include_init_images": "x"}, "boolean"),
        ({"mask": "aGFsbG8="}, "no PNG"), ({"width": 10**30}, "width"), ({"width": 0}, "width"), ({"height": 60}, "64"),
    ],
)  # fmt: skip
def test_fields_that_make_no_sense(http, photo, fields, why):
    assert why in refused(http.post(f"{API}/img2img", content=json.dumps({**asked(photo), **fields})))


def test_pictures_that_make_no_sense(http, photo, spot):
    assert "There are 2" in refused(http.post(f"{API}/img2img", json=asked(photo, init_images=[b64(photo)] * 2)))
    small = asked(photo, mask=b64(spot.resize((32, 32))))
    assert "The mask is 32x32" in refused(http.post(f"{API}/img2img", json=small))
    black = asked(photo, mask=b64(Image.new("L", photo.size)))
    assert "black all over" in refused(http.post(f"{API}/img2img", json=black))
    cut = base64.b64encode(file_of(photo)[:-40]).decode()
    for fields in ({}, {"resize_mode": 1}, {"mask": b64(spot)}):
        refused(http.post(f"{API}/img2img", json=asked(photo, init_images=[cut], **fields)))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 4), np.uint8), "RGBA")
    cut = base64.b64encode(file_of(noise)[:500]).decode()
    assert "mask" in refused(http.post(f"{API}/img2img", json=asked(photo, mask=cut)))
    huge = Image.new("L", (9000, 9000))
    refused(http.post(f"{API}/img2img", json=asked(photo, init_images=[b64(huge)])), 413)
    refused(http.post(f"{API}/img2img", json=asked(photo, mask=b64(huge))), 413)
    long = Image.new("L", (5000, 8), 255)
    refused(http.post(f"{API}/img2img", json=asked(long, mask=b64(long))))
    change(http, long, mask=b64(long), inpaint_full_res=False)


def test_an_interrupted_change(http, able, photo, spot):
    answers = []

    def ask():
        with able.client() as own:
            answers.append(
                own.post(f"{API}/img2img", json=asked(photo, mask=b64(spot), steps=1000, sampler_name="Euler a"))
            )

    thread = threading.Thread(target=ask)
    thread.start()
    until = time.monotonic() + 60
    while not (answers or http.get(f"{API}/progress").json()["state"]["sampling_step"]) and time.monotonic() < until:
        time.sleep(0.02)
    assert not answers, answers[0].text
    said = http.get(f"{API}/progress").json()
    assert said["state"]["sampling_steps"] == 750  # that much is changed
    assert http.post(f"{API}/interrupt").json() == {}
    thread.join(30)
    assert answers[0].json()["images"] == []
    assert json.loads(answers[0].json()["info"])["interrupted"]


def test_loras_in_the_prompt(http, local):
    fields = {**WEBUIAPI, "steps": STEPS, "sampler_name": "DDIM", "eta": 0}
    said = http.post(f"{API}/txt2img", json={**fields, "prompt": "a fox face <lora:style:0.5:0.8>"}).json()
    info = json.loads(said["info"])
    picture = Image.open(io.BytesIO(base64.b64decode(said["images"][0])))
    same(picture, here(local, loras={"style": (0.8, 0.5)})[0])
    assert not (np.asarray(picture) == np.asarray(here(local)[0])).all()
    assert info["prompt"] == "a fox face <lora:style:0.5:0.8>"
    assert info["infotexts"][0].startswith("a fox face <lora:style:0.5:0.8>\nSteps: ")
    assert "hash" not in info["infotexts"][0].replace("Model hash", "")
    again = http.post(f"{API}/txt2img", json={**fields, "prompt": info["infotexts"][0].split("\n")[0]}).json()
    assert Image.open(io.BytesIO(base64.b64decode(again["images"][0]))).tobytes() == picture.tobytes()
    names = [one["name"] for one in http.get(f"{API}/loras").json()]
    assert {"style", "deep"} <= set(names)
    for name in ("other", "../style", "/etc/passwd", "more/deep", "style.safetensors"):
        why = refused(http.post(f"{API}/txt2img", json={**fields, "prompt": f"a fox <lora:{name}:1>"}))
        assert "style" in why


def unit(picture, **fields):
    """A unit as webuiapi sends it."""
    plain = {
        "image": b64(picture).partition(",")[2] if picture is not None else "", "mask": None, "module": "none",
        "model": "lines", "weight": 1.0, "resize_mode": "Resize and Fill", "low_vram": False, "processor_res": 512,
        "threshold_a": 64, "threshold_b": 64, "guidance_start": 0.0, "guidance_end": 1.0, "control_mode": "Balanced",
        "pixel_perfect": False, "hr_option": "Both", "enabled": True,
    }  # fmt: skip
    return {"controlnet": {"args": [{**plain, **fields}]}}


def test_a_controlnet(http, local, photo):
    pytest.importorskip("skimage", reason="needs the extra control")
    square, net = photo.resize((64, 64)), local[1]
    more = {"module": "canny", "weight": 0.8, "guidance_end": 0.5}
    (title,) = http.get("/controlnet/model_list").json()["model_list"]
    fields = {**WEBUIAPI, "steps": STEPS, "sampler_name": "DDIM", "eta": 0}
    body = {**fields, "alwayson_scripts": unit(square, model=title, **more)}
    said = http.post(f"{API}/txt2img", json=body).json()
    info = json.loads(said["info"])
    picture = Image.open(io.BytesIO(base64.b64decode(said["images"][0])))
    wanted = here(local, control=[ControlUnit(control_picture(square, "canny"), net, 0.8, 0.0, 0.5)])[0]
    same(picture, wanted)
    assert not (np.asarray(wanted) == np.asarray(here(local)[0])).all()
    place = "alwayson_scripts.controlnet.args[0]."
    assert info["not_supported"] == [place + name for name in ("processor_res", "threshold_a", "threshold_b")]
    line = f"Module: canny, Model: {title}, Weight: 0.8, Guidance Start: 0.0, Guidance End: 0.5, Control Mode: Balanced"
    assert f'ControlNet 0: "{line}"' in info["infotexts"][0]
    assert info["extra_generation_params"] == {"ControlNet 0": line}
    read = http.post(f"{API}/png-info", json={"image": said["images"][0]}).json()["parameters"]
    assert read["ControlNet 0"] == line
    assert read["ControlNet 0 module"] == "canny"
    assert read["ControlNet 0 guidance_end"] == "0.5"


def test_a_controlnet_of_a_changed_picture(http, local, photo):
    """Without a picture of its own it follows the one that is changed; one of another shape may be cut to it."""
    net = local[1]
    (picture,), info, _ = change(http, photo, alwayson_scripts=unit(None, resize_mode="Crop and Resize"))
    follows = ControlUnit(sized(photo, 1, (64, 64)), net)
    same(picture, here(local, image=photo, strength=0.75, control=[follows])[0])
    assert info["not_supported"] == []
    (picture,), info, _ = change(http, photo, alwayson_scripts=unit(photo))
    same(picture, here(local, image=photo, strength=0.75, control=[ControlUnit(photo, net)])[0])
    assert info["not_supported"] == ["alwayson_scripts.controlnet.args[0].resize_mode"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "other"}, "lines ["), ({"module": "openpose"}, "canny"), ({"image": "x"}, "base64"),
        ({"weight": -1}, "weight"), ({"weight": float("nan")}, "weight"), ({"guidance_start": 2}, "guidance_start"),
        ({"guidance_start": 0.5, "guidance_end": 0.5}, "0.5 to 0.5"), ({"image": ""}, "no picture"),
    ],
)  # fmt: skip
def test_units_that_make_no_sense(http, photo, fields, why):
    body = json.dumps({**WEBUIAPI, "alwayson_scripts": unit(photo, **fields)})
    assert why in refused(http.post(f"{API}/txt2img", content=body))


def test_a_controlnet_of_another_model(http, photo, able):
    (emoji,) = [one for one in http.get(f"{API}/sd-models").json() if one["model_name"] != able.draws]
    body = {**WEBUIAPI, "alwayson_scripts": unit(photo), "override_settings": {"sd_model_checkpoint": emoji["title"]}}
    assert "--control" in refused(http.post(f"{API}/txt2img", json=body))
    try:
        http.post(f"{API}/options", json={"sd_model_checkpoint": emoji["title"]})
        assert http.get("/controlnet/model_list").json() == {"model_list": []}
    finally:
        http.post(f"{API}/options", json={"sd_model_checkpoint": able.draws})


def test_lists(http, guarded):
    assert http.get(f"{API}/scripts").json() == {"txt2img": ["controlnet"], "img2img": ["controlnet"]}
    info = http.get(f"{API}/script-info").json()
    assert [(one["name"], one["is_alwayson"], one["is_img2img"]) for one in info] == [
        ("controlnet", True, False), ("controlnet", True, True),
    ]  # fmt: skip
    assert len(info[0]["args"]) == http.get("/controlnet/settings").json()["control_net_unit_count"]
    assert http.get("/controlnet/version").json() == {"version": 2}
    modules = http.get("/controlnet/module_list", params={"alias_names": False}).json()
    assert modules["module_list"] == ["none", "canny", "lineart"]
    assert set(modules["module_detail"]) == set(modules["module_list"])
    (kind,) = http.get("/controlnet/control_types").json()["control_types"].values()
    assert kind["default_model"] in kind["model_list"]
    assert kind["default_option"] in kind["module_list"]
    words = http.get(f"{API}/embeddings").json()
    assert words["loaded"]["zyx"]["vectors"] == 2
    assert words["skipped"] == {}
    with guarded.client() as other:
        refused(other.get("/controlnet/model_list"), 401)
        refused(other.post(f"{API}/img2img", json={}), 401)


def test_the_client_itself(able, photo, spot):
    """What webuiapi sends and reads, where it is installed."""
    webuiapi = pytest.importorskip("webuiapi", reason="needs the extra clients")
    client = webuiapi.WebUIApi(baseurl=f"{able.url}{API}", sampler="Euler a", steps=STEPS)
    client.steps = STEPS
    square = photo.resize((64, 64))
    common = {"prompt": "a fox face", "seed": 3, "width": 64, "height": 64}
    plain = client.img2img(images=[photo], **common)
    assert plain.image.size == (64, 64)
    assert plain.info["not_supported"] == []
    masked = client.img2img(images=[photo], mask_image=spot, **common)
    assert masked.image.size == photo.size
    assert masked.info["not_supported"] == []
    (title,) = client.controlnet_model_list()
    assert "canny" in client.controlnet_module_list()
    follows = webuiapi.ControlNetUnit(image=square, model=title)
    steered = [
        client.txt2img(controlnet_units=[follows], **common),
        client.img2img(images=[square], controlnet_units=[follows], **common),
    ]
    for made in steered:
        assert made.info["not_supported"] == []
        assert "ControlNet 0" in made.info["infotexts"][0]
    assert {one["name"] for one in client.get_loras()} >= {"style", "deep"}
