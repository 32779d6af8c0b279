"""Whatever is given: an exit code, one JSON error that says what and how to mend it, no traceback, nothing left."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file


@dataclass(frozen=True)
class Place:
    """Where a case may write, and the models and artifacts it may copy."""

    tmp: Path
    diffusion: Path
    emotions: Path
    drawing: Path
    labelling: Path

    @property
    def out(self) -> Path:
        return self.tmp / "out" / "target"

    @property
    def picture(self) -> Path:
        path = self.tmp / "picture.png"
        Image.new("RGB", (32, 32), (250, 200, 0)).save(path)
        return path

    def copy(self, folder: Path) -> Path:
        return shutil.copytree(folder, self.tmp / "copy")


@pytest.fixture
def place(
    tmp_path: Path, diffusion_source: Path, emotions_source: Path, diffusion_artifact: Path, emotions_artifact: Path
) -> Place:
    (tmp_path / "out").mkdir()
    return Place(tmp_path, diffusion_source, emotions_source, diffusion_artifact, emotions_artifact)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


Arguments = list[object]
CASES: dict[str, tuple[Callable[[Place], Arguments], int, str, str, str]] = {}
Build = Callable[[Place], Arguments]


def case(code: int, kind: str, what: str, fix: str = "") -> Callable[[Build], Build]:
    """A row of the table: the arguments' builder; then the exit code, the error's code, and a part of its two texts."""

    def add(build: Build) -> Build:
        CASES[build.__name__] = (build, code, kind, what, fix)
        return build

    return add


@case(2, "bad_input", "does not exist", "folder")
def a_missing_folder(at: Place) -> Arguments:
    return ["export", at.tmp / "nothing", "-o", at.out]


@case(2, "bad_input", "neither model_index.json nor config.json", "save_pretrained")
def a_folder_that_is_no_model(at: Place) -> Arguments:
    (at.tmp / "empty").mkdir()
    return ["export", at.tmp / "empty", "-o", at.out]


@case(2, "bad_input", "is a file")
def a_file_instead_of_a_folder(at: Place) -> Arguments:
    return ["export", at.picture, "-o", at.out]


@case(2, "bad_input", "model.safetensors")
def a_truncated_checkpoint(at: Place) -> Arguments:
    file = at.copy(at.emotions) / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)
    return ["export", file.parent, "-o", at.out]


@case(2, "bad_input", "model.safetensors")
def a_checkpoint_that_ends_within_its_header(at: Place) -> Arguments:
    file = at.copy(at.emotions) / "model.safetensors"
    os.truncate(file, 100)
    return ["export", file.parent, "-o", at.out]


@case(2, "bad_input", "model.safetensors")
def a_header_that_lies_about_offsets(at: Place) -> Arguments:
    file = at.copy(at.emotions) / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    names = [n for n in header if n != "__metadata__"]
    first, second = sorted(names, key=lambda n: header[n]["data_offsets"])[:2]
    size = header[second]["data_offsets"][1] - header[second]["data_offsets"][0]
    header[second]["data_offsets"] = [header[first]["data_offsets"][0], header[first]["data_offsets"][0] + size]
    packed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + length :])
    return ["export", file.parent, "-o", at.out]


@case(2, "bad_input", "pickle", "safetensors")
def a_pickle_is_all_there_is(at: Place) -> Arguments:
    folder = at.copy(at.emotions)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return ["export", folder, "-o", at.out]


@case(2, "bad_input", "FluxPipeline, which is not supported", "StableDiffusionPipeline")
def an_unsupported_pipeline(at: Place) -> Arguments:
    folder = at.copy(at.diffusion)
    edit(folder / "model_index.json", lambda d: d.update(_class_name="FluxPipeline"))
    return ["export", folder, "-o", at.out]


@case(2, "bad_input", "BertForMaskedLM, which is not supported", "vit, deit, swin, convnext")
def an_unsupported_classifier(at: Place) -> Arguments:
    folder = at.copy(at.emotions)
    edit(folder / "config.json", lambda d: d.update(architectures=["BertForMaskedLM"], model_type="bert"))
    return ["export", folder, "-o", at.out]


@case(2, "bad_input", "config.json is not readable JSON")
def a_config_that_is_no_json(at: Place) -> Arguments:
    folder = at.copy(at.emotions)
    (folder / "config.json").write_bytes(b"\xff\xfe{")
    return ["export", folder, "-o", at.out]


@case(2, "bad_input", "in_channels", "config.json")
def a_config_that_lacks_an_entry(at: Place) -> Arguments:
    folder = at.copy(at.diffusion)
    edit(folder / "unet/config.json", lambda d: d.pop("in_channels"))
    return ["export", folder, "-o", at.out]


@case(2, "bad_input", "classifier.weight")
def weights_of_another_shape_than_the_config(at: Place) -> Arguments:
    file = at.copy(at.emotions) / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"] = np.repeat(tensors["classifier.weight"], 2, axis=0)
    save_file(tensors, file, {"format": "pt"})
    return ["export", file.parent, "-o", at.out, "--no-verify"]


@case(2, "bad_input", "vit.layernorm.weight")
def a_checkpoint_that_lacks_a_tensor(at: Place) -> Arguments:
    file = at.copy(at.emotions) / "model.safetensors"
    tensors = load_file(file)
    del tensors["vit.layernorm.weight"]
    save_file(tensors, file, {"format": "pt"})
    return ["export", file.parent, "-o", at.out, "--no-verify"]


@case(2, "bad_input", "preprocessor_config.json", "Copy that file")
def a_classifier_without_preprocessing(at: Place) -> Arguments:
    folder = at.copy(at.emotions)
    (folder / "preprocessor_config.json").unlink()
    return ["export", folder, "-o", at.out]


@case(2, "bad_input", "tokenizer")
def a_pipeline_without_a_tokenizer(at: Place) -> Arguments:
    folder = at.copy(at.diffusion)
    shutil.rmtree(folder / "tokenizer")
    return ["export", folder, "-o", at.out]


@case(2, "bad_input", "scheduler class 'VQScheduler'", "DDIMScheduler")
def a_pipeline_with_an_unsupported_scheduler(at: Place) -> Arguments:
    folder = at.copy(at.diffusion)
    edit(folder / "scheduler/scheduler_config.json", lambda d: d.update(_class_name="VQScheduler"))
    return ["export", folder, "-o", at.out]


@case(2, "bad_input", "a revision belongs to a hub id")
def a_revision_of_a_folder(at: Place) -> Arguments:
    return ["export", at.emotions, "--revision", "main", "-o", at.out]


@case(2, "bad_input", "not an artifact", "-o")
def a_target_that_is_something_else(at: Place) -> Arguments:
    (at.tmp / "precious").mkdir()
    (at.tmp / "precious/thesis.txt").write_text("years of work")
    return ["export", at.emotions, "-o", at.tmp / "precious", "--force"]


@case(2, "bad_input", "exists", "--force")
def a_target_that_is_there_already(at: Place) -> Arguments:
    return ["export", at.emotions, "-o", at.copy(at.labelling)]


@case(2, "usage", "'toaster' is not a device", "cpu, cuda")
def an_unknown_device(at: Place) -> Arguments:
    return ["classify", at.labelling, at.picture, "--device", "toaster"]


@case(5, "device", "cuda:9")
def an_absent_device(at: Place) -> Arguments:
    return ["classify", at.labelling, at.picture, "--device", "cuda:9"]


@case(2, "bad_input", "is not a picture")
def a_text_file_as_a_picture(at: Place) -> Arguments:
    (at.tmp / "text.png").write_text("Dear Sir or Madam,")
    return ["classify", at.labelling, at.tmp / "text.png"]


@case(2, "bad_input", "empty (0 bytes)")
def an_empty_picture(at: Place) -> Arguments:
    (at.tmp / "empty.jpg").touch()
    return ["classify", at.labelling, at.tmp / "empty.jpg"]


@case(2, "bad_input", "no pictures")
def a_folder_without_pictures(at: Place) -> Arguments:
    return ["classify", at.labelling, at.tmp / "out"]


@case(2, "usage", "--detector", "--faces")
def a_detector_without_faces(at: Place) -> Arguments:
    return ["classify", at.labelling, at.picture, "--detector", at.picture]


@case(2, "bad_input", "100, not a multiple of 16", "96")
def a_width_that_does_not_divide(at: Place) -> Arguments:
    return ["generate", at.drawing, "a red apple", "--width", 100, "-o", at.out.with_suffix(".png")]


@case(2, "bad_input", "heun", "euler")
def an_unknown_scheduler(at: Place) -> Arguments:
    return ["generate", at.drawing, "a red apple", "--scheduler", "heun", "-o", at.out.with_suffix(".png")]


@case(2, "bad_input", "steps")
def no_steps(at: Place) -> Arguments:
    return ["generate", at.drawing, "a red apple", "--steps", 0, "-o", at.out.with_suffix(".png")]


@case(2, "bad_input", "steps")
def more_steps_than_there_are(at: Place) -> Arguments:
    return ["generate", at.drawing, "a red apple", "--steps", 2000, "-o", at.out.with_suffix(".png")]


@case(2, "usage", ".jpg", ".png")
def a_picture_that_is_no_png(at: Place) -> Arguments:
    return ["generate", at.drawing, "a red apple", "--steps", 1, "-o", at.out.with_suffix(".jpg")]


@case(2, "disk", "picture.png")
def a_picture_in_a_folder_that_is_not_there(at: Place) -> Arguments:
    return ["generate", at.drawing, "a red apple", "--steps", 1, "-o", at.tmp / "nothing/picture.png"]


@case(2, "usage", "cannot generate", "classify")
def a_classifier_that_shall_draw(at: Place) -> Arguments:
    return ["generate", at.labelling, "a red apple", "-o", at.out.with_suffix(".png")]


@case(2, "usage", "cannot classify", "generate")
def a_pipeline_that_shall_classify(at: Place) -> Arguments:
    return ["classify", at.drawing, at.picture]


@case(2, "usage", "--stepz", "--help")
def an_unknown_option(at: Place) -> Arguments:
    return ["generate", at.drawing, "a red apple", "--stepz", 3]


@case(2, "usage", "paint", "--help")
def an_unknown_command(at: Place) -> Arguments:
    return ["paint", at.drawing]


@case(2, "usage", "--steps", "--help")
def a_number_that_is_none(at: Place) -> Arguments:
    return ["generate", at.drawing, "a red apple", "--steps", "many"]


@case(2, "bad_input", "does not exist")
def a_missing_artifact(at: Place) -> Arguments:
    return ["inspect", at.tmp / "nothing"]


@case(6, "bad_artifact", "outside")
def a_manifest_that_leads_out(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    shutil.copy(folder / "model.safetensors", at.tmp / "elsewhere.safetensors")
    edit(
        folder / "artifact.json",
        lambda d: d["components"]["model"]["weights"][0].update(path="../elsewhere.safetensors"),
    )
    return ["classify", folder, at.picture]


@case(6, "bad_artifact", "outside")
def a_link_that_leads_out(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    (folder / "model.safetensors").rename(at.tmp / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(at.tmp / "elsewhere.safetensors")
    return ["classify", folder, at.picture]


@case(6, "bad_artifact", "pickle", "safetensors")
def a_manifest_that_names_a_pickle(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    (folder / "model.bin").write_bytes(b"\x80\x04.")
    edit(folder / "artifact.json", lambda d: d["components"]["model"]["weights"][0].update(path="model.bin"))
    return ["inspect", folder]


@case(6, "bad_artifact", "schema", "upgrade")
def an_artifact_of_a_newer_version(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    edit(folder / "artifact.json", lambda d: d.update(schema=99))
    return ["inspect", folder]


@case(6, "bad_artifact", "artifact.json")
def a_manifest_that_is_no_json(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    (folder / "artifact.json").write_text("{")
    return ["inspect", folder]


@case(6, "bad_artifact", "missing")
def an_artifact_without_its_weights(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    (folder / "model.safetensors").unlink()
    return ["classify", folder, at.picture]


@case(6, "bad_artifact", "bytes")
def an_artifact_whose_weights_are_cut(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    os.truncate(folder / "model.safetensors", 5000)
    return ["classify", folder, at.picture]


@case(6, "bad_artifact", "not load")
def an_artifact_whose_graph_is_damaged(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    graph = folder / "model.onnx"
    graph.write_bytes(b"\x00" * graph.stat().st_size)
    return ["classify", folder, at.picture]


@case(6, "bad_artifact", "model.onnx has 5000 bytes")
def an_artifact_whose_graph_is_cut(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    os.truncate(folder / "model.onnx", 5000)
    return ["classify", folder, at.picture]


@case(6, "bad_artifact", "preprocessor_config.json is not the file that was built")
def a_config_that_was_edited(at: Place) -> Arguments:
    path = at.copy(at.labelling) / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.5", "0.4"))
    return ["verify", path.parent]


@case(6, "bad_artifact", "sha256 differs")
def a_wrong_hash(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    edit(folder / "artifact.json", lambda d: d["components"]["model"]["weights"][0].update(sha256="0" * 64))
    return ["inspect", folder, "--checksums"]


@case(6, "bad_artifact", "family 'music'", "upgrade")
def an_unknown_family(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    edit(folder / "artifact.json", lambda d: d["pipeline"].update(family="music"))
    return ["classify", folder, at.picture]


@case(2, "bad_input", "source", "--against")
def a_source_that_is_gone(at: Place) -> Arguments:
    folder = at.copy(at.labelling)
    edit(folder / "artifact.json", lambda d: d["model"].update(source=str(at.tmp / "gone")))
    return ["verify", folder]


@case(2, "bad_input", "another kind of model")
def a_reference_of_another_kind(at: Place) -> Arguments:
    return ["verify", at.copy(at.labelling), "--against", at.drawing]


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(vitrify: Callable[..., Any], place: Place, name: str) -> None:
    build, code, kind, what, fix = CASES[name]
    arguments = build(place)
    before = listing(place.tmp)
    done = vitrify(*arguments, "--json", cwd=place.tmp)
    assert "Traceback" not in done.err, done.err
    assert (done.code, done.error["code"]) == (code, kind), done.err
    assert sorted(done.error) == ["code", "fix", "what"]
    assert what in done.error["what"]
    assert fix in done.error["fix"]
    assert done.error["fix"].strip(), "an error says what to do"
    assert f"error: {done.error['what']}" in done.err, "a reader of the terminal sees it too"
    assert listing(place.tmp) == before, "nothing is left behind, nothing is changed"


def listing(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.lstat().st_size if p.is_file() else -1 for p in folder.rglob("*")}


@pytest.mark.parametrize("name", ["picture.jpg", "picture", "nothing/picture.png"])
def test_where_the_picture_shall_go_is_checked_before_it_is_drawn(
    vitrify: Callable[..., Any], place: Place, name: str
) -> None:
    done = vitrify("generate", place.drawing, "a red apple", "--steps", 1, "-o", place.tmp / name, "--json")
    assert done.code == 2
    assert "device:" not in done.err, "the pipeline was opened for nothing"


HIDE = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] == {library!r} else found(name, *rest)
"""


