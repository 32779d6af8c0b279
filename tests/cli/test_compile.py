"""`vitrify compile` from end to end: what it makes of the built-in models, what it prints, what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify as package
from vitrify.cli_compile import _name, _recipe
from vitrify.core.artifact import Artifact
from vitrify.quant.recipes import RECIPES, recipe
from vitrify.quant.support import TARGETS

pytest.importorskip("onnx_ir", reason="needs the extra export")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve pictures of blobs."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for number in range(12):
        small = Image.fromarray(rng.integers(0, 256, (4 + number, 5, 3), dtype=np.uint8))
        small.resize((90, 80)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def small(vitrify: Callable[..., Any], emotions_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The classifier in int8, and what the command printed. For reading only: it is shared."""
    folder = tmp_path_factory.mktemp("small") / "int8"
    return folder, vitrify("compile", emotions_artifact, "--quant", "int8-weights", "-o", folder)


def test_it_quantizes_proves_and_says_what_that_bought(small: Any, emotions_artifact: Path) -> None:
    folder, done = small
    assert done.code == 0, done.err
    model = Artifact.load(folder, checksums=True).components["model"]
    assert (model.format, model.precision["recipe"], model.precision["weights"]) == ("onnx", "int8-weights", "int8")
    assert model.proof["numeric"]["snr_db"] > 25
    row = next(line for line in done.out.splitlines() if "int8, float32" in line).split()
    before, after, ratio = map(float, row[-3:])
    on_disk = sum((folder / n).stat().st_size for n in (model.graph, *(w.path for w in model.weights)))
    assert after == pytest.approx(on_disk / 1e6, abs=0.06)
    assert ratio == pytest.approx(after / before, abs=0.05)
    assert ratio < 0.8
    lines = done.out.splitlines()
    assert re.match(r"labels: 64 compared, 100.0% of the labels agree, scores within", lines[-3])
    assert lines[-2].startswith(f"int8-weights: {RECIPES['int8-weights'].buys} (beside float32: 0.27 of its disk, ")
    assert lines[-1] == f"{folder} is ready: vitrify classify {folder} picture.png"
    assert "quantize model" in done.err


def test_what_it_made_runs_and_is_inspected(
    here: Callable[..., Any], small: Any, emotions_artifact: Path, pictures: Path
) -> None:
    folder, _ = small
    whole, few = (here("classify", a, pictures, "--top-k", 1, "--json") for a in (emotions_artifact, folder))
    assert few.code == 0, few.err
    best = [[r["labels"][0]["label"] for r in done.json["results"]] for done in (whole, few)]
    assert sum(a == b for a, b in zip(*best, strict=True)) >= len(best[0]) - 1
    assert "warning:" not in few.err
    seen = here("inspect", folder, "--checksums")
    assert seen.code == 0, seen.err
    assert re.search(r"model +onnx +int8-weights +int8 ", seen.out)
    assert "FAILED" not in seen.out


