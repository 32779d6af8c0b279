"""The manifest: what is written is read again, and nothing that lies, leaves the folder or runs code is opened."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitrify.core.artifact import (
    MANIFEST,
    SCHEMA,
    Artifact,
    Component,
    WeightFile,
    check_inside,
    hash_file,
    is_artifact,
)
from vitrify.core.errors import BadArtifact, Busy, DiskError
from vitrify.core.publish import locked, published
from vitrify.core.tensors import DType, TensorSpec

GRAPH, WEIGHTS = "unet/model.onnx", "unet/weights.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An artifact of one component and one pipeline file."""
    root = tmp_path / "artifact"
    (root / "unet").mkdir(parents=True)
    (root / GRAPH).write_bytes(b"graph")
    (root / WEIGHTS).write_bytes(bytes(range(256)))
    (root / "labels.json").write_text("[]")
    component = Component(
        name="unet",
        format="onnx",
        graph=GRAPH,
        inputs={"sample": TensorSpec(DType.FLOAT32, ("batch", 4, "height"))},
        outputs={"out": TensorSpec(DType.BFLOAT16, ("batch",)), "n": TensorSpec(DType.INT64, ())},
        weights=(WeightFile(WEIGHTS, 256, hash_file(root / WEIGHTS)),),
        shapes={"batch": (1, 2, 8), "height": (8, 64, 128)},
        precision={"recipe": "fp32", "kept": ["conv_in"]},
        requires={"runtime": "onnxruntime>=1.20", "os": None},
        proof={"graph": {"max_abs": 1e-7}, "weights": "not run"},
        details={"samples": {"timestep": [0, 999]}},
        root=root,
    )
    Artifact(
        root=root,
        id="0123",
        model={"source": "somewhere/ünïcode", "architecture": "Unet", "revision": None},
        pipeline={"family": "sd", "tasks": ["text2img"], "files": {"labels": "labels.json"}},
        components={"unet": component},
        proof={"images": "not run"},
        evaluation={"classifier": "x"},
        built={"by": "vitrify"},
    ).save()
    return root


Edit = Callable[[dict[str, Any]], object]


def edited(root: Path, edit: Edit) -> Path:
    data = json.loads((root / MANIFEST).read_text())
    edit(data)
    (root / MANIFEST).write_text(json.dumps(data))
    return root


def refused(root: Path, match: str, **how: Any) -> BadArtifact:
    with pytest.raises(BadArtifact, match=match) as caught:
        Artifact.load(root, **how)
    assert caught.value.what.endswith(".")
    assert caught.value.fix
    return caught.value


def test_what_is_saved_is_loaded(root: Path) -> None:
    assert is_artifact(root)
    artifact = Artifact.load(root, checksums=True)
    before = (root / MANIFEST).read_bytes()
    artifact.save()
    assert (root / MANIFEST).read_bytes() == before
    assert Artifact.load(root) == artifact
    component = artifact.components["unet"]
    assert component.inputs == {"sample": TensorSpec(DType.FLOAT32, ("batch", 4, "height"))}
    assert list(component.outputs) == ["out", "n"]
    assert component.shapes["height"] == (8, 64, 128)
    assert component.details["samples"]["timestep"] == [0, 999]
    assert component.graph_path.read_bytes() == b"graph"
    assert artifact.model["source"] == "somewhere/ünïcode"
    assert artifact.evaluation == {"classifier": "x"}
    assert json.loads(before)["schema"] == SCHEMA


def test_it_may_be_moved(root: Path) -> None:
    moved = root.rename(root.with_name("elsewhere"))
    artifact = Artifact.load(moved, checksums=True)
    assert artifact.components["unet"].graph_path == moved / GRAPH
    assert artifact.name == "elsewhere"


