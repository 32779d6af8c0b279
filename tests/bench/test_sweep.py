"""Sweeps of the built-in model: what is drawn, what is used again, and what is kept of one that ends early."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.bench.sweep.axes import parse_axes
from vitrify.bench.sweep.job import SweepJob
from vitrify.bench.sweep.plan import Build, Opening, Settings, plan_builds, plan_cells
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, Busy, Cancelled, UsageError
from vitrify.core.progress import Event
from vitrify.core.publish import locked
from vitrify.pipelines.images import read_parameters
from vitrify.proof.quality import psnr, ssim
from vitrify.runtimes.base import Options

pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

PROMPT = "a red apple"
Sweeps = Callable[..., dict[str, Any]]


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def sweep(diffusion_artifact: Path, tmp_path: Path, events: list[Event]) -> Sweeps:
    """sweep(x, y, z, **settings) into the folder `sweep`; every event goes to `events`."""

    def run(
        x: str | None = None,
        y: str | None = None,
        z: str | None = None,
        artifact: Path = diffusion_artifact,
        report: Callable[[Event], None] = events.append,
        **settings: Any,
    ) -> dict[str, Any]:
        base = Settings(**{"prompt": PROMPT, "steps": 1, "guidance": 1.0, "seed": 3} | settings)
        options = Options(prepack=False, arena=False)
        axes = parse_axes(x, y, z)
        return SweepJob(Artifact.load(artifact), tmp_path / "sweep", axes, base, options, report=report).run()

    return run


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def blank_pixels(folder: Path) -> int:
    """How many of a grid have the colour of cells that nothing was drawn for."""
    return int((pixels(folder / "grid.png") == (236, 236, 236)).all(-1).sum())


def test_three_axes(sweep: Sweeps, tmp_path: Path, diffusion_artifact: Path) -> None:
    folder = tmp_path / "sweep"
    made = sweep("steps=1,2", "scheduler=ddim,euler", "seed=3..4")
    assert made == json.loads((folder / "sweep.json").read_text())
    assert made["status"] == "complete"
    assert made["counts"] == {"drawn": 8, "reused": 0, "failed": 0, "missing": 0}
    assert made["grids"] == ["grid.png", "grid-1-seed-3.png", "grid-2-seed-4.png"]
    rows = table(folder)
    assert [(r["x_steps"], r["y_scheduler"], r["z_seed"]) for r in rows] == [
        (x, y, z) for z in "34" for y in ("ddim", "euler") for x in "12"
    ]
    at = {(r["steps"], r["scheduler"], r["seed"]): r for r in rows}
    assert len(at) == 8

    # the very pictures that `generate` draws, with everything that is needed to draw them again
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu")
    for steps, scheduler, seed in (("2", "euler", "4"), ("1", "ddim", "3")):
        row = at[steps, scheduler, seed]
        alone = pipeline.generate(PROMPT, steps=int(steps), scheduler=scheduler, seed=int(seed), guidance=1.0).images[0]
        assert psnr(pixels(folder / row["file"]), np.asarray(alone)) > 60
        said = read_parameters(folder / row["file"])
        assert (said["prompt"], said["steps"], said["seed"], said["scheduler"]) == (
            PROMPT,
            int(steps),
            int(seed),
            scheduler,
        )
        assert said["artifact"] == row["artifact"] == Artifact.load(diffusion_artifact).id
    pipeline.close()

    row, first = at["2", "euler", "4"], at["2", "euler", "3"]
    ours, other = pixels(folder / row["file"]), pixels(folder / first["file"])
    assert float(row["psnr_z_db"]) == pytest.approx(psnr(other, ours))
    assert float(row["ssim_z"]) == pytest.approx(ssim(other, ours))
    assert first["psnr_z_db"] == "", "nothing to compare the first value with"
    seconds = [float(row[f"{name}_s"]) for name in ("encode", "steps", "decode", "total")]
    assert sum(seconds[:3]) == pytest.approx(seconds[3], rel=0.2)
    assert (row["width"], row["height"], row["runtime"], row["recipe"]) == ("64", "64", "onnx", "fp32")
    assert "CPUExecutionProvider" in row["placement"]
    assert [r["first"] for r in rows] == ["yes"] + ["no"] * 7
    with Image.open(folder / "grid.png") as whole, Image.open(folder / "grid-2-seed-4.png") as part:
        assert whole.width == part.width
        assert whole.height > 1.8 * part.height - 100


def test_a_second_run_draws_what_is_new(sweep: Sweeps, tmp_path: Path, events: list[Event]) -> None:
    pictures = tmp_path / "sweep/pictures"
    sweep("seed=1,2", None, "steps=1,2")
    before = {path.name: path.stat().st_mtime_ns for path in pictures.iterdir()}
    events.clear()
    again = sweep("seed=1,2", None, "steps=1,2")
    assert again["counts"]["reused"] == 4
    assert not any("device" in event.note for event in events), "nothing was opened"
    assert {path.name: path.stat().st_mtime_ns for path in pictures.iterdir()} == before
    assert all(row["seconds"]["total"] > 0 for row in again["pictures"])

    next(iter(pictures.iterdir())).write_bytes(b"no picture")
    more = sweep("seed=1..3", "steps=1,2")
    assert (more["counts"]["drawn"], more["counts"]["reused"]) == (3, 3)
    assert more["grids"] == ["grid.png"]
    assert not list((tmp_path / "sweep").glob("grid-*.png")), "grids of the earlier run are no more"
    other = sweep("seed=1,2", guidance=2.0)
    assert other["counts"]["drawn"] == 2, "other parameters are other pictures"


def test_without_a_seed_a_second_run_takes_that_of_the_first(sweep: Sweeps) -> None:
    first = sweep("steps=1", seed=None)
    assert isinstance(first["settings"]["seed"], int)
    again = sweep("steps=1,2", seed=None)
    assert again["settings"]["seed"] == first["settings"]["seed"]
    assert again["counts"]["reused"] == 1


def test_ctrl_c_keeps_what_was_drawn(sweep: Sweeps, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"

    def press(event: Event) -> None:
        if event.unit == "pictures" and event.done == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Cancelled, match=r"^Interrupted: 2 of 4 pictures are in .*sweep, with grids and a table"):
        sweep("seed=1,2", "steps=1,2", report=press)
    assert json.loads((folder / "sweep.json").read_text())["status"] == "interrupted"
    assert len(table(folder)) == 2
    assert blank_pixels(folder) == pytest.approx(2 * 192 * 192, rel=0.01), "two cells are blank"
    done = sweep("seed=1,2", "steps=1,2")
    assert done["counts"] == {"drawn": 2, "reused": 2, "failed": 0, "missing": 0}
    assert blank_pixels(folder) < 500, "some of the letters' edges"
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.glob(".sweep*"))


def test_a_cell_that_fails_says_why_and_the_rest_go_on(sweep: Sweeps, tmp_path: Path, events: list[Event]) -> None:
    made = sweep("size=64x64,65x64,96x64", "steps=1,5000")
    assert (made["counts"]["drawn"], made["counts"]["failed"]) == (2, 4)
    rows = {(r["x_size"], r["y_steps"]): r for r in table(tmp_path / "sweep")}
    assert rows["65x64", "1"]["error"].startswith("The width is 65, not a multiple of 16")
    assert "1000, not 5000" in rows["64x64", "5000"]["error"]
    assert rows["65x64", "1"]["file"] == rows["65x64", "1"]["total_s"] == ""
    assert rows["96x64", "1"]["psnr_x_db"] == "", "pictures of two sizes have no PSNR"
    assert any(event.note.startswith("failed: The width is 65") for event in events)
    assert (pixels(tmp_path / "sweep/grid.png") == (251, 231, 228)).all(-1).sum() > 3 * 150 * 150


def test_where_all_fail_it_is_an_error_and_the_grid_is_there(sweep: Sweeps, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        sweep("width=65,66")
    assert caught.value.what.startswith("Not one of 2 pictures could be drawn; the first: The width is 65")
    assert len(table(tmp_path / "sweep")) == 2
    assert (tmp_path / "sweep/grid.png").is_file()


def test_recipes_are_compiled_once_each(sweep: Sweeps, tmp_path: Path, events: list[Event]) -> None:
    pytest.importorskip("onnxscript", reason="needs vitrify[export]")
    made = sweep("recipe=fp32,int8-weights", "steps=1,2")
    stages = [event.stage for event in events if event.stage.startswith("draw ")]
    assert list(dict.fromkeys(stages)) == ["draw fp32", "draw int8-weights"]
    assert stages == sorted(stages), "one is done with before the next is opened, though recipes are the columns"
    (folder,) = (tmp_path / "sweep/artifacts").iterdir()
    assert folder.name.startswith("onnx-int8-weights-")
    built = (folder / "artifact.json").stat().st_mtime_ns
    rows = table(tmp_path / "sweep")
    assert [(r["x_recipe"], r["recipe"], r["y_steps"]) for r in rows] == [
        (r, r, s) for s in "12" for r in ("fp32", "int8-weights")
    ]
    assert all(30 < float(r["psnr_x_db"]) < 90 for r in rows if r["recipe"] == "int8-weights")
    assert {r["artifact"] for r in rows} == {made["artifact"], Artifact.load(folder).id}
    assert {r["first"] for r in rows} == {"no"}, "seconds that are compared are those of a runtime that is warm"
    again = sweep("recipe=fp32,int8-weights", "steps=1..3")
    assert (again["counts"]["drawn"], again["counts"]["reused"]) == (2, 4)
    assert (folder / "artifact.json").stat().st_mtime_ns == built


@pytest.mark.slow
def test_runtimes_and_threads(sweep: Sweeps, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    sweep("runtime=onnx,openvino", None, "threads=1,2")
    rows = {(r["x_runtime"], r["z_threads"]): r for r in table(tmp_path / "sweep")}
    assert not (tmp_path / "sweep/artifacts").exists(), "OpenVINO opens ONNX as it is"
    assert rows["openvino", "1"]["placement"].startswith("openvino ")
    assert rows["onnx", "2"]["placement"].startswith("onnx ")
    assert all(float(rows["openvino", n]["psnr_x_db"]) > 50 for n in "12")
    assert all(float(rows[r, "2"]["psnr_z_db"]) > 50 for r in ("onnx", "openvino"))


def test_a_recipe_that_one_of_two_runtimes_takes_fails_on_the_other_alone(diffusion_artifact: Path) -> None:
    """Told in words in its cells; where no runtime takes it, it is an error before anything is written."""
    artifact = Artifact.load(diffusion_artifact)
    openings = [Opening(r, on, 0) for r in ("fp32", "int8-dynamic") for on in ("onnx", "openvino")]
    builds, _ = plan_builds(openings, artifact)
    assert [builds[o] for o in openings[:3]] == [None, None, Build("int8-dynamic", "onnx")]
    assert str(builds[openings[3]]).startswith("int8-dynamic does not run on openvino")
    with pytest.raises(UsageError, match="int8-dynamic does not run on openvino"):
        plan_builds([o for o in openings if o.runtime == "openvino"], artifact)


@pytest.mark.parametrize(
    ("x", "settings", "what", "fix"),
    [
        ("recipe=nf4-weights,fp32", {}, "nf4-weights does not run on onnx", "--runtime openvino"),
        ("recipe=int8-static", {"runtime": "torch"}, "int8-static does not run on torch", "int8-weights"),
        ("recipe=fp32,int4-weights:symmetric=no", {"runtime": "tensorrt-rtx"}, "takes no zero points", "symmetric=no"),
        ("prompt_sr=green,blue", {}, "searches for 'green', which is not in the prompt 'a red apple'", "first value"),
    ],
)
def test_what_cannot_be_swept(
    sweep: Sweeps, tmp_path: Path, x: str, settings: dict[str, Any], what: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        sweep(x, **settings)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert not list(tmp_path.iterdir())


def test_an_artifact_that_is_compiled_already(sweep: Sweeps, tmp_path: Path, diffusion_artifact: Path) -> None:
    copy = shutil.copytree(diffusion_artifact, tmp_path / "copy")
    manifest = json.loads((copy / "artifact.json").read_text())
    manifest["components"]["unet"]["precision"]["recipe"] = "int8-weights"
    (copy / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"copy is compiled already \(int8-weights\)"):
        sweep("recipe=fp32,int4-weights", artifact=copy)


def test_folders_that_hold_something_else(sweep: Sweeps, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.write_text("")
    with pytest.raises(BadInput, match="is a file, not a folder"):
        sweep("steps=1")
    folder.unlink()
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"holds something else than a sweep: notes\.txt"):
        sweep("steps=1")
    (folder / "sweep.json").write_text("{")
    with pytest.raises(BadInput, match=r"sweep\.json cannot be read"):
        sweep("steps=1")
    (folder / "sweep.json").write_text('{"kind": "sweep", "schema": 99}')
    with pytest.raises(BadInput, match="not of a sweep that this version wrote"):
        sweep("steps=1")
    assert sorted(p.name for p in folder.iterdir()) == ["notes.txt", "sweep.json"]


def test_a_folder_that_another_process_writes(sweep: Sweeps, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    with locked(tmp_path / "sweep"), pytest.raises(Busy):
        sweep("steps=1")


def test_searches_replace_at_once_and_everywhere() -> None:
    axes = parse_axes("prompt_sr=red,apple", "prompt_sr=apple,red pear,", None)
    cells = plan_cells(axes, Settings("a red apple, red", negative_prompt="apple pie"))
    assert [(c.settings.prompt, c.settings.negative_prompt) for c in cells] == [
        ("a red apple, red", "apple pie"),
        ("a apple apple, apple", "apple pie"),
        ("a red red pear, red", "red pear pie"),
        ("a apple red pear, apple", "red pear pie"),
        ("a red , red", " pie"),
        ("a apple , apple", " pie"),
    ]


def test_an_axis_of_prompts_is_searched_too() -> None:
    axes = parse_axes("prompt_sr=red,blue", "prompt=a red car,a house", None)
    with pytest.raises(UsageError, match="not in the prompt 'a house'"):
        plan_cells(axes, Settings(""))


def test_the_same_picture_twice_is_said_to_be_the_same(sweep: Sweeps, tmp_path: Path) -> None:
    made = sweep('negative_prompt="",blurry')
    (against,) = (row["against"]["x"] for row in made["pictures"] if row["against"])
    assert (against["psnr_db"], against["same"]) == (None, True), "at a guidance of 1 it is not used"
    assert math.isinf(float(table(tmp_path / "sweep")[1]["psnr_x_db"]))


def test_many_pictures_are_warned_of(sweep: Sweeps, events: list[Event]) -> None:
    def stop(event: Event) -> None:
        events.append(event)
        if event.done:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Cancelled):
        sweep("seed=0..200", report=stop)
    assert events[0].note.startswith("warning: 201 pictures")