def test_json_is_one_document(here: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path) -> None:
    done = here(
        "compile", diffusion_artifact, "--to", "openvino", "--quant", "int8-weights", "--keep", "mid_block",
        "--keep", "up_blocks.0*", "--no-verify", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    made = done.json
    assert made["artifact"] == "emoji-openvino-int8-weights-keep-mid_block-up_blocks.0"
    assert (made["to"], made["recipe"]) == ("openvino", "int8-weights:keep=mid_block+up_blocks.0*")
    assert made["buys"] == RECIPES["int8-weights"].buys
    assert any("numeric proof not run" in note for note in made["notes"])
    components = made["manifest"]["components"]
    assert set(made["sizes"]) == {*components, "all"}
    for row in made["sizes"].values():
        assert row["ratio"] == row["after_bytes"] / row["before_bytes"]
    parts = [row["before_bytes"] for name, row in made["sizes"].items() if name != "all"]
    assert made["sizes"]["all"]["before_bytes"] < sum(parts), "the halves of the VAE share one file"
    assert any("mid_block" in layer for layer in components["unet"]["precision"]["kept"])
    assert {c["format"] for c in components.values()} == {"openvino"}
    assert made["manifest"]["built"]["from"]["id"] == Artifact.load(diffusion_artifact).id
    assert [p.name for p in tmp_path.iterdir()] == [made["artifact"]]
    drawn = here(
        "generate", tmp_path / made["artifact"], "a red apple", "--steps", 2, "--seed", 1,
        "-o", tmp_path / "a.png", "--json",
    )  # fmt: skip
    assert drawn.code == 0, drawn.err
    assert drawn.json["placement"]["unet"]["runtime"] == "openvino"


def test_a_source_is_exported_first(here: Callable[..., Any], emotions_source: Path, tmp_path: Path) -> None:
    done = here("compile", emotions_source, "--quant", "int4-weights:group=32", "--no-verify", cwd=tmp_path)
    assert done.code == 0, done.err
    assert [p.name for p in tmp_path.iterdir()] == ["emoji-emotions-onnx-int4-weights-group-32"]
    assert "numeric proof not run (not asked for)" in done.out


@pytest.mark.parametrize(
    ("name", "target", "id", "folder"),
    [
        ("emoji", "openvino", "fp32", "emoji-openvino"),
        ("emoji-onnx", "openvino", "fp32", "emoji-openvino"),
        ("emoji-onnx", "onnx", "int8-weights", "emoji-onnx-int8-weights"),
        (
            "sd 1.5",
            "tensorrt-rtx",
            "int4-weights:group=32,keep=a.*",
            "sd-1.5-tensorrt-rtx-int4-weights-group-32-keep-a.",
        ),
    ],
)
def test_the_default_folder_names_model_target_and_recipe(name: str, target: str, id: str, folder: str) -> None:
    assert _name(name, target, recipe(id)) == folder


@pytest.mark.parametrize(
    ("quant", "samples", "keep", "id"),
    [
        (None, None, None, "fp32"),
        ("int8-static", 16, None, "int8-static:samples=16"),
        ("int4-weights:group=32", None, ["a,b", "c d"], "int4-weights:group=32,keep=a+b+c+d"),
        ("int8-static:keep=x", 8, ["y"], "int8-static:keep=x+y,samples=8"),
    ],
)
def test_options_become_part_of_the_recipe(
    quant: str | None, samples: int | None, keep: list[str] | None, id: str
) -> None:
    assert _recipe(quant, samples, keep).id == id


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ([], "Nothing says what to compile for", "--quant"),
        (["--to", "onnx"], "what it is made from", "--quant"),
        (["--quant", "fp32"], "what it is made from", "--to"),
        (["--to", "coreml"], "coreml", "compile --help"),
        (["--quant", "int3"], "int3", "int4-weights"),
        (["--quant", "int8-weights:size=3"], "size=3", "group"),
        (["--quant", "int4-weights:group=7"], "group of 7", "32"),
        (["--to", "onnx", "--quant", "nf4-weights"], "onnx", "int4-weights"),
        (["--to", "openvino", "--quant", "int8-dynamic"], "openvino", "int8-static"),
        (["--to", "tensorrt-rtx", "--quant", "int4-weights:symmetric=no"], "zero points", "symmetric=no"),
        (["--to", "openvino", "--keep", "a"], "--keep", "--quant"),
        (["--to", "openvino", "--samples", "4"], "--samples", "--quant"),
        (["--quant", "int8-weights", "--samples", "4"], "no option samples", "Leave"),
        (["--quant", "int8-weights", "--calibration", "pictures"], "no calibration", "--calibration"),
        (["--quant", "int8-static", "--samples", "0"], "samples", "larger"),
        (["--to", "openvino", "--precision", "float16"], "--precision", "Leave"),
        (["--quant", "int8-weights", "--compute-capability", "8.6"], "--compute-capability", "Leave"),
        (["--to", "tensorrt-rtx", "--precision", "int8"], "int8", "compile --help"),
        (["--quant", "int8-weights", "--revision", "main"], "--revision", "Leave"),
    ],
    ids=lambda v: "_".join(v) if isinstance(v, list) else None,
)
def test_what_makes_no_sense_is_refused_before_work_begins(
    refuses: Callable[..., Any], emotions_artifact: Path, options: list[str], what: str, fix: str
) -> None:
    done = refuses(["compile", emotions_artifact, *options], 2, "usage", what, fix)
    assert "[" not in done.err.split("error: ")[0], "nothing was begun"


