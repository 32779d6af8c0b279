"""What is asked of one model before any work: its own defaults, and refusals that name the field."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra serve")
from vitrify.serve.asked import GenerateBody
from vitrify.serve.catalogue import ModelInfo, fitting
from vitrify.serve.errors import BadField, TooLarge, Unsupported
from vitrify.serve.fields import read
from vitrify.serve.pictures import upright_size
from vitrify.serve.settings import Settings

DDIM = {
    "_class_name": "DDIMScheduler",
    "skip_prk_steps": True,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
MODEL = ModelInfo(
    "m", Path("m"), "id", "sd", ("generate",), "fp32", 1, size=(64, 96), unit=16, family="sd",
    tasks=("text2img", "img2img", "inpaint"), steps=25, guidance=4.5, scheduler=DDIM,
    schedulers=("ddim", "euler"), controlnets=("lines",), misfits={"large": "it reads text of 9 numbers"},
    hooks=("words", "other"),
)  # fmt: skip
NET = replace(MODEL, name="lines", kinds=(), control=True)


def encoded(size: tuple[int, int] = (40, 50), form: str = "PNG", **options: Any) -> str:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 30, 0)).save(out, form, **options)
    return base64.b64encode(out.getvalue()).decode()


def turned(orientation: int) -> Any:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PICTURE = encoded()
UNIT = {"net": "lines", "picture": PICTURE}


def asked(info: ModelInfo = MODEL, pixels: int = 10_000, **given: Any) -> Any:
    return read(GenerateBody, {"model": "m", "prompt": "a fox", **given}).request(info, Settings(pixels=pixels))


def test_the_model_s_own_defaults() -> None:
    made = asked()
    assert (made.steps, made.guidance, made.width, made.height, made.scheduler) == (25, 4.5, 64, 96, None)
    assert (made.image, made.mask, made.strength, made.control, made.loras, made.hooks) == (None,) * 3 + ((), {}, None)
    made = asked(steps=3, guidance=0, width=32, scheduler="Euler a")
    assert (made.steps, made.guidance, made.width, made.height, made.scheduler) == (3, 0.0, 32, 96, "euler_a")


@pytest.mark.parametrize(
    ("text", "name"),
    [("DPM++ 2M Karras", "dpmpp_2m_karras"), ("EulerAncestralDiscreteScheduler", "euler_a"), ("plms", "pndm")],
)
def test_schedulers_by_all_their_names(text: str, name: str) -> None:
    assert asked(scheduler=text).scheduler == name


def test_the_schedulers_that_are_named_can_be_had() -> None:
    assert {"ddim", "pndm", "euler_a", "unipc_karras"} < set(fitting(DDIM))
    assert "flow_euler" not in fitting(DDIM)
    assert "flow_euler" in fitting(FLOW)
    assert "pndm" not in fitting({**DDIM, "skip_prk_steps": False})


def test_everything_at_once() -> None:
    made = asked(
        image=PICTURE, mask=encoded(form="WEBP"), strength=0.5, hooks=["other", "words"],
        control=[UNIT, UNIT | {"made_by": "canny", "strength": 2, "start": 0.25, "end": 0.5}],
    )  # fmt: skip
    assert made.image == base64.b64decode(PICTURE)
    assert made.strength == 0.5
    assert made.hooks == ("words", "other"), "in the server's order"
    assert [(u.net, u.made_by, u.strength, u.start, u.end) for u in made.control] == [
        ("lines", "picture", 1.0, 0.0, 1.0), ("lines", "canny", 2.0, 0.25, 0.5),
    ]  # fmt: skip
    assert (made.width, made.height) == (32, 48), "the picture's, made divisible"
    assert asked(image=PICTURE, width=64).width == 64
    assert asked(image=PICTURE, width=64).height == 96
    assert asked(strength=0.5).strength is None, "there is no picture that it would be of"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_on_its_side_is_as_high_as_it_is_shown(form: str) -> None:
    for orientation, size in ((1, (40, 50)), (3, (40, 50)), (6, (50, 40)), (8, (50, 40))):
        data = encoded(form=form, exif=turned(orientation))
        assert upright_size(base64.b64decode(data)) == size
    made = asked(image=encoded(form=form, exif=turned(6)), mask=encoded((50, 40)))
    assert (made.width, made.height) == (48, 32)
    broken = base64.b64decode(encoded(form=form, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"))
    assert upright_size(broken) == (40, 50)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a mask alone": ({"mask": PICTURE}, "no picture that it belongs to", "mask"),
    "a mask of another size": ({"image": PICTURE, "mask": encoded((41, 50))}, "The mask is 41x50", "mask"),
    "strength of nothing": ({"image": PICTURE, "strength": 0}, "greater than 0", "strength"),
    "strength above 1": ({"image": PICTURE, "strength": 1.01}, "less than or equal to 1", "strength"),
    "less than a step": ({"image": PICTURE, "strength": 0.03}, "less than one of 25 steps", "strength"),
    "no picture": ({"image": base64.b64encode(b"text").decode()}, "no PNG, JPEG or WebP", "image"),
    "no base64": ({"image": PICTURE, "mask": "????"}, "no base64", "mask"),
    "an address": ({"image": "http://localhost/x.png"}, "not fetched", "image"),
    "no control picture": ({"control": [UNIT, UNIT | {"picture": "AAAA"}]}, "no PNG", "control.1.picture"),
    "no such net": ({"control": [UNIT | {"net": "none"}]}, "No ControlNet 'none' is served", "control.0.net"),
    "a net of another model": ({"control": [UNIT | {"net": "large"}]}, "reads text of 9", "control.0.net"),
    "a model as net": ({"control": [UNIT | {"net": "m"}]}, "No ControlNet 'm'", "control.0.net"),
    "an estimator": ({"control": [UNIT | {"made_by": "depth=/etc/x"}]}, "'picture', 'canny'", "control.0.made_by"),
    "backwards": ({"control": [UNIT | {"start": 0.5, "end": 0.5}]}, "from 0.5 to 0.5", "control.0.end"),
    "beyond the end": ({"control": [UNIT | {"end": 1.5}]}, "less than or equal to 1", "control.0.end"),
    "nine nets": ({"control": [UNIT] * 9}, "at most 8", "control"),
    "no such hook": ({"hooks": ["words", "evil"]}, "no hook 'evil'", "hooks"),
    "hook with options": ({"hooks": ["words:folder=/"]}, "no hook 'words:folder=/'", "hooks"),
    "no such scheduler": ({"scheduler": "none"}, "no scheduler 'none'", "scheduler"),
    "a scheduler of flows": ({"scheduler": "flow_euler"}, "draws with models of flow", "scheduler"),
    "a side": ({"width": 40}, "not a multiple of 16", "width"),
    "a seed": ({"seed": 2**64 - 1, "images": 2}, "too large for 2", "seed"),
    "three strengths": ({"loras": {"style": [1.0, 1.0, 1.0]}}, "at most 2", "loras.style"),
    "a strength in words": ({"loras": {"style": "much"}}, "valid number", "loras.style"),
    "no preset": ({"preset": "quick"}, "'exact', 'fast' or 'small'", "preset"),
    "no step cache": ({"step_cache": "often"}, "The step cache is 'often'", "step_cache"),
    "no graph": ({"step_cache": "3"}, "m has no graph that takes deep features", "step_cache"),
    "no decoder": ({"decoder": "preview"}, "m has no decoder for previews", "decoder"),
    "another decoder": ({"decoder": "taesd"}, "'vae' or 'preview'", "decoder"),
    "backwards guidance": ({"guidance_interval": [0.8, 0.1]}, "interval is 0.8 to 0.1", "guidance_interval"),
    "guidance of one end": ({"guidance_interval": [0.8]}, "at least 2", "guidance_interval"),
    "guidance beyond the end": ({"guidance_interval": [0, 1.5]}, "less than or equal to 1", "guidance_interval"),
    "guidance never": ({"guidance_every": 0}, "greater than or equal to 1", "guidance_every"),
    "no LoRAs": ({"loras": {"style": 1}}, "no LoRA 'style'", "loras"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_any_work(name: str) -> None:
    given, said, param = REFUSED[name]
    with pytest.raises(BadField, match=said.replace("(", r"\(")) as caught:
        asked(**given)
    assert (caught.value.param or "").startswith(param)
    assert caught.value.fix


def test_fixes_name_what_there_is() -> None:
    for given, fix in (
        ({"scheduler": "flow_euler"}, "ddim, euler"), ({"control": [UNIT | {"net": "x"}]}, "one of: lines"),
        ({"hooks": ["x"]}, "words, other"), ({"loras": {"x": 1}}, "--lora-folder"),
        ({"image": PICTURE, "strength": 0.03}, "0.04 or more"),
    ):  # fmt: skip
        with pytest.raises(BadField) as caught:
            asked(**given)
        assert fix in caught.value.fix
    bare = replace(MODEL, controlnets=(), hooks=())
    for given, fix in (({"control": [UNIT]}, "vitrify serve MODEL NET"), ({"hooks": ["x"]}, "--hook")):
        with pytest.raises(BadField) as caught:
            asked(bare, **given)
        assert fix in caught.value.fix
    assert asked(image=PICTURE, strength=0.04).steps_done == 1


def test_pixels_of_all_pictures_together() -> None:
    assert asked(image=PICTURE, mask=PICTURE, control=[UNIT], pixels=6000).mask
    with pytest.raises(TooLarge, match="40x50 pixels"):
        asked(image=PICTURE, mask=PICTURE, control=[UNIT], pixels=5999)
    huge = encoded((5000, 16))
    with pytest.raises(BadField, match="5000x16; at most 4096") as caught:
        asked(image=huge, pixels=100_000)
    assert "width" in caught.value.fix
    assert asked(image=huge, width=64, height=64, pixels=100_000).width == 64


@pytest.mark.parametrize(
    ("tasks", "given", "said"),
    [
        (("inpaint",), {}, "m is an inpainting model"),
        (("inpaint",), {"image": PICTURE}, "m is an inpainting model"),
        (("img2img", "inpaint"), {}, "m is a refiner"),
        (("text2img",), {"image": PICTURE}, "m has no vae_encoder"),
        (("text2img",), {"image": PICTURE, "mask": PICTURE}, "m has no vae_encoder"),
    ],
)
def test_a_model_refuses_what_it_cannot_do(tasks: tuple[str, ...], given: dict[str, Any], said: str) -> None:
    info = replace(MODEL, tasks=tasks)
    with pytest.raises(Unsupported, match=said):
        asked(info, **given)
    assert asked(replace(MODEL, tasks=("inpaint",)), image=PICTURE, mask=PICTURE).mask


def test_a_controlnet_draws_nothing_by_itself() -> None:
    with pytest.raises(Unsupported, match="lines is a ControlNet: by itself it does nothing") as caught:
        asked(NET)
    assert "controlnets" in caught.value.fix
    with pytest.raises(Unsupported, match="m does not classify"):
        MODEL.check("classify")


def test_flows_count_their_steps_otherwise() -> None:
    flow = replace(MODEL, family="sd3", scheduler=FLOW, schedulers=("flow_euler",))
    assert asked(flow, image=PICTURE, strength=0.01).strength == 0.01, "its first step is rounded to"
    with pytest.raises(BadField, match="draws with models of diffusion"):
        asked(flow, scheduler="ddim")
    own = replace(MODEL, scheduler={**DDIM, "_class_name": "DDPMScheduler"})
    with pytest.raises(BadField, match="DDPMScheduler"):
        asked(own)
    assert asked(own, scheduler="ddim").scheduler == "ddim"


# --- LoRAs: names, never paths ---------------------------------------------------------------------------------------


@pytest.fixture
def styled(tmp_path: Path) -> ModelInfo:
    for file in ("style", "more/deep", "a/twice", "b/twice"):
        path = tmp_path / "loras" / f"{file}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "loras" / "note.txt").write_text("no LoRA")
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    return replace(MODEL, lora_folder=tmp_path / "loras")


def test_loras_are_named_by_their_files(styled: ModelInfo) -> None:
    assert styled.loras == ("deep", "style")
    assert styled.to_json()["loras"] == ["deep", "style"]
    made = asked(styled, prompt="a <lora:deep:0.5> fox <lora:style:0.2:0.9>", loras={"style": 0.1, "deep": [1, 0.5]})
    assert made.prompt == "a fox"
    assert made.loras == {"style": (0.9, 0.2), "deep": (0.5, 0.5)}, "tags win; the text encoders' strength is first"
    assert asked(styled, loras={"style": 0.1, "deep": [1, 0.5]}).loras == {"style": 0.1, "deep": (1.0, 0.5)}
    path = styled.lora_folder
    assert path is not None
    (path / "new.safetensors").write_bytes(b"x")
    assert asked(styled, loras={"new": 1}).loras == {"new": 1.0}, "the folder is read anew"


@pytest.mark.parametrize(
    "name",
    ["", "none", "twice", "note", "style.safetensors", "more/deep", "../secret", "../loras/style", "./style", "style\0",
     "{root}/secret.safetensors", "{root}/loras/style.safetensors", "STYLE ", "*", "s?yle"],
)  # fmt: skip
def test_a_path_is_no_name_of_a_lora(styled: ModelInfo, name: str, tmp_path: Path) -> None:
    name = name.format(root=tmp_path)
    ways: list[tuple[dict[str, Any], str]] = [({"loras": {name: 1.0}}, "loras")]
    if name:
        ways.append(({"prompt": f"a fox <lora:{name}:1>"}, "prompt"))
    for given, param in ways:
        with pytest.raises(BadField, match="no LoRA") as caught:
            asked(styled, **given)
        assert caught.value.param == param
        assert "deep, style" in caught.value.fix
        assert str(tmp_path) not in caught.value.fix


@pytest.mark.parametrize("tag", ["<lora:style:much>", "<lora::1>", "<lora:style:1:2:3>", "<lora:style:nan>"])
def test_a_tag_that_cannot_be_read_is_a_fault_of_the_prompt(styled: ModelInfo, tag: str) -> None:
    with pytest.raises(BadField, match="in the prompt") as caught:
        asked(styled, prompt=f"a fox {tag}")
    assert caught.value.param == "prompt"


def test_too_strong_and_too_many(styled: ModelInfo) -> None:
    for given in ({"loras": {"style": 101}}, {"loras": {"style": [1, -101]}}, {"prompt": "<lora:style:1e9>"}):
        with pytest.raises(BadField, match="The strength of the LoRA 'style'"):
            asked(styled, **given)
    folder = styled.lora_folder
    assert folder is not None
    for number in range(40):
        (folder / f"n{number}.safetensors").write_bytes(b"x")
    with pytest.raises(BadField, match="33 LoRAs at once"):
        asked(styled, loras={f"n{number}": 1 for number in range(33)})


def test_a_prompt_of_blanks_is_read_at_once(styled: ModelInfo) -> None:
    """Each blank could begin a tag: tried one by one, twenty thousand of them would take seconds."""
    import time

    start = time.perf_counter()
    asked(styled, prompt=" " * 20_000)
    assert time.perf_counter() - start < 0.5


def test_a_preset_is_what_the_fields_do_not_say() -> None:
    def left_out(info: ModelInfo, **given: Any) -> tuple[Any, ...]:
        made = asked(info, **given)
        return made.step_cache, made.guidance_interval, made.guidance_every, made.decoder, made.preset

    able = replace(MODEL, step_cache=True, preview_decoder=True)
    nothing = (None, (0.0, 1.0), 1, "vae")
    assert left_out(MODEL) == left_out(able) == (*nothing, None)
    assert left_out(able, preset="fast") == ("2", (0.0, 1.0), 1, "vae", "fast")
    assert left_out(MODEL, preset="fast") == (None, (0.0, 1.0), 1, "vae", "fast"), "it has no graph for more"
    own = {"step_cache": "3.0", "guidance_interval": [0, 0.5], "guidance_every": 3, "decoder": "preview"}
    assert left_out(able, preset="fast", **own) == ("3", (0.0, 0.5), 3, "preview", "fast")
    served = replace(able, preset="fast")
    assert left_out(served) == left_out(able, preset="fast")
    assert left_out(served, preset="exact") == (*nothing, "exact")
    assert left_out(served, step_cache="4") == ("4", (0.0, 1.0), 1, "vae", "fast")
