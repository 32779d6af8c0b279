"""Axes as they are typed: ranges, quoting, names in any case, and what is refused with words that help."""

from __future__ import annotations

from typing import Any

import pytest

from vitrify.bench.sweep.axes import MOST, Axis, axis_names, check_option, parse_axes, parse_axis
from vitrify.core.errors import UsageError
from vitrify.pipelines.schedulers import scheduler_names

NAMES = scheduler_names()


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("steps=5,10,20", "steps", (5, 10, 20)),
        ("steps=1..5", "steps", (1, 2, 3, 4, 5)),
        ("steps=1..10:3", "steps", (1, 4, 7, 10)),
        ("steps=1..9:3", "steps", (1, 4, 7)),
        ("steps=5..1:2", "steps", (5, 3, 1)),
        ("seed = 7, 1..3", "seed", (7, 1, 2, 3)),
        ("seed=18446744073709551615", "seed", (2**64 - 1,)),
        ("steps=1-5", "steps", (1, 2, 3, 4, 5)),
        ("steps=1-5 (+2)", "steps", (1, 3, 5)),
        ("steps=10-5(-3)", "steps", (10, 7)),
        ("steps=1-10 [5]", "steps", (1, 3, 6, 8, 10)),
        ("guidance=2.0..8.0:2", "guidance", (2.0, 4.0, 6.0, 8.0)),
        ("guidance=0.1..0.4:0.1", "guidance", (0.1, 0.2, 0.3, 0.4)),
        ("CFG Scale=1-3 [5]", "guidance", (1.0, 1.5, 2.0, 2.5, 3.0)),
        ("guidance=-1,1e1", "guidance", (-1.0, 10.0)),
        ("Sampler=DDIM,euler_A", "scheduler", ("ddim", "euler_a")),
        ("sampler=DPM++ 2M Karras,Euler a", "scheduler", ("dpmpp_2m_karras", "euler_a")),
        ("scheduler=k_dpmpp_2m,heundiscretescheduler", "scheduler", ("dpmpp_2m", "HeunDiscreteScheduler")),
        ("strength=0.2..1:0.4", "strength", (0.2, 0.6, 1.0)),
        ("Denoising strength=0.5", "strength", (0.5,)),
        ("control_strength=0,1.5", "control_strength", (0.0, 1.5)),
        ("lora strength=-1..1", "lora_strength", (-1.0, 0.0, 1.0)),
        ("lora=None,style:0.8,dir/a b.safetensors:1:0.5", "lora", ("none", "style:0.8", "dir/a b.safetensors:1:0.5")),
        ('image=a.png,"b, c.png"', "image", ("a.png", "b, c.png")),
        ("size=64x64,128X64", "size", ((64, 64), (128, 64))),
        ("threads=0..2", "threads", (0, 1, 2)),
        ("rng=cpu,philox", "rng", ("cpu", "philox")),
        ("preset=none,FAST", "preset", (None, "fast")),
        ("Step Cache=none,2,0.1", "step_cache", (None, "2", "0.1")),
        ("guidance interval=none,0.1:0.8,:0.5", "guidance_interval", (None, "0.1:0.8", "0:0.5")),
        ("guidance_every=1..3", "guidance_every", (None, 2, 3)),
        ("decoder=vae,preview", "decoder", (None, "preview")),
        ("runtime=ONNX,openvino", "runtime", ("onnx", "openvino")),
        ('prompt="a dog, asleep","a ""big"" cat",a = b', "prompt", ("a dog, asleep", 'a "big" cat', "a = b")),
        ("Prompt S/R=red, green,blue", "prompt_sr", ("red", "green", "blue")),
        ("prompt_sr=red,", "prompt_sr", ("red", "")),
        ('negative-prompt="",blurry', "negative_prompt", ("", "blurry")),
        ("recipe=int4-weights:group=32,FP32", "recipe", ("int4-weights:group=32", "fp32")),
        (
            'recipe="int4-weights:symmetric=no,group=32",int8-static:keep=mid_block',
            "recipe",
            ("int4-weights:group=32,symmetric=no", "int8-static:keep=mid_block"),
        ),
    ],
)
def test_values(text: str, name: str, values: tuple[Any, ...]) -> None:
    assert parse_axis("x", text) == Axis("x", name, values)


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("steps", "--y 'steps' has no '='", "--y steps=5,10,20"),
        ("stps=5", "There is no axis 'stps'", "Did you mean steps?"),
        ("samplr=ddim", "There is no axis 'samplr'", "Did you mean scheduler?"),
        ("colour=red", "There is no axis 'colour'", f"Axes are {', '.join(axis_names())}."),
        ("batch=1,2", "batch is not an axis", "--y seed=1..4"),
        ("steps=", "--y steps has no values", "steps=5,10,20"),
        ("prompt=", "--y prompt has no values", "prompt="),
        ("steps=5,,7", "Value 2 of --y steps is empty", "comma"),
        ("steps=5,1..9", "'steps 5' twice", "once"),
        ("recipe=int4-weights,int4-weights:group=64", "'int4-weights' twice", "once"),
        ("steps=many", "'many' is not a whole number", "--y steps=5,10,20"),
        ("steps=1.5", "'1.5' is not a whole number", "steps="),
        ("steps=1..2:0.5", "'1..2:0.5' is not a whole number", "steps="),
        ("steps=1_000", "'1_000' is not a whole number", "steps="),
        ("steps=0..3", "'0..3' is less than 1", "steps="),
        ("seed=-1", "'-1' is not from 0 to 18446744073709551615", "seed="),
        ("guidance=nan", "'nan' is not a number", "guidance="),
        ("steps=1..5:0", "a step of 0", "another step"),
        ("steps=1-9 [1]", "is 1 values", f"from 2 to {MOST}"),
        ("seed=0..99999999999999999999", f"more than {MOST} values", "larger step"),
        ("size=512", "'512' is not a width and a height", "256x256"),
        ("size=0x64", "'0x64' is not a width and a height", "256x256"),
        ("scheduler=eulr", "no scheduler 'eulr'", f"Did you mean euler? Choose one of: {', '.join(NAMES)}."),
        ("strength=1.5", "'1.5' is not from 0 to 1", "strength=0.4"),
        ("control_strength=-1", "'-1' is not from 0 to 100", "control_strength="),
        ("lora=style:inf", "'style:inf' is no LoRA with a strength", "lora=none,style:0.8"),
        ("scheduler=euler,Euler", "'euler' twice", "once"),
        ("recipe=int9-static", "no recipe 'int9-static'", "Did you mean int8-static?"),
        ("recipe=int4-weights:group=32,symmetric=no", "'symmetric=no' is no recipe; options that hold", "recipe="),
        ("recipe=int4-weights:group=7", "A group of 7 is not possible", "Groups are"),
        ("runtime=openvno", "no runtime 'openvno'", "Did you mean openvino?"),
        ('prompt="a dog', "not quoted as in a CSV file", "Close each double quote"),
        ("prompt_sr=,red", "searches for nothing", "prompt_sr=red,green"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, what: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_axis("y", text)
    assert what in caught.value.what
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ((None, None, None), "no axis"),
        (("steps=1", "Steps=2", None), "--x steps and --y steps both set the steps"),
        (("size=64x64", None, "height=64"), "--x size and --z height both set the height"),
        (("prompt_sr=red,blue", "prompt_sr=red,green", None), "both search for 'red'"),
        (("seed=1..100", "steps=1..100", None), f"100 x 100 are 10000 pictures; at most {MOST}"),
    ],
)
def test_axes_that_do_not_go_together(given: tuple[str | None, ...], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_axes(*given)
    assert what in caught.value.what


def test_two_searches_for_different_words_are_two_axes() -> None:
    x, z = parse_axes("prompt_sr=red,blue", None, "prompt_sr=apple,pear")
    assert (x.letter, z.letter) == ("x", "z")
    assert (x.heading, z.label(1)) == ('"red" becomes', "pear")


def test_labels_say_what_they_are() -> None:
    shown = {
        text: parse_axis("x", text).label(0) for text in ("steps=5", "guidance=7.50", "size=64x32", "scheduler=ddim")
    }
    assert list(shown.values()) == ["steps 5", "guidance 7.5", "64x32", "ddim"]
    assert parse_axis("x", 'negative_prompt="",blurry').label(0) == "(nothing)"


def test_options_are_held_to_the_same() -> None:
    check_option("steps", 20)
    check_option("scheduler", None)
    with pytest.raises(UsageError) as caught:
        check_option("scheduler", "eulr")
    assert caught.value.what == "--scheduler: there is no scheduler 'eulr'."
    with pytest.raises(UsageError) as caught:
        check_option("guidance", float("nan"))
    assert caught.value.fix == "Write it as in --guidance 2.0."