PATHS = ["../outside", "/etc/passwd", "unet/../../outside", "C:/windows", "C:outside", "unet\\..\\outside", "", "a\0b"]
PLACES: dict[str, Callable[[dict[str, Any], Any], object]] = {
    "graph": lambda d, path: d["components"]["unet"].update(graph=path),
    "weights": lambda d, path: d["components"]["unet"]["weights"][0].update(path=path),
    "files": lambda d, path: d["pipeline"]["files"].update(labels=path),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_leaves_the_folder_is_refused(root: Path, place: str, path: str) -> None:
    (root.parent / "outside").write_bytes(bytes(256))
    refused(edited(root, lambda d: PLACES[place](d, path)), "a path outside")


@pytest.mark.parametrize("way", ["file", "folder", "chain", "circle"])
def test_a_link_that_leads_out_is_refused(root: Path, way: str) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "weights.safetensors").write_bytes(bytes(range(256)))
    (root / WEIGHTS).unlink()
    if way == "file":
        (root / WEIGHTS).symlink_to(outside / "weights.safetensors")
    elif way == "circle":
        (root / WEIGHTS).symlink_to(root / WEIGHTS)
    elif way == "chain":
        (root / "unet/second").symlink_to(outside / "weights.safetensors")
        (root / WEIGHTS).symlink_to("second")
    else:
        (outside / "model.onnx").write_bytes(b"graph")
        (root / GRAPH).unlink()
        (root / "unet").rmdir()
        (root / "unet").symlink_to(outside)
    # a circle is told as a missing file by some versions of Python
    refused(root, "a path outside|is missing")


def test_a_link_inside_the_folder_is_fine(root: Path) -> None:
    (root / WEIGHTS).rename(root / "blob")
    (root / WEIGHTS).symlink_to("../blob")
    Artifact.load(root, checksums=True)


def test_the_folder_itself_may_be_a_link(root: Path) -> None:
    link = root.with_name("link")
    link.symlink_to(root)
    Artifact.load(link, checksums=True)


@pytest.mark.parametrize("name", ["unet/model.bin", "unet/model.PT", "a.ckpt", "a.pkl", "a.pth", "a.joblib"])
def test_pickles_are_refused(root: Path, name: str) -> None:
    (root / WEIGHTS).rename(root / name)
    error = refused(edited(root, lambda d: PLACES["weights"](d, name)), "may be a pickle")
    assert "safetensors" in error.fix


def test_an_openvino_bin_is_no_pickle(root: Path) -> None:
    (root / WEIGHTS).rename(root / "unet/model.bin")

    def edit(data: dict[str, Any]) -> None:
        PLACES["weights"](data, "unet/model.bin")
        data["components"]["unet"]["format"] = "openvino"

    Artifact.load(edited(root, edit))
    refused(edited(root, lambda d: PLACES["files"](d, "unet/model.bin")), "may be a pickle")


def test_an_openvino_tokenizer_is_let_in_as_a_file_beside_and_as_nothing_else(root: Path) -> None:
    name = "tokenizer/openvino_tokenizer.bin"
    (root / "tokenizer").mkdir()
    (root / name).write_bytes(b"x")
    (root / "tokenizer/openvino_tokenizer.xml").write_bytes(b"x")
    row = {"path": name, "bytes": 1, "sha256": None}
    graph = row | {"path": "tokenizer/openvino_tokenizer.xml"}
    Artifact.load(edited(root, lambda d: d.update(files=[row, graph])))
    refused(edited(root, lambda d: d.update(files=[row])), "may be a pickle")
    (root / name).rename(root / "tokenizer/tokenizer.bin")
    refused(edited(root, lambda d: d.update(files=[row | {"path": "tokenizer/tokenizer.bin"}])), "may be a pickle")
    (root / WEIGHTS).rename(root / name)
    refused(edited(root, lambda d: PLACES["weights"](d, name)), "may be a pickle")


@pytest.mark.parametrize("path", [GRAPH, WEIGHTS, "labels.json"])
def test_a_missing_file_is_named(root: Path, path: str) -> None:
    (root / path).unlink()
    refused(root, rf"{path} is missing")


def test_a_folder_in_a_files_place_is_a_missing_file(root: Path) -> None:
    (root / GRAPH).unlink()
    (root / GRAPH).mkdir()
    refused(root, rf"{GRAPH} is missing")


