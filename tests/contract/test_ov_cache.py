"""The cache of OpenVINO's compiled models: when it hits, when it misses, and that nothing depends on it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino", reason="needs vitrify[openvino]")

from vitrify.core.artifact import Component, hash_file  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadArtifact  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.ov import RUNTIME  # noqa: E402

CPU = Device("cpu")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/openvino"


def pixels(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, 8, 8)).astype(np.float32)


def run(component: Component, cached: str = "off", overrides: Any = None, **options: Any) -> np.ndarray:
    """The labels' scores, from a session that was opened as `cached` says."""
    before = RUNTIME.compiled
    session = RUNTIME.open(component, CPU, Options(**options), overrides)
    scores: np.ndarray = session.run({"pixel_values": pixels()})["logits"]
    assert session.details == {"cache": cached, "compiled": int(cached != "hit"), "winograd": 0}
    assert RUNTIME.compiled - before == int(cached != "hit")
    return scores


def own(model: Any, folder: Path) -> Component:
    shutil.copytree(model.components["onnx"].root, folder)
    return replace(model.components["onnx"], root=folder)


def entries(kept: Path) -> list[Path]:
    return sorted(p for p in kept.iterdir() if not p.name.startswith("."))


def change_bias(component: Component, entries: dict[str, Any]) -> None:
    """Another classifier bias in a file of the same size, put in the old one's place."""
    entry, path = entries["classifier.bias"], component.root / component.weights[0].path
    data = bytearray(path.read_bytes())
    data[entry.offset : entry.offset + entry.length] = np.full(5, 3.0, np.float32).tobytes()
    scratch = path.with_suffix(".new")
    scratch.write_bytes(data)
    os.replace(scratch, path)


def test_a_model_is_compiled_once(vit_model: Any, tmp_path: Path, kept: Path) -> None:
    component = own(vit_model, tmp_path / "a")
    plain = run(component)
    assert not kept.exists(), "nothing is cached unless it is asked for"
    np.testing.assert_allclose(run(component, "miss", cache=True), plain, atol=1e-5)
    (entry,) = entries(kept)
    for _ in range(2):
        np.testing.assert_allclose(run(component, "hit", cache=True), plain, atol=1e-5)
    assert entries(kept) == [entry]


@pytest.mark.parametrize("hashed", [True, False], ids=["a hash in the manifest", "none"])
def test_swapped_weights_of_the_same_graph_miss(vit_model: Any, tmp_path: Path, kept: Path, hashed: bool) -> None:
    component = own(vit_model, tmp_path / "a")
    if hashed:
        file = component.weights[0]
        component = replace(component, weights=(replace(file, sha256=hash_file(component.root / file.path)),))
    before = run(component, "miss", cache=True)
    change_bias(component, vit_model.entries)
    after = run(component, "miss", cache=True)
    np.testing.assert_allclose(after, run(component), atol=1e-5)
    assert np.abs(after - before).max() > 1
    assert len(entries(kept)) == 2


def test_what_changes_the_compiled_model_misses(vit_model: Any, tmp_path: Path, kept: Path) -> None:
    component = own(vit_model, tmp_path / "a")
    plain = run(component, "miss", cache=True)
    others: list[dict[str, Any]] = [{"threads": 1}, {"hint": "throughput"}, {"streams": 2}]
    for other in others:
        np.testing.assert_allclose(run(component, "miss", cache=True, **other), plain, atol=1e-5)
        np.testing.assert_allclose(run(component, "hit", cache=True, **other), plain, atol=1e-5)
    for value in (3.0, 4.0):
        changed = {"classifier.bias": np.full(5, value, np.float32)}
        got = run(component, "miss", changed, cache=True)
        np.testing.assert_allclose(got, run(component, "off", changed), atol=1e-5)
        np.testing.assert_allclose(run(component, "hit", changed, cache=True), got, atol=1e-5)
        assert np.abs(got - plain).max() > 1
    np.testing.assert_allclose(run(component, "hit", cache=True), plain, atol=1e-5)


