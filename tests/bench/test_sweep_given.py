"""Sweeps over pictures to start from, LoRAs and ControlNets: what is drawn, and what of it is used again."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import vitrify
from vitrify.bench.sweep.axes import parse_axes
from vitrify.bench.sweep.given import Control, Given, digest
from vitrify.bench.sweep.job import SweepJob
from vitrify.bench.sweep.plan import Settings, own, plan_cells
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, UsageError
from vitrify.pipelines.images import read_parameters
from vitrify.proof.quality import psnr
from vitrify.runtimes.base import Options

pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

PROMPT = "a red apple"
Sweeps = Callable[..., dict[str, Any]]


@pytest.fixture
def sweep(diffusion_artifact: Path, tmp_path: Path) -> Sweeps:
    """sweep(x, y, given=..., **settings) into the folder `sweep`."""

    def run(
        x: str, y: str | None = None, given: Given | None = None, artifact: Path | None = None, **settings: Any
    ) -> dict[str, Any]:
        base = Settings(**{"prompt": PROMPT, "steps": 2, "guidance": 1.0, "seed": 3} | settings)
        return SweepJob(
            Artifact.load(artifact or diffusion_artifact),
            tmp_path / "sweep",
            parse_axes(x, y, None),
            base,
            Options(prepack=False, arena=False),
            "cpu",
            given=given or Given(),
        ).run()

    return run


@pytest.fixture
def photo(tmp_path: Path) -> Callable[..., Path]:
    """photo(name, seed, size=(64, 64)): a file of coarse colours."""

    def make(name: str, seed: int, size: tuple[int, int] = (64, 64)) -> Path:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def lora(tmp_path: Path, diffusion_source: Path) -> Callable[..., Path]:
    """lora(name, seed): changes of the UNet's queries, as kohya-ss writes them, in a folder of LoRAs."""

    def make(name: str, seed: int) -> Path:
        rng, tensors = np.random.default_rng(seed), {}
        for key, weight in load_file(diffusion_source / "unet/diffusion_pytorch_model.safetensors").items():
            if not key.endswith(("to_q.weight", "to_v.weight")):
                continue
            layer = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            tensors[f"{layer}.lora_down.weight"] = rng.standard_normal((2, weight.shape[1])).astype(np.float32)
            tensors[f"{layer}.lora_up.weight"] = 0.1 * rng.standard_normal((weight.shape[0], 2)).astype(np.float32)
        folder = tmp_path / "loras"
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / f"{name}.safetensors")
        return folder / f"{name}.safetensors"

    return make


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_pictures_and_strengths(
    sweep: Sweeps, photo: Callable[..., Path], tmp_path: Path, diffusion_artifact: Path
) -> None:
    one, two = photo("one.png", 1), photo("two.png", 2, (96, 70))
    made = sweep(f"image={one},{two}", "strength=0.5,1")
    assert made["counts"]["drawn"] == 4
    rows = {(r["x_image"], r["y_strength"]): r for r in table(tmp_path / "sweep")}
    assert (rows[str(two), "0.5"]["width"], rows[str(two), "0.5"]["height"]) == ("96", "64"), "the picture's own size"
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu")
    alone = pipeline.generate(PROMPT, steps=2, guidance=1.0, seed=3, image=Image.open(two), strength=0.5).images[0]
    pipeline.close()
    assert psnr(pixels(tmp_path / "sweep" / rows[str(two), "0.5"]["file"]), np.asarray(alone)) > 60
    assert rows[str(two), "1.0"]["psnr_x_db"] == "", "of another size"
    assert float(rows[str(one), "1.0"]["psnr_y_db"]) < 40

    # a picture is known by what it shows: saved again it is the same, another one under its name is not
    shutil.copy(one, tmp_path / "copy.png")
    again = sweep(f"image={tmp_path / 'copy.png'}", "strength=0.5,1")
    assert again["counts"]["reused"] == 2
    photo("one.png", 3)
    changed = sweep(f"image={one}", "strength=0.5,1")
    assert changed["counts"]["drawn"] == 2


