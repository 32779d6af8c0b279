"""Pictures and masks of img2img, as the web UI reads them; and units of its ControlNet extension."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from vitrify.core.errors import BadInput
from vitrify.serve.a1111_control import lines, script_info, scripts, units_in
from vitrify.serve.a1111_pictures import CROP, FILL, RESIZE, Masking, filled, inpainting, prepared, region, sized
from vitrify.serve.catalogue import ModelInfo
from vitrify.serve.errors import BadField, BadRequest
from vitrify.serve.masks import as_grey, from_alpha
from vitrify.serve.requests import ControlRequest

NET = ModelInfo("edges", Path("edges"), "a" * 64, "controlnet", (), "fp32", 1, control=True)
WHOLE = Masking(invert=False, blur=(0, 0), fill=False, only=False, padding=0)


def file_of(image, form="PNG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def b64(image):
    return base64.b64encode(file_of(image)).decode()


def opened(data):
    return Image.open(io.BytesIO(data))


def colours(size=(64, 48)):
    """A picture whose every pixel tells where it is."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))


def spot(size=(64, 48), box=(20, 10, 40, 30)):
    """A mask, white inside `box`."""
    made = Image.new("L", size)
    ImageDraw.Draw(made).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return made


def test_the_ways_to_another_shape():
    wide = colours((80, 40))
    assert sized(wide, RESIZE, (32, 32)) == wide.resize((32, 32), Image.Resampling.LANCZOS)
    cut = np.asarray(sized(wide, CROP, (40, 40)))
    assert np.abs(cut.astype(int) - np.asarray(wide.crop((20, 0, 60, 40)))).max() == 0
    whole = np.asarray(sized(wide, FILL, (80, 60)))
    assert whole.shape == (60, 80, 3)
    assert (whole[10:50] == np.asarray(wide)).all()
    assert (whole[:10] == whole[10]).all()  # the edge's own colours
    assert (whole[50:] == whole[49]).all()
    assert sized(spot(), FILL, (32, 64)).mode == "L"
    assert sized(Image.new("L", (1, 3000)), FILL, (8, 8)).size == (8, 8)


def test_a_picture_is_upright_and_on_white():
    turned = Image.Exif()
    turned[0x0112] = 6
    data = file_of(colours((32, 16)), "JPEG", exif=turned)
    assert opened(prepared(data, CROP, (16, 32)).image).size == (16, 32)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert opened(prepared(file_of(clear), CROP, (8, 8)).image).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(BadInput, match="cannot be decoded"):
        prepared(file_of(colours())[:90], CROP, (8, 8))


def test_a_mask_for_the_whole_picture():
    made = inpainting(file_of(colours()), file_of(spot()), WHOLE, RESIZE, (64, 48))
    assert opened(made.image).tobytes() == colours().tobytes()
    assert opened(made.mask).tobytes() == spot().tobytes()
    (answer,) = made.kept.around([Image.new("RGB", (64, 48), (255, 0, 0))])
    inside = np.asarray(spot()) > 0
    assert (np.asarray(answer)[inside] == (255, 0, 0)).all()
    assert (np.asarray(answer)[~inside] == np.asarray(colours())[~inside]).all()


def test_a_mask_that_is_inverted_and_blurred():
    how = Masking(invert=True, blur=(4, 4), fill=False, only=False, padding=0)
    made = inpainting(file_of(colours()), file_of(spot()), how, RESIZE, (64, 48))
    soft = np.asarray(opened(made.mask), int)
    expected = Image.fromarray(255 - np.asarray(spot())).filter(ImageFilter.GaussianBlur(4))
    assert (soft == np.asarray(expected)).all()
    assert len(np.unique(soft)) > 10
    answer = np.asarray(next(made.kept.around([Image.new("RGB", (64, 48))])), int)
    assert (answer[soft >= 128] == 0).all()  # what the model drew
    assert (answer[soft == 0] == np.asarray(colours())[soft == 0]).all()
    between = (soft > 20) & (soft < 100)
    assert (answer[between].sum(-1) < np.asarray(colours(), int)[between].sum(-1)).all()