def test_each_size_has_an_entry(vit_model: Any, tmp_path: Path, kept: Path) -> None:
    component = replace(own(vit_model, tmp_path / "a"), shapes={})
    for cached, compiled in (("miss", 2), ("hit", 0)):
        session = RUNTIME.open(component, CPU, Options(cache=True, static=True))
        for batch in (1, 2):
            got = session.run({"pixel_values": pixels(batch)})
            np.testing.assert_allclose(
                got["logits"], vit_model.reference({"pixel_values": pixels(batch)})["logits"], atol=1e-5
            )
        assert session.details == {"cache": cached, "compiled": compiled, "winograd": 0}
    assert len(entries(kept)) == 2


@pytest.mark.parametrize(
    ("room", "cached"), [(-1, "off"), (1, "miss")], ids=["for the weights", "for the graph beside them"]
)
def test_a_bound_that_leaves_no_room_breaks_nothing(
    vit_model: Any, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, room: int, cached: str
) -> None:
    component = own(vit_model, tmp_path / "a")
    monkeypatch.setenv("VITRIFY_CACHE_MAX", str(sum(w.bytes for w in component.weights) + room))
    for _ in range(2):
        np.testing.assert_array_equal(run(component, cached, cache=True), run(component))
    assert not kept.exists()


@pytest.mark.parametrize("damage", [b"", b"noise", None], ids=["empty", "noise", "half"])
def test_a_damaged_entry_is_made_anew(vit_model: Any, tmp_path: Path, kept: Path, damage: bytes | None) -> None:
    component = own(vit_model, tmp_path / "a")
    plain = run(component, "miss", cache=True)
    (entry,) = entries(kept)
    blob = entry / "model.blob"
    data = blob.read_bytes()
    blob.write_bytes(data[: len(data) // 2] if damage is None else damage)
    np.testing.assert_array_equal(run(component, "miss", cache=True), plain)
    np.testing.assert_allclose(run(component, "hit", cache=True), plain, atol=1e-5)


def test_a_session_outlives_its_entry(vit_model: Any, tmp_path: Path, kept: Path) -> None:
    component = own(vit_model, tmp_path / "a")
    plain = run(component, "miss", cache=True)
    session = RUNTIME.open(component, CPU, Options(cache=True))
    assert session.details["cache"] == "hit"
    shutil.rmtree(kept)
    for _ in range(2):
        np.testing.assert_allclose(session.run({"pixel_values": pixels()})["logits"], plain, atol=1e-5)


def test_missing_weights_are_a_bad_artifact_with_the_cache_too(vit_model: Any, tmp_path: Path, kept: Path) -> None:
    component = own(vit_model, tmp_path / "a")
    run(component, "miss", cache=True)
    (component.root / component.weights[0].path).unlink()
    with pytest.raises(BadArtifact, match="cannot be read"):
        run(component, cache=True)


def test_an_ir_whose_manifest_lists_no_weights_misses_when_they_are_swapped(
    vit_model: Any, tmp_path: Path, kept: Path
) -> None:
    core, component = ov.Core(), vit_model.components["onnx"]
    model = core.read_model(component.graph_path)
    ov.save_model(model, tmp_path / "ir/openvino_model.xml", compress_to_fp16=False)
    ir = replace(component, format="openvino", graph="openvino_model.xml", root=tmp_path / "ir", weights=())
    before = run(ir, "miss", cache=True)
    np.testing.assert_allclose(run(ir, "hit", cache=True), before, atol=1e-5)
    path = tmp_path / "ir/openvino_model.bin"
    bias = vit_model.module.state_dict()["classifier.bias"].numpy().tobytes()
    data = path.read_bytes()
    assert data.count(bias) == 1
    path.unlink()
    path.write_bytes(data.replace(bias, np.full(5, 3.0, np.float32).tobytes()))
    after = run(ir, "miss", cache=True)
    assert np.abs(after - before).max() > 1