@pytest.mark.parametrize(
    ("library", "command", "fix"),
    [
        ("onnxruntime", "classify", "onnx"),
        ("onnxruntime", "trace", "onnx"),
        ("skimage", "faces", "faces"),
        ("torch", "export", "torch"),
        ("onnx_ir", "export", "export"),
        ("onnx", "verify", "export"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    vitrify: Callable[..., Any], environment: dict[str, str], place: Place, library: str, command: str, fix: str
) -> None:
    site = place.tmp / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDE.format(library=library))
    arguments: dict[str, Arguments] = {
        "classify": ["classify", place.labelling, place.picture],
        "faces": ["classify", place.labelling, place.picture, "--faces"],
        "export": ["export", place.emotions, "-o", place.out],
        "trace": ["export", place.emotions, "-o", place.out],
        "verify": ["verify", place.copy(place.labelling)],
    }
    changed = {"PYTHONPATH": os.pathsep.join([str(site), environment["PYTHONPATH"]]), "PYTHONDONTWRITEBYTECODE": "1"}
    if command == "trace":  # no graph is known
        changed["VITRIFY_CACHE"] = str(place.tmp / "cache")
    done = vitrify(*arguments[command], "--json", **changed)
    assert "Traceback" not in done.err, done.err
    assert "no graph" not in done.err, "it was traced for nothing"
    assert (done.code, done.error["code"]) == (4, "missing_dependency"), done.err
    assert {"skimage": "scikit-image"}.get(library, library) in done.error["what"]
    assert done.error["fix"] == f'pip install "vitrify[{fix}]"'
    assert list((place.tmp / "out").iterdir()) == []
