"""`vitrify sweep` from end to end: what it prints, what it leaves, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")


def test_it_draws_and_goes_on(here: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path) -> None:
    given = ("sweep", diffusion_artifact, "a red apple", "-o", "s", "--guidance", 1, "--seed", 3)
    done = here(*given, "--x", "steps=1,2000", "--z", "scheduler=ddim,euler", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "4 pictures: 2 drawn, 2 failed (their cells say why)",
        "s/grid.png",
        "s/grid-1-ddim.png",
        "s/grid-2-euler.png",
        "s/sweep.csv",
    ]
    assert "failed: The number of steps must be an integer from 1 to 1000, not 2000." in done.err
    again = here(*given, "--x", "steps=1,2", "--z", "scheduler=ddim,euler", "--json", cwd=tmp_path)
    assert again.code == 0, again.err
    assert again.json["counts"] == {"drawn": 2, "reused": 2, "failed": 0, "missing": 0}
    assert all((tmp_path / "s" / name).is_file() for name in (*again.json["grids"], again.json["table"]))


def test_prompts_as_an_axis_and_a_source(here: Callable[..., Any], diffusion_source: Path, tmp_path: Path) -> None:
    axis = 'prompt="a dog, asleep",a cat'
    done = here("sweep", diffusion_source, "-o", "s", "--y", axis, "--steps", 1, "--seed", 1, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert [row["parameters"]["prompt"] for row in done.json["pictures"]] == ["a dog, asleep", "a cat"]


def test_where_none_can_be_drawn_the_code_is_that_of_the_error(
    here: Callable[..., Any], refused: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path
) -> None:
    given = ("sweep", diffusion_artifact, "a red apple", "--json", "--x", "steps=1")
    refused(here(*given, "-o", tmp_path / "a", "--width", 65), 2, "bad_input", "Not one of 1 pictures")
    refused(here(*given, "-o", tmp_path / "b", "--device", "cuda:7"), 5, "device", "Not one of 1 pictures")


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        (["a red apple", "-o", "s"], "There is no axis to sweep", "--x steps=5,10,20"),
        (["a red apple", "--x", "steps=1"], "Nothing says where", "-o"),
        (["-o", "s", "--x", "steps=1"], "There is no prompt", "--x prompt="),
        (["a", "-o", "s", "--x", "prompt=a,b"], "sets prompt, and the prompt was given too", "Leave one out"),
        (["a", "-o", "s", "--x", "steps=1", "--steps", 50], "sets steps, and --steps was given too", "Leave one out"),
        (["a", "-o", "s", "--y", "size=64x64", "--height", 64], "--y size sets height, and --height was", "Leave one"),
        (["a", "-o", "s", "--x", "threads=1", "--threads", 0], "and --threads was given too", "Leave one out"),
        (["a", "-o", "s", "--x", "stps=1"], "There is no axis 'stps'", "Did you mean steps?"),
        (["a", "-o", "s", "--x", "steps=1", "--scheduler", "eulr"], "--scheduler: there is no", "Did you mean euler?"),
        (["a", "-o", "s", "--x", "steps=1", "--guidance", "nan"], "--guidance: 'nan' is not a number", "--guidance"),
        (["a", "-o", "s", "--x", "steps=1", "--seed", -1], "--seed: '-1' is not from 0", "--seed 1"),
        (["a", "-o", "s", "--x", "recipe=fp32", "--calibration", "p.txt"], "needs calibration", "Leave --calibration"),
        (["a", "-o", "s", "--x", "recipe=int8-static", "--calibration", "p.txt"], "p.txt is no file", "one prompt a"),
        (["a", "-o", "s", "--x", "lora=a,b", "--lora", "c"], "sets lora, and --lora was given too", "Leave one out"),
        (["a", "-o", "s", "--x", "strength=0.5"], "--x strength is of a picture to start from", "Give --image"),
        (["a", "-o", "s", "--x", "steps=1", "--strength", 2], "--strength: '2.0' is not from 0 to 1", "--strength 0.4"),
        (["a", "-o", "s", "--x", "steps=1", "--image", "gone.png"], "gone.png does not exist", "Check the path"),
        (["a", "-o", "s", "--x", "steps=1", "--controlnet", "n"], "0 control pictures for 1", "one --control for"),
        (["a", "-o", "s", "--x", "steps=1", "--control-end", 1], "--control-end belong to a", "--controlnet"),
        (["a", "-o", "s", "--x", "steps=1", "--hook", "no"], "There is no hook 'no'", "Hooks are wildcards"),
        (["a", "-o", "s", "--x", "steps=1", "--config", "c"], "--config is for single checkpoints", "Leave it out"),
        (["a", "-o", "s", "--x", "recipe=nf4-weights"], "nf4-weights does not run on onnx", "--runtime openvino"),
    ],
)  # fmt: skip
def test_bad_arguments(
    refuses: Callable[..., Any],
    diffusion_artifact: Path,
    arguments: list[object],
    what: str,
    fix: str,
) -> None:
    refuses(["sweep", diffusion_artifact, *arguments], 2, "", what, fix)


def test_pictures_and_their_strength(here: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    given = ("sweep", diffusion_artifact, "an apple", "-o", "s", "--steps", 2, "--guidance", 1, "--seed", 3, "--json")
    done = here(*given, "--image", "a.png", "--x", "strength=0.5,1", cwd=tmp_path)
    assert done.code == 0, done.err
    again = here(*given, "--x", "image=a.png,b.png", "--strength", 0.5, cwd=tmp_path)
    assert again.code == 0, again.err
    assert again.json["counts"] == {"drawn": 1, "reused": 1, "failed": 0, "missing": 0}
    assert [row["parameters"]["image"] for row in again.json["pictures"]] == ["a.png", "b.png"]


def test_without_a_number_steps_and_guidance_are_the_models_own(
    here: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path
) -> None:
    few = shutil.copytree(diffusion_artifact, tmp_path / "few")
    manifest = json.loads((few / "artifact.json").read_text())
    manifest["pipeline"]["defaults"] = {"steps": 2, "guidance": 1.0}
    (few / "artifact.json").write_text(json.dumps(manifest))
    done = here("sweep", few, "an apple", "-o", "s", "--seed", 3, "--x", "rng=cpu", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (row,) = done.json["pictures"]
    assert (row["parameters"]["steps"], row["parameters"]["guidance"]) == (2, 1.0)


def test_a_model_without_residuals(refuses: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "edges.png")
    given = ["a", "--controlnet", "n", "--control", "edges.png"]
    what = "is an artifact that takes no ControlNet"
    refuses(["sweep", diffusion_artifact, *given, "-o", "s", "--x", "steps=1"], 2, "usage", what, "with --control")
    refuses(["generate", diffusion_artifact, *given, "-o", "s.png"], 2, "usage", what, "with --control")
    refuses(["compile", diffusion_artifact, "--quant", "int8-weights", "--control"], 2, "usage", what, "with --control")


def test_a_classifier_draws_nothing(refuses: Callable[..., Any], emotions_artifact: Path) -> None:
    given = ["sweep", emotions_artifact, "a red apple", "-o", "s", "--x", "steps=1"]
    refuses(given, 2, "usage", "draws no pictures", "diffusion model")