def test_only_what_is_masked_is_drawn_larger_and_put_back():
    how = Masking(invert=False, blur=(0, 0), fill=False, only=True, padding=2)
    made = inpainting(file_of(colours()), file_of(spot()), how, RESIZE, (64, 64))
    assert opened(made.image).size == opened(made.mask).size == (64, 64)
    part = colours().crop((18, 8, 42, 32)).resize((64, 64), Image.Resampling.LANCZOS)
    assert opened(made.image).tobytes() == part.tobytes()
    answer, again = made.kept.around([Image.new("RGB", (64, 64), (0, 255, 0)), opened(made.image)])
    assert answer.size == (64, 48)  # the picture's own
    inside = np.asarray(spot()) > 0
    assert (np.asarray(answer)[inside] == (0, 255, 0)).all()
    assert (np.asarray(answer)[~inside] == np.asarray(colours())[~inside]).all()
    # nothing is moved by the way there and back
    assert np.abs(np.asarray(again, int) - np.asarray(colours())).max() <= 4


@pytest.mark.parametrize(
    ("box", "padding", "size", "found"),
    [
        ((20, 10, 40, 30), 0, (64, 64), (20, 10, 40, 30)), ((20, 10, 40, 30), 0, (128, 64), (10, 10, 50, 30)),
        ((20, 10, 40, 30), 0, (64, 128), (20, 0, 40, 40)), ((0, 0, 4, 4), 3, (64, 64), (0, 0, 7, 7)),
        ((60, 40, 64, 48), 0, (64, 64), (56, 40, 64, 48)), ((0, 20, 64, 22), 0, (64, 64), (0, 0, 64, 48)),
        ((30, 20, 31, 21), 100, (64, 64), (0, 0, 64, 48)), ((63, 47, 64, 48), 0, (4096, 8), (0, 47, 64, 48)),
    ],
)  # fmt: skip
def test_the_part_around_a_mask(box, padding, size, found):
    assert region(spot(box=box), padding, size) == found


def test_masks_that_make_no_sense():
    only = Masking(invert=False, blur=(4, 4), fill=True, only=True, padding=0)
    with pytest.raises(BadField, match="black all over"):
        inpainting(file_of(colours()), file_of(Image.new("L", (64, 48))), only, RESIZE, (64, 64))
    with pytest.raises(BadField, match="32x32, its picture 64x48"):
        inpainting(file_of(colours()), file_of(Image.new("L", (32, 32))), WHOLE, RESIZE, (64, 64))
    with pytest.raises(BadRequest, match="cannot be decoded"):
        inpainting(file_of(colours()), file_of(spot().convert("RGBA"))[:80], WHOLE, RESIZE, (64, 64))


def test_what_is_masked_takes_the_colours_around_it():
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    picture.paste((0, 0, 255), (24, 24, 40, 40))
    mask = spot((64, 64), (22, 22, 42, 42))
    found = np.asarray(filled(picture, mask), int)
    assert np.abs(found[24:40, 24:40] - (200, 30, 30)).max() <= 8  # bytes, divided by a small alpha
    kept = np.asarray(mask) == 0
    assert (found[kept] == np.asarray(picture)[kept]).all()


def test_masks_in_the_alpha():
    half = Image.new("RGBA", (4, 2), (90, 90, 90, 255))
    half.putpixel((0, 0), (90, 90, 90, 0))
    half.putpixel((1, 0), (90, 90, 90, 1))
    half.putpixel((2, 0), (90, 90, 90, 200))
    ours = opened(from_alpha(file_of(half)))
    assert ours.mode == "L"
    assert list(ours.tobytes()) == [255, 0, 0, 0, 0, 0, 0, 0]  # OpenAI's: only where nothing is left
    assert list(as_grey(file_of(half)).tobytes()) == [0, 0, 255, 255, 255, 255, 255, 255]  # the web UI's: what is there
    assert list(as_grey(file_of(Image.new("RGBA", (1, 1), (90, 90, 90, 255)))).tobytes()) == [90]
    palette = half.quantize(4)
    assert opened(from_alpha(file_of(palette, transparency=0))).size == (4, 2)
    for flat in (file_of(half.convert("RGB")), file_of(half.convert("RGB"), "JPEG")):
        with pytest.raises(BadField, match="no alpha"):
            from_alpha(flat)


def unit(**fields):
    return {"controlnet": {"args": [{"model": "edges", "image": b64(colours()), **fields}]}}


