"""AUTOMATIC1111's names and texts: samplers, what is written below a picture, and PNG files with it."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from vitrify.pipelines.lora import split_loras
from vitrify.pipelines.schedulers import SCHEDULERS
from vitrify.serve.a1111_text import infotext, label_of, not_done, sampler, settings_in, with_text
from vitrify.serve.errors import BadField


@pytest.mark.parametrize("ours", SCHEDULERS)
def test_samplers(ours):
    row = SCHEDULERS[ours]
    for name in (row.label, *row.others, ours, row.label.lower()):
        assert sampler(name, None) == (ours, True)
    assert label_of(ours) == row.label


def test_schedules():
    assert sampler("DPM++ 2M", "Karras") == ("dpmpp_2m_karras", True)
    assert sampler("DPM++ 2M Karras", "automatic") == ("dpmpp_2m_karras", True)
    assert sampler("DPM++ 2M", "Automatic") == ("dpmpp_2m", True)
    assert sampler("DPM++ SDE", "karras") == ("dpmpp_sde_karras", True)
    assert sampler("Euler", "Karras") == ("euler_karras", True)
    assert sampler("DDIM", "Karras") == ("ddim", False)
    assert sampler(None, "Karras") == (None, False)
    assert sampler(None, "Exponential") == (None, False)
    with pytest.raises(BadField, match="DPM\\+\\+ 2M Karras"):
        sampler("Restart", None)


def test_what_is_written_below_a_picture():
    drawn = {
        "prompt": "a fox", "negative_prompt": "", "steps": 2, "scheduler": "ddim", "guidance": 7.5, "seed": 1,
        "width": 64, "height": 32, "strength": 0.6, "loras": {"style": 0.8, "deep": (0.5, 0.25)},
    }  # fmt: skip
    text = infotext(drawn, "emoji", "abc", "1", {"Mask blur": "4", "ControlNet 0": "Module: none, Weight: 1"})
    assert text.split("\n") == [
        "a fox <lora:style:0.8> <lora:deep:0.25:0.5>",
        "Steps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 64x32, Model hash: abc, Model: emoji, "
        'Denoising strength: 0.6, Mask blur: 4, ControlNet 0: "Module: none, Weight: 1", Version: vitrify 1',
    ]
    assert split_loras(text.split("\n")[0]) == ("a fox", [("style", 0.8, 0.8), ("deep", 0.5, 0.25)])


def test_eta_counts_where_the_sampler_has_one():
    assert not_done({"eta": 1.0}, "euler_a") == []
    assert not_done({"eta": 0}, "euler_a") == ["eta"]
    assert not_done({"eta": 0}, "ddim") == []
    assert not_done({"eta": 1.0}, "ddim") == ["eta"]
    assert not_done({"eta": 0.5}, "euler") == []
    assert not_done({"eta": None}, "ddim") == []
    assert not_done({"eta": 0}, "dpm2_a_karras") == ["eta"]
    assert not_done({"eta": 1}, "dpmpp_2m_sde_karras") == []


@pytest.mark.parametrize("text", ["plain", "mit Ümlaut", "狐の顔", "two\nlines", ""])
def test_texts_in_a_png(png, text):
    with Image.open(io.BytesIO(with_text(png, "parameters", text))) as image:
        assert image.info["parameters"] == text
        image.load()


def test_settings_with_commas_are_quoted():
    text = 'a fox, red\nor two\nNegative prompt: a cat\nSteps: 2, Model: "a, b: c", Size: 64x64'
    assert settings_in(text) == {
        "Prompt": "a fox, red\nor two", "Negative prompt": "a cat", "Steps": "2", "Model": "a, b: c", "Size": "64x64",
    }  # fmt: skip
    assert settings_in("only a prompt") == {"Prompt": "only a prompt"}
    unit = 'ControlNet 0: "Module: canny, Model: edges [abc], Weight: 0.5"'
    said = settings_in(f"a\nSteps: 2, Denoising strength: 0.6, {unit}, Version: 1")
    assert said["Denoising strength"] == "0.6"
    assert said["ControlNet 0"] == "Module: canny, Model: edges [abc], Weight: 0.5"
    assert (said["ControlNet 0 module"], said["ControlNet 0 weight"]) == ("canny", "0.5")
    assert said["Version"] == "1"
    assert settings_in('a\nSteps: 2, Model: "open') == {"Prompt": "a", "Steps": "2", "Model": '"open'}