def test_a_wrong_size_is_seen_always(root: Path) -> None:
    with (root / WEIGHTS).open("ab") as stream:
        stream.write(b"x")
    refused(root, rf"{WEIGHTS} has 257 bytes, the manifest says 256")


def test_a_wrong_hash_is_seen_when_asked_for(root: Path) -> None:
    data = bytearray((root / WEIGHTS).read_bytes())
    data[100] ^= 1
    (root / WEIGHTS).write_bytes(data)
    Artifact.load(root)
    refused(root, rf"{WEIGHTS} is not the file that was built", checksums=True)


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        (SCHEMA + 1, rf"has schema {SCHEMA + 1}; this version reads up to {SCHEMA}"),
        (0, "names no schema"),
        ("1", "names no schema"),
        (None, "names no schema"),
        (True, "names no schema"),
    ],
)
def test_a_schema_that_is_not_known_is_refused(root: Path, schema: Any, match: str) -> None:
    error = refused(edited(root, lambda d: d.update(schema=schema)), match)
    assert ("upgrade" in error.fix) == (schema == SCHEMA + 1)


def test_a_manifest_without_a_schema_is_refused(root: Path) -> None:
    refused(edited(root, lambda d: d.pop("schema")), "names no schema")


@pytest.mark.parametrize(
    "content", [b"{", b"", b"\xff\xfe\x00", b"[1, 2]", b"null", b"[" * 100_000], ids=lambda c: repr(c[:5])
)
def test_a_manifest_that_is_no_json_object_is_refused(root: Path, content: bytes) -> None:
    (root / MANIFEST).write_bytes(content)
    refused(root, rf"{MANIFEST} (cannot be read|names no schema)")


def test_a_folder_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    assert not is_artifact(tmp_path)
    error = refused(tmp_path, "is not an artifact")
    assert error.fix == f"Make one: vitrify export {tmp_path}"
    refused(tmp_path / "nowhere", "is not an artifact")


