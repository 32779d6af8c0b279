"""The evaluation of compiled artifacts: what it asks, how it judges, and a small run of it.

The training pictures are stood in for by what the float model draws, so that no test needs npm.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.core.artifact import Artifact
from vitrify.core.errors import MissingDependency, UsageError
from vitrify.core.progress import silent
from vitrify.demo.emoji import EXPRESSIONS, EmojiSet, captions
from vitrify.demo.evaluate import nearest_right, training_pictures
from vitrify.demo.quality import (
    CELLS,
    GUIDANCE,
    MAIN,
    SCHEDULER,
    Asked,
    Cell,
    Drawing,
    Drawn,
    chosen_captions,
    contact_sheet,
    main,
    parse_cells,
)
from vitrify.pipelines.load import load
from vitrify.quant.recipes import recipe

PROMPTS, STEPS = 4, 4
SMALL = ("--prompts", str(PROMPTS), "--seeds", "1", "--steps", str(STEPS), "--views", "1")
ROOMY = {"captions_right": 1.0, "expressions_right": 1.0}


@pytest.fixture(scope="module")
def work(diffusion_artifact: Path, emotions_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both artifacts, and a package in which the captions that are drawn have the float model's own pictures."""
    pytest.importorskip("torch", reason="needs the extra export")
    from vitrify.demo.train_emotions import GLYPHS

    folder = tmp_path_factory.mktemp("quality")
    for name, artifact in zip(MAIN, (diffusion_artifact, emotions_artifact), strict=True):
        shutil.copytree(artifact, folder / "artifacts" / name)
    pipeline: Any = load(diffusion_artifact, "cpu")
    try:
        drawn = pipeline.generate(
            chosen_captions(PROMPTS), seed=0, steps=STEPS, guidance=GUIDANCE, scheduler=SCHEDULER
        ).images
    finally:
        pipeline.close()
    pictures = folder / "package/img/google/64"
    pictures.mkdir(parents=True)
    names = list(dict.fromkeys([*captions().values(), *(n for glyphs in GLYPHS.values() for n in glyphs)]))
    captioned = set(captions().values())
    for number, name in enumerate(names):
        plain = Image.new("RGB", (64, 64), (number, 255 - number, 128))
        picture = drawn[number % PROMPTS] if number < PROMPTS or name not in captioned else plain
        picture.save(pictures / f"{name}.png")
    entries = [{"short_name": n, "has_img_google": True, "image": f"{n}.png", "category": "any"} for n in names]
    (folder / "package/emoji.json").write_text(json.dumps(entries))
    return folder


def test_cells_are_told_their_marks(work, capsys):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    cells = ["onnx:int8-weights", "openvino:int8-weights"]
    code = main(["--work", str(work), "--cells", ",".join(cells), *SMALL])
    shown = capsys.readouterr().out
    results = json.loads((work / "quality.json").read_text())
    assert code == 0, shown
    assert shown == (work / "quality.md").read_text()
    for rows in results["models"].values():
        assert [row["cell"] for row in rows] == ["onnx:fp32", *cells]
        assert [row["verdict"] for row in rows[1:]] == ["pass", "pass"]
        assert all(row["mb"] < rows[0]["mb"] for row in rows[1:])
    painter, reader = results["models"].values()
    assert painter[0]["psnr_db"] == 100
    assert painter[0]["captions_right"] == 1
    for row in painter[1:]:
        assert 40 <= row["min_psnr_db"] <= row["psnr_db"] < 100
        assert np.mean(list(row["psnr_db_each"].values())) == pytest.approx(row["psnr_db"])
        assert 0.95 < row["ssim"] < 1
        assert f"| {row['cell']} | {row['psnr_db']:.1f} |" in shown
    assert reader[0]["agreement"] == 1
    assert all(row["agreement"] >= 0.99 and row["max_score_difference"] > 0 for row in reader[1:])
    with Image.open(work / "quality.png") as sheet:
        assert sheet.width > 3 * 64
        assert sheet.height > PROMPTS * 64


def test_a_bar_that_cannot_be_met_ends_with_3(work, capsys):
    cells = "onnx:int8-weights,onnx:int8-weights:keep=*"
    code = main(
        ["--work", str(work), "--cells", cells, "--only", "emoji-diffusion", "--min-psnr", "99", "--json", *SMALL]
    )
    rows = json.loads(capsys.readouterr().out)["models"]["emoji-diffusion"]
    assert code == 3
    assert [row.get("verdict") for row in rows] == [None, "FAIL", "FAIL"]
    assert "at least 99 is asked for" in rows[1]["failed"][0]
    assert "has no layer" in rows[2]["failed"][0]  # one that does not compile is no reason to stop
    assert "FAIL emoji-diffusion onnx:int8-weights: PSNR" in (work / "quality.md").read_text()


@pytest.mark.parametrize(
    ("id", "psnr", "agreement", "points"),
    [
        ("int8-weights", 40, 0.99, 3),
        ("int8-static", 25, 0.99, 3),
        ("int8-dynamic", 25, 0.99, 3),
        ("int4-weights:group=32", 25, 0.95, 8),
        ("nf4-weights", 25, 0.95, 8),
    ],
)
def test_the_bars(id, psnr, agreement, points):
    cell = Cell("onnx", recipe(id))
    assert (cell.recipe.min_psnr, cell.recipe.min_agreement, cell.points) == (psnr, agreement, points)


