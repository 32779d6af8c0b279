"""The weights proof passes for what was linked, and fails for every way in which a weight can be another one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")

from vitrify.core.errors import ProofFailed  # noqa: E402
from vitrify.proof.weights import FileHashes, prove_weights  # noqa: E402

Q, K = (f"vit.layers.0.attention.{n}_proj.weight" for n in "qk")
Q_BIAS, K_BIAS = (f"vit.layers.0.attention.{n}_proj.bias" for n in "qk")


def own(model: Any, folder: Path) -> Any:
    """The component with files that it shares with nobody."""
    shutil.copytree(model.components["onnx"].root, folder)
    return replace(model.components["onnx"], root=folder)


def edit_graph(component: Any, change: Callable[[dict[str, Any]], object]) -> Any:
    graph = onnx.load(component.graph_path, load_external_data=False)
    change({t.name: t for t in graph.graph.initializer})
    onnx.save(graph, component.graph_path)
    return component


def place(tensor: Any, **changed: object) -> dict[str, str]:
    """Where a tensor points; changed if told to."""
    for entry in tensor.external_data:
        if entry.key in changed:
            entry.value = str(changed[entry.key])
    return {entry.key: entry.value for entry in tensor.external_data}


def exchange(a: Any, b: Any) -> None:
    first, second = place(a), place(b)
    place(a, **second)
    place(b, **first)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def fails(component: Any, model: Any, match: str, hashes: FileHashes | None = None) -> None:
    with pytest.raises(ProofFailed, match=match) as caught:
        prove_weights(component, model.entries, hashes or FileHashes())
    assert "Export again" in caught.value.fix


@pytest.mark.parametrize("shard", ["10GB", "8KB"])
def test_what_was_linked_is_proved(vit: Any, checkpoint: Any, shard: str) -> None:
    model = checkpoint(vit, shard=shard)
    component = model.components["onnx"]
    assert (len(component.weights) > 1) == (shard == "8KB")
    proved = prove_weights(component, model.entries, FileHashes())
    assert proved.proof["weights"]["tensors"] == len(model.entries) == len(model.module.state_dict())
    for weight in proved.weights:
        assert weight.sha256 == hashlib.sha256((component.root / weight.path).read_bytes()).hexdigest()
    assert proved.proof["graph"] == component.proof["graph"], "other proofs stay"


def test_the_proof_depends_on_the_weights_and_not_on_their_files(vit: Any, vit_model: Any, checkpoint: Any) -> None:
    def digest(model: Any) -> str:
        found: str = prove_weights(model.components["onnx"], model.entries, FileHashes()).proof["weights"]["sha256"]
        return found

    sharded = checkpoint(vit, shard="8KB")
    assert digest(vit_model) == digest(sharded)
    entry = sharded.entries[Q]
    flip(entry.file, entry.offset)
    assert digest(vit_model) != digest(sharded), "the source changed, and the artifact, which is the same file"


@pytest.mark.parametrize("at", [0, -1], ids=["first byte", "last byte"])
@pytest.mark.parametrize("name", [Q, "classifier.bias"])
def test_one_changed_byte_is_found(vit_model: Any, tmp_path: Path, name: str, at: int) -> None:
    component, entry = own(vit_model, tmp_path / "a"), vit_model.entries[name]
    flip(component.root / component.weights[0].path, entry.offset + at % entry.length)
    fails(component, vit_model, rf"Weight {name}: its bytes are not those of its source")


def test_a_byte_that_changes_after_it_was_hashed_is_found(vit_model: Any, tmp_path: Path) -> None:
    component, hashes = own(vit_model, tmp_path / "a"), FileHashes()
    prove_weights(component, vit_model.entries, hashes)
    flip(component.root / component.weights[0].path, vit_model.entries[Q].offset)
    fails(component, vit_model, "its bytes are not", hashes)


def test_a_source_that_changed_is_found(vit: Any, checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint(vit)
    component = own(model, tmp_path / "a")
    flip(model.entries[Q].file, model.entries[Q].offset)
    fails(component, model, rf"Weight {Q}: its bytes are not")


def test_a_linked_file_is_read_once(vit_model: Any) -> None:
    component, hashes = vit_model.components["onnx"], FileHashes()
    path = component.root / component.weights[0].path
    assert path.samefile(vit_model.entries[Q].file)
    hashes.add([path, vit_model.entries[Q].file])
    assert len(hashes._known) == 1


def test_two_tensors_of_one_shape_that_were_exchanged_are_found(vit_model: Any, tmp_path: Path) -> None:
    component = edit_graph(own(vit_model, tmp_path / "a"), lambda t: exchange(t[Q], t[K]))
    fails(component, vit_model, r"attention\.[qk]_proj.weight: its bytes are not")


@pytest.mark.parametrize("linked", [True, False], ids=["linked", "copied"])
def test_two_equal_tensors_that_were_exchanged_are_found(
    vit: Any, checkpoint: Any, tmp_path: Path, linked: bool
) -> None:
    """Equal bytes hide it today; the next fine-tune of this graph would be wrong."""
    model = checkpoint(vit)
    data = bytearray(model.entries[Q_BIAS].file.read_bytes())
    for entry in (model.entries[Q_BIAS], model.entries[K_BIAS]):
        data[entry.offset : entry.offset + entry.length] = bytes(entry.length)
    model.entries[Q_BIAS].file.write_bytes(data)
    component = model.components["onnx"] if linked else own(model, tmp_path / "a")
    assert prove_weights(component, model.entries, FileHashes()).proof["weights"]["tensors"]
    edit_graph(component, lambda t: exchange(t[Q_BIAS], t[K_BIAS]))
    fails(component, model, r"_proj.bias: it points at byte \d+, its source lies at byte \d+")


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "transposed": (
        lambda t: t["classifier.weight"].dims.__setitem__(slice(None), [16, 5]),
        r"classifier.weight: it is F32 \[16, 5\], its source F32 \[5, 16\]",
    ),
    "another type": (
        lambda t: setattr(t["classifier.weight"], "data_type", onnx.TensorProto.INT32),
        r"classifier.weight: it is None \[5, 16\], its source F32",
    ),
    "one element off": (
        lambda t: place(t[Q], offset=int(place(t[Q])["offset"]) + 4),
        rf"{Q}: its bytes are not",
    ),
    "shorter": (
        lambda t: place(t[Q], length=int(place(t[Q])["length"]) - 4),
        rf"{Q}: its bytes are not",
    ),
    "in another folder": (
        lambda t: place(t[Q], location="../source/model.safetensors"),
        r"points at model/../source/model.safetensors, which is none of the component's files",
    ),
    "renamed": (lambda t: setattr(t[Q], "name", "nobody"), r"nobody: the source has no such tensor"),
    "copied into the graph": (
        lambda t: t["classifier.bias"].CopyFrom(
            onnx.numpy_helper.from_array(np.zeros(5, np.float32), "classifier.bias")
        ),
        r"classifier.bias: its bytes lie in the graph",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_graph_that_says_otherwise_is_found(vit_model: Any, tmp_path: Path, edit: str) -> None:
    change, match = EDITS[edit]
    fails(edit_graph(own(vit_model, tmp_path / "a"), change), vit_model, match)


def test_tensors_exchanged_between_shards_are_found(vit: Any, checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint(vit, shard="1KB")
    assert model.entries[Q].file != model.entries[K].file
    component = edit_graph(own(model, tmp_path / "a"), lambda t: exchange(t[Q], t[K]))
    fails(component, model, r"attention\.[qk]_proj.weight: its bytes are not")


def test_shards_that_changed_names_are_found(vit: Any, checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint(vit, shard="1KB")
    component = own(model, tmp_path / "a")
    a, b = (component.graph_path.parent / model.entries[n].file.name for n in (Q, K))
    os.replace(a, tmp_path / "swap")
    os.replace(b, a)
    os.replace(tmp_path / "swap", b)
    fails(component, model, r"its bytes are not")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_half_precision_are_traced_as_they_are_stored(vit: Any, checkpoint: Any, dtype: str) -> None:
    model = checkpoint(vit, dtype=dtype)
    proved = prove_weights(model.components["onnx"], model.entries, FileHashes())
    assert proved.proof["weights"]["tensors"] == len(model.entries)
    stored = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[dtype]
    graph = onnx.load(model.components["onnx"].graph_path, load_external_data=False).graph
    assert {t.data_type for t in graph.initializer if t.name in model.entries} == {stored}