EDITS: dict[str, Edit] = {
    "no id": lambda d: d.pop("id"),
    "components are a list": lambda d: d.update(components=[1]),
    "a component is a string": lambda d: d["components"].update(unet="x"),
    "no inputs": lambda d: d["components"]["unet"].pop("inputs"),
    "unknown dtype": lambda d: d["components"]["unet"]["inputs"][0].update(dtype="float7"),
    "no size": lambda d: d["components"]["unet"]["weights"][0].pop("bytes"),
    "an endless size": lambda d: d["components"]["unet"]["weights"][0].update(bytes=float("inf")),
    "a short range": lambda d: d["components"]["unet"]["shapes"].update(batch=[1]),
    "weights are a number": lambda d: d["components"]["unet"].update(weights=3),
    "pipeline is a list": lambda d: d.update(pipeline=["x"]),
    "files are a list": lambda d: d["pipeline"].update(files=["labels.json"]),
    "a path is a number": lambda d: d["pipeline"]["files"].update(labels=3),
    "a weight's path is a list": lambda d: d["components"]["unet"]["weights"][0].update(path=["a"]),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_that_describes_nothing_is_refused(root: Path, name: str) -> None:
    refused(edited(root, EDITS[name]), MANIFEST)


def test_a_manifest_is_replaced_whole_or_stays(root: Path) -> None:
    before = (root / MANIFEST).read_bytes()
    artifact = Artifact.load(root)
    with pytest.raises(TypeError):
        replace(artifact, built={"by": object()}).save()
    assert (root / MANIFEST).read_bytes() == before
    assert sorted(os.listdir(root)) == [MANIFEST, "labels.json", "unet"]


def test_a_folder_that_cannot_be_written_is_a_disk_error(root: Path, full_disk: Path) -> None:
    artifact = replace(Artifact.load(root), root=full_disk, built={"by": "x" * 2_000_000})
    with pytest.raises(DiskError, match="full"):
        artifact.save()
    assert os.listdir(full_disk) == []


def test_a_path_is_checked_against_the_folder_that_is_given(tmp_path: Path) -> None:
    check_inside(tmp_path, "a/b/c")
    with pytest.raises(BadArtifact, match=r"'\.\./a'.*Do not use"):
        check_inside(tmp_path, "../a")


def test_of_two_writers_one_is_told_and_the_manifest_stays(root: Path) -> None:
    artifact = Artifact.load(root)
    before = (root / MANIFEST).read_bytes()
    with locked(root), pytest.raises(Busy, match="is being written"):
        replace(artifact, built={"by": "someone else"}).save()
    assert (root / MANIFEST).read_bytes() == before
    with suppress(ZeroDivisionError), published(root, replace=True):
        with pytest.raises(Busy):
            artifact.save()
        raise ZeroDivisionError  # what was begun is given up
    replace(artifact, built={"by": "now"}).save()
    assert Artifact.load(root).built == {"by": "now"}


def test_many_who_save_at_once_leave_a_whole_manifest(root: Path) -> None:
    artifact, said = Artifact.load(root), []
    start = threading.Barrier(6)

    def work(number: int) -> None:
        start.wait()
        for turn in range(20):
            try:
                replace(artifact, built={"by": f"{number} {turn} " * 2000}).save()
                said.append("saved")
            except Busy:
                said.append("busy")

    workers = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(said) == 120
    assert "saved" in said
    assert replace(Artifact.load(root), built=artifact.built) == artifact
    assert sorted(n for n in os.listdir(root) if n != MANIFEST) == ["labels.json", "unet"]


def test_an_artifact_that_was_replaced_meanwhile_is_not_written_over(root: Path) -> None:
    artifact = Artifact.load(root)
    edited(root, lambda d: d.update(id="4567"))
    before = (root / MANIFEST).read_bytes()
    with pytest.raises(Busy, match=r"was replaced by another artifact meanwhile\. Run it again"):
        replace(artifact, proof={"images": "run"}).save()
    assert (root / MANIFEST).read_bytes() == before


def test_every_other_file_gets_its_hash(root: Path) -> None:
    found = Artifact.load(root)
    assert found.unhashed() == ["labels.json", GRAPH]
    (root / "tokenizer").mkdir()
    (root / "tokenizer/vocab.json").write_text("{}")
    hashed = found.with_hashes()
    assert [f.path for f in hashed.others] == ["labels.json", "tokenizer/vocab.json", GRAPH]
    assert hashed.unhashed() == []
    assert {f.path: f for f in hashed.recorded()}[GRAPH] == WeightFile(GRAPH, 5, hash_file(root / GRAPH))
    hashed.save()
    assert Artifact.load(root, checksums=True) == hashed


@pytest.mark.parametrize("path", ["labels.json", GRAPH, "tokenizer/vocab.json"])
def test_a_changed_or_lost_file_of_any_kind_is_seen(root: Path, path: str) -> None:
    (root / "tokenizer").mkdir()
    (root / "tokenizer/vocab.json").write_text("{}")
    Artifact.load(root).with_hashes().save()
    data = bytearray((root / path).read_bytes())
    data[0] ^= 1
    (root / path).write_bytes(data)
    Artifact.load(root)
    refused(root, rf"{path} is not the file that was built", checksums=True)
    (root / path).write_bytes(bytes(data) + b"x")
    refused(root, rf"{path} has {len(data) + 1} bytes, the manifest says {len(data)}")
    (root / path).unlink()
    refused(root, rf"{path} is missing")


def test_a_listed_file_that_leads_out_or_may_run_code_is_refused(root: Path) -> None:
    (root.parent / "outside").write_text("x")
    row = {"path": "../outside", "bytes": 1, "sha256": None}
    refused(edited(root, lambda d: d.update(files=[row])), "a path outside")
    (root / "a.pkl").write_text("x")
    refused(edited(root, lambda d: d.update(files=[row | {"path": "a.pkl"}])), "may be a pickle")
    refused(edited(root, lambda d: d.update(files=[{"path": "labels.json"}])), MANIFEST)