@pytest.mark.parametrize(
    ("id", "row", "failed"),
    [
        ("int8-static", {"psnr_db": 25.0, **ROOMY}, []),
        ("int8-static", {"psnr_db": 24.9, **ROOMY}, ["PSNR 24.9 dB, at least 25 is asked for"]),
        (
            "int8-static",
            {**ROOMY, "psnr_db": 30.0, "captions_right": 31 / 32},
            ["captions lose 3.1 points, at most 3 may go"],
        ),
        ("int4-weights", {**ROOMY, "psnr_db": 30.0, "captions_right": 30 / 32}, []),
        (
            "int4-weights",
            {**ROOMY, "psnr_db": 30.0, "expressions_right": 0.91},
            ["expressions lose 9.0 points, at most 8 may go"],
        ),
    ],
)
def test_a_verdict_names_what_is_below_its_bar(work, id, row, failed):
    reader = Artifact.load(work / "artifacts/emoji-emotions")
    exam = Drawing(EmojiSet(work / "package"), reader, Asked(prompts=PROMPTS), silent)
    assert exam.failures(Cell("onnx", recipe(id)), row, ROOMY) == failed


def test_a_preset_is_a_row_of_the_painter_s(work, cached_artifact, capsys):
    shutil.copytree(cached_artifact, work / "artifacts/emoji-diffusion-step-cache", dirs_exist_ok=True)
    cell = "onnx:fp32:preset=fast"
    main(["--work", str(work), "--cells", cell, "--only", "emoji-diffusion", "--json", *SMALL])
    plain, row = json.loads(capsys.readouterr().out)["models"]["emoji-diffusion"]
    assert (plain["cell"], row["cell"]) == ("onnx:fp32", cell)
    assert plain["psnr_db"] == 100 > row["psnr_db"]
    assert 0 < row["ssim"] < 1
    assert parse_cells(cell) == [Cell("onnx", recipe("fp32"), "fast")]
    assert parse_cells(cell)[0].min_psnr == 28
    (both,) = parse_cells("openvino:int4-weights:group=32,symmetric=no:preset=fast")
    assert (both.id, both.min_psnr) == ("openvino:int4-weights:group=32,symmetric=no:preset=fast", 25)
    with pytest.raises(UsageError, match="no preset 'quick'"):
        parse_cells("onnx:fp32:preset=quick")


def test_captions_are_spread_and_begin_with_the_expressions():
    chosen, table = chosen_captions(32), list(captions())
    assert chosen[: len(EXPRESSIONS)] == [caption for caption, _ in EXPRESSIONS.values()]
    places = [table.index(caption) for caption in chosen]
    assert places == sorted(set(places))
    steps = np.diff(places[len(EXPRESSIONS) :])
    assert steps.max() - steps.min() <= 1
    assert chosen_captions(3) == table[:3]
    assert chosen_captions(1000) == table


def test_a_comma_may_stand_before_a_cell_or_an_option():
    cells = parse_cells("onnx:int4-weights:group=32,symmetric=no,openvino:int8-weights")
    assert [cell.id for cell in cells] == ["onnx:int4-weights:group=32,symmetric=no", "openvino:int8-weights"]
    assert [cell.id for cell in parse_cells(",".join(CELLS))] == list(CELLS)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("int8-weights", "is no cell"),
        ("onnx:int9", "no recipe 'int9'"),
        ("metal:int8-weights", "no target 'metal'"),
        ("onnx:nf4-weights", "does not run on onnx"),
    ],
)
def test_what_is_no_cell_is_refused_before_any_work(text, what, tmp_path, capsys):
    with pytest.raises(UsageError, match=what):
        parse_cells(text)
    assert main(["--work", str(tmp_path), "--cells", text, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"
    assert not any(tmp_path.iterdir())


def test_a_picture_is_right_when_its_own_is_the_nearest():
    truth = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (0, 100, 200)])
    drawn = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (190, 90)])
    assert nearest_right(drawn, truth, [2, 1]).tolist() == [True, True]
    assert nearest_right(drawn, truth, [2, 0]).tolist() == [True, False]
    assert nearest_right(drawn, truth).tolist() == [False, True]


def test_the_sheet_underlines_what_is_wrong():
    pictures = np.full((2, 64, 64, 3), 128, np.uint8)
    drawn = {"onnx:fp32": Drawn(pictures, np.array([True, False]), pictures[:0])}
    red = (np.asarray(contact_sheet(["a ghost", "a star"], drawn)) == (255, 0, 0)).all(-1)
    rows = np.flatnonzero(red.any(1))
    assert len(rows)
    assert rows.min() > 100 + 96  # beneath the second picture alone


def test_training_pictures_that_cannot_be_fetched_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match="npm did not fetch them") as caught:
        training_pictures(tmp_path)
    assert "emoji-datasource-google" in caught.value.fix