def test_a_mask_and_its_usual_strength(sweep: Sweeps, photo: Callable[..., Path], tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    start = photo("start.png", 1)
    made = sweep("steps=1,2", image=str(start), mask=str(tmp_path / "mask.png"))
    assert [row["parameters"]["strength"] for row in made["pictures"]] == [1.0, 1.0]
    drawn, before = pixels(tmp_path / "sweep" / made["pictures"][1]["file"]), pixels(start)
    assert psnr(drawn[:, :24], before[:, :24]) > psnr(drawn[:, 32:], before[:, 32:]) + 6


def test_loras_by_name_and_by_strength(
    sweep: Sweeps, lora: Callable[..., Path], tmp_path: Path, diffusion_artifact: Path
) -> None:
    style, other = lora("style", 1), lora("other", 2)
    given = Given(lora_folder=style.parent)
    made = sweep(f"lora=none,style,{other}", "lora_strength=0.5,2", given)
    assert made["counts"] == {"drawn": 5, "reused": 1, "failed": 0, "missing": 0}, "without one there is no strength"
    rows = {(r["x_lora"], r["y_lora_strength"]): r for r in table(tmp_path / "sweep")}
    assert rows["style", "0.5"]["lora"] == "style:0.5"
    assert rows["none", "2.0"]["lora"] == ""
    assert rows["none", "2.0"]["psnr_y_db"] == "inf"
    assert all(float(rows[name, "2.0"]["psnr_x_db"]) < 40 for name in ("style", str(other)))
    assert float(rows["style", "2.0"]["psnr_y_db"]) < 40
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu")
    alone = pipeline.generate(PROMPT, steps=2, guidance=1.0, seed=3, loras={str(style): 2.0})
    pipeline.close()
    assert psnr(pixels(tmp_path / "sweep" / rows["style", "2.0"]["file"]), np.asarray(alone.images[0])) > 60
    said = read_parameters(tmp_path / "sweep" / rows["style", "2.0"]["file"])
    assert said["loras"] == {"style": [2.0, 2.0]}

    # known by its file: under another name it is the same LoRA, another file of this name is not
    style.rename(style.with_name("renamed.safetensors"))
    assert sweep("lora=renamed", "lora_strength=0.5,2", given)["counts"]["reused"] == 2
    lora("renamed", 5)
    assert sweep("lora=renamed", "lora_strength=0.5,2", given)["counts"]["drawn"] == 2


def test_a_picture_without_a_lora_is_held_to_the_axis_first_value(
    sweep: Sweeps, lora: Callable[..., Path], tmp_path: Path
) -> None:
    """It is drawn with the others that have none, and so before what it is held to."""
    given = Given(lora_folder=lora("style", 1).parent)
    sweep("lora=style,none", "lora_strength=0.5,2", given)
    rows = {(r["x_lora"], r["y_lora_strength"]): r for r in table(tmp_path / "sweep")}
    assert all(float(rows["none", strength]["psnr_x_db"]) < 40 for strength in ("0.5", "2.0"))


def test_what_a_prompt_names_is_looked_at_too(lora: Callable[..., Path]) -> None:
    folder = lora("style", 1).parent
    settings = Settings("a cat <lora:style:0.5>", seed=1)
    first = Given(lora_folder=folder).asked(settings)
    assert [strengths for _, *strengths in first["loras"]] == [[0.5, 0.5]]
    lora("style", 2)
    assert Given(lora_folder=folder).asked(settings) != first
    assert Given().asked(Settings("a cat", seed=1)) == {}, "what is drawn from words alone is asked as ever"


def test_schedulers_by_any_name(sweep: Sweeps, tmp_path: Path) -> None:
    made = sweep('scheduler="DPM++ 2M",DPMSolverMultistepScheduler,Euler a')
    assert made["counts"] == {"drawn": 2, "reused": 1, "failed": 0, "missing": 0}, "two names of one scheduler"
    rows = table(tmp_path / "sweep")
    assert [r["x_scheduler"] for r in rows] == ["dpmpp_2m", "DPMSolverMultistepScheduler", "euler_a"]
    assert [r["scheduler"] for r in rows] == ["dpmpp_2m", "dpmpp_2m", "euler_a"]


def test_the_models_own_steps_and_guidance(diffusion_artifact: Path) -> None:
    artifact = Artifact.load(diffusion_artifact)
    made = own(Settings(PROMPT), artifact)
    assert (made.steps, made.guidance, made.width, made.strength) == (50, 7.5, 64, None)
    few = replace(artifact, pipeline=artifact.pipeline | {"defaults": {"steps": 4, "guidance": 1.5}})
    made = own(Settings(PROMPT, image="a.png"), few)
    assert (made.steps, made.guidance, made.width, made.strength) == (4, 1.5, None, 0.8)
    assert own(Settings(PROMPT, steps=9), few).steps == 9


@pytest.mark.parametrize(
    ("x", "y", "settings", "what", "fix"),
    [
        ("strength=0.5", None, {}, "--x strength is of a picture to start from", "--image"),
        ("steps=1", None, {"mask": "m.png"}, "--mask is of a picture to start from", "--image"),
        ("control_strength=1", None, {}, "--x control_strength is of ControlNets", "--controlnet"),
        ("lora_strength=1", None, {}, "--x lora_strength is of a LoRA, and there is none", "--lora NAME"),
        ("lora_strength=1", "lora=a:0.5,b", {}, "a:0.5 names a strength too", "Write a alone"),
        ("lora_strength=1", None, {"lora": ("a", "b")}, "there are 2", "one --lora"),
    ],
)
def test_what_would_change_nothing_is_refused(
    sweep: Sweeps, tmp_path: Path, x: str, y: str | None, settings: dict[str, Any], what: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        sweep(x, y, **settings)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_read_is_told_first(sweep: Sweeps, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.png does not exist"):
        sweep(f"image={tmp_path / 'gone.png'}", "strength=0.5,1")
    assert not list(tmp_path.iterdir())


def test_a_lora_that_is_not_there_fails_its_cell(sweep: Sweeps, tmp_path: Path) -> None:
    made = sweep("lora=none,gone")
    assert (made["counts"]["drawn"], made["counts"]["failed"]) == (1, 1)
    assert "There is no LoRA 'gone'" in table(tmp_path / "sweep")[1]["error"]


def test_strengths_go_to_the_lora_that_another_axis_puts_in() -> None:
    cells = plan_cells(parse_axes("lora=none,a", "lora_strength=0.5,-1", None), Settings(PROMPT, lora=()))
    assert [cell.settings.lora for cell in cells] == [(), ("a:0.5",), (), ("a:-1.0",)]
    (cell,) = plan_cells(parse_axes("control_strength=0.5", None, None), Settings(PROMPT))
    assert cell.settings.control_strength == 0.5


def test_hooks_are_opened_for_each_picture(sweep: Sweeps, tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words/colour.txt").write_text("red\ngreen\nblue\nblack\nwhite\n")
    given = Given(hooks=[f"wildcards:folder={tmp_path / 'words'}"])
    made = sweep("seed=1..4", prompt="a __colour__ apple", given=given)
    prompts = [read_parameters(tmp_path / "sweep" / row["file"])["prompt"] for row in made["pictures"]]
    assert len(set(prompts)) > 1
    assert not any("__" in prompt for prompt in prompts)
    assert sweep("seed=1..4", prompt="a __colour__ apple", given=given)["counts"]["reused"] == 4


@pytest.mark.slow  # traces a UNet with residuals and a ControlNet
def test_controlnets(sweep: Sweeps, photo: Callable[..., Path], tmp_path: Path, diffusion_source: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra export")
    diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
    from vitrify.export.job import export_model

    unet = diffusers.UNet2DConditionModel.from_pretrained(diffusion_source / "unet")
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8))  # 4 pixels a latent
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    net.float().save_pretrained(tmp_path / "net-source")
    export_model(tmp_path / "net-source", tmp_path / "net", verify=False)
    export_model(diffusion_source, tmp_path / "model", control=True, verify=False)
    picture = Image.open(photo("edges.png", 4)).convert("RGB")
    given = Given([Control(Artifact.load(tmp_path / "net"), picture, end=0.9)])
    made = sweep("control_strength=0,1,2", None, given, tmp_path / "model")
    assert made["counts"]["drawn"] == 3
    assert made["controls"][0]["net"] == "net"
    rows = table(tmp_path / "sweep")
    assert all(float(row["psnr_x_db"]) < 45 for row in rows[1:])
    again = replace(given.controls[0], picture=Image.new("RGB", (64, 64)))
    assert digest(again.picture) != digest(picture)
    assert sweep("control_strength=1,2", None, Given([again]), tmp_path / "model")["counts"]["drawn"] == 2
    assert sweep("control_strength=1,2", None, given, tmp_path / "model")["counts"]["reused"] == 2
