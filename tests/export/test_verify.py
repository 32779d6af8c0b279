"""Verifying: which source an artifact is held against, what is said where there is none or a part is left out."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, ProofFailed
from vitrify.core.progress import Event
from vitrify.export.job import export_model
from vitrify.export.verify import verify_artifact

pytest.importorskip("torch", reason="needs the extra export")


@pytest.fixture
def exported(emotions_artifact: Path, emotions_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact whose source was named as a folder beside it."""
    shutil.copytree(emotions_source, tmp_path / "models/faces")
    monkeypatch.chdir(tmp_path)
    export_model("models/faces", "out", verify=False)
    return tmp_path / "out"


def test_a_relative_source_is_found_where_it_was_named(exported: Path) -> None:
    artifact = Artifact.load(exported)
    assert artifact.model["source"] == "models/faces"
    assert artifact.model["revision"] is artifact.model["variant"] is None
    assert verify_artifact(exported).components["model"].proof["numeric"]["relative"] <= 1e-4


def test_a_lost_source_says_where_it_was_looked_for(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(BadInput) as caught:
        verify_artifact(exported)
    assert caught.value.what == (
        f"The artifact names the source 'models/faces', but there is no folder {tmp_path}/elsewhere/models/faces."
    )
    assert caught.value.fix == (
        "Run it in the folder where 'models/faces' is, or give --against a source or an artifact."
    )
    verify_artifact(exported, str(tmp_path / "models/faces"))


def test_the_variant_that_was_exported_is_verified(emotions_source: Path, tmp_path: Path) -> None:
    source = shutil.copytree(emotions_source, tmp_path / "source")
    (source / "model.safetensors").rename(source / "model.half.safetensors")
    artifact = export_model(source, tmp_path / "out", variant="half", verify=False)
    assert artifact.model["variant"] == "half"
    assert artifact.built["command"] == f"vitrify export {source} --variant half --no-verify"
    proved = verify_artifact(tmp_path / "out")
    assert proved.components["model"].proof["weights"] == artifact.components["model"].proof["weights"]
    with pytest.raises(BadInput, match=r"model\.safetensors|plain"):
        verify_artifact(tmp_path / "out", str(source))  # which is asked for as it stands


def test_a_component_that_is_not_traced_is_named(exported: Path) -> None:
    path = exported / "artifact.json"
    data = json.loads(path.read_text())
    data["components"]["model"] |= {"format": "torch", "graph": "config.json", "weights": []}
    path.write_text(json.dumps(data))
    events: list[Event] = []
    verify_artifact(exported, report=events.append)
    assert [e.note for e in events if e.note] == ["the weights of model are not traced: it is torch, not onnx in float"]


def test_a_proof_that_fails_says_that_nothing_was_published_only_at_export(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrify.proof.parity.TOLERANCE", -1.0)  # that no output can keep
    with pytest.raises(ProofFailed) as caught:
        export_model("models/faces", tmp_path / "second", verify=True)
    assert caught.value.fix.startswith("Nothing was published. Report")
    assert not (tmp_path / "second").exists()
    with pytest.raises(ProofFailed) as caught:
        verify_artifact(exported)
    assert "published" not in caught.value.fix


def test_a_proof_that_fails_has_a_page_all_the_same(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (exported / "artifact.json").read_bytes()
    monkeypatch.setattr("vitrify.proof.parity.TOLERANCE", -1.0)  # that no output can keep
    with pytest.raises(ProofFailed) as caught:
        verify_artifact(exported, html=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert f"FAILED its proof: {html.escape(caught.value.what)}" in page
    assert '<span class="failed">FAILED: max error' in page
    assert (exported / "artifact.json").read_bytes() == before


def test_weights_that_are_not_the_sources_have_a_page_too(exported: Path, tmp_path: Path) -> None:
    file = tmp_path / "models/faces/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(ProofFailed):
        verify_artifact(exported, html=tmp_path / "page.html")
    assert re.search("FAILED its proof: .*bytes", (tmp_path / "page.html").read_text("utf-8"))


def test_a_page_that_cannot_be_written_is_refused_first(exported: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(BadInput, match="no such folder"):
        verify_artifact(exported, html=tmp_path / "no/page.html", report=events.append)
    assert events == []


def test_the_pictures_of_a_proof_stay_with_the_artifact(
    vitrify: Callable[..., Any], diffusion_artifact: Path, diffusion_source: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(diffusion_artifact, tmp_path / "emoji")
    done = vitrify("verify", copy, "--html", tmp_path / "verified.html")
    assert done.code == 0, done.err
    found = Artifact.load(copy, checksums=True)
    entries = found.proof["images"]["drawn"]
    assert len(entries) == 2
    listed = {f.path for f in found.others}
    for entry in entries:
        size = (entry["width"], entry["height"])
        for side in ("reference", "artifact"):
            assert entry[side] in listed
            with Image.open(copy / entry[side]) as picture:
                assert picture.size == size
    assert vitrify("inspect", copy, "--html", tmp_path / "inspected.html").code == 0
    pages = [(tmp_path / f"{name}.html").read_text("utf-8") for name in ("verified", "inspected")]
    assert pages[0] == pages[1]
    assert pages[0].count("data:image/png;base64,") == 6
    again = vitrify("verify", copy, "--json")
    assert again.code == 0, again.err
    kept = {f"proof/{p.name}" for p in (copy / "proof").iterdir()}
    assert kept == {e[side] for e in again.json["proof"]["images"]["drawn"] for side in ("reference", "artifact")}
    Artifact.load(copy, checksums=True)


def test_what_is_proved_against_another_artifact_is_not_written(exported: Path, emotions_artifact: Path) -> None:
    found = Artifact.load(exported)
    replace(found, proof=found.proof | {"labels": "not run"}).save()
    before = (exported / "artifact.json").read_bytes()
    proved = verify_artifact(exported, str(emotions_artifact))
    assert proved.components["model"].proof["numeric"]["max_abs"] == 0
    assert (exported / "artifact.json").read_bytes() == before