def test_units_as_clients_send_them():
    asked = units_in(unit(module="Canny", weight=0.7, guidance_start=0.1, guidance_end=0.9), [NET], None, (64, 48))
    (one,) = asked.control
    assert one.pop("picture") == b64(colours())
    assert one == {"net": "edges", "made_by": "canny", "strength": 0.7, "start": 0.1, "end": 0.9}
    assert asked.not_done == []
    for model in ("edges", f"edges [{'a' * 10}]", "a" * 10):
        assert units_in(unit(model=model), [NET], None, (64, 48)).control[0]["net"] == "edges"
    old = {"ControlNet": {"args": [True, None, {"input_image": b64(colours()), "model": "edges", "guidance": 0.5}]}}
    assert units_in(old, [NET], None, (64, 48)).control[0]["end"] == 0.5
    start = b64(colours((32, 24)))
    assert units_in({"controlnet": [{"model": "edges"}]}, [NET], start, (64, 48)).control[0]["picture"] == start
    for nothing in (None, {}, {"controlnet": {"args": []}}, {"controlnet": {}}, unit(enabled=False, model="other")):
        assert units_in(nothing, [], None, (64, 48)).control == []


def test_what_a_unit_asks_for_besides_is_named():
    # all that webuiapi sends for a unit with a picture and a model
    plain = {
        "mask": None, "module": "none", "weight": 1.0, "resize_mode": "Resize and Fill", "low_vram": False,
        "processor_res": 512, "threshold_a": 64, "threshold_b": 64, "guidance_start": 0.0, "guidance_end": 1.0,
        "control_mode": "Balanced", "pixel_perfect": False, "hr_option": "Both", "enabled": True,
    }  # fmt: skip
    assert units_in(unit(**plain), [NET], None, (64, 48)).not_done == []
    place = "alwayson_scripts.controlnet.args[0]."
    more = {
        "module": "canny",
        "control_mode": "ControlNet is more important",
        "mask": "AAAA",
        "save_detected_map": True,
    }
    named = units_in(unit(**plain | more), [NET], None, (64, 48)).not_done
    expected = ["mask", "processor_res", "threshold_a", "threshold_b", "control_mode", "save_detected_map"]
    assert sorted(named) == sorted(place + name for name in expected)
    own = {"module": "canny", "threshold_a": 100, "threshold_b": 200.0, "pixel_perfect": True}
    assert units_in(unit(**plain | own), [NET], None, (64, 48)).not_done == []
    asked = units_in(unit(**plain), [NET], None, (64, 64))  # of another shape: its edges are not filled
    assert asked.not_done == [f"{place}resize_mode"]
    assert asked.modes == [RESIZE]
    for crop in (1, "Crop and Resize", "Scale to Fit (Inner Fit)"):
        assert units_in(unit(resize_mode=crop), [NET], None, (64, 64)).modes == [CROP]
    assert units_in(unit(resize_mode=0), [NET], None, (64, 64)).modes == [RESIZE]
    both = units_in(unit(image={"image": b64(colours()), "mask": "AAAA"}), [NET], None, (64, 48))
    assert both.not_done == [f"{place}mask"]


@pytest.mark.parametrize(
    ("scripts", "why"),
    [
        (unit(model="other"), "Choose one of: edges"), (unit(model=None), "no ControlNet 'None'"),
        (unit(module="openpose"), "none, canny, lineart"), (unit(image=None), "no picture to follow"),
        (unit(image=3), "image"), (unit(image={}), "no picture"), (unit(weight="much"), "weight"),
        (unit(enabled="perhaps"), "enabled"), ({"controlnet": {"args": {}}}, "no list"),
        ({"controlnet": {"args": ["x"]}}, "no unit"), ({"controlnet": "x"}, "no list"),
        ({"controlnet": unit()["controlnet"]["args"] * 9}, "more than 8 units"),
        (unit(image="no base64!"), "no base64"), (unit(image="http://127.0.0.1/a.png"), "not fetched"),
    ],
)  # fmt: skip
def test_units_that_make_no_sense(scripts, why):
    with pytest.raises(BadRequest) as caught:
        units_in(scripts, [NET], None, (64, 64))
    assert why in f"{caught.value.what} {caught.value.fix}"


def test_how_units_are_told():
    made = lines([ControlRequest("edges", b"", "canny", 0.7, 0.1, 0.9), ControlRequest("edges", b"")], {"edges": NET})
    assert made["ControlNet 0"] == (
        "Module: canny, Model: edges [aaaaaaaaaa], Weight: 0.7, Guidance Start: 0.1, Guidance End: 0.9, "
        "Control Mode: Balanced"
    )
    assert made["ControlNet 1"].startswith("Module: none, ")
    assert scripts([]) == {"txt2img": [], "img2img": []}
    assert script_info([]) == []
    assert scripts([NET]) == {"txt2img": ["controlnet"], "img2img": ["controlnet"]}
    assert [(one["name"], one["is_img2img"]) for one in script_info([NET])] == [
        ("controlnet", False), ("controlnet", True),
    ]  # fmt: skip