def test_what_does_not_fit_the_model_is_refused_too(
    refuses: Callable[..., Any], emotions_artifact: Path, small: Any, tmp_path: Path
) -> None:
    static = ["compile", emotions_artifact, "--quant", "int8-static"]
    refuses(static, 2, "bad_input", "needs pictures", "--calibration")
    refuses([*static, "--calibration", tmp_path / "nowhere"], 2, "bad_input", "nowhere")
    refuses(["compile", small[0], "--quant", "int4-weights"], 2, "bad_input", "quantized already")
    refuses(["compile", tmp_path / "nothing", "--to", "openvino"], 2, "bad_input", "nothing")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"], ids=["empty", "blank", "binary"])
def test_a_calibration_file_without_prompts_is_refused(
    refuses: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    asked = ["compile", diffusion_artifact, "--quant", "int8-static", "--calibration", "prompts.txt"]
    refuses(asked, 2, "bad_input", "prompts.txt", "prompt a line")


def test_pictures_calibrate_a_classifier(
    here: Callable[..., Any], refuses: Callable[..., Any], emotions_artifact: Path, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("nncf", reason="needs the extra quant")
    done = here(
        "compile", emotions_artifact, "--quant", "int8-static", "--calibration", pictures, "--samples", 6,
        "--keep-failed", "-o", tmp_path / "static", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    model = done.json["manifest"]["components"]["model"]
    assert done.json["recipe"] == model["precision"]["recipe"] == "int8-static:samples=6"
    assert model["proof"]["weights"]["calibrated_on"] == 6
    empty = tmp_path / "empty"
    empty.mkdir()
    refuses(
        ["compile", emotions_artifact, "--quant", "int8-static", "--calibration", empty], 2, "bad_input", "no pictures"
    )


def test_a_folder_that_is_there_is_replaced_only_with_force(
    here: Callable[..., Any], refused: Callable[..., dict[str, str]], emotions_artifact: Path, tmp_path: Path
) -> None:
    other = tmp_path / "notes"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    copy = shutil.copytree(emotions_artifact, tmp_path / "copy")
    before = Artifact.load(copy).id
    common = ["compile", emotions_artifact, "--quant", "int8-weights", "--no-verify", "--json", "-o"]
    assert "--force" in refused(here(*common, copy))["fix"]
    assert Artifact.load(copy, checksums=True).id == before
    assert "not an artifact" in refused(here(*common, other, "--force"))["what"]
    assert (other / "notes.txt").read_text() == "mine"
    itself = refused(here("compile", copy, "--quant", "int8-weights", "--force", "--json", "-o", copy))
    assert "made from" in itself["what"]
    done = here(*common, copy, "--force")
    assert done.code == 0, done.err
    assert Artifact.load(copy, checksums=True).components["model"].precision["recipe"] == "int8-weights"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "notes"]


def test_what_fails_its_proof_is_not_published_or_says_so_everywhere(
    here: Callable[..., Any],
    refused: Callable[..., dict[str, str]],
    emotions_artifact: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("nncf", reason="needs the extra quant")
    grey = tmp_path / "grey"
    grey.mkdir()
    # preprocessing makes zeros of it, so the ranges that are found fit no other picture
    Image.new("RGB", (40, 40), (127, 127, 127)).save(grey / "grey.png")
    common = ["compile", emotions_artifact, "--quant", "int8-static", "--calibration", grey, "-o", tmp_path / "bad"]
    error = refused(here(*common, "--json"), code=3)
    assert error["code"] == "proof_failed"
    assert "--keep-failed" in error["fix"]
    assert list(tmp_path.iterdir()) == [grey]
    kept = here(*common, "--keep-failed")
    assert kept.code == 0, kept.err
    (failed,) = (line for line in kept.out.splitlines() if line.startswith("FAILED: "))
    assert "agree" in failed
    seen = here("inspect", tmp_path / "bad", "--checksums")
    assert seen.code == 0, seen.err
    assert failed in seen.out.splitlines()
    assert here("inspect", tmp_path / "bad", "--json").json["proof"]["status"] == "failed"
    told = here("classify", tmp_path / "bad", pictures / "0.png")
    assert told.code == 0, told.err
    assert f"warning: this artifact failed its proof: {failed.removeprefix('FAILED: ')}" in told.err.splitlines()


def test_ctrl_c_leaves_nothing(diffusion_artifact: Path, environment: dict[str, str], tmp_path: Path) -> None:
    command = ["compile", str(diffusion_artifact), "--quant", "int8-static", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "vitrify", *command], env=environment, cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while "calibrate" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "cancelled"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


_CTRL_C_IN_A_LOCK = """
import signal, sys, threading

taken_again = threading.Condition._acquire_restore

def interrupted(self, state):
    if threading.current_thread() is threading.main_thread() and "vitrify.export.quantize" in sys.modules:
        signal.raise_signal(signal.SIGINT)
    return taken_again(self, state)

threading.Condition._acquire_restore = interrupted
from vitrify.cli import main
main()
"""


def test_ctrl_c_while_python_takes_a_lock_is_a_ctrl_c(
    diffusion_artifact: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Where Python itself makes a RuntimeError of it, for `threading` then gives up a lock that it does not hold."""
    done = subprocess.run(
        [sys.executable, "-c", _CTRL_C_IN_A_LOCK, "compile", diffusion_artifact, "--quant", "int8-weights", "--json"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "cancelled"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_built_without_a_gpu(here: Callable[..., Any], emotions_artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    done = here(
        "compile", emotions_artifact, "--to", "tensorrt-rtx", "--precision", "float16", "--compute-capability", "8.9",
        "-o", tmp_path / "plan",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "numeric proof not run: plans run on an NVIDIA GPU alone" in done.out
    assert "of the disk" not in done.out, "a plan holds code too"
    model = Artifact.load(tmp_path / "plan", checksums=True).components["model"]
    assert (model.format, model.requires["compute_capability"]) == ("tensorrt-rtx", "8.9")
    assert model.precision["activations"] == "float16"


def test_help_names_recipes_and_targets(here: Callable[..., Any]) -> None:
    shown = here("compile", "--help").out
    assert [name for name in (*RECIPES, *TARGETS) if name not in shown] == []


def test_doctor_says_which_recipe_runs_where(here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = here("doctor", "--json").json["recipes"]
    assert set(found) == set(RECIPES)
    for name, row in found.items():
        assert set(row["targets"]) == set(TARGETS)
        assert row["buys"] == RECIPES[name].buys
        for cell in row["targets"].values():
            assert bool(cell["why"]) is not cell["runs"] is bool(cell["buys"])
    assert not found["nf4-weights"]["targets"]["onnx"]["runs"]
    monkeypatch.setenv("COLUMNS", "100")
    shown = here("doctor").out
    assert re.search(r"^ *nf4-weights +no +yes +yes +no +no ", shown, re.M)
    assert "nf4-weights not on tensorrt-rtx and tensorrt: TensorRT has no nf4 type: use int4-weights." in shown


def test_compile_model_is_the_same_from_python(emotions_artifact: Path, tmp_path: Path) -> None:
    made = package.compile_model(emotions_artifact, tmp_path / "ir", to="openvino", quant="int8-weights", verify=False)
    assert made.components["model"].format == "openvino"
    with pytest.raises(package.VitrifyError, match="There is no recipe 'int3'"):
        package.compile_model(emotions_artifact, tmp_path / "x", quant="int3")
