"""A graph's weights are the checkpoint's own bytes: linked, cast where stored otherwise, refused if foreign."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")
torch = pytest.importorskip("torch", reason="needs vitrify[export]")

import onnx_ir as ir  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from vitrify.core.artifact import Component  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadInput  # noqa: E402
from vitrify.core.registry import load_runtime  # noqa: E402
from vitrify.core.safetensors_header import open_checkpoint, read_header  # noqa: E402
from vitrify.export.link import link_weights  # noqa: E402
from vitrify.export.names import bind_module  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402

Q, HEAD = "vit.layers.0.attention.q_proj.weight", "classifier.weight"


def link(model: Any, entries: Any, root: Path) -> tuple[Component, list[str]]:
    graph = ir.load(model.architecture.graph)
    weights, copied = link_weights(graph, entries, root, "model")
    ir.save(graph, root / "model/model.onnx")
    return replace(model.components["onnx"], root=root, weights=tuple(weights)), copied


def logits(component: Component, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = (
        load_runtime("onnx").open(component, Device("cpu"), Options()).run({"pixel_values": x})["logits"]
    )
    return found


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)


def initializers(component: Component) -> dict[str, Any]:
    return {t.name: t for t in onnx.load(component.graph_path, load_external_data=False).graph.initializer}


def rewritten(model: Any, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The model's checkpoint with some tensors changed, bound again."""
    path = next(model.source.glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    entries = open_checkpoint(model.source, ("model",))
    return dict(bind_module(model.module, entries).linked)


def test_every_weight_points_at_its_own_bytes(vit_model: Any, tmp_path: Path) -> None:
    before = {e.file: e.file.read_bytes() for e in vit_model.entries.values()}
    component, copied = link(vit_model, vit_model.entries, tmp_path)
    assert copied == []
    external = {n: t for n, t in initializers(component).items() if t.data_location == onnx.TensorProto.EXTERNAL}
    assert external.keys() == vit_model.entries.keys() == vit_model.module.state_dict().keys()
    for name, tensor in external.items():
        place, entry = {e.key: e.value for e in tensor.external_data}, vit_model.entries[name]
        assert (place["location"], int(place["offset"]), int(place["length"])) == (
            entry.file.name,
            entry.offset,
            entry.length,
        )
        assert not tensor.raw_data
    assert {f: f.read_bytes() for f in before} == before, "the source stays as it is"


def test_files_are_hard_links(vit_model: Any, tmp_path: Path) -> None:
    component, _ = link(vit_model, vit_model.entries, tmp_path)
    (weight,) = component.weights
    source = vit_model.entries[Q].file
    assert weight.path == f"model/{source.name}"
    assert weight.bytes == source.stat().st_size
    linked = tmp_path / weight.path
    assert (linked.stat().st_dev, linked.stat().st_ino) == (source.stat().st_dev, source.stat().st_ino)
    assert not linked.is_symlink()


def test_a_hub_caches_links_are_followed(vit: Any, checkpoint: Any, tmp_path: Path, x: np.ndarray) -> None:
    """There the snapshot's files are symlinks to blobs, which no runtime would follow out of the graph's folder."""
    model = checkpoint(vit)
    name = model.entries[Q].file
    blob = name.rename(tmp_path / "blob")
    name.symlink_to(blob)
    component, _ = link(model, model.entries, tmp_path / "artifact")
    linked = tmp_path / "artifact" / component.weights[0].path
    assert linked.name == "model.safetensors"
    assert not linked.is_symlink()
    assert linked.samefile(blob)
    np.testing.assert_allclose(logits(component, x), model.reference({"pixel_values": x})["logits"], atol=1e-5)


def test_where_the_disk_cannot_link_it_copies_and_says_so(
    vit_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: np.ndarray
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    component, copied = link(vit_model, vit_model.entries, tmp_path)
    assert copied == [component.weights[0].path]
    copy = tmp_path / copied[0]
    assert copy.stat().st_nlink == 1
    assert copy.read_bytes() == vit_model.entries[Q].file.read_bytes()
    np.testing.assert_allclose(logits(component, x), vit_model.reference({"pixel_values": x})["logits"], atol=1e-5)


def test_a_sharded_checkpoint(vit: Any, checkpoint: Any, x: np.ndarray) -> None:
    model = checkpoint(vit, shard="1KB")
    component = model.components["onnx"]
    files = sorted(f.name for f in model.source.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(w.path for w in component.weights) == [f"model/{f}" for f in files]
    np.testing.assert_allclose(logits(component, x), model.reference({"pixel_values": x})["logits"], atol=1e-5)


def test_files_of_one_name_from_two_folders_stay_two(vit: Any, checkpoint: Any, tmp_path: Path, x: np.ndarray) -> None:
    model = checkpoint(vit)
    other = tmp_path / "converted" / model.entries[HEAD].file.name
    other.parent.mkdir()
    changed = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    save_file({HEAD: torch.from_numpy(changed)}, other)
    component, _ = link(model, model.entries | read_header(other), tmp_path / "artifact")
    assert len({w.path for w in component.weights}) == 2
    assert all((component.root / w.path).stat().st_size == w.bytes for w in component.weights)
    expected = model.reference({"pixel_values": x}, {HEAD: changed})["logits"]
    np.testing.assert_allclose(logits(component, x), expected, atol=1e-5)
    assert np.abs(expected - model.reference({"pixel_values": x})["logits"]).max() > 0.1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_another_float_type_is_cast_in_the_graph(vit: Any, checkpoint: Any, x: np.ndarray, dtype: str) -> None:
    model = checkpoint(vit, dtype=dtype)
    component = model.components["onnx"]
    graph = onnx.load(component.graph_path, load_external_data=False).graph
    casts = [n for n in graph.node if n.op_type == "Cast" and n.input[0] in model.entries]
    assert sorted(n.input[0] for n in casts) == sorted(model.entries)
    assert {n.attribute[0].i for n in casts} == {onnx.TensorProto.FLOAT}
    expected = model.reference({"pixel_values": x})["logits"]
    np.testing.assert_allclose(logits(component, x), expected, atol=1e-5)
    assert (component.root / component.weights[0].path).samefile(model.entries[Q].file), "not written in float32"


def test_types_may_be_mixed(vit: Any, checkpoint: Any, tmp_path: Path, x: np.ndarray) -> None:
    model = checkpoint(vit, dtype="float16")
    entries = rewritten(model, lambda t: t.update({n: v.float() for n, v in t.items() if n.endswith("bias")}))
    assert {e.dtype for e in entries.values()} == {"F16", "F32"}
    component, _ = link(model, entries, tmp_path)
    np.testing.assert_allclose(logits(component, x), model.reference({"pixel_values": x})["logits"], atol=1e-5)


def test_sizes_of_one_more_or_less_are_declared_as_the_graph_wants(vit: Any, checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint(vit)
    entry = model.entries[Q]
    component, _ = link(model, model.entries | {Q: replace(entry, shape=(1, 16, 16, 1))}, tmp_path)
    assert list(initializers(component)[Q].dims) == [16, 16]


def test_a_tensor_that_is_not_there_is_named(vit_model: Any, tmp_path: Path) -> None:
    entries = {n: e for n, e in vit_model.entries.items() if n != Q}
    with pytest.raises(BadInput, match=rf"checkpoint has no tensor for {Q}"):
        link(vit_model, entries, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": (16, 5)}, r"F32 \[16, 5\]"),  # as many elements, and another matrix
        ({"shape": (80,)}, r"F32 \[80\]"),
        ({"dtype": "I64"}, r"I64 \[5, 16\]"),
        ({"dtype": "I8"}, r"I8 \[5, 16\]"),
        ({"dtype": "F8_E4M3"}, r"F8_E4M3 \[5, 16\]"),
    ],
    ids=str,
)
def test_a_tensor_that_does_not_fit_is_refused(
    vit_model: Any, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    entry = replace(vit_model.entries[HEAD], **change)
    with pytest.raises(BadInput, match=rf"{HEAD} in .* is {said}; the graph wants \[5, 16\]"):
        link(vit_model, vit_model.entries | {HEAD: entry}, tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing is linked before all fits"
